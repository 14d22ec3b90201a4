"""k-NN protocol: nearest neighbors on the average pool (or class token) of the last layer, nothing is trained."""

from dataclasses import replace

from openjepa.evaluation.protocol import HeadResult, LabeledFeatures, ProtocolResult, chosen_first, held_out_rows
from openjepa.measures.accuracy import knn_accuracy
from openjepa.refusals import Refusal
from openjepa.settings.evaluation import EvaluationSettings


def evaluate_neighbors(train: LabeledFeatures, test: LabeledFeatures, settings: EvaluationSettings) -> ProtocolResult:
    """Accuracy of the best k of `settings.neighbors` (DINO's weighted vote).

    `held_out`: k is chosen on 10 % of `train`, searching the other 90 %; the number is then `test` against all of `train`.
    """
    if not settings.neighbors or min(settings.neighbors) < 1:
        raise Refusal(f"evaluation.neighbors={settings.neighbors} must hold numbers of at least 1")
    kind = next(iter(train.features))  # the first kind is the last layer (or pixels)
    keys, queries = train.features[kind], test.features[kind]
    options = (settings.neighbors, settings.neighbor_temperature)
    on_test = knn_accuracy(keys, train.labels, queries, test.labels, *options)
    held_out = {}
    if settings.selection == "held_out":
        kept, held = held_out_rows(train.labels, settings.seed)
        known = keys[held.to(keys.device)]
        held_out = knn_accuracy(keys, train.labels[kept], known, train.labels[held], *options, rows=kept)
    heads = [
        HeadResult(kind, "knn", f"k {k}", held_out[k].value if k in held_out else None, on_test[k].value)
        for k in settings.neighbors
    ]
    best = chosen_first(heads, settings.selection)
    heads[best] = replace(heads[best], chosen=True)
    chosen = on_test[settings.neighbors[best]]
    return ProtocolResult(chosen.value, chosen.standard_error, tuple(heads), settings.selection)
