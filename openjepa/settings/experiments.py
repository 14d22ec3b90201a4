"""Settings of the commands that compare and time runs: `ablate` and `bench`."""

import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

import tyro

from openjepa.refusals import Refusal
from openjepa.settings.fields import (
    ABOVE_0,
    AT_LEAST_1,
    AT_LEAST_2,
    POSITIVE,
    SHARE_ABOVE_0,
    NamesOf,
    Range,
    as_option,
    at_least,
    check_ranges,
)
from openjepa.settings.models import ModelSettings, Size
from openjepa.settings.run import SystemSettings
from openjepa.settings.sources import DataSettings, FolderSettings

SECONDS = Range(ABOVE_0, math.inf, "above 0, or auto or none")


@dataclass(frozen=True, kw_only=True)
class AblationSettings:
    """Settings of `openjepa ablate`: the runs to compare, their images and length, and the number of seeds."""

    ablation: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="NAME")] = ""
    """Name of the comparison (see above)."""
    list: bool = False
    """List all comparisons with their rows, settings and published numbers, and stop."""
    recipe: str | None = None
    """I-JEPA recipe that gives encoder, images, batch and length of the runs. None: that of the comparison, `cpu-32`."""
    preset: str | None = None
    """Preset of the recipe. None: its first."""
    rows: Annotated[tuple[str, ...], tyro.conf.arg(aliases=["--methods"])] = ()
    """Only these rows. Differences, the untrained encoder and raw pixels need the first row of the comparison. Empty: all."""
    set: tuple[str, ...] = ()
    """Settings of the recipe that all runs change: monitor.every=0 optim.lr=2e-3."""
    images: Annotated[int | None, AT_LEAST_1] = None
    """Images that every run sees for the table at equal images. None: as in the recipe. Needed if its length is in epochs."""
    seconds: Annotated[float | Literal["auto", "none"], SECONDS] = "auto"
    """Training seconds of every run for the table at equal time. `auto`: the time that the first row takes for its images;
    `none`: no such table."""
    seeds: Annotated[int, AT_LEAST_1] = 2
    """Number of runs of each row, with the seeds 0, 1, ..."""
    probe_images: Annotated[int | None, AT_LEAST_1] = None
    """Most training images of each probe, spread over the classes as evenly as possible. None: all."""
    scenes: str | None = None
    """Scenes in CLEVR's format for Count and Dist (docs/scenes.md). None: the packaged ones; `none`: no scenes, only the run's
    own images."""
    output: Path = Path("runs/ablation")
    """Folder of all runs and tables. The same command continues a stopped one. In several terminals, the commands share the
    runs. Comparisons with the same base run may have one folder, and then share the runs of equal rows."""
    rounds: Annotated[int, AT_LEAST_1] = 7
    """Rounds in which speeds are measured. Each round measures every row once."""
    dry_run: bool = False
    """Measure the speeds, print what would run and how long it would take, and stop."""
    device: str = "auto"
    """`auto`, `cpu`, `cuda` or `mps`."""
    precision: Literal["auto", "bf16", "fp32"] = "auto"
    """bf16 autocast if the hardware has it (`auto`), always, or never."""
    data: DataSettings = field(default_factory=FolderSettings)
    model: ModelSettings = field(default_factory=ModelSettings)
    system: SystemSettings = field(default_factory=SystemSettings)


MethodName = Annotated[str | None, NamesOf("openjepa.settings.methods:METHODS")]
"""The name of a method. `recipes.matched.with_method` refuses other names."""
SAID_BY_THE_RECIPE = ("size", "patch_size", "image_size", "batch_size", "predictor_width", "predictor_depth")
"""Settings of StepBench that a recipe decides."""


