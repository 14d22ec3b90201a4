"""The paper's linear probe: heads against torch's modules, recipes against the published files, and known answers."""

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from openjepa.evaluation.feature_store import EncoderFeatures
from openjepa.evaluation.probes import linear_full
from openjepa.evaluation.probes import stacked_heads as heads_module
from openjepa.evaluation.probes.linear_full import evaluate_linear_full, feature_batches, find_recipe, make_training_plan
from openjepa.evaluation.probes.stacked_heads import HeadGroup, StackedHeads, Sweep, all_pairs, needed_bytes
from openjepa.evaluation.probes.trained import training_on
from openjepa.evaluation.protocol import ProtocolResult
from openjepa.settings.evaluation import LINEAR_RECIPES, OWN_DATA_RECIPE, EvaluationSettings, FullLinearSettings, LinearRecipe
from openjepa.types import normalize
from tests.helpers.colors import CONFIG, CPU, color_probe

FULL = FullLinearSettings(epochs=6, batch_size=16, learning_rates=(1.0, 0.1), weight_decays=(0.0,), augmentation="none")
SETTINGS = EvaluationSettings(device="cpu", precision="fp32", workers=0, feature_batch_size=8, linear_full=FULL)


# --------------------------------------------------------------------------------------------------------------- heads


def module_of(group: HeadGroup, index: int) -> nn.Sequential:
    """One head as torch builds it."""
    _, classes, width = group.weight.shape
    linear = nn.Linear(width, classes)
    linear.weight.data, linear.bias.data = group.weight[index].clone(), group.bias[index].clone()
    return nn.Sequential(linear) if group.scale is None else nn.Sequential(nn.BatchNorm1d(width), linear)


def torch_sgd(module: nn.Sequential, rate: float, decay: float) -> torch.optim.SGD:
    groups = [
        {"params": list(layer.parameters()), "weight_decay": 0.0 if isinstance(layer, nn.BatchNorm1d) else decay}
        for layer in module
    ]
    return torch.optim.SGD(groups, lr=rate, momentum=0.9, nesterov=True)


def random_batches(number: int, size: int, width: int, classes: int) -> list[tuple[Tensor, Tensor]]:
    random = torch.Generator().manual_seed(3)
    scale, shift = torch.rand(width, generator=random) * 3, torch.randn(width, generator=random)
    return [
        (torch.randn(size, width, generator=random) * scale + shift, torch.randint(classes, (size,), generator=random))
        for _ in range(number)
    ]


@pytest.mark.parametrize("logits_in_memory", [2**26, 60])
def test_stacked_heads_are_separate_modules_trained_by_torch(monkeypatch: pytest.MonkeyPatch, logits_in_memory: int) -> None:
    """Also where a batch is worked off in several portions."""
    monkeypatch.setattr(heads_module, "LOGITS_IN_MEMORY", logits_in_memory)
    rates, decays = all_pairs((0.3, 0.03), (0.0, 0.1))
    stacked = StackedHeads(6, 4, 5, Sweep(rates, decays, "sgd"), seed=0, device=CPU)
    modules = [[module_of(group, i) for i in range(4)] for group in stacked.groups.values()]
    optimizers = [[torch_sgd(m, *pair) for m, pair in zip(ms, zip(rates, decays, strict=True), strict=True)] for ms in modules]
    batches = random_batches(6, 20, 24, 5)
    for features, labels in batches:
        stacked.step(features, labels, 1.0)
        for (name, _), ms, os in zip(stacked.groups, modules, optimizers, strict=True):
            for module, optimizer in zip(ms, os, strict=True):
                optimizer.zero_grad()
                inputs = features[:, -6:] if name == "last" else features
                nn.functional.cross_entropy(module(inputs), labels).backward()
                optimizer.step()
    for module in (module for ms in modules for module in ms if isinstance(module[0], nn.BatchNorm1d)):
        # torch's running statistics without what is left of their start, mean 0 and variance 1
        module[0].running_mean /= 1 - 0.9**6
        module[0].running_var -= 0.9**6
        module[0].running_var /= 1 - 0.9**6
    features = batches[0][0] * 1.3
    scores = stacked.logits(features)  # [B, 4 groups x 4 settings, C]
    assert scores.shape == (20, 16, 5) and len(stacked.names()) == 16
    flat = [(name, m.eval()) for (name, _), ms in zip(stacked.groups, modules, strict=True) for m in ms]
    with torch.no_grad():
        for index, (name, module) in enumerate(flat):
            expected = module(features[:, -6:] if name == "last" else features)
            torch.testing.assert_close(scores[:, index], expected, rtol=1e-3, atol=1e-4)


