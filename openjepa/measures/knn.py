"""Weighted k-nearest-neighbor classification of frozen features (DINO, arXiv 2104.14294, appendix F.1; Wu et al. 2018)."""

from collections.abc import Sequence

import torch
from jaxtyping import Float, Int, Shaped
from torch import Tensor
from torch.nn import functional

from openjepa.measures.accuracy import Accuracy, top1
from openjepa.refusals import Refusal

KEY_CHUNK = 16_384
"""Training images that are normalized, and compared with the others, at a time."""


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

    Features are L2-normalized; each of the k nearest training images by cosine votes for its class with weight
    exp(cosine / temperature). A k above n counts all n. Training features may have any type and lie elsewhere than their
    labels, where the work is done: only `KEY_CHUNK` of them are converted at a time. `rows`: only these of `train` are
    searched; `train_labels` are theirs. Raises Refusal where features are not finite.
    """
    if len(train_labels) == 0 or len(test) == 0:
        raise Refusal(f"k-NN needs images on both sides; got {len(train_labels)} for training and {len(test)} to classify")
    queries = torch.split(functional.normalize(test.to(train_labels.device).float(), dim=1), chunk_size)
    largest = min(max(neighbors), len(train_labels))
    nearest = _nearest(train, rows, queries, largest, train_labels)
    if bool(torch.stack([cosines[:, 0].isnan().any() for cosines, _ in nearest]).any()):  # NaN counts as nearest
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
    """Cosines and labels of the nearest keys of each query, for each chunk of queries; the keys are passed over once."""
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
    """The nearest of two sets of neighbors."""
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
