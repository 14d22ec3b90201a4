"""MSN: what reaches the loss and what is coupled, views, cost, the published runs; its terms against slow restatements."""

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from openjepa.engine.optimizer import build_optimizer
from openjepa.masks.sampler import TokenShape
from openjepa.methods.base import Surroundings
from openjepa.methods.msn import Msn, assignment_terms, sinkhorn, smoothed_logits
from openjepa.models.heads import BatchNormHead
from openjepa.recipes import load_recipe
from openjepa.schedules import Progress
from openjepa.settings.masks import RandomPatchesSettings
from openjepa.settings.methods import MsnSettings
from openjepa.settings.models import ModelSettings
from openjepa.settings.run import OptimizationSettings
from openjepa.types import Batch, BlockMasks, TokenMask, ViewSpec

SETTINGS = MsnSettings(local_crops=3, local_size=8, masked_views=2, prototypes=10, output_width=8, head_hidden=24)
MODEL = ModelSettings(size="test", patch_size=4, class_token=True, positions="learned")
VISIBLE = [0, 2, 3, 7, 8, 11, 12, 13, 16, 19, 5, 6]
START, LATER = Progress(step=0, total_steps=100, steps_per_epoch=10), Progress(step=50, total_steps=100, steps_per_epoch=10)


def build(settings: MsnSettings = SETTINGS, model: ModelSettings = MODEL) -> Msn:
    torch.manual_seed(0)
    shapes = (TokenShape(context=len(VISIBLE), target=20 - len(VISIBLE), probability=1.0, num_targets=1),)
    return Msn(settings, Surroundings(model, ViewSpec(size=(16, 20)), (0.5, 0.5, 0.5), (0.2, 0.2, 0.2), shapes))


def make_batch(size: int = 4, settings: MsnSettings = SETTINGS) -> Batch:
    generator = torch.Generator().manual_seed(1)
    views = {"target": torch.randn(1, size, 3, 16, 20, generator=generator)}
    views["anchor"] = torch.randn(settings.masked_views, size, 3, 16, 20, generator=generator)
    if settings.local_crops:
        views["local"] = torch.randn(settings.local_crops, size, 3, 8, 8, generator=generator)
    masked = torch.ones(settings.masked_views * size, 20, dtype=torch.bool)
    masked[:, VISIBLE] = False
    return Batch(torch.arange(size), views, {"anchor": TokenMask(masked, (4, 5), num_masked=20 - len(VISIBLE))})


@torch.no_grad()
def shaken(method: Msn) -> Msn:
    """With moving averages unlike their networks, and normalization that scales and shifts."""
    for network in (method.anchor_encoder, method.anchor_head):
        for value in network.parameters():
            value.add_(0.1 * torch.randn_like(value))
    return method


def slow_head(head: BatchNormHead, rows: Tensor, eps: float = 1e-5) -> Tensor:
    """Each channel normalized by the biased variance of the rows, by hand."""
    layers = list(head.mlp) if head.input_norm is None else [head.input_norm, *head.mlp]
    for layer in layers:
        if isinstance(layer, nn.BatchNorm1d):
            channels = [(channel - channel.mean()) / (channel.var(unbiased=False) + eps).sqrt() for channel in rows.T]
            rows = torch.stack(channels, dim=1) * layer.weight + layer.bias
        else:
            rows = layer(rows)
    return rows


