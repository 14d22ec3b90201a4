"""Settings that several methods share, and About, which describes a method in the terms of I-JEPA's section 2."""

from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal, Self

from openjepa.settings.fields import AT_LEAST_1, NOT_NEGATIVE, POSITIVE, SHARE, SHARE_ABOVE_0, SMALLEST_FIRST
from openjepa.settings.masks import MASKS, MaskKind

Family = Literal["joint-embedding", "generative", "joint-embedding predictive"]
Heads = int | Literal["half"] | None
"""Attention heads of a second network: a number, `half` of the encoder's (all if that is odd), or None for the encoder's."""
TARGET_NORM_EPS = 1e-5
"""Epsilon of the normalization of predicted features, in I-JEPA and in data2vec."""


@dataclass(frozen=True)
class Paper:
    """A method's name and its paper."""

    name: str
    """Name of the method as its paper writes it, e.g. `MAE`."""
    cited: str
    """Authors and year, e.g. `He et al. 2022`."""
    arxiv: str = ""
    """Number in arXiv, e.g. `2111.06377`. Empty: the paper is not there."""

    @property
    def title(self) -> str:
        """Name and paper, e.g. `MAE (He et al. 2022, arXiv 2111.06377)`."""
        return f"{self.name} ({self.cited}, arXiv {self.arxiv})" if self.arxiv else f"{self.name} ({self.cited})"


@dataclass(frozen=True)
class About:
    """A method as an energy, low for a compatible pair of x and y and higher for others (I-JEPA, section 2 and figure 2)."""

    title: str
    """Name and paper."""
    family: Family
    x: str
    """The input of the method."""
    y: str
    """The part that should be compatible with x."""
    z: str
    """Further inputs of the predictor. `none` if there are none."""
    energy: str
    """The comparison of x and y."""
    against_collapse: str
    """The mechanism that keeps the energy from being low everywhere."""


@dataclass(frozen=True, kw_only=True)
class MethodSettings:
    """Settings of every method. Abstract: use the dataclass of a method."""

    paper: ClassVar[Paper]
    """Where the method comes from."""
    about: ClassVar[About]
    """Description of the method."""
    mask_kinds: ClassVar[tuple[MaskKind, ...]]
    """Kinds of masks that the method can work with."""
    needs_class_token: ClassVar[bool] = False
    """True if the encoder must have a class token."""
    checks: ClassVar[str] = ""
    """`package.module:name` of the function that gives the checks of a method's own settings. Empty: their ranges say all."""
    needs_equal_counts: ClassVar[bool] = False
    """True if every image must have the same number of masked patches, because only the visible ones are encoded."""

    name: str
    """Method that trains the encoder."""

    def frozen_teacher(self) -> str | None:
        """Weights of another encoder that the method needs and never changes: a path or a name. None: it needs none."""
        return None

    def with_teacher_at(self, place: str) -> Self:
        """The same settings, if `frozen_teacher` gives a name, with `place` as that name."""
        raise NotImplementedError

    @classmethod
    def fitting_masks(cls) -> list[str]:
        """The mask strategies that the method can work with."""
        suiting = {name: entry.settings for name, entry in MASKS.items() if entry.settings.kind in cls.mask_kinds}
        return [name for name, masks in suiting.items() if masks.equal_counts or not cls.needs_equal_counts]


@dataclass(frozen=True, kw_only=True)
class TeacherSettings(MethodSettings):
    """Settings of methods whose targets come from a moving average of the trained network. Abstract."""

    ema_start: Annotated[float | None, SHARE] = 0.996
    """Momentum of the moving average (target encoder, teacher) at the first step. None: chosen for the length of the run, so
    that the average is renewed 50 times (1 - 100 / steps)."""
    ema_end: Annotated[float | None, SHARE] = 1.0
    """Momentum at the end of training, reached linearly (DINO and iBOT: along half a cosine). None: as at the start."""
    ema_memory: Annotated[float | None, SHARE_ABOVE_0] = None
    """What the moving average remembers at the first step, as a share of the run: `ema_start` is then 1 - 1 / (share x steps).
    Needs `ema_start` None. The published 0.996 is 0.0013 of 187,500 steps. None: 0.01 if `ema_start` is None, too."""


