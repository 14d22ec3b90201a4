"""Mixup, cutmix and smoothed labels: what images and targets become."""

import math

import numpy as np
import pytest
import torch
from torch import nn

from openjepa.evaluation.probes.mixing import Mix, draw_mix, mix_images, soft_targets


def test_cutmix_pastes_the_area_that_its_labels_say() -> None:
    labels = torch.tensor([2, 0, 1, 1])
    images = torch.arange(4.0)[:, None, None, None].expand(4, 3, 24, 40)
    pasted = 0
    for seed in range(60):
        mix = draw_mix(0.0, 1.0, (24, 40), seed)
        mixed = mix_images(images, mix)
        for i in range(4):
            own, other = (mixed[i] == i).float().mean().item(), (mixed[i] == (i - 1) % 4).float().mean().item()
            assert own == pytest.approx(mix.own, abs=1e-6) and own + other == pytest.approx(1.0)
        targets = soft_targets(labels, 3, 0.0, mix)
        torch.testing.assert_close(targets.sum(dim=1), torch.ones(4))
        torch.testing.assert_close(targets[0], torch.tensor([0.0, 1 - mix.own, mix.own]))  # the image before it is the last: 1
        pasted += mix.own < 1
    assert pasted > 50 and torch.equal(images[:, 0, 0, 0], torch.arange(4.0))


def test_mixup_is_the_weighted_mean_of_images_and_labels() -> None:
    generator = torch.Generator().manual_seed(0)
    images, labels = torch.rand(5, 3, 8, 8, generator=generator), torch.tensor([0, 1, 2, 3, 0])
    for seed in range(20):
        mix = draw_mix(0.8, 0.0, (8, 8), seed)
        assert mix.box is None and 0 <= mix.own <= 1
        mixed, targets = mix_images(images, mix), soft_targets(labels, 4, 0.1, mix)
        for i in range(5):
            torch.testing.assert_close(mixed[i], mix.own * images[i] + (1 - mix.own) * images[i - 1])
            expected = np.full(4, 0.1 / 4)
            expected[labels[i]] += 0.9 * mix.own
            expected[labels[i - 1]] += 0.9 * (1 - mix.own)
            np.testing.assert_allclose(targets[i].numpy(), expected, atol=1e-6)


def test_the_distribution_of_lambda_and_the_coin() -> None:
    mixes = [draw_mix(0.8, 1.0, (32, 32), seed) for seed in range(2000)]
    share = np.mean([mix.box is None for mix in mixes])
    assert abs(share - 0.5) < 0.05
    values = np.array([mix.own for mix in mixes if mix.box is None])
    # Beta(a, a) has mean 1/2 and variance 1 / (4 (2 a + 1))
    assert abs(values.mean() - 0.5) < 0.04 and abs(values.var() - 1 / (4 * 2.6)) < 0.01
    assert draw_mix(0.0, 0.0, (32, 32), 0) == Mix() and draw_mix(0.8, 1.0, (32, 32), 7) == mixes[7]
    images = torch.rand(2, 3, 4, 4)
    assert torch.equal(mix_images(images, Mix()), images)


def test_the_loss_with_smoothing_equals_a_slow_restatement() -> None:
    generator = torch.Generator().manual_seed(0)
    logits, labels = torch.randn(6, 5, generator=generator, dtype=torch.float64), torch.tensor([0, 4, 2, 2, 1, 3])
    targets = soft_targets(labels, 5, 0.1, Mix()).double()
    found = nn.functional.cross_entropy(logits, targets)
    total = 0.0
    for row, label in zip(logits.tolist(), labels.tolist(), strict=True):
        log_sum = math.log(sum(math.exp(value) for value in row))
        nll = [log_sum - value for value in row]
        total += 0.9 * nll[label] + 0.1 * sum(nll) / 5
    assert found.item() == pytest.approx(total / 6, rel=1e-6)
