"""Quality of features without labels: effective rank (RankMe), decay of the spectrum (alpha-ReQ), and LiDAR.

A good value of any of the three is necessary for good features, but not sufficient. RankMe and LiDAR can only compare runs of
the same method.
"""

import math
from collections.abc import Mapping
from typing import Literal

import torch
from jaxtyping import Float, Shaped
from torch import Tensor

from openjepa.refusals import Refusal

MAX_IMAGES = 25_600
"""Largest number of images used for the measures (RankMe's paper: 25,600). At width 1280 either takes 6 s on one core."""


def rankme(features: Float[Tensor, "n D"], eps: float = 1e-7) -> float:
    """RankMe (arXiv 2210.02885, equation 2): exp of the entropy of the normalized singular values.

    p_k = s_k / sum(s) + eps and exp(-sum p_k log p_k), over all min(n, D) singular values of the raw, not centered matrix. The
    result is between 1 and min(n, D) (eps adds a little). All-zero features have rank 0. If numbers are not finite, the result
    is nan. Computed in float64, on the CPU if the device (mps) has no float64.

    RankMe can only compare runs of one method. A high rank is necessary, but not sufficient, for good features.
    """
    matrix = _exact(features)
    if not _is_finite(matrix):
        return float("nan")
    # Not from the Gram matrix, which would take half the time: the roots of its eigenvalues are exact only to 1e-8 of the
    # largest, and eps is 1e-7. RankMe would be off by 5e-9 to 2e-6, relative, if singular values fall as 1/k^2 to 1/k^4.
    singular_values = torch.linalg.svdvals(matrix)
    return _exp_entropy(_shares(singular_values, eps))


def alpha_req(features: Float[Tensor, "n D"], first_rank: int = 4, last_rank: int | None = 100, weighted: bool = True) -> float:
    """alpha-ReQ (Agrawal et al., NeurIPS 2022): exponent of the power law k^-alpha that the covariance's eigenvalues follow.

    Least squares of log eigenvalue on log k over the ranks k from `first_rank` to `last_rank` (1-based, inclusive; None: all),
    weighted with 1/k if `weighted`. Alpha is minus the slope. Ranks 4 to 100 and the weights are those of the authors' code;
    the paper names no range. Ranks beyond the resolution of the features' number format are left out. The result is nan if
    fewer than two ranks remain or numbers are not finite.

    Values near 1 are best. If alpha is larger, few directions carry everything. If it is smaller, the spectrum is flat, like
    that of noise. Computed in float64, like RankMe. Raises Refusal if `first_rank` is below 1.
    """
    if first_rank < 1:
        raise Refusal(f"first_rank={first_rank} must be at least 1: ranks count from 1")
    matrix = _exact(features)
    if not _is_finite(matrix):
        return float("nan")
    singular_values = torch.linalg.svdvals(matrix - matrix.mean(dim=0))
    rank = int((singular_values > _rounding(features)).sum())
    last = rank if last_rank is None else min(last_rank, rank)
    if last - first_rank < 1:
        return float("nan")
    ranks = torch.arange(first_rank, last + 1, dtype=matrix.dtype, device=matrix.device)
    # eigenvalue = s^2 / (n - 1); the factor shifts the line, but does not change its slope
    return -_slope(ranks.log(), 2 * singular_values[first_rank - 1 : last].log(), 1 / ranks if weighted else ranks**0)


