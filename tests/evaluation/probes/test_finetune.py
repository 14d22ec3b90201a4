"""Fine-tuning: recipes, layer-wise decay, schedules, and a tiny encoder that learns colors."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import openjepa.evaluation.probes.finetune as training
from openjepa.data.augmentations import RandAugment, RandomErasing, draw_mix
from openjepa.data.passes import augmented_batches
from openjepa.data.source import ListSource, open_splits
from openjepa.engine.optimizer import build_optimizer, layer_decay_rules, layer_number, layer_scale, set_rates
from openjepa.evaluation.probes.finetune import (
    Classifier,
    build_classifier,
    evaluate_finetune,
    length,
    schedule,
    train_classifier,
    training_views,
)
from openjepa.evaluation.protocol import ImageProbe, LabeledImages
from openjepa.models.transformer import DropPath, ImageSlots
from openjepa.models.vit import build_encoder
from openjepa.schedules import Progress, learning_rate
from openjepa.seeds import derive
from openjepa.settings.evaluation import EvaluationSettings, FinetuneRecipe, FinetuneSettings, LowShotSettings, resolve_finetune
from openjepa.settings.models import EncoderConfig
from openjepa.settings.protocols import check_evaluation
from openjepa.settings.sources import FolderSettings
from openjepa.types import normalize
from openjepa.weights.contents import weights_hash

CONFIG = EncoderConfig(width=24, depth=2, heads=2, mlp_ratio=2.0, patch_size=8, image_size=(32, 32))
QUICK = FinetuneSettings(
    epochs=6, batch_size=8, learning_rates=(3e-3,), warmup_epochs=1, randaugment=False, drop_path=0.0, mixup=0.0, cutmix=0.0
)
SETTINGS = EvaluationSettings(device="cpu", precision="fp32", workers=0, finetune=QUICK)


def write_colors(folder: Path, number: int) -> Path:
    """Images of three classes that differ in their color alone."""
    generator = np.random.default_rng(0)
    for i in range(number):
        pixels = generator.integers(0, 90, (32, 32, 3))
        pixels[:, :, i % 3] += 120
        place = folder / ("red", "green", "blue")[i % 3]
        place.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels.astype(np.uint8)).save(place / f"{i:03d}.png")
    return folder


@pytest.fixture(scope="module")
def probe(tmp_path_factory: pytest.TempPathFactory) -> ImageProbe:
    folder = write_colors(tmp_path_factory.mktemp("colors"), 60)
    splits = open_splits(FolderSettings(path=str(folder), image_size=32), 0)
    assert isinstance(splits.train, ListSource) and splits.test is not None
    sides = [LabeledImages(side, side.labels) for side in (splits.train, splits.test) if side.labels is not None]
    torch.manual_seed(0)
    encoder = build_encoder(CONFIG).eval().requires_grad_(False)
    return ImageProbe(encoder, CONFIG, sides[0], sides[1], "crop", (32, 32), torch.device("cpu"), "fp32")


def finetune(settings: EvaluationSettings, **changed: object) -> EvaluationSettings:
    return replace(settings, finetune=replace(settings.finetune, **changed))  # type: ignore[arg-type]


# -------------------------------------------------------------------------------------------------------------- recipes


def test_the_recipes_are_the_published_ones() -> None:
    values = {
        name: [resolve_finetune(FinetuneSettings(recipe=name), False, depth) for depth in (12, 24, 32)]
        for name in ("low_shot", "paper", "mae")
    }
    assert [(r.epochs, r.batch_size, r.learning_rates, r.weight_decay, r.layer_decay) for r in values["low_shot"][1:]] == [
        (50, 512, (3e-5,), 0.05, 0.75),
        (50, 512, (3e-5,), 0.4, 0.75),
    ]
    assert all(
        (r.mixup, r.cutmix, r.random_erasing, r.drop_path, r.label_smoothing) == (0, 0, 0, 0, 0.1) for r in values["low_shot"]
    )
    paper = values["paper"][2]
    assert (paper.epochs, paper.batch_size, paper.learning_rates, paper.mixup, paper.cutmix) == (50, 528, (1e-4,), 0.8, 1.0)
    assert (paper.drop_path, paper.weight_decay, paper.layer_decay) == (0.25, 0.04, 0.75)
    assert [(r.epochs, r.peak_rate(r.learning_rates[0], r.batch_size), r.layer_decay, r.drop_path) for r in values["mae"]] == [
        (100, 5e-4 * 4, 0.65, 0.1),
        (50, 1e-3 * 4, 0.75, 0.2),
        (50, 1e-3 * 4, 0.75, 0.3),
    ]
    assert all(recipe.randaugment and recipe.warmup_epochs == 5 for group in values.values() for recipe in group)


def test_the_recipe_follows_the_labels_and_given_values_replace_its_own() -> None:
    assert resolve_finetune(FinetuneSettings(), True, 24) == FinetuneRecipe()
    assert resolve_finetune(FinetuneSettings(), False, 24).batch_size == 528
    assert resolve_finetune(FinetuneSettings(recipe="mae"), True, 24).batch_size == 1024
    changed = FinetuneSettings(learning_rates=(1e-3, 1e-2), rate_unit="per_256", mixup=0.0, randaugment=False)
    recipe = resolve_finetune(changed, False, 24)
    assert (recipe.learning_rates, recipe.mixup, recipe.randaugment, recipe.cutmix) == ((1e-3, 1e-2), 0.0, False, 1.0)
    assert recipe.peak_rate(1e-3, 128) == pytest.approx(5e-4)


def test_a_warmup_as_long_as_the_run_is_an_error_before_anything_is_loaded() -> None:
    for changed in (
        FinetuneSettings(epochs=5),
        FinetuneSettings(epochs=10, warmup_epochs=10),
        FinetuneSettings(warmup_epochs=60),
    ):
        with pytest.raises(ValueError, match=r"finetune.warmup_epochs=\d+ must be below finetune.epochs=\d+: use --finetune"):
            check_evaluation(EvaluationSettings(finetune=changed))
    check_evaluation(EvaluationSettings(finetune=FinetuneSettings(epochs=5, warmup_epochs=0.5)))


@pytest.mark.parametrize(
    ("name", "value"), [("layer_decay", 0.0), ("drop_path", 1.0), ("magnitude", 11.0), ("learning_rates", (0.0,))]
)
def test_impossible_values_are_named(name: str, value: object) -> None:
    with pytest.raises(ValueError, match=rf"evaluation\.finetune\.{name}="):
        check_evaluation(finetune(SETTINGS, **{name: value}))


# ---------------------------------------------------------------------------------------------------------- layer decay


@pytest.mark.parametrize("head_norm", ["after_pooling", "encoder"])
def test_rates_decay_from_the_head_to_the_pixels(head_norm: str) -> None:
    torch.manual_seed(0)
    encoder = build_encoder(replace(CONFIG, depth=3, class_token=True))
    classifier = Classifier(encoder, 5, head_norm, 2e-5)  # type: ignore[arg-type]
    optim = schedule(FinetuneRecipe(), 1e-3, 1e-6, 8)
    optimizer = build_optimizer(classifier.named_parameters(), layer_decay_rules(3, 0.75), optim)
    set_rates(optimizer, 1e-3, 0.05)
    names = {id(value): name for name, value in classifier.named_parameters()}
    found = {
        names[id(value)]: (group["lr"], group["weight_decay"]) for group in optimizer.param_groups for value in group["params"]
    }
    assert set(found) == set(names.values())
    for name, (rate, decay) in found.items():
        power = {"encoder.blocks.0": 3, "encoder.blocks.1": 2, "encoder.blocks.2": 1}.get(name[:16])
        if power is None:
            power = 4 if "patch_embed" in name or "cls_token" in name else 0
        assert rate == pytest.approx(1e-3 * 0.75**power), name
        assert decay == (0.0 if name.endswith(("bias", "cls_token")) or "norm" in name else 0.05), name


def test_layer_numbers_and_factors() -> None:
    depth = 24
    assert [
        layer_number(f"encoder.{name}", depth) for name in ("cls_token", "patch_embed.proj.bias", "blocks.0.norm1.bias")
    ] == [0, 0, 1]
    assert layer_number("encoder.blocks.23.mlp.fc1.weight", depth) == 24
    assert layer_number("encoder.norm.weight", depth) == layer_number("head.weight", depth) == 25
    assert layer_scale(25, depth, 0.75) == 1.0 and layer_scale(0, depth, 0.75) == pytest.approx(0.75**25)
    assert {layer_scale(layer, depth, 1.0) for layer in range(26)} == {1.0}


# ---------------------------------------------------------------------------------------------------- schedule and network


def test_the_rate_rises_from_zero_to_the_peak_and_falls_to_the_end() -> None:
    recipe = FinetuneRecipe(epochs=10, warmup_epochs=2, rate_unit="per_256")
    optim = schedule(recipe, 1e-3, 1e-6, 64)
    size = length(replace(recipe, batch_size=64), 700)
    assert (size.batch_size, size.steps_per_epoch, size.total_steps) == (64, 10, 100)
    rates = [learning_rate(optim, Progress(step, 100, 10)) for step in range(100)]
    peak = 1e-3 * 64 / 256
    assert rates[0] == pytest.approx(peak / 20) and rates[19] == pytest.approx(peak) == max(rates)
    assert rates[59] == pytest.approx((peak + 1e-6) / 2) and rates[99] == pytest.approx(1e-6)
    assert length(recipe, 20).batch_size == 20 and length(recipe, 20).total_steps == 10
    with pytest.raises(ValueError, match=r"final_lr=0\.01 is above the peak rate 0\.00025"):
        schedule(recipe, 1e-3, 1e-2, 64)


def test_the_copy_answers_as_the_encoder_and_drops_paths_only_in_training(probe: ImageProbe) -> None:
    settings = finetune(SETTINGS, drop_path=0.5, head_norm="encoder", head_std=1.0)
    recipe = resolve_finetune(settings.finetune, False, CONFIG.depth)
    classifier = build_classifier(probe, settings, recipe)
    assert [module.rate for module in classifier.modules() if isinstance(module, DropPath)] == [0.0, 0.5]
    images = normalize(torch.randint(0, 256, (16, 3, 32, 32), dtype=torch.uint8), CONFIG.pixel_mean, CONFIG.pixel_std)
    classifier.eval()
    with torch.no_grad():
        pooled = probe.encoder(images).patches.mean(dim=1)
        expected = pooled @ classifier.head.weight.T
        torch.testing.assert_close(classifier(images), expected)
        outcomes = []
        for seed in range(2):
            torch.manual_seed(seed)
            outcomes.append((classifier.eval()(images), classifier.train()(images)))
    assert torch.equal(outcomes[0][0], outcomes[1][0]) and not torch.equal(outcomes[0][1], outcomes[1][1])


def test_the_new_norm_replaces_the_encoders_last(probe: ImageProbe) -> None:
    recipe = resolve_finetune(QUICK, False, CONFIG.depth)
    classifier = build_classifier(probe, SETTINGS, recipe).eval()
    assert classifier.head.weight.abs().max() < 1.5e-4 and not classifier.head.bias.any()
    images = torch.randn(3, 3, 32, 32)
    with torch.no_grad():
        classifier.head.weight.normal_()
        x = probe.encoder._tokens(images, None)
        for block in probe.encoder.blocks:
            x = block(x)
        pooled = x.mean(dim=1)
        normed = (pooled - pooled.mean(1, keepdim=True)) / (pooled.var(1, keepdim=True, correction=0) + 1e-6).sqrt()
        torch.testing.assert_close(classifier(images), normed @ classifier.head.weight.T)


def test_the_loss_of_a_step_is_that_of_the_mixed_images_and_their_soft_targets(probe: ImageProbe) -> None:
    recipe = replace(FinetuneRecipe(), mixup=0.8, label_smoothing=0.1)
    settings = finetune(SETTINGS, head_std=1.0)
    classifier = build_classifier(probe, settings, recipe)
    views = training_views(probe, settings, recipe)
    batch = next(augmented_batches(views, 8, 0, 0, 0))
    for step in range(3):
        classifier.zero_grad()
        found = training._backward(classifier, ImageSlots(classifier), batch, probe, settings, recipe, step)
        own = draw_mix(0.8, 0.0, (32, 32), derive("step", 0, step, 0)).own
        images = normalize(batch.images, CONFIG.pixel_mean, CONFIG.pixel_std)
        others = torch.tensor([7, *range(7)])
        log_probabilities = classifier(own * images + (1 - own) * images[others]).log_softmax(dim=1)
        nll = [
            0.9 * -log_probabilities[range(8), labels] - 0.1 * log_probabilities.mean(1)
            for labels in (batch.labels, batch.labels[others])
        ]
        expected = (own * nll[0] + (1 - own) * nll[1]).mean()
        torch.testing.assert_close(found, expected.detach())
        (gradient,) = torch.autograd.grad(expected, [classifier.head.weight])
        torch.testing.assert_close(classifier.head.weight.grad, gradient)


def test_recipes_augment_the_views_as_they_say(probe: ImageProbe) -> None:
    def augmentations(recipe: FinetuneRecipe) -> list[object]:
        augment = training_views(probe, SETTINGS, recipe).augment
        return [] if augment is None else list(augment.augmentations)  # type: ignore[attr-defined]

    rand = RandAugment(9.0, 0.5, 2, (124, 116, 104))
    assert augmentations(resolve_finetune(FinetuneSettings(), True, 24)) == [rand]
    erasing = RandomErasing(0.25, CONFIG.pixel_mean, CONFIG.pixel_std)
    assert augmentations(resolve_finetune(FinetuneSettings(recipe="mae"), False, 24)) == [rand, erasing]
    assert augmentations(replace(FinetuneRecipe(), randaugment=False)) == []
    assert training_views(replace(probe, fit="squash"), SETTINGS, FinetuneRecipe()).fit == "squash"


# ---------------------------------------------------------------------------------------------------------------- whole


def test_colors_are_learned_and_the_encoder_is_not_touched(probe: ImageProbe) -> None:
    before, random_state = weights_hash(probe.encoder), torch.get_rng_state()
    held_out, paper = evaluate_finetune(probe, replace(SETTINGS, selection="both"))
    assert held_out.accuracy == paper.accuracy == 1.0 and held_out.heads == paper.heads
    assert (held_out.selection, paper.selection) == ("held_out", "paper")
    assert [(head.chosen, head.held_out_accuracy, head.setting) for head in paper.heads] == [
        (True, None, "learning rate 0.003")
    ]
    assert weights_hash(probe.encoder) == before and not any(value.requires_grad for value in probe.encoder.parameters())
    assert not probe.encoder.training and torch.equal(torch.get_rng_state(), random_state)


def test_the_same_seed_gives_the_same_weights_and_parts_of_a_batch_the_same_gradient(probe: ImageProbe) -> None:
    settings = finetune(
        SETTINGS, epochs=2, mixup=0.8, cutmix=1.0, drop_path=0.2, random_erasing=0.5, randaugment=True, label_smoothing=0.1
    )
    recipe = resolve_finetune(settings.finetune, False, CONFIG.depth)

    def trained(changed: EvaluationSettings) -> Classifier:
        return train_classifier(probe, changed, recipe, 1e-3, None).classifier

    first = trained(settings)
    assert weights_hash(trained(settings)) == weights_hash(first)
    assert weights_hash(trained(replace(settings, seed=1))) != weights_hash(first)
    recipe = replace(recipe, drop_path=0.0)
    whole, parts = trained(settings), trained(finetune(settings, microbatch_size=3))
    for value, other in zip(whole.parameters(), parts.parameters(), strict=True):
        torch.testing.assert_close(value, other, atol=2e-4, rtol=1e-2)


def test_bf16_learns_too(probe: ImageProbe) -> None:
    (result,) = evaluate_finetune(replace(probe, precision="bf16"), SETTINGS)
    assert result.accuracy == 1.0


def test_several_rates_are_chosen_on_the_held_out_part_and_trained_anew(
    probe: ImageProbe, monkeypatch: pytest.MonkeyPatch
) -> None:
    used: list[tuple[float, int | None]] = []

    def counted(*arguments: object) -> object:
        rows = arguments[4]
        used.append((arguments[3], None if rows is None else len(rows)))  # type: ignore[arg-type]
        return train_classifier(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr("openjepa.evaluation.probes.finetune.train_classifier", counted)
    settings = finetune(SETTINGS, learning_rates=(2e-6, 1e-2), epochs=6, head_std=1.0)  # a head too large for the first
    held_out, paper = evaluate_finetune(probe, replace(settings, selection="both"))
    num_kept = len(probe.train.source) - 3 * round(0.1 * len(probe.train.source) / 3)
    assert used == [(2e-6, num_kept), (1e-2, num_kept), (1e-2, None), (2e-6, None)]
    assert [head.chosen for head in held_out.heads] == [head.chosen for head in paper.heads] == [False, True]
    assert held_out.heads[1].held_out_accuracy == held_out.accuracy == 1.0 == paper.accuracy
    assert all(head.held_out_accuracy is None for head in paper.heads)


def test_low_shot_settings_choose_the_low_shot_recipe(probe: ImageProbe, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[FinetuneRecipe] = []

    def stopped(probe: ImageProbe, settings: EvaluationSettings, recipe: FinetuneRecipe, *rest: object) -> Iterator[None]:
        seen.append(recipe)
        raise KeyboardInterrupt

    monkeypatch.setattr("openjepa.evaluation.probes.finetune.train_classifier", stopped)
    for shot in (LowShotSettings(), LowShotSettings(percent=1.0)):
        with pytest.raises(KeyboardInterrupt):
            evaluate_finetune(probe, EvaluationSettings(low_shot=shot))
    assert [(recipe.batch_size, recipe.drop_path) for recipe in seen] == [(528, 0.25), (512, 0.0)]


def test_a_loss_that_is_not_finite_names_the_rate(probe: ImageProbe) -> None:
    settings = finetune(SETTINGS, learning_rates=(1e30,))
    with pytest.raises(ValueError, match=r"finetune\.learning_rates=1e\+30: the loss or a gradient of step \d+ is not finite"):
        evaluate_finetune(probe, settings)
