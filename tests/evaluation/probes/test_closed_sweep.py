"""Protocols have known answers, agree with an independent solver, and choose nothing on the test split."""

import warnings
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from openjepa.evaluation.probes import closed_sweep
from openjepa.evaluation.probes import closed_sweep as rows_module
from openjepa.evaluation.probes.closed_sweep import solve, to_axes
from openjepa.evaluation.probes.linear import HEAD_KINDS, prepare
from openjepa.evaluation.protocol import FeatureProbe, LabeledFeatures, ProtocolResult, held_out_rows
from openjepa.measures import features as measuring
from openjepa.measures.features import knn_predictions
from openjepa.refusals import Refusal
from openjepa.settings.evaluation import EvaluationSettings
from openjepa.settings.protocols import PROTOCOLS, check_evaluation

SETTINGS = EvaluationSettings(weight_decays=(1e-4, 1e-2, 1.0), neighbors=(1, 5, 20))
EVALUATE = ("linear", "knn")


def outcome(protocol: str, train: LabeledFeatures, test: LabeledFeatures, settings: EvaluationSettings) -> ProtocolResult:
    """The result of a protocol under one selection rule."""
    (result,) = PROTOCOLS[protocol].load()(FeatureProbe(train, test), settings)
    return result  # type: ignore[no-any-return]


def clusters(number: int, spread: float, seed: int, num_classes: int = 4, width: int = 12) -> LabeledFeatures:
    """Gaussian clusters whose centers do not depend on the seed; dimensions have very different scales and an offset."""
    centers = torch.randn(num_classes, width, generator=torch.Generator().manual_seed(99))
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(0, num_classes, (number,), generator=generator)
    features = centers[labels] + spread * torch.randn(number, width, generator=generator)
    features = features * torch.logspace(-2, 1, width) + 3
    return LabeledFeatures({"last": features, "last_four": torch.cat([features, features.square()], dim=1)}, labels)


@pytest.mark.parametrize("selection", ["held_out", "paper"])
@pytest.mark.parametrize("protocol", EVALUATE)
def test_separable_classes_are_all_found(protocol: str, selection: str) -> None:
    settings = replace(SETTINGS, selection=selection)
    result = outcome(protocol, clusters(300, 0.05, 1), clusters(200, 0.05, 2), settings)
    assert result.accuracy == 1 and result.standard_error == 0 and result.selection == selection


@pytest.mark.parametrize("protocol", EVALUATE)
def test_shuffled_labels_give_chance(protocol: str) -> None:
    train, test = clusters(400, 0.05, 1), clusters(2000, 0.05, 2)
    shuffle = torch.randperm(400, generator=torch.Generator().manual_seed(0))
    settings = replace(SETTINGS, weight_decays=(0.1, 1.0))
    result = outcome(protocol, LabeledFeatures(train.features, train.labels[shuffle]), test, settings)
    assert 0.15 < result.accuracy < 0.36  # the clusters move together: far fewer than 2000 independent answers
    assert result.standard_error == pytest.approx((result.accuracy * (1 - result.accuracy) / 2000) ** 0.5)


def permuted(split: LabeledFeatures) -> LabeledFeatures:
    order = torch.randperm(len(split.labels), generator=torch.Generator().manual_seed(5))
    return LabeledFeatures(split.features, split.labels[order])


@pytest.mark.parametrize("protocol", EVALUATE)
def test_held_out_selection_does_not_see_the_test_labels(protocol: str) -> None:
    train, test = clusters(300, 1.2, 1), clusters(300, 1.2, 2)
    honest = outcome(protocol, train, test, SETTINGS)
    wrong = outcome(protocol, train, permuted(test), SETTINGS)
    assert [(h.features, h.head, h.setting, h.held_out_accuracy, h.chosen) for h in honest.heads] == [
        (h.features, h.head, h.setting, h.held_out_accuracy, h.chosen) for h in wrong.heads
    ]
    best = max(honest.heads, key=lambda head: head.held_out_accuracy or 0)
    assert honest.accuracy == best.test_accuracy and best.held_out_accuracy is not None


@pytest.mark.parametrize("protocol", EVALUATE)
def test_paper_selection_is_the_best_on_test(protocol: str) -> None:
    result = outcome(protocol, clusters(300, 1.2, 1), clusters(300, 1.2, 2), replace(SETTINGS, selection="paper"))
    assert result.accuracy == max(head.test_accuracy for head in result.heads)
    assert all(head.held_out_accuracy is None for head in result.heads)
    assert sum(head.chosen for head in result.heads) == 1


