"""Draws the picture of the README from a run: images, masks, features of patches before and after training, neighbors.

openjepa train quickstart --optim.total-steps 8000 --run.name scenes
python -m benchmarks.readme_picture runs/scenes --output docs/images/openjepa.png
"""

import argparse
from pathlib import Path

import torch

from openjepa.config import load_run_config
from openjepa.masks import MASKS
from openjepa.visualization.mask_pictures import example_masks, paint_masks
from openjepa.visualization.neighbors import choose_images, dense_features, nearest_of_gallery, unit_features
from openjepa.visualization.sheet import Sheet, enlarge, pca_colors
from openjepa.weights.native import load_encoder

CELL, GAP, GROUP_GAP, HEAD = 144, 8, 28, 64
NEIGHBORS = 4
HEADS = (("image", ""), ("masks", "context, targets"), ("features", "before training"), ("features", "after training"))


def draw(run: Path, output: Path, shown: list[int], gallery_images: int, seed: int) -> None:
    """Writes the picture: one row for each number in `shown`, which counts the test images in the order of the figures."""
    config, cpu = load_run_config(run), torch.device("cpu")
    encoders = [load_encoder(run / name) for name in ("encoder_initial", "encoder")]
    encoder, settings = encoders[-1]
    queries, gallery = choose_images(config, settings.image_size, max(shown) + 1, gallery_images, seed)
    maps = [pca_colors(dense_features(*pair, queries.images, cpu)) for pair in encoders]
    units = [unit_features(encoder, settings, images, cpu) for images in (queries.images, gallery.images)]
    near = nearest_of_gallery(units[0], units[1], NEIGHBORS, [None] * len(units[0]))
    sampler = MASKS[config.masks.strategy].load()(config.masks, settings.grid())
    masks = example_masks(sampler, max(shown) + 1, seed)
    lefts = [column * (CELL + GAP) + (column > 1) * GROUP_GAP + (column > 3) * GROUP_GAP for column in range(4 + NEIGHBORS)]
    sheet = Sheet(lefts[-1] + CELL, HEAD + len(shown) * (CELL + GAP) - GAP)
    for left, (title, words) in zip(lefts, HEADS, strict=False):
        sheet.words(title, left, 16, size=20, bold=True)
        sheet.words(words, left, 42, size=18)
    sheet.words("nearest images", lefts[4], 16, size=20, bold=True)
    sheet.words(f"of {len(gallery.images):,}, by the trained encoder", lefts[4], 42, size=18)
    for row, number in enumerate(shown):
        pixels = queries.images[number].permute(1, 2, 0).contiguous().numpy()
        large = enlarge(pixels, (CELL, CELL))
        cells = [large, paint_masks(large, masks[number].context, masks[number].targets)]
        cells += [enlarge(colors[number], (CELL, CELL), smooth=False) for colors in maps]
        cells += [enlarge(gallery.images[place].permute(1, 2, 0).contiguous().numpy(), (CELL, CELL)) for place in near[number]]
        for left, cell in zip(lefts, cells, strict=True):
            sheet.image(cell, left, HEAD + row * (CELL + GAP))
    sheet.save(output)


def main() -> None:
    """Reads the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("run", type=Path)
    parser.add_argument("--output", type=Path, default=Path("docs/images/openjepa.png"))
    parser.add_argument("--images", type=int, nargs="+", default=[4, 14, 15], help="numbers of the test images shown")
    parser.add_argument("--gallery", type=int, default=3000, help="training images among which neighbors are looked for")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    draw(arguments.run, arguments.output, arguments.images, arguments.gallery, arguments.seed)


if __name__ == "__main__":
    main()
