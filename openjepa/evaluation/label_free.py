"""Quality of features without labels, for a table beside the probes."""

from collections.abc import Mapping

from jaxtyping import Float
from torch import Tensor

from openjepa.measures.rank import rankme

MAX_IMAGES = 25_600
"""Images that the measures look at (RankMe's paper: 25,600)."""


def feature_measures(kinds: Mapping[str, Float[Tensor, "n D"]]) -> dict[str, float]:
    """Measures of the first kind of features (the last layer), on the first `MAX_IMAGES` rows."""
    rows = next(iter(kinds.values()))[:MAX_IMAGES]
    return {"RankMe": rankme(rows)}
