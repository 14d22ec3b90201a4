"""Learned attention biases by offset: rows of the table, class token, subsets, other grids, gradients of both attentions."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from openjepa.models.transformer import RelativeBias, attention
from openjepa.models.vit import VisionTransformer, build_encoder
from openjepa.settings.models import EncoderConfig

GRID, HEADS = (3, 4), 2
CONFIG = EncoderConfig(
    width=24, depth=2, heads=3, mlp_ratio=4.0, patch_size=4, image_size=(12, 16), positions="relative", class_token=True
)


def random_bias(grid: tuple[int, int] = GRID) -> RelativeBias:
    torch.manual_seed(0)
    bias = RelativeBias(grid, HEADS)
    torch.nn.init.normal_(bias.relative_position_bias_table)
    return bias


def random_encoder(config: EncoderConfig = CONFIG) -> VisionTransformer:
    torch.manual_seed(0)
    encoder = build_encoder(config)
    assert encoder.rel_pos_bias is not None
    torch.nn.init.normal_(encoder.rel_pos_bias.relative_position_bias_table)
    return encoder


@pytest.mark.parametrize("has_class_token", [False, True])
def test_every_pair_gets_the_row_of_its_offset(has_class_token: bool) -> None:
    bias, (rows, columns) = random_bias(), GRID
    table, first = bias.relative_position_bias_table, int(has_class_token)
    found = bias(GRID, has_class_token)
    assert found.shape == (1, HEADS, rows * columns + first, rows * columns + first)
    used = set()
    for query in range(rows * columns):
        for key in range(rows * columns):
            down, across = query // columns - key // columns, query % columns - key % columns
            row = (down + rows - 1) * (2 * columns - 1) + across + columns - 1
            used.add(row)
            assert torch.equal(found[0, :, query + first, key + first], table[row])
    assert used == set(range(len(table) - 3)), "every offset occurs and has a row of its own"
    if has_class_token:
        assert torch.equal(found[0, :, 0, 1:], table[-3][:, None].expand(-1, rows * columns))
        assert torch.equal(found[0, :, 1:, 0], table[-2][:, None].expand(-1, rows * columns))
        assert torch.equal(found[0, :, 0, 0], table[-1])


@pytest.mark.parametrize("has_class_token", [False, True])
def test_biases_among_kept_patches_are_cut_from_all(has_class_token: bool) -> None:
    bias, keep = random_bias(), torch.tensor([[3, 0, 11], [7, 8, 1]])
    whole = bias(GRID, has_class_token)[0]
    tokens = torch.cat([torch.zeros(2, 1, dtype=torch.int64), keep + 1], dim=1) if has_class_token else keep
    found = bias(GRID, has_class_token, keep)
    for sample, chosen in enumerate(tokens):
        assert torch.equal(found[sample], whole[:, chosen][:, :, chosen])


@torch.no_grad()
@pytest.mark.parametrize("class_token", [False, True])
def test_the_encoder_follows_the_order_of_its_patches(class_token: bool) -> None:
    """With all patches in another order the outputs are the same in that order; without the biases they would be, too."""
    encoder, images = random_encoder(replace(CONFIG, class_token=class_token)), torch.randn(2, 3, 12, 16)
    keep = torch.stack([torch.randperm(12), torch.randperm(12)])
    full = encoder(images)
    permuted = encoder(images, keep)
    torch.testing.assert_close(permuted.patches, full.patches[torch.arange(2)[:, None], keep], rtol=0, atol=1e-5)
    swapped = images.clone()  # two patches exchanged: only positions can tell
    swapped[:, :, :4, :4], swapped[:, :, 8:, 12:] = images[:, :, 8:, 12:], images[:, :, :4, :4]
    place = [11, *range(1, 11), 0]
    assert (encoder(swapped).patches[:, place] - full.patches).abs().max() > 0.05
    assert encoder.rel_pos_bias is not None
    encoder.rel_pos_bias.relative_position_bias_table.zero_()
    torch.testing.assert_close(encoder(swapped).patches[:, place], encoder(images).patches, rtol=0, atol=1e-5)


@torch.no_grad()
def test_padding_stays_invisible() -> None:
    encoder, images = random_encoder(), torch.randn(2, 3, 12, 16)
    keep = torch.tensor([[2, 4, 6, 0, 0], [1, 3, 5, 7, 9]])
    valid = torch.tensor([[True, True, True, False, False], [True] * 5])
    alone = encoder(images[:1], keep[:1, :3]).patches
    torch.testing.assert_close(encoder(images, keep, valid).patches[:1, :3], alone, rtol=0, atol=1e-5)


def cubic(values: Tensor, wanted: int) -> Tensor:
    """Cubic convolution (a = -0.75, indices clamped) of [n, ...] at `wanted` points, both ends falling on one another."""
    a, old, result = -0.75, len(values), []
    for new in range(wanted):
        place = new * (old - 1) / max(1, wanted - 1)
        below = int(place)
        total = torch.zeros_like(values[0])
        for neighbor in range(below - 1, below + 3):
            x = abs(place - neighbor)
            near = (a + 2) * x**3 - (a + 3) * x**2 + 1
            weight = near if x <= 1 else a * x**3 - 5 * a * x**2 + 8 * a * x - 4 * a if x < 2 else 0.0
            total = total + weight * values[min(max(neighbor, 0), old - 1)]
        result.append(total)
    return torch.stack(result)


@torch.no_grad()
@pytest.mark.parametrize("grid", [(6, 5), (2, 8), (3, 4)])
def test_tables_for_other_grids(grid: tuple[int, int]) -> None:
    bias = random_bias()
    table = bias.relative_position_bias_table
    picture = table[:-3].view(2 * GRID[0] - 1, 2 * GRID[1] - 1, HEADS)
    down = cubic(picture, 2 * grid[0] - 1)
    expected = cubic(down.transpose(0, 1), 2 * grid[1] - 1).transpose(0, 1)
    found = bias.table_for(grid)
    torch.testing.assert_close(found[:-3], expected.reshape(-1, HEADS), rtol=0, atol=1e-5)
    assert torch.equal(found[-3:], table[-3:])
    no_offset = found[:-3].view(2 * grid[0] - 1, 2 * grid[1] - 1, HEADS)[grid[0] - 1, grid[1] - 1]
    torch.testing.assert_close(no_offset, picture[GRID[0] - 1, GRID[1] - 1], rtol=0, atol=1e-5)


@torch.no_grad()
def test_a_table_without_slope_stays_as_it_is() -> None:
    bias = random_bias()
    bias.relative_position_bias_table.copy_(torch.tensor([0.5, -2.0]).expand_as(bias.relative_position_bias_table))
    torch.testing.assert_close(bias((7, 9), True), bias(GRID, True)[:, :, :1, :1].expand(1, HEADS, 64, 64))


@torch.no_grad()
def test_weights_for_another_grid_give_the_same_outputs() -> None:
    encoder, images = random_encoder(), torch.randn(2, 3, 20, 24)
    other = build_encoder(replace(CONFIG, image_size=(20, 24)))
    other.load_state_dict(encoder.weights_for((5, 6)))
    torch.testing.assert_close(other(images).patches, encoder(images).patches, rtol=0, atol=1e-5)


def explicit(qkv: Tensor, heads: int, bias: Tensor) -> Tensor:
    """Attention in the definition's order, every step left to autograd."""
    batch, length, width = qkv.shape
    queries, keys, values = (
        part.view(batch, length, heads, -1).transpose(1, 2) for part in qkv.float().split(width // 3, dim=2)
    )
    scores = queries @ keys.transpose(2, 3) / queries.shape[-1] ** 0.5 + bias
    return (scores.softmax(dim=-1) @ values).transpose(1, 2).reshape(batch, length, width // 3)


@pytest.mark.parametrize("shape", ["1 heads", "B heads", "B 1", "1 1"])
@pytest.mark.parametrize("length", [12, 40])
@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16])
def test_a_learned_bias_gets_its_gradient(precision: torch.dtype, length: int, shape: str) -> None:
    """fp32: torch's attention; bf16: plain products with a derivative written by hand, softmax in fp32 or bf16 by length."""
    torch.manual_seed(0)
    batch, heads = 3, 2
    leading = [{"B": batch, "heads": heads, "1": 1}[letter] for letter in shape.split()]
    bias = torch.randn(*leading, length, length).requires_grad_()
    qkv = torch.randn(batch, length, 3 * 16).to(precision).requires_grad_()
    incoming = torch.randn(batch, length, 16)
    found = torch.autograd.grad(attention(qkv, heads, bias), (bias, qkv), incoming.to(precision))
    expected = torch.autograd.grad(explicit(qkv, heads, bias), (bias, qkv), incoming)
    assert found[0].dtype == bias.dtype and found[0].shape == bias.shape
    tolerance = 1e-5 if precision == torch.float32 else 0.02
    for ours, theirs in zip(found, expected, strict=True):
        difference = (ours.float() - theirs.float()).norm() / theirs.float().norm()
        assert difference < tolerance


def test_the_table_learns_through_the_encoder_in_both_precisions() -> None:
    """One image, so that the bias is shared with nobody: a table row's gradient is the sum over its pairs and blocks."""
    gradients = []
    for enabled in (False, True):
        encoder, images = random_encoder(), torch.randn(2, 3, 12, 16, generator=torch.Generator().manual_seed(1))
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            output = encoder(images)
        (output.patches.square() * torch.linspace(0, 1, 24)).mean().backward()
        assert encoder.rel_pos_bias is not None
        gradient = encoder.rel_pos_bias.relative_position_bias_table.grad
        assert gradient is not None
        gradients.append(gradient)
    assert (gradients[0].abs().amax(dim=1) > 0).all(), "every row is used"
    assert (gradients[1] - gradients[0]).norm() < 0.05 * gradients[0].norm()
