"""Linear probe on cached features (`linear-cached`): four kinds of head, each solved for many weight decays at once.

As in I-JEPA's evaluation the heads are {last layer, last four layers} x {linear, BatchNorm + linear}, and the best of them is
reported. Not the paper's protocol: features are those of the center crop, computed once, so that nothing is augmented, and
the heads are solved to convergence over a sweep of weight decays instead of trained by LARS over a sweep of learning rates.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from jaxtyping import Float, Int
from torch import Tensor

from openjepa.evaluation.protocol import HeadResult, LabeledFeatures, ProtocolResult, chosen_first, held_out_rows
from openjepa.evaluation.solver import Heads, solve
from openjepa.measures.accuracy import top1
from openjepa.settings.evaluation import EvaluationSettings

BATCH_NORM_EPS = 1e-5
"""Of the authors' BatchNorm; here relative to the mean variance, so that it means the same at every scale."""
KINDS = ("linear", "batch_norm")


@dataclass(frozen=True)
class Probe:
    """Linear classifiers with the scaling of the features they were solved for."""

    mean: Float[Tensor, " D"]
    scale: Float[Tensor, " D"]
    heads: Heads

    def predict(self, features: Float[Tensor, "n D"]) -> Int[Tensor, "L n"]:
        """Class of every image according to every head."""
        return self.heads.predict((features - self.mean) * self.scale)


def fit(
    features: Float[Tensor, "n D"],
    labels: Int[Tensor, " n"],
    num_classes: int,
    kind: str,
    weight_decays: Sequence[float],
    iterations: int = 100,
) -> Probe:
    """Solves one head per weight decay.

    `linear`: all dimensions are divided by one number, the root of their mean variance, so that one range of weight decays
    fits any encoder and pixels. `batch_norm`: each dimension is divided by its own standard deviation, which is BatchNorm
    with the statistics of the training split (its affine part is absorbed by the linear layer). Both subtract the mean,
    which the bias absorbs.
    """
    mean = features.mean(dim=0)
    variance = features.var(dim=0, correction=0)
    overall = variance.mean().clamp(min=1e-20)
    wanted = overall.expand_as(variance) if kind == "linear" else variance + BATCH_NORM_EPS * overall
    scale = wanted.rsqrt()
    heads = solve((features - mean) * scale, labels, num_classes, weight_decays, iterations)
    return Probe(mean, scale, heads)


def evaluate_linear(train: LabeledFeatures, test: LabeledFeatures, settings: EvaluationSettings) -> ProtocolResult:
    """Accuracy on `test` of the best head; which is best is decided as `settings.selection` says.

    `held_out`: the weight decay of each head and then the head are chosen on 10 % of `train`, solved on the other 90 %; the
    chosen weight decays are then solved anew on all of `train`. `paper`: solved on all of `train`, best on `test`.
    """
    sweep = _sweep_on_test if settings.selection == "paper" else _sweep_held_out
    heads = [
        head
        for features in train.features
        for kind in KINDS
        for head in sweep(_only(train, features), _only(test, features), features, kind, settings)
    ]
    best = chosen_first(heads, settings.selection)
    heads[best] = replace(heads[best], chosen=True)
    accuracy = heads[best].test_accuracy
    error = (accuracy * (1 - accuracy) / len(test.labels)) ** 0.5
    return ProtocolResult(accuracy, error, tuple(heads), settings.selection)


def _only(split: LabeledFeatures, kind: str) -> LabeledFeatures:
    return LabeledFeatures({"x": split.features[kind]}, split.labels)


def _sweep_held_out(
    train: LabeledFeatures, test: LabeledFeatures, features: str, kind: str, settings: EvaluationSettings
) -> list[HeadResult]:
    """One head: the weight decay that is best on the held-out part, solved anew on everything."""
    kept_rows, held_rows = held_out_rows(train.labels, settings.seed)
    kept, held = train.select(kept_rows), train.select(held_rows)
    decays = _strongest_first(settings)
    num_classes = int(train.labels.max()) + 1
    probe = fit(kept.features["x"], kept.labels, num_classes, kind, decays, settings.iterations)
    scores = [top1(predicted, held.labels).value for predicted in probe.predict(held.features["x"])]
    best = scores.index(max(scores))
    final = fit(train.features["x"], train.labels, num_classes, kind, [decays[best]], settings.iterations)
    accuracy = top1(final.predict(test.features["x"])[0], test.labels).value
    return [HeadResult(features, kind, _words(decays[best]), scores[best], accuracy)]


def _sweep_on_test(
    train: LabeledFeatures, test: LabeledFeatures, features: str, kind: str, settings: EvaluationSettings
) -> list[HeadResult]:
    """All weight decays of one head, solved on all of the training split."""
    decays = _strongest_first(settings)
    num_classes = int(train.labels.max()) + 1
    probe = fit(train.features["x"], train.labels, num_classes, kind, decays, settings.iterations)
    scores = [top1(predicted, test.labels).value for predicted in probe.predict(test.features["x"])]
    return [HeadResult(features, kind, _words(decay), None, score) for decay, score in zip(decays, scores, strict=True)]


def _strongest_first(settings: EvaluationSettings) -> list[float]:
    """So that of two equally good weight decays the stronger is taken."""
    if not settings.weight_decays or min(settings.weight_decays) <= 0:
        raise ValueError(f"evaluation.weight_decays={settings.weight_decays} must be above 0: without it heads do not converge")
    return sorted(settings.weight_decays, reverse=True)


def _words(decay: float) -> str:
    return f"weight decay {decay:g}"
