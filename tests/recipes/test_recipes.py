"""Every recipe and preset parses and can work, and the published ones hold the published numbers."""

import shlex
from collections import Counter
from dataclasses import replace
from math import prod

import pytest

from openjepa.checks import check, remarks
from openjepa.commands.train import parse_train
from openjepa.masks import MASKS
from openjepa.recipes import RECIPES, load_recipe
from openjepa.settings.derived import resolve
from openjepa.settings.masks import BlockwiseSettings, MultiblockSettings
from openjepa.settings.methods import Data2VecSettings, IJepaSettings
from openjepa.settings.models import Shape
from openjepa.settings.run import RunConfig
from openjepa.settings.sources import FolderSettings

ALL_RUNS = [(name, preset) for name, recipe in RECIPES.items() for preset in recipe.presets]
PUBLISHED = [name for name in RECIPES if name.startswith("ijepa-")]
SMALL = [name for name, recipe in RECIPES.items() if recipe.is_small]
OUR_IJEPA = [name for name in SMALL if isinstance(load_recipe(name).method, IJepaSettings)]
RIVALS = [name for name in SMALL if name not in OUR_IJEPA]
PUBLISHED_RUNS = {
    "ijepa": 7,
    "mae": 3,
    "data2vec": 2,
    "dino": 4,
    "ibot": 2,
    "msn": 5,
}
"""Published runs of each method."""


def with_path(config: RunConfig) -> RunConfig:
    return replace(config, data=replace(config.data, path="images")) if isinstance(config.data, FolderSettings) else config


def test_the_count_of_runs() -> None:
    found = Counter(name.split("-")[0] for name in RECIPES if name not in SMALL)
    assert found == PUBLISHED_RUNS
    assert (len(OUR_IJEPA), len(RIVALS)) == (7, 20)


@pytest.mark.parametrize(("name", "preset"), ALL_RUNS)
def test_every_run_can_work(name: str, preset: str) -> None:
    config = resolve(with_path(load_recipe(name, preset)))
    check(config)
    assert remarks(config) == []
    MASKS[config.masks.strategy].load()(config.masks, config.model.grid(config.data.height_width()))
    assert (config.recipe, config.preset) == (name, preset)


@pytest.mark.parametrize(("name", "preset"), ALL_RUNS)
def test_every_run_is_what_the_command_line_gives(name: str, preset: str) -> None:
    config, options = parse_train([name, "--preset", preset], "openjepa train", "")
    assert config == load_recipe(name, preset)
    assert not options.dry_run and not options.fresh


@pytest.mark.parametrize("name", RECIPES)
def test_every_preset_is_explained_and_the_command_parses(name: str) -> None:
    assert all(f"`{preset}`" in RECIPES[name].about for preset in RECIPES[name].presets)
    command = shlex.split(RECIPES[name].command(name))
    assert command[0] == "openjepa"
    if command[1] == "train":
        config, _ = parse_train(command[2:], "openjepa train", "")
        assert config.recipe == name
        check(config)
    else:
        assert command == ["openjepa", name]


def test_unknown_names_suggest_the_nearest() -> None:
    with pytest.raises(ValueError, match="did you mean 'ijepa-vitb16'"):
        load_recipe("ijepa-vit-b16")
    with pytest.raises(ValueError, match="did you mean 'official'"):
        load_recipe("ijepa-vitb16", "offical")


def encoder_parameters(shape: Shape, patch: int) -> int:
    """Trainable parameters of a ViT without class token and with fixed positions, from its definition."""
    width, hidden = shape.width, int(shape.width * shape.mlp_ratio)
    return (3 * patch * patch + 1) * width + shape.depth * block_parameters(width, hidden) + 2 * width


def predictor_parameters(encoder_width: int, width: int, depth: int) -> int:
    projections = (encoder_width + 1) * width + (width + 1) * encoder_width
    return projections + width + depth * block_parameters(width, 4 * width) + 2 * width


def block_parameters(width: int, hidden: int) -> int:
    attention = (width + 1) * 3 * width + (width + 1) * width
    return attention + (width + 1) * hidden + (hidden + 1) * width + 4 * width


