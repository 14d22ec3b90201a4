"""Settings of I-JEPA."""

from dataclasses import dataclass
from typing import Annotated, Literal

from openjepa.settings.fields import AT_LEAST_1
from openjepa.settings.methods.shared import About, Heads, Paper, TeacherSettings


@dataclass(frozen=True, kw_only=True)
class IJepaSettings(TeacherSettings):
    """I-JEPA (arXiv 2301.08243): predict representations of target blocks from one context block."""

    paper = Paper("I-JEPA", "Assran et al. 2023", "2301.08243")
    about = About(
        title=paper.title,
        family="joint-embedding predictive",
        x="one context block of an image",
        y="several target blocks of the same image",
        z="where the targets lie: a mask token with the position of each of their patches",
        energy="distance between the predicted and the encoded target in the space of representations",
        against_collapse="the target encoder is a moving average without gradient, and the predictor is narrow",
    )
    mask_kinds = ("blocks",)
    checks = "openjepa.checks.methods:ijepa_checks"

    name: Literal["ijepa"] = "ijepa"
    predictor_width: Annotated[int | None, AT_LEAST_1] = 384
    """Width of the predictor (paper: 384 for every size). None: half of the encoder's (our small recipes)."""
    predictor_depth: Annotated[int, AT_LEAST_1] = 6
    """Number of blocks of the predictor (paper: 6 for B, 12 for L and H, 16 for g)."""
    predictor_heads: Annotated[Heads, AT_LEAST_1] = None
    """Attention heads of the predictor. None: as many as the encoder (paper and code). `half`: half as many."""
    loss: Literal["smooth_l1", "l2"] = "smooth_l1"
    """`smooth_l1`: beta 1, mean over all elements (code). `l2`: squared L2, mean over all elements, which is the paper's sum
    over patches divided by (patches per block x width)."""
    target_norm: Literal["layer_norm", "none"] = "layer_norm"
    """Layer norm without affine of the target encoder's output (code: yes; not mentioned in the paper)."""
    export_context_encoder: bool = False
    """Export the context encoder, too, beside the target encoder, which the paper evaluates."""
