"""Evaluation of encoders. One file and one line of PROTOCOLS each. Free of torch.

A protocol of features is a function `(train, test, settings) -> ProtocolResult` of `LabeledFeatures`; a protocol of images
or of label maps is a function `(probe, settings) -> tuple[ProtocolResult, ...]`, one result per selection rule. The types are
in `openjepa.evaluation.protocol`.
"""

from dataclasses import dataclass
from typing import Literal

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


def _entry(home: str, kind: Kind, metric: str, summary: str, *reads: str) -> ProtocolEntry:
    return ProtocolEntry(EvaluationSettings, home, kind, metric, summary, reads)


_FEATURES = ("feature_dtype", "lidar_images", "lidar_views")
_LINEAR = ("weight_decays", "iterations")
_NEIGHBORS = ("neighbors", "neighbor_temperature")

PROTOCOLS: dict[ProtocolName, ProtocolEntry] = {
    "linear": _entry(
        "openjepa.evaluation.probes.linear:evaluate_linear",
        "features",
        "linear-cached",
        "linear heads on features of the test view, without augmentation; minutes",
        *_FEATURES,
        *_LINEAR,
    ),
    "knn": _entry(
        "openjepa.evaluation.probes.knn:evaluate_neighbors",
        "features",
        "k-NN",
        "weighted k-nearest neighbors on the same features",
        *_FEATURES,
        *_NEIGHBORS,
    ),
    "logistic": _entry(
        "openjepa.evaluation.probes.logistic:evaluate_logistic",
        "features",
        "logistic",
        "L2 logistic regression with a sweep (low-shot, as MSN)",
        *_FEATURES,
        "logistic",
    ),
    "linear_full": _entry(
        "openjepa.evaluation.probes.linear_full:evaluate_linear_full",
        "images",
        "linear",
        "the paper's probe: heads trained on augmented images; hours",
        "linear_full",
    ),
    "attentive": _entry(
        "openjepa.evaluation.probes.attentive:evaluate_attentive",
        "images",
        "attentive",
        "attentive probe: a learned query over frozen patches",
        "attentive",
    ),
    "finetune": _entry(
        "openjepa.evaluation.probes.finetune:evaluate_finetune",
        "images",
        "fine-tuned",
        "end-to-end fine-tuning with layer-wise decay",
        "finetune",
    ),
    "dense_linear": _entry(
        "openjepa.evaluation.probes.dense:evaluate_dense_linear",
        "maps",
        "dense linear mIoU",
        "linear probe on single patches, no decoder",
        *_LINEAR,
        "dense",
    ),
    "dense_knn": _entry(
        "openjepa.evaluation.probes.dense:evaluate_dense_knn",
        "maps",
        "dense k-NN mIoU",
        "k-nearest neighbors of single patches, no decoder",
        *_NEIGHBORS,
        "dense",
    ),
}
