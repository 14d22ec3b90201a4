"""End-to-end fine-tuning with layer-wise decay: which peak rate is reported, and on what it is chosen.

The recipes are in `openjepa.settings.finetune`, the loop in `openjepa.evaluation.probes.finetune_training`. Sources: I-JEPA (low-shot
experiments and appendix D) for what it says, MAE's published recipe for what it leaves open.
"""

from dataclasses import dataclass, field, replace

import numpy as np
import torch
from numpy.typing import NDArray

from openjepa.engine.failures import advise_on_memory
from openjepa.evaluation.probes.finetune_training import Trained, train_classifier
from openjepa.evaluation.probes.trained import Scores, count_right
from openjepa.evaluation.protocol import (
    HeadResult,
    ImageProbe,
    LabeledImages,
    ProtocolResult,
    chosen_first,
    held_out_rows,
    selections,
)
from openjepa.measures.accuracy import TOP, Accuracy
from openjepa.refusals import Refusal
from openjepa.settings.evaluation import EvaluationSettings
from openjepa.settings.finetune import FinetuneRecipe, resolve_finetune


@dataclass(frozen=True)
class _Outcome:
    """One fine-tuning."""

    head: HeadResult
    """Its accuracies; not chosen yet."""
    test: Scores
    loss: float
    seconds: float
    unreadable: tuple[str, ...]
    """Names of the training images that could not be read."""


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
        kept, held = self._rows() if hold_out else (None, None)
        trained = train_classifier(self.probe, self.settings, self.recipe, rate, kept)
        test = self._score(trained, self.probe.test, "test split", None)
        lost, held_out = list(trained.unreadable), None
        if held is not None:
            on_held = self._score(trained, self.probe.train, "held-out part of the training split", held)
            lost += on_held.unreadable
            held_out = on_held.top1[0]
        head = HeadResult(*trained.names()[0], held_out, test.top1[0])
        return _Outcome(head, test, trained.loss, trained.seconds, tuple(lost))

    def _score(self, trained: Trained, images: LabeledImages, part: str, rows: NDArray[np.int64] | None) -> Scores:
        """Right answers on the test view of some images; those that cannot be read do not count."""
        settings = self.settings
        advice = (
            f"out of memory on {self.probe.device} with evaluation.feature_batch_size={settings.feature_batch_size}: "
            "set a smaller --feature-batch-size (only the test images per forward)"
        )
        with advise_on_memory(lambda: advice):
            scores = count_right(trained, self.probe, images, settings, self.probe.fit, part, rows)
        if not scores.is_finite[0]:
            raise Refusal(
                f"evaluation.finetune.learning_rates={trained.rate:g}: what the fine-tuned encoder answers is not finite; "
                "lower the rate or lengthen finetune.warmup_epochs; precision=fp32 tells whether it is the precision"
            )
        return scores

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
    Raises Refusal where settings contradict each other, a loss or an answer is not finite, no image of a split can be read,
    or memory runs out.
    """
    recipe = resolve_finetune(settings.finetune, settings.low_shot.is_set(), probe.encoder.config.depth)
    runs = _Runs(probe, settings, recipe)
    return tuple(_result(runs, selection) for selection in selections(settings))


def _result(runs: _Runs, selection: str) -> ProtocolResult:
    rates = runs.recipe.learning_rates
    hold_out = selection == "held_out" and len(rates) > 1
    heads = [runs.outcome(rate, hold_out).head for rate in rates]
    best = chosen_first(heads, selection) if len(rates) > 1 else 0
    final = runs.outcome(rates[best], hold_out=False)
    accuracy = Accuracy(final.test.top1[0], final.test.num)
    heads[best] = replace(heads[best], test_accuracy=accuracy.value, chosen=True)
    extra = {"train_loss": final.loss, "train_seconds": round(final.seconds, 1)}
    if runs.probe.num_classes > TOP:
        extra["top5"] = final.test.top5[0]
    # it was trained on the whole split, so that no other run can know more names
    unreadable = {"train": final.unreadable, "test": final.test.unreadable}
    return ProtocolResult(accuracy.value, accuracy.standard_error, tuple(heads), selection, extra, unreadable)
