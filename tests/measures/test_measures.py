"""Measures against slow restatements of their definitions."""

import math

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from openjepa.measures import features
from openjepa.measures.features import (
    Accuracy,
    alpha_req,
    collapse_statistics,
    knn_accuracy,
    knn_predictions,
    lidar,
    rankme,
    top1,
)
from openjepa.measures.positions import trivial_losses
from openjepa.measures.verdicts import CollapseStatistics, judged


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def test_rankme_of_known_spectra() -> None:
    assert rankme(torch.eye(7)) == pytest.approx(7, rel=1e-5)
    assert rankme(torch.ones(10, 4)) == pytest.approx(1, rel=1e-4)
    assert rankme(torch.zeros(5, 3)) == 0
    assert math.isnan(rankme(torch.full((5, 3), float("nan"))))


def test_rankme_is_computed_in_float64() -> None:
    features = torch.diag(torch.tensor([1.0, 1e-6, 1e-6]))
    assert rankme(features, eps=0.0) == pytest.approx(rankme(features.double(), eps=0.0), rel=1e-9)


@pytest.mark.parametrize("alpha", [0.5, 1.0, 2.0])
def test_alpha_req_finds_the_exponent_of_a_power_law(alpha: float) -> None:
    directions = torch.linalg.qr(random(300, 120).double() - random(300, 120).double().mean(dim=0)).Q
    features = directions * torch.arange(1, 121).double() ** (-alpha / 2) @ torch.linalg.qr(random(120, 120, seed=1).double()).Q
    for weighted in (True, False):
        assert alpha_req(features + 3, weighted=weighted) == pytest.approx(alpha, rel=1e-9)
    assert alpha_req(7 * features) == pytest.approx(alpha, rel=1e-9)


def test_alpha_req_sees_only_the_ranks_it_is_given() -> None:
    spectrum = torch.arange(1, 41).double() ** -0.5
    spectrum[:3], spectrum[30:] = 5.0, 1e-3
    directions = torch.linalg.qr(random(90, 40).double() - random(90, 40).double().mean(dim=0)).Q
    assert alpha_req(directions * spectrum, 4, 30) == pytest.approx(1, rel=1e-9)
    assert alpha_req(directions * spectrum, 1, 40) > 1.5


def test_alpha_req_of_what_has_no_spectrum() -> None:
    assert math.isnan(alpha_req(torch.zeros(9, 7))) and math.isnan(alpha_req(torch.full((9, 7), float("nan"))))
    assert math.isnan(alpha_req(torch.full((500, 40), 0.1) * random(1, 40)))  # all images alike
    assert math.isnan(alpha_req(random(5, 30))), "4 ranks: none to fit from the fourth on"
    with pytest.raises(ValueError, match="first_rank=0 must be at least 1"):
        alpha_req(random(5, 5), 0)


def slow_lidar(groups: Tensor, delta: float) -> float:
    """Word for word: both scatters as sums of outer products, the root of the inverse, the spectrum of the product."""
    n, q, width = groups.shape
    means = [group.mean(dim=0) for group in groups]
    grand = groups.flatten(0, 1).mean(dim=0)
    between = torch.zeros(width, width, dtype=torch.float64)
    within = delta * torch.eye(width, dtype=torch.float64)
    for mean, group in zip(means, groups, strict=True):
        between += torch.outer(mean - grand, mean - grand) / (n - 1)
        for row in group:
            within += torch.outer(row - mean, row - mean) / (n * (q - 1))
    values, vectors = torch.linalg.eigh(within)
    root = vectors @ torch.diag(values**-0.5) @ vectors.T
    spectrum = torch.linalg.eigvalsh(root @ between @ root).clamp(min=0)
    shares = spectrum / spectrum.sum() + 1e-7
    return float(torch.exp(-(shares * shares.log()).sum()))


