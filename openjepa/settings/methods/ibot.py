"""Settings of iBOT."""

from dataclasses import dataclass
from typing import Literal

from openjepa.settings.methods.shared import About, SelfDistillationSettings


@dataclass(frozen=True, kw_only=True)
class IBotSettings(SelfDistillationSettings):
    """iBOT (arXiv 2111.07832): DINO on class tokens, and the same distillation on the masked patches of the large crops."""

    about = About(
        title="iBOT (Zhou et al. 2022, arXiv 2111.07832)",
        family="joint-embedding",
        x="a crop of an image, its colors changed, some patches of the large ones masked",
        y="another large crop of the same image, and for masked patches the same crop without masks",
        z="none for the class token; for patches the position of each masked one",
        energy="cross-entropy between the assignments of class tokens, and of masked patches, to learned outputs",
        against_collapse="centering, separately for class tokens and patches, and sharpening of the teacher's outputs",
    )
    mask_kinds = ("tokens",)

    name: Literal["ibot"] = "ibot"
    outputs: int | None = 8192
    """Dimensions of the head's output (published: 8192). None: 16 times the encoder's width, at most 4096."""
    local_crops: int = 10
    """Small crops of each image (published: 10)."""
    local_scale: tuple[float, float] = (0.05, 0.25)
    """Smallest and largest area of a small crop, as a fraction of the image."""
    shared_head: bool = True
    """One last layer for class token and patches (published: yes)."""
    patch_outputs: int | None = 8192
    """Dimensions of the patches' output where their last layer is not shared. None: as `outputs`."""
    class_weight: float = 1.0
    """Weight of the loss of the class tokens."""
    patch_weight: float = 1.0
    """Weight of the loss of the masked patches."""
    patch_temperature_start: float = 0.04
    """Temperature of the teacher's softmax over patches in the first epoch."""
    patch_temperature: float = 0.07
    """Temperature it reaches, over as many epochs as that of the class token."""
    patch_start_epoch: int = 0
    """Epochs for which it stays at its start before it grows."""
    patch_center_momentum: float = 0.9
    """Momentum of the patches' center. 1: no centering."""
