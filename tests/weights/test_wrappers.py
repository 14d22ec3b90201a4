"""Names of wrappers before those of tensors are found, said and cut, in every format; two encoders are never mixed up."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

import openjepa
from openjepa.evaluation.evaluation_run import find_subject, load_subject
from openjepa.settings.evaluation import EvaluationSettings
from openjepa.settings.inference import ConvertSettings
from openjepa.weights.convert.conversion import convert
from openjepa.weights.formats import Loaded, load_any
from tests.helpers.foreign_weights import HEADS, encoder_of, predictor_weights, prefixed, weights
from tests.helpers.weights_written import CONFIGS, assert_same, networks, written

PREFIXES = (
    "module.",
    "_orig_mod.",
    "_orig_mod.module.",
    "module._orig_mod.",
    "backbone.",
    "_orig_mod.backbone.",
    "module._orig_mod.backbone.",
    "backbone._orig_mod.",
    "module.backbone._orig_mod.",
    "model.",
    "model._orig_mod.",
    "student_backbone.vit.",
    "encoder.vit.",
    "net._fsdp_wrapped_module.",
)

Rename = Callable[[dict[str, Tensor]], dict[str, Tensor]]


def folder_in(to: str, config: str) -> Callable[[Path, Rename], Path]:
    """A folder of the format `to`, the names of its tensors changed."""

    def write(place: Path, rename: Rename) -> Path:
        torch.manual_seed(0)
        path = written(place, to, networks(CONFIGS[config]))
        tensors = load_file(path / "model.safetensors")
        save_file(rename(tensors), path / "model.safetensors")
        return path

    return write


def file_of(content: Callable[[Rename], Any]) -> Callable[[Path, Rename], Path]:
    def write(place: Path, rename: Rename) -> Path:
        path = place.with_suffix(".pth")
        torch.save(content(rename), path)
        return path

    return write


def released(rename: Rename) -> dict[str, Any]:
    parts = {"encoder": weights(seed=1), "predictor": predictor_weights(), "target_encoder": weights(seed=2)}
    return {name: rename(part) for name, part in parts.items()} | {"epoch": 7}


LAYOUTS: dict[str, Callable[[Path, Rename], Path]] = {
    "native": folder_in("safetensors", "dino"),
    "native, relative positions": folder_in("safetensors", "data2vec"),
    "transformers, ijepa": folder_in("transformers", "ijepa"),
    "transformers, vit": folder_in("transformers", "dino"),
    "timm, folder": folder_in("timm", "layer scale"),
    "timm, file": file_of(lambda rename: rename(weights())),
    "lightning": file_of(lambda rename: {"state_dict": rename(weights()), "pytorch-lightning_version": "2.5.0", "loops": {}}),
    "official": file_of(released),
    "mae": file_of(lambda rename: {"model": rename(weights(True) | {"decoder_blocks.0.norm1.weight": torch.ones(8)})}),
    "dino, backbone": file_of(lambda rename: rename(weights(True, "learned"))),
    "dino": file_of(
        lambda rename: {
            "teacher": rename(weights(True, "learned")),
            "student": rename(weights(True, "learned", seed=1)),
        }
    ),
    "dictionary of another name": file_of(lambda rename: {"model_state_dict": rename(weights()), "epoch": 1}),
}


USUAL = {"official": ("module.",), "dino": ("module.", "backbone.")}
"""What the formats themselves put before names, which is cut and not said."""


def assert_equal(found: Loaded, expected: Loaded) -> None:
    assert found.config == expected.config and found.what == expected.what
    assert_same(found.encoder, expected.encoder)
    assert (found.predictor is None) == (expected.predictor is None)
    if expected.predictor is not None:
        assert_same(found.predictor, expected.predictor)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_prefixes_are_cut_and_said(layout: str, tmp_path: Path) -> None:
    plain = LAYOUTS[layout](tmp_path / "plain", dict)
    expected = load_any(plain, HEADS)
    for number, prefix in enumerate(PREFIXES):
        place = plain.parent / f"{number}" / "plain"
        place.parent.mkdir()
        path = LAYOUTS[layout](place, lambda tensors, before=prefix: prefixed(tensors, before))
        found = load_any(path, HEADS)
        assert found.what == expected.what
        assert_equal(found, expected)
        said = (f"the names in the file begin with {prefix!r}, which was cut",)
        assert found.notes == (*(() if prefix in USUAL.get(layout.split(",")[0], ()) else said), *expected.notes)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_wrappers_inside_names(layout: str, tmp_path: Path) -> None:
    """As of blocks that were compiled or checkpointed one by one."""

    def rename(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        return {
            name.replace(".attn", "._orig_mod.attn").replace(".attention.", "._orig_mod.attention.", 1): value
            for name, value in tensors.items()
        }

    expected = load_any(LAYOUTS[layout](tmp_path / "plain", dict), HEADS)
    (tmp_path / "b").mkdir()
    found = load_any(LAYOUTS[layout](tmp_path / "b" / "plain", rename), HEADS)
    assert_equal(found, expected)
    assert found.notes == ("'_orig_mod' inside names was cut", *expected.notes)


def test_what_torch_itself_puts_before_names(tmp_path: Path) -> None:
    """Of a compiled network, of its moving average, and of both."""
    network = networks(CONFIGS["ijepa"]).encoder
    table = {"pos_embed": weights()["pos_embed"]}
    compiled = torch.compile(network, backend="eager")  # the wrapper is all that matters
    averaged = torch.optim.swa_utils.AveragedModel(network)
    for number, (module, prefix) in enumerate(
        ((compiled, "_orig_mod."), (averaged, "module."), (torch.optim.swa_utils.AveragedModel(compiled), "module._orig_mod."))
    ):
        state = dict(module.state_dict())
        torch.save(state | prefixed(table, prefix), tmp_path / f"{number}.pth")
        found = load_any(tmp_path / f"{number}.pth", HEADS)
        assert_same(found.encoder, network)
        beside = ("not read: n_averaged (1 tensor beside the encoder)",) if "n_averaged" in state else ()
        assert found.notes == (f"the names in the file begin with {prefix!r}, which was cut", *beside)


def test_what_lies_beside_the_encoder_is_said(tmp_path: Path) -> None:
    """A module of Lightning with a projection head and a metric; and a name that belongs to the encoder stays an error."""
    state = prefixed(weights(), "student_backbone.vit.") | {"head.0.weight": torch.ones(2), "head.0.bias": torch.ones(2)}
    torch.save({"state_dict": state | {"metric.total": torch.ones(())}}, tmp_path / "a.ckpt")
    found = load_any(tmp_path / "a.ckpt", HEADS)
    assert torch.equal(found.encoder.norm.weight, weights()["norm.weight"])
    assert found.notes == (
        "the names in the file begin with 'student_backbone.vit.', which was cut",
        "not read: head.0.bias, head.0.weight, metric.total (3 tensors beside the encoder)",
    )
    encoder = openjepa.load(tmp_path / "a.ckpt", heads=3)
    assert encoder.notes == found.notes and "student_backbone.vit." in repr(encoder)
    state["student_backbone.vit.blocks.0.adapter"] = torch.ones(1)
    torch.save({"state_dict": state}, tmp_path / "b.ckpt")
    with pytest.raises(ValueError, match=r"left over blocks\.0\.adapter$"):
        load_any(tmp_path / "b.ckpt", HEADS)


# --------------------------------------------------------------------------------------------------------- two encoders


@pytest.mark.parametrize(
    ("target", "context"),
    [
        ("teacher_backbone.vit.", "student_backbone.vit."),
        ("teacher.backbone.", "student.backbone."),
        ("momentum_encoder.", "base_encoder."),
        ("_orig_mod.target_encoder.", "_orig_mod.encoder."),
        ("ema.", ""),
    ],
)
@pytest.mark.parametrize("has_token", [False, True])
def test_two_encoders_in_one_dictionary(target: str, context: str, has_token: bool, tmp_path: Path) -> None:
    """The average is the target; the other is the context encoder, and neither lies beside the other."""
    average, trained = weights(has_token, "learned", seed=1), weights(has_token, "learned", seed=2)
    state = prefixed(trained, context) | prefixed(average, target) | {"head.weight": torch.ones(1)}
    torch.save({"state_dict": state}, tmp_path / "a.ckpt")
    assert torch.equal(encoder_of(tmp_path / "a.ckpt", "target").pos_embed, average["pos_embed"])  # type: ignore[arg-type]
    if context:
        assert torch.equal(encoder_of(tmp_path / "a.ckpt", "context").pos_embed, trained["pos_embed"])  # type: ignore[arg-type]
    loaded = load_any(tmp_path / "a.ckpt", HEADS)
    assert loaded.encoders == ("target", "context") and "target encoder" in loaded.what


def test_a_whole_method_in_one_dictionary(tmp_path: Path) -> None:
    """I-JEPA as a module of Lightning: both encoders and the predictor."""
    state = prefixed(weights(seed=1), "encoder.") | prefixed(weights(seed=2), "target_encoder.")
    torch.save({"state_dict": state | prefixed(predictor_weights(), "predictor.")}, tmp_path / "a.ckpt")
    found = load_any(tmp_path / "a.ckpt", HEADS)
    assert torch.equal(found.encoder.norm.weight, weights(seed=2)["norm.weight"])
    assert found.predictor is not None
    assert torch.equal(found.predictor.embed.weight, predictor_weights()["predictor_embed.weight"])


@pytest.mark.parametrize("names", [("a.", "b."), ("", "module."), ("teacher.", "target."), ("teacher.", "student.", "copy.")])
def test_encoders_that_nothing_tells_apart_are_refused(names: tuple[str, ...], tmp_path: Path) -> None:
    state: dict[str, Tensor] = {}
    for name in names:
        state |= prefixed(weights(), name)
    torch.save(state, tmp_path / "a.pth")
    with pytest.raises(ValueError, match=rf"holds several encoders, whose names begin with '{names[0]}' and '{names[1]}'"):
        load_any(tmp_path / "a.pth", HEADS)


def test_commands_say_what_was_cut(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path, said = tmp_path / "a.ckpt", "note: the names in the file begin with 'model._orig_mod.', which was cut"
    torch.save({"state_dict": prefixed(weights(), "model._orig_mod.")}, path)
    convert(ConvertSettings(subject=path, to="timm", output=tmp_path / "timm", heads=3), print)
    assert said in capsys.readouterr().out.splitlines()
    settings = EvaluationSettings(heads=3)
    load_subject(find_subject(path, settings, None), settings.heads)
    assert said in capsys.readouterr().err.splitlines()
