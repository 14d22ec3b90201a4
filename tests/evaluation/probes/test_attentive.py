"""The attentive probe: the folded attention against the plain one, probes that do not know of each other, and known answers."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from openjepa.evaluation.probes import attentive
from openjepa.evaluation.probes.attentive import (
    AttentiveProbe,
    AttentiveProbes,
    TrainedProbes,
    build_probe_optimizer,
    evaluate_attentive,
    loss_sum,
    train_probes,
)
from openjepa.settings.evaluation import AttentiveSettings, EvaluationSettings
from openjepa.types import normalize
from tests.helpers.colors import Broken, color_probe

ATTENTIVE = AttentiveSettings(epochs=15, batch_size=16, learning_rates=(1e-2, 3e-3))
SETTINGS = EvaluationSettings(device="cpu", precision="fp32", workers=0, feature_batch_size=8, attentive=ATTENTIVE)


def drawn(probes: AttentiveProbes) -> AttentiveProbes:
    """All parameters drawn, also biases and norms, so that each of them matters."""
    torch.manual_seed(1)
    for value in probes.parameters():
        nn.init.normal_(value, std=0.5)
    return probes


def plain(probe: AttentiveProbe, patches: Tensor, key_bias: Tensor) -> Tensor:
    """The block as it is usually written: keys and values of every patch, one head after the other; keys even with a bias."""
    tokens = probe.norm1(patches)
    query, keys, values = probe.to_query(probe.query), probe.to_key(tokens) + key_bias, probe.to_value(tokens)
    mixed = []
    for q, k, v in zip(query.chunk(probe.heads, 1), keys.chunk(probe.heads, 2), values.chunk(probe.heads, 2), strict=True):
        scores = (k * q[0]).sum(dim=2) / math.sqrt(q.shape[1])  # [B, N]
        mixed.append((functional.softmax(scores, dim=1)[:, :, None] * v).sum(dim=1))
    pooled = probe.query + probe.proj(torch.cat(mixed, dim=1))
    normed = probe.norm2(pooled)
    pooled = pooled + probe.mlp.fc2(functional.gelu(probe.mlp.fc1(normed)))
    scores: Tensor = probe.linear(pooled)
    return scores


def test_the_folded_attention_is_the_plain_one_with_its_gradients() -> None:
    probes = drawn(AttentiveProbes(2, 12, 3, 5, 1e-6)).double()
    patches = torch.randn(4, 9, 12, dtype=torch.float64) * 2 + 1
    folded = probes(patches)
    slow = torch.stack([plain(probe, patches, torch.randn(12).double()) for probe in probes.probes], dim=1)  # type: ignore[arg-type]
    torch.testing.assert_close(folded.double(), slow, rtol=1e-5, atol=1e-5)  # scores are given in fp32
    parameters = list(probes.parameters())
    mine = torch.autograd.grad(folded.square().sum(), parameters)
    theirs = torch.autograd.grad(slow.square().sum(), parameters)
    for one, other in zip(mine, theirs, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)


def test_the_gradient_of_each_probe_is_that_of_its_own_loss() -> None:
    probes = drawn(AttentiveProbes(3, 12, 3, 5, 1e-6)).double()
    patches, labels = torch.randn(4, 9, 12, dtype=torch.float64), torch.tensor([0, 4, 2, 2])
    (loss_sum(probes(patches), labels) / 4).backward()  # type: ignore[no-untyped-call]
    for index, probe in enumerate(probes.probes):
        own = functional.cross_entropy(probes(patches)[:, index], labels)
        expected = torch.autograd.grad(own, list(probe.parameters()))
        for value, gradient in zip(probe.parameters(), expected, strict=True):
            torch.testing.assert_close(value.grad, gradient, rtol=1e-5, atol=1e-7)


def test_rates_and_decay_of_each_parameter() -> None:
    probes = AttentiveProbes(2, 12, 3, 5, 1e-6)
    groups = build_probe_optimizer(probes, replace(ATTENTIVE, weight_decay=0.1)).param_groups
    of = {id(value): group for group in groups for value in group["params"]}
    assert sum(len(group["params"]) for group in groups) == len(of) == len(list(probes.parameters()))
    for name, value in probes.named_parameters():
        assert of[id(value)]["peak"] == ATTENTIVE.learning_rates[int(name.split(".")[1])]
        is_vector = name.endswith("bias") or ".norm" in name
        assert of[id(value)]["weight_decay"] == (0.0 if is_vector else 0.1)


def test_a_probe_does_not_depend_on_the_others_nor_on_the_portions_of_a_batch() -> None:
    def weights(rates: tuple[float, ...], piece: int) -> list[Tensor]:
        own = replace(ATTENTIVE, learning_rates=rates, epochs=2)
        trained = train_probes(color_probe(), replace(SETTINGS, feature_batch_size=piece, attentive=own), np.arange(60))
        return [value.detach() for value in trained.probes.probes[0].parameters()]

    alone = weights((1e-3,), 64)
    for others in (weights((1e-3, 1e-2), 64), weights((1e-3, 1e30), 64), weights((1e-3,), 5)):
        for value, other in zip(alone, others, strict=True):
            torch.testing.assert_close(value, other, rtol=1e-3, atol=1e-4)


def test_only_the_encoder_is_rounded() -> None:
    """The probes' own arithmetic is fp32 whatever the precision of the encoder, to the last bit."""
    probe = replace(color_probe(), precision="bf16")
    images = torch.randint(0, 256, (5, 3, 16, 16), dtype=torch.uint8)
    probes = drawn(AttentiveProbes(2, 24, 2, 5, 1e-6))
    trained = TrainedProbes(probe, probes, (1.0, 2.0), ())
    pixels = normalize(images, probe.config.pixel_mean, probe.config.pixel_std)
    with torch.no_grad():
        with torch.autocast("cpu", torch.bfloat16):
            patches = probe.encoder(pixels).patches
        assert not torch.equal(patches.float(), probe.encoder(pixels).patches)
        assert torch.equal(trained.answer(images), probes(patches.float()))


