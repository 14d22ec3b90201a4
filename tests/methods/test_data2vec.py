"""data2vec: loss against a slow restatement, what the student sees, the moving average, decay, energies, exports."""

import copy
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from openjepa.masks.sampler import TokenShape
from openjepa.methods.base import Surroundings
from openjepa.methods.data2vec import VIEW, Data2Vec
from openjepa.models.vit import build_encoder
from openjepa.schedules import Progress
from openjepa.settings.methods import Data2VecSettings
from openjepa.settings.models import EncoderConfig, ModelSettings
from openjepa.types import Batch, ColorChange, TokenMask, ViewSpec

START = Progress(step=0, total_steps=100, steps_per_epoch=10)
SETTINGS = Data2VecSettings(average_layers=2)
MODEL = ModelSettings(size="test", depth=3, patch_size=4, positions="relative", class_token=True, layer_scale=0.5)
GRID = (4, 5)


def build(model: ModelSettings = MODEL, **changes: Any) -> Data2Vec:
    """A method whose student and teacher have drifted apart."""
    torch.manual_seed(0)
    view = ViewSpec(size=(16, 20))
    shapes = (TokenShape(10, 10, 1.0, 1),)
    method = Data2Vec(replace(SETTINGS, **changes), Surroundings(model, view, (0.5,) * 3, (0.2,) * 3, shapes))  # type: ignore[arg-type]
    with torch.no_grad():
        for value in method.parameters():
            value.add_(0.3 * torch.randn_like(value))
    return method


def make_batch(size: int = 3) -> Batch:
    """Images with different numbers of masked patches."""
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(1, size, 3, 16, 20, generator=generator)
    masked = torch.rand(size, 20, generator=generator) < torch.linspace(0.2, 0.8, size)[:, None]
    return Batch(torch.arange(size), {VIEW: images}, {VIEW: TokenMask(masked, GRID)})


def mask_of(batch: Batch) -> Tensor:
    mask = batch.masks[VIEW]
    assert isinstance(mask, TokenMask)
    return mask.masked


def normalized(values: Tensor) -> Tensor:
    return (values - values.mean()) / (values.var(unbiased=False) + 1e-5).sqrt()


@torch.no_grad()
def slow_targets(method: Data2Vec, image: Tensor, layer_norm: str, again: bool) -> list[Tensor]:
    """One patch at a time, from the encoder cut off after each of its last two blocks."""
    state, config = method.teacher.encoder.state_dict(), method.encoder_config
    outputs = []
    for depth in (2, 3):
        shallow = build_encoder(replace(config, depth=depth))
        shallow.load_state_dict(state, strict=False)
        shallow.norm = torch.nn.Identity()  # type: ignore[assignment]
        outputs.append(shallow(image[None]).patches[0])
    targets = []
    for patch in range(len(outputs[0])):
        mean = sum((normalized(output[patch]) if layer_norm == "layer" else output[patch]) for output in outputs) / 2
        assert isinstance(mean, Tensor)
        targets.append(normalized(mean) if again else mean)
    return targets


@pytest.mark.parametrize("loss", ["smooth_l1", "l2"])
@pytest.mark.parametrize(("layer_norm", "again"), [("layer", True), ("layer", False), ("none", False)])
def test_loss_one_patch_at_a_time(loss: str, layer_norm: str, again: bool) -> None:
    method = build(loss=loss, layer_norm=layer_norm, target_layer_norm=again, smooth_l1_beta=0.7)
    batch = make_batch()
    total, count, large = 0.0, 0, 0
    for image, masked in zip(batch.views[VIEW][0], mask_of(batch), strict=True):
        predictions = method.head(method.student(image[None], replace=masked[None]).patches)[0]
        targets = slow_targets(method, image, layer_norm, again)
        for patch in torch.nonzero(masked).flatten().tolist():
            for distance in (predictions[patch] - targets[patch]).abs().tolist():
                large += distance > 0.7
                smooth = 0.5 * distance**2 / 0.7 if distance < 0.7 else distance - 0.35
                total += distance**2 if loss == "l2" else smooth
                count += 1
    assert 0 < large < count
    assert method(batch, START).total.item() == pytest.approx(total / count, rel=1e-5)


def test_the_student_sees_nothing_of_masked_patches() -> None:
    """Pixels of masked patches change no prediction, those of visible ones and the mask token do; the teacher sees all."""
    method, batch = build(), make_batch(1)
    images, masked = batch.views[VIEW][0], mask_of(batch)
    inside = masked.view(1, 1, *GRID).repeat_interleave(4, 2).repeat_interleave(4, 3).float()
    changes = {"masked": images + inside, "visible": images + 1 - inside}
    before = method._predictions(images, TokenMask(masked, GRID))
    assert torch.equal(method._predictions(changes["masked"], TokenMask(masked, GRID)), before)
    assert (method._predictions(changes["visible"], TokenMask(masked, GRID)) - before).abs().max() > 1e-3
    assert (method.teacher(changes["masked"]) - method.teacher(images)).abs().max() > 1e-3
    assert method.student.mask_token is not None and method.teacher.encoder.mask_token is None
    method(batch, START).total.backward()
    assert method.student.mask_token.grad is not None and method.student.mask_token.grad.abs().max() > 0