@dataclass(frozen=True)
class StepBench:
    """Settings of `openjepa bench step`, which times a recipe, or a method at the sizes given here."""

    recipe: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="[RECIPE]")] = ""
    """Time this recipe. It decides all sizes, so give none."""
    preset: str | None = None
    """Preset of the recipe. None: its first."""
    method: MethodName = None
    """Time this method, with masks, crops and heads that suit the sizes. None: the recipe's, or I-JEPA."""
    size: Size = "small"
    """Size of the encoder."""
    patch_size: Annotated[int, AT_LEAST_1] = 16
    """Side of a patch in pixels."""
    image_size: Annotated[int, AT_LEAST_1] = 224
    """Side of the images in pixels."""
    batch_size: Annotated[int, AT_LEAST_1] = 32
    """Images per step."""
    predictor_width: Annotated[int, AT_LEAST_1] = 192
    """Width of the predictor, and of MAE's decoder."""
    predictor_depth: Annotated[int, AT_LEAST_1] = 6
    """Blocks of the predictor, and of MAE's decoder."""
    repeats: Annotated[int, AT_LEAST_1] = 7
    """Interleaved rounds. Their median is reported."""
    device: str = "auto"
    """`auto`, `cpu`, `cuda` or `mps`."""
    precision: Literal["auto", "bf16", "fp32"] = "auto"
    """bf16 autocast if the hardware has it (`auto`), always, or never."""
    threads: Annotated[int | None, AT_LEAST_1] = None
    """Threads on the CPU. None: all cores."""
    compile: bool = False
    """Compile the transformer blocks."""
    output: Path | None = None
    """Also write the result to this JSON file."""

    def check(self) -> None:
        """Raises Refusal if an option is out of its range, or a preset has no recipe."""
        check_ranges(self, said=as_option)
        _check_preset(self.recipe, self.preset, "openjepa bench step cpu-64")


def _check_preset(recipe: str, preset: str | None, example: str) -> None:
    if preset is not None and not recipe:
        raise Refusal(f"--preset {preset} has no effect without a recipe: name one, e.g. `{example}`")


@dataclass(frozen=True)
class DataBench:
    """Settings of `openjepa bench data`, which times decoding, cropping and loading, or the views of a recipe or method."""

    path: Path | None = None
    """Folder of images. None: generated JPEGs of 500 x 375 pixels."""
    recipe: str = ""
    """Time the views of this recipe instead: crops of all sizes, color changes and masks."""
    preset: str | None = None
    """Preset of the recipe. None: its first."""
    method: MethodName = None
    """Time the views of this method, with the recipe's settings or at `image_size`. None: the recipe's method."""
    image_size: Annotated[int, at_least(32)] = 224
    """Side of the crops."""
    repeats: Annotated[int, AT_LEAST_1] = 7
    """Interleaved rounds."""
    images: Annotated[int, AT_LEAST_1] = 128
    """Most files per round."""

    def check(self) -> None:
        """Raises Refusal if an option is out of its range, or a preset has no recipe."""
        check_ranges(self, said=as_option)
        _check_preset(self.recipe, self.preset, "openjepa bench data --recipe cpu-64")


@dataclass(frozen=True)
class EnergyBench:
    """Settings of `openjepa bench energy`, which measures the energies of a run."""

    run: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="RUN")] = Path()
    """Run folder with a checkpoint."""
    images: Annotated[int, AT_LEAST_2] = 256
    """Number of images: held-out images, or training images if the data has no test split."""
    batch_size: Annotated[int, AT_LEAST_2] = 64
    """Images that form pairs with each other. Each image has one compatible pair and `batch_size` - 1 incompatible ones."""
    device: str = "auto"
    """`auto`, `cpu`, `cuda` or `mps`."""
    threads: Annotated[int | None, AT_LEAST_1] = None
    """Threads on the CPU. None: all cores."""


@dataclass(frozen=True, kw_only=True)
class PlanSettings:
    """Settings of `openjepa plan` beside those of the run that it plans."""

    gpus: Annotated[tuple[int, ...], AT_LEAST_1] = (8,)
    """Numbers of GPUs, one column for each."""
    gpu: Annotated[str, NamesOf("openjepa.experiments.gpu_table:GPUS")] = "h100"
    """Model of the GPUs."""
    gpus_per_node: Annotated[int, AT_LEAST_1] = 8
    """GPUs of one machine."""
    images: Annotated[int | None, AT_LEAST_1] = None
    """Training images, for the number of steps. None: those in `data.path`, or those of the recipe's data set."""
    mfu: Annotated[float | None, SHARE_ABOVE_0] = None
    """Share of the stated peak that a step reaches on one GPU. None: expected of its bandwidths (docs/planning.md)."""
    bandwidth: Annotated[tuple[float, ...], POSITIVE] = ()
    """GB/s that one GPU sends: within its node, then to other nodes. Empty: those of the usual node of this GPU."""
    decode_rate: Annotated[float | None, POSITIVE] = None
    """Images/s whose views one CPU core makes (`openjepa bench data` measures it). None: as measured for the method."""
    json: bool = False
    """Print JSON instead of a table."""
