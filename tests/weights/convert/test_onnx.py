"""ONNX: any number of images of any size and shape, in onnxruntime, as the encoder computes them."""

import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from openjepa.models.transformer import resampled_positions, sincos_positions
from openjepa.models.vit import VisionTransformer
from openjepa.settings.inference import ConvertSettings
from openjepa.types import normalize
from openjepa.weights import onnx as onnx_format
from openjepa.weights.convert.conversion import convert, verify
from openjepa.weights.formats import Networks
from openjepa.weights.onnx import EncoderGraph
from tests.helpers.weights_written import CONFIGS, networks, written

TOLERANCE = 2e-5
SIZES = [(1, 16, 16), (3, 16, 16), (2, 24, 24), (1, 8, 32), (5, 4, 4), (2, 20, 16)]
"""Images, height, width."""


def session(folder: Path) -> Any:
    runtime = pytest.importorskip("onnxruntime", reason="needs onnxruntime (pip install 'openjepa[onnx]')")
    options = runtime.SessionOptions()
    options.log_severity_level = 4  # errors are asserted on
    return runtime.InferenceSession(folder / "model.onnx", options, providers=["CPUExecutionProvider"])


def exported(name: str, folder: Path) -> tuple[Any, Networks]:
    for package in ("onnx", "onnxscript"):
        pytest.importorskip(package, reason=f"needs {package} (pip install 'openjepa[onnx]')")
    given = networks(CONFIGS[name])
    if given.encoder.rel_pos_bias is not None:
        torch.nn.init.normal_(given.encoder.rel_pos_bias.relative_position_bias_table)
    return session(written(folder, "onnx", given)), given


@torch.no_grad()
def assert_equal_outputs(run: Any, encoder: VisionTransformer) -> None:
    config = encoder.config
    for number, height, width in SIZES:
        images = torch.randint(0, 256, (number, 3, height, width), dtype=torch.uint8)
        patches, pooled = (torch.from_numpy(item) for item in run.run(["patches", "pooled"], {"images": images.numpy()}))
        expected = encoder(normalize(images, config.pixel_mean, config.pixel_std))
        assert patches.shape == (number, height // 4, width // 4, config.width)
        torch.testing.assert_close(patches.flatten(1, 2), expected.patches, rtol=0, atol=TOLERANCE)
        torch.testing.assert_close(pooled, expected.pooled(config.pooling), rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize(
    "name",
    ["dino", pytest.param("ijepa", marks=pytest.mark.slow), pytest.param("data2vec", marks=pytest.mark.slow)],
)
def test_outputs_are_equal_at_every_size(name: str, tmp_path: Path) -> None:
    """A class token and learned positions; fixed ones; relative ones with layer scale. The first is enough of every day: those
    below compare the arithmetic of all three, and half precision has fixed ones.
    """
    run, given = exported(name, tmp_path / "out")
    encoder = given.encoder
    assert_equal_outputs(run, encoder)
    told = run.get_modelmeta().custom_metadata_map
    config = encoder.config
    assert (told["openjepa.patch_size"], told["openjepa.pooling"], told["openjepa.image_size"]) == (
        "4",
        config.pooling,
        "16x16",
    )
    assert tuple(map(float, told["openjepa.pixel_mean"].split())) == config.pixel_mean
    (wanted,) = run.get_inputs()
    assert (wanted.name, wanted.type, wanted.shape[1]) == ("images", "tensor(uint8)", 3)
    data = (tmp_path / "out" / "model.onnx").read_bytes()
    assert str(Path(__file__).parents[3]).encode() not in data  # the exporter notes lines of source code
    if name == "dino":  # sizes that the patch does not divide are errors, not cut pictures
        with pytest.raises(Exception, match="cannot be reshaped"):
            run.run(None, {"images": torch.zeros(1, 3, 18, 16, dtype=torch.uint8).numpy()})
    with torch.no_grad():
        encoder.norm.bias[3] += 1e-3
    with pytest.raises(ValueError, match=r"onnx, run by onnxruntime .* differ by up to 0\.001, more than 2e-05"):
        verify(tmp_path / "out", "onnx", given)


def test_half_precision_above_2_gb(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Weights in half precision, computed with in fp32, in a file of their own (here above 10 kB); checked by the command."""
    for package in ("onnx", "onnxscript", "onnxruntime"):
        pytest.importorskip(package, reason=f"needs {package} (pip install 'openjepa[onnx]')")
    import onnx

    monkeypatch.setattr(onnx_format, "MOST_BYTES_INSIDE", 10_000)
    given = written(tmp_path / "given", "safetensors", networks(CONFIGS["wide"]))
    done = convert(ConvertSettings(subject=given, to="onnx", output=tmp_path / "out", dtype="float16"))
    assert {"model.onnx", "model.onnx.data", "README.md", "conversion.json"} == {path.name for path in done.folder.iterdir()}
    assert done.remarks[1:] == ["the predictor is left out: the graph holds the encoder"]
    assert 0 < done.checks[0].difference < TOLERANCE and "onnxruntime" in done.checks[0].what
    onnx.checker.check_model(done.folder / "model.onnx", full_check=True)
    sizes = dict.fromkeys((onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16), 0)
    for item in onnx.load(done.folder / "model.onnx").graph.initializer:
        if item.data_type in sizes:
            sizes[item.data_type] += len(item.raw_data)
    assert sizes[onnx.TensorProto.FLOAT16] > 10 * sizes[onnx.TensorProto.FLOAT]


def test_without_onnxruntime_nothing_is_checked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    assert verify(tmp_path, "onnx", networks(CONFIGS["ijepa"])) == []


# -------------------------------------------------------------------------- positions as arithmetic, before any exporting


@torch.no_grad()
@pytest.mark.parametrize("offset", [0.0, 0.1])
@pytest.mark.parametrize("grid", [(4, 4), (4, 6), (1, 1), (2, 9), (7, 3)])
def test_positions_are_those_of_the_encoder(grid: tuple[int, int], offset: float) -> None:
    fixed = EncoderGraph(networks(CONFIGS["ijepa"]).encoder)
    assert torch.equal(fixed._fixed(*grid), sincos_positions(24, grid))
    config = replace(CONFIGS["learned"], resampling_offset=offset)
    encoder = networks(config).encoder
    assert encoder.pos_embed is not None
    expected = encoder.pos_embed[0] if grid == (4, 4) else resampled_positions(encoder.pos_embed[0], (4, 4), grid, offset)
    torch.testing.assert_close(EncoderGraph(encoder)._learned(*grid), expected, rtol=0, atol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("grid", [(4, 4), (4, 6), (1, 1), (2, 9)])
@pytest.mark.parametrize("token", [True, False])
def test_relative_positions_are_those_of_the_encoder(token: bool, grid: tuple[int, int]) -> None:
    encoder = networks(replace(CONFIGS["data2vec"], class_token=token)).encoder
    relative = encoder.rel_pos_bias
    assert relative is not None
    torch.nn.init.normal_(relative.relative_position_bias_table)
    torch.testing.assert_close(EncoderGraph(encoder)._bias(*grid), relative(grid, token), rtol=0, atol=1e-5)


# ------------------------------------------------------------------------------------------------------ missing packages


@pytest.mark.parametrize("missing", ["onnx", "onnxscript"])
def test_a_missing_package_is_said_before_anything_is_read(
    missing: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, missing, None)  # as if it were not installed
    with pytest.raises(ValueError, match=rf"to='onnx' needs the package {missing}: pip install 'openjepa\[onnx\]'"):
        convert(ConvertSettings(subject=tmp_path / "absent", to="onnx"))
