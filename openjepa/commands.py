"""One function per command: parse, then call one function of a stage. torch is imported after parsing, by those who need it."""

import os
import sys
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated

import tyro

from openjepa.arguments import is_help, option_value, parse, parse_evaluate, parse_train, require, select_component
from openjepa.checks import check, check_patch_divides, remarks
from openjepa.config import nearest
from openjepa.recipes import RECIPES
from openjepa.settings.bench import SAID_BY_THE_RECIPE, DataBench, StepBench
from openjepa.settings.choices import CHOICES
from openjepa.settings.data import DataSettings, FolderSettings
from openjepa.settings.masks import MaskSettings, MultiblockSettings

TRAIN_HELP = """openjepa train RECIPE [OPTIONS]: train an encoder. The recipe comes first, then any setting to change.

recipes and their presets (the first is the default):
{recipes}

components (their options are shown when chosen before --help):
{choices}

examples:
  openjepa train cpu-64 --data.path ~/photos
  openjepa train gpu-128 --data.source huggingface --data.path owner/name --model.size base
  openjepa train ijepa-vitb16 --preset paper --data.path ~/imagenet --dry-run
  openjepa train --config runs/cpu-64-default-photos/config.yaml

The same command continues an interrupted run."""

EVALUATE_HELP = """openjepa evaluate RUN|ENCODER [OPTIONS]: k-NN and linear probes on frozen features, beside the same on the
untrained encoder and on raw pixels.

tasks (all that the data has labels for, unless --tasks names some):
{tasks}

examples:
  openjepa evaluate runs/cpu-64-default-photos
  openjepa evaluate runs/cpu-64-default-photos --selection paper --neighbors 10 20
  openjepa evaluate runs/cpu-64-default-photos/encoder --data.source folder --data.path ~/labeled"""

VISUALIZE_HELP = """openjepa visualize RUN [OPTIONS]: masks on images, PCA maps of patch features, nearest neighbors before and
after training, as pictures.

example:
  openjepa visualize runs/cpu-64-default-photos"""

REPORT_HELP = """openjepa report RUN [RUN ...] [OPTIONS]: one self-contained HTML file on one run, or on several side by side.
Needs only the run folders, no torch.

examples:
  openjepa report runs/cpu-64-default-photos
  openjepa report runs/first runs/second --output comparison.html"""

MASKS_HELP = """Draws examples of a mask strategy and how often each patch is context or target, as one picture.
The other mode of multi-block masks is drawn below the chosen one, to compare.

examples:
  openjepa data masks
  openjepa data masks --image-size 96 --patch-size 12 --masks.mode official --masks.min-keep 3"""

SCENES_HELP = """Renders labeled scenes in CLEVR's own format (needs mitsuba: pip install 'openjepa[scenes]').

The same command continues an interrupted one, and larger numbers add scenes. Train on them with
`--data.source scenes --data.path FOLDER`.

example:
  openjepa data scenes --output ~/scenes --train 3000 --test 1000 --image-size 64"""

CHECK_HELP = """Reads every image of a data set once, and says how many there are, how large, and which cannot be used.

examples:
  openjepa data check --data.path ~/photos
  openjepa data check --data.source huggingface --data.path ~/parquet-files"""

QUICKSTART_HELP = """Trains, evaluates, draws and reports the recipe `quickstart` on the packaged scenes. Nothing is downloaded.

example:
  openjepa quickstart"""


BENCH_STEP_HELP = """Times a training step and its parts: images/s, FLOPs, memory, and its share of the rate of a matrix
product that is measured in the same rounds.

examples:
  openjepa bench step
  openjepa bench step cpu-64
  openjepa bench step --size base --batch-size 16 --compile"""

BENCH_DATA_HELP = """Times decoding and cropping against Pillow with the same filter, and the loader end to end.

examples:
  openjepa bench data
  openjepa bench data --path ~/photos"""


def _check_subject(path: Path, *marks: str) -> None:
    """ValueError, with the nearest folder that would do, unless `path` is a folder that holds one of the files `marks`."""
    if any((path / mark).is_file() for mark in marks):
        return
    problem = f"{path} holds no {' or '.join(marks)}" if path.is_dir() else f"{path} does not exist"
    around = path if path.is_dir() else path.parent
    names = sorted({item.parent.name for mark in marks for item in around.glob(f"*/{mark}")})
    raise ValueError(f"{problem}: {nearest(path.name, names) if names else 'name a folder that `openjepa train` has written'}")


