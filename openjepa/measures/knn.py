"""Weighted k-nearest-neighbor classification of frozen features (DINO, arXiv 2104.14294, appendix F.1; Wu et al. 2018)."""

from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional

from openjepa.measures.accuracy import Accuracy, top1


def knn_predictions(
    train: Float[Tensor, "n D"],
    train_labels: Int[Tensor, " n"],
    test: Float[Tensor, "m D"],
    neighbors: Sequence[int],
    temperature: float = 0.07,
    chunk_size: int = 1024,
) -> dict[int, Int[Tensor, " m"]]:
    """Class of each test image for every k in `neighbors`.

    Features are L2-normalized; each of the k nearest training images by cosine votes for its class with weight
    exp(cosine / temperature). A k above n counts all n.
    """
    if len(train) == 0 or len(test) == 0:
        raise ValueError(f"k-NN needs images on both sides; got {len(train)} for training and {len(test)} to classify")
    keys = functional.normalize(train.float(), dim=1)
    queries = functional.normalize(test.float(), dim=1)
    num_classes = int(train_labels.max()) + 1
    largest = min(max(neighbors), len(keys))
    chunks: dict[int, list[Tensor]] = {k: [] for k in neighbors}
    for chunk in torch.split(queries, chunk_size):
        cosines, indices = (chunk @ keys.T).topk(largest, dim=1)  # [chunk, k], nearest first
        weights = ((cosines - cosines[:, :1]) / temperature).exp()  # divided by the largest: same ranking, no overflow
        votes = train_labels[indices]
        for k in neighbors:
            scores = torch.zeros(len(chunk), num_classes, device=chunk.device)
            scores.scatter_add_(1, votes[:, :k], weights[:, :k])
            chunks[k].append(scores.argmax(dim=1))
    return {k: torch.cat(parts) for k, parts in chunks.items()}


def knn_accuracy(
    train: Float[Tensor, "n D"],
    train_labels: Int[Tensor, " n"],
    test: Float[Tensor, "m D"],
    test_labels: Int[Tensor, " m"],
    neighbors: Sequence[int] = (20,),
    temperature: float = 0.07,
) -> dict[int, Accuracy]:
    """Accuracy of `knn_predictions` for every k in `neighbors`."""
    predictions = knn_predictions(train, train_labels, test, neighbors, temperature)
    return {k: top1(predicted, test_labels) for k, predicted in predictions.items()}
