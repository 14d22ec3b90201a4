"""Small budgets on the user's images: I-JEPA on one CPU or one GPU. The matched recipes of other methods start from these."""

from dataclasses import replace
from typing import Literal

from openjepa.recipes.recipe import SMALL_PRESETS, Recipe
from openjepa.settings.masks import MultiblockSettings
from openjepa.settings.methods import IJepaSettings
from openjepa.settings.models import ModelSettings, Size
from openjepa.settings.run import MonitorSettings, OptimizationSettings, RunConfig
from openjepa.settings.sources import FolderSettings, ScenesSettings

LOCAL_MASKS = MultiblockSettings(target_scale=(0.05, 0.1), context_ratio=0.4)
"""Targets of half the paper's size, and more context. They learn best in some hundred thousand images on 8x8 patches."""
OFFICIAL = """`official`: the released code's initialization, masks and hyper-parameters at equal images
seen."""
PHOTOS = "~/photos"
"""Path of the user's images in example commands."""


def small(
    preset: str,
    size: Size,
    patch_size: int,
    image_size: int,
    total_steps: int,
    batch_size: int = 32,
    predictor_depth: int = 3,
    masks: MultiblockSettings = LOCAL_MASKS,
) -> RunConfig:
    """The common settings of small recipes: a predictor half as wide as the encoder, cached decoded images, many short steps.

    The length is `total_steps`, so that a run takes the same time on 2,000 images and on 200,000. The preset `official` keeps
    encoder, predictor, data and images seen, and takes initialization, masks and settings from the released code, with
    the same shares of the run. The values for a CPU were chosen on CIFAR-10 and on the packaged scenes (docs/log.md). Settings
    that are None follow from others (`openjepa.settings.derived`).
    """
    official = preset == "official"
    return RunConfig(
        method=IJepaSettings(predictor_width=None, predictor_depth=predictor_depth, ema_start=0.996 if official else None),
        model=ModelSettings(size=size, patch_size=patch_size, initialization="released" if official else "fan_in"),
        masks=MultiblockSettings(mode="official", min_keep=None) if official else masks,
        data=FolderSettings(image_size=image_size, cache="device"),
        optim=OptimizationSettings(
            batch_size=batch_size,
            total_steps=total_steps,
            warmup_epochs=None,
            warmup_share=40 / 300 if official else 0.1,
            start_lr=2e-4 if official else 1e-4,
            weight_decay_schedule="cosine" if official else "linear",
        ),
        monitor=MonitorSettings(every=None, knn=True),
    )


def _on_cpu(patch_size: int, image_size: int) -> Recipe:
    """A recipe for one CPU: 12,000 steps of a small encoder."""

    def build(preset: str) -> RunConfig:
        return small(preset, size="nano", patch_size=patch_size, image_size=image_size, total_steps=12_000)

    about = f"Own images at {image_size} px on one CPU: 4 blocks of width 128, patch {patch_size}."
    return Recipe(build, f"{about}\n\n`default`: our recipe. {OFFICIAL}", SMALL_PRESETS, PHOTOS)


def _on_gpu(patch_size: int, image_size: int, cache: Literal["none", "device"] = "device") -> Recipe:
    """A recipe for one GPU: ViT-S with the paper's masks, which the paper's ablations found best for long runs."""

    def build(preset: str) -> RunConfig:
        masks = MultiblockSettings()
        config = small(preset, "small", patch_size, image_size, 30_000, batch_size=256, predictor_depth=6, masks=masks)
        return replace(config, data=replace(config.data, cache=cache))

    about = f"Own images at {image_size} px on one GPU: ViT-S, patch {patch_size}."
    ours = "`default`: our recipe with the paper's masks, not measured yet."
    return Recipe(build, f"{about}\n\n{ours} {OFFICIAL}", SMALL_PRESETS, PHOTOS)


def _quickstart(preset: str) -> RunConfig:
    # objects cover one to three patches: smaller and more targets leave enough context to predict them from
    masks = MultiblockSettings(num_targets=8, target_scale=(0.03, 0.06), context_ratio=0.3)
    config = small(preset, size="nano", patch_size=8, image_size=64, total_steps=5_000, predictor_depth=2, masks=masks)
    # heads as wide as the encoder's, and faster than the same number of heads
    method = replace(config.method, predictor_heads="half")  # type: ignore[call-arg]
    return replace(config, method=method, data=ScenesSettings(image_size=64, cache="device"))


RECIPES = {
    "quickstart": Recipe(
        _quickstart,
        "The packaged scenes (3,000 rendered images with 3 to 10 objects) at 64 px on two CPU cores; nothing is downloaded.\n\n"
        f"`default`: our recipe. {OFFICIAL}",
        SMALL_PRESETS,
        data="",
    ),
    "cpu-32": _on_cpu(patch_size=4, image_size=32),
    "cpu-64": _on_cpu(patch_size=8, image_size=64),
    "cpu-96": _on_cpu(patch_size=12, image_size=96),
    "gpu-96": _on_gpu(patch_size=8, image_size=96),
    "gpu-128": _on_gpu(patch_size=8, image_size=128),
    "gpu-224": _on_gpu(patch_size=16, image_size=224, cache="none"),
}
