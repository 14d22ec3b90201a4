"""What every protocol takes and returns, and the split its settings are chosen on."""

from collections.abc import Mapping, MutableMapping
from dataclasses import dataclass, field

import numpy as np
import torch
from jaxtyping import Float, Int
from numpy.typing import NDArray
from torch import Tensor

from openjepa.evaluation.solver import Components
from openjepa.seeds import derive

HELD_OUT = 0.1
"""Share of each class of the training split on which settings are chosen."""


@dataclass(frozen=True)
class LabeledFeatures:
    """Features of one split by kind (`last`, `last_four`, `pixels`), row by row with the labels."""

    features: Mapping[str, Float[Tensor, "n D"]]
    labels: Int[Tensor, " n"]
    components: MutableMapping[tuple[str, str], Components] = field(default_factory=dict, compare=False, repr=False)
    """Principal components found so far, by kind of features and kind of head. Tasks on the same images share them."""

    def select(self, rows: Int[Tensor, " m"]) -> "LabeledFeatures":
        """Only these rows."""
        return LabeledFeatures({kind: values[rows] for kind, values in self.features.items()}, self.labels[rows])


@dataclass(frozen=True)
class HeadResult:
    """One classifier that was tried."""

    features: str
    """Which features: last, last_four or pixels."""
    head: str
    """linear, batch_norm (+ linear), or knn."""
    setting: str
    """What was swept, in words: `weight decay 0.01`, `k 20`."""
    held_out_accuracy: float | None
    """On the held-out part of the training split. None in `paper` mode."""
    test_accuracy: float
    chosen: bool = False
    """Whether the protocol's number is this one's."""


@dataclass(frozen=True)
class ProtocolResult:
    """The number of a protocol and the classifiers it was chosen from."""

    accuracy: float
    standard_error: float
    heads: tuple[HeadResult, ...]
    selection: str


def held_out_rows(labels: Int[Tensor, " n"], seed: int) -> tuple[Int[Tensor, " kept"], Int[Tensor, " held"]]:
    """Rows to train on and rows held out: 10 % of each class, at least one of every class that has two images.

    Raises ValueError where no class has two.
    """
    order = np.random.default_rng(derive("subset", seed, 1)).permutation(len(labels))
    classes = labels.cpu().numpy()
    held = np.zeros(len(classes), dtype=bool)
    for label in np.unique(classes):
        members = order[classes[order] == label]
        held[members[: held_out_size(len(members))]] = True
    if not held.any():
        raise ValueError(
            f"evaluation.selection='held_out': the held-out part is empty, because none of the "
            f"{len(np.unique(classes))} classes has two training images; "
            "use more images (--max-train-images, data.max_images) or --selection paper"
        )
    return _rows(~held, labels.device), _rows(held, labels.device)


def held_out_size(num_members: int) -> int:
    """How many images of a class of this size are held out."""
    return 0 if num_members < 2 else max(1, round(HELD_OUT * num_members))


def _rows(mask: NDArray[np.bool_], device: torch.device) -> Tensor:
    return torch.from_numpy(np.flatnonzero(mask)).to(device)


def chosen_first(heads: list[HeadResult], selection: str) -> int:
    """Index of the best head: by held-out accuracy, or by test accuracy where `selection` is `paper`. Ties: the first."""
    scores = [head.test_accuracy if selection == "paper" else head.held_out_accuracy for head in heads]
    known = [-1.0 if score is None else score for score in scores]
    return known.index(max(known))
