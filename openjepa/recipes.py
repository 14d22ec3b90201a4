"""Named runs. Each is a function from a preset to a RunConfig; its docstring gives source, presets, hardware and command.

`openjepa train NAME [--preset PRESET]` starts from one of them, and every setting can be overridden.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace

from openjepa.config import nearest
from openjepa.settings.data import FolderSettings, ScenesSettings
from openjepa.settings.masks import MultiblockSettings
from openjepa.settings.methods import IJepaSettings
from openjepa.settings.models import ModelSettings, Size
from openjepa.settings.optimization import OptimizationSettings
from openjepa.settings.run import MonitorSettings, RunConfig


@dataclass(frozen=True)
class Recipe:
    """A named run and the presets it comes in; the first preset is the default."""

    build: Callable[[str], RunConfig]
    presets: tuple[str, ...]

    def config(self, preset: str | None = None) -> RunConfig:
        """The settings of a preset. Raises ValueError for one that the recipe does not have."""
        preset = self.presets[0] if preset is None else preset
        if preset not in self.presets:
            raise ValueError(f"--preset {preset} does not exist for this recipe: {nearest(preset, self.presets)}")
        return self.build(preset)

    @property
    def is_small(self) -> bool:
        """Whether this is one of our small-budget recipes, not a published run."""
        return "default" in self.presets

    def summary(self) -> str:
        """First line of the recipe's docstring."""
        return (self.build.__doc__ or "").strip().splitlines()[0]


def load_recipe(name: str, preset: str | None = None) -> RunConfig:
    """The settings of a recipe's preset. Raises ValueError that names the nearest recipe, or the presets."""
    if name not in RECIPES:
        raise ValueError(f"recipe {name!r} does not exist: {nearest(name, RECIPES)}")
    config = RECIPES[name].config(preset)
    return replace(config, recipe=name, preset=preset or RECIPES[name].presets[0])


def with_total_steps(config: RunConfig, total_steps: int) -> RunConfig:
    """A recipe given in steps at another length: the warm-up keeps its share of the run.

    The moving average of our small recipes follows too, so that the teacher is renewed as often; released values stay.
    """
    optim, method, before = config.optim, config.method, config.optim.total_steps
    if not before or total_steps < 1:
        return replace(config, optim=replace(optim, total_steps=total_steps))
    if optim.warmup_steps is not None:
        optim = replace(optim, warmup_steps=round(optim.warmup_steps * total_steps / before))
    if isinstance(method, IJepaSettings) and method.ema_start == _ema_start(before):
        method = replace(method, ema_start=_ema_start(total_steps))
    return replace(config, method=method, optim=replace(optim, total_steps=total_steps))


# ---------------------------------------------------------------------------------------- the published runs (ImageNet)


def _published(preset: str, model: ModelSettings, predictor_depth: int, epochs: float, images_per_device: int) -> RunConfig:
    """What all published I-JEPA runs share: batch 2048, lr 1e-3 to 1e-6, decay 0.04 to 0.4, EMA 0.996 to 1.

    `official` is the released code, `paper` the text of arXiv 2301.08243v3 where it differs. Mask groups are the
    `images_per_device` of the released configurations: 16 GPUs with 128 images each, or 128 GPUs with 16.
    """
    official = preset == "official"
    return RunConfig(
        method=IJepaSettings(predictor_width=384, predictor_depth=predictor_depth, loss="smooth_l1" if official else "l2"),
        model=model,
        masks=MultiblockSettings(mode="official" if official else "unbiased", group_size=images_per_device),
        data=FolderSettings(image_size=224, interpolation="bilinear"),
        optim=OptimizationSettings(
            batch_size=2048,
            microbatch_size=images_per_device,
            epochs=epochs,
            start_lr=2e-4 if official else 1e-4,
            warmup_epochs=40 if official else 15,
            weight_decay_schedule="cosine" if official else "linear",
        ),
    )