def test_heads_start_as_torch_draws_linear_layers() -> None:
    group = HeadGroup(50, 10, 64, is_normed=False, generator=torch.Generator().manual_seed(0))
    for values in (group.weight, group.bias):
        assert values.abs().max() <= 1 / 8
        assert float(values.std()) == pytest.approx(1 / 8 / math.sqrt(3), rel=0.06)  # of a uniform distribution


def test_a_head_whose_rate_is_too_high_touches_no_other() -> None:
    """A linear head has a bounded gradient, so that only a rate near the largest float makes it infinite."""
    batches = random_batches(30, 20, 24, 5)
    scores = []
    for second in (0.01, 3e38):
        stacked = StackedHeads(6, 4, 5, Sweep((0.1, second), (0.0, 0.0), "sgd"), seed=0, device=CPU)
        for features, labels in batches:
            stacked.step(features, labels, 1.0)
        scores.append(stacked.logits(batches[0][0]))
    assert torch.equal(scores[0][:, ::2], scores[1][:, ::2]) and torch.isfinite(scores[0]).all()
    assert not torch.isfinite(scores[1][:, 1::2]).all(dim=2).any()


@pytest.mark.parametrize(("optimizer", "trust"), [("sgd", 0.0), ("lars", 0.001)])
def test_weight_and_bias_are_decayed_and_batch_norm_is_not(optimizer: Any, trust: float) -> None:
    """Without a gradient nothing else moves them; LARS shrinks a matrix by rate x trust, whatever the decay."""
    rate, decay = 0.2, 0.5
    group = HeadGroup(1, 4, 6, is_normed=True, generator=torch.Generator().manual_seed(0))
    before = [value.clone() for value in group.parameters()]
    zero = [torch.zeros_like(value) for value in before]
    heads_module._optimizer(group, Sweep((rate,), (decay,), optimizer), CPU).step(zero, 1.0)
    momentum = 1.9 if optimizer == "sgd" else 1.0  # Nesterov's first step is that of the gradient plus 0.9 of itself
    of_weight = rate * trust if trust else rate * decay * momentum
    expected = [1 - of_weight, 1 - rate * decay * momentum, 1.0, 1.0]
    for value, start, shrunk in zip(group.parameters(), before, expected, strict=True):
        torch.testing.assert_close(value, start * shrunk)


def test_batch_norm_forgets_how_its_statistics_started() -> None:
    """After few steps too: on batches that are all alike the test view is normalized as the training view."""
    statistics = heads_module.BatchStatistics(3, CPU)
    batch = torch.tensor([[1.0, 50.0, 0.02], [3.0, 52.0, 0.04]])
    for _ in range(2):
        statistics.train(batch)
    # unbiased variances 2, 2 and 2e-4
    expected = (batch - torch.tensor([2.0, 51.0, 0.03])) / (torch.tensor([2.0, 2.0, 2e-4]) + 1e-5).sqrt()
    torch.testing.assert_close(statistics.test(batch), expected, rtol=1e-4, atol=1e-4)


def test_the_estimate_of_memory_counts_what_is_held() -> None:
    """iNat18 on a ViT-H, two matrices of 1280 and two of 5120 columns: at least weight, momentum and the largest gradient."""
    least = 4 * 8142 * (2 * 2 * (1280 + 5120) + 5120)
    assert least < needed_bytes(1280, 4, 8142, 1, 256) < 2 * least
    assert needed_bytes(1280, 4, 8142, 8, 256) > 8 * least


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("optimizer", ["sgd", "lars"])
def test_a_step_never_waits_for_the_device(optimizer: Any) -> None:
    """And ends where the CPU does."""
    scores = []
    for device in (CPU, torch.device("cuda")):
        stacked = StackedHeads(6, 4, 5, Sweep((0.3, 0.03), (0.0, 0.1), optimizer), seed=0, device=device)
        batches = [(features.to(device), labels.to(device)) for features, labels in random_batches(6, 20, 24, 5)]
        if device.type == "cuda":
            torch.cuda.set_sync_debug_mode("error")
        try:
            for features, labels in batches:
                stacked.step(features, labels, 1.0)
        finally:
            if device.type == "cuda":
                torch.cuda.set_sync_debug_mode("default")
        scores.append(stacked.logits(batches[0][0]).cpu())
    torch.testing.assert_close(scores[0], scores[1], rtol=1e-3, atol=1e-4)


# ------------------------------------------------------------------------------------------------------ recipes and plan


