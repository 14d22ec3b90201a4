"""Recipe, which describes a named run and its presets."""

from collections.abc import Callable
from dataclasses import dataclass

from openjepa.config import nearest
from openjepa.refusals import Refusal
from openjepa.settings.run import RunConfig

PUBLISHED_PRESETS = ("official", "paper")
SMALL_PRESETS = ("default", "official")


@dataclass(frozen=True)
class Recipe:
    """A named run and its presets. The first preset is the default."""

    build: Callable[[str], RunConfig]
    """Makes the settings of a preset."""
    about: str
    """Description of the run in one line, then the source of its values and a description of each preset."""
    presets: tuple[str, ...]
    data: str = "~/imagenet"
    """Path of the images in the example command; empty if the recipe has its own images."""

    def config(self, preset: str | None = None) -> RunConfig:
        """The settings of a preset. `preset`: None means the first. Raises Refusal if the recipe does not have it."""
        preset = self.presets[0] if preset is None else preset
        if preset not in self.presets:
            raise Refusal(f"--preset {preset} does not exist for this recipe: {nearest(preset, self.presets)}")
        return self.build(preset)

    @property
    def is_small(self) -> bool:
        """True for our small-budget recipes, False for published runs."""
        return "default" in self.presets

    def summary(self) -> str:
        """The first line of `about`."""
        return self.about.splitlines()[0]

    def command(self, name: str) -> str:
        """The command that runs the recipe. `name`: its name in RECIPES."""
        return f"openjepa train {name} --data.path {self.data}" if self.data else f"openjepa {name}"
