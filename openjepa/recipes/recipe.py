"""Recipe: a named run and its presets."""

from collections.abc import Callable
from dataclasses import dataclass

from openjepa.config import nearest
from openjepa.refusals import Refusal
from openjepa.settings.run import RunConfig

PUBLISHED_PRESETS = ("official", "paper")
SMALL_PRESETS = ("default", "official")


@dataclass(frozen=True)
class Recipe:
    """A named run and the presets it comes in; the first preset is the default."""

    build: Callable[[str], RunConfig]
    presets: tuple[str, ...]

    def config(self, preset: str | None = None) -> RunConfig:
        """The settings of a preset. Raises Refusal for one that the recipe does not have."""
        preset = self.presets[0] if preset is None else preset
        if preset not in self.presets:
            raise Refusal(f"--preset {preset} does not exist for this recipe: {nearest(preset, self.presets)}")
        return self.build(preset)

    @property
    def is_small(self) -> bool:
        """Whether this is one of our small-budget recipes, not a published run."""
        return "default" in self.presets

    def summary(self) -> str:
        """First line of the recipe's docstring."""
        return (self.build.__doc__ or "").strip().splitlines()[0]
