"""Switches of I-JEPA's prediction: the joint pass, noise on positions, sampled targets, the loss on context tokens."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from openjepa.checks import check
from openjepa.checks.methods import without_effect
from openjepa.masks.sampler import TokenShape
from openjepa.methods.base import Surroundings
from openjepa.methods.ijepa import IJepa
from openjepa.methods.predictions import SampledTargets, context_loss_weight, nearness
from openjepa.models.transformer import ImageSlots
from openjepa.refusals import Refusal
from openjepa.schedules import Progress
from openjepa.settings.fields import out_of_range
from openjepa.settings.methods import IJepaSettings
from openjepa.settings.models import ModelSettings
from openjepa.settings.run import MonitorSettings
from openjepa.training.loop import train
from openjepa.training.startup import default_view, step_costs
from openjepa.types import Batch, BlockMasks, ViewSpec
from tests.helpers.continued import final_state, stop_after_a_step
from tests.helpers.costs import counted
from tests.helpers.images import write_folder
from tests.helpers.method_steps import batch_of, parts, rows
from tests.helpers.small_runs import small_config

LATE = Progress(step=50, total_steps=100, steps_per_epoch=10)
SETTINGS = IJepaSettings(predictor_width=24, predictor_depth=2)
MODEL = ModelSettings(size="test", patch_size=4, initialization="fan_in")
ALL: dict[str, Any] = {"predictor_pass": "joint", "position_noise": 0.25, "sampled_targets": 2, "context_loss": 0.5}


def build(**settings: Any) -> IJepa:
    torch.manual_seed(0)
    shapes = (TokenShape(5, 4, 1.0, 3),)
    surroundings = Surroundings(MODEL, ViewSpec(size=(16, 20)), (0.5, 0.5, 0.5), (0.2, 0.2, 0.2), shapes)
    return IJepa(replace(SETTINGS, **settings), surroundings)


def make_batch(size: int = 4) -> Batch:
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(1, size, 3, 16, 20, generator=generator)
    order = torch.stack([torch.randperm(20, generator=generator) for _ in range(size)])
    masks = BlockMasks(order[:, :5], order[:, 5:17].view(size, 3, 4), (4, 5))
    return Batch(torch.arange(size), {"image": images}, {"image": masks})


def masks_of(batch: Batch) -> BlockMasks:
    masks = batch.masks["image"]
    assert isinstance(masks, BlockMasks)
    return masks


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({}, 0.6323153),
        ({"predictor_pass": "joint"}, 0.6246898),
        ({"predictor_pass": "cross"}, 0.6320217),
        ({"position_noise": 0.25}, 0.6289984),
        ({"sampled_targets": 2}, 0.6327295),
        ({"context_loss": 0.5}, 0.9818755),
        (ALL, 0.9813932),
    ],
    ids=str,
)
def test_golden_step(settings: dict[str, Any], expected: float) -> None:
    """The loss after one step of plain gradient descent at a large rate."""
    method, batch = build(**settings), make_batch()
    torch.manual_seed(1)
    method(batch, LATE).total.backward()
    with torch.no_grad():
        for value in method.parameters():
            if value.grad is not None:
                value.sub_(value.grad)
    assert method(batch, LATE).total.item() == pytest.approx(expected, rel=1e-5)


def test_all_switches_learn_and_looks_have_no_randomness() -> None:
    method, batch = build(**ALL), make_batch()
    method(batch, LATE).total.backward()
    for name, value in method.named_parameters():
        assert (value.grad is not None) is not name.startswith("target_encoder"), name
    looks = [method.probe(batch, LATE) for _ in range(2)]
    assert torch.equal(looks[0].loss, looks[1].loss) and looks[0].targets is not None
    assert looks[0].targets.shape == (4, 3, 4, 48), "all targets"
    assert torch.equal(method.predicted_features(batch, LATE), method.predicted_features(batch, LATE))
    config = method.exports()["predictor"].config
    assert (config.passes, config.position_noise) == ("joint", 0.25)  # type: ignore[attr-defined]


def test_parts_of_a_batch_draw_what_the_whole_does() -> None:
    method, batch = build(**ALL), make_batch()

    def gradients(*shares: tuple[int, int]) -> dict[str, torch.Tensor]:
        method.zero_grad()
        for first, number in shares:
            ImageSlots(method).set(first, number, 4)
            torch.manual_seed(3)
            (method(rows(batch, list(range(first, first + number))), LATE).total * number / 4).backward()
        return {name: value.grad.clone() for name, value in method.named_parameters() if value.grad is not None}

    whole, split = gradients((0, 4)), gradients((0, 1), (1, 3))
    size = torch.stack([value.norm() for value in whole.values()]).norm()
    assert all((split[name] - value).norm() < 1e-5 * size for name, value in whole.items())


def test_a_sample_of_each_block_is_predicted_and_every_patch_is_as_likely() -> None:
    sample, masks = (
        SampledTargets(3, (TokenShape(4, 5, 1.0, 2),)),
        BlockMasks(torch.arange(4).expand(2000, -1), torch.arange(10).view(1, 2, 5).expand(2000, -1, -1), (2, 7)),
    )
    found = sample(masks).targets
    assert found.shape == (2000, 2, 3) and torch.equal(found // 5, torch.arange(2).view(1, 2, 1).expand_as(found))
    assert all(len(set(row)) == 6 for row in found.flatten(1).tolist())
    counts = found.flatten().bincount(minlength=10)
    assert (counts - 1200).abs().max() < 5 * (2000 * 0.6 * 0.4) ** 0.5
    assert sample.eval()(masks) is masks
    small = replace(masks, targets=masks.targets[:, :, :3])
    assert sample.train()(small) is small


def test_the_loss_is_that_of_the_sample_alone() -> None:
    sampled, plain, batch = build(sampled_targets=2), build(), make_batch()
    torch.manual_seed(5)
    loss = sampled(batch, LATE).total
    torch.manual_seed(5)
    assert sampled.sampled_targets is not None and plain.sampled_targets is None
    asked = sampled.sampled_targets(masks_of(batch))
    assert torch.equal(loss, plain(replace(batch, masks={"image": asked}), LATE).total)


def test_near_tokens_count_more_and_padding_nothing() -> None:
    """On 4 x 5 patches, with the target 6 (row 1, column 1) and 8 (row 1, column 3)."""
    context = torch.tensor([[1, 14, 16, 0]])  # distances 1; sqrt 2 to 8; 2 to 6; padding
    masks = BlockMasks(context, torch.tensor([[[6], [8]]]), (4, 5), torch.tensor([[True, True, True, False]]))
    expected = torch.tensor([1.0, 2**-0.25, 2**-0.5, 0.0])
    torch.testing.assert_close(nearness(masks)[0, 0], expected * 4 / 3)
    torch.testing.assert_close(nearness(replace(masks, context_valid=None))[0, 0, :3], expected[:3])
    both = replace(masks, context=context.expand(2, -1), targets=masks.targets.expand(2, -1, -1))
    both = replace(both, context_valid=torch.tensor([[True, True, True, False], [True] * 4]))
    torch.testing.assert_close(nearness(both)[:1], nearness(masks))  # the contexts beside it change nothing


@pytest.mark.parametrize("passes", ["separate", "joint"])
def test_the_context_loss_one_token_at_a_time(passes: str) -> None:
    method, batch = build(context_loss=0.5, predictor_pass=passes, loss="l2"), make_batch(2)
    plain = build(predictor_pass=passes, loss="l2")
    images, masks = batch.views["image"][0], masks_of(batch)
    tokens = method.context_encoder(images, masks.context).patches
    _, predicted = method.predictor(tokens, masks.context, masks.targets, with_context=True)
    whole = method.target_encoder(images).patches
    terms = []
    for image in range(2):
        for outputs in predicted[image]:
            for token, patch in enumerate(masks.context[image].tolist()):
                wanted = whole[image, patch]
                wanted = (wanted - wanted.mean()) / (wanted.var(unbiased=False) + 1e-5).sqrt()
                apart = [
                    ((patch // 5 - other // 5) ** 2 + (patch % 5 - other % 5) ** 2) ** 0.5
                    for other in masks.targets[image].flatten().tolist()
                ]
                terms.append((outputs[token] - wanted).square().mean() / min(apart) ** 0.5)
    assert len(terms) == 2 * 5 * (3 if passes == "separate" else 1)
    output, blocks = method(batch, LATE), plain(batch, LATE).total
    torch.testing.assert_close(output.parts["context"], torch.stack(terms).mean())
    torch.testing.assert_close(output.parts["targets"], blocks)
    torch.testing.assert_close(output.total, blocks + 0.5 * torch.stack(terms).mean())
    early = method(batch, Progress(10, 100, 10))
    torch.testing.assert_close(early.total, blocks)


def test_the_weight_of_the_context_loss_rises_by_share_of_the_run() -> None:
    settings = replace(SETTINGS, context_loss=0.4, context_loss_warmup=(0.1, 0.3))
    found = [context_loss_weight(settings, Progress(step, 100, 10)) for step in (0, 10, 15, 20, 30, 99)]
    assert found == pytest.approx([0, 0, 0.1, 0.2, 0.4, 0.4])
    at_once = replace(settings, context_loss_warmup=(0.0, 0.0))
    assert context_loss_weight(at_once, Progress(0, 100, 10)) == 0.4


def test_what_cannot_work_is_refused_or_said() -> None:
    with pytest.raises(ValueError, match=r"method.sampled_targets=4 leaves nothing out .* at most 4 patches: use at most 3"):
        build(sampled_targets=4)
    config = small_config(Path("images"), Path("runs"))
    with pytest.raises(Refusal, match=r"method.context_loss=0.5 needs .* set method.predictor_pass=joint"):
        check(replace(config, method=replace(config.method, predictor_pass="cross", context_loss=0.5)))
    wrong = {"position_noise": -0.1, "sampled_targets": 0, "context_loss": -1.0, "context_loss_warmup": (0.3, 0.1)}
    assert {name for name, _ in out_of_range(replace(SETTINGS, **wrong))} == set(wrong)
    (remark,) = without_effect(replace(SETTINGS, context_loss_warmup=(0.2, 0.4)))
    assert remark == "method.context_loss_warmup=0.2 0.4 has no effect with method.context_loss=0"
    assert without_effect(replace(SETTINGS, context_loss_warmup=(0.2, 0.4), context_loss=1.0)) == []


@pytest.mark.parametrize("settings", [{"predictor_pass": "cross"}, ALL], ids=["cross", "all"])
def test_costs_are_counted(settings: dict[str, Any], tmp_path: Path) -> None:
    config = small_config(write_folder(tmp_path / "images", 16), tmp_path)
    separate, changed = config, replace(config, method=replace(config.method, **settings))
    sampler, method = parts(changed)
    batch = batch_of(changed, method, sampler)
    masks = masks_of(batch)
    shapes = (TokenShape(masks.context.shape[1], masks.targets.shape[2], 1.0, masks.targets.shape[1]),)
    costs, before = (step_costs(run, default_view(run.data), parts(run)[0], shapes) for run in (changed, separate))
    assert counted(lambda: method(batch, LATE)) == 8 * sum(costs.flops.values())
    assert costs.flops["predictor"] < before.flops["predictor"] and costs.kept_bytes < before.kept_bytes


def test_a_stopped_run_continues_bitwise(tmp_path: Path) -> None:
    """With all switches, in microbatches."""
    config = small_config(write_folder(tmp_path / "images", 16), tmp_path / "whole", total_steps=3, microbatch_size=4)
    method = replace(config.method, **ALL, context_loss_warmup=(0.2, 0.5))
    config = replace(config, method=method, monitor=MonitorSettings(every=0))

    stopped = replace(config, run=replace(config.run, output=str(tmp_path / "stopped")))
    assert train(config) is not None
    stop_after_a_step(stopped)
    assert train(stopped) is not None
    expected, found = final_state(config), final_state(stopped)
    assert all(torch.equal(value, found[name]) for name, value in expected.items())