def test_four_kinds_of_head_are_tried() -> None:
    result = outcome("linear", clusters(200, 1, 1), clusters(100, 1, 2), SETTINGS)
    assert [(head.features, head.head) for head in result.heads] == [
        ("last", "linear"), ("last", "batch_norm"), ("last_four", "linear"), ("last_four", "batch_norm"),
    ]  # fmt: skip


def test_neighbors_use_the_last_layer_only() -> None:
    train, test = clusters(200, 1, 1), clusters(100, 1, 2)
    noise = {**train.features, "last_four": torch.zeros(200, 3)}
    assert outcome("knn", train, test, SETTINGS) == outcome("knn", LabeledFeatures(noise, train.labels), test, SETTINGS)


def test_a_tenth_of_each_class_is_held_out() -> None:
    labels = torch.tensor([0] * 100 + [1] * 57 + [2] * 2 + [3])
    kept, held = held_out_rows(labels, seed=3)
    assert sorted([*kept.tolist(), *held.tolist()]) == list(range(160))
    assert torch.bincount(labels[held], minlength=4).tolist() == [10, 6, 1, 0]
    assert torch.equal(held_out_rows(labels, seed=3)[1], held)
    assert not torch.equal(held_out_rows(labels, seed=4)[1], held)


@pytest.mark.parametrize("protocol", EVALUATE)
def test_one_image_per_class_cannot_be_held_out(protocol: str) -> None:
    one_each = LabeledFeatures({"last": torch.randn(4, 3, generator=torch.Generator().manual_seed(0))}, torch.arange(4))
    with pytest.raises(ValueError, match=r"held-out part is empty, because none of the 4 classes.*--selection paper"):
        outcome(protocol, one_each, one_each, SETTINGS)
    assert outcome(protocol, one_each, one_each, replace(SETTINGS, selection="paper")).accuracy == 1


def reference(features: Tensor, labels: Tensor, decay: float) -> tuple[Tensor, Tensor]:
    """scikit-learn minimizes sum(loss) + |W|^2 / 2C, which is ours for C = 1 / (n decay)."""
    from sklearn.linear_model import LogisticRegression

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = LogisticRegression(C=1 / (len(features) * decay), solver="newton-cholesky", max_iter=200, tol=1e-9)
        model.fit(features.double().numpy(), labels.numpy())
    return torch.from_numpy(model.coef_.T), torch.from_numpy(model.intercept_)


def test_the_solver_finds_the_optimum() -> None:
    split = clusters(200, 1.0, 1)
    features = split.features["last_four"]  # columns from 1e-2 to 1e3, some of them nearly collinear
    features = (features - features.mean(dim=0)) / features.std()
    decays = [1e-3, 1e-2, 1.0]
    rotated = to_axes(features, kept_variance=1.0)
    heads = solve(rotated.rows, split.labels, 4, rotated.components.variances, decays, iterations=300, tolerance=1e-9)
    for number, decay in enumerate(decays):
        weight, bias = reference(features, split.labels, decay)
        assert objective(
            features, split.labels, rotated.components.axes @ heads.weight[:, number], heads.bias[number], decay
        ) <= (objective(features, split.labels, weight, bias, decay) + 2e-5)


def objective(features: Tensor, labels: Tensor, weight: Tensor, bias: Tensor, decay: float) -> float:
    logits = features.double() @ weight.double() + bias.double()
    loss = torch.nn.functional.cross_entropy(logits, labels)
    return float(loss + decay / 2 * weight.double().square().sum())


@pytest.mark.parametrize("kind", HEAD_KINDS)
def test_probe_with_its_default_effort_agrees_with_scikit_learn(kind: str) -> None:
    train, test = clusters(300, 1.0, 1), clusters(300, 1.0, 2)
    features = train.features["last_four"]
    probe = prepare(features, train.labels, kind)
    weight, bias = reference((features - probe.mean) * probe.scale, train.labels, 1e-3)
    theirs = ((test.features["last_four"] - probe.mean) * probe.scale).double() @ weight + bias
    ours = probe.solve(None, [1e-3], 100).predict(probe.project(test.features["last_four"]))[0]
    assert (theirs.argmax(dim=1) == ours).double().mean() > 0.99
    variance = (features * probe.scale).var(dim=0, correction=0)
    if kind == "batch_norm":
        original = features.var(dim=0, correction=0)
        torch.testing.assert_close(variance, original / (original + 1e-5 * original.mean()))
    else:
        assert float(variance.mean()) == pytest.approx(1, rel=1e-3)


