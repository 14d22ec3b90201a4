"""ONNX: the encoder as a graph for other runtimes, for any number of images of any size. It can be written but not read.

The input `images` is uint8 [batch, 3, height, width] in RGB; its sides are multiples of the patch size. The graph includes
normalization. The outputs are in fp32: `patches` [batch, rows, columns, D], and `pooled` [batch, D], pooled as by the encoder.

Blocks, patch embedding and norm are the encoder's own modules. The encoder computes positions from Python numbers at a given
size. This file computes them again with tensor operations, so that they become part of the graph and work at every size.
"""

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor, nn

from openjepa.models.vit import VisionTransformer
from openjepa.refusals import Refusal, needed_for
from openjepa.settings.models import EncoderConfig
from openjepa.weights.contents import Contents
from openjepa.weights.formats import DTYPES, Choice, Loaded, Networks, Reader, mask_token_remark

CUBIC = -0.75
"""The parameter a of cubic convolution in torch's bicubic resampling."""


class EncoderGraph(nn.Module):
    """Maps uint8 images to patch features on their grid and one vector per image. Sides are multiples of the patch size."""

    def __init__(self, network: VisionTransformer) -> None:
        """`network` is in evaluation mode. The graph shares its weights."""
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
        """Patch features, and their average or class token by the encoder's own pooling."""
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
        """Computes the same as `sincos_positions`."""
        down = torch.arange(rows, dtype=torch.float64)[:, None] * self.frequencies
        across = torch.arange(columns, dtype=torch.float64)[:, None] * self.frequencies
        by_row = torch.cat([down.sin(), down.cos()], dim=1).float()[:, None].expand(rows, columns, -1)
        by_column = torch.cat([across.sin(), across.cos()], dim=1).float()[None].expand(rows, columns, -1)
        return torch.cat([by_column, by_row], dim=2).reshape(rows * columns, self.network.config.width)

    def _learned(self, rows: int, columns: int) -> Float[Tensor, "N D"]:
        """Computes the same as `resampled_positions`."""
        network, own = self.network, self.network.config.grid()
        assert network.pos_embed is not None
        table: Tensor = network.pos_embed[0, int(network.config.class_token) :]
        # at the training size the encoder uses the table unchanged, for any offset
        is_other = 1 - (_count(rows) == own[0]).float() * (_count(columns) == own[1]).float()
        offset = network.config.resampling_offset * is_other
        return _resampled(table, own, _cells(own[0], rows, offset), _cells(own[1], columns, offset))

    def _bias(self, rows: int, columns: int) -> Float[Tensor, "1 heads S S"]:
        """Computes the same as `RelativeBias`."""
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
    """Converts a symbolic number to a tensor."""
    return torch.scalar_tensor(number, dtype=torch.float32)


def _cells(own: int, wanted: int, offset: Float[Tensor, ""]) -> Float[Tensor, " wanted"]:
    """Positions of the centers of the `wanted` cells in units of the `own` cells. Both grids cover the same image."""
    places = torch.arange(wanted, dtype=torch.float32)
    return (places + 0.5) * (own / (_count(wanted) + offset)) - 0.5


def _corners(own: int, wanted: int) -> Float[Tensor, " wanted"]:
    """Positions of the `wanted` cells in units of the `own` cells, if the first and last cells of both grids coincide."""
    places = torch.arange(wanted, dtype=torch.float32)
    return places * ((own - 1) / (_count(wanted) - 1).clamp(min=1))


def _resampled(
    table: Float[Tensor, "N D"], own: tuple[int, int], down: Float[Tensor, " H"], across: Float[Tensor, " W"]
) -> Float[Tensor, "M D"]:
    """Resamples a table of the grid `own` at the positions `down` and `across`: first vertically, then horizontally."""
    rows, columns = own
    width = table.shape[-1]
    tall = (_weights(down, rows) @ table.reshape(rows, columns * width)).reshape(-1, columns, width)  # [H, columns, D]
    resampled: Tensor = (_weights(across, columns) @ tall).flatten(0, 1)  # [H, W, D] -> [M, D]
    return resampled


def _weights(places: Float[Tensor, " n"], own: int) -> Float[Tensor, "n own"]:
    """The matrix of cubic convolution at the given positions, with indices clamped at the border.

    Let t be the fractional part of a position. The weights of its four neighbors are f(t + 1), g(t), g(1 - t), f(2 - t), with
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
    """The row of the resampled table for each pair of query patch and key patch."""
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
    """`bias` with the class token's row (it as query) and column (it as key) in front."""
    heads, number = bias.shape[0], bias.shape[1]
    column = inward[:, None, None].expand(heads, number, 1)
    row = torch.cat([own[:, None, None], outward[:, None, None].expand(heads, 1, number)], dim=2)
    return torch.cat([row, torch.cat([column, bias], dim=2)], dim=1)


FILE, DATA_FILE = "model.onnx", "model.onnx.data"
"""The graph with its weights, and the file that holds the weights of a large graph."""
OPSET = 18
MOST_BYTES_INSIDE = 1_900_000_000
"""Largest number of bytes of weights in the graph's own file, which cannot exceed 2 GB."""
NEEDED = ("onnx", "onnxscript")


