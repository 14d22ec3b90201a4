"""Logistic regression: the optimum is scikit-learn's, derivatives are autograd's, rounding changes the path and not the end."""

import itertools
import math
import warnings
from dataclasses import replace

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from openjepa.evaluation.probes import logistic as newton
from openjepa.evaluation.probes.closed_sweep import LazyRows, LinearHeads
from openjepa.evaluation.probes.logistic import Objective, Solution, Standardized, _between, minimize, standardize
from openjepa.evaluation.probes.logistic import evaluate_logistic as evaluate_probe
from openjepa.evaluation.protocol import FeatureProbe, LabeledFeatures, ProtocolResult, held_out_rows
from openjepa.refusals import Refusal
from openjepa.settings.evaluation import EvaluationSettings, LogisticSettings
from openjepa.settings.protocols import check_evaluation


def evaluate_logistic(train: LabeledFeatures, test: LabeledFeatures, settings: EvaluationSettings) -> ProtocolResult:
    """The result under one selection rule."""
    (result,) = evaluate_probe(FeatureProbe(train, test), settings)
    return result


TIGHT = LogisticSettings(gradient_norm=1e-9, iterations=2000)


def clusters(number: int, width: int, num_classes: int, seed: int, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    """Overlapping clusters; dimensions have different scales, an offset, and are correlated."""
    shape = torch.Generator().manual_seed(7)
    centers = 0.7 * torch.randn(num_classes, width, generator=shape, dtype=torch.float64)
    mixing = torch.randn(width, width, generator=shape, dtype=torch.float64) * torch.logspace(-1, 1, width)
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(0, num_classes, (number,), generator=generator)
    noise = torch.randn(number, width, generator=generator, dtype=torch.float64)
    return ((centers[labels] + noise) @ mixing + 3).to(dtype), labels


def objective(features: Tensor, labels: Tensor, weight: Tensor, bias: Tensor, penalty: float) -> float:
    loss = functional.cross_entropy(features @ weight + bias, labels)
    return float(loss + penalty / 2 * weight.square().sum())


def scikit_learn(features: Tensor, labels: Tensor, penalty: float) -> tuple[Tensor, Tensor]:
    linear_model = pytest.importorskip("sklearn.linear_model", reason="scikit-learn (extra `dev`) is not installed")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = linear_model.LogisticRegression(C=1 / (len(features) * penalty), solver="newton-cg", tol=1e-8, max_iter=500)
        model.fit(features.numpy(), labels.numpy())
    return torch.from_numpy(model.coef_.T), torch.from_numpy(model.intercept_)


def solved(problem: Standardized, penalty: float, settings: LogisticSettings = TIGHT) -> tuple[Tensor, Tensor]:
    (solution,) = problem.sweep([penalty], settings)
    assert solution.gradient_norm <= settings.gradient_norm
    return problem.weights(solution.heads)


@pytest.mark.parametrize("penalty", [2.5e-4, 1e-2])
def test_the_optimum_is_scikit_learns_in_float64(penalty: float) -> None:
    features, labels = clusters(2000, 128, 20, 1)
    problem = standardize(features, labels)
    rows = (features - features.mean(dim=0)) / features.std(dim=0, correction=0)
    weight, bias = solved(problem, penalty)
    theirs = scikit_learn(rows, labels, penalty)
    torch.testing.assert_close(weight, theirs[0], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(bias - bias.mean(), theirs[1] - theirs[1].mean(), atol=1e-5, rtol=1e-5)
    ours, reference = (objective(rows, labels, *each, penalty) for each in ((weight, bias), theirs))
    assert abs(ours - reference) < 1e-10
    others = (clusters(1000, 128, 20, 2)[0] - features.mean(dim=0)) / features.std(dim=0, correction=0)
    assert torch.equal((others @ weight + bias).argmax(dim=1), (others @ theirs[0] + theirs[1]).argmax(dim=1))


def small_problem(penalty: float = 1e-2) -> tuple[Objective, LinearHeads]:
    features, labels = clusters(90, 6, 4, 1)
    problem = standardize(features, labels).rotated
    generator = torch.Generator().manual_seed(0)
    weight, bias = (torch.randn(shape, generator=generator, dtype=torch.float64) for shape in ((6, 1, 4), (1, 4)))
    return Objective(problem.rows, labels, 4, problem.components.variances, penalty), LinearHeads(weight, bias)


def test_value_gradient_and_curvature_are_autograds(monkeypatch: pytest.MonkeyPatch) -> None:
    problem, heads = small_problem()
    rows = problem.rows.materialize()

    def value(weight: Tensor, bias: Tensor) -> Tensor:
        loss = functional.cross_entropy(rows @ weight + bias, problem.labels)
        return loss + problem.penalty / 2 * weight.square().sum()

    at = (heads.weight[:, 0], heads.bias[0])
    directions = (torch.randn_like(at[0]), torch.randn_like(at[1]))
    gradient = torch.autograd.functional.jacobian(value, at)
    product = torch.autograd.functional.hvp(value, at, directions)[1]
    for name, limit in (("CHUNK_LOGITS", 256), ("KEPT_PROBABILITIES", 0)):  # two chunks; then recomputed probabilities
        monkeypatch.setattr(newton, name, limit)
        point = problem.at(heads)
        assert (point.probabilities is None) == (name == "KEPT_PROBABILITIES")
        assert point.value == pytest.approx(float(value(*at)), rel=1e-12)
        bent = problem.curvature(point, LinearHeads(directions[0][:, None], directions[1][None]))
        for ours, theirs in zip((point.gradient, bent), (gradient, product), strict=True):
            torch.testing.assert_close(ours.weight[:, 0], theirs[0])
            torch.testing.assert_close(ours.bias[0], theirs[1])


def test_rows_that_are_turned_while_they_are_read_give_the_same_solution() -> None:
    features, labels = clusters(300, 12, 5, 1)
    problem = standardize(features, labels)
    turned = LazyRows(features, problem.mean, problem.scale[:, None] * problem.rotated.components.axes)
    stored = Objective(problem.rotated.rows, labels, 5, problem.rotated.components.variances, 1e-3)
    first, second = (minimize(each, None, 1e-10, 1000) for each in (stored, replace(stored, rows=turned)))
    assert problem.rotated.rows.axes is None and first.passes == second.passes
    torch.testing.assert_close(first.heads.weight, second.heads.weight)


def test_fewer_images_than_dimensions() -> None:
    features, labels = clusters(30, 50, 3, 1)
    problem = standardize(features, labels)
    rows = (features - features.mean(dim=0)) / features.std(dim=0, correction=0)
    weight, bias = solved(problem, 1e-2)
    weight.requires_grad_()
    (functional.cross_entropy(rows @ weight + bias, labels) + 0.01 / 2 * weight.square().sum()).backward()
    assert weight.grad is not None and float(weight.grad.norm()) < 1e-8


def test_rounded_products_end_at_the_same_optimum() -> None:
    features, labels = clusters(400, 24, 10, 1, torch.float32)
    problem = standardize(features, labels)
    rows = problem.rotated.rows
    exact = Objective(rows, labels, 10, problem.rotated.components.variances, 1e-3)
    coarse = replace(exact, rounded=rows.stored.bfloat16())
    direction = exact.at(exact.zeros()).gradient
    point = exact.at(direction)
    products = [each.curvature(point, direction).weight for each in (exact, coarse)]
    assert not torch.equal(*products)
    torch.testing.assert_close(*products, rtol=0.05, atol=0.01 * float(products[0].abs().max()))
    found = [minimize(each, None, 2e-5, 500) for each in (exact, coarse)]
    assert all(each.gradient_norm <= 2e-5 for each in found) and found[0].value == pytest.approx(found[1].value, rel=1e-5)
    again = exact.at(found[1].heads)  # the stated norm is that of float32, whatever the products were computed in
    assert again.gradient_norm == found[1].gradient_norm


def test_far_penalties_are_reached_over_others() -> None:
    for before, penalty in ((0.8, 1e-5), (1e-1, 1e-2), (1e-2, 2.5e-3), (1e-3, 1e-3), (1e-3, 1.0)):
        path = [before, *_between(before, penalty), penalty]
        ratios = [one / other for one, other in itertools.pairwise(path)]
        assert max(ratios) <= 8 * (1 + 1e-9) or penalty >= before
        assert max(ratios) == pytest.approx(min(ratios)) and len(path) == 2 + max(
            0, math.ceil(math.log(before / penalty, 8)) - 1
        )


def test_a_warm_start_ends_at_the_same_optimum_with_fewer_passes() -> None:
    features, labels = clusters(500, 24, 10, 1)
    problem = standardize(features, labels)
    penalties = [1e-2, 2.5e-3, 1e-3, 2.5e-4]
    warm = list(problem.sweep(penalties, TIGHT))
    cold = [next(iter(problem.sweep([penalty], TIGHT))) for penalty in penalties]
    assert sum(each.passes for each in warm) < sum(each.passes for each in cold)
    for one, other in zip(warm, cold, strict=True):
        torch.testing.assert_close(one.heads.weight, other.heads.weight, atol=1e-6, rtol=1e-5)


def test_the_search_stops_where_the_passes_end_and_says_the_norm() -> None:
    problem, _ = small_problem()
    start = problem.at(problem.zeros())
    stopped = minimize(problem, None, 1e-12, 4)
    assert stopped.gradient_norm > 1e-12 and stopped.value < start.value and stopped.passes <= 4 + newton.MAX_HALVINGS
    assert stopped.gradient_norm == problem.at(stopped.heads).gradient_norm


def test_weak_penalties_are_solved_as_well_as_strong_ones() -> None:
    features, labels = clusters(300, 64, 20, 1, torch.float32)
    problem, penalties = standardize(features, labels), [1e-2, 1e-3, 1e-5]
    loose, ours = (
        list(problem.sweep(penalties, LogisticSettings(relative_gradient=each)))
        for each in (math.inf, LogisticSettings().relative_gradient)
    )
    best = standardize(features.double(), labels).sweep(penalties, TIGHT)

    def distance(found: Solution, exact: Solution) -> float:
        # weights out of the axes, which float32 and float64 may choose differently
        return float((weights(found) - weights(exact)).norm() / weights(exact).norm())

    def weights(found: Solution) -> Tensor:
        turned = problem if found.heads.weight.dtype == torch.float32 else standardize(features.double(), labels)
        return turned.weights(found.heads)[0].double()

    exact = list(best)
    assert max(distance(*pair) for pair in zip(ours, exact, strict=True)) <= 0.01
    assert distance(loose[-1], exact[-1]) > 0.02 and loose[-1].gradient_norm <= 1e-4  # the norm alone says little
    for penalty, found in zip(penalties, ours, strict=True):
        share = found.gradient_norm / (penalty * float(found.heads.weight.norm()))
        assert found.relative_gradient == pytest.approx(share, rel=1e-5) and share <= 0.01 and not found.ran_out


def test_a_penalty_that_ran_out_of_passes_is_warned_of() -> None:
    few = replace(SETTINGS, logistic=LogisticSettings(penalties=(1e-1, 1e-5), iterations=30))
    with pytest.warns(UserWarning, match=r"not solved within logistic.iterations=30 passes for lambda 1e-05 \(norm .*") as told:
        result = evaluate_logistic(split(400, 1), split(300, 2), replace(few, selection="paper"))
    assert len(told) == 1 and set(result.extra) == {"gradient_norm", "relative_gradient", "top5"}


def split(number: int, seed: int, num_classes: int = 8) -> LabeledFeatures:
    features, labels = clusters(number, 12, num_classes, seed, torch.float32)
    return LabeledFeatures({"last": features, "last_four": torch.zeros(number, 3)}, labels)


SETTINGS = EvaluationSettings(logistic=LogisticSettings(penalties=(1e-3, 1e-1, 1e-2)))


def test_held_out_chooses_without_the_test_labels_and_solves_on_everything() -> None:
    train, test = split(400, 1), split(300, 2)
    result = evaluate_logistic(train, test, SETTINGS)
    shuffled = LabeledFeatures(test.features, test.labels.flip(0))
    assert evaluate_logistic(train, shuffled, SETTINGS).heads[0].setting == result.heads[0].setting
    kept, held = held_out_rows(train.labels, 0)
    problem = standardize(train.features["last"], train.labels)
    rows = (train.features["last"] - problem.mean) * problem.scale
    scores = {}
    for penalty in (1e-1, 1e-2, 1e-3):
        weight, bias = scikit_learn(rows[kept].double(), train.labels[kept], penalty)
        scores[penalty] = float(((rows[held].double() @ weight + bias).argmax(dim=1) == train.labels[held]).double().mean())
    best = max(scores, key=lambda penalty: scores[penalty])
    (head,) = result.heads
    assert head.chosen and head.setting == f"lambda {best:g}" and head.held_out_accuracy == pytest.approx(scores[best])
    weight, bias = scikit_learn(rows.double(), train.labels, best)
    logits = ((test.features["last"] - problem.mean) * problem.scale).double() @ weight + bias
    assert result.accuracy == pytest.approx(float((logits.argmax(dim=1) == test.labels).double().mean()), abs=2 / 300)
    top = (logits.topk(5, dim=1).indices == test.labels[:, None]).any(dim=1)
    assert result.extra["top5"] == pytest.approx(float(top.double().mean()), abs=2 / 300)
    assert 0 < result.extra["gradient_norm"] <= SETTINGS.logistic.gradient_norm


def test_paper_selection_is_the_best_on_test() -> None:
    result = evaluate_logistic(split(300, 1, 4), split(300, 2, 4), replace(SETTINGS, selection="paper"))
    assert [head.setting for head in result.heads] == ["lambda 0.1", "lambda 0.01", "lambda 0.001"]
    assert result.accuracy == max(head.test_accuracy for head in result.heads) and "top5" not in result.extra


def test_dimensions_that_are_constant_do_nothing() -> None:
    features, labels = clusters(200, 6, 3, 1)
    constant = torch.cat([features, torch.full((200, 2), 0.1, dtype=torch.float64)], dim=1)
    weight, bias = solved(standardize(constant, labels), 1e-2)
    alone = solved(standardize(features, labels), 1e-2)
    torch.testing.assert_close(weight[:6], alone[0], atol=1e-7, rtol=1e-6)
    torch.testing.assert_close(weight[6:], torch.zeros(2, 3, dtype=torch.float64))
    torch.testing.assert_close(bias - bias.mean(), alone[1] - alone[1].mean(), atol=1e-7, rtol=1e-6)


def test_impossible_penalties_are_named() -> None:
    with pytest.raises(Refusal, match=r"logistic\.penalties=0\.0 must be above 0"):
        check_evaluation(replace(SETTINGS, logistic=LogisticSettings(penalties=(0.0,))))
