"""Accuracy with the uncertainty that the size of the test set leaves."""

import math
from dataclasses import dataclass

from jaxtyping import Int
from torch import Tensor

from openjepa.refusals import Refusal

TOP = 5
"""An answer also counts for top-5 where the right class is among so many."""


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
    """Top-1 accuracy of predicted classes."""
    if len(labels) == 0:
        raise Refusal("accuracy of no images: the test split is empty")
    return Accuracy(float((predictions == labels).double().mean()), len(labels))
