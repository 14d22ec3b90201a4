"""Effective rank of a feature matrix, without labels."""

import torch
from jaxtyping import Float
from torch import Tensor


def rankme(features: Float[Tensor, "n D"], eps: float = 1e-7) -> float:
    """RankMe (arXiv 2210.02885, equation 2): exp of the entropy of the normalized singular values.

    p_k = s_k / sum(s) + eps and exp(-sum p_k log p_k) over all min(n, D) singular values of the raw, not centered matrix.
    Between 1 and min(n, D) (eps adds a little). Computed in float64, on the CPU where the device (mps) has
    none. All-zero features have rank 0.
    Only runs of one method are comparable by it, and a high rank is necessary, not sufficient, for good features.
    """
    matrix = features.detach()
    matrix = (matrix.cpu() if matrix.device.type == "mps" else matrix).to(torch.float64)
    if not bool(torch.isfinite(matrix).all()):
        return float("nan")
    singular_values = torch.linalg.svdvals(matrix)
    total = singular_values.sum()
    if total == 0:
        return 0.0
    shares = singular_values / total + eps
    return float(torch.exp(-torch.special.xlogy(shares, shares).sum()))
