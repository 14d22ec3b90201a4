"""Positions on any rectangle of patches: the fixed two-dimensional sine-cosine table, learned tables, relative biases."""

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from openjepa.refusals import Refusal


def sincos_positions(width: int, grid: tuple[int, int]) -> Float[Tensor, "N D"]:
    """Positions of all patches of a grid of (rows, columns), in raster order, as float32.

    With D = `width` and frequencies f_k = 10000^(-k / (D/4)), k < D/4, the patch at row y and column x gets
    [sin(x f), cos(x f), sin(y f), cos(y f)]: the column comes first, as in the released I-JEPA code.
    Raises Refusal unless 4 divides the width.
    """
    if width % 4:
        raise Refusal(
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


def resampled_positions(
    table: Float[Tensor, "N D"], grid: tuple[int, int], wanted: tuple[int, int], offset: float = 0.0
) -> Float[Tensor, "M D"]:
    """A learned table of a grid of (rows, columns) at the cell centers of the grid `wanted`, in raster order.

    Cubic convolution with a = -0.75, indices clamped at the border, not antialiased. Both grids cover the same image: cell j of
    n' lies at (j + 0.5) n / n' - 0.5 of the n old cells, or with `offset` at (j + 0.5) n / (n' + offset) - 0.5: released DINO
    and iBOT code has 0.1, which moves its positions by up to a tenth of a new cell; MSN's code and transformers have 0.
    """
    rows, columns = grid
    picture = table.reshape(1, rows, columns, -1).permute(0, 3, 1, 2).float()  # [1, D, H, W]
    if offset:
        scale = ((wanted[0] + offset) / rows, (wanted[1] + offset) / columns)
        resampled = F.interpolate(picture, scale_factor=scale, mode="bicubic", align_corners=False, antialias=False)
    else:
        resampled = F.interpolate(picture, size=wanted, mode="bicubic", align_corners=False, antialias=False)
    return resampled[0].flatten(1).T  # [M, D]


class RelativeBias(nn.Module):
    """A learned attention bias for every offset between two patches and every head (BEiT, data2vec), the same for all blocks.

    Rows of the table: offsets (query row - key row + H - 1) (2 W - 1) + (query column - key column + W - 1); then the class
    token on anything, anything on the class token, and the class token on itself.
    """

    def __init__(self, grid: tuple[int, int], heads: int) -> None:
        """Zeros, for a grid of (rows, columns)."""
        super().__init__()
        self.grid = grid
        rows, columns = grid
        self.relative_position_bias_table = nn.Parameter(torch.zeros((2 * rows - 1) * (2 * columns - 1) + 3, heads))

    def forward(
        self, grid: tuple[int, int], has_class_token: bool, keep: Int[Tensor, "B K"] | None = None
    ) -> Float[Tensor, "#B heads S S"]:
        """The bias among all patches of `grid`, or among the patches `keep`. A class token comes first."""
        table = self.table_for(grid)
        index = _offsets(grid, table.device)  # [N, N]
        index = index[None] if keep is None else index[keep[:, :, None], keep[:, None, :]]  # [1 or B, S, S]
        if has_class_token:
            index = F.pad(index, (1, 0), value=len(table) - 2)
            index = F.pad(index, (0, 0, 1, 0), value=len(table) - 3)
            index[:, 0, 0] = len(table) - 1
        return F.embedding(index, table).permute(0, 3, 1, 2)

    def table_for(self, grid: tuple[int, int]) -> Float[Tensor, "R heads"]:
        """The table for another grid: bicubic, the largest offsets of both grids falling on one another."""
        table = self.relative_position_bias_table
        if grid == self.grid:
            return table
        own = (2 * self.grid[0] - 1, 2 * self.grid[1] - 1)
        picture = table[:-3].reshape(1, *own, -1).permute(0, 3, 1, 2).float()
        wanted = (2 * grid[0] - 1, 2 * grid[1] - 1)
        resampled = F.interpolate(picture, size=wanted, mode="bicubic", align_corners=True)
        return torch.cat([resampled[0].flatten(1).T.to(table.dtype), table[-3:]])


def _offsets(grid: tuple[int, int], device: torch.device) -> Int[Tensor, "N N"]:
    """Row of the table for each pair of a query patch and a key patch."""
    rows, columns = grid
    places = torch.arange(rows * columns, device=device)
    row, column = places // columns, places % columns
    down = row[:, None] - row[None, :] + rows - 1
    across = column[:, None] - column[None, :] + columns - 1
    return down * (2 * columns - 1) + across
