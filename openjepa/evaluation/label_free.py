"""Quality of features without labels, for a table beside the probes: necessary, not sufficient, signs.

alpha-ReQ near 1 is best. RankMe and LiDAR (`openjepa.evaluation.lidar`) only compare runs of one method.
"""

import math
from collections.abc import Mapping

import torch
from jaxtyping import Shaped
from torch import Tensor

from openjepa.measures.rank import alpha_req, rankme

MAX_IMAGES = 25_600
"""Images that the measures look at (RankMe's paper: 25,600). At width 1280 either takes 6 s on one core."""


def feature_measures(kinds: Mapping[str, Shaped[Tensor, "n D"]]) -> dict[str, float]:
    """Measures of the first kind of features (the last layer), on at most `MAX_IMAGES` rows, evenly spread.

    Those that are not defined (alpha-ReQ of fewer than five directions, numbers that are not finite) are left out. Features
    kept in bf16 have a RankMe up to 1.3 % higher (generated spectra of width 768), and an alpha-ReQ that is the same to 0.001.
    """
    rows = next(iter(kinds.values()))
    if len(rows) > MAX_IMAGES:  # not the first ones: images in class folders come class by class
        rows = rows[torch.arange(MAX_IMAGES, device=rows.device) * len(rows) // MAX_IMAGES]
    rows = rows if rows.is_floating_point() else rows.float()  # pixels; no measure depends on their scale
    measures = {"RankMe": rankme(rows), "alpha-ReQ": alpha_req(rows)}
    return {name: value for name, value in measures.items() if math.isfinite(value)}
