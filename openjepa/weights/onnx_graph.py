"""The encoder as a module that torch can export with symbolic numbers of images, rows and columns.

Its blocks, patch embedding and norm are the encoder's own. What the encoder makes of Python numbers at a given size, its
positions, is stated here once more as arithmetic of tensors, so that it becomes part of the graph and holds for every size.
"""

import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor, nn

from openjepa.models.vit import VisionTransformer

CUBIC = -0.75
"""The parameter a of cubic convolution that torch's bicubic resampling has."""


class EncoderGraph(nn.Module):
    """uint8 images of any size that the patch divides -> patch features on their grid, and one vector per image."""

    def __init__(self, network: VisionTransformer) -> None:
        """Of an encoder in evaluation mode; shares its weights."""
        super().__init__()
        self.network = network
        config = network.config
        self.scale: Tensor
        self.shift: Tensor
        self.frequencies: Tensor
        scale = [1 / (255 * std) for std in config.pixel_std]
        shift = [-mean / std for mean, std in zip(config.pixel_mean, config.pixel_std, strict=True)]
        self.register_buffer("scale", torch.tensor(scale).view(3, 1, 1))
        self.register_buffer("shift", torch.tensor(shift).view(3, 1, 1))
        quarter = config.width // 4
        # float64, as in `sincos_positions`
        exponents = torch.arange(quarter, dtype=torch.float64) / max(1, quarter)
        self.register_buffer("frequencies", 10000.0**-exponents)

    def forward(self, images: UInt8[Tensor, "B 3 h w"]) -> tuple[Float[Tensor, "B H W D"], Float[Tensor, "B D"]]:
        """Features of the patches, and the encoder's own pooling of them."""
        network, config = self.network, self.network.config
        rows, columns = images.shape[2] // config.patch_size, images.shape[3] // config.patch_size
        tokens = network.patch_embed(images.float() * self.scale + self.shift, None)
        if config.positions != "relative":
            tokens = tokens + (self._fixed(rows, columns) if config.positions == "sincos" else self._learned(rows, columns))
        if network.cls_token is not None:
            first = network.cls_token if network.pos_embed is None else network.cls_token + network.pos_embed[:, :1]
            tokens = torch.cat([first.expand(images.shape[0], -1, -1), tokens], dim=1)
        bias = self._bias(rows, columns) if config.positions == "relative" else None
        for block in network.blocks:
            tokens = block(tokens, bias)
        tokens = network.norm(tokens)
        patches = tokens[:, int(config.class_token) :]
        pooled = tokens[:, 0] if config.pooling == "class_token" else patches.mean(dim=1)
        return patches.unflatten(1, (rows, columns)), pooled

    def _fixed(self, rows: int, columns: int) -> Float[Tensor, "N D"]:
        """As `sincos_positions`."""
        down = torch.arange(rows, dtype=torch.float64)[:, None] * self.frequencies
        across = torch.arange(columns, dtype=torch.float64)[:, None] * self.frequencies
        by_row = torch.cat([down.sin(), down.cos()], dim=1).float()[:, None].expand(rows, columns, -1)
        by_column = torch.cat([across.sin(), across.cos()], dim=1).float()[None].expand(rows, columns, -1)
        return torch.cat([by_column, by_row], dim=2).reshape(rows * columns, self.network.config.width)

    def _learned(self, rows: int, columns: int) -> Float[Tensor, "N D"]:
        """As `resampled_positions`."""
        network, own = self.network, self.network.config.grid()
        assert network.pos_embed is not None
        table: Tensor = network.pos_embed[0, int(network.config.class_token) :]
        # at the training size the encoder takes the table as it is, whatever the offset
        is_other = 1 - (_count(rows) == own[0]).float() * (_count(columns) == own[1]).float()
        offset = network.config.resampling_offset * is_other
        return _resampled(table, own, _cells(own[0], rows, offset), _cells(own[1], columns, offset))

    def _bias(self, rows: int, columns: int) -> Float[Tensor, "1 heads S S"]:
        """As `RelativeBias`."""
        relative = self.network.rel_pos_bias
        assert relative is not None
        table: Tensor = relative.relative_position_bias_table
        own = (2 * relative.grid[0] - 1, 2 * relative.grid[1] - 1)
        places = _corners(own[0], 2 * rows - 1), _corners(own[1], 2 * columns - 1)
        offsets = _resampled(table[:-3], own, *places)
        index = _offsets(rows, columns)
        bias = nn.functional.embedding(index, offsets).permute(2, 0, 1)  # [heads, N, N]
        if self.network.cls_token is not None:
            bias = _with_class_token(bias, table[-3], table[-2], table[-1])
        return bias[None]


