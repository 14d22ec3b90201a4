"""Masks on images, a row for each image: all strategies beside each other, or one as Figure 4 of the paper shows it."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Bool, UInt8

from openjepa.masks.sampler import MaskSampler
from openjepa.visualization.mask_pictures import TARGET_COLORS, Example, edges, example_masks, paint_masks, spread
from openjepa.visualization.sheet import Sheet, SheetLayout, enlarge

CELL = 176
"""Longer side of an image, in pixels. The shorter one follows the grid."""
HEAD = 50
"""Height of the two lines above the columns."""
_HIDDEN = (232, 234, 238)


def strategy_rows(samplers: Sequence[MaskSampler], images: UInt8[np.ndarray, "n h w 3"], output: Path, seed: int) -> Path:
    """Writes a PNG with a column for each sampler: context in full color, targets dimmed and outlined, the rest blank.

    The first column shows the images themselves. All samplers must have the same grid.
    """
    side, large = _enlarged(samplers[0].grid, images)
    heads, columns = [("image", "")], [large]
    for sampler in samplers:
        strategy, _, mode = sampler.name.partition("/")
        heads.append((strategy, mode))
        drawn = example_masks(sampler, len(images), seed)
        columns.append([_overlay(pixels, one) for pixels, one in zip(large, drawn, strict=True)])
    return _write(heads, columns, (samplers[0].grid[0] * side, samplers[0].grid[1] * side), output)


def target_rows(sampler: MaskSampler, images: UInt8[np.ndarray, "n h w 3"], output: Path, seed: int) -> Path:
    """Writes a PNG with the image, the context alone and each target alone (I-JEPA, Figure 4). All else is blank.

    Targets are framed in the colors that `strategy_rows` gives them.
    """
    side, large = _enlarged(sampler.grid, images)
    drawn = example_masks(sampler, len(images), seed)
    num_targets = len(drawn[0].targets)
    heads = [("image", ""), _context_head(drawn[0])]
    heads += [(f"target {number + 1}" if num_targets > 1 else "target", "") for number in range(num_targets)]
    contexts = [_alone(pixels, one.context) for pixels, one in zip(large, drawn, strict=True)]
    columns = [large, contexts]
    for number in range(num_targets):
        columns.append([_target(pixels, one, number) for pixels, one in zip(large, drawn, strict=True)])
    return _write(heads, columns, (sampler.grid[0] * side, sampler.grid[1] * side), output)


def _context_head(example: Example) -> tuple[str, str]:
    return ("context" if example.kind == "blocks" else "visible", "")


def _enlarged(grid: tuple[int, int], images: UInt8[np.ndarray, "n h w 3"]) -> tuple[int, list[UInt8[np.ndarray, "h2 w2 3"]]]:
    """The side of a patch in pixels, and the images at that size."""
    side = max(6, round(CELL / max(grid)))
    return side, [enlarge(pixels, (grid[0] * side, grid[1] * side)) for pixels in images]


def _overlay(pixels: UInt8[np.ndarray, "h w 3"], example: Example) -> UInt8[np.ndarray, "h w 3"]:
    """Context and targets on one image. What is neither is blank, because dimmed pixels of a dark photo look like context."""
    return _alone(paint_masks(pixels, example.context, example.targets), example.context | example.targets.any(axis=0))


def _alone(pixels: UInt8[np.ndarray, "h w 3"], patches: Bool[np.ndarray, "H W"]) -> UInt8[np.ndarray, "h w 3"]:
    """Some patches of an image. The others are blank."""
    side = pixels.shape[0] // patches.shape[0]
    shown: UInt8[np.ndarray, "h w 3"] = np.where(spread(patches, side)[..., None], pixels, np.array(_HIDDEN, dtype=np.uint8))
    return shown


def _target(pixels: UInt8[np.ndarray, "h w 3"], example: Example, number: int) -> UInt8[np.ndarray, "h w 3"]:
    block = example.targets[number]
    alone, side = _alone(pixels, block), pixels.shape[0] // block.shape[0]
    alone[edges(block, side, max(2, side // 6))] = TARGET_COLORS[number % len(TARGET_COLORS)]
    return alone


def _write(
    heads: Sequence[tuple[str, str]],
    columns: Sequence[Sequence[UInt8[np.ndarray, "h w 3"]]],
    cell: tuple[int, int],
    output: Path,
) -> Path:
    layout = SheetLayout(cell, left=4, top=HEAD)
    sheet = Sheet(*layout.size(len(columns), len(columns[0])))
    for column, ((title, words), pictures) in enumerate(zip(heads, columns, strict=True)):
        sheet.words(title, layout.x(column), 14, size=18, bold=True)
        sheet.words(words, layout.x(column), 36, size=14)
        for row, pixels in enumerate(pictures):
            sheet.image(pixels, layout.x(column), layout.y(row))
    sheet.save(output)
    return output
