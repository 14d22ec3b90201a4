"""Settings of `openjepa convert`."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro

MARK = "conversion.json"
"""In every folder that was written: what it is and what it was made from. Not all of them have a config.json."""

OutputFormat = Literal["transformers", "timm", "onnx", "official", "safetensors"]


@dataclass(frozen=True, kw_only=True)
class ConvertSettings:
    """What `openjepa convert` converts, and to what."""

    subject: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="RUN|ENCODER")] = Path()
    """Run folder, encoder folder, file of published weights, Hugging Face or timm folder, or name on the Hub."""
    to: OutputFormat | None = None
    """Format to write: `transformers`, `timm`, `onnx`, `official` or `safetensors` (see above)."""
    output: Path | None = None
    """Folder to write. None: `<name>-<format>` in the working directory."""
    overwrite: bool = False
    """Replace the folder where an earlier `convert` wrote it."""
    dtype: Literal["float32", "float16", "bfloat16"] = "float32"
    """How weights are stored; the half-precision ones halve the size and round the weights."""
    encoder: Literal["target", "context"] = "target"
    """Which encoder of a run, or of a file that holds both (paper: the target encoder)."""
    image_size: int | tuple[int, int] | None = None
    """Size of images, in pixels, that positions are written for: other programs would stretch sin-cos ones.
    None: the training size."""
    heads: int | None = None
    """Attention heads of published weights, where neither the file nor the width tells them."""
    license: str | None = None
    """License of the weights for the model card, as an identifier of the Hugging Face Hub, e.g. `apache-2.0` or `cc-by-nc-4.0`.
    None: the card says that none is stated."""
