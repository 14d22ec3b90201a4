"""Fixed two-dimensional sine-cosine positions on any rectangle of patches."""

import torch
from jaxtyping import Float
from torch import Tensor


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
    # float64 because sin(x f) at x of some tens loses digits in float32 before the sine is taken
    frequencies = 10000.0 ** (-torch.arange(width // 4, dtype=torch.float64) / (width // 4))
    vertical = torch.arange(rows, dtype=torch.float64)[:, None] * frequencies  # [H, D/4]
    horizontal = torch.arange(columns, dtype=torch.float64)[:, None] * frequencies  # [W, D/4]
    by_row = torch.cat([vertical.sin(), vertical.cos()], dim=1)[:, None].expand(rows, columns, -1)
    by_column = torch.cat([horizontal.sin(), horizontal.cos()], dim=1)[None].expand(rows, columns, -1)
    return torch.cat([by_column, by_row], dim=2).reshape(rows * columns, width).float()
