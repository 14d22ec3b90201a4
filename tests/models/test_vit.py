"""The encoder: positions, subsets of patches, padding, sizes, class token, initialization, precision."""

import math
from dataclasses import replace

import pytest
import torch
from torch.nn import functional as F

from openjepa.models.transformer import resampled_positions, sincos_positions
from openjepa.models.vit import VisionTransformer, build_encoder
from openjepa.settings.models import EncoderConfig

CONFIG = EncoderConfig(width=24, depth=2, heads=3, mlp_ratio=4.0, patch_size=4, image_size=(16, 12))


@pytest.fixture
def encoder() -> VisionTransformer:
    torch.manual_seed(0)
    return build_encoder(CONFIG)


def test_positions_by_definition() -> None:
    """[sin(x f), cos(x f), sin(y f), cos(y f)] at row y, column x, f_k = 10000^(-k / (D/4)), on a rectangle."""
    table = sincos_positions(12, (3, 5)).view(3, 5, 12)
    for y in range(3):
        for x in range(5):
            angles = [[place * 10000 ** (-k / 3) for k in range(3)] for place in (x, y)]
            expected = [value for row in angles for value in [*map(math.sin, row), *map(math.cos, row)]]
            assert table[y, x].tolist() == pytest.approx(expected, abs=1e-6)


def test_positions_need_a_width_that_4_divides() -> None:
    with pytest.raises(ValueError, match=r"width=22 .* use 20"):
        sincos_positions(22, (2, 2))


def test_patch_embedding_is_the_convolution(encoder: VisionTransformer) -> None:
    images = torch.randn(2, 3, 16, 12)
    layer = encoder.patch_embed.proj
    expected = F.conv2d(images, layer.weight, layer.bias, stride=4).flatten(2).transpose(1, 2)
    torch.testing.assert_close(encoder.patch_embed(images, None), expected, rtol=0, atol=1e-6)
    keep = torch.tensor([[3, 0, 11], [7, 8, 1]])
    torch.testing.assert_close(encoder.patch_embed(images, keep), expected[torch.arange(2)[:, None], keep], rtol=0, atol=1e-6)


def test_all_patches_in_another_order(encoder: VisionTransformer) -> None:
    images = torch.randn(2, 3, 16, 12)
    keep = torch.stack([torch.randperm(12), torch.randperm(12)])
    full = encoder(images).patches
    torch.testing.assert_close(encoder(images, keep).patches, full[torch.arange(2)[:, None], keep], rtol=0, atol=1e-5)


def test_kept_patches_see_only_one_another(encoder: VisionTransformer) -> None:
    """Pixels outside the kept patches change nothing, pixels inside do."""
    images = torch.randn(1, 3, 16, 12)
    keep = torch.tensor([[0, 5, 10]])
    before = encoder(images, keep).patches
    outside, inside = images.clone(), images.clone()
    outside[:, :, 12:, 0:4] += 1.0  # patch 9
    inside[:, :, 4:8, 8:12] += 1.0  # patch 5
    torch.testing.assert_close(encoder(outside, keep).patches, before, rtol=0, atol=0)
    assert (encoder(inside, keep).patches - before).abs().amax(dim=-1).min() > 1e-4


@pytest.mark.parametrize("class_token", [False, True])
@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16])
def test_padding_is_invisible(class_token: bool, precision: torch.dtype) -> None:
    torch.manual_seed(0)
    encoder = build_encoder(replace(CONFIG, class_token=class_token))
    images = torch.randn(2, 3, 16, 12)
    keep = torch.tensor([[2, 4, 6, 0, 0], [1, 3, 5, 7, 9]])
    valid = torch.tensor([[True, True, True, False, False], [True] * 5])
    tolerance = 1e-5 if precision == torch.float32 else 0.05
    with torch.autocast("cpu", precision, enabled=precision == torch.bfloat16):
        padded = encoder(images, keep, valid)
        alone = encoder(images[:1], keep[:1, :3])
    torch.testing.assert_close(padded.patches[:1, :3], alone.patches, rtol=0, atol=tolerance)
    if class_token:
        torch.testing.assert_close(padded.class_token[:1], alone.class_token, rtol=0, atol=tolerance)


