"""MSN's loss and energies against a slow restatement; Sinkhorn, entropies and smoothed labels in closed form."""

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from openjepa.methods.msn import Msn, assignment_terms, sinkhorn, smoothed_logits
from openjepa.models.heads import BatchNormHead
from openjepa.types import Batch
from tests.methods.test_msn import LATER, SETTINGS, VISIBLE, build, make_batch, shaken, slow_head


def slow_assignments(method: Msn, rows: Tensor) -> list[list[float]]:
    """softmax of cosines / 0.1, times the matrix of smoothed labels (golden README, section 10), in float64."""
    own = method.settings
    num, smoothing = own.prototypes, own.label_smoothing
    labels = [[(1 - smoothing) * (k == m) + smoothing / num for m in range(num)] for k in range(num)]
    found = []
    for row in rows.double():
        weights = [
            math.exp(float(row @ vector / (row.norm() * vector.norm())) / own.temperature)
            for vector in method.prototypes.weight.double()
        ]
        share = [weight / sum(weights) for weight in weights]
        found.append([sum(share[k] * labels[k][m] for k in range(num)) for m in range(num)])
    return found


def slow_sinkhorn(rows: list[list[float]], rounds: int) -> list[list[float]]:
    """Q [B, K]: by its total; every column by its sum and K, every row by its sum and B; at last times B."""
    size, num = len(rows), len(rows[0])
    total = sum(map(sum, rows))
    rows = [[value / total for value in row] for row in rows]
    for _ in range(rounds):
        columns = [sum(row[k] for row in rows) for k in range(num)]
        rows = [[row[k] / columns[k] / num for k in range(num)] for row in rows]
        rows = [[value / sum(row) / size for value in row] for row in rows]
    return [[size * value for value in row] for row in rows]


@torch.no_grad()
def slow_terms(method: Msn, batch: Batch, sharpening: float) -> dict[str, float]:
    """Equation 1 of the paper, one image, view and prototype at a time."""
    own, size = method.settings, len(batch.sample_ids)

    def tokens(encoder: nn.Module, views: Tensor, *keep: Tensor) -> Tensor:
        return torch.cat([encoder(image[None], *keep).class_token for image in views.flatten(0, 1)])

    target_head = method.target_head.network
    assert isinstance(target_head, BatchNormHead)
    targets = slow_assignments(method, slow_head(target_head, tokens(method.target_encoder, batch.views["target"])))
    powers = [[value ** (1 / sharpening) for value in row] for row in targets]
    targets = [[value / sum(row) for value in row] for row in powers]
    if own.sinkhorn:
        targets = slow_sinkhorn(targets, own.sinkhorn_iterations)
    kinds = [tokens(method.anchor_encoder, batch.views["anchor"], torch.tensor([sorted(VISIBLE)]))]
    kinds += [tokens(method.anchor_encoder, batch.views["local"])] if own.local_crops else []
    anchors = [row for kind in kinds for row in slow_assignments(method, slow_head(method.anchor_head, kind))]
    mean = [sum(row[k] for row in anchors) / len(anchors) for k in range(own.prototypes)]
    terms = {
        "ce": -sum(q * math.log(p) for r, row in enumerate(anchors) for q, p in zip(targets[r % size], row, strict=True)),
        "entropy": -sum(p * math.log(p) for row in anchors for p in row),
    }
    averaged = {name: value / len(anchors) for name, value in terms.items()}
    return averaged | {"me_max": sum(p * math.log(p) for p in mean) + math.log(own.prototypes)}


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"sinkhorn": False, "mean_entropy_weight": 5.0, "head_input_norm": True},
        {"sinkhorn": False, "label_smoothing": 0.1, "entropy_weight": 0.5},
        {"local_crops": 0, "sinkhorn_iterations": 1, "sharpening_start": 1.0, "sharpening_end": 0.1},
    ],
)
def test_loss_one_image_and_prototype_at_a_time(changes: dict[str, Any]) -> None:
    """Half-way through the training the sharpening is half-way too."""
    settings = replace(SETTINGS, **changes)
    method, batch = shaken(build(settings)), make_batch(settings=settings)
    expected = slow_terms(method, batch, (settings.sharpening_start + settings.sharpening_end) / 2)
    output = method(batch, LATER)
    assert {name: value.item() for name, value in output.parts.items()} == pytest.approx(expected, abs=2e-5)
    weights = {"ce": 1.0, "me_max": settings.mean_entropy_weight, "entropy": settings.entropy_weight}
    assert output.total.item() == pytest.approx(sum(weights[name] * value for name, value in expected.items()), abs=5e-5)


def test_energy_is_the_cross_entropy_with_the_target_of_another_image() -> None:
    """The mean of the diagonal is the term of the loss without Sinkhorn; off it, that of targets moved on by one image."""
    method, batch = shaken(build(replace(SETTINGS, sinkhorn=False))), make_batch()
    energies = method.energies(batch, LATER)
    assert energies.diagonal().mean().item() == pytest.approx(slow_terms(method, batch, 0.25)["ce"], abs=2e-5)
    moved = replace(batch, views={**batch.views, "target": batch.views["target"].roll(-1, dims=1)})
    off = torch.stack([energies[image, (image + 1) % 4] for image in range(4)])
    torch.testing.assert_close(off, method.energies(moved, LATER).diagonal(), rtol=1e-5, atol=1e-5)
    assert off.mean().item() == pytest.approx(slow_terms(method, moved, 0.25)["ce"], abs=2e-5)


def test_sinkhorn_balances_images_and_prototypes() -> None:
    balanced = sinkhorn(torch.rand(6, 4, generator=torch.Generator().manual_seed(0)) ** 3, 100)
    torch.testing.assert_close(balanced.sum(dim=1), torch.ones(6))
    torch.testing.assert_close(balanced.sum(dim=0), torch.full((4,), 6 / 4))
    one_prototype = torch.zeros(6, 4)
    one_prototype[:, 1] = 1.0
    assert torch.equal(sinkhorn(one_prototype, 3), one_prototype), "prototypes that nobody has stay so, as numbers"


def test_the_mean_entropy_term_tells_equal_use_from_collapse() -> None:
    """0 where every prototype has its own images, log K where all images have one; the entropy of each is 0 in both."""
    logits = 200.0 * torch.eye(5)[None]
    targets = torch.eye(5)
    equal, collapsed = assignment_terms(targets, logits), assignment_terms(targets, logits[:, :1].expand(1, 5, 5))
    assert equal.me_max.item() == pytest.approx(0.0, abs=1e-6)
    assert collapsed.me_max.item() == pytest.approx(math.log(5))
    assert equal.entropy.item() == collapsed.entropy.item() == 0.0
    assert equal.ce.item() == 0.0 and collapsed.ce.item() == pytest.approx(200.0 * 4 / 5)


def test_gradients_are_finite_where_assignments_are_zero_in_float32() -> None:
    logits = torch.tensor([[[200.0, 0.0, -200.0], [150.0, 0.0, -200.0]]], requires_grad=True)
    terms = assignment_terms(torch.full((2, 3), 1 / 3), logits)
    (terms.ce + terms.me_max + terms.entropy).backward()
    assert logits.grad is not None and logits.grad.isfinite().all()


def test_smoothed_labels_leave_every_prototype_a_share() -> None:
    logits = torch.tensor([[50.0, 0.0, -50.0, 1.0]])
    expected = 0.8 * logits.softmax(dim=-1) + 0.2 / 4
    torch.testing.assert_close(smoothed_logits(logits, 0.2).softmax(dim=-1), expected)
    assert smoothed_logits(logits, 0.0) is logits