def _check_output_file(path: Path | None, ending: str, any_ending: bool = True) -> None:
    """ValueError: `--output` is a folder, lies in none, or has another ending."""
    if path is None:
        return
    if path.is_dir():
        raise ValueError(f"--output {path} is a folder: name a file, e.g. --output {path / f'openjepa{ending}'}")
    if not path.parent.is_dir():
        raise ValueError(f"--output {path}: there is no folder {path.parent}; make it first, or name a file elsewhere")
    if not any_ending and path.suffix.lower() != ending:
        raise ValueError(f"--output {path} must end in {ending}, e.g. --output {path.with_suffix(ending)}")


def _check_output_folder(path: Path) -> None:
    """ValueError: `--output` is a file or lies in one; folders that are missing are made."""
    existing = next(item for item in (path, *path.parents) if item.exists())
    if not existing.is_dir():
        raise ValueError(f"--output {path}: {existing} is a file, but a folder is needed; name another one")


def train(argv: Sequence[str], prog: str) -> None:
    """Pretrains an encoder."""
    recipes = [f"  {name:<18}{' | '.join(recipe.presets):<20}{recipe.summary()}" for name, recipe in RECIPES.items()]
    choices = [f"  --{name}.{choice.field} {' | '.join(choice.options)}" for name, choice in CHOICES.items()]
    text = TRAIN_HELP.format(recipes="\n".join(recipes), choices="\n".join(choices))
    config, options = parse_train(argv, prog, text)
    check(config, world_size=int(os.environ.get("WORLD_SIZE", "1")))
    for remark in remarks(config):
        print(f"note: {remark}", file=sys.stderr)
    from openjepa.training.loop import train as train_run

    folder = train_run(config, fresh=options.fresh, dry_run=options.dry_run)
    if folder is not None:
        print(f"next: openjepa evaluate {folder}")


def evaluate(argv: Sequence[str], prog: str) -> None:
    """Probes an encoder."""
    from openjepa.evaluation.tasks import TASKS

    if argv and not argv[0].startswith("-") and not is_help(argv):  # before the options, which depend on the run's data
        _check_subject(Path(argv[0]).expanduser(), "config.yaml", "config.json")
    tasks = "\n".join(f"  {name:<16}{task.title}" for name, task in TASKS.items())
    options, data = parse_evaluate(argv, prog, EVALUATE_HELP.format(tasks=tasks))
    if unknown := [name for name in options.evaluation.tasks if name not in TASKS]:
        raise ValueError(f"--tasks {unknown[0]} does not exist: {nearest(unknown[0], TASKS)}")
    from openjepa.evaluation.suite import evaluate_run, print_results

    print_results(evaluate_run(options.subject, options.evaluation, data))


@dataclass(frozen=True, kw_only=True)
class VisualizeOptions:
    """The arguments of `visualize`."""

    subject: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="RUN")] = Path()
    """Run folder."""
    num_images: int = 8
    """Images in each picture (1 to 24)."""
    seed: int = 0
    """Seed of the choice of images."""
    device: str = "auto"
    """`auto`, `cpu`, `cuda` or `mps`."""


def visualize(argv: Sequence[str], prog: str) -> None:
    """Draws the pictures of a run."""
    options = parse(VisualizeOptions, require(argv, "RUN", prog), prog, VISUALIZE_HELP, VisualizeOptions())
    _check_subject(options.subject, "config.yaml")
    from openjepa.visualization import visualize_run

    for path in visualize_run(options.subject, options.num_images, options.seed, options.device):
        print(path)


@dataclass(frozen=True, kw_only=True)
class ReportOptions:
    """The arguments of `report`."""

    runs: Annotated[tuple[Path, ...], tyro.conf.Positional, tyro.conf.arg(metavar="RUN [RUN ...]")] = ()
    """Run folders."""
    output: Path | None = None
    """The HTML file. None: report.html in the run's folder, for several runs in the folder that holds the first."""


def report(argv: Sequence[str], prog: str) -> None:
    """Writes the HTML report."""
    options = parse(ReportOptions, require(argv, "RUN", prog), prog, REPORT_HELP, ReportOptions())
    _check_output_file(options.output, ".html")
    from openjepa.report import write_report

    print(write_report(options.runs, options.output))


@dataclass(frozen=True, kw_only=True)
class QuickstartOptions:
    """The arguments of `quickstart`."""

    output: Path = Path("runs")
    """Folder that holds the run folder."""
    total_steps: int | None = None
    """Optimizer steps. None: the recipe's."""
    fresh: bool = False
    """Start anew even if an earlier quickstart exists."""