def test_unmasked_images_give_a_loss_of_zero() -> None:
    """Not a number would stop the run; such a microbatch only happens with tiny ratios."""
    method, batch = build(), make_batch()
    output = method(replace(batch, masks={VIEW: TokenMask(torch.zeros(3, 20, dtype=torch.bool), GRID)}), START)
    output.total.backward()
    assert output.total == 0
    assert all(value.grad is None or (value.grad == 0).all() for value in method.parameters())


@pytest.mark.parametrize(("step", "expected"), [(0, 0.9), (25, 0.92), (50, 0.94), (99, 0.94)])
def test_momentum_grows_and_then_stays(step: int, expected: float) -> None:
    method = build(ema_start=0.9, ema_end=0.94, ema_ramp=0.5)
    before = copy.deepcopy(method.teacher.encoder.state_dict())
    assert method.after_step(Progress(step, 100, 10))["momentum"] == pytest.approx(expected)
    student = method.student.state_dict()
    for name, value in method.teacher.encoder.state_dict().items():
        torch.testing.assert_close(value, expected * before[name] + (1 - expected) * student[name])


@pytest.mark.parametrize("positions", ["relative", "learned"])
def test_what_is_decayed(positions: str) -> None:
    method = build(replace(MODEL, positions=positions))  # type: ignore[arg-type]
    rules = method.parameter_rules()
    decayed = {
        name
        for name, value in method.named_parameters()
        if value.requires_grad and next(rule for rule in rules if rule.matches(name, value)).decay
    }
    blocks = {
        f"student.blocks.{layer}.{name}.weight"
        for layer in range(3)
        for name in ("attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2")
    }
    table = {"student.rel_pos_bias.relative_position_bias_table"} if positions == "relative" else set()
    assert decayed == blocks | table | {"student.mask_token", "student.patch_embed.proj.weight", "head.weight"}


def test_the_crop_has_its_colors_changed() -> None:
    spec = build(jitter=(0.1, 0.2, 0.3, 0.4), jitter_probability=0.5).inputs()
    assert spec.views[VIEW].colors == (ColorChange(jitter=(0.1, 0.2, 0.3, 0.4), jitter_probability=0.5),)
    assert spec.masked_views == (VIEW,)


@pytest.mark.parametrize("loss", ["smooth_l1", "l2"])
def test_energies_pair_by_pair(loss: str) -> None:
    method, batch = build(loss=loss).eval(), make_batch()
    images, masked = batch.views[VIEW][0], mask_of(batch)
    energies = method.energies(batch, START)
    targets = method.teacher(images)
    for i in range(3):
        prediction = method.head(method.student(images[i : i + 1], replace=masked[i : i + 1]).patches)[0, masked[i]]
        for j in range(3):
            expected = method.distance(prediction, targets[j, masked[i]])
            torch.testing.assert_close(energies[i, j], expected)


@pytest.mark.parametrize("exported", ["student", "teacher"])
def test_probe_and_predicted_features(exported: str) -> None:
    method, batch = build(replace(MODEL, drop_path=0.5), exported=exported), make_batch()
    images, masked = batch.views[VIEW][0], mask_of(batch)
    probe, pooled = method.probe(batch, START), method.predicted_features(batch, START)
    assert method.training
    method.eval()
    encoder = method.teacher.encoder if exported == "teacher" else method.student
    torch.testing.assert_close(probe.features, encoder(images).patches.mean(dim=1))
    assert probe.targets is not None and probe.target_positions is not None
    torch.testing.assert_close(probe.targets[:, 0, 0], method.teacher(images)[masked])
    assert probe.target_positions.flatten().tolist() == [place for row in masked for place in row.nonzero().flatten().tolist()]
    predictions = method.head(method.student(images, replace=masked).patches)
    assert method.distance(predictions[masked], probe.targets[:, 0, 0]).item() == pytest.approx(probe.loss.item(), rel=1e-5)
    for image in range(3):
        torch.testing.assert_close(pooled[image], predictions[image, masked[image]].mean(dim=0))


@pytest.mark.parametrize("exported", ["student", "teacher"])
def test_the_exported_encoder_is_rebuilt_from_its_config(exported: str, tmp_path: Path) -> None:
    method, images = build(exported=exported).eval(), make_batch().views[VIEW][0]
    (export,) = method.exports().values()
    assert isinstance(export.config, EncoderConfig)
    assert export.config.mask_token == (exported == "student")
    rebuilt = build_encoder(export.config)
    rebuilt.load_state_dict(export.module.state_dict())
    torch.testing.assert_close(rebuilt(images).patches, export.module(images).patches)


def test_remarks() -> None:
    assert build(ema_start=0.99, ema_end=0.99).remarks(2000) == []
    (slow,) = build().remarks(2000)
    assert slow.startswith("method.ema_start=0.9998")
    (beta,) = build(ema_start=0.99, ema_end=0.99, loss="l2", smooth_l1_beta=1.0).remarks(2000)
    assert beta == "method.smooth_l1_beta=1 has no effect with method.loss=l2"
