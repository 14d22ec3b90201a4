"""The inputs and results of every protocol, and the held-out split that its settings are chosen on."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

import numpy as np
import torch
from jaxtyping import Float, Int, UInt8
from numpy.typing import NDArray
from torch import Tensor

from openjepa.data.selection import ranks_in_class
from openjepa.data.source import LabelMaps, ListSource
from openjepa.engine.device import encode
from openjepa.models.vit import VisionTransformer
from openjepa.refusals import Refusal
from openjepa.seeds import derive
from openjepa.settings.evaluation import EvaluationSettings
from openjepa.settings.models import EncoderConfig
from openjepa.types import EncoderOutput

HELD_OUT = 0.1
"""Share of each class of the training split that is held out to choose settings."""


@dataclass(frozen=True)
class LabeledFeatures:
    """Features of one split by kind (`last`, `last_four`, `pixels`), and the labels of their rows."""

    features: Mapping[str, Float[Tensor, "n D"]]
    labels: Int[Tensor, " n"]

    def select(self, rows: Int[Tensor, " m"]) -> "LabeledFeatures":
        """Features and labels of the given rows only."""
        return LabeledFeatures({kind: values[rows] for kind, values in self.features.items()}, self.labels[rows])


@dataclass(frozen=True)
class FeatureProbe:
    """The input of a protocol on features: the features of both splits."""

    train: LabeledFeatures
    test: LabeledFeatures

    @property
    def kind(self) -> str:
        """The first kind of features: `last`, or `pixels`."""
        return next(iter(self.train.features))


@dataclass(frozen=True)
class LabeledImages:
    """One split as images, for protocols that train on augmented views, change the encoder, or use single patches."""

    source: ListSource
    labels: NDArray[np.int64]
    """One class per record of the source."""
    maps: LabelMaps | None = None
    """One class per pixel of each record, for protocols on label maps."""


@dataclass(frozen=True)
class ImageProbe:
    """The input of a protocol on images or label maps: an encoder, and the images to train and test on."""

    encoder: VisionTransformer
    """Frozen, in evaluation mode, on `device`. Protocols that train it train a copy."""
    config: EncoderConfig
    train: LabeledImages
    test: LabeledImages
    fit: str
    """The way an image becomes its test view: `crop` (center crop) or `squash` (the whole image, resized)."""
    image_size: tuple[int, int]
    """Height and width of the views in pixels."""
    device: torch.device
    precision: str
    """bf16 or fp32."""
    benchmark: str = ""
    """Name of the benchmark whose published values replace settings that are None; empty for the user's own data."""
    task: str = ""
    """Title of the task, which tells the tasks of one benchmark apart."""
    raw_pixels: bool = False
    """If True, protocols on label maps use the pixels of each patch instead of the encoder's outputs."""

    def outputs(self, images: UInt8[Tensor, "B 3 h w"]) -> EncoderOutput:
        """The encoder's outputs for test views, on `device` and in `precision`."""
        found: EncoderOutput = encode(self.encoder, images, self.config, self.device, self.precision)
        return found

    @property
    def num_classes(self) -> int:
        """Number of classes of the training split."""
        return int(self.train.labels.max()) + 1


@dataclass(frozen=True)
class HeadResult:
    """One classifier that was tried."""

    features: str
    """The features that it works on: last, last_four or pixels."""
    head: str
    """linear, batch_norm (+ linear), or knn."""
    setting: str
    """The swept setting in words, such as `weight decay 0.01` or `k 20`."""
    held_out_accuracy: float | None
    """Accuracy on the held-out part of the training split; None if the rule is `paper`."""
    test_accuracy: float
    chosen: bool = False
    """True if this classifier gives the protocol's number."""


@dataclass(frozen=True)
class ProtocolResult:
    """The number of a protocol, and the classifiers it was chosen from."""

    accuracy: float
    """Share between 0 and 1: an accuracy, or another measure if the protocol's entry names one."""
    standard_error: float
    heads: tuple[HeadResult, ...]
    selection: str
    """held_out or paper."""
    extra: Mapping[str, float] = field(default_factory=dict)
    """More numbers: top-5 accuracy, the gradient's norm at the solution, seconds of training, ..."""
    unreadable: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """Names of unreadable images by split (train, test), from protocols on images."""
    protocol: str = ""
    """Name of the protocol, if its function serves several."""


def selections(settings: EvaluationSettings) -> tuple[Literal["held_out", "paper"], ...]:
    """The selection rules asked for. `both` means held_out, then paper."""
    return ("held_out", "paper") if settings.selection == "both" else (settings.selection,)


def held_out_rows(labels: Int[Tensor, " n"], seed: int) -> tuple[Int[Tensor, " kept"], Int[Tensor, " held"]]:
    """Rows to train on, and held-out rows: 10 % of each class, and at least one of every class with two or more images.

    Raises Refusal if no class has two images.
    """
    classes = labels.cpu().numpy()
    order = np.random.default_rng(derive("subset", seed, 1)).permutation(len(classes))
    _, members, sizes = np.unique(classes, return_inverse=True, return_counts=True)
    held_sizes = np.array([held_out_size(int(size)) for size in sizes])
    held = ranks_in_class(classes, order) < held_sizes[members]
    if not held.any():
        raise Refusal(
            f"evaluation.selection='held_out': the held-out part is empty, because none of the "
            f"{len(sizes)} classes has two training images; "
            "use more images (--low-shot.images-per-class, --low-shot.percent, --max-train-images) or --selection paper"
        )
    return _rows(~held, labels.device), _rows(held, labels.device)


def held_out_size(num_members: int) -> int:
    """Number of held-out images of a class with `num_members` images."""
    return 0 if num_members < 2 else max(1, round(HELD_OUT * num_members))


def _rows(mask: NDArray[np.bool_], device: torch.device) -> Tensor:
    return torch.from_numpy(np.flatnonzero(mask)).to(device)


def chosen_first(heads: Sequence[HeadResult], rule: str) -> int:
    """Index of the best head by held-out accuracy, or by test accuracy if `rule` is `paper`. The first wins a tie."""
    scores = [head.test_accuracy if rule == "paper" else head.held_out_accuracy for head in heads]
    known = [-1.0 if score is None else score for score in scores]
    return known.index(max(known))


def with_choice(heads: Sequence[HeadResult], best: int) -> tuple[HeadResult, ...]:
    """The heads, with the one at the index `best` marked as chosen."""
    return tuple(replace(head, chosen=True) if number == best else head for number, head in enumerate(heads))
