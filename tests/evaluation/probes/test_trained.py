"""What probes on augmented images have in common: views, the choice, unreadable images, and errors that say what to change."""

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from openjepa.data.passes import evaluation_batches
from openjepa.evaluation.probes.attentive import evaluate_attentive
from openjepa.evaluation.probes.linear_full import evaluate_linear_full
from openjepa.evaluation.probes.trained import Scores, choose, own_images, train_and_choose, training_on
from openjepa.evaluation.protocol import ImageProbe, held_out_rows
from openjepa.refusals import Refusal
from openjepa.settings.evaluation import AttentiveSettings, EvaluationSettings, FullLinearSettings
from tests.helpers.colors import Broken, color_probe

FULL = FullLinearSettings(epochs=2, batch_size=16, learning_rates=(1.0, 0.1), weight_decays=(0.0,), augmentation="none")
ATTENTIVE = AttentiveSettings(epochs=2, batch_size=16)
SETTINGS = EvaluationSettings(
    device="cpu", precision="fp32", workers=0, feature_batch_size=8, linear_full=FULL, attentive=ATTENTIVE
)


def test_a_failed_head_loses_a_tie_with_one_that_is_always_wrong() -> None:
    scores = Scores(top1=[0.0, 0.0], top5=[0.0, 0.5], is_finite=[False, True], num=4)
    result = choose([("last", "linear", "lr 9"), ("last", "linear", "lr 1")], scores, scores, 7, 0.0, "rates")
    assert [head.setting for head in result.heads if head.chosen] == ["lr 1"] and result.extra["top5"] == 0.5


def test_held_out_images_are_not_trained_on() -> None:
    probe, asked = color_probe(), []

    class Always:
        unreadable: Sequence[str] = ()

        def names(self) -> list[tuple[str, str, str]]:
            return [("last", "linear", "first class")]

        def answer(self, images: Tensor) -> Tensor:
            return torch.tensor([1.0, 0.0, 0.0]).expand(len(images), 1, 3)

    def train(rows: Any) -> Always:
        asked.append(rows)
        return Always()

    results = train_and_choose(probe, replace(SETTINGS, selection="both"), train, "crop", "rates")
    assert len(asked[0]) == 54 and len(np.unique(asked[0])) == 54 and np.array_equal(asked[1], np.arange(60))
    # a tenth of each class is held out, so that the first class is a third of what is left and of what is held out
    assert results[0].heads[0].held_out_accuracy == pytest.approx(1 / 3) and results[1].accuracy == pytest.approx(1 / 3)


@pytest.mark.parametrize("fit", ["crop", "squash"])
def test_without_augmentation_training_views_are_test_views(fit: str) -> None:
    """To the last bit, also where the recipe's random crops are bilinear."""
    probe = replace(color_probe(train=12), fit=fit, image_size=(24, 24))
    training = training_on(
        probe, np.arange(12), SETTINGS, epochs=1, batch_size=12, augmentation="none", interpolation="bilinear"
    )
    ((images, labels),) = training.batches(0)
    (test,) = evaluation_batches(probe.train.source, (24, 24), fit=fit)
    seen = {(int(label), image.numpy().tobytes()) for label, image in zip(labels, images, strict=True)}
    assert seen == {(index % 3, image.numpy().tobytes()) for index, image in enumerate(test.images)}


def broken_probe(train: Sequence[int], test: Sequence[int] = ()) -> ImageProbe:
    """With records that are not images."""
    probe = color_probe()
    sides = [replace(side, source=Broken(side.source, lost)) for side, lost in ((probe.train, train), (probe.test, test))]
    return replace(probe, train=sides[0], test=sides[1])


@pytest.mark.parametrize("selection", ["held_out", "paper"])
@pytest.mark.parametrize("protocol", [evaluate_linear_full, evaluate_attentive])
def test_nothing_is_trained_on_no_image(protocol: Any, selection: Any) -> None:
    settings = replace(SETTINGS, selection=selection)
    with (
        pytest.warns(UserWarning, match="images to train on cannot be read"),
        pytest.raises(ValueError, match=r"no image of the training split can be read.*openjepa data check"),
    ):
        protocol(broken_probe(range(60)), settings)


def test_an_error_says_which_images_cannot_be_tested_on() -> None:
    with pytest.raises(ValueError, match=r"no image of the test split can be read; the first of 30 is image 0: .*data check"):
        evaluate_linear_full(broken_probe((), range(30)), SETTINGS)
    held = held_out_rows(torch.from_numpy(color_probe().train.labels), SETTINGS.seed)[1].tolist()
    words = rf"no image of the held-out part of the training split can be read; the first of 6 is image {held[0]}"
    with pytest.raises(ValueError, match=words):
        evaluate_linear_full(broken_probe(held), SETTINGS)


@pytest.mark.parametrize("protocol", [evaluate_linear_full, evaluate_attentive])
def test_unreadable_images_are_named(protocol: Any) -> None:
    """Once each, also those that were held out; images of a batch that is left out are not among them."""
    held = held_out_rows(torch.from_numpy(color_probe().train.labels), SETTINGS.seed)[1].tolist()
    trained_on = next(index for index in range(60) if index not in held)
    with pytest.warns(UserWarning, match="1 of 54 images to train on cannot be read"):
        (result,) = protocol(broken_probe([held[0], trained_on], [4]), SETTINGS)
    assert (
        set(result.unreadable["train"]) == {f"image {held[0]}", f"image {trained_on}"} and len(result.unreadable["train"]) == 2
    )
    assert result.unreadable["test"] == ("image 4",)


@pytest.mark.parametrize("protocol", [evaluate_linear_full, evaluate_attentive])
@pytest.mark.parametrize(
    ("value", "words"),
    [
        (math.nan, r"1 of the encoder's parameters .* the first is norm\.weight"),
        (1e38, "outputs are not finite with .*=bf16.* fp32"),
    ],
)
def test_an_encoder_that_is_not_finite_is_not_blamed_on_the_rates(protocol: Any, value: float, words: str) -> None:
    probe = replace(color_probe(), precision="bf16")
    with torch.no_grad():
        probe.encoder.norm.weight[:] = value
        probe.encoder.norm.bias[:] = 0.0 if math.isnan(value) else 3.4e38
    with pytest.raises(ValueError, match=words):
        protocol(probe, SETTINGS)


def test_a_device_that_is_full_is_told_what_helps() -> None:
    def train(rows: Any) -> Any:
        raise torch.OutOfMemoryError("CUDA out of memory")

    with pytest.raises(
        ValueError, match=r"feature_batch_size=8: set a smaller --feature-batch-size .* evaluation\.some\.rates"
    ):
        train_and_choose(color_probe(), SETTINGS, train, "crop", "some.rates")


def test_a_batch_needs_an_image_for_every_process(monkeypatch: pytest.MonkeyPatch) -> None:
    assert own_images(3) == slice(0, 3)
    monkeypatch.setattr("openjepa.evaluation.probes.trained.world_size", lambda: 4)
    with pytest.raises(Refusal, match=r"a batch of 3 images is too small for 4 processes: start at most 3 of them"):
        own_images(3)
