"""VICReg and SIGReg: their formulas in numpy, what their gradients do, processes, and their place in I-JEPA's loss."""

import cmath
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from openjepa.checks.methods import without_effect
from openjepa.engine import distributed
from openjepa.masks.sampler import TokenShape
from openjepa.methods.base import Surroundings
from openjepa.methods.ijepa import IJepa
from openjepa.methods.regularizers import (
    TERMS,
    PooledFeatures,
    Regularizer,
    epps_pulley,
    pooled_patches,
    variance_and_covariance,
)
from openjepa.schedules import Progress
from openjepa.settings.methods import IJepaSettings
from openjepa.settings.models import ModelSettings
from openjepa.types import Batch, BlockMasks, ViewSpec
from tests.helpers.ranks import on_ranks

START = Progress(step=0, total_steps=100, steps_per_epoch=10)
SETTINGS = IJepaSettings(predictor_width=24, predictor_depth=2)


def build(settings: IJepaSettings = SETTINGS) -> IJepa:
    torch.manual_seed(0)
    model, view, shape = ModelSettings(size="test", patch_size=4), ViewSpec(size=(16, 20)), TokenShape(5, 4, 1.0, 3)
    return IJepa(settings, Surroundings(model, view, (0.5, 0.5, 0.5), (0.2, 0.2, 0.2), (shape,)))


def make_batch() -> Batch:
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(1, 4, 3, 16, 20, generator=generator)
    order = torch.stack([torch.randperm(20, generator=generator) for _ in range(4)])
    return Batch(torch.arange(4), {"image": images}, {"image": BlockMasks(order[:, :5], order[:, 5:17].view(4, 3, 4), (4, 5))})


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def directions(width: int, number: int) -> Tensor:
    return F.normalize(random(width, number, seed=9), dim=0)


def slow_spread(rows: np.ndarray) -> tuple[float, float]:
    """The variance and the covariance term of VICReg, equations 1 to 4 of its paper, one pair of dimensions at a time."""
    number, width = rows.shape
    mean = [sum(row[j] for row in rows) / number for j in range(width)]

    def covariance(i: int, j: int) -> float:
        return float(sum((row[i] - mean[i]) * (row[j] - mean[j]) for row in rows) / (number - 1))

    hinges = [max(0.0, 1 - math.sqrt(covariance(j, j) + 1e-4)) for j in range(width)]
    pairs = [covariance(i, j) ** 2 for i in range(width) for j in range(width) if i != j]
    return sum(hinges) / width, sum(pairs) / width


def slow_statistic(values: list[float], points: int) -> float:
    """The Epps-Pulley statistic by the trapezoidal rule over all of -5 to 5."""
    places = np.linspace(-5, 5, points)
    heights = []
    for t in places:
        empirical = sum(cmath.exp(1j * t * value) for value in values) / len(values)
        heights.append(abs(empirical - math.exp(-t * t / 2)) ** 2 * math.exp(-t * t / 2))
    step = places[1] - places[0]
    return float(len(values) * step * (sum(heights) - (heights[0] + heights[-1]) / 2))


def test_vicreg_is_its_equations() -> None:
    rows = random(7, 4) @ torch.diag(torch.tensor([0.2, 0.7, 1.5, 0.01])) + random(7, 1, seed=1) + 3
    found, (variance, covariance) = variance_and_covariance(rows), slow_spread(rows.double().numpy())
    assert found.variance.item() == pytest.approx(variance, rel=1e-5) and variance > 0.05
    assert found.covariance.item() == pytest.approx(covariance, rel=1e-5) and covariance > 0.1


@pytest.mark.parametrize("points", [3, 17])
def test_the_statistic_is_its_integral(points: int) -> None:
    rows, along = 0.6 * random(9, 5) + 0.3, directions(5, 4)
    expected = [slow_statistic((rows @ along)[:, number].tolist(), points) for number in range(4)]
    assert epps_pulley(rows, along, points).tolist() == pytest.approx(expected, rel=1e-4)


def test_the_statistic_tells_gaussians_from_others_whatever_their_number() -> None:
    along = directions(6, 64)
    few, many, shifted, flat, small = (
        float(epps_pulley(rows, along, 17).mean())
        for rows in (random(200, 6), random(2000, 6), random(200, 6) + 1, torch.zeros(200, 6), 0.2 * random(200, 6))
    )
    mean = math.sqrt(2 * math.pi) * (1 - 3**-0.5)  # the integral of (1 - |phi|^2) times the weight
    assert few == pytest.approx(mean, rel=0.3) and many == pytest.approx(mean, rel=0.3)
    assert shifted > 20 * few and small > 20 * few and flat > small


@pytest.mark.parametrize("name", TERMS)
def test_the_gradient_pushes_a_collapsed_batch_apart(name: str) -> None:
    rows = (0.05 * random(16, 6) + random(1, 6, seed=1)).requires_grad_()
    settings = replace(SETTINGS, regularizer=name, sigreg_slices=64)  # type: ignore[arg-type]
    before = rows.detach().std(dim=0).mean()
    for _ in range(20):
        (gradient,) = torch.autograd.grad(sum(TERMS[name](PooledFeatures(rows, rows, rows.detach()), settings).values()), rows)
        rows = (rows - 0.1 * gradient / gradient.norm()).detach().requires_grad_()
    assert rows.std(dim=0).mean() > 1.5 * before


def test_directions_are_the_step_s_and_those_of_the_next_are_others() -> None:
    settings = replace(SETTINGS, regularizer="sigreg", sigreg_slices=3)
    features = PooledFeatures(random(8, 5), random(8, 5), random(8, 5))

    def drawn(seed: int) -> float:
        torch.manual_seed(seed)
        return TERMS["sigreg"](features, settings)["gaussian"].item()

    assert drawn(1) == drawn(1) != drawn(2)
    torch.manual_seed(1)
    torch.rand(7)  # as many as the target blocks of a process need
    assert TERMS["sigreg"](features, settings)["gaussian"].item() == drawn(1)


