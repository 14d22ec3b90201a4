"""Pictures of masks (context visible, targets outlined, the rest dimmed) and maps of how often a patch is context or target."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Bool, Float, UInt8
from numpy.typing import NDArray

from openjepa.masks.coverage import coverage, examples
from openjepa.masks.sampler import MaskSampler
from openjepa.settings.masks import MaskKind
from openjepa.visualization.sheet import Layout, Sheet, enlarge, heat, heat_scale

TARGET_COLORS = ((255, 194, 10), (61, 169, 252), (240, 60, 140), (40, 200, 160), (176, 132, 255), (255, 122, 69))
CELL = 208
COVERAGE_WORDS: dict[MaskKind, tuple[str, str]] = {"blocks": ("context", "any target"), "tokens": ("visible", "masked")}
"""Titles of the two coverage maps beside the examples."""
_PAPER = (214, 217, 222)
_SHADE = np.array([46.0, 49.0, 55.0])


def paint_masks(
    pixels: UInt8[np.ndarray, "h w 3"],
    context: Bool[np.ndarray, "H W"],
    targets: Bool[np.ndarray, "M H W"],
) -> UInt8[np.ndarray, "h w 3"]:
    """Draws masks on an image whose sides are multiples of the grid's. Context patches keep their pixels exactly."""
    side = pixels.shape[0] // context.shape[0]
    seen = _spread(context, side)[..., None]
    gray = pixels.astype(np.float64).mean(axis=2, keepdims=True)
    painted: NDArray[np.float64] = np.where(seen, pixels, 0.72 * _SHADE + 0.28 * gray)
    thickness = max(2, side // 6)
    for index, block in enumerate(targets):
        color = np.array(TARGET_COLORS[index % len(TARGET_COLORS)], dtype=np.float64)
        inside = _spread(block, side)
        painted[inside] = 0.82 * painted[inside] + 0.18 * color
    for index, block in enumerate(targets):
        painted[_edges(block, side, thickness)] = TARGET_COLORS[index % len(TARGET_COLORS)]
    return painted.round().astype(np.uint8)


def _spread(patches: Bool[np.ndarray, "H W"], side: int) -> Bool[np.ndarray, "h w"]:
    return np.kron(patches, np.ones((side, side), bool))


def _edges(patches: Bool[np.ndarray, "H W"], side: int, thickness: int) -> Bool[np.ndarray, "h w"]:
    """Pixels of the patches that are within `thickness` steps, diagonals included, of a pixel outside the patches."""
    inside = np.pad(_spread(patches, side), thickness)
    shrunk = inside.copy()
    for down in range(-thickness, thickness + 1):
        for right in (-thickness, 0, thickness):
            shrunk &= np.roll(inside, (down, right), (0, 1)) & np.roll(inside, (right, down), (0, 1))
    edges: NDArray[np.bool_] = inside & ~shrunk
    return edges[thickness:-thickness, thickness:-thickness]


def mask_figure(
    samplers: MaskSampler | Sequence[MaskSampler],
    output: Path,
    images: UInt8[np.ndarray, "n h w 3"] | None = None,
    seed: int = 0,
    num_samples: int = 4096,
) -> Path:
    """Writes a PNG with examples and coverage maps of one sampler, or of several one below another. Returns `output`.

    Coverage maps come from `num_samples` draws. If `images` are given, the first row shows at most eight of them, and the
    second row their masks. Otherwise masks are drawn on a neutral grid.
    """
    chosen = [samplers] if isinstance(samplers, MaskSampler) else list(samplers)
    num_columns = 8 if images is None else min(8, len(images))
    titled = 46
    side = _patch_side(chosen[0].grid)
    layouts = []
    top = 0
    for sampler in chosen:
        layouts.append(Layout((sampler.grid[0] * side, sampler.grid[1] * side), left=0, top=top + titled))
        top = layouts[-1].size(1, 2)[1] + 34
    width = layouts[0].size(num_columns, 1)[0] + 38 + layouts[0].cell[1] + 96
    sheet = Sheet(width, top - 34)
    for sampler, layout in zip(chosen, layouts, strict=True):
        sheet.words(sampler.name, 0, layout.top - 22, size=23, bold=True)
        kind = _examples(sheet, sampler, layout, images, num_columns, seed)
        maps = coverage(sampler, num_samples, seed)
        maps = dict(zip(COVERAGE_WORDS[kind], (maps["context"], maps["union"]), strict=True))
        _coverage_maps(sheet, maps, layout, layout.x(num_columns) + 30)
    sheet.save(output)
    return output


def _patch_side(grid: tuple[int, int]) -> int:
    return max(6, round(CELL / max(grid)))


def _examples(
    sheet: Sheet,
    sampler: MaskSampler,
    layout: Layout,
    images: UInt8[np.ndarray, "n h w 3"] | None,
    num_columns: int,
    seed: int,
) -> MaskKind:
    """Draws the examples of one sampler. Returns the kind of its masks."""
    side = layout.cell[0] // sampler.grid[0]
    drawn = examples(sampler, num_columns if images is not None else 2 * num_columns, seed)
    for index, example in enumerate(drawn):
        row, column = divmod(index, num_columns)
        background = neutral_grid(sampler.grid, side)
        if images is not None:
            row, background = 1, enlarge(images[column], layout.cell)
            sheet.image(background, layout.x(column), layout.y(0))
        painted = paint_masks(background, example.context, example.targets)
        sheet.image(painted, layout.x(column), layout.y(row))
    return drawn[0].kind


def neutral_grid(grid: tuple[int, int], side: int) -> UInt8[np.ndarray, "h w 3"]:
    """Plain patches with thin lines between them."""
    cell = np.full((side, side, 3), _PAPER, dtype=np.uint8)
    cell[-1:], cell[:, -1:] = 165, 165
    return np.tile(cell, (*grid, 1))


def _coverage_maps(sheet: Sheet, maps: dict[str, Float[np.ndarray, "H W"]], layout: Layout, left: int) -> None:
    for row, (name, shares) in enumerate(maps.items()):
        high = max(0.05, float(np.ceil(shares.max() * 20) / 20))
        height, width = layout.cell
        sheet.image(enlarge(heat(shares / high), layout.cell, smooth=False), left, layout.y(row))
        sheet.image(heat_scale(height, 12), left + width + 8, layout.y(row))
        sheet.words(f"{high:.0%}", left + width + 26, layout.y(row) + 9, size=16)
        sheet.words("0%", left + width + 26, layout.y(row) + height - 9, size=16)
        sheet.words(name, left + width + 40, layout.y(row) + height / 2, size=19, align="center", upwards=True)