def test_dropped_patches_do_not_reach_the_loss() -> None:
    method, batch = shaken(build()), make_batch()
    loss = method(batch, START).total
    for patch, matters in ((VISIBLE[0], True), (1, False)):
        row, column = 4 * (patch // 5), 4 * (patch % 5)
        anchors = batch.views["anchor"].clone()
        anchors[..., row : row + 4, column : column + 4] += 1.0
        changed = method(replace(batch, views={**batch.views, "anchor": anchors}), START).total
        assert (changed != loss).item() == matters


def test_targets_give_the_prototypes_no_gradient() -> None:
    """Another target of the same assignment would have another gradient; its own is that of the cross-entropy alone."""
    settings = replace(SETTINGS, sinkhorn=False, mean_entropy_weight=0.0)
    method, batch = shaken(build(settings)), make_batch()
    method(batch, START).total.backward()
    _, target = method._target_logits(batch)
    anchors = method._anchor_logits(batch)
    assert not target.requires_grad
    loss = -(target.div(settings.sharpening_start).softmax(dim=-1) * anchors.log_softmax(dim=-1)).sum(dim=-1).mean()
    (expected,) = torch.autograd.grad(loss, method.prototypes.weight)
    assert expected.abs().max() > 1e-4
    torch.testing.assert_close(method.prototypes.weight.grad, expected, rtol=1e-4, atol=1e-6)


def test_the_optimizer_neither_decays_nor_clips_the_prototypes() -> None:
    method = build()
    optimizer = build_optimizer(method.named_parameters(), method.parameter_rules(), OptimizationSettings())
    groups = {id(value): group for group in optimizer.param_groups for value in group["params"]}
    prototypes = groups[id(method.prototypes.weight)]
    assert prototypes["params"] == [method.prototypes.weight]
    assert (prototypes["decay"], prototypes["clip"], prototypes["lr_scale"]) == (False, False, 1.0)
    for name, value in [*method.anchor_encoder.named_parameters(), *method.anchor_head.named_parameters()]:
        group = groups[id(value)]
        assert (group["decay"], group["clip"]) == (value.ndim > 1, True), name


def test_batch_normalization_keeps_nothing_and_never_uses_what_it_kept() -> None:
    """In evaluation mode too; so the moving averages, which are always in it, see the images at hand."""
    method, batch = shaken(build()), make_batch()
    assert not any("running" in name for name in method.state_dict())
    output = method.target_head(method.target_encoder(batch.views["target"][0]).class_token)
    head = method.target_head.network
    assert isinstance(head, BatchNormHead) and not head.training
    with torch.no_grad():
        expected = slow_head(head, method.target_encoder(batch.views["target"][0]).class_token)
    torch.testing.assert_close(output, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("changes", "terms"),
    [
        ({}, ("the batch normalization", "method.mean_entropy_weight", "method.sinkhorn")),
        ({"sinkhorn": False}, ("the batch normalization", "method.mean_entropy_weight")),
        ({"sinkhorn": False, "mean_entropy_weight": 0.0}, ("the batch normalization",)),
    ],
)
def test_what_couples_images_is_said_and_does(changes: dict[str, Any], terms: tuple[str, ...]) -> None:
    """The mean loss of two halves is not that of the whole."""
    method, batch = shaken(build(replace(SETTINGS, **changes))), make_batch()
    found = method.coupled_terms()
    assert len(found) == len(terms) and all(word in said.words for word, said in zip(terms, found, strict=True))
    halves = [method(half(batch, start), START).total.item() for start in (0, 2)]
    assert abs(sum(halves) / 2 - method(batch, START).total.item()) > 1e-3


def half(batch: Batch, start: int) -> Batch:
    mask = batch.masks["anchor"]
    assert isinstance(mask, TokenMask)
    views = {name: view[:, start : start + 2] for name, view in batch.views.items()}
    masked = replace(mask, masked=mask.masked[: len(mask.masked) // 2])  # all rows are the same
    return replace(batch, sample_ids=batch.sample_ids[:2], views=views, masks={"anchor": masked})


def test_the_sharpening_follows_its_line() -> None:
    method = build(replace(SETTINGS, sharpening_start=0.3, sharpening_end=0.1))
    for step, stretch, expected in ((0, 1.0, 0.3), (50, 1.0, 0.2), (50, 2.0, 0.25), (99, 1.0, 0.102)):
        assert method.after_step(Progress(step, 100, 10, stretch))["sharpening"] == pytest.approx(expected)


def test_views_of_three_kinds() -> None:
    settings = replace(SETTINGS, blur_probability=(0.1, 0.2, 0.3), solarize_probability=(0.4, 0.5, 0.6))
    inputs = build(settings).inputs()
    assert inputs.masked_views == ("anchor",)
    kinds = [inputs.views[name] for name in ("target", "anchor", "local")]
    assert [(view.count, view.size) for view in kinds] == [(1, (16, 20)), (2, (16, 20)), (3, (8, 8))]
    assert [view.scale for view in kinds] == [(0.3, 1.0), (0.3, 1.0), (0.05, 0.3)]
    for place, view in enumerate(kinds):
        assert len(view.colors) == view.count
        for color in view.colors:
            assert color.blur_probability == settings.blur_probability[place]
            assert color.solarize_probability == settings.solarize_probability[place]
            assert (color.jitter, color.jitter_probability) == ((0.4, 0.4, 0.4, 0.1), 0.8)
    assert set(build(replace(SETTINGS, local_crops=0)).inputs().views) == {"target", "anchor"}


def test_masks_of_other_kinds_are_refused() -> None:
    batch = make_batch()
    blocks = BlockMasks(torch.zeros(8, 3, dtype=torch.int64), torch.zeros(8, 1, 2, dtype=torch.int64), (4, 5))
    with pytest.raises(ValueError, match=r"masks.strategy='random_patches'"):
        build()(replace(batch, masks={"anchor": blocks}), START)


def test_short_runs_are_told_of_a_slow_target_encoder() -> None:
    (remark,) = build().remarks(1000)
    assert remark.startswith("method.ema_start=0.996 is slow for 1000 steps")
    assert build(replace(SETTINGS, ema_start=0.9)).remarks(1000) == [] == build().remarks(10**5)


# patch, width, epochs, dropped share, small crops
PUBLISHED = {
    "msn-vits16": (16, 384, 800, 0.15, 96),
    "msn-vitb16": (16, 768, 600, 0.3, 96),
    "msn-vitb8": (8, 768, 300, 0.3, 96),
    "msn-vitl7": (7, 1024, 200, 0.7, 98),
    "msn-vitb4": (4, 768, 300, 0.7, 96),
}


@pytest.mark.parametrize("preset", ["official", "paper"])
@pytest.mark.parametrize("name", PUBLISHED)
def test_published_runs(name: str, preset: str) -> None:
    config = load_recipe(name, preset)
    optim, method, data, model, masks = config.optim, config.method, config.data, config.model, config.masks
    assert isinstance(method, MsnSettings) and isinstance(masks, RandomPatchesSettings)
    found = (model.patch_size, model.shape().width, optim.epochs, masks.ratio, method.local_size)
    assert found == PUBLISHED[name] and masks.shared
    assert (model.class_token, model.positions, model.resampling_offset, model.drop_path) == (True, "learned", 0.0, 0.0)
    assert (data.image_size, data.crop_scale, method.local_scale) == (224, (0.3, 1.0), (0.05, 0.3))
    assert (method.masked_views, method.local_crops, method.jitter) == (1, 10, (0.4, 0.4, 0.4, 0.1))
    assert (method.prototypes, method.output_width, method.head_hidden) == (1024, 256, 2048)
    assert (method.temperature, method.sharpening_start, method.sharpening_end) == (0.1, 0.25, 0.25)
    assert (method.ema_start, method.ema_end, method.entropy_weight, method.label_smoothing) == (0.996, 1.0, 0.0, 0.0)
    assert (optim.batch_size, optim.start_lr, optim.lr, optim.final_lr) == (1024, 2e-4, 1e-3, 1e-6)
    assert (optim.warmup_epochs, optim.clip_grad, optim.clip_mode, optim.schedule_steps) == (15, 3.0, "global", "from_one")
    assert (optim.weight_decay, optim.final_weight_decay, optim.weight_decay_schedule) == (0.04, 0.4, "cosine")
    differences = (method.sinkhorn, method.mean_entropy_weight, optim.schedule_stretch, method.head_input_norm)
    assert differences == ((True, 1.0, 1.25, False) if preset == "official" else (False, 5.0, 1.0, True))


# ---- loss and energies


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
