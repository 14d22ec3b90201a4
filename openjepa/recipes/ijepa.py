"""The published I-JEPA runs (ImageNet): encoder sizes Ti to g, 224 and 448 pixels."""

from dataclasses import replace

from openjepa.recipes.recipe import PUBLISHED_PRESETS, Recipe
from openjepa.settings.masks import MultiblockSettings
from openjepa.settings.methods import IJepaSettings
from openjepa.settings.models import ModelSettings
from openjepa.settings.run import OptimizationSettings, RunConfig
from openjepa.settings.sources import FolderSettings


def _published(preset: str, model: ModelSettings, predictor_depth: int, epochs: float, images_per_device: int) -> RunConfig:
    """What all published I-JEPA runs share: batch 2048, lr 1e-3 to 1e-6, decay 0.04 to 0.4, EMA 0.996 to 1.

    `official` is the released code, `paper` the text of arXiv 2301.08243v3 where it differs. Mask groups are the
    `images_per_device` of the released configurations: 16 GPUs with 128 images each, or 128 GPUs with 16.
    """
    official = preset == "official"
    return RunConfig(
        method=IJepaSettings(predictor_width=384, predictor_depth=predictor_depth, loss="smooth_l1" if official else "l2"),
        model=model,
        masks=MultiblockSettings(mode="official" if official else "unbiased"),
        data=FolderSettings(image_size=224, interpolation="bilinear"),
        optim=OptimizationSettings(
            batch_size=2048,
            images_per_device=images_per_device,
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


RECIPES = {
    "ijepa-vitt16": Recipe(ijepa_vitt16, PUBLISHED_PRESETS),
    "ijepa-vits16": Recipe(ijepa_vits16, PUBLISHED_PRESETS),
    "ijepa-vitb16": Recipe(ijepa_vitb16, PUBLISHED_PRESETS),
    "ijepa-vitl16": Recipe(ijepa_vitl16, PUBLISHED_PRESETS),
    "ijepa-vith14": Recipe(ijepa_vith14, PUBLISHED_PRESETS),
    "ijepa-vith16-448": Recipe(ijepa_vith16_448, PUBLISHED_PRESETS),
    "ijepa-vitg16": Recipe(ijepa_vitg16, PUBLISHED_PRESETS),
}
