"""Checks written weights: reads them back and compares outputs with the original networks on the same random images."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import UInt8
from torch import Tensor, nn

from openjepa.models.vit import VisionTransformer
from openjepa.refusals import Refusal
from openjepa.settings.models import EncoderConfig
from openjepa.types import EncoderOutput, normalize
from openjepa.weights.formats import Choice, Networks, load_any
from openjepa.weights.onnx import FILE as ONNX_FILE

TOLERANCE = 2e-5
"""Largest allowed difference of a feature. Final norms make features of about size 1."""
SEED = 20230119
IMAGES = 2
NOT_NEEDED = "mask_token"
"""The encoder's weight that other programs' formats leave out."""


@dataclass(frozen=True)
class Check:
    """One successful comparison."""

    what: str
    difference: float
    """The largest difference between any two compared numbers."""

    def words(self) -> str:
        """The comparison and its difference in words."""
        return f"{self.what} {f'differ by at most {self.difference:.2g}' if self.difference else 'are equal'}"


def verify(folder: Path, to: str, networks: Networks) -> list[Check]:
    """Compares the files in `folder` with the networks that they were written from. Raises Refusal if they differ.

    ONNX files are run by onnxruntime. If that package is missing, nothing is checked, and the list is empty.
    """
    return _verify_graph(folder / ONNX_FILE, networks) if to == "onnx" else _verify_folder(folder, to, networks)


def sizes_of(config: EncoderConfig) -> list[tuple[int, int]]:
    """Sizes (height, width) in pixels at which outputs are compared: the training size, and a smaller one of another shape."""
    rows, columns = config.grid()
    other = (max(1, rows // 2), columns // 2 + 1)
    if other == (rows, columns):
        other = (rows, columns + 1)
    return [config.image_size, (other[0] * config.patch_size, other[1] * config.patch_size)]


def random_images(size: tuple[int, int], number: int = IMAGES) -> UInt8[Tensor, "B 3 h w"]:
    """Images of random pixels, the same in every call."""
    generator = torch.Generator().manual_seed(SEED)
    return torch.randint(0, 256, (number, 3, *size), dtype=torch.uint8, generator=generator)


@torch.no_grad()
def outputs(encoder: VisionTransformer, images: UInt8[Tensor, "B 3 h w"]) -> EncoderOutput:
    """The encoder's outputs for uint8 images, in fp32."""
    config = encoder.config
    result: EncoderOutput = encoder(normalize(images, config.pixel_mean, config.pixel_std))
    return result


def _verify_folder(folder: Path, to: str, networks: Networks) -> list[Check]:
    heads = networks.config.heads
    loaded = load_any(folder, Choice(heads=heads))
    checks = [_compared(networks.encoder, loaded.encoder, to)]
    if networks.context is not None:
        context = load_any(folder, Choice(encoder="context", heads=heads, predictor=False)).encoder
        checks.append(_compared(networks.context, context, "its context encoder"))
    if networks.predictor is not None and loaded.predictor is not None:
        _check_weights(networks.predictor, loaded.predictor, "predictor")
        checks.append(Check("the predictor, read back by openjepa: weights", 0.0))
    return checks


def _compared(expected: VisionTransformer, found: VisionTransformer, what: str) -> Check:
    _check_weights(expected, found, what)
    differences = []
    for size in sizes_of(expected.config):
        images = random_images(size)
        ours, theirs = outputs(expected, images), outputs(found, images)
        differences.append(_largest(ours.patches, theirs.patches))
        pooled = expected.config.pooling
        differences.append(_largest(ours.pooled(pooled), theirs.pooled(found.config.pooling)))
    return _check(f"{what}, read back by openjepa: weights, and features at {_words(expected.config)}", max(differences))


def _check_weights(expected: nn.Module, found: nn.Module, what: str) -> None:
    """Raises Refusal if a weight is not bit for bit the same."""
    ours = {name: value for name, value in expected.state_dict().items() if name != NOT_NEEDED or what == "predictor"}
    theirs = found.state_dict()
    wrong = [name for name, value in ours.items() if name not in theirs or not torch.equal(value, theirs[name])]
    if wrong:
        raise Refusal(f"{what}: {len(wrong)} weights came back changed, {wrong[0]} first; nothing was written")


def _verify_graph(path: Path, networks: Networks) -> list[Check]:
    try:
        import onnxruntime
    except ImportError:
        return []
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    differences = []
    for number, size in zip((1, IMAGES + 1), sizes_of(networks.config), strict=True):
        images = random_images(size, number)
        expected = outputs(networks.encoder, images)
        patches, pooled = _run(session, images)
        rows, columns = networks.config.grid(size)
        shape = (number, rows, columns, networks.config.width)
        if patches.shape != shape:
            raise Refusal(f"onnx: patches came out as {list(patches.shape)}, not {list(shape)}; nothing was written")
        differences.append(_largest(expected.patches, torch.from_numpy(patches).flatten(1, 2)))
        differences.append(_largest(expected.pooled(networks.config.pooling), torch.from_numpy(pooled)))
    return [
        _check(f"onnx, run by onnxruntime {onnxruntime.__version__}: features at {_words(networks.config)}", max(differences))
    ]


def _run(session: Any, images: UInt8[Tensor, "B 3 h w"]) -> tuple[np.ndarray, np.ndarray]:
    patches, pooled = session.run(["patches", "pooled"], {"images": images.numpy()})
    return patches, pooled


def _words(config: EncoderConfig) -> str:
    return " and ".join(f"{height}x{width}" for height, width in sizes_of(config))


def _largest(ours: Tensor, theirs: Tensor) -> float:
    return float((ours - theirs).abs().max())


def _check(what: str, difference: float) -> Check:
    if not difference <= TOLERANCE:  # written so that nan is refused, too
        raise Refusal(f"{what} differ by up to {difference:.2g}, more than {TOLERANCE:g}; nothing was written")
    return Check(what, difference)
