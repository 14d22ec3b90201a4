"""Measures of features: accuracy of predictions from them, their rank without labels, and signs that an encoder collapses.

Accuracy and mean intersection over union have standard errors. The nearest neighbors among frozen features vote with weights
(DINO, arXiv 2104.14294, appendix F.1; Wu et al. 2018).

Without labels: effective rank (RankMe), decay of the spectrum (alpha-ReQ), and LiDAR. A good value of any of the three is
necessary for good features, but not sufficient. RankMe and LiDAR can only compare runs of the same method.

An encoder that collapses gives the same output for every image.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from jaxtyping import Float, Int, Shaped
from torch import Tensor
from torch.nn import functional

from openjepa.measures.verdicts import CollapseStatistics
from openjepa.refusals import Refusal
from openjepa.seeds import derive

TOP = 5
"""Number of classes with the highest scores that must include the right one to count for top-5."""


@dataclass(frozen=True)
class Accuracy:
    """Share of right answers among `num` images."""

    value: float
    num: int

    @property
    def standard_error(self) -> float:
        """sqrt(p (1 - p) / n): the binomial standard error. It covers the draw of the test images, not of the training run."""
        return math.sqrt(self.value * (1 - self.value) / self.num)


def top1(predictions: Int[Tensor, " n"], labels: Int[Tensor, " n"]) -> Accuracy:
    """Top-1 accuracy of predicted classes. Raises Refusal if there are no images."""
    if len(labels) == 0:
        raise Refusal("accuracy of no images: the test split is empty")
    return Accuracy(float((predictions == labels).double().mean()), len(labels))


DRAWS = 200
"""Number of bootstrap draws."""
INTERSECTION, PREDICTED, PRESENT = range(3)
"""Counts per class: its pixels that were found, the pixels predicted as this class, and the pixels of this class."""


def overlap_counts(predictions: Int[Tensor, "B N"], histograms: Int[Tensor, "B N classes"]) -> Int[Tensor, "B 3 classes"]:
    """Pixels per image and class: (intersection, predicted, present). One class is predicted for each whole patch.

    `histograms` holds the number of pixels of each class in a patch. To count patches instead, it is 1 for the patch's class.
    Pixels that do not count are not part of it.
    """
    found = histograms.gather(2, predictions[:, :, None])[:, :, 0]
    counts = torch.zeros(len(predictions), 3, histograms.shape[2], dtype=torch.int64, device=histograms.device)
    counts[:, INTERSECTION].scatter_add_(1, predictions, found)
    counts[:, PREDICTED].scatter_add_(1, predictions, histograms.sum(dim=2))
    counts[:, PRESENT] = histograms.sum(dim=1)
    return counts


def mean_iou(counts: Float[Tensor, "*lead 3 classes"]) -> Float[Tensor, "*lead"]:
    """Mean of intersection / union over the classes that are present. `counts` must already be summed over images.

    NaN if no class is present.
    """
    counts = counts.double()
    found, present = counts[..., INTERSECTION, :], counts[..., PRESENT, :]
    union = counts[..., PREDICTED, :] + present - found
    is_present = present > 0
    overlaps = torch.where(is_present, found / union.clamp(min=1), 0.0)
    return overlaps.sum(dim=-1) / is_present.sum(dim=-1)


def hit_rate(counts: Int[Tensor, "3 classes"]) -> float:
    """Share of the counted patches or pixels whose class was predicted."""
    return int(counts[INTERSECTION].sum()) / int(counts[PRESENT].sum())


def mean_iou_error(counts: Int[Tensor, "n 3 classes"], seed: int) -> float:
    """Standard error of the mean IoU of n images: its standard deviation over `DRAWS` bootstrap draws of the images.

    A mean over classes of ratios of sums has no binomial error, and the patches of an image are not independent. Images are
    therefore the unit of the draw. Classes that a draw lacks are left out of its mean.
    """
    num = len(counts)
    drawn = np.random.default_rng(derive("subset", seed, 7)).multinomial(num, np.full(num, 1 / num), size=DRAWS)
    sums = torch.from_numpy(drawn).double() @ counts.flatten(1).double()
    values = mean_iou(sums.view(DRAWS, *counts.shape[1:]))
    return float(values[values.isfinite()].std())


KEY_CHUNK = 16_384
"""Number of training images that are normalized and compared at a time."""


def knn_predictions(
    train: Shaped[Tensor, "n D"],
    train_labels: Int[Tensor, " r"],
    test: Shaped[Tensor, "m D"],
    neighbors: Sequence[int],
    temperature: float = 0.07,
    chunk_size: int = 1024,
    rows: Int[Tensor, " r"] | None = None,
) -> dict[int, Int[Tensor, " m"]]:
    """Class of each test image for every k in `neighbors`.

    Features are L2-normalized. Each of the k training images nearest by cosine votes for its class, with weight
    exp(cosine / temperature). If k exceeds the number of training images, all of them vote.

    The work is done on the device of the labels. Training features may have any dtype and be on another device; `KEY_CHUNK` of
    them are converted at a time. If `rows` is given, only these rows of `train` are searched, and `train_labels` are theirs.
    Raises Refusal if a side is empty or features are not finite.
    """
    if len(train_labels) == 0 or len(test) == 0:
        raise Refusal(f"k-NN needs images on both sides; got {len(train_labels)} for training and {len(test)} to classify")
    queries = torch.split(functional.normalize(test.to(train_labels.device).float(), dim=1), chunk_size)
    largest = min(max(neighbors), len(train_labels))
    nearest = _nearest(train, rows, queries, largest, train_labels)
    if bool(torch.stack([cosines[:, 0].isnan().any() for cosines, _ in nearest]).any()):  # topk ranks NaN first
        raise Refusal(
            "k-NN needs features that are finite, on both sides: one that is not would be the nearest of all images; "
            "try --precision fp32; else look at the encoder's weights"
        )
    num_classes = int(train_labels.max()) + 1
    chunks: dict[int, list[Tensor]] = {k: [] for k in neighbors}
    for cosines, votes in nearest:  # [chunk, k] each, nearest first
        weights = ((cosines - cosines[:, :1]) / temperature).exp()  # divided by the largest: same ranking, no overflow
        for k in neighbors:
            scores = torch.zeros(len(cosines), num_classes, device=cosines.device)
            scores.scatter_add_(1, votes[:, :k], weights[:, :k])
            chunks[k].append(scores.argmax(dim=1))
    return {k: torch.cat(parts) for k, parts in chunks.items()}


def _nearest(
    train: Shaped[Tensor, "n D"],
    rows: Int[Tensor, " r"] | None,
    queries: Sequence[Float[Tensor, "chunk D"]],
    number: int,
    labels: Int[Tensor, " r"],
) -> list[tuple[Float[Tensor, "chunk k"], Int[Tensor, "chunk k"]]]:
    """Cosines and labels of the nearest keys of each query, for each chunk of queries. Passes over the keys once."""
    found: list[tuple[Tensor, Tensor]] = []
    for first in range(0, len(labels), KEY_CHUNK):
        part = slice(first, first + KEY_CHUNK)
        picked = train[part] if rows is None else train[rows[part].to(train.device)]
        keys = functional.normalize(picked.to(labels.device).float(), dim=1)
        own = labels[part]
        best = []
        for chunk in queries:
            cosines, indices = (chunk @ keys.T).topk(min(number, len(keys)), dim=1)
            best.append((cosines, own[indices]))
        found = best if first == 0 else [_nearer(*pair, number) for pair in zip(found, best, strict=True)]
    return found


def _nearer(one: tuple[Tensor, Tensor], other: tuple[Tensor, Tensor], number: int) -> tuple[Tensor, Tensor]:
    """The nearest neighbors out of two sets of neighbors."""
    cosines, labels = (torch.cat(pair, dim=1) for pair in zip(one, other, strict=True))
    cosines, order = cosines.topk(min(number, cosines.shape[1]), dim=1)
    return cosines, labels.gather(1, order)


def knn_accuracy(
    train: Shaped[Tensor, "n D"],
    train_labels: Int[Tensor, " r"],
    test: Shaped[Tensor, "m D"],
    test_labels: Int[Tensor, " m"],
    neighbors: Sequence[int] = (20,),
    temperature: float = 0.07,
    rows: Int[Tensor, " r"] | None = None,
) -> dict[int, Accuracy]:
    """Accuracy of `knn_predictions` for every k in `neighbors`."""
    predictions = knn_predictions(train, train_labels, test, neighbors, temperature, rows=rows)
    return {k: top1(predicted, test_labels) for k, predicted in predictions.items()}


# ---------------------------------------------------------------------------------------------------------- rank without labels


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


# ------------------------------------------------------------------------------------------------------------ signs of collapse


def collapse_statistics(features: Float[Tensor, "n D"]) -> CollapseStatistics:
    """Statistics of the pooled features of n images. Raises Refusal if n is below 2.

    With unit vectors u_i and s = sum u_i, the mean over pairs i != j of u_i . u_j is (|s|^2 - sum |u_i|^2) / (n (n - 1)).
    """
    num_images = len(features)
    if num_images < 2:
        raise Refusal(f"collapse is watched on at least 2 images; got {num_images}: raise monitor.images")
    values = features.detach().float()
    units = functional.normalize(values, dim=1).double() if values.device.type != "mps" else functional.normalize(values, dim=1)
    cosine = (units.sum(dim=0).square().sum() - units.square().sum()) / (num_images * (num_images - 1))
    return CollapseStatistics(float(values.std(dim=0).mean()), float(cosine), rankme(values))
