"""Mean intersection over union of predicted and true classes of patches or pixels, and what its test images leave uncertain."""

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from openjepa.seeds import derive

DRAWS = 200
"""Of the bootstrap."""
INTERSECTION, PREDICTED, PRESENT = range(3)
"""What is counted per class: pixels of the class that were found, that were said to be of it, that are of it."""


def overlap_counts(predictions: Int[Tensor, "B N"], histograms: Int[Tensor, "B N classes"]) -> Int[Tensor, "B 3 classes"]:
    """Pixels per image and class: (intersection, predicted, present), for a class predicted for each patch as a whole.

    `histograms`: pixels of each class in a patch; for patches as units, 1 for its class. Uncounted pixels are in none of it.
    """
    found = histograms.gather(2, predictions[:, :, None])[:, :, 0]
    counts = torch.zeros(len(predictions), 3, histograms.shape[2], dtype=torch.int64, device=histograms.device)
    counts[:, INTERSECTION].scatter_add_(1, predictions, found)
    counts[:, PREDICTED].scatter_add_(1, predictions, histograms.sum(dim=2))
    counts[:, PRESENT] = histograms.sum(dim=1)
    return counts


def mean_iou(counts: Float[Tensor, "*lead 3 classes"]) -> Float[Tensor, "*lead"]:
    """Mean of intersection / union over the classes that are present; counts are summed over images before.

    NaN where no class is present.
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

    A mean over classes of ratios of sums has no binomial error, and the patches of an image are not independent: the images
    are what is drawn. Classes that a draw lacks are left out of its mean.
    """
    num = len(counts)
    drawn = np.random.default_rng(derive("subset", seed, 7)).multinomial(num, np.full(num, 1 / num), size=DRAWS)
    sums = torch.from_numpy(drawn).double() @ counts.flatten(1).double()
    values = mean_iou(sums.view(DRAWS, *counts.shape[1:]))
    return float(values[values.isfinite()].std())