def test_padding_is_not_pooled() -> None:
    patches, valid = random(2, 3, 4), torch.tensor([[True, True, False], [True, True, True]])
    torch.testing.assert_close(pooled_patches(patches, valid), torch.stack([patches[0, :2].mean(0), patches[1].mean(0)]))
    torch.testing.assert_close(pooled_patches(patches, None), patches.mean(dim=1))


# ------------------------------------------------------------------------------------------------------- in I-JEPA's loss

VICREG = replace(SETTINGS, regularizer="vicreg")
SIGREG = replace(SETTINGS, regularizer="sigreg", sigreg_slices=32)


@pytest.mark.parametrize(
    ("settings", "names"),
    [
        (VICREG, {"variance", "covariance", "invariance"}),
        (SIGREG, {"gaussian"}),
        (replace(SIGREG, regularizer_width=8), {"gaussian"}),
    ],
)
def test_terms_and_distance_add_up_to_the_loss(settings: IJepaSettings, names: set[str]) -> None:
    plain, method, batch = build(), build(settings), make_batch()
    for name, value in plain.state_dict().items():
        assert torch.equal(value, method.state_dict()[name]), "the projection's weights are drawn last"
    torch.manual_seed(4)
    output = method(batch, START)
    assert set(output.parts) == {"targets"} | names
    assert output.parts["targets"].item() == plain(batch, START).total.item()
    assert output.total.item() == pytest.approx(sum(part.item() for part in output.parts.values()), rel=1e-6)
    assert not any(part.requires_grad for part in output.parts.values())
    output.total.backward()
    plain(batch, START).total.backward()
    assert all(value.grad is not None for value in method.parameters() if value.requires_grad)
    first, second = (model.context_encoder.blocks[0].attn.qkv.weight.grad for model in (plain, method))  # type: ignore[union-attr]
    assert not torch.equal(first, second)  # type: ignore[arg-type]
    assert [term.synchronized for term in method.coupled_terms()] == [True] and plain.coupled_terms() == ()
    assert method.probe(batch, START).loss.item() == pytest.approx(output.parts["targets"].item(), rel=1e-6)


def test_vicreg_sees_means_over_patches() -> None:
    settings = replace(VICREG, vicreg_weight=0.5, vicreg_variance=2.0, vicreg_covariance=3.0, vicreg_invariance=5.0)
    context, predictions, targets = random(4, 3, 6), random(4, 2, 3, 6, seed=1), random(4, 2, 3, 6, seed=2)
    found = Regularizer(settings, 6)(context, None, predictions, targets)
    variance, covariance = slow_spread(context.mean(dim=1).double().numpy())
    means = (part.flatten(1, 2).mean(dim=1).numpy() for part in (predictions, targets))
    invariance = float(np.mean([(a - b) ** 2 for a, b in zip(*means, strict=True)]))
    expected = {"variance": variance, "covariance": 1.5 * covariance, "invariance": 2.5 * invariance}
    assert {name: value.item() for name, value in found.items()} == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize(("settings", "golden"), [(VICREG, [0.502521, 0.499978]), (SIGREG, [0.647232, 0.643899])])
def test_golden_steps(settings: IJepaSettings, golden: list[float]) -> None:
    """Losses before and after a step of gradient descent on the same images, masks and directions."""
    method, batch, losses = build(settings), make_batch(), []
    for _ in range(2):
        torch.manual_seed(4)
        loss = method(batch, START).total
        losses.append(loss.item())
        method.zero_grad()
        loss.backward()
        with torch.no_grad():
            for value in method.parameters():
                if value.grad is not None:
                    value.sub_(0.01 * value.grad)
    assert losses == pytest.approx(golden, rel=1e-4)


def test_settings_without_effect_are_told() -> None:
    assert without_effect(replace(SETTINGS, sigreg_slices=3, regularizer_width=4, vicreg_weight=1.0)) == [
        "method.regularizer_width=4 has no effect with method.regularizer=none",
        "method.vicreg_weight=1.0 has no effect with method.regularizer=none",
        "method.sigreg_slices=3 has no effect with method.regularizer=none",
    ]
    assert without_effect(replace(VICREG, vicreg_weight=1.0, regularizer_width=4)) == []


# ----------------------------------------------------------------------------------------------------------- processes


def of_all_terms(rows: Tensor) -> dict[str, tuple[float, Tensor]]:
    """Each term and its gradient, which is averaged over the processes, for this process's share of `rows`."""
    along, found = directions(rows.shape[1], 8), {}
    terms: dict[str, Callable[[Tensor], Tensor]] = {
        "variance": lambda own: variance_and_covariance(own).variance,
        "covariance": lambda own: variance_and_covariance(own).covariance,
        "gaussian": lambda own: epps_pulley(own, along, 17).mean(),
    }
    for name, term in terms.items():
        weights = torch.eye(rows.shape[1]).requires_grad_()
        value = term(rows[distributed.rank() :: distributed.world_size()] @ weights)
        value.backward()
        assert weights.grad is not None
        found[name] = (value.item(), distributed.mean_over_ranks(weights.grad))
    return found


def test_processes_compare_all_images(tmp_path: Path) -> None:
    rows = 0.5 * random(12, 5) + 2
    single = of_all_terms(rows)
    for found in on_ranks(2, tmp_path, of_all_terms, rows):
        for name, (value, gradient) in found.items():
            assert value == pytest.approx(single[name][0], rel=1e-5)
            torch.testing.assert_close(gradient, single[name][1], rtol=1e-5, atol=1e-6)