def recognize(contents: Contents) -> bool:
    """True for a file that ends in .onnx, or a folder with one."""
    return contents.path.suffix == ".onnx" or (contents.settings is None and (contents.path / FILE).is_file())


def read(contents: Contents, choice: Choice) -> Loaded:
    """Always raises Refusal: the graph is for other runtimes."""
    raise Refusal(
        f"{contents.path} is an ONNX graph, which runs in onnxruntime and cannot be loaded as an encoder; "
        "load what it was converted from"
    )


def write(folder: Path, networks: Networks, dtype: str) -> list[str]:
    """Writes `model.onnx` to `folder`; if it would exceed 2 GB, weights go to `model.onnx.data`. Returns remarks.

    Raises Refusal if a package is missing.
    """
    check_packages()
    program = _exported(networks.encoder, networks.config.patch_size)
    model = program.model
    model.metadata_props.update(_metadata(networks.config, networks.source))
    for node in model.graph:  # the exporter's notes hold lines of source code and this machine's paths
        node.metadata_props.clear()
    size = sum(value.const_value.nbytes for value in model.graph.initializers.values() if value.const_value is not None)
    if dtype != "float32":
        size -= _store_smaller(model, dtype)
    import onnx_ir

    is_large = size > MOST_BYTES_INSIDE
    onnx_ir.save(model, folder / FILE, external_data=DATA_FILE if is_large else None)
    remarks = [] if networks.predictor is None else ["the predictor is left out: the graph holds the encoder"]
    return remarks + mask_token_remark(networks)


def check_packages() -> None:
    """Raises Refusal if a package that is needed to write ONNX is missing."""
    for name in NEEDED:
        with needed_for("to='onnx'"):
            import_module(name)


def _exported(network: torch.nn.Module, patch_size: int) -> Any:
    """torch's exported program of the graph, with symbolic sizes."""
    graph = EncoderGraph(network).eval()  # type: ignore[arg-type]
    batch, rows, columns = (torch.export.Dim(name) for name in ("batch", "rows", "columns"))
    # three different sizes, so that torch does not identify them; above 1, because torch would treat 1 as a constant
    example = torch.zeros(2, 3, 4 * patch_size, 3 * patch_size, dtype=torch.uint8)
    with _quiet(), torch.no_grad():
        program = torch.onnx.export(
            graph,
            (example,),
            dynamo=True,
            opset_version=OPSET,
            dynamic_shapes=({0: batch, 2: patch_size * rows, 3: patch_size * columns},),
            input_names=["images"],
            output_names=["patches", "pooled"],
            verbose=False,
        )
    assert program is not None
    return program


@contextmanager
def _quiet() -> Iterator[None]:
    """Silences the exporter's remarks about unneeded packages and about its internals."""
    logger = logging.getLogger("torch.onnx")
    before = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(before)


def _metadata(config: EncoderConfig, source: str) -> dict[str, str]:
    """Metadata for users of the file, as text, the only type that ONNX stores."""
    return {
        "openjepa.source": source,
        "openjepa.patch_size": str(config.patch_size),
        "openjepa.image_size": "x".join(map(str, config.image_size)),
        "openjepa.pooling": config.pooling,
        "openjepa.positions": config.positions,
        "openjepa.pixel_mean": " ".join(map(repr, config.pixel_mean)),
        "openjepa.pixel_std": " ".join(map(repr, config.pixel_std)),
        "openjepa.input": "uint8 RGB levels; normalization is inside the graph",
    }


def _store_smaller(model: Any, dtype: str) -> int:
    """Stores every weight that `dtype` holds exactly in `dtype`, followed by a cast back. Returns the number of bytes saved.

    The graph still computes in fp32.
    """
    import onnx_ir

    saved = 0
    target = {"float16": onnx_ir.DataType.FLOAT16, "bfloat16": onnx_ir.DataType.BFLOAT16}[dtype]
    graph = model.graph
    first = graph[0]
    for name, value in list(graph.initializers.items()):
        weight = value.const_value
        if weight is None or weight.dtype != onnx_ir.DataType.FLOAT or len(weight.shape) == 0:
            continue
        numbers = torch.from_numpy(weight.numpy().copy())
        small = numbers.to(DTYPES[dtype])
        if not torch.equal(small.float(), numbers):
            continue
        kept = onnx_ir.Value(name=f"{name}.{dtype}")
        array = small.view(torch.uint16).numpy().view(target.numpy())
        kept.const_value = onnx_ir.Tensor(array, dtype=target, name=kept.name)
        kept.shape, kept.type = value.shape, onnx_ir.TensorType(target)
        graph.initializers.pop(name)
        graph.initializers[kept.name] = kept
        cast = onnx_ir.Node("", "Cast", [kept], [onnx_ir.AttrInt64("to", int(onnx_ir.DataType.FLOAT))], num_outputs=1)
        graph.insert_before(first, cast)
        value.replace_all_uses_with(cast.outputs[0])
        saved += weight.nbytes - array.nbytes
    return saved


READER = Reader(recognize, read)