@pytest.mark.parametrize(("n", "q", "width"), [(30, 4, 6), (5, 3, 8), (2, 2, 1)])
@pytest.mark.parametrize("delta", [1e-4, 0.5])
def test_lidar_is_its_definition(n: int, q: int, width: int, delta: float) -> None:
    groups = random(n, 1, width).double() * torch.arange(1, width + 1) + 0.3 * random(n, q, width, seed=1).double() + 2
    assert lidar(groups, delta) == pytest.approx(slow_lidar(groups, delta), rel=1e-8)


def test_lidar_counts_the_directions_that_tell_images_apart() -> None:
    """RankMe sees all 10 directions; only 3 of them are the image's, the others change from view to view."""
    noise = random(400, 10, 10, seed=1).double()
    images = torch.linalg.qr(random(400, 3).double() - random(400, 3).double().mean(dim=0)).Q * 400**0.5
    groups = noise.clone()
    groups[..., :3] = images[:, None] + 0.01 * noise[..., :3]
    assert lidar(groups) == pytest.approx(3, rel=0.01) and rankme(groups.flatten(0, 1)) > 9.9
    assert lidar(groups.flip(1)) == pytest.approx(lidar(groups), rel=1e-9)


def test_lidar_of_what_has_no_classes() -> None:
    assert lidar(torch.ones(4, 3, 5)) == 0
    assert math.isnan(lidar(torch.full((4, 3, 5), float("inf"))))
    for shape in ((1, 3, 5), (3, 1, 5)):
        with pytest.raises(ValueError, match="at least 2 images with 2 views each; got"):
            lidar(torch.ones(shape))


def test_lidar_of_bf16_is_computed_in_float64() -> None:
    groups = random(20, 4, 6).bfloat16()
    assert lidar(groups) == lidar(groups.double())


def test_accuracy_and_its_standard_error() -> None:
    accuracy = top1(torch.tensor([0, 1, 2, 2]), torch.tensor([0, 1, 2, 0]))
    assert accuracy == Accuracy(0.75, 4)
    assert accuracy.standard_error == pytest.approx(math.sqrt(0.75 * 0.25 / 4))
    hits = torch.rand(4000, 400, generator=torch.Generator().manual_seed(0), dtype=torch.float64) < 0.3
    assert hits.double().mean(dim=1).std() == pytest.approx(Accuracy(0.3, 400).standard_error, rel=0.05)
    with pytest.raises(ValueError, match="empty"):
        top1(torch.tensor([]), torch.tensor([]))


def slow_neighbors(train: Tensor, labels: Tensor, test: Tensor, k: int, temperature: float) -> list[int]:
    answers = []
    for query in test:
        cosines = [float(query @ key / (query.norm() * key.norm())) for key in train]
        nearest = sorted(range(len(train)), key=lambda i: -cosines[i])[:k]
        votes = [0.0] * (int(labels.max()) + 1)
        for i in nearest:
            votes[int(labels[i])] += math.exp(cosines[i] / temperature)
        answers.append(votes.index(max(votes)))
    return answers


def test_neighbors_vote_as_in_the_definition() -> None:
    train, test = random(40, 6), random(15, 6, seed=1)
    labels = torch.arange(40) % 5
    found = knn_predictions(train, labels, test, (1, 7, 30, 400), 0.07, chunk_size=4)
    for k, predictions in found.items():
        assert predictions.tolist() == slow_neighbors(train, labels, test, min(k, 40), 0.07), k