def test_the_schedule_ends_where_it_was_meant_to_though_images_are_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    factors: list[float] = []
    monkeypatch.setattr(attentive, "_train_step", lambda *arguments: factors.append(arguments[-1]))
    probe = color_probe()
    broken = replace(probe, train=replace(probe.train, source=Broken(probe.train.source, range(25))))
    with pytest.warns(UserWarning, match="25 of 60 images to train on"):
        train_probes(broken, replace(SETTINGS, attentive=replace(ATTENTIVE, epochs=3)), np.arange(60))
    # 60 images would be three batches of 16 and 35 are two
    steps = [0, 1, 3, 4, 6, 7]
    assert factors == pytest.approx([(1 + math.cos(math.pi * step / 9)) / 2 for step in steps])


def test_training_leaves_encoder_and_torchs_generator_alone() -> None:
    probe = color_probe()
    before = [value.clone() for value in probe.encoder.parameters()]
    torch.manual_seed(4)
    expected = torch.rand(1)
    torch.manual_seed(4)
    train_probes(probe, replace(SETTINGS, attentive=replace(ATTENTIVE, epochs=1)), np.arange(60))
    assert torch.equal(torch.rand(1), expected)
    assert all(torch.equal(one, other) for one, other in zip(before, probe.encoder.parameters(), strict=True))


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_colors_are_told_apart(precision: str) -> None:
    results = evaluate_attentive(replace(color_probe(), precision=precision), replace(SETTINGS, selection="both"))
    assert [(result.selection, result.accuracy) for result in results] == [("held_out", 1.0), ("paper", 1.0)]
    assert [head.setting for head in results[0].heads] == ["lr 0.01", "lr 0.003"]
    assert results[0].heads[0].held_out_accuracy == 1.0 and results[1].heads[0].held_out_accuracy is None


def test_labels_that_are_noise_are_guessed() -> None:
    (result,) = evaluate_attentive(color_probe(noise=True), SETTINGS)
    assert abs(result.accuracy - 1 / 3) < 3 * math.sqrt(1 / 3 * 2 / 3 / 30)


def test_a_rate_that_is_too_high_is_named_and_never_chosen() -> None:
    (result,) = evaluate_attentive(color_probe(), replace(SETTINGS, attentive=replace(ATTENTIVE, learning_rates=(1e30, 1e-2))))
    assert [(head.setting, head.chosen) for head in result.heads] == [
        ("lr 0.01", True),
        ("lr 1e+30 (failed: not finite)", False),
    ]
    with pytest.raises(ValueError, match=r"evaluation\.attentive\.learning_rates"):
        evaluate_attentive(color_probe(), replace(SETTINGS, attentive=replace(ATTENTIVE, learning_rates=(1e30,))))