def ijepa_vitt16(preset: str) -> RunConfig:
    """ViT-Ti/16 at 224 px for 600 epochs of ImageNet-1K. No values are published for this size: those of ViT-B/16 are used.

    `official`: the released code's masks, 40 warm-up epochs from 2e-4, cosine weight decay, smooth L1.
    `paper`: unbiased masks, 15 warm-up epochs from 1e-4, linear weight decay, squared L2 (mean over patches and dimensions).

    openjepa train ijepa-vitt16 --data.path ~/imagenet
    """
    return _published(preset, ModelSettings(size="tiny", patch_size=16), predictor_depth=6, epochs=600, images_per_device=128)


def ijepa_vits16(preset: str) -> RunConfig:
    """ViT-S/16 at 224 px for 600 epochs of ImageNet-1K. No values are published for this size: those of ViT-B/16 are used.

    `official`: the released code's masks, 40 warm-up epochs from 2e-4, cosine weight decay, smooth L1.
    `paper`: unbiased masks, 15 warm-up epochs from 1e-4, linear weight decay, squared L2 (mean over patches and dimensions).

    openjepa train ijepa-vits16 --data.path ~/imagenet
    """
    return _published(preset, ModelSettings(size="small", patch_size=16), predictor_depth=6, epochs=600, images_per_device=128)


def ijepa_vitb16(preset: str) -> RunConfig:
    """ViT-B/16 at 224 px for 600 epochs of ImageNet-1K (paper, Table 1: 72.9 % linear).

    `official`: the released code's masks, 40 warm-up epochs from 2e-4, cosine weight decay, smooth L1. The code has no
    configuration of this size: epochs and predictor depth are the paper's.
    `paper`: unbiased masks, 15 warm-up epochs from 1e-4, linear weight decay, squared L2 (mean over patches and dimensions).

    openjepa train ijepa-vitb16 --data.path ~/imagenet
    """
    return _published(preset, ModelSettings(size="base", patch_size=16), predictor_depth=6, epochs=600, images_per_device=128)


def ijepa_vitl16(preset: str) -> RunConfig:
    """ViT-L/16 at 224 px for 600 epochs of ImageNet-1K (paper, Table 1: 77.5 % linear).

    `official`: the released code's masks, 40 warm-up epochs from 2e-4, cosine weight decay, smooth L1. The code has no
    configuration of this size: epochs and predictor depth are the paper's.
    `paper`: unbiased masks, 15 warm-up epochs from 1e-4, linear weight decay, squared L2 (mean over patches and dimensions).

    openjepa train ijepa-vitl16 --data.path ~/imagenet
    """
    return _published(preset, ModelSettings(size="large", patch_size=16), predictor_depth=12, epochs=600, images_per_device=128)


def ijepa_vith14(preset: str) -> RunConfig:
    """ViT-H/14 at 224 px for 300 epochs of ImageNet-1K (paper, Table 1: 79.3 % linear; 16 A100 for under 72 hours).

    `official`: the released configuration: its masks, 40 warm-up epochs from 2e-4, cosine weight decay, smooth L1.
    `paper`: unbiased masks, 15 warm-up epochs from 1e-4, linear weight decay, squared L2 (mean over patches and dimensions).

    openjepa train ijepa-vith14 --data.path ~/imagenet
    """
    return _published(preset, ModelSettings(size="huge", patch_size=14), predictor_depth=12, epochs=300, images_per_device=128)


def ijepa_vith16_448(preset: str) -> RunConfig:
    """ViT-H/16 at 448 px for 300 epochs of ImageNet-1K (paper, Table 1: 81.1 % linear).

    `official`: the released configuration: its masks, 40 warm-up epochs from 2e-4, cosine weight decay, smooth L1.
    `paper`: unbiased masks, 15 warm-up epochs from 1e-4, linear weight decay, squared L2 (mean over patches and dimensions).

    openjepa train ijepa-vith16-448 --data.path ~/imagenet
    """
    model = ModelSettings(size="huge", patch_size=16)
    config = _published(preset, model, predictor_depth=12, epochs=300, images_per_device=16)
    return replace(config, data=replace(config.data, image_size=448))