def _count(number: int) -> Float[Tensor, ""]:
    """A symbolic number as a tensor."""
    return torch.scalar_tensor(number, dtype=torch.float32)


def _cells(own: int, wanted: int, offset: Float[Tensor, ""]) -> Float[Tensor, " wanted"]:
    """Where the centers of the wanted cells lie among the `own` ones, both covering the same image."""
    places = torch.arange(wanted, dtype=torch.float32)
    return (places + 0.5) * (own / (_count(wanted) + offset)) - 0.5


def _corners(own: int, wanted: int) -> Float[Tensor, " wanted"]:
    """The same where the first and last of both fall on one another."""
    places = torch.arange(wanted, dtype=torch.float32)
    return places * ((own - 1) / (_count(wanted) - 1).clamp(min=1))


def _resampled(
    table: Float[Tensor, "N D"], own: tuple[int, int], down: Float[Tensor, " H"], across: Float[Tensor, " W"]
) -> Float[Tensor, "M D"]:
    """A table of a grid `own` at other places, first along the columns' axis, then along the rows'."""
    rows, columns = own
    width = table.shape[-1]
    tall = (_weights(down, rows) @ table.reshape(rows, columns * width)).reshape(-1, columns, width)  # [H, columns, D]
    resampled: Tensor = (_weights(across, columns) @ tall).flatten(0, 1)  # [H, W, D] -> [M, D]
    return resampled


def _weights(places: Float[Tensor, " n"], own: int) -> Float[Tensor, "n own"]:
    """Cubic convolution at the places as a matrix, indices clamped at the border.

    With t the place's fraction, its four neighbors get f(t + 1), g(t), g(1 - t), f(2 - t), where
    g(x) = (a + 2) x^3 - (a + 3) x^2 + 1 and f(x) = a x^3 - 5 a x^2 + 8 a x - 4 a (Keys, 1981).
    """
    first = places.floor()
    t = places - first
    neighbors = torch.stack([first - 1, first, first + 1, first + 2], dim=1).clamp(0, own - 1)
    shares = torch.stack([_far(t + 1), _near(t), _near(1 - t), _far(2 - t)], dim=1)
    hits = neighbors[..., None] == torch.arange(own, dtype=torch.float32)  # [n, 4, own]
    return (shares[..., None] * hits.float()).sum(dim=1)


def _near(x: Float[Tensor, " n"]) -> Float[Tensor, " n"]:
    return ((CUBIC + 2) * x - (CUBIC + 3)) * x * x + 1


def _far(x: Float[Tensor, " n"]) -> Float[Tensor, " n"]:
    return ((CUBIC * x - 5 * CUBIC) * x + 8 * CUBIC) * x - 4 * CUBIC


def _offsets(rows: int, columns: int) -> Int[Tensor, "N N"]:
    """Row of the resampled table for each pair of a query patch and a key patch."""
    row = torch.arange(rows)[:, None].expand(rows, columns).reshape(-1)
    column = torch.arange(columns)[None].expand(rows, columns).reshape(-1)
    down = row[:, None] - row[None, :] + (rows - 1)
    across = column[:, None] - column[None, :] + (columns - 1)
    return down * (2 * columns - 1) + across


def _with_class_token(
    bias: Float[Tensor, "heads N N"],
    outward: Float[Tensor, " heads"],
    inward: Float[Tensor, " heads"],
    own: Float[Tensor, " heads"],
) -> Float[Tensor, "heads S S"]:
    """With the class token's row (what it looks at) and column (what looks at it) in front."""
    heads, number = bias.shape[0], bias.shape[1]
    column = inward[:, None, None].expand(heads, number, 1)
    row = torch.cat([own[:, None, None], outward[:, None, None].expand(heads, 1, number)], dim=2)
    return torch.cat([row, torch.cat([column, bias], dim=2)], dim=1)