def quickstart(argv: Sequence[str], prog: str) -> None:
    """Train, evaluate, visualize, report."""
    options = parse(QuickstartOptions, argv, prog, QUICKSTART_HELP, QuickstartOptions())
    _check_output_folder(options.output)
    from openjepa.experiments import quickstart as run_quickstart

    run_quickstart(output=options.output, total_steps=options.total_steps, fresh=options.fresh)


@dataclass(frozen=True, kw_only=True)
class MasksOptions:
    """The arguments of `data masks`."""

    output: Path = Path("masks.png")
    """The picture."""
    image_size: int | tuple[int, int] = 224
    """Side, or height and width, of the images in pixels."""
    patch_size: int = 16
    """Side of a patch in pixels."""
    seed: int = 0
    """Seed of the masks."""
    masks: MaskSettings = field(default_factory=MultiblockSettings)


def data_masks(argv: Sequence[str], prog: str) -> None:
    """Draws masks."""
    defaults = MasksOptions(masks=select_component(MultiblockSettings(), "masks", argv))
    options = parse(MasksOptions, argv, prog, MASKS_HELP, defaults)
    _check_output_file(options.output, ".png", any_ending=False)
    size = options.image_size
    height, width = (size, size) if isinstance(size, int) else size
    check_patch_divides(options.patch_size, (height, width), "patch_size", "image_size")
    from openjepa.masks import MASKS
    from openjepa.visualization import mask_figure

    build, grid = MASKS[options.masks.strategy].load(), (height // options.patch_size, width // options.patch_size)
    samplers = [build(options.masks, grid)]
    if isinstance(options.masks, MultiblockSettings):
        other = replace(options.masks, mode="official" if options.masks.mode == "unbiased" else "unbiased")
        try:
            with warnings.catch_warnings():  # what only the chosen mode heeds is no mistake
                warnings.simplefilter("ignore", UserWarning)
                samplers.append(build(other, grid))
        except ValueError as error:
            print(f"note: masks.mode={other.mode} is not shown: {error}", file=sys.stderr)
    print(mask_figure(samplers, options.output, seed=options.seed))


@dataclass(frozen=True, kw_only=True)
class ScenesOptions:
    """The arguments of `data scenes`."""

    output: Path = Path("scenes")
    """Folder that the scenes are written to."""
    train: int = 3000
    """Training scenes."""
    test: int = 1000
    """Test scenes."""
    image_size: int = 64
    """Side of the pictures in pixels."""
    seed: int = 0
    """Seed of the scenes."""
    samples: int = 32
    """Light paths per pixel: more is slower and less noisy."""
    workers: int | None = None
    """Processes. None: one per core."""


def data_scenes(argv: Sequence[str], prog: str) -> None:
    """Renders scenes."""
    options = parse(ScenesOptions, argv, prog, SCENES_HELP, ScenesOptions())
    _check_output_folder(options.output)
    from openjepa.data.scene_renderer import render_scenes

    render_scenes(
        options.output, options.train, options.test, options.image_size, options.seed, options.samples, options.workers
    )
    print(options.output)


@dataclass(frozen=True, kw_only=True)
class CheckOptions:
    """The arguments of `data check`."""

    seed: int = 0
    """Seed of the split, where the data has none of its own."""
    data: DataSettings = field(default_factory=FolderSettings)


def data_check(argv: Sequence[str], prog: str) -> None:
    """Reads every image once."""
    defaults = CheckOptions(data=select_component(FolderSettings(), "data", argv))
    options = parse(CheckOptions, argv, prog, CHECK_HELP, defaults)
    if isinstance(options.data, FolderSettings) and not options.data.path:
        raise ValueError("data.path is empty: say where the images are, e.g. --data.path ~/photos")
    from openjepa.data import open_splits
    from openjepa.data.inspection import inspect

    for line in inspect(open_splits(options.data, options.seed)):
        print(line)


def bench_step(argv: Sequence[str], prog: str) -> None:
    """Times a training step."""
    options = parse(StepBench, argv, prog, BENCH_STEP_HELP, StepBench())
    for name in SAID_BY_THE_RECIPE if options.recipe else ():
        if (value := option_value(argv, name)) is not None:
            given = f"--{name.replace('_', '-')} {value}"
            raise ValueError(f"{given} has no effect: the recipe {options.recipe} says it; leave out one of the two")
    _check_output_file(options.output, ".json")
    from openjepa.bench import time_step

    time_step(options)


def bench_data(argv: Sequence[str], prog: str) -> None:
    """Times the data path."""
    options = parse(DataBench, argv, prog, BENCH_DATA_HELP, DataBench())
    from openjepa.bench_data import time_data

    time_data(options)
