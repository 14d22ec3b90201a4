"""The encoder in use: settings of embed, weights in half precision, copies, compiled, trained, saved."""

import copy
import io
import os
import pickle
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import openjepa
from openjepa.data.views import evaluation_view
from openjepa.settings.methods import IJepaSettings
from openjepa.types import normalize
from openjepa.weights.contents import weights_hash
from openjepa.weights.formats import load_any
from openjepa.weights.native import save_network
from tests.helpers.images import shape_image, write_folder
from tests.helpers.tiny_encoder import CONFIG, MEAN, STD, write_encoder, write_ijepa

IMAGES = [shape_image(number, 40) for number in range(5)]
LONG = [shape_image(number, 40).crop((0, 0, 40, 20)) for number in range(5, 8)]
WIDE_VALUES = 0.02
"""What bf16 may move features of about 1."""


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run")
    export = write_ijepa(folder, IJepaSettings(predictor_width=24, predictor_depth=1)).exports()["predictor"]
    save_network(folder / "predictor", replace(export, extra={**export.extra, "mask_mode": "drawn"}))  # as the loop does
    return folder


@pytest.fixture
def encoder(run: Path) -> openjepa.Encoder:
    return openjepa.load(run)


def close(actual: Tensor, expected: Tensor, tolerance: float = 1e-5) -> None:
    torch.testing.assert_close(actual, expected, rtol=tolerance, atol=tolerance)


def test_a_single_image_is_one_row(encoder: openjepa.Encoder) -> None:
    together = encoder.embed(IMAGES, precision="fp32")
    assert together.shape == (5, 48) and together.dtype == torch.float32
    close(encoder.embed(IMAGES[2], precision="fp32"), together[2:3])
    close(encoder.embed((image for image in IMAGES), precision="fp32", batch_size=2), together)
    stacked = np.stack([np.array(image) for image in IMAGES])
    close(encoder.embed(stacked, precision="fp32"), together)
    close(encoder.embed(torch.from_numpy(stacked).permute(0, 3, 1, 2), precision="fp32"), together)


def test_patches_are_those_of_the_network_on_their_grid(encoder: openjepa.Encoder) -> None:
    found = encoder.embed_patches(IMAGES, size=(32, 48), precision="fp32", batch_size=2)
    pixels = torch.stack([evaluation_view(torch.from_numpy(np.array(image)), (32, 48)) for image in IMAGES])
    with torch.inference_mode():
        expected = encoder.network(normalize(pixels, MEAN, STD)).patches.view(5, 4, 6, 48)
    close(found, expected)
    close(encoder.embed(IMAGES, size=(32, 48), precision="fp32"), expected.mean(dim=(1, 2)))
    numbers: Any = (np.int64(32), np.int64(48))
    assert encoder.grid((32, 48)) == encoder.grid(numbers) == (4, 6) and encoder.grid() == (4, 4)


def test_whole_images_of_several_shapes_keep_their_order(encoder: openjepa.Encoder) -> None:
    mixed = [*LONG[:1], *IMAGES[:2], *LONG[1:], *IMAGES[2:]]
    found = encoder.embed(mixed, view="whole", precision="fp32", batch_size=2)
    close(found, torch.cat([encoder.embed(image, view="whole", precision="fp32") for image in mixed]))
    with pytest.raises(ValueError, match=r"different grids \(4x4 and 4x8\): give one at a time, or use 'crop'"):
        encoder.embed_patches(mixed, view="whole")
    assert encoder.embed_patches(LONG, view="whole").shape == (3, 4, 8, 48)


def test_no_images(encoder: openjepa.Encoder) -> None:
    nothing: list[str] = []
    assert encoder.embed(nothing).shape == (0, 48)
    assert encoder.embed_patches(iter(nothing), size=48).shape == (0, 6, 6, 48)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"size": 225}, "the patch size 8 of the encoder does not divide size=225x225: use size=224"),
        ({"size": 0}, "use size=8"),
        ({"size": 32.0}, r"size=32.0 is neither a number of pixels nor \(height, width\)"),
        ({"size": (32, 32, 3)}, r"neither a number of pixels nor \(height, width\)"),
        ({"size": "32"}, "neither a number of pixels"),
        ({"view": "center"}, "view='center' is not known"),
        ({"pooling": "max"}, "pooling='max' is not known: use 'own', 'average' or 'class_token'"),
        ({"pooling": "class_token"}, "this one has none: use 'average'"),
        ({"precision": "fp16"}, "precision='fp16' is not known: use 'auto', 'bf16' or 'fp32', or cast the weights"),
        ({"batch_size": 0}, "batch_size=0 is too small"),
    ],
)
def test_settings_that_cannot_be(settings: dict[str, Any], message: str, encoder: openjepa.Encoder) -> None:
    with pytest.raises(ValueError, match=message):
        encoder.embed(IMAGES, **settings)


