"""The published MSN runs (ImageNet-1K): ViT-S/16, B/16, B/8, L/7 and B/4."""

from openjepa.recipes.recipe import PUBLISHED_PRESETS, Recipe
from openjepa.settings.masks import RandomPatchesSettings
from openjepa.settings.methods import MsnSettings
from openjepa.settings.models import ModelSettings, Size
from openjepa.settings.run import OptimizationSettings, RunConfig
from openjepa.settings.sources import FolderSettings

FROM_THE_NAME = """`official` and `paper`: the values of ViT-S/16. Epochs are in the name of the released weights, the drop
ratio is from the paper. This size's own arguments are not released: not verified."""


def _recipe(
    about: str, size: Size, patch_size: int, epochs: float, mask_ratio: float, source: str = FROM_THE_NAME, local_size: int = 96
) -> Recipe:
    """A published run: batch 1024, lr 2e-4 to 1e-3 to 1e-6, decay 0.04 to 0.4, EMA 0.996 to 1, 1024 prototypes.

    `official` is the released configuration of ViT-S/16: Sinkhorn, weight 1, schedules 1.25 times as long as the training.
    `paper` follows arXiv 2204.07141 if it has better numbers or differs: no Sinkhorn, weight 5, schedules as long as the
    training, batch normalization of the head's input. Batch normalization, Sinkhorn and the mean assignment are meant to see
    the whole batch, so there is no microbatch. A smaller `optim.microbatch_size` needs less memory and changes the results.
    `source`: words for where the values come from.
    """

    def build(preset: str) -> RunConfig:
        official = preset == "official"
        return RunConfig(
            method=MsnSettings(
                local_size=local_size,
                sinkhorn=official,
                mean_entropy_weight=1.0 if official else 5.0,
                head_input_norm=not official,
            ),
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

    return Recipe(build, f"{about}\n\n{source}", PUBLISHED_PRESETS)


RECIPES = {
    "msn-vits16": _recipe(
        "ViT-S/16 at 224 px for 800 epochs of ImageNet-1K, 15 % of the patches dropped (16 GPUs with 64 images each).",
        size="small",
        patch_size=16,
        epochs=800,
        mask_ratio=0.15,
        source="`official`: the released configuration (66.4 % with 1 % of the labels). "
        "`paper`: without Sinkhorn, weight 5 (67.2 %).",
    ),
    "msn-vitb16": _recipe(
        "ViT-B/16 at 224 px for 600 epochs of ImageNet-1K, 30 % of the patches dropped.",
        size="base",
        patch_size=16,
        epochs=600,
        mask_ratio=0.3,
    ),
    "msn-vitb8": _recipe(
        "ViT-B/8 at 224 px for 300 epochs of ImageNet-1K, 30 % of the patches dropped.",
        size="base",
        patch_size=8,
        epochs=300,
        mask_ratio=0.3,
        source="""`official` and `paper`: the values of ViT-S/16; drop ratio from the paper. There are neither arguments nor
weights of this size, and the epochs are those of ViT-B/4: not verified.""",
    ),
    "msn-vitl7": _recipe(
        "ViT-L/7 at 224 px for 200 epochs of ImageNet-1K, 70 % of the patches dropped.",
        size="large",
        patch_size=7,
        epochs=200,
        mask_ratio=0.7,
        source=f"{FROM_THE_NAME}\nSmall crops have 98 pixels, which 7 divides: not verified either.",
        local_size=98,
    ),
    "msn-vitb4": _recipe(
        "ViT-B/4 at 224 px for 300 epochs of ImageNet-1K, 70 % of the patches dropped (75.7 % with 1 % of the labels).",
        size="base",
        patch_size=4,
        epochs=300,
        mask_ratio=0.7,
    ),
}
