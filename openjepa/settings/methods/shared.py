"""Settings that all methods or those with a teacher share, and About: what a method is, in the words of I-JEPA's section 2."""

from dataclasses import dataclass
from typing import ClassVar, Literal

from openjepa.settings.masks import MaskKind

Family = Literal["joint-embedding", "generative", "joint-embedding predictive"]
Heads = int | Literal["half"] | None
"""Attention heads of a second network: a number, half as many as the encoder has (as many if that is odd), or None: as many."""


@dataclass(frozen=True)
class About:
    """A method as an energy: low for a compatible pair of x and y, high for others (I-JEPA, section 2 and figure 2)."""

    title: str
    """Name and paper, e.g. `MAE (He et al. 2022, arXiv 2111.06377)`."""
    family: Family
    x: str
    """What is given."""
    y: str
    """What is to be compatible with it."""
    z: str
    """What else the predictor is told; `none` where nothing is."""
    energy: str
    """How the two are compared."""
    against_collapse: str
    """What keeps the energy from being low everywhere."""


@dataclass(frozen=True, kw_only=True)
class MethodSettings:
    """Common to every method. Abstract: use the dataclass of a method."""

    about: ClassVar[About]
    """What the method is."""
    mask_kinds: ClassVar[tuple[MaskKind, ...]]
    """Masks the method can work with."""
    needs_class_token: ClassVar[bool] = False
    """Whether the encoder must have a class token."""

    name: str
    """Which method trains the encoder."""


@dataclass(frozen=True, kw_only=True)
class TeacherSettings(MethodSettings):
    """Common to methods whose targets come from a moving average of what is trained. Abstract."""

    ema_start: float | None = 0.996
    """Momentum of the moving average (target encoder, teacher) at the first step. None: follows the length of the run, so that
    the average is renewed 50 times (1 - 100 / steps)."""
    ema_end: float | None = 1.0
    """Momentum at the end of training, reached linearly (DINO and iBOT: along half a cosine). None: as at the start."""
