"""Settings of DINO."""

from dataclasses import dataclass
from typing import Literal

from openjepa.settings.methods.shared import About, SelfDistillationSettings


@dataclass(frozen=True, kw_only=True)
class DinoSettings(SelfDistillationSettings):
    """DINO (arXiv 2104.14294): small and large crops of an image are assigned as a moving average assigns its large crops."""

    about = About(
        title="DINO (Caron et al. 2021, arXiv 2104.14294)",
        family="joint-embedding",
        x="any crop of an image, its colors changed",
        y="another, large crop of the same image, its colors changed otherwise",
        z="none",
        energy="cross-entropy between the assignments of the two crops to learned outputs",
        against_collapse="the teacher's outputs are centered (against one output for all) and sharpened (against equal ones)",
    )
    mask_kinds = ("none",)

    name: Literal["dino"] = "dino"
