"""End-to-end fine-tuning with layer-wise decay: which peak rate is reported, and on what it is chosen.

The recipes are in `openjepa.settings.finetune`, the loop in `openjepa.evaluation.finetune_training`. Sources: I-JEPA (low-shot
experiments and appendix D) for what it says, MAE's published recipe for what it leaves open.
"""

from dataclasses import dataclass, field, replace

import numpy as np
import torch
from numpy.typing import NDArray

from openjepa.evaluation.finetune_training import Score, score, train_classifier
from openjepa.evaluation.protocol import HeadResult, ImageProbe, ProtocolResult, chosen_first, held_out_rows, selections
from openjepa.measures.accuracy import TOP
from openjepa.settings.evaluation import EvaluationSettings
from openjepa.settings.finetune import FinetuneRecipe, resolve_finetune


@dataclass(frozen=True)
class _Outcome:
    """One fine-tuning."""

    test: Score
    held_out: Score | None
    """Where it was trained without the held-out part."""
    loss: float
    seconds: float


@dataclass
class _Runs:
    """Fine-tunings of one probe; what two selection rules have in common is trained once."""

    probe: ImageProbe
    settings: EvaluationSettings
    recipe: FinetuneRecipe
    known: dict[tuple[float, bool], _Outcome] = field(default_factory=dict)
    """By peak rate and whether a part was held out."""

    def outcome(self, rate: float, hold_out: bool) -> _Outcome:
        """Trains on the whole training split, or on the 90 % that are not held out, and tests."""
        if (rate, hold_out) not in self.known:
            self.known[rate, hold_out] = self._train(rate, hold_out)
        return self.known[rate, hold_out]

    def _train(self, rate: float, hold_out: bool) -> _Outcome:
        probe, settings = self.probe, self.settings
        kept, held = self._rows() if hold_out else (None, None)
        trained = train_classifier(probe, settings, self.recipe, rate, kept)
        on_held = None if held is None else score(trained.classifier, probe, probe.train, settings, held)
        test = score(trained.classifier, probe, probe.test, settings, None)
        return _Outcome(test, on_held, trained.loss, trained.seconds)

    def _rows(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        kept, held = held_out_rows(torch.from_numpy(self.probe.train.labels), self.settings.seed)
        return kept.numpy(), held.numpy()


def evaluate_finetune(probe: ImageProbe, settings: EvaluationSettings) -> tuple[ProtocolResult, ...]:
    """Accuracy on the test split after the last epoch, by each selection rule asked for. The probe's encoder is not changed.

    With one learning rate, as in every recipe, there is nothing to choose: all training images are trained on, whatever the
    rule. With several, `held_out` trains each on 90 % of the training split, chooses on the other 10 %, and trains the chosen
    one anew on all of it (the others' test accuracies are those of the 90 %); `paper` trains each on all and reports the best
    on the test split. `extra`: loss of the last step and seconds of training of the number reported; top-5 accuracy where there
    are more classes.
    Raises ValueError where settings contradict each other, a loss is not finite, or memory runs out.
    """
    recipe = resolve_finetune(settings.finetune, settings.low_shot.is_set(), probe.encoder.config.depth)
    runs = _Runs(probe, settings, recipe)
    return tuple(_result(runs, selection) for selection in selections(settings))


def _result(runs: _Runs, selection: str) -> ProtocolResult:
    rates = runs.recipe.learning_rates
    hold_out = selection == "held_out" and len(rates) > 1
    heads = [_head(rate, runs.outcome(rate, hold_out)) for rate in rates]
    best = chosen_first(heads, selection) if len(rates) > 1 else 0
    final = runs.outcome(rates[best], hold_out=False)
    accuracy = final.test.accuracy
    heads[best] = replace(heads[best], test_accuracy=accuracy.value, chosen=True)
    extra = {"train_loss": final.loss, "train_seconds": round(final.seconds, 1)}
    if runs.probe.num_classes > TOP:
        extra["top5"] = final.test.top5
    return ProtocolResult(accuracy.value, accuracy.standard_error, tuple(heads), selection, extra)


def _head(rate: float, outcome: _Outcome) -> HeadResult:
    held_out = None if outcome.held_out is None else outcome.held_out.accuracy.value
    return HeadResult("last", "fine-tuned", f"learning rate {rate:g}", held_out, outcome.test.accuracy.value)