def ijepa_vitg16(preset: str) -> RunConfig:
    """ViT-g/16 (the paper writes G/16) at 224 px on ImageNet-22K: 44 of its epochs, as many images as 600 of ImageNet-1K.

    `official`: the released configuration: its masks, 3 warm-up epochs (of ImageNet-22K) from 2e-4, cosine weight decay,
    smooth L1.
    `paper`: unbiased masks, 15 warm-up epochs of ImageNet-1K (1.1 of ImageNet-22K) from 1e-4, linear weight decay, squared L2
    (mean over patches and dimensions).

    openjepa train ijepa-vitg16 --data.path ~/imagenet22k
    """
    model = ModelSettings(size="giant", patch_size=16)
    config = _published(preset, model, predictor_depth=16, epochs=44, images_per_device=16)
    return replace(config, optim=replace(config.optim, warmup_epochs=3 if preset == "official" else 15 * 44 / 600))


# ------------------------------------------------------------------------------------------ small budgets, own images


LOCAL_MASKS = MultiblockSettings(target_scale=(0.05, 0.1), context_ratio=0.4)
"""Targets of half the paper's size, and more context: what learns best in some hundred thousand images on 8x8 patches."""


def _ema_start(total_steps: int) -> float:
    """First momentum of our recipes: renews the teacher 50 times in a run of any length, as was measured to suit short ones.

    The released 0.996 over 2,000 steps renews it 4 times: what is exported is then the mean of students that are 44 % of the
    run old (docs/log.md).
    """
    return round(max(0.0, 1 - 100 / total_steps), 6)


