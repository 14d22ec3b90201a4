"""What the protocols of one task find, and the Result made of it."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from openjepa.data.datasets.benchmarks import BENCHMARKS
from openjepa.data.source import LabelMaps, ListSource
from openjepa.evaluation import PROTOCOLS
from openjepa.evaluation.protocol import ProtocolResult
from openjepa.evaluation.results import Metric, Result, SubjectResult
from openjepa.evaluation.tasks import Labels, Task
from openjepa.refusals import Refusal
from openjepa.settings.evaluation import EvaluationSettings, ProtocolName

NUM_NAMES = 20
"""Unreadable images that a result names."""


@dataclass(frozen=True)
class Split:
    """What a task uses of one split."""

    source: ListSource
    labels: NDArray[np.int64]
    maps: LabelMaps | None


class Findings:
    """What the protocols of one task have found so far."""

    def __init__(self, side_by_side: bool) -> None:
        """`side_by_side`: both selection rules are asked for, so that the second is named after the number."""
        self._side_by_side = side_by_side
        self.metrics: dict[str, dict[str, Metric]] = {}
        """By subject and name of the number."""
        self.heads: list[dict[str, Any]] = []
        """Every classifier that was tried."""
        self.unreadable: dict[str, dict[str, None]] = {"train": {}, "test": {}}
        """Names of the images that could not be read, in the order they were found, by split."""

    def add(self, name: ProtocolName, subject: str, outcomes: Sequence[ProtocolResult]) -> None:
        """The results of a protocol on a subject."""
        for outcome in outcomes:
            title = PROTOCOLS[name].metric
            if outcome.selection == "paper" and self._side_by_side:
                title += " (paper)"
            self.metrics.setdefault(subject, {})[title] = _metric(outcome)
            self.heads.extend({"subject": subject, "metric": title, **asdict(head)} for head in outcome.heads)
            for split, names in outcome.unreadable.items():
                self.unreadable[split].update(dict.fromkeys(names))


def check_readable(
    unreadable: Mapping[str, Mapping[str, None]], train: ListSource, test: ListSource, settings: EvaluationSettings
) -> None:
    """Refusal where more than `max_skipped` of a split cannot be read."""
    for split, source in (("train", train), ("test", test)):
        lost = list(unreadable[split])
        if len(lost) > settings.max_skipped * len(source):
            raise Refusal(
                f"{len(lost):,} of the {len(source):,} images of the {split} split cannot be read, more than "
                f"max_skipped={settings.max_skipped:g} allows: {', '.join(lost[:3])}, ...; mend the files "
                "(`openjepa data check` lists them) or raise --max-skipped. Files that stay as they are, are tried again only "
                "once eval/features is deleted"
            )


def with_findings(
    blank: Result,
    findings: Findings,
    sides: tuple[Split, Split],
    labels: Labels,
    task: Task,
    size: tuple[int, int],
) -> Result:
    """`blank` with what has been found."""
    train, test = sides
    dropped = {split: list(lost) for split, lost in findings.unreadable.items()}
    return replace(
        blank,
        subjects={name: SubjectResult(dict(numbers)) for name, numbers in findings.metrics.items()},
        heads=list(findings.heads),
        image_size=size,
        fit=task.fit,
        num_train=len(train.source) - len(dropped["train"]),
        num_test=len(test.source) - len(dropped["test"]),
        num_classes=len(np.unique(labels[0])) if train.maps is None else len(train.maps.class_names),
        chance=_chance(train, labels[1], findings.metrics),
        dropped={split: len(lost) for split, lost in dropped.items()},
        dropped_names=[name for lost in dropped.values() for name in lost][:NUM_NAMES],
    )


def departures(benchmark: str, labels: Labels, result: Result) -> tuple[str, ...]:
    """In words, how the images that were found are not the whole benchmark."""
    whole = BENCHMARKS.get(benchmark)
    if whole is None:
        return ()
    lost = sum(result.dropped.values())
    few = whole.num_classes is not None and result.num_classes != whole.num_classes
    sides = (("training", whole.num_train, len(labels[0])), ("test", whole.num_test, len(labels[1])))
    return (
        *((f"{result.num_classes:,} of its {whole.num_classes:,} classes",) if few else ()),
        *(f"{there:,} of its {num:,} {side} images" for side, num, there in sides if num is not None and there != num),
        *((f"{lost:,} unreadable images",) if lost else ()),
    )


def _chance(train: Split, test_labels: NDArray[np.int64], metrics: Mapping[str, Mapping[str, Metric]]) -> float:
    """The number of always answering the most frequent class of the training images, or patches where pixels are labeled."""
    if train.maps is not None:
        return next(iter(metrics["encoder"].values())).extra["majority"]
    return float((test_labels == np.bincount(train.labels).argmax()).mean())


def _metric(outcome: ProtocolResult) -> Metric:
    head = next(head for head in outcome.heads if head.chosen)
    words = f"{head.features}, {head.head}, {head.setting}"
    return Metric(outcome.accuracy, outcome.standard_error, "higher", outcome.selection, words, extra=outcome.extra)