def test_pooling_of_an_encoder_with_a_class_token(tmp_path: Path) -> None:
    encoder = openjepa.load(write_encoder(tmp_path, replace(CONFIG, class_token=True, pooling="class_token")))
    pixels = torch.stack([encoder.prepared(image) for image in IMAGES])
    with torch.inference_mode():
        output = encoder.network(normalize(pixels, MEAN, STD))
    assert output.class_token is not None
    close(encoder.embed(IMAGES, precision="fp32"), output.class_token)
    close(encoder.embed(IMAGES, pooling="class_token", precision="fp32"), output.class_token)
    close(encoder.embed(IMAGES, pooling="average", precision="fp32"), output.patches.mean(dim=1))


def test_features_can_be_learned_from(encoder: openjepa.Encoder) -> None:
    """They are no inference tensors, which autograd refuses to save."""
    for features in (
        encoder.embed(IMAGES),
        encoder.embed_patches(IMAGES),
        encoder.encode_pixels(torch.zeros(1, 3, 32, 32)).patches,
    ):
        assert not features.is_inference() and not features.requires_grad
        torch.nn.Linear(48, 2)(features).sum().backward()


# ---------------------------------------------------------------------------------------------- precision and devices


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("positions", ["sincos", "learned", "relative"])
def test_weights_of_another_precision(dtype: torch.dtype, positions: Any, tmp_path: Path) -> None:
    """Inputs are cast, outputs are fp32, at the trained size and at another."""
    encoder = openjepa.load(write_encoder(tmp_path, replace(CONFIG, positions=positions)))
    for size in (32, 48):
        expected = encoder.embed_patches(IMAGES, size=size, precision="fp32")
        found = copy.deepcopy(encoder).to(dtype).embed_patches(IMAGES, size=size)
        assert found.dtype == torch.float32
        assert (found - expected).abs().max() < (0.1 if dtype == torch.bfloat16 else WIDE_VALUES)
        cosine = torch.nn.functional.cosine_similarity(found, expected, dim=-1)
        assert cosine.min() > 0.999
    half = encoder.to(dtype)
    assert half.dtype == dtype and half(torch.zeros(1, 3, 32, 32)).patches.dtype == torch.float32


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_predictions_with_weights_of_another_precision(dtype: torch.dtype, encoder: openjepa.Encoder) -> None:
    for size in (32, 48):
        expected = encoder.predict(IMAGES, [0, 1, 2], [5, 6], size=size, precision="fp32")
        found = copy.deepcopy(encoder).to(dtype).predict(IMAGES, [0, 1, 2], [5, 6], size=size)
        for name in ("predicted", "actual", "cosine", "loss"):
            values = getattr(found.blocks[0], name)
            assert values.dtype == torch.float32
            assert (values - getattr(expected.blocks[0], name)).abs().max() < 0.1


def test_bf16_is_only_a_little_off(encoder: openjepa.Encoder) -> None:
    exact, quick = (encoder.embed(IMAGES, precision=name) for name in ("fp32", "bf16"))
    assert quick.dtype == torch.float32
    assert 0 < (exact - quick).abs().max() < 0.1


def test_the_precision_is_that_of_the_call_whatever_the_caller_is_in(encoder: openjepa.Encoder) -> None:
    exact, half = encoder.embed(IMAGES, precision="fp32"), copy.deepcopy(encoder).half()
    expected = half.embed(IMAGES)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(encoder.embed(IMAGES, precision="fp32"), exact)
        assert torch.equal(half.embed(IMAGES), expected)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_on_a_gpu(encoder: openjepa.Encoder) -> None:
    expected = encoder.embed(IMAGES, precision="fp32")
    prediction = encoder.predict(IMAGES, [0, 1], [5, 6], precision="fp32")
    moved = encoder.to("cuda")
    found = moved.embed(IMAGES, precision="fp32")
    assert moved.device.type == "cuda" and found.device.type == "cpu"
    close(found, expected, 1e-3)
    close(moved.predict(IMAGES, [0, 1], [5, 6], precision="fp32").loss, prediction.loss, 1e-3)
    assert (moved.half().embed(IMAGES) - expected).abs().max() < 0.1


def test_the_plain_network_wants_normalized_floats(encoder: openjepa.Encoder) -> None:
    images = torch.rand(1, 3, 32, 32)
    with torch.inference_mode():
        assert torch.equal(encoder(images).patches, encoder.network(images).patches)
        kept = torch.tensor([[3, 9]])
        assert torch.equal(encoder(images, kept).patches, encoder.network(images, kept).patches)
    with pytest.raises(ValueError, match=r"takes normalized floats, not torch.uint8: use encoder.embed"):
        encoder((images * 255).byte())
    with pytest.raises(ValueError, match=r"patch size 8 of the encoder does not divide image_size=30x32: use .*=32 32"):
        encoder(torch.rand(1, 3, 30, 32))


# -------------------------------------------------------------------------------------------------------------- state


