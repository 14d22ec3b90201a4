"""MAE's encoder, decoder, targets, losses and gradients against the released code."""

from typing import Any

import pytest
import torch
from torch import Tensor

from openjepa.masks.sampler import TokenShape
from openjepa.methods.base import Surroundings
from openjepa.methods.mae import VIEW, Mae, patch_pixels
from openjepa.schedules import Progress
from openjepa.settings.methods import MaeSettings
from openjepa.settings.models import ModelSettings
from openjepa.types import Batch, TokenMask, ViewSpec
from tests.helpers.parity import FORWARD, LOSS, assert_close, assert_gradient, part, read_golden

START = Progress(0, 1, 1)
DECODER_NAMES = {"decoder_embed": "embed", "decoder_blocks": "blocks", "decoder_norm": "norm", "decoder_pred": "pred"}


def place_of(name: str) -> str:
    """Where a parameter of the released model stands in ours."""
    first, _, rest = name.partition(".")
    if name == "mask_token":
        return "decoder.mask_token"
    return f"decoder.{DECODER_NAMES[first]}.{rest}" if first in DECODER_NAMES else f"encoder.{name}"


def build(tensors: dict[str, Tensor], header: dict[str, Any], norm_pixels: bool = True) -> tuple[Mae, Batch]:
    """The recorded model and batch; its mask keeps the patches with the smallest noise."""
    settings = MaeSettings(
        decoder_width=header["decoder_embed_dim"],
        decoder_depth=header["decoder_depth"],
        decoder_heads=header["decoder_num_heads"],
        norm_pixels=norm_pixels,
    )
    model = ModelSettings(
        size="test",
        width=header["embed_dim"],
        depth=header["depth"],
        heads=header["num_heads"],
        patch_size=header["patch_size"],
        class_token=True,
    )
    side, num_visible = header["img_size"], header["len_keep"]
    rows = side // header["patch_size"]
    shape = TokenShape(num_visible, rows**2 - num_visible, 1.0, 1)
    method = Mae(settings, Surroundings(model, ViewSpec(size=(side, side)), (0.0, 0.0, 0.0), (1.0, 1.0, 1.0), (shape,)))
    weights = {place_of(name): value for name, value in part(tensors, "model/").items() if not name.endswith("pos_embed")}
    method.load_state_dict(weights)
    rank = tensors["noise"].argsort(dim=1).argsort(dim=1)
    mask = TokenMask(rank >= num_visible, (rows, rows), num_masked=rows**2 - num_visible)
    return method, Batch(torch.arange(len(rank)), {VIEW: tensors["images"][None]}, {VIEW: mask})


def mask_of(batch: Batch) -> TokenMask:
    mask = batch.masks[VIEW]
    assert isinstance(mask, TokenMask)
    return mask


def test_tables_and_masks() -> None:
    tensors, header = read_golden("mae")
    method, batch = build(tensors, header)
    for table, name in ((method.encoder.positions, "pos_embed"), (method.decoder.positions, "decoder_pos_embed")):
        assert table is not None
        assert_close(table, tensors[f"model/{name}"][0, 1:], 1e-6)
        assert (tensors[f"model/{name}"][0, 0] == 0).all(), "the class token has no position"
    mask = mask_of(batch)
    assert torch.equal(mask.masked, tensors["out/mask"].bool())
    visible, masked = mask.divided()
    assert (tensors["out/ids_restore"].gather(1, visible) < header["len_keep"]).all()
    assert torch.equal(torch.cat([visible, masked], dim=1).sort(dim=1).values[0], torch.arange(64))


@torch.no_grad()
def test_encoder() -> None:
    """Kept patches come in ascending order there of their noise, here of their place."""
    tensors, header = read_golden("mae")
    method, batch = build(tensors, header)
    visible = mask_of(batch).visible()
    latent = method.encoder(tensors["images"], visible)
    theirs = tensors["out/latent"]
    rank = tensors["out/ids_restore"].gather(1, visible)
    assert_close(latent.class_token, theirs[:, 0])
    assert_close(latent.patches, theirs[:, 1:].gather(1, rank[..., None].expand(-1, -1, theirs.shape[2])), FORWARD)


@torch.no_grad()
def test_decoder() -> None:
    """The reconstruction of the masked patches; what the released decoder makes of the visible ones is read by nobody."""
    tensors, header = read_golden("mae")
    method, batch = build(tensors, header)
    visible, masked = mask_of(batch).divided()
    predictions = method.decoder(method.encoder(tensors["images"], visible), visible, masked)
    theirs = tensors["out/pred"]
    assert_close(predictions, theirs.gather(1, masked[..., None].expand(-1, -1, theirs.shape[2])), FORWARD)


def test_pixels() -> None:
    tensors, header = read_golden("mae")
    assert torch.equal(patch_pixels(tensors["images"], header["patch_size"]), tensors["out/patchified"])


@pytest.mark.parametrize("norm_pixels", [False, True])
def test_losses(norm_pixels: bool) -> None:
    tensors, header = read_golden("mae")
    method, batch = build(tensors, header, norm_pixels)
    theirs = tensors["out/loss_norm_pix" if norm_pixels else "out/loss"]
    assert_close(method(batch, START).total.detach(), theirs, LOSS)
    probe = method.probe(batch, START)
    assert_close(probe.loss, theirs, LOSS)
    assert_close(method.energies(batch, START).diagonal().mean(), theirs, LOSS)


def test_gradients() -> None:
    tensors, header = read_golden("mae")
    method, batch = build(tensors, header)
    method(batch, START).total.backward()
    expected = part(tensors, "grad_norm_pix/")
    assert len(expected) == 5
    for name, value in expected.items():
        assert_gradient(method.get_parameter(place_of(name)).grad, value)