@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize("side", ["train", "test"])
def test_neighbors_of_what_is_not_finite_are_an_error(side: str, value: float, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(features, "KEY_CHUNK", 8)  # five chunks of keys
    sides = {"train": random(40, 6), "test": random(15, 6, seed=1)}
    sides[side][13, 2] = value
    with pytest.raises(ValueError, match="features that are finite"):
        knn_predictions(sides["train"], torch.arange(40) % 5, sides["test"], (1, 7), chunk_size=4)


def test_an_image_is_its_own_nearest_neighbor() -> None:
    features, labels = random(30, 8), torch.arange(30) % 3
    assert knn_accuracy(features, labels, 5 * features, labels, (1,))[1].value == 1


def test_collapse_statistics_are_their_definitions() -> None:
    features = random(12, 5) + 1
    statistics = collapse_statistics(features)
    pairs = [functional.cosine_similarity(features[i], features[j], dim=0) for i in range(12) for j in range(12) if i != j]
    assert statistics.cosine == pytest.approx(float(torch.stack(pairs).mean()), abs=1e-6)
    assert statistics.feature_std == pytest.approx(float(features.std(dim=0).mean()), rel=1e-6)
    assert statistics.rankme == rankme(features)
    same = collapse_statistics(torch.ones(8, 3))
    assert (same.feature_std, same.cosine) == pytest.approx((0, 1), abs=1e-6)


def test_trivial_predictors() -> None:
    targets = random(3, 2, 4, 5)
    positions = torch.randint(0, 6, (3, 2, 4), generator=torch.Generator().manual_seed(1))
    losses = trivial_losses(targets, positions, lambda prediction, target: functional.mse_loss(prediction, target))
    rows = list(zip(positions.flatten().tolist(), targets.flatten(0, 2), strict=True))
    mean = torch.stack([row for _, row in rows]).mean(dim=0)
    by_position = {p: torch.stack([row for q, row in rows if q == p]).mean(dim=0) for p, _ in rows}
    assert losses.mean_target == pytest.approx(float(torch.stack([(row - mean) ** 2 for _, row in rows]).mean()), rel=1e-5)
    expected = torch.stack([(row - by_position[p]) ** 2 for p, row in rows]).mean()
    assert losses.position_mean == pytest.approx(float(expected), rel=1e-5)


def test_position_mean_is_exact_where_targets_depend_on_the_position_only() -> None:
    positions = torch.arange(6).repeat(4, 2, 1)
    targets = random(6, 3)[positions]
    losses = trivial_losses(targets, positions, functional.mse_loss)
    assert losses.position_mean == pytest.approx(0, abs=1e-10) and losses.mean_target > 0.1


def looks(stds: list[float], cosines: list[float], ranks: list[float]) -> list[CollapseStatistics]:
    return [CollapseStatistics(*values) for values in zip(stds, cosines, ranks, strict=True)]


def test_healthy_histories_get_no_verdict() -> None:
    learning = looks([0.13, 0.11, 0.16, 0.3, 0.5], [0.97, 0.98, 0.96, 0.7, 0.4], [3.2, 2.9, 4.0, 20, 60])
    dipping = looks([0.13, 0.012, 0.05, 0.2], [0.97, 0.9985, 0.99, 0.9], [3.2, 1.3, 2.0, 8])
    for history in (learning, dipping):
        assert all(not judged(history[:length]).collapsed for length in range(len(history) + 1))


@pytest.mark.parametrize(
    ("history", "word"),
    [
        (looks([0.13, 0.05, 0.01, 0.008, 1e-4], [0.97] * 5, [3.0] * 5), "standard deviation"),
        (looks([0.13] * 5, [0.6, 0.9, 0.97, 0.99, 0.9999], [3.0] * 5), "cosine"),
        (looks([0.13] * 5, [0.6] * 5, [40, 20, 3.9, 2.0, 1.02]), "rank"),
    ],
)
def test_a_collapsing_history_is_told_before_its_end(history: list[CollapseStatistics], word: str) -> None:
    assert judged(history[:2]).collapsed is None
    early = judged(history[:4]).words
    assert early is not None and word in early and "collapsing" in early


def test_a_start_that_had_collapsed_did_not_rise() -> None:
    """As weights that a run begins from may have."""
    told = judged(looks([0.13] * 4, [0.99998, 0.99997, 0.99996, 0.99996], [1.02] * 4)).words
    assert told is not None and "the mean cosine between images stays at 1.0000" in told


def test_features_that_shrink_to_one_point_are_told() -> None:
    features = random(64, 16) + 2
    history = [collapse_statistics(2 + (features - 2) * 10.0**-step) for step in range(5)]
    told = [judged(history[: length + 1]).collapsed is True for length in range(5)]
    assert told == [False, False, True, True, True]
