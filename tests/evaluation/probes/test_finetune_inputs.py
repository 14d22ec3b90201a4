"""Fine-tuning on what is not as usual: other sizes of images, images that cannot be read; and what it leaves untouched."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

import openjepa.evaluation.probes.finetune as training
from openjepa.engine.device import keep_random_state, seed_generator, to_device
from openjepa.evaluation.probes.finetune import build_classifier, evaluate_finetune, length, train_classifier
from openjepa.evaluation.protocol import ImageProbe, held_out_rows
from openjepa.models.vit import build_encoder
from openjepa.settings.evaluation import EvaluationSettings, FinetuneSettings, resolve_finetune
from openjepa.types import Skipped
from tests.helpers.colors import CONFIG, CPU, Broken, color_probe

QUICK = FinetuneSettings(
    epochs=2, batch_size=8, learning_rates=(3e-3,), warmup_epochs=1, randaugment=False, drop_path=0.0, mixup=0.0, cutmix=0.0
)
SETTINGS = EvaluationSettings(device="cpu", precision="fp32", workers=0, feature_batch_size=8, finetune=QUICK)
RECIPE = resolve_finetune(QUICK, False, CONFIG.depth)


def broken_probe(train: Sequence[int], test: Sequence[int] = ()) -> ImageProbe:
    """With records that are not images."""
    probe = color_probe()
    sides = [replace(side, source=Broken(side.source, lost)) for side, lost in ((probe.train, train), (probe.test, test))]
    return replace(probe, train=sides[0], test=sides[1])


# ------------------------------------------------------------------------------------------------------- sizes of images


def learned_probe(image_size: tuple[int, int]) -> ImageProbe:
    """An encoder with large learned positions for 32 x 16 pixels, to be fine-tuned at another size."""
    config = replace(CONFIG, positions="learned", image_size=(32, 16))
    torch.manual_seed(0)
    encoder = build_encoder(config).eval().requires_grad_(False)
    assert encoder.pos_embed is not None
    encoder.pos_embed.normal_()
    return replace(color_probe(), encoder=encoder, config=config, image_size=image_size)


@pytest.mark.parametrize("image_size", [(32, 16), (16, 32), (24, 40)])
def test_learned_positions_start_where_the_encoder_has_them_at_the_size_of_the_views(image_size: tuple[int, int]) -> None:
    probe = learned_probe(image_size)
    before = probe.encoder.pos_embed.clone()  # type: ignore[union-attr]
    settings = replace(SETTINGS, finetune=replace(QUICK, head_norm="encoder", head_std=1.0))
    classifier = build_classifier(probe, settings, RECIPE).eval()
    images = torch.randn(4, 3, *image_size, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        expected = probe.encoder(images).pooled(CONFIG.pooling) @ classifier.head.weight.T
        torch.testing.assert_close(classifier(images), expected)
    trained = train_classifier(probe, settings, RECIPE, 3e-3, None).classifier.encoder.pos_embed
    assert trained is not None and trained.shape[1] == 1 + image_size[0] * image_size[1] // CONFIG.patch_size**2
    assert not torch.equal(trained, classifier.encoder.pos_embed)  # type: ignore[arg-type]  # they learn
    assert torch.equal(probe.encoder.pos_embed, before)  # type: ignore[arg-type]


# ---------------------------------------------------------------------------------------------------- unreadable images


@pytest.mark.filterwarnings("error")
def test_images_that_cannot_be_read_shift_no_step() -> None:
    rows = np.arange(24)
    lost: list[Skipped] = []
    probe = broken_probe(range(4))
    steps = [step for step, _ in training._steps(probe, SETTINGS, RECIPE, length(RECIPE, 24), rows, lost)]
    assert steps == [0, 1, 3, 4] and sorted(skipped.name for skipped in lost) == [f"image {index}" for index in range(4)]
    with pytest.raises(ValueError, match=r"no image of the training split can be read.*openjepa data check"):
        list(training._steps(probe, SETTINGS, RECIPE, length(RECIPE, 4), np.arange(4), []))


@pytest.mark.parametrize("rates", [(3e-3,), (3e-3, 1e-3)])
@pytest.mark.parametrize("selection", ["held_out", "paper"])
def test_unreadable_images_are_named(rates: tuple[float, ...], selection: Any) -> None:
    """Once each, whether they are trained on or held out; also those of a last batch that is left out."""
    held = held_out_rows(torch.from_numpy(color_probe().train.labels), SETTINGS.seed)[1].tolist()
    lost = [held[0], *[index for index in range(60) if index not in held][:2]]
    settings = replace(SETTINGS, selection=selection, finetune=replace(QUICK, learning_rates=rates))
    (result,) = evaluate_finetune(broken_probe(lost, [4, 7]), settings)
    assert sorted(result.unreadable["train"]) == sorted(f"image {index}" for index in lost)
    assert result.unreadable["test"] == ("image 4", "image 7")
    assert result.standard_error == pytest.approx((result.accuracy * (1 - result.accuracy) / 28) ** 0.5)


def test_errors_name_the_images_that_cannot_be_tested_on() -> None:
    with pytest.raises(ValueError, match=r"no image of the test split can be read; the first of 30 is image 0: .*data check"):
        evaluate_finetune(broken_probe((), range(30)), SETTINGS)


# -------------------------------------------------------------------------------------------------------- random numbers


def test_only_the_generators_of_the_cpu_and_the_device_are_touched(monkeypatch: pytest.MonkeyPatch) -> None:
    """torch.manual_seed would give every GPU a new seed, and what is forked here is the state of the CPU."""
    probe = color_probe(train=16)
    seeded: list[int] = []
    monkeypatch.setattr(torch.cuda, "manual_seed_all", seeded.append)
    torch.manual_seed(3)
    assert seeded == [3]  # what this test would see
    state = torch.get_rng_state()
    build_classifier(probe, SETTINGS, RECIPE)
    assert seeded == [3] and torch.equal(torch.get_rng_state(), state)
    train_classifier(probe, SETTINGS, replace(RECIPE, drop_path=0.3), 3e-3, None)
    assert seeded == [3] and torch.equal(torch.get_rng_state(), state)


def test_random_states_are_kept_where_an_error_ends_the_block() -> None:
    state = torch.get_rng_state()
    with pytest.raises(KeyboardInterrupt), keep_random_state(CPU):
        seed_generator(CPU, 5)
        first = torch.rand(3)
        raise KeyboardInterrupt
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(first, torch.rand(3, generator=torch.Generator().manual_seed(5)))


def test_values_that_are_there_already_are_not_copied() -> None:
    values = torch.arange(5)
    assert to_device(values, CPU) is values


def test_an_answer_that_is_not_finite_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def spoiled(*arguments: Any) -> training.Trained:
        trained = train_classifier(*arguments)
        with torch.no_grad():
            trained.classifier.head.bias[0] = torch.nan
        return trained

    monkeypatch.setattr("openjepa.evaluation.probes.finetune.train_classifier", spoiled)
    with pytest.raises(ValueError, match=r"evaluation\.finetune\.learning_rates=0\.003: .* not finite; lower the rate"):
        evaluate_finetune(color_probe(), SETTINGS)
