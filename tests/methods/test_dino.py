"""DINO: loss against a slow restatement, frozen last layer, center, energies, views, cost, the published runs."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from openjepa.methods.base import Surroundings
from openjepa.methods.dino import Dino
from openjepa.methods.teachers import mean_age, renewal_rates
from openjepa.recipes import load_recipe
from openjepa.schedules import Progress, cosine_momentum, momentum
from openjepa.settings.methods import DinoSettings
from openjepa.settings.models import ModelSettings
from openjepa.types import Batch, ViewSpec

SETTINGS = DinoSettings(
    local_crops=3, local_size=8, outputs=30, head_hidden=24, bottleneck=16, teacher_temperature_warmup_epochs=3
)
MODEL = ModelSettings(size="test", patch_size=4, class_token=True, positions="learned")
START, LATER = Progress(step=0, total_steps=100, steps_per_epoch=10), Progress(step=15, total_steps=100, steps_per_epoch=10)


def build(settings: DinoSettings = SETTINGS, model: ModelSettings = MODEL) -> Dino:
    torch.manual_seed(0)
    return Dino(settings, Surroundings(model, ViewSpec(size=(16, 20)), (0.5, 0.5, 0.5), (0.2, 0.2, 0.2), ()))


def make_batch(size: int = 4, num_local: int = 3) -> Batch:
    generator = torch.Generator().manual_seed(1)
    views = {"global": torch.randn(2, size, 3, 16, 20, generator=generator)}
    if num_local:
        views["local"] = torch.randn(num_local, size, 3, 8, 8, generator=generator)
    return Batch(torch.arange(size), views)


@torch.no_grad()
def shaken(method: Dino) -> Dino:
    """With a teacher unlike its student and a center that is not zero."""
    for value in [*method.student.parameters(), *method.student_head.parameters()]:
        if value.requires_grad:
            value.add_(0.05 * torch.randn_like(value))
    method.center.value.normal_(std=0.2)
    return method


@torch.no_grad()
def slow_pairs(method: Dino, batch: Batch, temperature: float) -> dict[tuple[int, int], Tensor]:
    """Cross-entropy of every image [B] for each pair of target crop i and student crop v, one crop at a time (algorithm 1)."""

    def tokens(encoder: nn.Module, crop: Tensor) -> Tensor:
        return encoder(crop).class_token  # type: ignore[no-any-return]

    crops = [crop for view in batch.views.values() for crop in view]
    student = [method.student_head(tokens(method.student, crop)) / method.settings.student_temperature for crop in crops]
    teacher = [method.teacher_head(tokens(method.teacher.network, crop)) - method.center.value for crop in crops[:2]]
    targets = [(outputs / temperature).softmax(dim=-1) for outputs in teacher]
    return {
        (i, v): -(targets[i] * student[v].log_softmax(dim=-1)).sum(dim=-1)
        for i in range(2)
        for v in range(len(crops))
        if v != i
    }


@pytest.mark.parametrize("num_local", [0, 3])
def test_loss_is_the_mean_over_pairs_of_crops(num_local: int) -> None:
    """In the second epoch of three the temperature has grown half-way from 0.04 to 0.07."""
    method, batch = shaken(build(replace(SETTINGS, local_crops=num_local))), make_batch(num_local=num_local)
    pairs = slow_pairs(method, batch, 0.055)
    assert len(pairs) == 2 * (2 + num_local) - 2
    expected = torch.stack(list(pairs.values())).mean()
    torch.testing.assert_close(method(batch, LATER).total.detach(), expected, rtol=1e-5, atol=1e-5)


def test_energy_is_the_term_of_the_second_crop_under_the_first() -> None:
    """On the diagonal that of the loss; elsewhere the target of another image."""
    method, batch = shaken(build()), make_batch()
    energies = method.energies(batch, LATER)
    torch.testing.assert_close(energies.diagonal(), slow_pairs(method, batch, 0.055)[0, 1], rtol=1e-5, atol=1e-5)
    swapped = replace(batch, views={"global": torch.stack([batch.views["global"][0].roll(-1, 0), batch.views["global"][1]])})
    off = torch.stack([energies[i, (i + 1) % 4] for i in range(4)])
    torch.testing.assert_close(off, method.energies(swapped, LATER).diagonal(), rtol=1e-5, atol=1e-5)


def test_the_last_layer_stands_still_in_the_first_epoch() -> None:
    method = build(replace(SETTINGS, norm_last_layer=False))
    for step, frozen in ((0, True), (9, True), (10, False)):
        progress = Progress(step, 100, 10)
        method.zero_grad()
        method(make_batch(), progress).total.backward()
        method.before_step(progress)
        last = list(method.student_head.last_layer.parameters())
        assert len(last) == 2 and all((value.grad is None) == frozen for value in last)
        assert all(value.grad is not None for value in [*method.student.parameters(), *method.student_head.mlp.parameters()])


def test_the_center_is_the_one_of_the_steps_before() -> None:
    """The loss does not see the outputs of its own step in it; after the step it has moved by a tenth of their mean."""
    method, batch = shaken(build()), make_batch()
    before, first = method.center.value.clone(), method(batch, START).total
    assert torch.equal(first, method(batch, START).total) and torch.equal(before, method.center.value)
    with torch.no_grad():
        outputs = torch.stack([method.teacher_head(method.teacher(crop).class_token) for crop in batch.views["global"]])
    method.after_step(START)
    torch.testing.assert_close(method.center.value, 0.9 * before + 0.1 * outputs.mean(dim=(0, 1))[None])


def test_views_of_two_sizes_with_colors_of_three_kinds() -> None:
    view = ViewSpec(size=(16, 20), scale=(0.4, 1.0), interpolation="bicubic", horizontal_flip=True)
    method = Dino(SETTINGS, Surroundings(MODEL, view, (0.5, 0.5, 0.5), (0.2, 0.2, 0.2), ()))
    large, small = method.inputs().views["global"], method.inputs().views["local"]
    assert not method.inputs().masked_views
    assert (large.count, large.size, large.scale, len(large.colors)) == (2, (16, 20), (0.4, 1.0), 2)
    assert (small.count, small.size, small.scale, len(small.colors)) == (3, (8, 8), (0.05, 0.4), 3)
    assert small.interpolation == "bicubic" and small.horizontal_flip and large.horizontal_flip
    kinds = [*large.colors, small.colors[0]]
    assert [color.blur_probability for color in kinds] == [1.0, 0.1, 0.5]
    assert [color.solarize_probability for color in kinds] == [0.0, 0.2, 0.0]
    for color in (*large.colors, *small.colors):
        assert (color.jitter, color.jitter_probability) == ((0.4, 0.4, 0.2, 0.1), 0.8)
        assert (color.grayscale_probability, color.blur_sigma) == (0.2, (0.1, 2.0))
    assert set(build(replace(SETTINGS, local_crops=0)).inputs().views) == {"global"}


def test_only_batch_norm_in_the_head_couples_images() -> None:
    batch = make_batch()
    views = {name: view[:, :2] for name, view in batch.views.items()}
    part = replace(batch, sample_ids=batch.sample_ids[:2], views=views)
    for batch_norm in (False, True):
        method = shaken(build(replace(SETTINGS, head_batch_norm=batch_norm)))
        alone, among_others = method.energies(part, START), method.energies(batch, START)[:2, :2]
        assert torch.allclose(alone, among_others, rtol=1e-5, atol=1e-5) != batch_norm
        assert bool(method.coupled_terms()) == batch_norm


def test_a_uniform_teacher_has_the_entropy_of_all_outputs() -> None:
    method = build()
    with torch.no_grad():
        method.teacher_head.network.last_layer.weight_g.zero_()
    output = method(make_batch(), START)
    assert output.diagnostics["target_entropy"].item() == pytest.approx(torch.tensor(30.0).log().item(), rel=1e-5)


@pytest.mark.parametrize("schedule", [momentum, cosine_momentum])
@pytest.mark.parametrize(("start", "end", "steps"), [(0.996, 1.0, 2000), (0.99, 0.99, 300), (0.9, 1.0, 7)])
def test_the_age_of_a_teacher_is_that_of_its_recursion(schedule: Any, start: float, end: float, steps: int) -> None:
    """Mean age of the students in the last average, step by step: it grows by one, and a share is replaced by the present."""
    age = 0.0
    for step in range(steps):
        age = schedule(start, end, Progress(step, steps, steps)) * (age + 1)
    assert mean_age(renewal_rates(schedule, start, end, steps), steps) == pytest.approx(age / steps, abs=0.04)


def test_short_runs_are_told_of_a_slow_teacher() -> None:
    (remark,) = build().remarks(1000)
    assert remark.startswith("method.ema_start=0.996 is slow for 1000 steps") and "about 0.9 suits" in remark
    (nothing_faster,) = build(replace(SETTINGS, ema_start=0.0)).remarks(5)
    assert nothing_faster.endswith("behind the network that it follows")
    assert build(replace(SETTINGS, ema_start=0.9)).remarks(1000) == [] == build().remarks(10**5)


# patch, width, epochs, whether rows of the last layer keep their length
PUBLISHED = {
    "dino-vits16": (16, 384, 300, False),
    "dino-vits8": (8, 384, 800, False),
    "dino-vitb16": (16, 768, 400, True),
    "dino-vitb8": (8, 768, 300, True),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_runs(name: str) -> None:
    config = load_recipe(name)
    optim, method, data, model = config.optim, config.method, config.data, config.model
    assert isinstance(method, DinoSettings)
    assert (model.patch_size, model.shape().width, optim.epochs, method.norm_last_layer) == PUBLISHED[name]
    assert (model.class_token, model.positions, model.resampling_offset, model.drop_path) == (True, "learned", 0.1, 0.1)
    assert (data.image_size, data.crop_scale, data.interpolation, data.horizontal_flip) == (224, (0.4, 1.0), "bicubic", True)
    assert (method.local_crops, method.local_size, method.local_scale, method.outputs) == (8, 96, (0.05, 0.4), 65536)
    assert (method.head_layers, method.head_hidden, method.bottleneck) == (3, 2048, 256)
    assert (method.student_temperature, method.teacher_temperature_start, method.teacher_temperature) == (0.1, 0.04, 0.07)
    assert (method.teacher_temperature_warmup_epochs, method.freeze_last_layer_epochs) == (30, 1)
    assert (method.ema_start, method.ema_end, method.center_momentum) == (0.996, 1.0, 0.9)
    assert optim.lr == pytest.approx(5e-4 * optim.batch_size / 256)
    assert (optim.start_lr, optim.final_lr, optim.warmup_epochs) == (0.0, 1e-6, 10)
    assert (optim.weight_decay, optim.final_weight_decay, optim.weight_decay_schedule) == (0.04, 0.4, "cosine")
    assert (optim.clip_grad, optim.clip_mode, optim.schedule_steps) == (3.0, "per_tensor", "inclusive")
