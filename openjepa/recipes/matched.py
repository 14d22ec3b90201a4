"""The same run with another method. Encoder size, data, images seen and steps stay; masks, crops and rates are the method's.

`mae-cpu-32` is the small recipe `cpu-32` with MAE. Published values are kept if they do not depend on sizes. Lengths become
shares of the run. Settings that depend on the encoder or the images (heads, decoder, small crops, blur) are None here and get
their values in `openjepa.settings.derived`. Values marked [M] come from memory of the papers and their commands.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Literal

from openjepa.recipes import small
from openjepa.recipes.recipe import Recipe
from openjepa.refusals import Refusal
from openjepa.settings.masks import BlockwiseSettings, NoMaskSettings, RandomPatchesSettings
from openjepa.settings.methods import (
    METHODS,
    Data2VecSettings,
    DinoSettings,
    IBotSettings,
    IJepaSettings,
    MaeSettings,
    MsnSettings,
)
from openjepa.settings.run import OptimizationSettings, RunConfig


@dataclass(frozen=True)
class Rates:
    """A method's rates: published, except for the peak. Lengths are shares of the run, and rates are shares of the peak."""

    lr: float
    """Peak learning rate. Like that of I-JEPA it is meant for short runs with small batches, and is not the published one."""
    warmup: float
    """Length of the warm-up as a share of the run."""
    start: float = 0.0
    """Rate at the start of the warm-up, as a share of the peak."""
    final: float = 0.0
    """Rate at the end, as a share of the peak."""
    weight_decay: float = 0.05
    final_weight_decay: float = 0.4
    weight_decay_schedule: Literal["linear", "cosine", "constant"] = "cosine"
    beta2: float = 0.999
    clip_grad: float | None = 3.0
    clip_mode: Literal["global", "per_tensor"] = "global"
    schedule_steps: Literal["from_one", "from_zero", "inclusive"] = "inclusive"
    schedule_stretch: float = 1.0


RATES: dict[str, Rates] = {
    "mae": Rates(1e-3, 40 / 800, weight_decay_schedule="constant", beta2=0.95, clip_grad=None, schedule_steps="from_zero"),
    "data2vec": Rates(3e-4, 40 / 800, final=1 / 200, weight_decay_schedule="constant"),
    "dino": Rates(3e-4, 10 / 100, final=1 / 2000, weight_decay=0.04, clip_mode="per_tensor"),
    "ibot": Rates(3e-4, 10 / 100, final=1 / 2000, weight_decay=0.04, clip_mode="per_tensor"),
    "msn": Rates(
        1e-3, 15 / 300, start=0.2, final=1 / 1000, weight_decay=0.04, schedule_steps="from_one", schedule_stretch=1.25
    ),
}


CROPS: dict[str, Any] = {"local_size": None, "blur_sigma": None}
"""Derived settings of crops: small crops and blur keep their published sizes relative to the image."""
HEAD: dict[str, Any] = {
    "outputs": None,
    "head_hidden": None,
    "bottleneck": None,
    "teacher_temperature": 0.04,
    "teacher_temperature_warmup_epochs": 0,
    "freeze_last_layer_epochs": 0.0,
}
"""Settings of the head of DINO and iBOT, in proportion to the encoder's width.

The teacher's temperature stays at its first value, and the last layer is not frozen: both are counted in epochs, and short runs
have only a few.
"""


def with_method(config: RunConfig, name: str) -> RunConfig:
    """Turns an I-JEPA run into the same run with the method `name`. Returns a run of that method unchanged.

    Raises Refusal if `config` is a run of a third method, or if `name` is not a method.
    """
    if config.method.name == name:
        return config
    if not isinstance(config.method, IJepaSettings):
        fix = "start from an I-JEPA recipe, e.g. cpu-32"
        raise Refusal(f"method.name={config.method.name}: only runs of ijepa are turned into those of other methods; {fix}")
    if name not in CHANGES:
        raise Refusal(f"method.name={name!r} does not exist: use one of ijepa, {', '.join(CHANGES)}")
    changed = CHANGES[name](config, config.method)
    model = replace(config.model, class_token=config.model.class_token or changed.method.needs_class_token)
    return replace(changed, model=model, optim=_optimization(config.optim, RATES[name]))


