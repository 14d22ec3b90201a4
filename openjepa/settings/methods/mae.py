"""Settings of MAE."""

from dataclasses import dataclass
from typing import Annotated, Literal

from openjepa.settings.fields import AT_LEAST_1
from openjepa.settings.methods.shared import About, Heads, MethodSettings, Paper


@dataclass(frozen=True, kw_only=True)
class MaeSettings(MethodSettings):
    """MAE (arXiv 2111.06377): reconstruct the pixels of masked patches from the visible ones with a light decoder."""

    paper = Paper("MAE", "He et al. 2022", "2111.06377")
    about = About(
        title=paper.title,
        family="generative",
        x="the visible patches of an image",
        y="the pixels of its masked patches",
        z="where the masked patches lie: a mask token with the position of each",
        energy="squared distance between predicted and real pixels, each patch normalized",
        against_collapse="pixels cannot collapse: the targets are given, not learned",
    )
    mask_kinds = ("tokens",)
    checks = "openjepa.checks.methods:mae_checks"
    needs_equal_counts = True

    name: Literal["mae"] = "mae"
    decoder_width: Annotated[int | None, AT_LEAST_1] = 512
    """Width of the decoder (published: 512 for every size). None: half of the encoder's. Its MLPs have `model.mlp_ratio`."""
    decoder_depth: Annotated[int, AT_LEAST_1] = 8
    """Number of blocks of the decoder (published: 8)."""
    decoder_heads: Annotated[Heads, AT_LEAST_1] = 16
    """Attention heads of the decoder (published: 16). None: as many as the encoder. `half`: half as many."""
    norm_pixels: bool = True
    """Normalize the pixels of each target patch by their own mean and standard deviation (published best: yes)."""
