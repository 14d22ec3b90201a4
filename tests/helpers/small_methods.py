"""A small run of each method on a folder of images at 32 pixels, for the tests that every method must pass."""

from dataclasses import replace
from pathlib import Path

from openjepa.settings.masks import BlockwiseSettings, MaskSettings, NoMaskSettings, RandomPatchesSettings
from openjepa.settings.methods import (
    Data2VecSettings,
    DinoSettings,
    IBotSettings,
    MaeSettings,
    MethodSettings,
    MsnSettings,
)
from openjepa.settings.run import RunConfig
from tests.training.test_loop import small_config

CROPS = {"local_crops": 2, "local_size": 16}
# in twenty steps from random weights, whose features hardly differ, a faster center would only drive the assignments apart
DISTILLATION = {"outputs": 64, "head_hidden": 128, "center_momentum": 0.98, "ema_start": 0.99, **CROPS}
SMALL: dict[str, tuple[MethodSettings, MaskSettings]] = {
    "mae": (MaeSettings(decoder_width=24, decoder_depth=1, decoder_heads=3), RandomPatchesSettings()),
    "data2vec": (Data2VecSettings(average_layers=2, ema_start=0.9, ema_end=0.9), BlockwiseSettings()),
    "dino": (DinoSettings(**DISTILLATION), NoMaskSettings()),  # type: ignore[arg-type]
    "ibot": (IBotSettings(**DISTILLATION), BlockwiseSettings(ratios=(0.3,))),  # type: ignore[arg-type]
    "msn": (
        MsnSettings(prototypes=32, output_width=16, ema_start=0.9, head_hidden=32, **CROPS),  # type: ignore[arg-type]
        RandomPatchesSettings(ratio=0.15, shared=True),
    ),
}


def method_config(name: str, images: Path, output: Path, **optim: object) -> RunConfig:
    """A run of some steps of 8 images with an encoder for tests."""
    config = small_config(images, output, **optim)
    if name == "ijepa":
        return config
    method, masks = SMALL[name]
    model = replace(config.model, class_token=True, positions="relative" if name == "data2vec" else "sincos")
    if name == "msn":  # its batch normalization would magnify rounding where features of new images hardly differ
        model = replace(model, initialization="fan_in")
    return replace(config, method=method, masks=masks, model=model)