def test_class_token_has_no_position() -> None:
    """Without blocks the class token is its parameter, normed, and the patches do not know of it."""
    torch.manual_seed(0)
    config = replace(CONFIG, depth=0)
    with_token, without = build_encoder(replace(config, class_token=True)), build_encoder(config)
    without.load_state_dict(with_token.state_dict() | {}, strict=False)
    images = torch.randn(2, 3, 16, 12)
    output = with_token(images)
    assert with_token.cls_token is not None
    expected = F.layer_norm(with_token.cls_token[0], (24,), eps=CONFIG.layer_norm_eps).expand(2, -1)
    torch.testing.assert_close(output.class_token, expected)
    torch.testing.assert_close(output.patches, without(images).patches)
    assert output.pooled("class_token") is output.class_token
    torch.testing.assert_close(output.pooled("average"), output.patches.mean(1))


def test_other_sizes_have_the_positions_of_their_grid(encoder: VisionTransformer) -> None:
    """A patch of a larger image with the same content and place gives the same token before the first block."""
    shallow = build_encoder(replace(CONFIG, depth=0))
    images = torch.randn(1, 3, 20, 24)
    large, small = shallow(images).patches.view(5, 6, 24), shallow(images[:, :, :16, :12]).patches.view(4, 3, 24)
    torch.testing.assert_close(large[:4, :3], small)
    assert encoder(images).patches.shape == (1, 30, 24)


def test_sizes_that_do_not_fit() -> None:
    encoder = build_encoder(CONFIG)
    with pytest.raises(ValueError, match=r"patch size 4 of the encoder does not divide image_size=18x16: use"):
        encoder(torch.zeros(1, 3, 18, 16))
    with pytest.raises(ValueError, match=r"patch size 5 of the encoder does not divide image_size=96x96: use"):
        build_encoder(replace(CONFIG, image_size=(96, 96), patch_size=5, width=24))
    with pytest.raises(ValueError, match=r"heads=5 do not divide the width 24; use one of \[1, 2, 3, 4, 6, 8\]"):
        build_encoder(replace(CONFIG, heads=5))


def test_last_layers(encoder: VisionTransformer) -> None:
    """The last of them is the encoder's output; layer i is the output of the encoder cut off after block i."""
    images = torch.randn(2, 3, 16, 12)
    layers = encoder.last_layers(images, 2)
    assert len(layers) == 2
    torch.testing.assert_close(layers[1].patches, encoder(images).patches)
    shorter = build_encoder(replace(CONFIG, depth=1))
    shorter.load_state_dict(encoder.state_dict(), strict=False)
    torch.testing.assert_close(layers[0].patches, shorter(images).patches)
    with pytest.raises(ValueError, match=r"num_layers=3 .* use 1 to 2"):
        encoder.last_layers(images, 3)


@pytest.mark.parametrize("initialization", ["released", "depth_scaled"])
def test_initialization(initialization: str) -> None:
    torch.manual_seed(0)
    encoder = build_encoder(replace(CONFIG, width=192, depth=3, initialization=initialization))  # type: ignore[arg-type]
    for layer, block in enumerate(encoder.blocks, start=1):
        scale = math.sqrt(2 * layer) if initialization == "depth_scaled" else 1.0
        for weight, expected in (
            (block.attn.qkv.weight, 0.02),
            (block.mlp.fc1.weight, 0.02),
            (block.attn.proj.weight, 0.02 / scale),
            (block.mlp.fc2.weight, 0.02 / scale),
        ):
            assert weight.std().item() == pytest.approx(expected, rel=0.03)  # type: ignore[union-attr,operator]
    assert encoder.patch_embed.proj.weight.std().item() == pytest.approx(0.02, rel=0.05)
    for name, value in encoder.named_parameters():
        if name.endswith("bias"):
            assert not value.any()
        elif value.ndim == 1:
            assert (value == 1).all()
    assert set(encoder.state_dict()) == {name for name, _ in encoder.named_parameters()}  # positions are not stored