def _small(
    preset: str,
    size: Size,
    patch_size: int,
    image_size: int,
    total_steps: int,
    batch_size: int = 32,
    predictor_depth: int = 3,
    masks: MultiblockSettings = LOCAL_MASKS,
) -> RunConfig:
    """What the small recipes share: a predictor half as wide as the encoder, a decoded and cached data set, many short steps.

    The length is `total_steps`, so that a run takes the same time on 2,000 images and on 200,000. `official` keeps encoder,
    predictor, data and images seen, and takes initialization, masks and hyper-parameters of the released code, with the same
    shares of the run. The values for a CPU were chosen on CIFAR-10 and on the packaged scenes (docs/log.md).
    """
    official = preset == "official"
    model = ModelSettings(size=size, patch_size=patch_size, initialization="released" if official else "fan_in")
    # the released 10 of 196 patches would be redrawn for ever on small grids
    min_keep = min(10, 10 * (image_size // patch_size) ** 2 // 196)
    return RunConfig(
        method=IJepaSettings(
            predictor_width=model.shape().width // 2,
            predictor_depth=predictor_depth,
            ema_start=0.996 if official else _ema_start(total_steps),
        ),
        model=model,
        masks=MultiblockSettings(mode="official", min_keep=min_keep) if official else masks,
        data=FolderSettings(image_size=image_size, cache="device"),
        optim=OptimizationSettings(
            batch_size=batch_size,
            total_steps=total_steps,
            warmup_steps=round(total_steps * (40 / 300 if official else 0.1)),
            start_lr=2e-4 if official else 1e-4,
            weight_decay_schedule="cosine" if official else "linear",
        ),
        monitor=MonitorSettings(every=max(100, total_steps // 10), knn=True),
    )


def cpu_32(preset: str) -> RunConfig:
    """Own images at 32 px on one CPU: 4 blocks of width 128, patch 4.

    `default`: our recipe. `official`: the released code's initialization, masks and hyper-parameters at equal images seen.

    openjepa train cpu-32 --data.path ~/photos
    """
    return _small(preset, size="nano", patch_size=4, image_size=32, total_steps=12_000)


def cpu_64(preset: str) -> RunConfig:
    """Own images at 64 px on one CPU: 4 blocks of width 128, patch 8.

    `default`: our recipe. `official`: the released code's initialization, masks and hyper-parameters at equal images seen.

    openjepa train cpu-64 --data.path ~/photos
    """
    return _small(preset, size="nano", patch_size=8, image_size=64, total_steps=12_000)


def cpu_96(preset: str) -> RunConfig:
    """Own images at 96 px on one CPU: 4 blocks of width 128, patch 12.

    `default`: our recipe. `official`: the released code's initialization, masks and hyper-parameters at equal images seen.

    openjepa train cpu-96 --data.path ~/photos
    """
    return _small(preset, size="nano", patch_size=12, image_size=96, total_steps=12_000)


def _gpu(preset: str, patch_size: int, image_size: int) -> RunConfig:
    """ViT-S with the paper's masks, which its ablations found best for long runs."""
    masks = MultiblockSettings()
    return _small(preset, "small", patch_size, image_size, 30_000, batch_size=256, predictor_depth=6, masks=masks)


def gpu_96(preset: str) -> RunConfig:
    """Own images at 96 px on one GPU: ViT-S, patch 8.

    `default`: our recipe with the paper's masks, not measured yet. `official`: the released code's initialization, masks and
    hyper-parameters at equal images seen.

    openjepa train gpu-96 --data.path ~/photos
    """
    return _gpu(preset, patch_size=8, image_size=96)


def gpu_128(preset: str) -> RunConfig:
    """Own images at 128 px on one GPU: ViT-S, patch 8.

    `default`: our recipe with the paper's masks, not measured yet. `official`: the released code's initialization, masks and
    hyper-parameters at equal images seen.

    openjepa train gpu-128 --data.path ~/photos
    """
    return _gpu(preset, patch_size=8, image_size=128)


def gpu_224(preset: str) -> RunConfig:
    """Own images at 224 px on one GPU: ViT-S, patch 16.

    `default`: our recipe with the paper's masks, not measured yet. `official`: the released code's initialization, masks and
    hyper-parameters at equal images seen.

    openjepa train gpu-224 --data.path ~/photos
    """
    config = _gpu(preset, patch_size=16, image_size=224)
    return replace(config, data=replace(config.data, cache="none"))


def quickstart(preset: str) -> RunConfig:
    """The packaged scenes (3,000 rendered images with 3 to 10 objects) at 64 px on two CPU cores; nothing is downloaded.

    `default`: our recipe. `official`: the released code's initialization, masks and hyper-parameters at equal images seen.

    openjepa quickstart
    """
    # objects cover one to three patches: still smaller targets, and more of them, have something to be predicted from
    masks = MultiblockSettings(num_targets=8, target_scale=(0.03, 0.06), context_ratio=0.3)
    config = _small(preset, size="nano", patch_size=8, image_size=64, total_steps=5_000, predictor_depth=2, masks=masks)
    method = replace(config.method, predictor_heads=2)  # type: ignore[call-arg]  # as wide as the encoder's, and quicker than four
    return replace(config, method=method, data=ScenesSettings(image_size=64, cache="device"))


_PUBLISHED_PRESETS = ("official", "paper")
_SMALL_PRESETS = ("default", "official")

RECIPES: dict[str, Recipe] = {
    "quickstart": Recipe(quickstart, _SMALL_PRESETS),
    "cpu-32": Recipe(cpu_32, _SMALL_PRESETS),
    "cpu-64": Recipe(cpu_64, _SMALL_PRESETS),
    "cpu-96": Recipe(cpu_96, _SMALL_PRESETS),
    "gpu-96": Recipe(gpu_96, _SMALL_PRESETS),
    "gpu-128": Recipe(gpu_128, _SMALL_PRESETS),
    "gpu-224": Recipe(gpu_224, _SMALL_PRESETS),
    "ijepa-vitt16": Recipe(ijepa_vitt16, _PUBLISHED_PRESETS),
    "ijepa-vits16": Recipe(ijepa_vits16, _PUBLISHED_PRESETS),
    "ijepa-vitb16": Recipe(ijepa_vitb16, _PUBLISHED_PRESETS),
    "ijepa-vitl16": Recipe(ijepa_vitl16, _PUBLISHED_PRESETS),
    "ijepa-vith14": Recipe(ijepa_vith14, _PUBLISHED_PRESETS),
    "ijepa-vith16-448": Recipe(ijepa_vith16_448, _PUBLISHED_PRESETS),
    "ijepa-vitg16": Recipe(ijepa_vitg16, _PUBLISHED_PRESETS),
}
