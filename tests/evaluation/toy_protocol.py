"""A protocol that the package does not know: the nearest class mean, with settings of its own. See test_toy_protocol.py."""

from dataclasses import dataclass
from typing import Annotated, Literal

import torch

from openjepa.evaluation.protocol import FeatureProbe, HeadResult, ImageProbe, ProtocolResult, selections
from openjepa.measures.features import top1
from openjepa.refusals import Refusal
from openjepa.settings.evaluation import EvaluationSettings, ProtocolSettings
from openjepa.settings.fields import AT_LEAST_1
from openjepa.settings.protocols import group_of


@dataclass(frozen=True, kw_only=True)
class ClassMeansSettings(ProtocolSettings):
    """The nearest class mean."""

    kind: Literal["last", "last_four"] = "last"
    """Layers whose features are averaged; of raw pixels these."""
    norms: Annotated[tuple[float, ...], AT_LEAST_1] = (2.0,)
    """Norm of the distance; the first one counts."""

    def check(self, is_low_shot: bool) -> None:
        """Raises Refusal for several norms of the last four layers."""
        if self.kind == "last_four" and len(self.norms) > 1:
            raise Refusal("class_means.norms has one value too many for last_four")


def evaluate_class_means(probe: FeatureProbe, settings: EvaluationSettings) -> tuple[ProtocolResult, ...]:
    """Accuracy of the nearest class mean, the same for every selection rule, because nothing is chosen."""
    own = group_of(settings, ClassMeansSettings)
    kind = own.kind if own.kind in probe.train.features else probe.kind
    keys, labels = probe.train.features[kind], probe.train.labels
    means = torch.stack([keys[labels == label].mean(dim=0) for label in range(int(labels.max()) + 1)])
    found = top1(torch.cdist(probe.test.features[kind], means, p=own.norms[0]).argmin(dim=1), probe.test.labels)
    head = HeadResult(kind, "class means", "none", None, found.value, chosen=True)
    return tuple(ProtocolResult(found.value, found.standard_error, (head,), rule) for rule in selections(settings))


def evaluate_no_patch(probe: ImageProbe, settings: EvaluationSettings) -> tuple[ProtocolResult, ...]:
    """A protocol of label maps that says no more than it must."""
    head = HeadResult("none", "none", "none", None, 0.25, chosen=True)
    return tuple(ProtocolResult(0.25, 0.01, (head,), rule) for rule in selections(settings))
