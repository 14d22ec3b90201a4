"""iBOT: both losses against a slow restatement, places of masked patches, centers, energies, cost, the published runs."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from openjepa.masks.blockwise import Blockwise
from openjepa.masks.sampler import TokenShape
from openjepa.methods.base import Surroundings
from openjepa.methods.ibot import IBot
from openjepa.models.heads import TokenHead
from openjepa.recipes import load_recipe
from openjepa.schedules import Progress
from openjepa.settings.masks import BlockwiseSettings, MaskSettings
from openjepa.settings.methods import IBotSettings
from openjepa.settings.models import EncoderConfig, ModelSettings
from openjepa.types import Batch, BlockMasks, TokenMask, ViewSpec

SETTINGS = IBotSettings(
    local_crops=3,
    local_size=8,
    outputs=30,
    patch_outputs=22,
    head_hidden=24,
    bottleneck=16,
    teacher_temperature_warmup_epochs=3,
    patch_temperature_start=0.05,
    patch_temperature=0.09,
    patch_start_epoch=1,
)
MODEL = ModelSettings(size="test", patch_size=4, class_token=True, positions="learned")
START, LATER = Progress(step=0, total_steps=100, steps_per_epoch=10), Progress(step=25, total_steps=100, steps_per_epoch=10)
CLASS_TEMPERATURE, PATCH_TEMPERATURE = 0.07, 0.07
"""In the third epoch of LATER: that of class tokens has grown in three epochs from 0.04; that of patches began one later."""
NUM_MASKED = [[0, 3, 9, 1], [7, 0, 2, 9]]
"""Masked patches of the four images of each large crop."""


def build(settings: IBotSettings = SETTINGS, model: ModelSettings = MODEL, places: int = 9) -> IBot:
    torch.manual_seed(0)
    shapes = (TokenShape(20 - places, 4, 1.0, 1, most_targets=places),)
    return IBot(settings, Surroundings(model, ViewSpec(size=(16, 20)), (0.5, 0.5, 0.5), (0.2, 0.2, 0.2), shapes))


def make_batch(copies: int = 1, num_local: int = 3) -> Batch:
    """Four images, or several copies of their masks."""
    generator = torch.Generator().manual_seed(1)
    counts = [count for crop in NUM_MASKED for count in crop * copies]
    order = torch.stack([torch.randperm(20, generator=generator) for _ in counts])
    masks = TokenMask(order < torch.tensor(counts)[:, None], (4, 5))
    views = {"global": torch.randn(2, 4 * copies, 3, 16, 20, generator=generator)}
    if num_local:
        views["local"] = torch.randn(num_local, 4 * copies, 3, 8, 8, generator=generator)
    return Batch(torch.arange(4 * copies), views, {"global": masks})


@torch.no_grad()
def shaken(method: IBot) -> IBot:
    """With a teacher unlike its student and centers that are not zero."""
    for value in [*method.student.parameters(), *method.student_head.parameters()]:
        if value.requires_grad:
            value.add_(0.05 * torch.randn_like(value))
    method.center.value.normal_(std=0.2)
    method.patch_center.value.normal_(std=0.2)
    return method


def head_of(network: Any) -> Any:
    return network.head if isinstance(network, TokenHead) else network.network.head


def masks_of(batch: Batch) -> Tensor:
    masks = batch.masks["global"]
    assert isinstance(masks, TokenMask)
    return masks.masked.unflatten(0, (2, -1))  # [2, B, N]


@torch.no_grad()
def slow_class_pairs(method: IBot, batch: Batch) -> dict[tuple[int, int], Tensor]:
    """Cross-entropy of every image [B] for each pair of whole large crop i and student crop v, one crop at a time."""
    masks = masks_of(batch)
    student = [method.student(crop, replace=mask) for crop, mask in zip(batch.views["global"], masks, strict=True)]
    student += [method.student(crop) for crop in batch.views.get("local", ())]
    logits = [head_of(method.student_head)(encoded.class_token) / 0.1 for encoded in student]
    outputs = [head_of(method.teacher_head)(method.teacher(crop).class_token) for crop in batch.views["global"]]
    targets = [((output - method.center.value) / CLASS_TEMPERATURE).softmax(dim=-1) for output in outputs]
    return {
        (i, v): -(targets[i] * logits[v].log_softmax(dim=-1)).sum(dim=-1)
        for i in range(2)
        for v in range(len(logits))
        if v != i
    }


@torch.no_grad()
def slow_patch_loss(method: IBot, batch: Batch) -> float:
    """One masked patch at a time."""
    losses = []
    for crop, masks in zip(batch.views["global"], masks_of(batch), strict=True):
        for image, mask in zip(crop, masks, strict=True):
            student, teacher = method.student(image[None], replace=mask[None]), method.teacher(image[None])
            terms = []
            for patch in mask.nonzero()[:, 0]:
                output = head_of(method.teacher_head)(teacher.patches[0, patch], patches=True)
                target = ((output - method.patch_center.value[0]) / PATCH_TEMPERATURE).softmax(dim=0)
                logits = head_of(method.student_head)(student.patches[0, patch], patches=True) / 0.1
                terms.append(-(target * logits.log_softmax(dim=0)).sum().item())
            losses.append(sum(terms) / max(1, len(terms)))
    return sum(losses) / len(losses)


@pytest.mark.parametrize("shared", [True, False])
@pytest.mark.parametrize("num_local", [0, 3])
def test_losses_one_crop_and_one_patch_at_a_time(num_local: int, shared: bool) -> None:
    settings = replace(SETTINGS, local_crops=num_local, shared_head=shared, class_weight=0.5, patch_weight=2.0)
    method, batch = shaken(build(settings)), make_batch(num_local=num_local)
    assert method.patch_center.value.shape == (1, 30 if shared else 22)
    pairs = slow_class_pairs(method, batch)
    assert len(pairs) == 2 * (2 + num_local) - 2
    output = method(batch, LATER)
    assert output.parts["class"].item() == pytest.approx(0.5 * torch.stack(list(pairs.values())).mean().item(), rel=1e-5)
    assert output.parts["patch"].item() == pytest.approx(2.0 * slow_patch_loss(method, batch), rel=1e-5)
    assert output.total.item() == pytest.approx(sum(part.item() for part in output.parts.values()), rel=1e-6)


def test_places_beyond_the_fullest_mask_change_neither_loss_nor_gradients() -> None:
    results = []
    for places in (9, 14, 20):
        method = shaken(build(places=places))
        loss = method(make_batch(), LATER).total
        loss.backward()
        gradients = [value.grad for value in method.parameters() if value.grad is not None]
        results.append((loss.detach(), *gradients))
    assert len(results[0]) > 30
    for wider in results[1:]:
        for ours, theirs in zip(results[0], wider, strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("masks", [BlockwiseSettings(ratios=(0.0, 0.3), spreads=(0.0, 0.2)), BlockwiseSettings(ratios=(0.3,))])
def test_blockwise_masks_never_need_more_places_than_they_say(masks: BlockwiseSettings) -> None:
    sampler = Blockwise(masks, (6, 6))
    (shape,) = sampler.shapes()
    drawn = sampler(np.arange(4000), 0, 0)
    assert isinstance(drawn, TokenMask)
    most = int(drawn.masked.sum(dim=1).max())
    assert shape.places == {2: 18, 1: 10}[len(masks.ratios)] and shape.places - 1 <= most <= shape.places


def test_the_patch_center_counts_every_patch_once_the_step_is_done() -> None:
    method, batch = shaken(build()), make_batch()
    before, first = method.patch_center.value.clone(), method(batch, START).total
    assert torch.equal(first, method(batch, START).total) and torch.equal(before, method.patch_center.value)
    with torch.no_grad():
        patches = [method.teacher(crop).patches for crop in batch.views["global"]]
        outputs = head_of(method.teacher_head)(torch.stack(patches), patches=True)
    method.after_step(START)
    expected = 0.9 * before + 0.1 * outputs.mean(dim=(0, 1, 2))[None]
    torch.testing.assert_close(method.patch_center.value, expected)


def test_microbatches_move_the_centers_as_the_whole_batch_does() -> None:
    whole, split = shaken(build()), shaken(build())
    batch = make_batch()
    whole(batch, START)
    for images in (slice(0, 2), slice(2, 4)):
        masks = TokenMask(masks_of(batch)[:, images].flatten(0, 1), (4, 5))
        views = {name: view[:, images] for name, view in batch.views.items()}
        split(Batch(torch.arange(2), views, {"global": masks}), START)
    for method in (whole, split):
        method.after_step(START)
    torch.testing.assert_close(whole.center.value, split.center.value)
    torch.testing.assert_close(whole.patch_center.value, split.patch_center.value)


def test_energy_is_the_class_term_of_the_masked_second_crop_under_the_first() -> None:
    """On the diagonal that of the loss; elsewhere the target of another image."""
    method, batch = shaken(build()), make_batch()
    energies = method.energies(batch, LATER)
    torch.testing.assert_close(energies.diagonal(), slow_class_pairs(method, batch)[0, 1], rtol=1e-5, atol=1e-5)
    first, second = batch.views["global"]
    shifted = replace(batch, views={"global": torch.stack([first.roll(-1, 0), second])})
    off = torch.stack([energies[i, (i + 1) % 4] for i in range(4)])
    torch.testing.assert_close(off, method.energies(shifted, LATER).diagonal(), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("shared", [True, False])
def test_last_layers_stand_still_in_the_first_epoch(shared: bool) -> None:
    method = build(replace(SETTINGS, shared_head=shared))
    for step, frozen in ((9, True), (10, False)):
        progress = Progress(step, 100, 10)
        method.zero_grad()
        method(make_batch(), progress).total.backward()
        method.before_step(progress)
        head = head_of(method.student_head)
        layers = [layer for layer in (head.last_layer, head.last_layer_patches) if layer is not None]
        assert len(layers) == (1 if shared else 2)
        assert all((layer.weight_v.grad is None) == frozen for layer in layers)
        assert all(value.grad is not None for value in [*method.student.parameters(), *head.mlp.parameters()])


def test_what_the_student_alone_has_is_not_exported() -> None:
    """The token for masked patches: the teacher sees whole crops."""
    method = build()
    export = method.exports()["encoder"]
    assert isinstance(export.config, EncoderConfig)
    assert (export.config.mask_token, export.config.pooling) == (False, "class_token")
    assert set(method.student.state_dict()) - set(export.module.state_dict()) == {"mask_token"}


def test_temperatures_of_both_kinds() -> None:
    """That of patches begins to grow when the one of class tokens has grown for an epoch."""
    method = build()
    found = [method.after_step(Progress(10 * epoch, 100, 10)) for epoch in range(5)]
    assert [values["teacher_temperature"] for values in found] == pytest.approx([0.04, 0.055, 0.07, 0.07, 0.07])
    assert [values["patch_temperature"] for values in found] == pytest.approx([0.05, 0.05, 0.07, 0.09, 0.09])


def test_masks_of_blocks_are_refused() -> None:
    batch = make_batch()
    blocks = BlockMasks(torch.zeros(8, 5).long(), torch.zeros(8, 1, 4).long(), (4, 5))
    with pytest.raises(ValueError, match=r"masks.strategy='blockwise'"):
        build()(replace(batch, masks={"global": blocks}), START)


@pytest.mark.parametrize(("name", "width", "epochs"), [("ibot-vits16", 384, 800), ("ibot-vitb16", 768, 400)])
def test_published_runs(name: str, width: int, epochs: int) -> None:
    config = load_recipe(name)
    optim, method, data, model = config.optim, config.method, config.data, config.model
    assert isinstance(method, IBotSettings)
    assert (model.patch_size, model.shape().width, optim.epochs) == (16, width, epochs)
    assert (model.class_token, model.positions, model.resampling_offset) == (True, "learned", 0.1)
    assert (data.image_size, data.crop_scale, data.interpolation, data.horizontal_flip) == (224, (0.25, 1.0), "bicubic", True)
    assert (method.local_crops, method.local_size, method.local_scale) == (10, 96, (0.05, 0.25))
    assert (method.outputs, method.shared_head, method.norm_last_layer) == (8192, True, False)
    assert (method.class_weight, method.patch_weight, method.patch_start_epoch) == (1.0, 1.0, 0)
    assert (method.teacher_temperature_start, method.teacher_temperature) == (0.04, 0.07)
    assert (method.patch_temperature_start, method.patch_temperature) == (0.04, 0.07)
    assert (method.teacher_temperature_warmup_epochs, method.student_temperature) == (30, 0.1)
    assert (method.center_momentum, method.patch_center_momentum) == (0.9, 0.9)
    masks: MaskSettings = config.masks
    assert isinstance(masks, BlockwiseSettings)
    assert (masks.ratios, masks.spreads) == ((0.0, 0.3), (0.0, 0.2))
    assert optim.batch_size == 1024 and optim.lr == pytest.approx(5e-4 * 1024 / 256)
    assert (optim.clip_grad, optim.clip_mode, optim.schedule_steps) == (3.0, "per_tensor", "inclusive")
