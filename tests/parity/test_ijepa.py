"""Encoder, predictor, targets, loss, gradients and five training steps against the released I-JEPA code."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from torch import Tensor, nn

from openjepa.engine.optimizer import build_optimizer, set_rates
from openjepa.masks.sampler import TokenShape
from openjepa.methods.base import Surroundings
from openjepa.methods.ijepa import VIEW, IJepa
from openjepa.models.vit import VisionTransformer, build_encoder
from openjepa.schedules import Progress, learning_rate, weight_decay
from openjepa.settings.methods import IJepaSettings
from openjepa.settings.models import ModelSettings
from openjepa.settings.run import OptimizationSettings
from openjepa.types import Batch, BlockMasks, ViewSpec
from tests.helpers.parity import encoder_state, part, predictor_name, predictor_state

DATA = Path(__file__).parent / "data"
FORWARD, LOSS = 2e-5, 3e-6


def read(name: str) -> tuple[dict[str, Tensor], dict[str, Any]]:
    with safe_open(DATA / f"{name}.safetensors", "pt") as file:
        return {key: file.get_tensor(key) for key in file.keys()}, json.loads(file.metadata()["json"])  # noqa: SIM118


def build_method(
    tensors: dict[str, Tensor], header: dict[str, Any], prefix: str, target: str, ema: tuple[float, float]
) -> IJepa:
    settings = IJepaSettings(predictor_width=header["pdim"], predictor_depth=header["pdepth"], ema_start=ema[0], ema_end=ema[1])
    model = ModelSettings(
        size="test", patch_size=header["patch"], width=header["dim"], depth=header["depth"], heads=header["heads"]
    )
    view = ViewSpec(size=(header["img"], header["img"]))
    method = IJepa(settings, Surroundings(model, view, (0.0, 0.0, 0.0), (1.0, 1.0, 1.0), (TokenShape(1, 1, 1.0, 1),)))
    method.context_encoder.load_state_dict(encoder_state(part(tensors, f"{prefix}encoder/")))
    method.predictor.load_state_dict(predictor_state(part(tensors, f"{prefix}predictor/")))
    method.target_encoder.network.load_state_dict(encoder_state(part(tensors, f"{prefix}{target}/")))
    return method


def build_batch(tensors: dict[str, Tensor], header: dict[str, Any], prefix: str = "") -> Batch:
    """A golden batch with its one context and its target masks [p][B, T] stacked as [B, p, T]."""
    targets = torch.stack([tensors[f"{prefix}masks_pred/{p}"] for p in range(header["npred"])], dim=1)
    rows = header["img"] // header["patch"]
    masks = BlockMasks(tensors[f"{prefix}masks_enc/0"], targets, (rows, rows))
    images = tensors[f"{prefix}images"]
    return Batch(torch.arange(len(images)), {VIEW: images[None]}, {VIEW: masks})


@pytest.fixture(scope="module")
def networks() -> tuple[dict[str, Tensor], IJepa, Batch]:
    tensors, header = read("ijepa_networks")
    return tensors, build_method(tensors, header, "", "target_encoder", (0.996, 1.0)), build_batch(tensors, header)


def close(actual: Tensor, expected: Tensor, tolerance: float) -> None:
    torch.testing.assert_close(actual, expected, rtol=0, atol=tolerance)


def official_order(blocks: Tensor) -> Tensor:
    """[B, M, T, D] -> rows ordered target mask first, then image."""
    return blocks.transpose(0, 1).flatten(0, 1)


@torch.no_grad()
def test_encoder(networks: tuple[dict[str, Tensor], IJepa, Batch]) -> None:
    tensors, method, _ = networks
    encoder, images = method.context_encoder, tensors["images"]
    close(encoder.positions[None], tensors["encoder/pos_embed"], 1e-6)
    close(encoder(images).patches, tensors["out/all"], FORWARD)
    close(encoder(images, tensors["masks_enc/0"]).patches, tensors["out/subset"], FORWARD)
    close(method.target_encoder(images).patches, tensors["out/target_raw"], FORWARD)


@torch.no_grad()
def test_every_layer(networks: tuple[dict[str, Tensor], IJepa, Batch]) -> None:
    """The encoder cut off after block i and without its final norm gives the recorded output of that block."""
    tensors, method, _ = networks
    state = method.context_encoder.state_dict()
    for depth, name in enumerate(("tokens", "block0", "block1", "block2")):
        shallow: VisionTransformer = build_encoder(replace(method.encoder_config, depth=depth))
        shallow.load_state_dict(state, strict=False)
        shallow.norm = nn.Identity()  # type: ignore[assignment]
        close(shallow(tensors["images"]).patches, tensors[f"out/{name}"], FORWARD)


@torch.no_grad()
def test_predictor(networks: tuple[dict[str, Tensor], IJepa, Batch]) -> None:
    tensors, method, batch = networks
    masks = batch.masks[VIEW]
    assert isinstance(masks, BlockMasks)
    close(method.predictor.positions[None], tensors["predictor/predictor_pos_embed"], 1e-6)
    predictions = method.predictor(tensors["out/subset"], masks.context, masks.targets, masks.grid)
    close(official_order(predictions), tensors["out/predictions"], FORWARD)


@torch.no_grad()
def test_two_contexts_are_two_batches(networks: tuple[dict[str, Tensor], IJepa, Batch]) -> None:
    """The released code can stack several contexts; ours are then rows of the batch. Its order: target, context, image."""
    tensors, method, batch = networks
    masks = batch.masks[VIEW]
    assert isinstance(masks, BlockMasks)
    rows = []
    for context in (tensors["two_contexts/masks_enc/0"], tensors["two_contexts/masks_enc/1"]):
        encoded = method.context_encoder(tensors["images"], context)
        rows.append(method.predictor(encoded.patches, context, masks.targets, masks.grid))
    predictions = torch.stack(rows).permute(2, 0, 1, 3, 4).flatten(0, 2)  # [e, B, M, T, D] -> [M e B, T, D]
    close(predictions, tensors["two_contexts/predictions"], FORWARD)
    loss = method.spaces.distance(predictions, tensors["two_contexts/targets"], Progress(0, 1, 1))
    close(loss, tensors["two_contexts/loss"], LOSS)


def test_targets_loss_and_gradients(networks: tuple[dict[str, Tensor], IJepa, Batch]) -> None:
    tensors, method, batch = networks
    probe = method.probe(batch, Progress(0, 1, 1))
    assert probe.targets is not None
    close(official_order(probe.targets), tensors["out/targets"], FORWARD)
    method.zero_grad()
    output = method(batch, Progress(0, 1, 1))
    close(output.total, tensors["out/loss"], LOSS)
    output.total.backward()
    gradients = {f"encoder/{name}": value.grad for name, value in method.context_encoder.named_parameters()}
    gradients |= {f"predictor/{name}": value.grad for name, value in method.predictor.named_parameters()}
    expected = part(tensors, "grad/")
    assert len(expected) == 6
    for name, value in expected.items():
        network, _, rest = name.partition("/")
        ours = gradients[f"predictor/{predictor_name(rest)}" if network == "predictor" else name]
        assert ours is not None
        close(ours, value, 1e-6 * max(1.0, value.abs().max().item()))


def test_five_training_steps() -> None:
    """Losses, rates, momentum and the weights of all three networks after five steps of the whole procedure."""
    tensors, header = read("ijepa_steps")
    method = build_method(tensors, header, "init/", "encoder", tuple(header["ema"]))
    optim = OptimizationSettings(
        lr=header["lr"],
        start_lr=header["start_lr"],
        final_lr=header["final_lr"],
        warmup_epochs=header["warmup"],
        weight_decay=header["wd"],
        final_weight_decay=header["final_wd"],
        weight_decay_schedule="cosine",
    )
    optimizer = build_optimizer(method.named_parameters(), method.parameter_rules(), optim)
    for step in range(header["total_steps"]):
        progress = Progress(step, header["total_steps"], header["ipe"])
        rate, decay = learning_rate(optim, progress), weight_decay(optim, progress)
        assert rate == pytest.approx(tensors["rec/lr"][step].item(), abs=1e-12)
        assert decay == pytest.approx(tensors["rec/wd"][step].item(), abs=1e-12)
        set_rates(optimizer, rate, decay)
        optimizer.zero_grad()
        output = method(build_batch(tensors, header, f"step{step}/"), progress)
        assert output.total.item() == pytest.approx(tensors["rec/loss"][step].item(), abs=1e-5)
        output.total.backward()
        optimizer.step()
        assert method.after_step(progress)["momentum"] == pytest.approx(tensors["rec/momentum"][step].item(), abs=1e-12)
    compare_weights(method, tensors, header)


def compare_weights(method: IJepa, tensors: dict[str, Tensor], header: dict[str, Any]) -> None:
    """Within 5e-6 (teacher 2e-6) + 4 times what separates the recorded run from the same run in float64."""
    noise = {
        name: value for key, value in header.items() if key.endswith("fp32_vs_fp64_max_abs") for name, value in value.items()
    }
    checked = 0
    for name, network, allowed in (
        ("encoder", method.context_encoder, 5e-6),
        ("predictor", method.predictor, 5e-6),
        ("target_encoder", method.target_encoder.network, 2e-6),
    ):
        ours = network.state_dict()
        for key, value in part(tensors, f"final/{name}/").items():
            tolerance = allowed + 4 * noise[f"{name}/{key}"]
            close(ours[predictor_name(key) if name == "predictor" else key], value, tolerance)
            checked += 1
    assert checked == 2 * len(method.context_encoder.state_dict()) + len(method.predictor.state_dict())
