"""Pictures of masks (context visible, targets outlined, the rest dimmed) and maps of how often a patch is context or target."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Bool, Float, UInt8
from numpy.typing import NDArray

from openjepa.masks.sampler import MaskSampler
from openjepa.seeds import derive, derive_samples
from openjepa.settings.masks import MaskKind
from openjepa.types import BlockMasks, Masks, TokenMask
from openjepa.visualization.sheet import Sheet, SheetLayout, enlarge, heat, heat_scale

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
    seen = spread(context, side)[..., None]
    gray = pixels.astype(np.float64).mean(axis=2, keepdims=True)
    painted: NDArray[np.float64] = np.where(seen, pixels, 0.72 * _SHADE + 0.28 * gray)
    thickness = max(2, side // 6)
    for index, block in enumerate(targets):
        color = np.array(TARGET_COLORS[index % len(TARGET_COLORS)], dtype=np.float64)
        inside = spread(block, side)
        painted[inside] = 0.82 * painted[inside] + 0.18 * color
    for index, block in enumerate(targets):
        painted[edges(block, side, thickness)] = TARGET_COLORS[index % len(TARGET_COLORS)]
    return painted.round().astype(np.uint8)


def spread(patches: Bool[np.ndarray, "H W"], side: int) -> Bool[np.ndarray, "h w"]:
    """The pixels of patches, with `side` pixels on each side of a patch."""
    return np.kron(patches, np.ones((side, side), bool))


def edges(patches: Bool[np.ndarray, "H W"], side: int, thickness: int) -> Bool[np.ndarray, "h w"]:
    """Pixels of the patches that are within `thickness` steps, diagonals included, of a pixel outside the patches."""
    inside = np.pad(spread(patches, side), thickness)
    shrunk = inside.copy()
    for down in range(-thickness, thickness + 1):
        for right in (-thickness, 0, thickness):
            shrunk &= np.roll(inside, (down, right), (0, 1)) & np.roll(inside, (right, down), (0, 1))
    outline: NDArray[np.bool_] = inside & ~shrunk
    return outline[thickness:-thickness, thickness:-thickness]


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
        layouts.append(SheetLayout((sampler.grid[0] * side, sampler.grid[1] * side), left=0, top=top + titled))
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
    layout: SheetLayout,
    images: UInt8[np.ndarray, "n h w 3"] | None,
    num_columns: int,
    seed: int,
) -> MaskKind:
    """Draws the examples of one sampler. Returns the kind of its masks."""
    side = layout.cell[0] // sampler.grid[0]
    drawn = example_masks(sampler, num_columns if images is not None else 2 * num_columns, seed)
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


def _coverage_maps(sheet: Sheet, maps: dict[str, Float[np.ndarray, "H W"]], layout: SheetLayout, left: int) -> None:
    for row, (name, shares) in enumerate(maps.items()):
        high = max(0.05, float(np.ceil(shares.max() * 20) / 20))
        height, width = layout.cell
        sheet.image(enlarge(heat(shares / high), layout.cell, smooth=False), left, layout.y(row))
        sheet.image(heat_scale(height, 12), left + width + 8, layout.y(row))
        sheet.words(f"{high:.0%}", left + width + 26, layout.y(row) + 9, size=16)
        sheet.words("0%", left + width + 26, layout.y(row) + height - 9, size=16)
        sheet.words(name, left + width + 40, layout.y(row) + height / 2, size=19, align="center", upwards=True)


@dataclass(frozen=True)
class Example:
    """The masks of one image, drawn on the grid."""

    context: Bool[np.ndarray, "H W"]
    """Patches of the context. If single patches are masked, the visible ones."""
    targets: Bool[np.ndarray, "M H W"]
    """Patches of each target block. If single patches are masked, they all count as one block."""
    kind: MaskKind = "blocks"


@dataclass(frozen=True)
class Statistics:
    """Averages over many draws."""

    samples: int
    context_ratio: float
    """Fraction of the patches that the context keeps (padding not counted)."""
    target_ratio: float
    """Fraction of the patches in one target block."""
    union_ratio: float
    """Fraction of the patches in any target block."""
    redrawn: float
    """Share of the samples whose positions were drawn more than once."""
    padded: float
    """Share of the samples whose context is still too small."""


def example_masks(sampler: MaskSampler, num_samples: int, seed: int = 0, microbatch: int = 128) -> list[Example]:
    """The first sample of each of `num_samples` mask groups, so that block sizes vary."""
    drawn = []
    for masks in _groups(sampler, num_samples, microbatch, seed):
        context, targets = _maps(masks)
        drawn.append(Example(context[0], targets[0], "blocks" if isinstance(masks, BlockMasks) else "tokens"))
    return drawn


def coverage(
    sampler: MaskSampler, num_samples: int = 20_000, seed: int = 0, microbatch: int = 128
) -> dict[str, Float[np.ndarray, "H W"]]:
    """Probability of each patch to be `context`, to be in a given `target` block, and to be in any of them (`union`).

    If single patches are masked, `context` are the visible ones, and all masked ones count as one target. Samples are drawn in
    groups of `microbatch`, because the official masks depend on them. Raises Refusal if the sampler draws no masks.
    """
    return _accumulate(sampler, max(1, num_samples // microbatch), seed, microbatch)[0]


def statistics(sampler: MaskSampler, num_samples: int = 20_000, seed: int = 0, microbatch: int = 128) -> Statistics:
    """Averages of the maps of `coverage`, and the shares of samples that were redrawn or padded."""
    num_groups = max(1, num_samples // microbatch)
    maps, redrawn, padded = _accumulate(sampler, num_groups, seed, microbatch)
    samples = num_groups * microbatch
    return Statistics(
        samples=samples,
        context_ratio=float(maps["context"].mean()),
        target_ratio=float(maps["target"].mean()),
        union_ratio=float(maps["union"].mean()),
        redrawn=redrawn / samples,
        padded=padded / samples,
    )


def _accumulate(
    sampler: MaskSampler, num_groups: int, seed: int, microbatch: int
) -> tuple[dict[str, Float[np.ndarray, "H W"]], int, int]:
    """Coverage maps, and the numbers of redrawn and of padded samples."""
    sums = {name: np.zeros(sampler.grid) for name in ("context", "target", "union")}
    redrawn, padded = 0, 0
    for masks in _groups(sampler, num_groups, microbatch, seed):
        context, targets = _maps(masks)
        sums["context"] += context.mean(axis=0)
        sums["target"] += targets.mean(axis=(0, 1))
        sums["union"] += targets.any(axis=1).mean(axis=0)
        if isinstance(masks, BlockMasks):
            redrawn, padded = redrawn + masks.redrawn, padded + masks.padded
    return {name: total / num_groups for name, total in sums.items()}, redrawn, padded


def _groups(sampler: MaskSampler, num_groups: int, microbatch: int, seed: int) -> Iterator[Masks]:
    """Masks of `num_groups` mask groups of `microbatch` samples, each in a step of its own."""
    for group in range(num_groups):
        seeds = derive_samples("mask", seed, np.zeros(1, np.int64), np.arange(microbatch) + group * microbatch)
        yield sampler(seeds, derive("group", seed, group), group)


def _maps(masks: Masks) -> tuple[Bool[np.ndarray, "B H W"], Bool[np.ndarray, "B M H W"]]:
    """Context and targets as maps on the grid."""
    height, width = masks.grid
    if isinstance(masks, TokenMask):
        masked = masks.masked.numpy().reshape(-1, height, width)
        return ~masked, masked[:, None]
    context, targets = masks.context.numpy(), masks.targets.numpy()
    valid = np.ones(context.shape, dtype=bool) if masks.context_valid is None else masks.context_valid.numpy()
    in_context = np.zeros((len(context), height * width), dtype=bool)
    rows = np.broadcast_to(np.arange(len(context))[:, None], context.shape)
    in_context[rows[valid], context[valid]] = True
    in_target = np.zeros((*targets.shape[:2], height * width), dtype=bool)
    np.put_along_axis(in_target, targets, True, axis=2)
    return in_context.reshape(-1, height, width), in_target.reshape(*targets.shape[:2], height, width)
