"""Settings of `openjepa ablate`."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

import tyro

from openjepa.refusals import Refusal
from openjepa.settings.models import ModelSettings
from openjepa.settings.run import SystemSettings
from openjepa.settings.sources import DataSettings, FolderSettings


@dataclass(frozen=True, kw_only=True)
class AblationSettings:
    """Which runs are compared: on which images, for how long, how often."""

    ablation: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="NAME")] = ""
    """Which comparison (see above)."""
    recipe: str = "cpu-32"
    """Small I-JEPA recipe that the runs are made of: encoder, images, batch and length."""
    preset: str | None = None
    """Preset of the recipe. None: its first."""
    rows: Annotated[tuple[str, ...], tyro.conf.arg(aliases=["--methods"])] = ()
    """Only these rows of the table; the untrained encoder and raw pixels come with the first of all. None given: all."""
    images: int | None = None
    """Images that every run sees for the table at equal images. None: as many as the recipe."""
    seconds: float | Literal["auto", "none"] = "auto"
    """Training seconds of every run for the table at equal time. `auto`: what the first row takes for its images; `none`: no
    such table."""
    seeds: int = 2
    """Runs of each row, with the seeds 0, 1, ..."""
    probe_images: int | None = None
    """Training images of each probe at most, as many of each class as possible. None: all."""
    scenes: str | None = None
    """Scenes in CLEVR's format for Count and Dist (docs/scenes.md). None: the packaged ones."""
    output: Path = Path("runs/ablation")
    """Folder of all runs and tables. The same command goes on where it was stopped; started in several terminals, they share
    the runs."""
    rounds: int = 7
    """Rounds, all rows in turns, in which the speed of each row is measured."""
    dry_run: bool = False
    """Measure the speeds, print what would run and how long it takes, and stop."""
    device: str = "auto"
    """`auto`, `cpu`, `cuda` or `mps`."""
    precision: Literal["auto", "bf16", "fp32"] = "auto"
    """bf16 autocast where the hardware has it (`auto`), always, or never."""
    data: DataSettings = field(default_factory=FolderSettings)
    model: ModelSettings = field(default_factory=ModelSettings)
    system: SystemSettings = field(default_factory=SystemSettings)

    def check(self) -> None:
        """Raises Refusal at the first option that is out of range."""
        for name, least in {"images": 1, "seeds": 1, "probe_images": 1, "rounds": 1}.items():
            value = getattr(self, name)
            if value is not None and value < least:
                raise Refusal(f"--{name.replace('_', '-')} {value} must be at least {least}")
        if not isinstance(self.seconds, str) and self.seconds <= 0:
            raise Refusal(f"--seconds {self.seconds:g} must be above 0, or auto or none")