# millions of parameters of encoder and predictor, patches, warm-up epochs (official), epochs, images of a mask group:
# counted in the released code, read in the paper's tables and the released configurations
FACTS = {
    "ijepa-vitt16": (5.5, 10.8, 196, 40, 600, 128),
    "ijepa-vits16": (21.6, 10.9, 196, 40, 600, 128),
    "ijepa-vitb16": (85.6, 11.2, 196, 40, 600, 128),
    "ijepa-vitl16": (303.1, 22.1, 196, 40, 600, 128),
    "ijepa-vith14": (630.4, 22.3, 256, 40, 300, 128),
    "ijepa-vith16-448": (630.7, 22.3, 784, 40, 300, 16),
    "ijepa-vitg16": (1011.1, 29.5, 196, 3, 44, 16),
}


def test_all_published_runs_are_in_the_table() -> None:
    assert set(FACTS) == set(PUBLISHED)


@pytest.mark.parametrize("name", PUBLISHED)
@pytest.mark.parametrize("preset", ["official", "paper"])
def test_published_sizes_and_lengths(name: str, preset: str) -> None:
    encoder, predictor, patches, warmup, epochs, group = FACTS[name]
    config = resolve(load_recipe(name, preset))
    shape, method = config.model.shape(), config.method
    assert isinstance(method, IJepaSettings) and method.predictor_width is not None
    assert encoder_parameters(shape, config.model.patch_size) / 1e6 == pytest.approx(encoder, abs=0.06)
    assert predictor_parameters(shape.width, method.predictor_width, method.predictor_depth) / 1e6 == pytest.approx(
        predictor, abs=0.06
    )
    assert prod(side // config.model.patch_size for side in config.data.height_width()) == patches
    assert (config.optim.epochs, config.masks.group_size) == (epochs, group)
    # 15 epochs of ImageNet-1K are 15 x 44/600 of the 44 epochs of ImageNet-22K, which the paper counts as 600
    paper_warmup = 1.1 if name == "ijepa-vitg16" else 15
    assert config.optim.warmup_epochs == pytest.approx(warmup if preset == "official" else paper_warmup)


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_hyperparameters(name: str) -> None:
    official, paper = load_recipe(name, "official"), load_recipe(name, "paper")
    for config in (official, paper):
        optim, method, data = config.optim, config.method, config.data
        assert isinstance(method, IJepaSettings)
        assert (optim.batch_size, optim.lr, optim.final_lr) == (2048, 1e-3, 1e-6)
        assert (optim.weight_decay, optim.final_weight_decay, optim.clip_grad) == (0.04, 0.4, None)
        assert (optim.beta1, optim.beta2, optim.eps, optim.schedule_stretch) == (0.9, 0.999, 1e-8, 1.0)
        assert (method.ema_start, method.ema_end, method.target_norm, method.predictor_width) == (0.996, 1.0, "layer_norm", 384)
        assert (data.crop_scale, data.horizontal_flip, data.interpolation) == ((0.3, 1.0), False, "bilinear")
        assert data.crop_aspect == pytest.approx((3 / 4, 4 / 3))
        assert isinstance(config.masks, MultiblockSettings)
        assert (config.masks.num_targets, config.masks.min_keep) == (4, 10)
        assert (config.masks.target_scale, config.masks.context_scale) == ((0.15, 0.2), (0.85, 1.0))
        assert config.masks.target_aspect == (0.75, 1.5)
        assert (config.model.class_token, config.model.drop_path, config.model.initialization) == (False, 0.0, "released")
    assert isinstance(official.masks, MultiblockSettings) and isinstance(paper.masks, MultiblockSettings)
    assert isinstance(official.method, IJepaSettings) and isinstance(paper.method, IJepaSettings)
    assert (official.masks.mode, paper.masks.mode) == ("official", "unbiased")
    assert (official.method.loss, paper.method.loss) == ("smooth_l1", "l2")
    assert (official.optim.start_lr, paper.optim.start_lr) == (2e-4, 1e-4)
    assert (official.optim.weight_decay_schedule, paper.optim.weight_decay_schedule) == ("cosine", "linear")


@pytest.mark.parametrize("name", RIVALS)
def test_small_recipes_of_rivals_are_the_same_run(name: str) -> None:
    method, base = name.split("-", maxsplit=1)
    config, ours = load_recipe(name), load_recipe(base)
    assert config.method.name == method and f"`{base}`" in RECIPES[name].about
    assert replace(config.model, class_token=False) == ours.model
    assert (config.optim.batch_size, config.optim.total_steps) == (ours.optim.batch_size, ours.optim.total_steps)
    assert (config.data.image_size, config.data.cache, config.monitor) == (ours.data.image_size, ours.data.cache, ours.monitor)


@pytest.mark.parametrize("name", OUR_IJEPA)
def test_small_recipes_compare_at_equal_cost(name: str) -> None:
    ours, official = resolve(load_recipe(name, "default")), resolve(load_recipe(name, "official"))
    assert (replace(ours.model, initialization="released"), ours.data) == (official.model, official.data)
    assert isinstance(ours.method, IJepaSettings) and isinstance(official.method, IJepaSettings)
    for config in (ours, official):
        assert isinstance(config.method, IJepaSettings) and config.method.predictor_width is not None
        assert 0.4 <= config.method.predictor_width / config.model.shape().width <= 0.7
    assert ours.method.predictor_width == official.method.predictor_width
    assert ours.method.predictor_depth == official.method.predictor_depth
    assert ours.optim.total_steps is not None and official.optim.total_steps is not None
    seen = [config.optim.batch_size * (config.optim.total_steps or 0) for config in (ours, official)]
    assert seen[0] == seen[1]
    assert official.optim.warmup_steps == round(official.optim.total_steps * 40 / 300)
    assert isinstance(official.masks, MultiblockSettings)
    assert (official.masks.mode, official.method.loss, official.optim.weight_decay_schedule) == (
        "official",
        "smooth_l1",
        "cosine",
    )
    assert (official.method.ema_start, official.optim.start_lr, official.optim.lr) == (0.996, 2e-4, 1e-3)


def test_published_numbers_of_data2vec() -> None:
    """README of the golden numbers, section 7; protocols, sections 7 and 12."""
    for name in ("data2vec-vitb16", "data2vec-vitl16"):
        official, paper = load_recipe(name), load_recipe(name, "paper")
        assert official.preset == "official"
        for config in (official, paper):
            method, masks = config.method, config.masks
            assert isinstance(method, Data2VecSettings) and isinstance(masks, BlockwiseSettings)
            assert (method.average_layers, method.smooth_l1_beta, method.ema_start, method.ema_end) == (6, 2, 0.9998, 0.9998)
            assert [ratio * 196 for ratio in masks.ratios] == pytest.approx([120])
            assert (masks.min_block, masks.max_block, masks.spreads) == (16, 196, (0.0,))
            assert (config.optim.weight_decay, config.optim.clip_grad, config.optim.clip_mode) == (0.05, 3.0, "global")
            assert (config.model.positions, config.optim.epochs) == ("relative", 800)
            assert config.model.initialization == "depth_scaled", "the released program divides and does not draw again"
        assert (official.method.target_branch, official.method.target_layer_norm) == ("block", True)  # type: ignore[attr-defined]
        assert (paper.method.target_branch, paper.method.target_layer_norm) == ("mlp", False)  # type: ignore[attr-defined]
    base, large = load_recipe("data2vec-vitb16"), load_recipe("data2vec-vitl16")
    assert (base.optim.lr, base.optim.batch_size, base.optim.warmup_epochs) == (2e-3, 2048, 10)
    assert (base.model.drop_path, base.model.layer_scale) == (0.25, 1e-4)
    assert (large.optim.lr, large.optim.batch_size, large.optim.warmup_epochs) == (1e-3, 4096, 80)
    assert (large.model.drop_path, large.model.layer_scale) == (0.2, 1e-5)
    base, large = load_recipe("data2vec-vitb16", "paper"), load_recipe("data2vec-vitl16", "paper")
    assert (base.optim.warmup_epochs, base.model.drop_path, large.optim.batch_size) == (40, 0.2, 8192)