@dataclass(frozen=True, kw_only=True)
class MultiCropSettings(TeacherSettings):
    """Settings of methods with several views. Abstract: use the dataclass of a method.

    The large crops are those of the data settings (`data.image_size`, `data.crop_scale`).
    """

    local_crops: Annotated[int, NOT_NEGATIVE] = 8
    """Number of small crops per image. 0: none (DINO: 8; iBOT and MSN: 10)."""
    local_size: Annotated[int | None, AT_LEAST_1] = 96
    """Side of the small crops in pixels. The patch size must divide it. None: 3/7 of the image, in whole patches."""
    local_scale: Annotated[tuple[float, float], SHARE_ABOVE_0, SMALLEST_FIRST] = (0.05, 0.4)
    """Smallest and largest area of a small crop, as a fraction of the image."""
    jitter: Annotated[tuple[float, float, float, float], NOT_NEGATIVE] = (0.4, 0.4, 0.2, 0.1)
    """Largest change of brightness, contrast and saturation (fractions) and of hue (turns)."""
    jitter_probability: Annotated[float, SHARE] = 0.8
    """Probability that the colors of a view are jittered."""
    grayscale_probability: Annotated[float, SHARE] = 0.2
    """Probability that a view becomes gray."""
    blur_probability: Annotated[tuple[float, float, float], SHARE] = (1.0, 0.1, 0.5)
    """Probability of blur for the first large, the second large and the small crops."""
    blur_sigma: Annotated[tuple[float, float] | None, POSITIVE, SMALLEST_FIRST] = (0.1, 2.0)
    """Smallest and largest standard deviation of the blur, in pixels of the view (published for 224 pixels). None: in
    proportion to the image."""
    solarize_probability: Annotated[tuple[float, float, float], SHARE] = (0.0, 0.2, 0.0)
    """Probability that pixel values of 128 and more are inverted, for the same three kinds of crops."""


@dataclass(frozen=True, kw_only=True)
class SelfDistillationSettings(MultiCropSettings):
    """Settings of the head and the temperatures of DINO and iBOT. Abstract."""

    needs_class_token = True

    outputs: Annotated[int | None, AT_LEAST_1] = 65536
    """Dimensions of the head's output (DINO 65536, iBOT 8192). None: 16 times the encoder's width, at most 4096."""
    head_layers: Annotated[int, AT_LEAST_1] = 3
    """Number of linear layers of the head before its last layer."""
    head_hidden: Annotated[int | None, AT_LEAST_1] = 2048
    """Width of the hidden layers of the head. None: 4 times the encoder's, at most 2048."""
    bottleneck: Annotated[int | None, AT_LEAST_1] = 256
    """Width of the input of the last layer, scaled to length 1. None: half of the encoder's, at most 256."""
    head_batch_norm: bool = False
    """Use batch normalization in the head."""
    norm_last_layer: bool = True
    """Keep the rows of the last layer at length 1."""
    freeze_last_layer_epochs: Annotated[float, NOT_NEGATIVE] = 1.0
    """Number of epochs in which the last layer gets no gradient."""
    student_temperature: Annotated[float, POSITIVE] = 0.1
    """Temperature of the student's softmax."""
    teacher_temperature_start: Annotated[float, POSITIVE] = 0.04
    """Temperature of the teacher's softmax in the first epoch."""
    teacher_temperature: Annotated[float, POSITIVE] = 0.07
    """Temperature of the teacher's softmax after the warm-up."""
    teacher_temperature_warmup_epochs: Annotated[int, NOT_NEGATIVE] = 30
    """Number of epochs of the warm-up, in steps of whole epochs. 0: `teacher_temperature` from the start."""
    center_momentum: Annotated[float, SHARE] = 0.9
    """Momentum of the center that is subtracted from the teacher's outputs. 1: no centering."""
