"""Shared parts of DINO, iBOT and MSN: soft assignments of views to learned outputs, and what keeps those from collapsing."""

from typing import final

import torch
from jaxtyping import Float
from torch import Tensor, nn

from openjepa.engine import distributed
from openjepa.schedules import Progress


def teacher_temperature(start: float, end: float, warmup_epochs: int, progress: Progress, start_epoch: int = 0) -> float:
    """Temperature of the teacher's softmax. It is constant within an epoch and moves from `start` to `end` in equal steps.

    The warm-up begins after `start_epoch` epochs at `start`, and the last of its `warmup_epochs` already has `end`. If
    `warmup_epochs` is 0, the temperature is `end` from there on. If it is 1, that one epoch has `start` (as in the released
    DINO and iBOT code).
    """
    epoch = int(progress.epoch) - start_epoch
    if epoch < 0 or (epoch == 0 and warmup_epochs == 1):
        return start
    return end if epoch >= warmup_epochs else start + (end - start) * epoch / (warmup_epochs - 1)


def assignments(
    outputs: Float[Tensor, "*lead K"], temperature: float, center: Float[Tensor, "#rows K"] | None = None
) -> Float[Tensor, "*lead K"]:
    """softmax((outputs - center) / temperature), in fp32."""
    centered = outputs.float() if center is None else outputs.float() - center
    return (centered / temperature).softmax(dim=-1)


def cross_entropy(targets: Float[Tensor, "*#lead K"], logits: Float[Tensor, "*#lead K"]) -> Float[Tensor, "*lead"]:
    """-sum_k q_k log softmax(s)_k of each row, for targets q that sum to 1 and logits s (outputs over temperature).

    Written as logsumexp(s) - <q, s>, which needs no tensor of log-probabilities.
    """
    return logits.logsumexp(dim=-1) - (targets * logits).sum(dim=-1)


def cross_entropy_table(targets: Float[Tensor, "B K"], logits: Float[Tensor, "B K"]) -> Float[Tensor, "B B"]:
    """Row i, column j: the cross-entropy between the target of image j and the logits of image i."""
    with torch.autocast(logits.device.type, enabled=False):  # a difference of large numbers needs fp32
        return logits.logsumexp(dim=-1, keepdim=True) - logits @ targets.T


def other_views_loss(targets: Float[Tensor, "G B K"], logits: Float[Tensor, "V B K"]) -> Float[Tensor, ""]:
    """Mean over images and over all pairs (i, v), v != i, of the cross-entropy of target view i and student view v.

    The first G student views are the crops that the targets were made from. With CE(q, s) = logsumexp(s) - <q, s>, the second
    terms of all pairs add up to <sum of q, sum of s> less <q_i, s_i> of each own view. No tensor of pairs or of
    log-probabilities is needed.
    """
    num_targets, num_views = len(targets), len(logits)
    normalizers = logits.logsumexp(dim=-1)  # [V, B]
    agreement = (targets.sum(dim=0) * logits.sum(dim=0)).sum(dim=-1) - (targets * logits[:num_targets]).sum(dim=(0, 2))  # [B]
    total = num_targets * normalizers.sum(dim=0) - normalizers[:num_targets].sum(dim=0) - agreement
    return total.mean() / (num_targets * (num_views - 1))


@final
class Center(nn.Module):
    """Moving average of the teacher's outputs. It is subtracted from them, so that no output wins everywhere (DINO, 3.1).

    The `forward`s of a method only call `collect`. After the optimizer step, `commit` moves the average by the mean over all
    rows of all microbatches and processes. Collected outputs last no longer than a step, so checkpoints do not hold them.
    """

    value: Tensor

    def __init__(self, outputs: int, momentum: float) -> None:
        """Starts at zero for K = `outputs`. With a `momentum` of 1 it stays there."""
        super().__init__()
        self.momentum = momentum
        self.register_buffer("value", torch.zeros(1, outputs))
        self._sum: Tensor | None = None
        self._rows = 0

    @torch.no_grad()
    def collect(self, outputs: Float[Tensor, "*lead K"]) -> None:
        """Adds these outputs to the sum for the next `commit`."""
        rows = outputs.detach().flatten(0, -2)
        total = rows.sum(dim=0, keepdim=True, dtype=torch.float32)
        self._sum = total if self._sum is None else self._sum + total
        self._rows += len(rows)

    @torch.no_grad()
    def commit(self) -> None:
        """center <- momentum * center + (1 - momentum) * mean of the collected rows of all processes.

        Does nothing if there are none. Every process must have collected some, or none.
        """
        if self._sum is not None:
            sums = torch.cat([self._sum, self._sum.new_full((1, 1), self._rows)], dim=1)  # [1, K + 1]
            of_all = distributed.sum_over_ranks(sums)
            self.value.lerp_(of_all[:, :-1] / of_all[:, -1:], 1.0 - self.momentum)
        self._sum, self._rows = None, 0
