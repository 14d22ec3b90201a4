"""Evaluation of encoders. A protocol is one file, its settings, and one entry of PROTOCOLS. Does not import torch.

A protocol is a function `(probe, settings) -> tuple[ProtocolResult, ...]`. It returns one result for each selection rule of
`selections(settings)`. `probe` is a FeatureProbe, or an ImageProbe whose images have label maps if the protocol needs them.
Protocols that share one function are called once, with their names in `settings.protocols`. Each of their results names the
protocol that it belongs to. The types are in `openjepa.evaluation.protocol`.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal

from openjepa.config import nearest
from openjepa.refusals import Refusal
from openjepa.settings.evaluation import EvaluationSettings
from openjepa.settings.protocol_names import ALIASES
from openjepa.settings.registry import Line


@dataclass(frozen=True)
class ProtocolEntry(Line):
    """A protocol as the rest of the program knows it."""

    home: str
    """The protocol's function as `package.module:name`."""
    works_on: Literal["features", "images", "maps"]
    """The input. features: pooled features, extracted once; images: the images; maps: images with one class per pixel."""
    metric: str
    """Name of the number in tables and files."""
    summary: str
    """One line of help."""
    settings: tuple[str, ...]
    """Fields of EvaluationSettings that this protocol reads but not every other does. A group stands for all of its fields."""
    measure: Literal["accuracy", "miou"] = "accuracy"
    """The kind of number. accuracy: share of correct predictions; miou: mean intersection over union."""
    pools: bool = True
    """True if the protocol works on one vector per image, so that the setting `pooling` matters."""
    is_usual: bool = False
    """True if the protocol runs when no protocols are named."""

    @property
    def reads(self) -> tuple[str, ...]:
        """The fields of EvaluationSettings that the protocol reads, including OF_FEATURES if it works on features."""
        return (*OF_FEATURES, *self.settings) if self.works_on == "features" else self.settings


OF_FEATURES = ("feature_dtype", "lidar_images", "lidar_views")
"""Settings that are read when features are extracted. Only protocols on features extract them."""
_LINEAR = ("weight_decays", "iterations")
_NEIGHBORS = ("neighbors", "neighbor_temperature")

PROTOCOLS: dict[str, ProtocolEntry] = {
    "linear": ProtocolEntry(
        home="openjepa.evaluation.probes.linear:evaluate_linear",
        works_on="features",
        metric="linear",
        summary="linear heads on features of the test view, without augmentation; minutes",
        settings=_LINEAR,
        is_usual=True,
    ),
    "knn": ProtocolEntry(
        home="openjepa.evaluation.probes.knn:evaluate_neighbors",
        works_on="features",
        metric="k-NN",
        summary="weighted k-nearest neighbors on the same features",
        settings=_NEIGHBORS,
        is_usual=True,
    ),
    "logistic": ProtocolEntry(
        home="openjepa.evaluation.probes.logistic:evaluate_logistic",
        works_on="features",
        metric="logistic",
        summary="L2 logistic regression with a sweep (low-shot, as MSN)",
        settings=("logistic",),
    ),
    "linear-full": ProtocolEntry(
        home="openjepa.evaluation.probes.linear_full:evaluate_linear_full",
        works_on="images",
        metric="linear-full",
        summary="the paper's probe: heads trained on augmented images; hours",
        settings=("linear_full",),
    ),
    "attentive": ProtocolEntry(
        home="openjepa.evaluation.probes.attentive:evaluate_attentive",
        works_on="images",
        metric="attentive",
        summary="attentive probe: a learned query over frozen patches",
        settings=("attentive",),
        pools=False,
    ),
    "finetune": ProtocolEntry(
        home="openjepa.evaluation.probes.finetune:evaluate_finetune",
        works_on="images",
        metric="fine-tuned",
        summary="end-to-end fine-tuning with layer-wise decay",
        settings=("finetune",),
    ),
    "dense-linear": ProtocolEntry(
        home="openjepa.evaluation.probes.dense:evaluate_dense",
        works_on="maps",
        metric="dense linear mIoU",
        summary="linear probe on single patches, no decoder",
        settings=(*_LINEAR, "dense"),
        measure="miou",
        pools=False,
        is_usual=True,
    ),
    "dense-knn": ProtocolEntry(
        home="openjepa.evaluation.probes.dense:evaluate_dense",
        works_on="maps",
        metric="dense k-NN mIoU",
        summary="k-nearest neighbors of single patches, no decoder",
        settings=(*_NEIGHBORS, "dense"),
        measure="miou",
        pools=False,
        is_usual=True,
    ),
}


def usual_protocols(on_maps: bool) -> tuple[str, ...]:
    """The protocols that run if none is named: those for labels of pixels if `on_maps`, else those for labels of images."""
    return tuple(name for name, entry in PROTOCOLS.items() if entry.is_usual and (entry.works_on == "maps") == on_maps)


def with_current_names(settings: EvaluationSettings, say: Callable[[str], object]) -> EvaluationSettings:
    """The settings with older protocol names replaced by today's and duplicates removed. Each old name is reported to `say`.

    Raises Refusal if a protocol does not exist.
    """
    for name in settings.protocols:
        if name in ALIASES:
            say(f"note: the protocol {name} is called {ALIASES[name]} now")
    names = tuple(dict.fromkeys(ALIASES.get(name, name) for name in settings.protocols))
    if unknown := [name for name in names if name not in PROTOCOLS]:
        raise Refusal(f"evaluation.protocols={unknown[0]!r} does not exist: {nearest(unknown[0], PROTOCOLS)}")
    return replace(settings, protocols=names)
