"""I-JEPA: loss against a slow restatement, targets without gradient, the moving average, FLOPs, learning."""

import copy
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from openjepa.masks.sampler import TokenShape
from openjepa.methods.base import Surroundings
from openjepa.methods.ijepa import IJepa
from openjepa.methods.teachers import EmaTeacher
from openjepa.schedules import Progress
from openjepa.settings.methods import IJepaSettings
from openjepa.settings.models import ModelSettings
from openjepa.types import Batch, BlockMasks, TokenMask, ViewSpec

START = Progress(step=0, total_steps=100, steps_per_epoch=10)
SETTINGS = IJepaSettings(predictor_width=24, predictor_depth=2)
MODEL = ModelSettings(size="test", patch_size=4)


def build(settings: IJepaSettings = SETTINGS, model: ModelSettings = MODEL) -> IJepa:
    torch.manual_seed(0)
    view = ViewSpec(size=(16, 20))
    return IJepa(settings, Surroundings(model, view, (0.5, 0.5, 0.5), (0.2, 0.2, 0.2), (TokenShape(5, 4, 1.0, 3),)))


def make_batch(size: int = 4, seed: int = 0) -> Batch:
    generator = torch.Generator().manual_seed(seed)
    images = torch.randn(1, size, 3, 16, 20, generator=generator)
    order = torch.stack([torch.randperm(20, generator=generator) for _ in range(size)])
    masks = BlockMasks(order[:, :5], order[:, 5:17].view(size, 3, 4), (4, 5))
    return Batch(torch.arange(size), {"image": images}, {"image": masks})


@pytest.mark.parametrize("loss", ["smooth_l1", "l2"])
@pytest.mark.parametrize("target_norm", ["layer_norm", "none"])
def test_loss_one_patch_at_a_time(loss: str, target_norm: str) -> None:
    method = build(replace(SETTINGS, loss=loss, target_norm=target_norm))  # type: ignore[arg-type]
    with torch.no_grad():
        for value in method.parameters():
            value.add_(0.3 * torch.randn_like(value))  # distances on both sides of 1, where smooth L1 changes
    batch = make_batch(2)
    images, masks = batch.views["image"][0], batch.masks["image"]
    assert isinstance(masks, BlockMasks)
    total, count, large = 0.0, 0, 0
    for sample in range(2):
        features = method.target_encoder(images[sample : sample + 1]).patches[0]
        context_idx = masks.context[sample : sample + 1]
        context = method.context_encoder(images[sample : sample + 1], context_idx).patches
        for block in range(3):
            wanted_idx = masks.targets[sample, block]
            predicted = method.predictor(context, context_idx, wanted_idx[None, None])[0, 0]
            for place, patch in enumerate(wanted_idx.tolist()):
                wanted = features[patch]
                if target_norm == "layer_norm":
                    wanted = (wanted - wanted.mean()) / (wanted.var(unbiased=False) + 1e-5).sqrt()
                for distance in (predicted[place] - wanted).abs().tolist():
                    large += distance > 1
                    quadratic = distance**2 if loss == "l2" else 0.5 * distance**2
                    total += quadratic if loss == "l2" or distance < 1 else distance - 0.5
                    count += 1
    assert 0 < large < count
    assert method(batch, START).total.item() == pytest.approx(total / count, rel=1e-5)


def test_contexts_of_an_image_have_the_mean_gradient_of_separate_batches() -> None:
    """And each image passes the target encoder once."""
    method, image_rows = build(replace(SETTINGS, contexts=3)), []
    drawn = [make_batch(4, seed) for seed in range(3)]
    masks = [batch.masks["image"] for batch in drawn]
    together = BlockMasks(
        torch.stack([mask.context for mask in masks], dim=1).flatten(0, 1),  # type: ignore[union-attr]
        torch.stack([mask.targets for mask in masks], dim=1).flatten(0, 1),  # type: ignore[union-attr]
        (4, 5),
    )
    assert method.inputs().contexts == 3
    method.target_encoder.register_forward_hook(lambda _, given, __: image_rows.append(len(given[0])))
    method(replace(drawn[0], masks={"image": together}), START).total.backward()
    assert image_rows == [4]
    found = {name: value.grad.clone() for name, value in method.named_parameters() if value.grad is not None}
    method.zero_grad()
    for mask in masks:
        (method(replace(drawn[0], masks={"image": mask}), START).total / 3).backward()
    expected = {name: value.grad for name, value in method.named_parameters() if value.grad is not None}
    total = torch.stack([value.norm() for value in expected.values()]).norm()
    assert found.keys() == expected.keys() and total > 0
    assert all((found[name] - value).norm() <= 1e-6 * total for name, value in expected.items())


def test_targets_get_no_gradient() -> None:
    method = build()
    assert not any(value.requires_grad for value in method.target_encoder.parameters())
    method(make_batch(), START).total.backward()
    assert all(value.grad is None for value in method.target_encoder.parameters())
    assert all(value.grad is not None for value in method.context_encoder.parameters())
    assert all(value.grad is not None for value in method.predictor.parameters())


