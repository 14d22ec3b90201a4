"""The commands `openjepa data ...`."""

import warnings
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import tyro

from openjepa.checks import check_patch_divides
from openjepa.commands.parsing.arguments import (
    Unprefixed,
    check_output_file,
    check_output_folder,
    parse,
    require,
    select_component,
)
from openjepa.recipes import load_recipe
from openjepa.refusals import Refusal
from openjepa.settings.derived import resolve
from openjepa.settings.fields import AT_LEAST_1, NOT_NEGATIVE, as_option, between, check_ranges
from openjepa.settings.masks import MaskSettings, MultiblockSettings
from openjepa.settings.models import ModelSettings, height_and_width
from openjepa.settings.run import CHOICES, RunConfig
from openjepa.settings.sources import DataSettings, FolderSettings, PackSettings, ScenesSettings, is_without_path

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from openjepa.masks.sampler import MaskSampler

MASKS_HELP = """Draws masks as a picture: examples of a strategy, and how often each patch is context or target, or visible or
masked. The other mode of multi-block masks is drawn below the chosen one, to compare.

--show targets draws one row for each image, the context and every target alone, as Figure 4 of the paper. --show strategies
draws all strategies beside each other, those that were not chosen with their default settings. Both draw on --images, or on
packaged scenes.

examples:
  openjepa data masks
  openjepa data masks --show strategies --images ~/photos
  openjepa data masks --show targets --masks.strategy inverse_block
  openjepa data masks --image-size 96 --patch-size 12 \\
      --masks.mode official --masks.min-keep 3"""


SCENES_HELP = """Renders labeled scenes in CLEVR's own format (needs mitsuba: pip install 'openjepa[scenes]').

The same command continues an interrupted one, and larger numbers add scenes. Train on them with
`--data.source scenes --data.path FOLDER`.

example:
  openjepa data scenes --output ~/scenes --train 3000 --test 1000"""


CHECK_HELP = """Reads every image of a data set once, and says how many there are, how large, and which cannot be used and
why: training skips the same ones. Of a folder, says of every file what becomes of it; --list writes all of them down.

examples:
  openjepa data check --data.path ~/photos
  openjepa data check --data.path ~/photos --recipe cpu-64 --list files.csv
  openjepa data check --data.source huggingface --data.path ~/parquet-files"""


PACK_HELP = """Writes a folder of images as shards: large files that disks, networks and object stores read many times faster
than millions of small ones. The bytes of the images are copied unchanged; class folders become labels with their names, and
splits (train, val, test) stay splits. Images are mixed over the shards, so that shards may be read from front to back.

examples:
  openjepa data pack ~/photos --output ~/shards
  openjepa data pack ~/imagenet --output /scratch/shards --shard-mb 500
  openjepa data pack ~/photos --output ~/tables --format parquet
  openjepa data pack --output ~/shards --verify
  openjepa train cpu-64 --data.source huggingface --data.path ~/shards

Shards are named train-00000-of-00012.tar. Beside them, manifest.json has the number of images, size and SHA-256 of each, and
left-out.csv the images that cannot be used, with reasons. A command that was stopped or killed continues when it is repeated.
--verify compares the shards of --output with their manifest, for example after they were copied, and writes nothing."""


@dataclass(frozen=True, kw_only=True)
class MasksOptions:
    """The arguments of `openjepa data masks`."""

    output: Path = Path("masks.png")
    """File of the picture (.png)."""
    image_size: Annotated[int | tuple[int, int], AT_LEAST_1] = 224
    """Side, or height and width, of the images in pixels."""
    patch_size: Annotated[int, AT_LEAST_1] = 16
    """Side of a patch in pixels."""
    show: Literal["coverage", "targets", "strategies"] = "coverage"
    """`coverage`: examples and maps of how often each patch is covered; `targets`: context and each target alone, one row an
    image; `strategies`: all strategies beside each other, one row an image."""
    images: Path | None = None
    """Folder of images to draw on. None: the packaged scenes, and plain patches for `coverage`."""
    num_images: Annotated[int, between(1, 8)] = 4
    """Number of images."""
    seed: Annotated[int, NOT_NEGATIVE] = 0
    """Seed of the masks and of the choice of images."""
    masks: MaskSettings = field(default_factory=MultiblockSettings)


