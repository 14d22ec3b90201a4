"""Assignments, their cross-entropies and centers against slow restatements of the formulas."""

import pytest
import torch
from torch import Tensor

from openjepa.methods.assignment import Center, assignments, cross_entropy, cross_entropy_table, other_views_loss


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def slow_cross_entropy(targets: Tensor, logits: Tensor) -> Tensor:
    return -(targets * logits.log_softmax(dim=-1)).sum(dim=-1)


def test_centered_and_sharpened() -> None:
    outputs, center = drawn(3, 4, 6).float(), drawn(1, 6, seed=1).float()
    found = assignments(outputs, 0.05, center)
    expected = ((outputs.double() - center) / 0.05).softmax(dim=-1).float()
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(assignments(outputs, 0.05), (outputs / 0.05).softmax(dim=-1))


def test_reduced_precision_is_left_before_the_softmax() -> None:
    outputs = drawn(2, 5).to(torch.bfloat16)
    assert torch.equal(assignments(outputs, 0.04), assignments(outputs.float(), 0.04))


def test_cross_entropy_of_rows_and_of_all_pairs() -> None:
    targets, logits = drawn(4, 6).softmax(dim=-1), 10 * drawn(4, 6, seed=1)
    torch.testing.assert_close(cross_entropy(targets, logits), slow_cross_entropy(targets, logits))
    table = cross_entropy_table(targets, logits)
    for row in range(4):
        for column in range(4):
            torch.testing.assert_close(table[row, column], slow_cross_entropy(targets[column], logits[row]))


@pytest.mark.parametrize("num_views", [2, 3, 7])
def test_loss_of_all_pairs_of_other_views(num_views: int) -> None:
    """The double loop of the paper's algorithm 1, and its gradient."""
    targets, logits = drawn(2, 5, 6).softmax(dim=-1), (10 * drawn(num_views, 5, 6, seed=1)).requires_grad_()
    terms = [slow_cross_entropy(targets[i], logits[v]).mean() for i in range(2) for v in range(num_views) if v != i]
    expected = sum(terms) / len(terms)
    assert isinstance(expected, Tensor) and len(terms) == 2 * num_views - 2
    found = other_views_loss(targets, logits)
    torch.testing.assert_close(found, expected)
    ours, slow = (torch.autograd.grad(loss, logits)[0] for loss in (found, expected))
    torch.testing.assert_close(ours, slow)


def test_a_center_moves_by_the_mean_of_all_rows_of_a_step() -> None:
    """However they were split, and not before the step is committed; what was collected is then forgotten."""
    whole, split = Center(6, 0.9), Center(6, 0.9)
    expected = torch.zeros(1, 6)
    for step in range(3):
        outputs, before = drawn(2, 8, 6, seed=step).float(), whole.value.clone()
        whole.collect(outputs)
        for part in outputs.split(4, dim=1):
            split.collect(part)
        assert torch.equal(whole.value, before)
        whole.commit()
        split.commit()
        expected = 0.9 * before + 0.1 * outputs.mean(dim=(0, 1), keepdim=True)[0]
        torch.testing.assert_close(whole.value, expected)
        torch.testing.assert_close(split.value, whole.value)
    whole.commit()
    torch.testing.assert_close(whole.value, expected)
    assert set(whole.state_dict()) == {"value"}


def test_a_center_with_momentum_one_stays_at_zero() -> None:
    center = Center(6, 1.0)
    center.collect(drawn(2, 6).float())
    center.commit()
    assert not center.value.any()


def test_the_mean_of_reduced_precision_is_taken_in_full() -> None:
    center = Center(1, 0.0)
    center.collect(torch.full((4097, 1), 1.0 + 2**-7, dtype=torch.bfloat16))
    center.commit()
    assert center.value.item() == pytest.approx(1.0 + 2**-7, abs=1e-6)
