"""Settings of a training split of which only a few labeled images are used."""

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class LowShotSettings:
    """Which images are labeled: those of a list, or some of each class drawn with a seed. At most one of the three is given."""

    list: str | None = None
    """Text file with one image per line, as the published 1 % list of ImageNet (12,811 names like n01440764_10043.JPEG)."""
    percent: float | None = None
    """Percent of the images of each class, at least one."""
    images_per_class: int | None = None
    """So many images of each class (k-shot)."""
    seed: int = 0
    """Seed of the draw."""

    def is_set(self) -> bool:
        """Whether fewer than all images are labeled."""
        return not (self.list is None and self.percent is None and self.images_per_class is None)
