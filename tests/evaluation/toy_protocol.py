"""A protocol that the package does not know: the nearest class mean, with settings of its own. See test_toy_protocol.py."""

from dataclasses import dataclass, field

import torch

from openjepa.evaluation.protocol import FeatureProbe, HeadResult, ProtocolResult, selections
from openjepa.measures.accuracy import top1
from openjepa.settings.evaluation import EvaluationSettings


@dataclass(frozen=True, kw_only=True)
class ClassMeansSettings:
    """The nearest class mean."""

    kind: str = "last"
    """Which features: last or last_four; of raw pixels these."""


@dataclass(frozen=True, kw_only=True)
class ToySettings(EvaluationSettings):
    """Settings of an evaluation with those of the toy."""

    class_means: ClassMeansSettings = field(default_factory=ClassMeansSettings)


def evaluate_class_means(probe: FeatureProbe, settings: ToySettings) -> tuple[ProtocolResult, ...]:
    """Accuracy of the nearest class mean, the same for every selection rule, because nothing is chosen."""
    kind = settings.class_means.kind if settings.class_means.kind in probe.train.features else probe.kind
    keys, labels = probe.train.features[kind], probe.train.labels
    means = torch.stack([keys[labels == label].mean(dim=0) for label in range(int(labels.max()) + 1)])
    found = top1(torch.cdist(probe.test.features[kind], means).argmin(dim=1), probe.test.labels)
    head = HeadResult(kind, "class means", "none", None, found.value, chosen=True)
    return tuple(ProtocolResult(found.value, found.standard_error, (head,), rule) for rule in selections(settings))