@pytest.mark.parametrize(
    ("name", "epochs", "milestones", "batch_size", "optimizer"),
    [
        ("imagenet1k", 50, (15, 30, 45), 16384, "lars"),
        ("places205", 14, (4, 8, 12), 256, "sgd"),
        ("inat18", 84, (24, 48, 72), 256, "sgd"),
        ("cifar100", 28, (8, 16, 24), 256, "sgd"),
        ("clevr_count", 50, (), 256, "sgd"),
        ("clevr_dist", 100, (), 256, "sgd"),
    ],
)
def test_recipes_are_the_published_ones(
    name: str, epochs: int, milestones: tuple[int, ...], batch_size: int, optimizer: str
) -> None:
    recipe = LINEAR_RECIPES[name]
    assert (recipe.epochs, recipe.milestones, recipe.batch_size, recipe.optimizer) == (
        epochs,
        milestones,
        batch_size,
        optimizer,
    )
    if name == "imagenet1k":
        # 0.1 and 0.01 of the files, 0.05, 0.01 and 0.001 of the paper, each for 256 images
        assert set(recipe.learning_rates) == {round(rate * 16384 / 256, 6) for rate in (0.1, 0.05, 0.01, 0.001)}
        assert recipe.weight_decays == (5e-4, 0.0)
    else:
        assert recipe.learning_rates == (0.01,) and recipe.weight_decays == (5e-4,)
    assert recipe.augmentation == ("squash_flip" if name.startswith("clevr") else "crop_flip")


def test_a_recipe_is_found_by_benchmark_or_by_its_task() -> None:
    assert find_recipe("cifar10", "Classification") is LINEAR_RECIPES["cifar100"]
    assert find_recipe("clevr", "Clevr/Count") is LINEAR_RECIPES["clevr_count"]
    assert find_recipe("clevr", "Clevr/Dist") is LINEAR_RECIPES["clevr_dist"]
    assert find_recipe("", "Classification") is find_recipe("", "Clevr/Dist") is OWN_DATA_RECIPE


def test_rates_of_a_recipe_follow_the_batch_and_those_of_the_settings_do_not() -> None:
    recipe = LinearRecipe(epochs=10, milestones=(4,), batch_size=256, learning_rates=(0.4, 0.04), weight_decays=(0.0, 1e-3))
    plan = make_training_plan(FullLinearSettings(), recipe, 64, "crop_flip")  # 64 images: a batch cannot be larger
    assert plan.batch_size == 64 and plan.augmentation == "crop_flip" and plan.epochs == 10
    assert plan.sweep.rates == pytest.approx((0.1, 0.1, 0.01, 0.01)) and plan.sweep.weight_decays == (0.0, 1e-3, 0.0, 1e-3)
    given = FullLinearSettings(
        batch_size=32, learning_rates=(0.7,), weight_decays=(0.2,), optimizer="lars", augmentation="none"
    )
    assert make_training_plan(given, recipe, 64, "crop_flip").sweep == Sweep((0.7,), (0.2,), "lars")
    assert make_training_plan(given, recipe, 64, "crop_flip").augmentation == "none"


def test_rates_fall_at_milestones_or_along_a_cosine() -> None:
    def factors(recipe: LinearRecipe, epochs: int | None = None) -> list[float]:
        plan = make_training_plan(FullLinearSettings(epochs=epochs), recipe, 1000, "crop_flip")
        return [plan.factor(epoch) for epoch in range(plan.epochs)]

    steps = factors(LINEAR_RECIPES["places205"])
    assert steps == pytest.approx([1.0] * 4 + [0.1] * 4 + [0.01] * 4 + [0.001] * 2)
    assert factors(LINEAR_RECIPES["places205"], 7) == pytest.approx([1.0] * 2 + [0.1] * 2 + [0.01] * 2 + [0.001])
    curve = factors(LINEAR_RECIPES["clevr_count"])
    assert curve[0] == 1.0 and curve[25] == pytest.approx(0.505)
    assert curve == pytest.approx([0.01 + 0.99 * (1 + math.cos(math.pi * epoch / 50)) / 2 for epoch in range(50)])


# --------------------------------------------------------------------------------------------------- features and batches


@pytest.mark.parametrize("pooling", ["average", "class_token"])
def test_features_are_pooled_layers_side_by_side(pooling: Any) -> None:
    encoder, config = color_probe().encoder, replace(CONFIG, pooling=pooling)
    images = torch.randint(0, 256, (5, 3, 16, 16), dtype=torch.uint8)
    with torch.no_grad():
        layers = encoder.last_layers(normalize(images, config.pixel_mean, config.pixel_std), 4)
    expected = [layer.patches.mean(dim=1) if pooling == "average" else layer.class_token for layer in layers]
    features = EncoderFeatures(encoder, config, CPU, "fp32").extract(images)
    torch.testing.assert_close(features, torch.cat([value for value in expected if value is not None], dim=1))