def test_forward_and_probe_change_nothing() -> None:
    method = build(model=replace(MODEL, drop_path=0.5))
    before = copy.deepcopy(method.state_dict())
    method(make_batch(), START)
    first, second = method.probe(make_batch(), START), method.probe(make_batch(), START)
    assert method.training and not method.target_encoder.training
    assert torch.equal(first.loss, second.loss)  # no drop path
    assert all(torch.equal(value, before[name]) for name, value in method.state_dict().items())


def test_probe_is_the_loss_and_its_targets() -> None:
    method, batch = build(), make_batch()
    probe = method.probe(batch, START)
    assert probe.loss.item() == pytest.approx(method(batch, START).total.item(), rel=1e-6)
    assert probe.targets is not None and probe.distance is not None and probe.target_positions is not None
    torch.testing.assert_close(probe.features, method.target_encoder(batch.views["image"][0]).patches.mean(1))
    torch.testing.assert_close(probe.targets.mean(-1), torch.zeros(4, 3, 4), rtol=0, atol=1e-5)
    assert probe.distance(probe.targets, probe.targets) == 0
    assert probe.target_positions.shape == probe.targets.shape[:3]


def test_moving_average_closed_form() -> None:
    """After n steps with a student that stands still: m^n start + (1 - m^n) student."""
    torch.manual_seed(0)
    student = nn.Linear(3, 2)
    teacher = EmaTeacher(student)
    start = copy.deepcopy(student.state_dict())
    with torch.no_grad():
        for value in student.parameters():
            value.add_(torch.randn_like(value))
    for _ in range(7):
        teacher.update(student, 0.9)
    for name, value in teacher.network.state_dict().items():
        expected = 0.9**7 * start[name] + (1 - 0.9**7) * student.state_dict()[name]
        torch.testing.assert_close(value, expected)


def test_teacher_passes_over_what_only_the_student_has() -> None:
    student = nn.Linear(3, 2)
    teacher = EmaTeacher(student)
    student.register_parameter("mask_token", nn.Parameter(torch.ones(3)))
    teacher.update(student, 0.5)
    assert {name for name, _ in teacher.network.named_parameters()} == {"weight", "bias"}


@pytest.mark.parametrize(("end", "expected"), [(1.0, [0.9, 0.95, 0.99]), (0.98, [0.9, 0.94, 0.972]), (0.9, [0.9, 0.9, 0.9])])
def test_momentum_of_each_step(end: float, expected: list[float]) -> None:
    """Rising to 1 as in the paper, to less, or constant."""
    method = build(replace(SETTINGS, ema_start=0.9, ema_end=end))
    assert [method.after_step(Progress(step, 10, 5))["momentum"] for step in (0, 5, 9)] == pytest.approx(expected)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_loss_falls(precision: str) -> None:
    """30 steps on one batch of noise, whose targets the moving average hardly changes."""
    method, batch = build(), make_batch(8)
    optimizer = torch.optim.AdamW([value for value in method.parameters() if value.requires_grad], lr=2e-3)
    losses = []
    for step in range(30):
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
            loss: Tensor = method(batch, START).total
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        method.after_step(Progress(step, 1000, 10))
        losses.append(loss.item())
    assert losses[-1] < 0.6 * losses[0]


def test_exports() -> None:
    assert set(build().exports()) == {"encoder", "predictor"}
    method = build(replace(SETTINGS, export_context_encoder=True))
    exports = method.exports()
    assert exports["encoder"].module is method.target_encoder.network
    assert exports["context_encoder"].module is method.context_encoder


def test_the_age_of_the_teacher_is_that_of_its_recursion() -> None:
    """Mean age of the students in the last teacher, from the moving average itself, step by step."""
    steps = 2000
    age = 0.0
    for step in range(steps):  # the teacher grows older by a step, and a share of it is replaced by the student of now
        age = (0.996 + 0.004 * step / steps) * (age + 1)
    (remark,) = build().remarks(steps)
    assert f"on average {age / steps:.0%} of the run behind" in remark
    assert "about 0.95 suits" in remark
    assert not build().remarks(9000)
    assert not build(replace(SETTINGS, ema_start=0.95)).remarks(steps)


def test_settings_that_cannot_work() -> None:
    with pytest.raises(ValueError, match=r"method.predictor_width=20 .* set method.predictor_heads=2"):
        build(replace(SETTINGS, predictor_width=20))
    batch = make_batch()
    tokens = TokenMask(torch.zeros(4, 20, dtype=torch.bool), (4, 5))
    with pytest.raises(ValueError, match="needs blocks"):
        build()(replace(batch, masks={"image": tokens}), START)


def test_layer_norm_makes_the_scale_of_features_irrelevant() -> None:
    method, batch = build(), make_batch()
    before = method(batch, START).total.item()
    with torch.no_grad():
        method.target_encoder.network.norm.weight.mul_(7.0)
        method.target_encoder.network.norm.bias.mul_(7.0)
    assert method(batch, START).total.item() == pytest.approx(before, rel=1e-4)
    assert F.smooth_l1_loss(torch.tensor(2.0), torch.tensor(0.0)).item() == 1.5  # beta 1
