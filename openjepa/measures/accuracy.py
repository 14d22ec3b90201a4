"""Accuracy and mean intersection over union with their standard errors, and k-nearest-neighbor classification.

The nearest neighbors among frozen features vote with weights (DINO, arXiv 2104.14294, appendix F.1; Wu et al. 2018).
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int, Shaped
from torch import Tensor
from torch.nn import functional

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
