"""The published MSN runs (ImageNet-1K): ViT-S/16, B/16, B/8, L/7 and B/4."""

from dataclasses import replace

from openjepa.recipes.recipe import PUBLISHED_PRESETS, Recipe
from openjepa.settings.masks import RandomPatchesSettings
from openjepa.settings.methods import MsnSettings
from openjepa.settings.models import ModelSettings, Size
from openjepa.settings.run import OptimizationSettings, RunConfig
from openjepa.settings.sources import FolderSettings


def _published(preset: str, size: Size, patch_size: int, epochs: float, mask_ratio: float) -> RunConfig:
    """What the runs share: batch 1024, lr 2e-4 to 1e-3 to 1e-6, decay 0.04 to 0.4, EMA 0.996 to 1, 1024 prototypes.

    `official` is the released configuration of ViT-S/16: Sinkhorn, weight 1, schedules 1.25 times as long as the training.
    `paper` is arXiv 2204.07141 where it has better numbers or differs: no Sinkhorn, weight 5, schedules as long as the
    training, batch normalization of the head's input. Batch normalization, Sinkhorn and the mean assignment are meant to see
    the whole batch, so there is no microbatch; a smaller `optim.microbatch_size` needs less memory and changes the results.
    """
    official = preset == "official"
    return RunConfig(
        method=MsnSettings(sinkhorn=official, mean_entropy_weight=1.0 if official else 5.0, head_input_norm=not official),
        model=ModelSettings(size=size, patch_size=patch_size, class_token=True, positions="learned"),
        masks=RandomPatchesSettings(ratio=mask_ratio, shared=True),
        data=FolderSettings(image_size=224, crop_scale=(0.3, 1.0), interpolation="bilinear", horizontal_flip=True),
        optim=OptimizationSettings(
            batch_size=1024,
            epochs=epochs,
            start_lr=2e-4,
            lr=1e-3,
            final_lr=1e-6,
            warmup_epochs=15,
            weight_decay_schedule="cosine",
            schedule_stretch=1.25 if official else 1.0,
            clip_grad=3.0,
        ),
    )


def msn_vits16(preset: str) -> RunConfig:
    """ViT-S/16 at 224 px for 800 epochs of ImageNet-1K, 15 % of the patches dropped (16 GPUs with 64 images each).

    `official`: the released configuration (66.4 % with 1 % of the labels). `paper`: without Sinkhorn, weight 5 (67.2 %).

    openjepa train msn-vits16 --data.path ~/imagenet
    """
    return _published(preset, "small", patch_size=16, epochs=800, mask_ratio=0.15)


def msn_vitb16(preset: str) -> RunConfig:
    """ViT-B/16 at 224 px for 600 epochs of ImageNet-1K, 30 % of the patches dropped.

    `official` and `paper`: the values of ViT-S/16; epochs are in the name of the released weights, drop ratio from the paper.
    This size's own arguments are not released: not verified.

    openjepa train msn-vitb16 --data.path ~/imagenet
    """
    return _published(preset, "base", patch_size=16, epochs=600, mask_ratio=0.3)


def msn_vitb8(preset: str) -> RunConfig:
    """ViT-B/8 at 224 px for 300 epochs of ImageNet-1K, 30 % of the patches dropped.

    `official` and `paper`: the values of ViT-S/16; drop ratio from the paper. There are neither arguments nor weights of this
    size, and the epochs are those of ViT-B/4: not verified.

    openjepa train msn-vitb8 --data.path ~/imagenet
    """
    return _published(preset, "base", patch_size=8, epochs=300, mask_ratio=0.3)


def msn_vitl7(preset: str) -> RunConfig:
    """ViT-L/7 at 224 px for 200 epochs of ImageNet-1K, 70 % of the patches dropped.

    `official` and `paper`: the values of ViT-S/16; epochs are in the name of the released weights, drop ratio from the paper.
    Small crops have 98 pixels, which 7 divides: that and this size's own arguments, which are not released, not verified.

    openjepa train msn-vitl7 --data.path ~/imagenet
    """
    config = _published(preset, "large", patch_size=7, epochs=200, mask_ratio=0.7)
    assert isinstance(config.method, MsnSettings)
    return replace(config, method=replace(config.method, local_size=98))


def msn_vitb4(preset: str) -> RunConfig:
    """ViT-B/4 at 224 px for 300 epochs of ImageNet-1K, 70 % of the patches dropped (75.7 % with 1 % of the labels).

    `official` and `paper`: the values of ViT-S/16; epochs are in the name of the released weights, drop ratio from the paper.
    This size's own arguments are not released: not verified.

    openjepa train msn-vitb4 --data.path ~/imagenet
    """
    return _published(preset, "base", patch_size=4, epochs=300, mask_ratio=0.7)


RECIPES = {
    "msn-vits16": Recipe(msn_vits16, PUBLISHED_PRESETS),
    "msn-vitb16": Recipe(msn_vitb16, PUBLISHED_PRESETS),
    "msn-vitb8": Recipe(msn_vitb8, PUBLISHED_PRESETS),
    "msn-vitl7": Recipe(msn_vitl7, PUBLISHED_PRESETS),
    "msn-vitb4": Recipe(msn_vitb4, PUBLISHED_PRESETS),
}
