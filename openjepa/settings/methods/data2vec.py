"""Settings of data2vec."""

from dataclasses import dataclass
from typing import Annotated, Literal

from openjepa.settings.fields import AT_LEAST_1, NOT_NEGATIVE, POSITIVE, SHARE
from openjepa.settings.methods.shared import About, Paper, TeacherSettings


@dataclass(frozen=True, kw_only=True)
class Data2VecSettings(TeacherSettings):
    """data2vec (arXiv 2202.03555): predict, at masked patches, the mean of a teacher's last layers on the whole image."""

    paper = Paper("data2vec", "Baevski et al. 2022", "2202.03555")
    about = About(
        title=paper.title,
        family="joint-embedding predictive",
        x="an image whose masked patches are replaced by a mask token",
        y="the masked patches, as a moving average of the encoder represents them in the whole image",
        z="where the masked patches lie: their positions in the sequence",
        energy="smooth L1 distance between the predicted and the averaged representations",
        against_collapse="the teacher is a slow moving average without gradient, and its targets are normalized",
    )
    mask_kinds = ("tokens",)
    checks = "openjepa.checks.methods:data2vec_checks"

    name: Literal["data2vec"] = "data2vec"
    average_layers: Annotated[int | None, AT_LEAST_1] = 6
    """Number of the teacher's last blocks whose outputs are averaged (published: 6). None: half of its blocks."""
    target_branch: Literal["block", "mlp"] = "block"
    """`block`: outputs of whole blocks (published commands). `mlp`: outputs of their MLPs before they are added (paper)."""
    layer_norm: Literal["layer", "instance", "instance_then_layer", "batch", "none"] = "layer"
    """Normalization of each block's output before the mean: over its width, over the patches of an image, both, over the
    batch, or none."""
    target_layer_norm: bool = True
    """Apply layer norm to the mean (published commands: yes; paper: no)."""
    loss: Literal["smooth_l1", "l2"] = "smooth_l1"
    """Distance between predictions and targets."""
    smooth_l1_beta: Annotated[float, POSITIVE] = 2.0
    """Difference at which smooth L1 changes from a square to a line (published: 2)."""
    ema_start: Annotated[float | None, SHARE] = 0.9998
    """Momentum of the teacher at the first step (published commands: 0.9998 throughout). None: as for every method."""
    ema_end: Annotated[float | None, SHARE] = 0.9998
    """Momentum after `ema_ramp` of the training. None: as at the start."""
    ema_ramp: Annotated[float, SHARE] = 1.0
    """Share of the training over which the momentum grows linearly from `ema_start` to `ema_end`."""
    jitter: Annotated[tuple[float, float, float, float], NOT_NEGATIVE] = (0.4, 0.4, 0.4, 0.0)
    """Largest change of brightness, contrast and saturation (fractions) and of hue (turns)."""
    jitter_probability: Annotated[float, SHARE] = 1.0
    """Probability that the colors of an image are jittered."""
    exported: Literal["student", "teacher"] = "student"
    """Network that is exported and evaluated: the trained one, which the published commands fine-tune, or its average."""