def test_a_batch_is_gathered_over_several_forwards() -> None:
    probe = color_probe(train=23)
    seen = []
    for piece in (4, 9, 64):
        training = training_on(
            probe,
            np.arange(23),
            replace(SETTINGS, feature_batch_size=piece),
            epochs=1,
            batch_size=10,
            augmentation="crop_flip",
            interpolation="bilinear",
        )
        batches = list(feature_batches(training, EncoderFeatures(probe.encoder, CONFIG, CPU, "fp32"), epoch=2))
        assert [len(labels) for _, labels in batches] == [10, 10]  # three images are left out
        seen.append(torch.cat([features for features, _ in batches]))
        torch.testing.assert_close(seen[0], seen[-1])
    assert len(seen[0].unique(dim=0)) == 20


# ----------------------------------------------------------------------------------------------------------- known answers


def number(results: tuple[ProtocolResult, ...], index: int = 0) -> float:
    result = results[index]
    (chosen,) = [head for head in result.heads if head.chosen]
    assert chosen.test_accuracy == result.accuracy
    assert result.standard_error == pytest.approx(math.sqrt(result.accuracy * (1 - result.accuracy) / 30))
    return result.accuracy


@pytest.mark.parametrize("optimizer", ["sgd", "lars"])
def test_colors_are_told_apart(optimizer: Any) -> None:
    full = replace(FULL, optimizer=optimizer, learning_rates=(1.0, 0.1) if optimizer == "sgd" else (60.0,), epochs=12)
    results = evaluate_linear_full(color_probe(), replace(SETTINGS, selection="both", linear_full=full))
    assert [result.selection for result in results] == ["held_out", "paper"]
    assert number(results) == number(results, 1) == 1.0
    assert {(head.features, head.head) for head in results[0].heads} == {
        (features, head) for features in ("last", "last_four") for head in ("linear", "batch_norm")
    }
    assert all(head.held_out_accuracy is not None for head in results[0].heads)
    assert all(head.held_out_accuracy is None for head in results[1].heads)


def test_labels_that_are_noise_are_guessed() -> None:
    accuracy = number(evaluate_linear_full(color_probe(noise=True), SETTINGS))
    assert abs(accuracy - 1 / 3) < 3 * math.sqrt(1 / 3 * 2 / 3 / 30)


@pytest.mark.parametrize("augmentation", ["crop_flip", "center_flip", "squash_flip"])
def test_every_augmentation_keeps_the_color(augmentation: Any) -> None:
    full = replace(FULL, augmentation=augmentation, epochs=10)
    assert number(evaluate_linear_full(color_probe(), replace(SETTINGS, linear_full=full))) == 1.0


def test_top_five_is_given_where_there_are_more_than_five_classes() -> None:
    extra = evaluate_linear_full(color_probe(8, 80, 30), SETTINGS)[0].extra
    assert extra["top5"] == 1.0 and "top5" not in evaluate_linear_full(color_probe(), SETTINGS)[0].extra


def test_the_same_seed_gives_the_same_heads_and_another_seed_others() -> None:
    def accuracies(seed: int) -> list[float]:
        short = replace(FULL, epochs=1, learning_rates=(0.03, 0.01))
        result = evaluate_linear_full(color_probe(9), replace(SETTINGS, seed=seed, linear_full=short))[0]
        return [head.test_accuracy for head in result.heads]

    assert accuracies(0) == accuracies(0) != accuracies(1)


def test_a_rate_that_is_too_high_is_named_and_never_chosen() -> None:
    full = replace(FULL, learning_rates=(3e38, 0.5), epochs=8)
    result = evaluate_linear_full(color_probe(), replace(SETTINGS, linear_full=full))[0]
    failed = [head for head in result.heads if "failed" in head.setting]
    assert len(failed) == 4 and all(head.setting.startswith("lr 3e+38") and head.test_accuracy == 0.0 for head in failed)
    assert result.accuracy == 1.0 and not any(head.chosen for head in failed)
    with pytest.raises(ValueError, match=r"linear_full\.learning_rates: .* smaller ones than lr 3e\+38"):
        evaluate_linear_full(color_probe(), replace(SETTINGS, linear_full=replace(full, learning_rates=(3e38,))))


def test_a_batch_larger_than_the_data_is_said(capsys: pytest.CaptureFixture[str]) -> None:
    evaluate_linear_full(color_probe(), replace(SETTINGS, linear_full=replace(FULL, batch_size=512, epochs=1)))
    assert "on all 54 images at once, because there are fewer than a batch of 512" in capsys.readouterr().err


def test_heads_that_do_not_fit_are_refused_with_their_size(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(linear_full, "memory_limit", lambda device: 10_000)
    with pytest.raises(ValueError, match=r"8 heads of 3 classes need about [\d.,]+ [kM]B .* give fewer of both"):
        evaluate_linear_full(color_probe(), SETTINGS)
