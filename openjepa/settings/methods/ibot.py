"""Settings of iBOT."""

from dataclasses import dataclass
from typing import Annotated, Literal

from openjepa.settings.fields import AT_LEAST_1, NOT_NEGATIVE, POSITIVE, SHARE, SHARE_ABOVE_0, SMALLEST_FIRST
from openjepa.settings.methods.shared import About, Paper, SelfDistillationSettings


@dataclass(frozen=True, kw_only=True)
class IBotSettings(SelfDistillationSettings):
    """iBOT (arXiv 2111.07832): DINO on class tokens, and the same distillation on the masked patches of the large crops."""

    paper = Paper("iBOT", "Zhou et al. 2022", "2111.07832")
    about = About(
        title=paper.title,
        family="joint-embedding",
        x="a crop of an image, its colors changed, some patches of the large ones masked",
        y="another large crop of the same image, and for masked patches the same crop without masks",
        z="none for the class token; for patches the position of each masked one",
        energy="cross-entropy between the assignments of class tokens, and of masked patches, to learned outputs",
        against_collapse="centering, separately for class tokens and patches, and sharpening of the teacher's outputs",
    )
    mask_kinds = ("tokens",)
    checks = "openjepa.checks.methods:ibot_checks"

    name: Literal["ibot"] = "ibot"
    outputs: Annotated[int | None, AT_LEAST_1] = 8192
    """Dimensions of the head's output (published: 8192). None: 16 times the encoder's width, at most 4096."""
    local_crops: Annotated[int, NOT_NEGATIVE] = 10
    """Number of small crops per image (published: 10)."""
    local_scale: Annotated[tuple[float, float], SHARE_ABOVE_0, SMALLEST_FIRST] = (0.05, 0.25)
    """Smallest and largest area of a small crop, as a fraction of the image."""
    shared_head: bool = True
    """Use one last layer for class token and patches (published: yes)."""
    patch_outputs: Annotated[int | None, AT_LEAST_1] = 8192
    """Dimensions of the patches' output if the last layer is not shared. None: as `outputs`."""
    class_weight: Annotated[float, NOT_NEGATIVE] = 1.0
    """Weight of the loss of the class tokens."""
    patch_weight: Annotated[float, NOT_NEGATIVE] = 1.0
    """Weight of the loss of the masked patches."""
    patch_temperature_start: Annotated[float, POSITIVE] = 0.04
    """Temperature of the teacher's softmax over patches in the first epoch."""
    patch_temperature: Annotated[float, POSITIVE] = 0.07
    """Temperature after the warm-up, which has as many epochs as that of the class token."""
    patch_start_epoch: Annotated[int, NOT_NEGATIVE] = 0
    """Number of epochs at `patch_temperature_start` before the warm-up begins."""
    patch_center_momentum: Annotated[float, SHARE] = 0.9
    """Momentum of the patches' center. 1: no centering."""
