"""The published I-JEPA runs (ImageNet): encoder sizes Ti to g, 224 and 448 pixels."""

from openjepa.recipes.recipe import PUBLISHED_PRESETS, Recipe
from openjepa.settings.masks import MultiblockSettings
from openjepa.settings.methods import IJepaSettings
from openjepa.settings.models import ModelSettings, Size
from openjepa.settings.run import OptimizationSettings, RunConfig
from openjepa.settings.sources import FolderSettings

PRESETS = """
`official`: the released code's masks, {} warm-up epochs from 2e-4, cosine weight decay, smooth L1.
`paper`: unbiased masks, {:g} warm-up epochs from 1e-4, linear weight decay, squared L2 (mean over patches and dimensions)."""


def _recipe(
    about: str,
    size: Size,
    patch_size: int,
    predictor_depth: int,
    epochs: float,
    images_per_device: int = 128,
    image_size: int = 224,
    warmup_epochs: tuple[float, float] = (40, 15),
    data: str = "~/imagenet",
) -> Recipe:
    """A published run: batch 2048, lr 1e-3 to 1e-6, decay 0.04 to 0.4, EMA 0.996 to 1.

    `official` follows the released code, and `paper` the text of arXiv 2301.08243v3 if it differs. `warmup_epochs`: for
    `official` and for `paper`. A mask group has the `images_per_device` of the released configurations: 16 GPUs with 128 images
    each, or 128 GPUs with 16.
    """

    def build(preset: str) -> RunConfig:
        official = preset == "official"
        return RunConfig(
            method=IJepaSettings(predictor_width=384, predictor_depth=predictor_depth, loss="smooth_l1" if official else "l2"),
            model=ModelSettings(size=size, patch_size=patch_size),
            masks=MultiblockSettings(mode="official" if official else "unbiased"),
            data=FolderSettings(image_size=image_size, interpolation="bilinear"),
            optim=OptimizationSettings(
                batch_size=2048,
                images_per_device=images_per_device,
                epochs=epochs,
                start_lr=2e-4 if official else 1e-4,
                warmup_epochs=warmup_epochs[0 if official else 1],
                weight_decay_schedule="cosine" if official else "linear",
            ),
        )

    return Recipe(build, about + "\n" + PRESETS.format(*warmup_epochs), PUBLISHED_PRESETS, data)


RECIPES = {
    "ijepa-vitt16": _recipe(
        "ViT-Ti/16 at 224 px for 600 epochs of ImageNet-1K. No values are published for this size: those of ViT-B/16 are used.",
        size="tiny",
        patch_size=16,
        predictor_depth=6,
        epochs=600,
    ),
    "ijepa-vits16": _recipe(
        "ViT-S/16 at 224 px for 600 epochs of ImageNet-1K. No values are published for this size: those of ViT-B/16 are used.",
        size="small",
        patch_size=16,
        predictor_depth=6,
        epochs=600,
    ),
    "ijepa-vitb16": _recipe(
        "ViT-B/16 at 224 px for 600 epochs of ImageNet-1K (paper, Table 1: 72.9 % linear).\n\n"
        "The code has no configuration of this size: epochs and predictor depth are the paper's.",
        size="base",
        patch_size=16,
        predictor_depth=6,
        epochs=600,
    ),
    "ijepa-vitl16": _recipe(
        "ViT-L/16 at 224 px for 600 epochs of ImageNet-1K (paper, Table 1: 77.5 % linear).\n\n"
        "The code has no configuration of this size: epochs and predictor depth are the paper's.",
        size="large",
        patch_size=16,
        predictor_depth=12,
        epochs=600,
    ),
    "ijepa-vith14": _recipe(
        "ViT-H/14 at 224 px for 300 epochs of ImageNet-1K (paper, Table 1: 79.3 % linear; 16 A100 for under 72 hours).",
        size="huge",
        patch_size=14,
        predictor_depth=12,
        epochs=300,
    ),
    "ijepa-vith16-448": _recipe(
        "ViT-H/16 at 448 px for 300 epochs of ImageNet-1K (paper, Table 1: 81.1 % linear).",
        size="huge",
        patch_size=16,
        predictor_depth=12,
        epochs=300,
        images_per_device=16,
        image_size=448,
    ),
    "ijepa-vitg16": _recipe(
        "ViT-g/16 (the paper writes G/16) at 224 px on ImageNet-22K: 44 of its epochs, as many images as 600 of ImageNet-1K."
        "\n\nThe warm-up is counted in epochs of ImageNet-22K; the paper's is 15 of ImageNet-1K.",
        size="giant",
        patch_size=16,
        predictor_depth=16,
        epochs=44,
        images_per_device=16,
        warmup_epochs=(3, 15 * 44 / 600),
        data="~/imagenet22k",
    ),
}
