"""What each method refuses of its settings, the masks and the encoder, and what the error says to do."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from openjepa.checks import check
from openjepa.methods import METHODS
from openjepa.settings.masks import BlockwiseSettings, MultiblockSettings, NoMaskSettings, RandomPatchesSettings
from openjepa.settings.methods import DinoSettings
from openjepa.settings.run import RunConfig
from tests.helpers.small_runs import method_config

NOWHERE = Path("nowhere")


def changed(name: str, **changes: Any) -> RunConfig:
    """The small run of a method with some of its own settings changed."""
    config = method_config(name, NOWHERE, NOWHERE)
    return replace(config, method=replace(config.method, **changes))


@pytest.mark.parametrize("name", METHODS)
def test_the_small_run_of_every_method_can_work(name: str) -> None:
    check(method_config(name, NOWHERE, NOWHERE))


@pytest.mark.parametrize("name", METHODS)
def test_masks_that_do_not_fit_name_those_that_do(name: str) -> None:
    config = method_config(name, NOWHERE, NOWHERE)
    wrong = NoMaskSettings() if name == "ijepa" else MultiblockSettings()
    single = {"ijepa": "multiblock or .* or inverse_block", "dino": "none", "mae": "random_patches", "msn": "random_patches"}
    fitting = single.get(name, r"random_patches or blockwise|blockwise or random_patches")
    message = rf"does not fit method.name={name}, .* use masks.strategy=({fitting}), or start from a recipe of {name} "
    with pytest.raises(ValueError, match=message):
        check(replace(config, masks=wrong))


def test_the_released_masks_have_one_context() -> None:
    config = changed("ijepa", contexts=2)
    check(config)
    with pytest.raises(ValueError, match=r"method.contexts=2 with masks.mode=official: .* method.contexts=1"):
        check(replace(config, masks=MultiblockSettings(mode="official", min_keep=3)))


@pytest.mark.parametrize(
    ("changes", "optim", "message"),
    [
        ({"regularizer": "vicreg"}, {"batch_size": 1}, r"optim.batch_size=1, .*regularizer=vicreg compares the images"),
        ({"regularizer": "sigreg"}, {"microbatch_size": 1}, r"optim.microbatch_size=1, .*=sigreg compares .* at least 2"),
        ({"regularizer": "sigreg", "sigreg_points": 16}, {}, r"method.sigreg_points=16 .* use an odd number, such as 17"),
        ({"regularizer": "sigreg", "sigreg_slices": 0}, {}, r"method.sigreg_slices=0 must be at least 1"),
        ({"regularizer_width": 0}, {}, r"method.regularizer_width=0 must be at least 1"),
    ],
)
def test_regularizers_that_cannot_be(changes: dict[str, Any], optim: dict[str, int], message: str) -> None:
    config = changed("ijepa", **changes)
    with pytest.raises(ValueError, match=message):
        check(replace(config, optim=replace(config.optim, **optim)))


@pytest.mark.parametrize("name", ["dino", "ibot", "msn"])
def test_methods_that_train_the_class_token_need_one(name: str) -> None:
    config = method_config(name, NOWHERE, NOWHERE)
    with pytest.raises(ValueError, match=r"model.class_token=False, .* set model.class_token=True"):
        check(replace(config, model=replace(config.model, class_token=False)))


@pytest.mark.parametrize("name", ["dino", "ibot", "msn"])
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"local_size": 18},
            r"model.patch_size=4 does not divide method.local_size=18x18: use model.patch_size one of 6, 9, "
            r"or method.local_size=16",
        ),
        ({"local_size": 2}, r"model.patch_size=4 does not divide method.local_size=2x2: use method.local_size=4"),
        ({"local_size": 36}, r"method.local_size=36 .* data.image_size=32: use e.g. method.local_size=12"),
        ({"local_scale": (0.4, 0.05)}, r"method.local_scale=0.4 0.05: smallest first"),
        ({"jitter": (0.4, 0.4, 0.2, 0.6)}, r"method.jitter: .* 0.6, .* use at most 0.5"),
        ({"jitter": (-0.1, 0.4, 0.2, 0.1)}, r"method.jitter=-0.1 must be at least 0"),
        ({"blur_probability": (0.5, 1.5, 0.5)}, r"method.blur_probability=1.5 must be between 0 and 1"),
        ({"blur_sigma": (0.0, 2.0)}, r"method.blur_sigma=0.0 must be above 0"),
    ],
)
def test_crops_and_colors_that_cannot_be(name: str, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        check(changed(name, **changes))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"average_layers": 3}, r"method.average_layers=3 of an encoder with 2 blocks: set method.average_layers to at most 2"),
        ({"average_layers": 0}, r"method.average_layers=0 must be at least 1"),
        ({"smooth_l1_beta": 0.0}, r"method.smooth_l1_beta=0.0 must be above 0"),
        ({"ema_ramp": 1.5}, r"method.ema_ramp=1.5 must be between 0 and 1"),
        ({"jitter_probability": -0.1}, r"method.jitter_probability=-0.1 must be between 0 and 1"),
    ],
)
def test_what_data2vec_cannot_do(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        check(changed("data2vec", **changes))


def test_data2vec_turns_hues_by_half_a_turn_at_most() -> None:
    check(changed("data2vec", jitter=(0.4, 0.4, 0.4, 0.5)))
    with pytest.raises(ValueError, match=r"method.jitter: .* 0.6, .* use at most 0.5"):
        check(changed("data2vec", jitter=(0.4, 0.4, 0.4, 0.6)))


@pytest.mark.parametrize("name", ["dino", "ibot", "msn"])
def test_without_small_crops_their_size_does_not_matter(name: str) -> None:
    check(changed(name, local_crops=0, local_size=18))


@pytest.mark.parametrize("name", ["dino", "ibot"])
@pytest.mark.parametrize(
    ("setting", "value", "words"),
    [
        ("outputs", 0, "at least 1"),
        ("head_layers", 0, "at least 1"),
        ("student_temperature", 0.0, "above 0"),
        ("teacher_temperature", 0.0, "above 0"),
        ("center_momentum", 1.1, "between 0 and 1"),
        ("freeze_last_layer_epochs", -1, "at least 0"),
    ],
)
def test_numbers_of_the_head_have_ranges(name: str, setting: str, value: float, words: str) -> None:
    with pytest.raises(ValueError, match=f"method.{setting}={value} must be {words}"):
        check(changed(name, **{setting: value}))


@pytest.mark.parametrize("name", ["data2vec", "ibot"])
def test_masks_that_mask_nothing_are_refused(name: str) -> None:
    """A share of less than one patch of the 8x8 is none; iBOT can do with its class tokens alone."""
    config = method_config(name, NOWHERE, NOWHERE)
    check(replace(config, masks=BlockwiseSettings(ratios=(0.0, 0.01), spreads=(0.0, 0.01))))
    nothing = replace(config, masks=BlockwiseSettings(ratios=(0.0, 0.015), spreads=(0.0, 0.0)))
    message = rf"masks.ratios=0.015 of 8x8 patches masks none, which leaves {name} nothing to predict: set masks.ratios to"
    with pytest.raises(ValueError, match=message):
        check(nothing)
    if name == "ibot":
        check(replace(nothing, method=replace(nothing.method, patch_weight=0.0)))


def test_ibot_needs_one_of_its_losses() -> None:
    check(changed("ibot", class_weight=0.0))
    with pytest.raises(ValueError, match=r"method.class_weight=0 and method.patch_weight=0 leave no loss"):
        check(changed("ibot", class_weight=0.0, patch_weight=0.0))


@pytest.mark.parametrize(
    ("setting", "value", "words"),
    [
        ("patch_outputs", 0, "at least 1"),
        ("class_weight", -1.0, "at least 0"),
        ("patch_weight", -1.0, "at least 0"),
        ("patch_temperature_start", 0.0, "above 0"),
        ("patch_temperature", 0.0, "above 0"),
        ("patch_start_epoch", -1, "at least 0"),
        ("patch_center_momentum", 1.1, "between 0 and 1"),
    ],
)
def test_numbers_of_the_patches_have_ranges(setting: str, value: float, words: str) -> None:
    with pytest.raises(ValueError, match=f"method.{setting}={value} must be {words}"):
        check(changed("ibot", **{setting: value}))


def test_published_crops_need_a_patch_size_that_divides_both() -> None:
    config = method_config("dino", NOWHERE, NOWHERE)
    sized = replace(config, method=DinoSettings(), data=replace(config.data, image_size=224))
    check(replace(sized, model=replace(sized.model, patch_size=16)))
    with pytest.raises(ValueError, match=r"patch_size=14 does not divide method.local_size=96x96: .* or method.local_size=98"):
        check(replace(sized, model=replace(sized.model, patch_size=14)))


def test_masks_of_single_patches_are_no_masks_of_dino() -> None:
    with pytest.raises(ValueError, match=r"which compares whole views without masks: use masks.strategy=none"):
        check(replace(method_config("dino", NOWHERE, NOWHERE), masks=RandomPatchesSettings()))


@pytest.mark.parametrize("name", ["mae", "msn"])
def test_methods_that_encode_only_visible_patches_need_equally_many(name: str) -> None:
    config = method_config(name, NOWHERE, NOWHERE)
    message = rf"masks.strategy=blockwise .* method.name={name} .* use masks.strategy=random_patches"
    with pytest.raises(ValueError, match=message):
        check(replace(config, masks=BlockwiseSettings()))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"decoder_heads": 5},
            r"method.decoder_heads=5 does not divide method.decoder_width \(24\); heads that do: 1, 2, 3, 4, 6",
        ),
        ({"decoder_width": 27}, r"method.decoder_width=27 must be a multiple of 4 .* e.g. 24 or 28"),
        ({"decoder_width": 0}, r"method.decoder_width=0 must be at least 1"),
        ({"decoder_depth": 0}, r"method.decoder_depth=0 must be at least 1"),
        ({"decoder_heads": 0}, r"method.decoder_heads=0 must be at least 1"),
    ],
)
def test_decoders_that_cannot_be(changes: dict[str, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        check(changed("mae", **changes))


@pytest.mark.parametrize("ratio", [0.0, 1.0, 0.99])
def test_patches_are_masked_and_some_stay(ratio: float) -> None:
    """Of 8x8 patches 0.99 leaves none; the same holds for a run as for a sampler alone."""
    config = method_config("mae", NOWHERE, NOWHERE)
    fix = r"patches leaves none visible: use masks.ratio=0.9765 or less" if ratio == 0.99 else r"must be above 0 and below 1"
    with pytest.raises(ValueError, match=rf"masks.ratio={ratio:g}.* .*{fix}"):
        check(replace(config, masks=RandomPatchesSettings(ratio=ratio)))


@pytest.mark.parametrize("changes", [{"batch_size": 1}, {"microbatch_size": 1}])
def test_msn_normalizes_over_several_images(changes: dict[str, int]) -> None:
    config = method_config("msn", NOWHERE, NOWHERE)
    (setting,) = changes
    with pytest.raises(ValueError, match=rf"optim.{setting}=1, but method.name=msn .* set optim.{setting} to at least 2"):
        check(replace(config, optim=replace(config.optim, **changes)))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("setting", "value", "words"),
    [
        ("masked_views", 0, "at least 1"),
        ("prototypes", 0, "at least 1"),
        ("temperature", 0.0, "above 0"),
        ("sharpening_start", 0.0, "above 0"),
        ("sharpening_end", 0.0, "above 0"),
        ("sinkhorn_iterations", 0, "at least 1"),
        ("mean_entropy_weight", -1.0, "at least 0"),
        ("entropy_weight", -1.0, "at least 0"),
        ("label_smoothing", 1.0, "at least 0 and below 1"),
    ],
)
def test_numbers_of_the_prototypes_have_ranges(setting: str, value: float, words: str) -> None:
    with pytest.raises(ValueError, match=f"method.{setting}={value} must be {words}"):
        check(changed("msn", **{setting: value}))