def test_state_copies_and_pickles(encoder: openjepa.Encoder, run: Path) -> None:
    expected = encoder.embed(IMAGES, precision="fp32")
    buffer = io.BytesIO()
    torch.save(encoder.state_dict(), buffer)
    other = openjepa.load(run)
    with torch.no_grad():
        for value in other.parameters():
            value.zero_()
    other.load_state_dict(torch.load(io.BytesIO(buffer.getvalue()), weights_only=True))
    for twin in (other, copy.deepcopy(encoder), pickle.loads(pickle.dumps(encoder))):
        assert torch.equal(twin.embed(IMAGES, precision="fp32"), expected)
        assert torch.equal(
            twin.predict(IMAGES, [0], [1], precision="fp32").loss, encoder.predict(IMAGES, [0], [1], precision="fp32").loss
        )
    assert repr(encoder).startswith("Encoder(\n  openjepa's run, target encoder: ViT of width 48")


def test_what_is_saved_is_loaded_again(
    encoder: openjepa.Encoder, run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with torch.no_grad():
        encoder.network.norm.bias.add_(1)
    encoder.save(tmp_path / "tuned")
    again = openjepa.load(tmp_path / "tuned")
    assert weights_hash(again.network) == weights_hash(encoder.network) != weights_hash(openjepa.load(run).network)
    assert again.config == encoder.config and again.objective == encoder.objective
    close(again.predict(IMAGES, [0], [1]).loss, encoder.predict(IMAGES, [0], [1]).loss)
    extra = [load_any(folder).predictor_extra for folder in (run, tmp_path / "tuned")]
    assert extra[0] == extra[1] == {"loss": "smooth_l1", "target_norm": "layer_norm", "mask_mode": "drawn"}
    encoder.half().save(tmp_path / "tuned")  # over the older one
    assert openjepa.load(tmp_path / "tuned").dtype == torch.float32
    (run / "config.yaml").touch()
    with pytest.raises(ValueError, match="is the folder of a run, whose encoder is not replaced: give another folder"):
        encoder.save(run)
    assert weights_hash(openjepa.load(run).network) != weights_hash(again.network)
    (run / "config.yaml").unlink()
    with monkeypatch.context() as patched, pytest.raises(ValueError, match="cannot be written to: give another folder"):
        patched.setattr(os, "access", lambda path, mode: not (Path(path) == tmp_path and mode & os.W_OK))
        encoder.save(tmp_path / "elsewhere")
    again.predictor = None
    with pytest.raises(ValueError, match="holds the predictor of another encoder, and this one has none"):
        again.save(tmp_path / "tuned")


def test_gradients_reach_every_weight(encoder: openjepa.Encoder) -> None:
    encoder.train()
    encoder(torch.rand(2, 3, 32, 32)).patches.square().sum().backward()
    assert all(value.grad is not None and value.grad.abs().sum() > 0 for value in encoder.network.parameters())


def test_embedding_while_training_drops_no_paths(tmp_path: Path) -> None:
    """And leaves every module as it was."""
    encoder = openjepa.load(write_encoder(tmp_path, replace(CONFIG, drop_path=0.9)))
    expected = encoder.embed(IMAGES, precision="fp32")
    encoder.train()
    encoder.network.blocks[0].eval()
    modes = {name: module.training for name, module in encoder.named_modules()}
    assert torch.equal(encoder.embed(IMAGES, precision="fp32"), expected)
    with pytest.raises(ValueError):
        encoder.encode_pixels(torch.zeros(1, 3, 30, 30, dtype=torch.uint8))
    assert {name: module.training for name, module in encoder.named_modules()} == modes
    assert len(set(modes.values())) == 2


@pytest.mark.parametrize("in_place", [True, False])
def test_compiled_encoders_give_the_same(in_place: bool, encoder: openjepa.Encoder) -> None:
    images = torch.rand(2, 3, 32, 32)
    expected, features = encoder(images).patches, encoder.embed(IMAGES, precision="fp32")
    graphs = 0

    def counted(graph: Any, _: Any) -> Any:
        nonlocal graphs
        graphs += 1
        return graph.forward

    torch.compiler.reset()
    if in_place:
        encoder.compile(backend=counted)
        compiled: Any = encoder
    else:
        compiled = torch.compile(encoder, backend=counted)
    close(compiled(images).patches, expected)
    assert graphs == 1, "one graph, without breaks"
    close(compiled.embed(IMAGES, precision="fp32"), features)
    torch.compiler.reset()


def test_progress_is_shown_on_a_terminal(
    encoder: openjepa.Encoder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    files = sorted(write_folder(tmp_path, 6).rglob("*.png"))
    encoder.embed(files, progress=True, batch_size=2)
    assert capsys.readouterr() == ("", "")
    monkeypatch.setenv("FORCE_COLOR", "1")  # which makes rich take anything for a terminal
    encoder.embed(files, progress=True, batch_size=2)
    encoder.embed((file for file in files), progress=True, batch_size=2)
    shown = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", capsys.readouterr().err)
    assert "6/6" in shown and "6/?" in shown
