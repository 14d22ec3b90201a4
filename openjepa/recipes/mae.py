"""The published MAE runs (ImageNet-1K, 1600 epochs)."""

from openjepa.recipes.recipe import Recipe
from openjepa.settings.masks import RandomPatchesSettings
from openjepa.settings.methods import MaeSettings
from openjepa.settings.models import ModelSettings, Size
from openjepa.settings.run import OptimizationSettings, RunConfig
from openjepa.settings.sources import FolderSettings

PRESETS = """
`official`: arXiv 2111.06377 and the released code, which agree: batch 4096, lr 1.5e-4 for every 256 images, decay 0.05, 75 %
masked. A microbatch of 64, the released images per device (not verified), changes no result."""
LR_PER_256 = 1.5e-4
BATCH_SIZE = 4096


def _recipe(about: str, size: Size, patch_size: int) -> Recipe:
    """A published run."""

    def build(preset: str) -> RunConfig:
        return RunConfig(
            method=MaeSettings(decoder_width=512, decoder_depth=8, decoder_heads=16, norm_pixels=True),
            model=ModelSettings(size=size, patch_size=patch_size, class_token=True, initialization="xavier"),
            masks=RandomPatchesSettings(ratio=0.75),
            data=FolderSettings(image_size=224, interpolation="bicubic", crop_scale=(0.2, 1.0), horizontal_flip=True),
            optim=OptimizationSettings(
                batch_size=BATCH_SIZE,
                images_per_device=64,
                epochs=1600,
                lr=LR_PER_256 * BATCH_SIZE / 256,
                start_lr=0.0,
                final_lr=0.0,
                warmup_epochs=40,
                weight_decay=0.05,
                weight_decay_schedule="constant",
                beta2=0.95,
                schedule_steps="from_zero",
            ),
        )

    return Recipe(build, f"MAE {about}\n{PRESETS}", ("official",))


RECIPES = {
    "mae-vitb16": _recipe(
        "ViT-B/16 at 224 px for 1600 epochs of ImageNet-1K: 67.8 % linear (I-JEPA, Table 1: 68.0 %).", "base", 16
    ),
    "mae-vitl16": _recipe(
        "ViT-L/16 at 224 px for 1600 epochs of ImageNet-1K: 76.0 % linear (800 epochs: about 42 hours on 64 V100).", "large", 16
    ),
    "mae-vith14": _recipe("ViT-H/14 at 224 px for 1600 epochs of ImageNet-1K: 77.2 % linear.", "huge", 14),
}