@pytest.mark.parametrize("shape", [(200, 12), (12, 40)])
def test_principal_components_rebuild_the_features(shape: tuple[int, int]) -> None:
    features = torch.randn(shape, generator=torch.Generator().manual_seed(0)) * torch.logspace(-1, 1, shape[1])
    features = features - features.mean(dim=0)
    rotated = to_axes(features, kept_variance=1.0)
    rows, found = rotated.rows.materialize(), rotated.components
    torch.testing.assert_close(rows @ found.axes.T, features, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(rows.T @ rows / shape[0], found.variances.diag(), atol=1e-3, rtol=1e-4)
    few = to_axes(features, kept_variance=0.9).components
    share = few.variances.sum() / features.var(dim=0, correction=0).sum()
    assert share >= 0.9 and share - few.variances[-1] / features.var(dim=0, correction=0).sum() < 0.9


@pytest.mark.parametrize("kind", HEAD_KINDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.uint8])
def test_features_that_stay_in_place_give_the_same_heads(
    kind: str, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    train = clusters(300, 1.0, 1)
    features = train.features["last"] if dtype.is_floating_point else (20 * train.features["last"]).clamp(0, 255)
    features, labels, kept = features.to(dtype), train.labels, torch.arange(0, 300, 2)
    copied = prepare(features.float(), labels, kind)
    monkeypatch.setattr(rows_module, "CHUNK_ELEMENTS", 64 * 12)  # five chunks
    monkeypatch.setattr(closed_sweep, "ROW_CHUNK", 64)
    placed = prepare(features, labels, kind, in_place=True)
    assert placed.rotated.rows.stored is features and copied.rotated.rows.axes is None
    torch.testing.assert_close(placed.rotated.components.variances, copied.rotated.components.variances)
    for which in (None, kept):
        theirs, ours = (each.solve(which, [1e-3, 0.1], 100) for each in (copied, placed))
        # axes are known but for their sign: compare what the heads answer
        scores = [torch.cat(list(heads.scores(each.project(features)))) for each, heads in ((copied, theirs), (placed, ours))]
        torch.testing.assert_close(*scores, atol=2e-3, rtol=1e-3)


def test_means_and_covariances_of_chunks_are_those_of_the_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    features = clusters(300, 1.0, 1).features["last_four"]
    monkeypatch.setattr(rows_module, "CHUNK_ELEMENTS", 24 * 7)
    mean, variance = rows_module.moments(features, torch.device("cpu"))
    exact = features.double()
    torch.testing.assert_close(mean, exact.mean(dim=0).float())
    torch.testing.assert_close(variance, exact.var(dim=0, correction=0).float())
    product = rows_module.covariance(features, mean, variance.rsqrt())
    torch.testing.assert_close(product, torch.corrcoef(exact.T).float(), atol=1e-5, rtol=1e-5)


def test_neighbors_are_the_same_however_many_keys_are_compared_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    train, test = clusters(300, 1.2, 1), clusters(90, 1.2, 2)
    keys, kept, options = train.features["last"], torch.arange(0, 300, 3), ((1, 7, 200), 0.07)
    whole = knn_predictions(keys[kept], train.labels[kept], test.features["last"], *options)
    monkeypatch.setattr(measuring, "KEY_CHUNK", 13)
    parts = knn_predictions(keys, train.labels[kept], test.features["last"], *options, chunk_size=32, rows=kept)
    assert all(torch.equal(whole[k], parts[k]) for k in whole)


def test_shared_components_are_found_once_and_change_no_number(monkeypatch: pytest.MonkeyPatch) -> None:
    """Equal features, though other tensors, are decomposed once within the block; others, and those after it, anew."""
    train, test = clusters(300, 1.0, 1), clusters(200, 1.0, 2)
    copied = LabeledFeatures({kind: values.clone() for kind, values in train.features.items()}, train.labels)
    changed = LabeledFeatures({kind: values * 2 for kind, values in train.features.items()}, train.labels)
    alone = {rule: outcome("linear", train, test, replace(SETTINGS, selection=rule)) for rule in ("held_out", "paper")}
    found = 0
    own = closed_sweep._principal_components

    def counted(*features: Any) -> Any:
        nonlocal found
        found += 1
        return own(*features)

    monkeypatch.setattr(closed_sweep, "_principal_components", counted)
    with closed_sweep.shared_components():
        for split in (train, copied):
            for rule, result in alone.items():
                assert outcome("linear", split, test, replace(SETTINGS, selection=rule)) == result
        assert found == len(train.features) * len(HEAD_KINDS) == 4
        outcome("linear", changed, test, SETTINGS)
        assert found == 8
    outcome("linear", train, test, SETTINGS)
    assert found == 12


def test_both_selection_rules_have_the_results_they_have_alone() -> None:
    train, test = clusters(300, 1.0, 1), clusters(200, 1.0, 2)
    for protocol in ("linear", "knn", "logistic"):
        both = PROTOCOLS[protocol].load()(FeatureProbe(train, test), replace(SETTINGS, selection="both"))
        alone = [outcome(protocol, train, test, replace(SETTINGS, selection=rule)) for rule in ("held_out", "paper")]
        assert list(both) == alone and [result.selection for result in both] == ["held_out", "paper"]


def test_accuracy_does_not_depend_on_the_scale_of_the_features() -> None:
    train, test = clusters(300, 1.0, 1), clusters(300, 1.0, 2)
    scaled = [LabeledFeatures({k: 1e3 * v for k, v in side.features.items()}, side.labels) for side in (train, test)]
    assert outcome("linear", *scaled, SETTINGS).accuracy == pytest.approx(
        outcome("linear", train, test, SETTINGS).accuracy, abs=0.005
    )


def test_how_far_heads_are_from_the_optimum_is_told() -> None:
    split = clusters(120, 0.3, 1, width=20)
    features = split.features["last"].double()
    probe, decays = prepare(features, split.labels, "linear"), [1.0, 1e-2, 1e-6]
    heads = probe.solve(None, decays, 100)
    told = probe.remaining(heads, decays)
    rows = probe.rotated.rows.materialize()
    for number, (decay, found) in enumerate(zip(decays, told, strict=True)):
        weight = heads.weight[:, number].clone().requires_grad_()
        bias = heads.bias[number].clone().requires_grad_()
        loss = torch.nn.functional.cross_entropy(rows @ weight + bias, split.labels) + decay / 2 * weight.square().sum()
        gradients = torch.autograd.grad(loss, (weight, bias))
        norm = float(torch.cat([each.flatten() for each in gradients]).norm())
        assert found["gradient_norm"] == pytest.approx(norm, rel=1e-6)
        weight = weight.detach()
        assert found["relative_gradient"] == pytest.approx(norm / (decay * float(weight.norm())), rel=1e-6)
        theirs = reference(rows, split.labels, decay)[0]
        assert float((weight - theirs).norm() / weight.norm()) <= found["relative_gradient"] + 1e-6
    assert told[0]["relative_gradient"] < 0.01 and told[2]["relative_gradient"] > 1  # the weakest was stopped early


@pytest.mark.parametrize("selection", ["held_out", "paper"])
def test_the_result_tells_it_of_the_chosen_head(selection: str) -> None:
    train, test = clusters(200, 1.2, 1), clusters(200, 1.2, 2)
    result = outcome("linear", train, test, replace(SETTINGS, selection=selection))
    (head,) = (head for head in result.heads if head.chosen)
    probe, decay = prepare(train.features[head.features], train.labels, head.head), float(head.setting.split()[-1])
    # heads that are solved together do not change one another
    assert result.extra == pytest.approx(probe.remaining(probe.solve(None, [decay], SETTINGS.iterations), [decay])[0], rel=1e-2)


@pytest.mark.parametrize("protocol", ["linear", "knn", "logistic"])
def test_features_that_are_not_finite_are_named(protocol: str) -> None:
    train = clusters(100, 1, 1)
    train.features["last"][17, 3] = torch.nan
    with pytest.raises(ValueError, match=r"finite.*try --precision fp32"):
        outcome(protocol, train, clusters(50, 1, 2), SETTINGS)


def test_constant_features_give_the_majority() -> None:
    labels = torch.tensor([1] * 70 + [0] * 30)
    split = LabeledFeatures({"last": torch.ones(100, 5)}, labels)
    assert outcome("linear", split, split, SETTINGS).accuracy == 0.7


def test_classes_that_training_has_not_seen_count_as_wrong() -> None:
    train, test = clusters(200, 0.05, 1), clusters(200, 0.05, 2)
    foreign = LabeledFeatures(test.features, torch.where(test.labels == 0, 9, test.labels))
    share = float((test.labels != 0).double().mean())
    assert outcome("linear", train, foreign, SETTINGS).accuracy == pytest.approx(share)
    assert outcome("knn", train, foreign, SETTINGS).accuracy == pytest.approx(share)


def test_impossible_sweeps_are_named() -> None:
    for name, values in (("weight_decays", (0.0,)), ("weight_decays", ()), ("neighbors", ()), ("neighbors", (0,))):
        with pytest.raises(Refusal, match=name):
            check_evaluation(replace(SETTINGS, **{name: values}))
    assert np.isfinite(SETTINGS.neighbor_temperature)
