"""Parts of the grid of patches. A caller names them by boxes, boolean masks or raster indices."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Int
from numpy.typing import NDArray
from torch import Tensor

from openjepa.refusals import Refusal


@dataclass(frozen=True)
class PatchBox:
    """A rectangle of the grid of patches: `PatchBox(2, 0, 3, 5)` is rows 2 to 4 and columns 0 to 4."""

    top: int
    """First row."""
    left: int
    """First column."""
    height: int
    """Number of rows."""
    width: int
    """Number of columns."""


Area = PatchBox | Sequence[int] | NDArray[Any] | Tensor
"""Some patches: a box, a boolean mask [H, W] (an array or tensor), or raster indices (row * W + column, a list or array)."""
Areas = Area | Sequence[Area]
"""One area or several: a list of areas, boolean masks [M, H, W], or indices [M, T]."""


def indices_of(areas: Areas, grid: tuple[int, int], name: str) -> list[Int[Tensor, " T"]]:
    """Raster indices of each area, on the CPU. Masks and boxes give raster order; listed indices keep their order.

    `grid`: rows and columns of the patches. `name`: what errors call the areas. Raises Refusal if an area is empty, reaches
    beyond the grid, has the wrong shape or lists a patch twice.
    """
    found = _separate(areas, name)
    if not found:
        raise Refusal(f"{name}: no area is given")
    names = [name] if len(found) == 1 else [f"{name}[{number}]" for number in range(len(found))]
    return [_indices(area, grid, label) for area, label in zip(found, names, strict=True)]


def _separate(areas: Areas, name: str) -> list[Area]:
    if isinstance(areas, PatchBox):
        return [areas]
    values: Any = areas
    if not isinstance(areas, np.ndarray | Tensor):
        items = _listed(areas, name)
        if not items or any(isinstance(item, PatchBox | np.ndarray | Tensor) for item in items):
            return items
        try:
            values = np.asarray(items)
        except ValueError:  # areas that differ in their number of patches
            return items
    is_mask = str(values.dtype).removeprefix("torch.") == "bool"
    single = 2 if is_mask else 1
    if values.ndim == single + 1:
        return list(values)
    return [values]


def _listed(values: Any, name: str) -> list[Any]:
    if isinstance(values, Sequence) and not isinstance(values, str | bytes):
        return list(values)
    raise Refusal(
        f"{name} cannot be of type {type(values).__name__}: give a PatchBox, a boolean mask of the grid, raster indices, or "
        "several of these in a list"
    )


def _indices(area: Area, grid: tuple[int, int], name: str) -> Int[Tensor, " T"]:
    rows, columns = grid
    indices = _in_box(area, grid, name) if isinstance(area, PatchBox) else _in_values(area, grid, name)
    if not len(indices):
        raise Refusal(f"{name}: no patch is chosen; give at least one of the {rows} x {columns}")
    if len(set(indices.tolist())) < len(indices):
        raise Refusal(f"{name}: a patch is listed twice")
    return indices


def _in_box(box: PatchBox, grid: tuple[int, int], name: str) -> Int[Tensor, " T"]:
    rows, columns = grid
    fits = box.top >= 0 and box.left >= 0 and box.top + box.height <= rows and box.left + box.width <= columns
    if not fits or box.height < 0 or box.width < 0:
        raise Refusal(f"{name}: {box} reaches beyond the grid of {rows} rows and {columns} columns of patches")
    numbers = torch.arange(rows * columns).view(rows, columns)
    return numbers[box.top : box.top + box.height, box.left : box.left + box.width].flatten()


def _in_values(area: Sequence[int] | NDArray[Any] | Tensor, grid: tuple[int, int], name: str) -> Int[Tensor, " T"]:
    rows, columns = grid
    values = area.detach().cpu() if isinstance(area, Tensor) else torch.from_numpy(np.array(_numbers(area, name)))
    if values.dtype == torch.bool:
        if tuple(values.shape) != grid:
            raise Refusal(
                f"{name}: a mask of the shape {list(values.shape)} does not fit the grid of {rows} rows and {columns} columns "
                f"of patches; give booleans [{rows}, {columns}]"
            )
        return values.flatten().nonzero()[:, 0]
    if values.ndim != 1 or (len(values) and (values.is_floating_point() or values.is_complex())):
        raise Refusal(f"{name}: {values.dtype} numbers of the shape {list(values.shape)}; give integers [T] or booleans [H, W]")
    indices = values.long()
    if outside := [number for number in indices.tolist() if not 0 <= number < rows * columns]:
        raise Refusal(
            f"{name}: patch {outside[0]} is not on the grid of {rows} x {columns} patches, whose numbers are 0 to "
            f"{rows * columns - 1} (row * {columns} + column)"
        )
    return indices


def _numbers(area: Sequence[int] | NDArray[Any], name: str) -> NDArray[Any]:
    try:
        values = np.asarray(area)
    except ValueError:
        values = np.empty(0, dtype=object)
    if values.dtype.kind not in "buif":
        raise Refusal(f"{name}: {area!r} is no area; give a PatchBox, a boolean mask of the grid, or raster indices")
    return values
