"""Windows of patches: averages of neighboring patches, compared with the average of the patches in a region."""

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

from openjepa.inference.search.vectors import ROUNDED, SMALLEST_NORM
from openjepa.refusals import Refusal


def window_cosines(
    features: Float[Tensor, "b H W D"],
    query: Float[Tensor, " D"],
    window: tuple[int, int],
    means: Float[Tensor, "H W D"] | None = None,
) -> Float[Tensor, "b H2 W2"]:
    """Cosine to `query` of the average of the patches in every window of (rows, columns), at every place on the grid.

    `means`, one for each place, are taken off the patches first; a window that equals them but for rounding has the cosine 0.
    Computed in the type of the features. Raises Refusal where a window is larger than the grid.
    """
    rows, columns = window
    height, width = features.shape[1:3]
    if not (1 <= rows <= height and 1 <= columns <= width):
        raise Refusal(f"a window of {rows} x {columns} patches does not fit into the grid of {height} x {width} of this table")
    averages = features if means is None else features - means.to(features.dtype)
    if window != (1, 1):
        # One axis after the other: rows + columns additions for each place instead of rows x columns.
        planes = functional.avg_pool2d(averages.permute(0, 3, 1, 2), (rows, 1), stride=1)
        averages = functional.avg_pool2d(planes, (1, columns), stride=1).permute(0, 2, 3, 1)
    direction = query.to(averages.dtype) / query.norm().clamp(min=SMALLEST_NORM).to(averages.dtype)
    norms = torch.linalg.vector_norm(averages, dim=3)
    noise = 0.0 if means is None else ROUNDED * float(means.norm(dim=2).mean())
    products: Tensor = averages @ direction
    return products.div_(norms.clamp(min=SMALLEST_NORM)).clamp_(-1, 1).masked_fill_(norms < noise, 0)