def lidar(
    groups: Float[Tensor, "n q D"],
    delta: float = 1e-4,
    eps: float = 1e-7,
    biased: bool = False,
    eps_on: Literal["shares", "eigenvalues"] = "shares",
) -> float:
    """LiDAR (arXiv 2312.04000): effective rank of the differences between n images, relative to those within q views of each.

    With class means m_i and their mean m: S_b = sum (m_i - m)(m_i - m)^T / (n - 1), S_w = sum (x_ij - m_i)(x_ij - m_i)^T /
    (n (q - 1)) + delta I. The result is exp of the entropy of the normalized eigenvalues of S_w^-1/2 S_b S_w^-1/2. If `biased`,
    the divisors are n and n q. eps is added to the D shares, or to the eigenvalues before they become shares (as one published
    program does).

    The result is between 1 and min(n - 1, D), so n should exceed D. The paper recommends q = 50 and calls 10 cheap. It names no
    delta; 1e-4 is what later code uses. Classes that are all alike have rank 0. If numbers are not finite, the result is nan.
    LiDAR can only compare runs of one method. Computed in float64, like RankMe. Raises Refusal if there are fewer than 2 images
    or 2 views.
    """
    num_images, num_views, width = groups.shape
    if num_images < 2 or num_views < 2:
        raise Refusal(f"LiDAR needs at least 2 images with 2 views each; got {num_images} with {num_views}")
    values = _exact(groups)
    if not _is_finite(values):
        return float("nan")
    means = values.mean(dim=1)  # [n, D]
    within = (values - means[:, None]).flatten(0, 1)  # [n*q, D]
    between = means - means.mean(dim=0)
    within_divisor = num_images * num_views if biased else num_images * (num_views - 1)
    scatter = within.T @ within / within_divisor
    scatter.diagonal().add_(delta)
    # With S_w = L L^T, the matrix is similar to (L^-1 B)(L^-1 B)^T, B being the centered means as columns. No root is needed.
    lower = torch.linalg.cholesky(scatter)
    whitened = torch.linalg.solve_triangular(lower, between.T, upper=False)  # [D, n]
    eigenvalues = whitened.new_zeros(width)
    found = torch.linalg.svdvals(whitened).square() / (num_images if biased else num_images - 1)
    eigenvalues[: len(found)] = found[:width]
    if eps_on == "eigenvalues":
        return _exp_entropy(_shares(eigenvalues + eps, 0.0))
    return _exp_entropy(_shares(eigenvalues, eps))


def feature_measures(kinds: Mapping[str, Shaped[Tensor, "n D"]]) -> dict[str, float]:
    """RankMe and alpha-ReQ of the first kind of features (the last layer), on at most `MAX_IMAGES` rows, evenly spread.

    Undefined measures (alpha-ReQ of fewer than five directions, numbers that are not finite) are left out. Features kept in
    bf16 have a RankMe that is up to 1.3 % higher (generated spectra of width 768), and an alpha-ReQ that is the same to 0.001.
    """
    rows = next(iter(kinds.values()))
    if len(rows) > MAX_IMAGES:  # evenly spread, because images in class folders are sorted by class
        rows = rows[torch.arange(MAX_IMAGES, device=rows.device) * len(rows) // MAX_IMAGES]
    rows = rows if rows.is_floating_point() else rows.float()  # pixels; no measure depends on their scale
    measures = {"RankMe": rankme(rows), "alpha-ReQ": alpha_req(rows)}
    return {name: value for name, value in measures.items() if math.isfinite(value)}


def _rounding(features: Float[Tensor, "n D"]) -> float:
    """Largest singular value that rounding to the number format alone produces. Smaller ones hold no information.

    Errors uniform in +-eps/2 of each number x are like noise of standard deviation 0.29 eps x. The largest singular value of
    this noise is 0.29 eps rms(x) (sqrt(n) + sqrt(D)) <= 0.58 eps |X|_F / sqrt(min(n, D)). The decomposition itself adds a few
    float64 eps.
    """
    share = max(torch.finfo(features.dtype).eps / math.sqrt(min(features.shape)), 10 * torch.finfo(torch.float64).eps)
    return share * float(torch.linalg.matrix_norm(_exact(features)))


def _exact(features: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """The same numbers in float64, on the CPU if the device (mps) has no float64."""
    values = features.detach()
    return (values.cpu() if values.device.type == "mps" else values).to(torch.float64)


def _is_finite(values: Float[Tensor, "*shape"]) -> bool:
    return bool(torch.isfinite(values).all())


def _shares(spectrum: Float[Tensor, " k"], eps: float) -> Float[Tensor, " k"]:
    """Each number as a share of their sum, plus eps. An empty tensor if the sum is 0."""
    total = spectrum.sum()
    return spectrum[:0] if total == 0 else spectrum / total + eps


def _exp_entropy(shares: Float[Tensor, " k"]) -> float:
    """exp(-sum p log p), where 0 log 0 = 0. 0 if there are no shares."""
    return float(torch.exp(-torch.special.xlogy(shares, shares).sum())) if len(shares) else 0.0


def _slope(x: Float[Tensor, " k"], y: Float[Tensor, " k"], weights: Float[Tensor, " k"]) -> float:
    """Slope of the line with the least weighted squared residuals: sum w (x - mx)(y - my) / sum w (x - mx)^2."""
    shares = weights / weights.sum()
    centered = x - (shares * x).sum()
    return float((shares * centered * (y - (shares * y).sum())).sum() / (shares * centered.square()).sum())
