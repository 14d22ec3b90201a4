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
from tests.test_loop import small_config

HEAD = {"head_hidden": 32, "local_crops": 2, "local_size": 16}
SMALL: dict[str, tuple[MethodSettings, MaskSettings]] = {
    "mae": (MaeSettings(decoder_width=24, decoder_depth=1, decoder_heads=3), RandomPatchesSettings()),
    "data2vec": (Data2VecSettings(average_layers=2, ema_start=0.9, ema_end=0.9), BlockwiseSettings()),
    "dino": (DinoSettings(outputs=64, bottleneck=16, ema_start=0.9, **HEAD), NoMaskSettings()),  # type: ignore[arg-type]
    "ibot": (IBotSettings(outputs=64, bottleneck=16, ema_start=0.9, **HEAD), BlockwiseSettings(ratios=(0.3,))),  # type: ignore[arg-type]
    "msn": (
        MsnSettings(prototypes=32, output_width=16, ema_start=0.9, **HEAD),  # type: ignore[arg-type]
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
    return replace(config, method=method, masks=masks, model=model)