def test_parameter_count_of_the_literature() -> None:
    """ViT-S/16 has 21.6 M trainable weights (positions are fixed)."""
    with torch.device("meta"):
        encoder = VisionTransformer(replace(CONFIG, width=384, depth=12, heads=6, patch_size=16, image_size=(224, 224)))
    assert sum(value.numel() for value in encoder.parameters()) / 1e6 == pytest.approx(21.6, abs=0.1)


def test_bf16_autocast(encoder: VisionTransformer) -> None:
    images, keep = torch.randn(2, 3, 16, 12), torch.tensor([[1, 2, 3], [4, 5, 6]])
    expected = encoder(images, keep).patches
    with torch.autocast("cpu", torch.bfloat16):
        output = encoder(images, keep).patches
    assert output.dtype == torch.float32
    torch.testing.assert_close(output, expected, rtol=0, atol=0.05)
    output.square().sum().backward()  # type: ignore[no-untyped-call]
    assert all(value.grad is not None and value.grad.isfinite().all() for value in encoder.parameters())


def test_drop_path() -> None:
    """Only while training; rates grow linearly; a branch that always drops leaves the tokens as they were."""
    torch.manual_seed(0)
    encoder = build_encoder(replace(CONFIG, depth=3, drop_path=0.3))
    assert [block.drop_path.rate for block in encoder.blocks] == pytest.approx([0.0, 0.15, 0.3])  # type: ignore[union-attr]
    images = torch.randn(4, 3, 16, 12)
    assert not torch.equal(encoder(images).patches, encoder(images).patches)
    encoder.eval()
    assert torch.equal(encoder(images).patches, encoder(images).patches)
    branch = torch.ones(2000, 1, 1)
    dropped = encoder.blocks[2].drop_path.train()(branch)  # type: ignore[union-attr,operator]
    assert sorted({round(value, 4) for value in dropped.flatten().tolist()}) == [0.0, round(1 / 0.7, 4)]
    assert dropped.mean().item() == pytest.approx(1.0, abs=0.05)


def test_learned_positions_are_added_to_their_patches() -> None:
    """Without blocks a token is the normed sum of patch embedding and position, also where only some patches are kept."""
    torch.manual_seed(0)
    encoder = build_encoder(replace(CONFIG, depth=0, positions="learned"))
    assert encoder.pos_embed is not None and encoder.pos_embed.std().item() == pytest.approx(0.02, rel=0.1)
    images = torch.randn(2, 3, 16, 12)
    tokens = encoder.patch_embed(images, None) + encoder.pos_embed
    expected = F.layer_norm(tokens, (24,), eps=CONFIG.layer_norm_eps)
    torch.testing.assert_close(encoder(images).patches, expected)
    keep = torch.tensor([[3, 0, 11], [7, 8, 1]])
    torch.testing.assert_close(encoder(images, keep).patches, expected[torch.arange(2)[:, None], keep])
    encoder(images).patches.square().sum().backward()  # type: ignore[no-untyped-call]
    assert encoder.pos_embed.grad is not None and encoder.pos_embed.grad.abs().min() > 0


def cubic_weight(distance: float) -> float:
    """Keys' kernel with a = -0.75."""
    a, x = -0.75, abs(distance)
    if x <= 1:
        return (a + 2) * x**3 - (a + 3) * x**2 + 1
    return a * x**3 - 5 * a * x**2 + 8 * a * x - 4 * a if x < 2 else 0.0