def data_masks(argv: Sequence[str], prog: str) -> None:
    """Runs `openjepa data masks`: draws masks."""
    defaults = MasksOptions(masks=select_component(MultiblockSettings(), "masks", argv))
    options = parse(MasksOptions, argv, prog, MASKS_HELP, defaults)
    check_output_file(options.output, ".png", any_ending=False)
    if options.masks.kind == "none":
        drawing = [name for name, cls in CHOICES["masks"].options.items() if cls.kind != "none"]
        raise Refusal(f"masks.strategy={options.masks.strategy} has nothing to show: use one of {', '.join(drawing)}")
    height, width = height_and_width(options.image_size)
    check_patch_divides(options.patch_size, (height, width), "image_size", "patch_size", said=as_option)
    grid = (height // options.patch_size, width // options.patch_size)
    if options.show == "coverage":
        from openjepa.visualization import mask_figure

        pictures = None if options.images is None else _pictures(options)
        print(mask_figure(_samplers(options, grid), options.output, pictures, options.seed))
        return
    from openjepa.visualization.mask_rows import strategy_rows, target_rows

    if options.show == "targets":
        print(target_rows(_samplers(options, grid)[0], _pictures(options), options.output, options.seed))
    else:
        print(strategy_rows(_samplers(options, grid), _pictures(options), options.output, options.seed))


def _samplers(options: MasksOptions, grid: tuple[int, int]) -> list["MaskSampler"]:
    """The chosen masks, and those to compare them with. Says which of the latter cannot be drawn on this grid."""
    from openjepa.masks import MASKS
    from openjepa.system.console import say

    model, data = ModelSettings(patch_size=options.patch_size), FolderSettings(image_size=options.image_size)
    chosen = resolve(RunConfig(model=model, data=data, masks=options.masks)).masks
    samplers = {chosen.strategy: MASKS[chosen.strategy].load()(chosen, grid)}
    others: list[tuple[str, MaskSettings]] = []
    if options.show == "strategies":
        suiting = {name: entry.settings for name, entry in MASKS.items() if entry.settings.kind != "none"}
        others = [(f"masks.strategy={name}", cls(strategy=name)) for name, cls in suiting.items() if name != chosen.strategy]
    elif options.show == "coverage" and isinstance(chosen, MultiblockSettings):
        other = replace(chosen, mode="official" if chosen.mode == "unbiased" else "unbiased")
        others = [(f"masks.mode={other.mode}", other)]
    for name, masks in others:
        try:
            with warnings.catch_warnings():  # settings of only the chosen mode are no mistake
                warnings.simplefilter("ignore", UserWarning)
                samplers[name] = MASKS[masks.strategy].load()(masks, grid)
        except ValueError as error:
            say(f"note: {name} is not shown: {error}")
    return list(samplers.values())


def _pictures(options: MasksOptions) -> "NDArray[np.uint8]":
    """Images to draw on [n, h, w, 3]: of the folder that was given, or packaged scenes."""
    from openjepa.visualization.neighbors import choose_images

    size = height_and_width(options.image_size)
    data = ScenesSettings() if options.images is None else FolderSettings(path=str(options.images))
    chosen = choose_images(RunConfig(data=data), size, options.num_images, 1, options.seed)[0].images
    return chosen.permute(0, 2, 3, 1).contiguous().numpy()


@dataclass(frozen=True, kw_only=True)
class ScenesOptions:
    """The arguments of `openjepa data scenes`."""

    output: Path = Path("scenes")
    """Folder to which the scenes are written."""
    train: Annotated[int, AT_LEAST_1] = 3000
    """Number of training scenes."""
    test: Annotated[int, AT_LEAST_1] = 1000
    """Number of test scenes."""
    image_size: Annotated[int, AT_LEAST_1] = 64
    """Side of the pictures in pixels."""
    seed: Annotated[int, NOT_NEGATIVE] = 0
    """Seed of the scenes."""
    samples: Annotated[int, AT_LEAST_1] = 32
    """Light paths per pixel. More are slower and less noisy."""
    workers: Annotated[int | None, AT_LEAST_1] = None
    """Number of processes. None: one per core."""


def data_scenes(argv: Sequence[str], prog: str) -> None:
    """Runs `openjepa data scenes`: renders scenes."""
    options = parse(ScenesOptions, argv, prog, SCENES_HELP, ScenesOptions())
    check_output_folder(options.output)
    from openjepa.data.scenes.renderer import render_scenes

    render_scenes(
        options.output, options.train, options.test, options.image_size, options.seed, options.samples, options.workers
    )
    print(options.output)


@dataclass(frozen=True, kw_only=True)
class CheckOptions:
    """The arguments of `openjepa data check`."""

    seed: Annotated[int, NOT_NEGATIVE] = 0
    """Seed of the split, if the data has no test split."""
    recipe: str | None = None
    """Recipe that will train on the images. Images smaller than one of its patches cannot be used."""
    preset: str | None = None
    """Preset of the recipe. None: its first."""
    patch_size: Annotated[int | None, AT_LEAST_1] = None
    """Side of a patch in pixels. None: that of the recipe, or 16 without a recipe."""
    list: Path | None = None
    """CSV file to write, with a row for every file: how it is used, split, class, reason, width and height."""
    data: DataSettings = field(default_factory=FolderSettings)


def data_check(argv: Sequence[str], prog: str) -> None:
    """Runs `openjepa data check`: reads every image once."""
    defaults = CheckOptions(data=select_component(FolderSettings(), "data", argv))
    options = parse(CheckOptions, argv, prog, CHECK_HELP, defaults)
    if is_without_path(options.data):
        raise Refusal("data.path is empty: say where the images are, e.g. --data.path ~/photos")
    check_output_file(options.list, ".csv", any_ending=False, option="--list")
    min_side = _smallest_side(options)
    from openjepa.data.check import CheckSummary, csv_list, inspect, num_records
    from openjepa.data.source import open_splits
    from openjepa.system.console import progress

    splits, summary = open_splits(options.data, options.seed), CheckSummary()
    print(splits.description)
    with ExitStack() as resources:
        write = resources.enter_context(csv_list(options.list)) if options.list is not None else None
        advance = resources.enter_context(progress("reading", num_records(splits)))
        for found in inspect(options.data, splits, min_side, options.list):
            summary.add(found)
            if write is not None:
                write(found)
            if found.split:
                advance(1)
    for line in summary.lines():
        print(line)
    if min_side > 1:
        print(f"images smaller than a patch of {min_side} pixels count as unusable (--recipe or --patch-size: another one)")
    if options.list is not None:
        print(f"every file: {options.list}")


def _smallest_side(options: CheckOptions) -> int:
    """Shortest side, in pixels, that training accepts: the side of a patch, or 1 for a method without masks."""
    if options.recipe is None:
        if options.preset is not None:
            raise Refusal(f"--preset {options.preset} needs a recipe: add --recipe NAME")
        return ModelSettings.patch_size if options.patch_size is None else options.patch_size
    config = load_recipe(options.recipe, options.preset)
    if options.patch_size is not None:
        return options.patch_size
    return 1 if config.masks.kind == "none" else config.model.patch_size


@dataclass(frozen=True, kw_only=True)
class PackOptions:
    """The arguments of `openjepa data pack`."""

    folder: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="FOLDER")] = Path()
    """Folder of images: flat, in class folders, with or without train, val and test."""
    output: Path = Path("shards")
    """New folder for the shards."""
    packing: Annotated[PackSettings, Unprefixed] = field(default_factory=PackSettings)
    workers: Annotated[int | None, NOT_NEGATIVE] = None
    """Number of processes that read and decode. None: one per core but one."""
    verify: bool = False
    """Compare the shards of the output with its manifest, and write nothing."""


def data_pack(argv: Sequence[str], prog: str) -> None:
    """Runs `openjepa data pack`: writes shards, or verifies them."""
    if not {"--verify", "--no-verify"}.intersection(argv):
        argv = require(PackOptions, argv, "a folder of images", prog)
    options = parse(PackOptions, argv, prog, PACK_HELP, PackOptions())
    check_ranges(options.packing, said=as_option)
    if ":/" in str(options.output):
        raise Refusal(f"--output {options.output} is no folder on a disk: pack into one, then copy it to the object store")
    check_output_folder(options.output)
    from openjepa.data.passes import choose_workers
    from openjepa.data.tables.pack_run import pack_folder
    from openjepa.data.tables.shard_manifest import compare
    from openjepa.system.console import say

    workers = choose_workers(options.workers)
    if options.verify:
        manifest = compare(options.output, workers)
        print(f"{options.output}: all {len(manifest.shards):,} shards are as they were packed")
        return
    packed = pack_folder(options.folder, options.output, options.packing, workers, say)
    for line in packed.lines(options.output):
        print(line)
