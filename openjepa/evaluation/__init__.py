"""Evaluation of encoders. One file and one line of PROTOCOLS each. Free of torch.

A protocol of features is a function `(train, test, settings) -> ProtocolResult` of `LabeledFeatures`; a protocol of images
or of label maps is a function `(probe, settings) -> tuple[ProtocolResult, ...]`, one result per selection rule. The types are
in `openjepa.evaluation.protocol`.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

from openjepa.settings.evaluation import EvaluationSettings, ProtocolName
from openjepa.settings.registry import Entry

Kind = Literal["features", "images", "maps"]


@dataclass(frozen=True)
class ProtocolEntry(Entry[EvaluationSettings]):
    """A protocol, what it works on, and what its number is called."""

    kind: Kind
    """features: on pooled features that are extracted once; images: on the images themselves; maps: on labels of pixels."""
    metric: str
    """Name of the number in tables and files."""
    summary: str
    """One line of help."""
    reads: tuple[str, ...]
    """Fields of EvaluationSettings that only some protocols read, this one among them, or that say how features are kept and
    measured, which is done for protocols of features alone. A group stands for all of its fields."""


def _knn() -> Callable[..., Any]:
    from openjepa.evaluation.probes.knn import evaluate_neighbors

    return evaluate_neighbors


def _linear() -> Callable[..., Any]:
    from openjepa.evaluation.probes.linear import evaluate_linear

    return evaluate_linear


def _logistic() -> Callable[..., Any]:
    from openjepa.evaluation.probes.logistic import evaluate_logistic

    return evaluate_logistic


def _linear_full() -> Callable[..., Any]:
    from openjepa.evaluation.probes.linear_full import evaluate_linear_full

    return evaluate_linear_full


def _attentive() -> Callable[..., Any]:
    from openjepa.evaluation.probes.attentive import evaluate_attentive

    return evaluate_attentive


def _finetune() -> Callable[..., Any]:
    from openjepa.evaluation.probes.finetune import evaluate_finetune

    return evaluate_finetune


def _dense_linear() -> Callable[..., Any]:
    from openjepa.evaluation.probes.dense import evaluate_dense_linear

    return evaluate_dense_linear


def _dense_knn() -> Callable[..., Any]:
    from openjepa.evaluation.probes.dense import evaluate_dense_knn

    return evaluate_dense_knn


def _entry(load: Callable[[], Callable[..., Any]], kind: Kind, metric: str, summary: str, *reads: str) -> ProtocolEntry:
    return ProtocolEntry(EvaluationSettings, load, kind, metric, summary, reads)


_FEATURES = ("feature_dtype", "lidar_images", "lidar_views")
_LINEAR = ("weight_decays", "iterations")
_NEIGHBORS = ("neighbors", "neighbor_temperature")

PROTOCOLS: dict[ProtocolName, ProtocolEntry] = {
    "linear": _entry(
        _linear,
        "features",
        "linear-cached",
        "linear heads on features of the test view, without augmentation; minutes",
        *_FEATURES,
        *_LINEAR,
    ),
    "knn": _entry(_knn, "features", "k-NN", "weighted k-nearest neighbors on the same features", *_FEATURES, *_NEIGHBORS),
    "logistic": _entry(
        _logistic, "features", "logistic", "L2 logistic regression with a sweep (low-shot, as MSN)", *_FEATURES, "logistic"
    ),
    "linear_full": _entry(
        _linear_full, "images", "linear", "the paper's probe: heads trained on augmented images; hours", "linear_full"
    ),
    "attentive": _entry(_attentive, "images", "attentive", "attentive probe: a learned query over frozen patches", "attentive"),
    "finetune": _entry(_finetune, "images", "fine-tuned", "end-to-end fine-tuning with layer-wise decay", "finetune"),
    "dense_linear": _entry(
        _dense_linear, "maps", "dense linear mIoU", "linear probe on single patches, no decoder", *_LINEAR, "dense"
    ),
    "dense_knn": _entry(
        _dense_knn, "maps", "dense k-NN mIoU", "k-nearest neighbors of single patches, no decoder", *_NEIGHBORS, "dense"
    ),
}
