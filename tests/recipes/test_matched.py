"""An I-JEPA run turned into the same run of another method keeps encoder, data and length, and can work."""

from dataclasses import replace

import pytest

from openjepa.checks import check, remarks
from openjepa.masks import MASKS
from openjepa.methods import METHODS
from openjepa.recipes import RECIPES, load_recipe
from openjepa.recipes.matched import MATCHED, with_method
from openjepa.settings.derived import resolve
from openjepa.settings.methods import Data2VecSettings, DinoSettings, IJepaSettings, MaeSettings, MsnSettings
from openjepa.settings.run import RunConfig
from openjepa.settings.sources import FolderSettings

SMALL = [name for name, recipe in RECIPES.items() if recipe.is_small and isinstance(recipe.config().method, IJepaSettings)]


def with_path(config: RunConfig) -> RunConfig:
    return replace(config, data=replace(config.data, path="images")) if isinstance(config.data, FolderSettings) else config


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("recipe", [*SMALL, "ijepa-vitb16", "ijepa-vith16-448"])
def test_the_same_run_of_every_method_can_work(recipe: str, name: str) -> None:
    before = with_path(load_recipe(recipe))
    after = with_method(before, name)
    check(after)
    assert remarks(after) == remarks(before) == []
    assert after.method.name == name and isinstance(after.method, METHODS[name].settings)
    assert isinstance(after.masks, MASKS[after.masks.strategy].settings)
    for same in ("size", "patch_size", "positions", "initialization"):
        assert getattr(after.model, same) == getattr(before.model, same)
    assert after.model.class_token == after.method.needs_class_token
    for same in ("batch_size", "microbatch_size", "total_steps", "epochs"):
        assert getattr(after.optim, same) == getattr(before.optim, same)
    assert (after.data.image_size, after.data.cache, after.run) == (before.data.image_size, before.data.cache, before.run)


def test_a_run_of_the_method_stays_as_it_is() -> None:
    config = load_recipe("cpu-32")
    assert with_method(config, "ijepa") is config
    rival = with_method(config, "msn")
    assert with_method(rival, "msn") is rival


def test_sizes_follow_image_and_encoder() -> None:
    small, large = load_recipe("cpu-32"), load_recipe("ijepa-vitb16")
    at_32, at_224 = resolve(with_method(small, "dino")).method, resolve(with_method(large, "dino")).method
    assert isinstance(at_32, DinoSettings) and isinstance(at_224, DinoSettings)
    assert (at_32.local_size, at_224.local_size) == (12, 96), "3/7 of the image, in whole patches"
    assert at_224.blur_sigma == (0.1, 2.0) and at_32.blur_sigma == (0.1, 2 * 32 / 224)
    assert (at_32.outputs, at_224.outputs) == (2048, 4096)
    decoder, predictor = resolve(with_method(small, "mae")).method, resolve(small).method
    assert isinstance(decoder, MaeSettings) and isinstance(predictor, IJepaSettings)
    assert (decoder.decoder_width, decoder.decoder_depth) == (predictor.predictor_width, predictor.predictor_depth)
    prototypes = resolve(with_method(small, "msn")).method
    assert isinstance(prototypes, MsnSettings) and prototypes.prototypes == 512


@pytest.mark.parametrize("name", MATCHED)
@pytest.mark.parametrize("recipe", ["cpu-32", "gpu-224", "ijepa-vitb16"])
def test_the_peak_is_that_of_the_table_at_any_batch(recipe: str, name: str) -> None:
    rates, optim = MATCHED[name].rates, with_method(load_recipe(recipe), name).optim
    assert (optim.lr, optim.start_lr, optim.final_lr) == (rates.lr, rates.start * rates.lr, rates.final * rates.lr)
    assert rates.final < 0.01 and rates.start < 1


def test_warm_up_is_the_published_share_of_the_run() -> None:
    assert resolve(with_method(load_recipe("cpu-32"), "dino")).optim.warmup_steps == 1200
    epochs = replace(load_recipe("ijepa-vitb16"), optim=replace(load_recipe("ijepa-vitb16").optim, epochs=300))
    assert resolve(with_method(epochs, "mae")).optim.warmup_epochs == 15


def test_a_constant_momentum_stays_constant_at_another_length() -> None:
    config = with_method(load_recipe("cpu-32"), "data2vec")
    method = resolve(replace(config, optim=replace(config.optim, total_steps=1000))).method
    assert isinstance(method, Data2VecSettings)
    assert method.ema_start == method.ema_end == 0.9


def test_what_cannot_be_turned_is_named() -> None:
    rival = with_method(load_recipe("cpu-32"), "mae")
    with pytest.raises(ValueError, match=r"method\.name=mae: only runs of ijepa .* e\.g\. cpu-32"):
        with_method(rival, "dino")
    with pytest.raises(ValueError, match=r"method\.name='simclr' does not exist: use one of ijepa, mae"):
        with_method(load_recipe("cpu-32"), "simclr")
