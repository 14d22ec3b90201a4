"""Evaluation of frozen encoders. One file and one line of PROTOCOLS each.

A protocol is a function `(train, test, settings) -> ProtocolResult` of features and labels (`openjepa.evaluation.protocol`).
"""

from collections.abc import Callable
from typing import Any

from openjepa.registry import Entry
from openjepa.settings.evaluation import EvaluationSettings


def _knn() -> Callable[..., Any]:
    from openjepa.evaluation.neighbors import evaluate_neighbors

    return evaluate_neighbors


def _linear() -> Callable[..., Any]:
    from openjepa.evaluation.linear import evaluate_linear

    return evaluate_linear


PROTOCOLS: dict[str, Entry[EvaluationSettings]] = {
    "knn": Entry(EvaluationSettings, _knn),
    "linear": Entry(EvaluationSettings, _linear),
}
