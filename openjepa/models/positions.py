"""Positions on any rectangle of patches: the fixed two-dimensional sine-cosine table, and learned tables resampled."""

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F


def sincos_positions(width: int, grid: tuple[int, int]) -> Float[Tensor, "N D"]:
    """Positions of all patches of a grid of (rows, columns), in raster order, as float32.

    With D = `width` and frequencies f_k = 10000^(-k / (D/4)), k < D/4, the patch at row y and column x gets
    [sin(x f), cos(x f), sin(y f), cos(y f)]: the column comes first, as in the released I-JEPA code.
    Raises ValueError where 4 does not divide the width.
    """
    if width % 4:
        raise ValueError(
            f"width={width} does not divide by 4, which two-dimensional sin-cos positions need; use {width - width % 4}"
        )
    rows, columns = grid
    # float64 because sin(x f) at x of some tens loses digits in float32 before the sine is taken; on the CPU also where a
    # network is built on the meta device, which gives its weights no values: nothing else would fill this table
    places = torch.arange(max(width // 4, rows, columns), dtype=torch.float64, device="cpu")
    frequencies = 10000.0 ** (-places[: width // 4] / (width // 4))
    vertical = places[:rows, None] * frequencies  # [H, D/4]
    horizontal = places[:columns, None] * frequencies  # [W, D/4]
    by_row = torch.cat([vertical.sin(), vertical.cos()], dim=1)[:, None].expand(rows, columns, -1)
    by_column = torch.cat([horizontal.sin(), horizontal.cos()], dim=1)[None].expand(rows, columns, -1)
    return torch.cat([by_column, by_row], dim=2).reshape(rows * columns, width).float()


def resampled_positions(table: Float[Tensor, "N D"], grid: tuple[int, int], wanted: tuple[int, int]) -> Float[Tensor, "M D"]:
    """A learned table of a grid of (rows, columns) at the cell centers of the grid `wanted`, in raster order.

    Cubic convolution with a = -0.75, indices clamped at the border, not antialiased. Both grids cover the same image: cell j of
    n' lies at (j + 0.5) n / n' - 0.5 of the n old cells. The released DINO and iBOT code takes (n' + 0.1) / n for n' / n, which
    moves its positions by up to a tenth of a new cell; MSN's code and transformers do as we do.
    """
    rows, columns = grid
    picture = table.reshape(1, rows, columns, -1).permute(0, 3, 1, 2)  # [1, D, H, W]
    resampled = F.interpolate(picture.float(), size=wanted, mode="bicubic", align_corners=False, antialias=False)
    return resampled[0].flatten(1).T  # [M, D]