@pytest.mark.parametrize("offset", [0.0, 0.1])
@pytest.mark.parametrize("wanted", [(5, 6), (2, 3), (7, 2)])
def test_learned_positions_are_resampled_by_cubic_convolution(wanted: tuple[int, int], offset: float) -> None:
    """Against the double sum over all old cells, those beyond the border being the nearest inside."""
    rows, columns = 4, 3
    table = torch.randn(rows, columns, 8, dtype=torch.float64)
    expected = torch.zeros(*wanted, 8, dtype=torch.float64)
    for y in range(wanted[0]):
        for x in range(wanted[1]):
            at_y = (y + 0.5) * rows / (wanted[0] + offset) - 0.5
            at_x = (x + 0.5) * columns / (wanted[1] + offset) - 0.5
            for j in range(math.floor(at_y) - 1, math.floor(at_y) + 3):
                for i in range(math.floor(at_x) - 1, math.floor(at_x) + 3):
                    cell = table[min(max(j, 0), rows - 1), min(max(i, 0), columns - 1)]
                    expected[y, x] += cubic_weight(at_y - j) * cubic_weight(at_x - i) * cell
    resampled = resampled_positions(table.float().flatten(0, 1), (rows, columns), wanted, offset)
    torch.testing.assert_close(resampled, expected.flatten(0, 1).float(), rtol=0, atol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("offset", [0.0, 0.1])
def test_the_class_token_keeps_its_learned_position_at_other_sizes(offset: float) -> None:
    """The encoder at another size is the one whose table is resampled once and for all but for the first row, which stays."""
    torch.manual_seed(0)
    config = replace(CONFIG, positions="learned", class_token=True, resampling_offset=offset)
    encoder = build_encoder(config)
    encoder.pos_embed.normal_(std=0.5)  # type: ignore[union-attr]
    for size in ((24, 20), (8, 12)):
        grid = config.grid(size)
        weights = encoder.weights_for(grid)
        table = encoder.pos_embed[0]  # type: ignore[index]
        assert torch.equal(weights["pos_embed"][0, 0], table[0])
        assert torch.equal(weights["pos_embed"][0, 1:], resampled_positions(table[1:], (4, 3), grid, offset))
        other = build_encoder(replace(config, image_size=size))
        other.load_state_dict(weights)
        images = torch.randn(2, 3, *size)
        ours, theirs = encoder(images), other(images)
        assert torch.equal(ours.class_token, theirs.class_token) and torch.equal(ours.patches, theirs.patches)
        exact = build_encoder(replace(config, resampling_offset=0.0))
        exact.load_state_dict(encoder.state_dict())
        assert torch.equal(exact(images).class_token, ours.class_token) == (offset == 0.0)


@torch.no_grad()
def test_replaced_patches_are_not_seen() -> None:
    """Whatever their pixels are; the mask token stands at their positions, and the class token learns nothing of them."""
    torch.manual_seed(0)
    encoder = build_encoder(replace(CONFIG, positions="learned", class_token=True, mask_token=True))
    images, replaced = torch.randn(2, 3, 16, 12), torch.zeros(2, 12, dtype=torch.bool)
    replaced[0, [0, 5]] = replaced[1, 11] = True
    changed = images.clone()
    changed[0, :, :4, :4] = changed[0, :, 4:8, 8:] = changed[1, :, 12:, 8:] = 7.0
    first, second = encoder(images, replace=replaced), encoder(changed, replace=replaced)
    assert torch.equal(first.patches, second.patches) and torch.equal(first.class_token, second.class_token)
    assert not torch.allclose(first.patches, encoder(images).patches)
    shallow = build_encoder(replace(CONFIG, depth=0, positions="learned", class_token=True, mask_token=True))
    stands = F.layer_norm((shallow.mask_token + shallow.pos_embed[:, 1:])[0], (24,), eps=CONFIG.layer_norm_eps)
    torch.testing.assert_close(shallow(images, replace=replaced).patches[0, [0, 5]], stands[[0, 5]])
    with pytest.raises(ValueError, match="mask_token=True"):
        build_encoder(CONFIG)(images, replace=replaced)
    with pytest.raises(ValueError, match="keep=None"):
        encoder(images, torch.zeros(2, 3, dtype=torch.long), replace=replaced)
