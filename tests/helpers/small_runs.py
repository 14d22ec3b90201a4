"""Small runs on a folder of images at 32 pixels, of I-JEPA and of each method, and what such a run leaves."""

import json
from dataclasses import replace
from pathlib import Path

import torch
from safetensors.torch import load_file

from openjepa.masks import MASKS
from openjepa.masks.sampler import MaskSampler
from openjepa.settings.masks import BlockwiseSettings, MaskSettings, MultiblockSettings, NoMaskSettings, RandomPatchesSettings
from openjepa.settings.methods import (
    METHODS,
    Data2VecSettings,
    DinoSettings,
    IBotSettings,
    IJepaSettings,
    MaeSettings,
    MethodSettings,
    MsnSettings,
)
from openjepa.settings.models import ModelSettings
from openjepa.settings.run import MonitorSettings, OptimizationSettings, RunConfig, RunSettings, SystemSettings
from openjepa.settings.sources import FolderSettings

CROPS = {"local_crops": 2, "local_size": 16}
# in twenty steps from random weights, whose features hardly differ, a faster center would only drive the assignments apart
DISTILLATION = {"outputs": 64, "head_hidden": 128, "center_momentum": 0.98, "ema_start": 0.99, **CROPS}
# a method belongs here only if its default settings are too large for tests
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
    method, masks = SMALL[name] if name in SMALL else default(name)
    model = replace(config.model, class_token=True, positions="relative" if name == "data2vec" else "sincos")
    if name == "msn":  # its batch normalization would magnify rounding where features of new images hardly differ
        model = replace(model, initialization="fan_in")
    return replace(config, method=method, masks=masks, model=model)


def default(name: str) -> tuple[MethodSettings, MaskSettings]:
    """A method that is not in SMALL, with its default settings and masks."""
    method = METHODS[name].settings(name=name)
    strategy = method.fitting_masks()[0]
    return method, MASKS[strategy].settings(strategy=strategy)


def small_config(images: Path, output: Path, **optim: object) -> RunConfig:
    settings = {"batch_size": 8, "total_steps": 4, "warmup_steps": 1, **optim}
    return RunConfig(
        method=IJepaSettings(predictor_width=24, predictor_depth=1, loss="l2"),
        model=ModelSettings(size="test", patch_size=4),
        masks=MultiblockSettings(),
        data=FolderSettings(path=str(images), image_size=32),
        optim=OptimizationSettings(**settings),  # type: ignore[arg-type]
        run=RunSettings(name="run", output=str(output), precision="fp32", device="cpu"),
        monitor=MonitorSettings(every=2, images=16),
        system=SystemSettings(workers=0, log_every=1, progress="none"),
    )


def lines(run: Path, kind: str) -> list[dict[str, float]]:
    found = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [line for line in found if line["kind"] == kind]


def weights(run: Path) -> dict[str, torch.Tensor]:
    return load_file(run / "encoder" / "model.safetensors")


def sampler(config: RunConfig) -> MaskSampler:
    made: MaskSampler = MASKS[config.masks.strategy].load()(config.masks, config.model.grid(config.data.height_width()))
    return made


def from_file(config: RunConfig, path: Path | str) -> RunConfig:
    run = replace(config.run, init=str(path), init_heads=3)
    return replace(config, run=run, monitor=MonitorSettings(every=0))
