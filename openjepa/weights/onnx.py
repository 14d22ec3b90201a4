"""ONNX: the encoder as a graph for other runtimes, for any number of images of any size. Written, not read.

Input `images`: uint8 [batch, 3, height, width], RGB levels, sides that the patch divides; normalization is inside. Outputs, in
fp32: `patches` [batch, rows, columns, D] and `pooled` [batch, D], the encoder's own pooling.
"""

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import Any

import torch

from openjepa.refusals import Refusal
from openjepa.settings.models import EncoderConfig
from openjepa.system.packages import needed_for
from openjepa.weights.contents import Contents
from openjepa.weights.formats import Choice, Loaded
from openjepa.weights.onnx_graph import EncoderGraph
from openjepa.weights.written import DTYPES, Networks, mask_token_remark

FILE, DATA_FILE = "model.onnx", "model.onnx.data"
"""The graph with its weights, and the file that keeps the weights of large ones."""
OPSET = 18
MOST_BYTES_INSIDE = 1_900_000_000
"""Of weights in the graph's own file, which cannot be larger than 2 GB."""
NEEDED = ("onnx", "onnxscript")


def recognize(contents: Contents) -> bool:
    """A file that ends in .onnx, or a folder with one."""
    return contents.path.suffix == ".onnx" or (contents.settings is None and (contents.path / FILE).is_file())


def read(contents: Contents, choice: Choice) -> Loaded:
    """Always Refusal: the graph is for other runtimes."""
    raise Refusal(
        f"{contents.path} is an ONNX graph, which runs in onnxruntime and cannot be loaded as an encoder; "
        "load what it was converted from"
    )


def write(folder: Path, networks: Networks, dtype: str) -> list[str]:
    """`model.onnx` in `folder`, and for weights above 2 GB `model.onnx.data`. Raises Refusal where a package is missing."""
    check_packages()
    program = _exported(networks.encoder, networks.config.patch_size)
    model = program.model
    model.metadata_props.update(_metadata(networks.config, networks.source))
    for node in model.graph:  # the exporter's notes: lines of source code, with this machine's paths
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
    """Refusal where what writes ONNX is not installed."""
    for name in NEEDED:
        with needed_for("to='onnx'"):
            import_module(name)


def _exported(network: torch.nn.Module, patch_size: int) -> Any:
    """torch's program of the graph, sizes symbolic."""
    graph = EncoderGraph(network).eval()  # type: ignore[arg-type]
    batch, rows, columns = (torch.export.Dim(name) for name in ("batch", "rows", "columns"))
    # three numbers that differ, so that none is taken for another; above 1, which torch would take for a constant
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
    """Without the exporter's remarks, on packages that nobody needs and on its own insides."""
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
    """What a user of the file needs to know, as the text that ONNX keeps."""
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
    """Keeps every weight that loses nothing by it in `dtype`, with a cast back behind it; returns the bytes that it saves.

    The graph computes in fp32 as before.
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
