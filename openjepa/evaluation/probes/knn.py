"""k-NN protocol: nearest neighbors in the first kind of features (the last layer, or pixels). Nothing is trained."""

from openjepa.evaluation.protocol import (
    FeatureProbe,
    HeadResult,
    ProtocolResult,
    chosen_first,
    held_out_rows,
    selections,
    with_choice,
)
from openjepa.measures.features import Accuracy, knn_accuracy
from openjepa.settings.evaluation import EvaluationSettings


def evaluate_neighbors(probe: FeatureProbe, settings: EvaluationSettings) -> tuple[ProtocolResult, ...]:
    """Test accuracy with the best k of `settings.neighbors`, by DINO's weighted vote, for each selection rule.

    The test split is always classified by neighbors in the whole training split. `held_out` chooses k on 10 % of the training
    split, which is classified by neighbors in the other 90 %. `paper` chooses k on the test split. Raises Refusal if
    `settings.neighbors` is empty or holds a number below 1.
    """
    train, test = probe.train, probe.test
    keys, queries = train.features[probe.kind], test.features[probe.kind]
    options = (settings.neighbors, settings.neighbor_temperature)
    on_held: dict[int, Accuracy] = {}
    if "held_out" in selections(settings):
        kept, held = held_out_rows(train.labels, settings.seed)
        known = keys[held.to(keys.device)]
        on_held = knn_accuracy(keys, train.labels[kept], known, train.labels[held], *options, rows=kept)
    on_test = knn_accuracy(keys, train.labels, queries, test.labels, *options)
    return tuple(
        _result(probe.kind, on_test, on_held if rule == "held_out" else {}, settings.neighbors, rule)
        for rule in selections(settings)
    )


def _result(
    kind: str, on_test: dict[int, Accuracy], on_held: dict[int, Accuracy], neighbors: tuple[int, ...], rule: str
) -> ProtocolResult:
    heads = [HeadResult(kind, "knn", f"k {k}", on_held[k].value if k in on_held else None, on_test[k].value) for k in neighbors]
    best = chosen_first(heads, rule)
    chosen = on_test[neighbors[best]]
    return ProtocolResult(chosen.value, chosen.standard_error, with_choice(heads, best), rule)
