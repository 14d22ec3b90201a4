"""Settings of MSN."""

from dataclasses import dataclass
from typing import Annotated, Literal

from openjepa.settings.fields import AT_LEAST_1, NOT_NEGATIVE, POSITIVE, SHARE, SHARE_ABOVE_0, SHARE_BELOW_1, SMALLEST_FIRST
from openjepa.settings.methods.shared import About, MultiCropSettings, Paper


@dataclass(frozen=True, kw_only=True)
class MsnSettings(MultiCropSettings):
    """MSN (arXiv 2204.07141): masked and small views are assigned to prototypes like the whole view of the same image."""

    paper = Paper("MSN", "Assran et al. 2022", "2204.07141")
    about = About(
        title=paper.title,
        family="joint-embedding",
        x="a crop of an image with patches dropped, or a small crop; colors changed",
        y="another large crop of the same image, whole, its colors changed otherwise",
        z="none",
        energy="cross-entropy between the sharpened assignment of y and the assignment of x to prototypes",
        against_collapse="the mean assignment of a batch is pushed towards equal use of all prototypes",
    )
    mask_kinds = ("tokens",)
    checks = "openjepa.checks.methods:msn_checks"
    needs_class_token = True
    needs_equal_counts = True

    name: Literal["msn"] = "msn"
    local_crops: Annotated[int, NOT_NEGATIVE] = 10
    """Number of small (`focal`) crops per image (published: 10)."""
    local_scale: Annotated[tuple[float, float], SHARE_ABOVE_0, SMALLEST_FIRST] = (0.05, 0.3)
    """Smallest and largest area of a small crop, as a fraction of the image."""
    jitter: Annotated[tuple[float, float, float, float], NOT_NEGATIVE] = (0.4, 0.4, 0.4, 0.1)
    """Largest change of brightness, contrast and saturation (fractions) and of hue (turns). Published: strength 0.5."""
    blur_probability: Annotated[tuple[float, float, float], SHARE] = (0.5, 0.5, 0.5)
    """Probability of blur for the target view, the masked views and the small crops."""
    solarize_probability: Annotated[tuple[float, float, float], SHARE] = (0.0, 0.0, 0.0)
    """Probability that pixel values of 128 and more are inverted, for the same three kinds of views."""
    masked_views: Annotated[int, AT_LEAST_1] = 1
    """Number of large views with dropped patches (published: 1)."""
    prototypes: Annotated[int | None, AT_LEAST_1] = 1024
    """Number of learned prototypes (published: 1024). None: 4 times the encoder's width, at most 1024."""
    output_width: Annotated[int | None, AT_LEAST_1] = 256
    """Width of the head's output and of the prototypes. None: the encoder's, at most 256."""
    head_hidden: Annotated[int | None, AT_LEAST_1] = 2048
    """Width of the head's two hidden layers. None: 4 times the encoder's, at most 2048."""
    head_input_norm: bool = False
    """Apply batch normalization to the head's input, too (paper: yes; released code: only after its hidden layers)."""
    temperature: Annotated[float, POSITIVE] = 0.1
    """Temperature of the softmax over prototypes."""
    sharpening_start: Annotated[float, POSITIVE] = 0.25
    """Targets are raised to the power 1 / this at the first step. 0.25 equals a target temperature of 0.025."""
    sharpening_end: Annotated[float, POSITIVE] = 0.25
    """The same at the end of training."""
    sinkhorn: bool = True
    """Balance the targets over the prototypes (published configuration: yes; the paper's best number: no, weight 5)."""
    sinkhorn_iterations: Annotated[int, AT_LEAST_1] = 3
    """Number of Sinkhorn iterations."""
    mean_entropy_weight: Annotated[float, NOT_NEGATIVE] = 1.0
    """Weight of the term that maximizes the entropy of the mean assignment. 0: off, which lets MSN collapse."""
    entropy_weight: Annotated[float, NOT_NEGATIVE] = 0.0
    """Weight of the mean entropy of the single assignments, which is minimized."""
    label_smoothing: Annotated[float, SHARE_BELOW_1] = 0.0
    """Smoothing of the prototypes' one-hot labels."""
