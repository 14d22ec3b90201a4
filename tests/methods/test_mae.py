"""MAE: loss and decoder against slow restatements, what encoder and decoder see, energies, pooling, token order."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from openjepa.masks.random_patches import RandomPatches
from openjepa.masks.sampler import TokenShape
from openjepa.methods.base import Surroundings
from openjepa.methods.mae import VIEW, Decoder, Mae, patch_pixels
from openjepa.models.transformer import sincos_positions
from openjepa.models.vit import build_encoder
from openjepa.recipes import load_recipe
from openjepa.schedules import Progress
from openjepa.settings.masks import RandomPatchesSettings
from openjepa.settings.methods import MaeSettings
from openjepa.settings.models import DecoderConfig, ModelSettings
from openjepa.types import Batch, EncoderOutput, TokenMask, ViewSpec

START = Progress(step=0, total_steps=100, steps_per_epoch=10)
MODEL = ModelSettings(size="test", patch_size=4, class_token=True)
GRID, SIDE, NUM_VISIBLE = (4, 5), 4, 6
NUM_PATCHES = GRID[0] * GRID[1]


def build(model: ModelSettings = MODEL, **changes: Any) -> Mae:
    """A method whose weights are large enough to tell patches apart."""
    torch.manual_seed(0)
    settings = replace(MaeSettings(decoder_width=24, decoder_depth=2, decoder_heads=3), **changes)
    shapes = (TokenShape(NUM_VISIBLE, NUM_PATCHES - NUM_VISIBLE, 1.0, 1),)
    view = ViewSpec(size=(GRID[0] * SIDE, GRID[1] * SIDE))
    method = Mae(settings, Surroundings(model, view, (0.5,) * 3, (0.2,) * 3, shapes))  # type: ignore[arg-type]
    with torch.no_grad():
        for value in method.parameters():
            value.add_(0.2 * torch.randn_like(value))
    return method


def make_batch(size: int = 3) -> Batch:
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(1, size, 3, GRID[0] * SIDE, GRID[1] * SIDE, generator=generator)
    rank = torch.rand(size, NUM_PATCHES, generator=generator).argsort(dim=1).argsort(dim=1)
    mask = TokenMask(rank >= NUM_VISIBLE, GRID, NUM_PATCHES - NUM_VISIBLE)
    return Batch(torch.arange(size), {VIEW: images}, {VIEW: mask})


def masked_of(batch: Batch) -> Tensor:
    mask = batch.masks[VIEW]
    assert isinstance(mask, TokenMask)
    return mask.masked


def with_images(batch: Batch, images: Tensor) -> Batch:
    return replace(batch, views={VIEW: images})


def patch_of(image: Tensor, index: int) -> Tensor:
    """Pixels of one patch in the order (row, column, channel)."""
    top, left = index // GRID[1] * SIDE, index % GRID[1] * SIDE
    rows = [image[:, top + row, left + column] for row in range(SIDE) for column in range(SIDE)]
    return torch.cat(rows)


def slow_target(pixels: Tensor, norm_pixels: bool) -> Tensor:
    """Standard deviation with n - 1, and 1e-6 under the root."""
    if not norm_pixels:
        return pixels
    deviations = pixels - pixels.sum() / len(pixels)
    return deviations / ((deviations**2).sum() / (len(pixels) - 1) + 1e-6) ** 0.5


def slow_decoder(decoder: Decoder, seen: EncoderOutput, visible: Tensor) -> Tensor:
    """Every patch of one image in raster order, as in the paper: mask tokens, and visible ones put back in their place."""
    tokens = decoder.mask_token[0].repeat(NUM_PATCHES, 1)
    for place, token in zip(visible.tolist(), seen.patches[0], strict=True):
        tokens[place] = decoder.embed(token)
    tokens = tokens + sincos_positions(decoder.config.width, GRID)
    if seen.class_token is not None:
        tokens = torch.cat([decoder.embed(seen.class_token), tokens])
    x = tokens[None]
    for block in decoder.blocks:
        x = block(x)
    return decoder.pred(decoder.norm(x))[0, -NUM_PATCHES:]  # type: ignore[no-any-return]


# ------------------------------------------------------------------------------------------------------- loss and networks


@torch.no_grad()
@pytest.mark.parametrize("class_token", [False, True])
@pytest.mark.parametrize("norm_pixels", [False, True])
def test_loss_one_patch_at_a_time(norm_pixels: bool, class_token: bool) -> None:
    """Squared error over the pixels of each masked patch, averaged over the masked patches of all images."""
    method, batch = build(replace(MODEL, class_token=class_token), norm_pixels=norm_pixels), make_batch()
    errors = []
    for image, masked in zip(batch.views[VIEW][0], masked_of(batch), strict=True):
        visible = (~masked).nonzero().flatten()
        decoded = slow_decoder(method.decoder, method.encoder(image[None], visible[None]), visible)
        for place in masked.nonzero().flatten().tolist():
            target = slow_target(patch_of(image, place), norm_pixels)
            errors.append(((decoded[place] - target) ** 2).mean())
    assert len(errors) == 3 * (NUM_PATCHES - NUM_VISIBLE)
    torch.testing.assert_close(method(batch, START).total, torch.stack(errors).mean(), rtol=1e-5, atol=1e-6)


def test_a_constant_patch_has_a_target_of_zeros() -> None:
    method = build()
    images = make_batch().views[VIEW][0].clone()
    images[0, :, :SIDE, :SIDE] = 0.7
    targets = method.targets(images)
    assert targets[0, 0].abs().max() < 1e-3 and targets.isfinite().all()
    others = targets[1:]
    torch.testing.assert_close(others.mean(dim=2), torch.zeros(2, NUM_PATCHES), rtol=0, atol=1e-6)
    torch.testing.assert_close(others.var(dim=2), torch.ones(2, NUM_PATCHES), rtol=1e-5, atol=0)


def test_pixels_of_a_patch_come_row_by_row() -> None:
    images = make_batch().views[VIEW][0]
    pixels = patch_pixels(images, SIDE)
    for place in range(NUM_PATCHES):
        assert torch.equal(pixels[1, place], patch_of(images[1], place))


@torch.no_grad()
def test_the_networks_see_no_masked_pixel() -> None:
    """Pixels of the masked patches move the targets and nothing else."""
    method, batch = build(), make_batch()
    visible, masked = batch.masks[VIEW].divided()  # type: ignore[union-attr]
    images = batch.views[VIEW][0]
    hidden = masked_of(batch).view(3, 1, *GRID).repeat_interleave(SIDE, 2).repeat_interleave(SIDE, 3)
    changed = torch.where(hidden, torch.randn_like(images), images)
    before, after = method.encoder(images, visible), method.encoder(changed, visible)
    assert torch.equal(method.decoder(before, visible, masked), method.decoder(after, visible, masked))
    assert not torch.equal(method(batch, START).total, method(with_images(batch, changed[None]), START).total)


@torch.no_grad()
def test_the_order_of_visible_tokens_does_not_matter() -> None:
    """The released code keeps them in the order of its noise, we in raster order."""
    method, batch = build(), make_batch()
    visible, masked = batch.masks[VIEW].divided()  # type: ignore[union-attr]
    images, order = batch.views[VIEW][0], torch.tensor([4, 1, 5, 0, 3, 2])
    ours = method.decoder(method.encoder(images, visible), visible, masked)
    theirs = method.decoder(method.encoder(images, visible[:, order]), visible[:, order], masked)
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-5)


def test_images_share_one_decoder_but_no_tokens() -> None:
    """The loss of a batch is the mean of those of its images alone, and each is the energy of its pair."""
    method, batch = build(), make_batch()
    alone = []
    for image in range(3):
        mask = TokenMask(masked_of(batch)[image : image + 1], GRID, NUM_PATCHES - NUM_VISIBLE)
        single = Batch(torch.tensor([image]), {VIEW: batch.views[VIEW][:, image : image + 1]}, {VIEW: mask})
        alone.append(method(single, START).total.detach())
    torch.testing.assert_close(method(batch, START).total.detach(), torch.stack(alone).mean(), rtol=1e-5, atol=0)
    torch.testing.assert_close(method.energies(batch, START).diagonal(), torch.stack(alone), rtol=1e-5, atol=0)


@torch.no_grad()
def test_energies_compare_with_the_pixels_of_the_other_image() -> None:
    method, batch = build(), make_batch()
    energies = method.energies(batch, START)
    visible, masked = batch.masks[VIEW].divided()  # type: ignore[union-attr]
    images = batch.views[VIEW][0]
    predictions = method.decoder(method.encoder(images, visible), visible, masked)
    for row, column in ((0, 0), (0, 2), (2, 1)):
        targets = [slow_target(patch_of(images[column], place), True) for place in masked[row].tolist()]
        expected = ((predictions[row] - torch.stack(targets)) ** 2).mean()
        torch.testing.assert_close(energies[row, column], expected, rtol=1e-5, atol=1e-6)


# -------------------------------------------------------------------------------------------------- what is shown and trained


def test_features_are_those_of_the_class_token_where_there_is_one() -> None:
    batch = make_batch()
    for class_token, pooling in ((True, "class_token"), (False, "average")):
        method = build(replace(MODEL, class_token=class_token))
        assert method.exports()["encoder"].config.pooling == pooling  # type: ignore[union-attr]
        output = method.encoder(batch.views[VIEW][0])
        expected = output.class_token if class_token else output.patches.mean(dim=1)
        torch.testing.assert_close(method.probe(batch, START).features, expected.detach())


def test_the_probe_shows_masked_pixels_where_they_lie() -> None:
    method, batch = build(norm_pixels=False), make_batch()
    probe = method.probe(batch, START)
    assert probe.targets is not None and probe.target_positions is not None
    assert probe.targets.shape == (3, 1, NUM_PATCHES - NUM_VISIBLE, 3 * SIDE**2)
    place = int(probe.target_positions[2, 0, 3])
    assert masked_of(batch)[2, place]
    assert torch.equal(probe.targets[2, 0, 3], patch_of(batch.views[VIEW][0, 2], place))


def test_tokens_are_decayed_as_in_the_released_code_and_biases_are_not() -> None:
    method = build()
    decayed = set()
    for name, value in method.named_parameters():
        rule = next(rule for rule in method.parameter_rules() if rule.matches(name, value))
        if rule.decay:
            decayed.add(name)
    assert {"encoder.cls_token", "decoder.mask_token", "encoder.patch_embed.proj.weight", "decoder.pred.weight"} <= decayed
    assert not any(name.endswith("bias") or "norm" in name for name in decayed)
    assert not any("positions" in name for name, _ in method.named_parameters()), "tables are fixed"


@pytest.mark.parametrize(("ratio", "hidden"), [(None, 96), (2.0, 48), (48 / 11, 104), (1.0, 24)])
def test_the_decoder_shares_the_ratio_of_the_encoder(ratio: float | None, hidden: int) -> None:
    """As in the released code; the named sizes of MAE have 4."""
    method = build(replace(MODEL, mlp_ratio=ratio))
    shared = 4.0 if ratio is None else ratio
    assert method.encoder_config.mlp_ratio == method.decoder.config.mlp_ratio == shared
    assert all(block.mlp.fc1.weight.shape == (hidden, 24) for block in method.decoder.blocks)


def test_a_decoder_without_blocks_is_refused() -> None:
    config = DecoderConfig(encoder_width=48, width=24, depth=0, heads=3, grid=GRID, patch_size=SIDE)
    with pytest.raises(ValueError, match=r"decoder depth 0 is too small: .* use 1 or more"):
        Decoder(config)


# parameters of the encoder in millions, patches, visible ones; the first from the definition of a ViT with a class token
PUBLISHED = {"mae-vitb16": (85.6, 196, 49), "mae-vitl16": (303.1, 196, 49), "mae-vith14": (630.4, 256, 64)}


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_runs(name: str) -> None:
    """The pre-training setting of the paper and of the released code."""
    config, (parameters, num_patches, num_visible) = load_recipe(name), PUBLISHED[name]
    optim, method, data, masks = config.optim, config.method, config.data, config.masks
    assert isinstance(method, MaeSettings) and isinstance(masks, RandomPatchesSettings)
    assert (optim.batch_size, optim.epochs, optim.warmup_epochs) == (4096, 1600, 40)
    assert optim.lr == pytest.approx(1.5e-4 * 4096 / 256) and (optim.start_lr, optim.final_lr) == (0, 0)
    assert (optim.beta1, optim.beta2, optim.eps, optim.clip_grad) == (0.9, 0.95, 1e-8, None)
    assert (optim.weight_decay, optim.weight_decay_schedule, optim.schedule_steps) == (0.05, "constant", "from_zero")
    assert (method.decoder_width, method.decoder_depth, method.decoder_heads, method.norm_pixels) == (512, 8, 16, True)
    assert (data.crop_scale, data.horizontal_flip, data.interpolation) == ((0.2, 1.0), True, "bicubic")
    assert (config.model.class_token, config.model.positions, config.model.initialization) == (True, "sincos", "xavier")
    rows, columns = config.model.grid(data.height_width())
    (shape,) = RandomPatches(masks, (rows, columns)).shapes()
    assert (rows * columns, shape.context) == (num_patches, num_visible)
    with torch.device("meta"):
        encoder = build_encoder(config.model.encoder(data.height_width(), (0.5,) * 3, (0.5,) * 3))  # type: ignore[arg-type]
    assert sum(value.numel() for value in encoder.parameters()) / 1e6 == pytest.approx(parameters, abs=0.06)