def _mae(config: RunConfig, ijepa: IJepaSettings) -> RunConfig:
    """MAE, with a decoder of the predictor's size."""
    method = MaeSettings(
        decoder_width=ijepa.predictor_width,
        decoder_depth=ijepa.predictor_depth,
        decoder_heads=ijepa.predictor_heads,
    )
    data = replace(config.data, crop_scale=(0.2, 1.0), horizontal_flip=True, interpolation="bicubic")
    return replace(config, method=method, masks=RandomPatchesSettings(ratio=0.75), data=data)


def _data2vec(config: RunConfig, ijepa: IJepaSettings) -> RunConfig:
    """data2vec: averages the upper half of the blocks. The momentum is constant, that of I-JEPA's first step."""
    method = Data2VecSettings(average_layers=None, ema_start=ijepa.ema_start, ema_end=None)
    data = replace(config.data, crop_scale=(0.08, 1.0), horizontal_flip=True, interpolation="bicubic")  # [M]
    return replace(config, method=method, masks=BlockwiseSettings(ratios=(120 / 196,)), data=data)


def _dino(config: RunConfig, ijepa: IJepaSettings) -> RunConfig:
    method = DinoSettings(**CROPS, **HEAD, ema_start=ijepa.ema_start)
    data = replace(config.data, crop_scale=(0.4, 1.0), horizontal_flip=True, interpolation="bicubic")
    return replace(config, method=method, masks=NoMaskSettings(), data=data)


def _ibot(config: RunConfig, ijepa: IJepaSettings) -> RunConfig:
    """iBOT, with the masks of the published S/16: half of the views are whole, and 10 to 50 % of the others is masked."""
    method = IBotSettings(**CROPS, **HEAD, patch_outputs=None, patch_temperature=0.04, ema_start=ijepa.ema_start)
    data = replace(config.data, crop_scale=(0.25, 1.0), horizontal_flip=True, interpolation="bicubic")
    return replace(config, method=method, masks=BlockwiseSettings(ratios=(0.0, 0.3), spreads=(0.0, 0.2)), data=data)


def _msn(config: RunConfig, ijepa: IJepaSettings) -> RunConfig:
    method = MsnSettings(**CROPS, prototypes=None, output_width=None, head_hidden=None, ema_start=ijepa.ema_start)
    masks = RandomPatchesSettings(ratio=None, shared=True)
    data = replace(config.data, crop_scale=(0.3, 1.0), horizontal_flip=True, interpolation="bilinear")
    return replace(config, method=method, masks=masks, data=data)


CHANGES: dict[str, Callable[[RunConfig, IJepaSettings], RunConfig]] = {
    "mae": _mae,
    "data2vec": _data2vec,
    "dino": _dino,
    "ibot": _ibot,
    "msn": _msn,
}


def _optimization(optim: OptimizationSettings, rates: Rates) -> OptimizationSettings:
    """`optim` with the rates of the method, at the same length.

    Peaks are not the published ones scaled with the batch. At 32 images those are so small that little is learned in a short
    run (MAE on CIFAR-10, 64,000 images: 54.2 % by the linear probe with the scaled rate, 61.4 % with 1e-3; untrained 52.7 %).
    """
    return replace(
        optim,
        lr=rates.lr,
        start_lr=rates.start * rates.lr,
        final_lr=rates.final * rates.lr,
        warmup_steps=None,
        warmup_epochs=None,
        warmup_share=rates.warmup,
        lr_schedule="cosine",
        weight_decay=rates.weight_decay,
        final_weight_decay=rates.final_weight_decay,
        weight_decay_schedule=rates.weight_decay_schedule,
        beta2=rates.beta2,
        clip_grad=rates.clip_grad,
        clip_mode=rates.clip_mode,
        schedule_steps=rates.schedule_steps,
        schedule_stretch=rates.schedule_stretch,
    )


BASES = ("cpu-32", "cpu-64", "cpu-96", "gpu-224")


def _matched(method: str, base: str) -> Recipe:
    """The recipe `base` with another method."""

    def build(preset: str) -> RunConfig:
        return with_method(small.RECIPES[base].config(preset), method)

    title = METHODS[method].settings.about.short
    place = small.RECIPES[base].summary().partition(":")[0]
    about = f"""{title} on {place[0].lower()}{place[1:]}, with encoder, batch and images seen of `{base}`.

`default`: published masks, crops and losses, heads in proportion to the encoder; a peak rate for short runs, which was set by
short runs on CIFAR-10 at 32 px."""
    return Recipe(build, about, ("default",), small.PHOTOS)


RECIPES = {f"{method}-{base}": _matched(method, base) for method in CHANGES for base in BASES}
