"""openjepa convert: whole folders or none, checked, from runs and foreign files; what cannot work is said first."""

import json
import os
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from openjepa.commands.convert import convert as command
from openjepa.settings.inference import ConvertSettings
from openjepa.types import Export
from openjepa.weights.convert import conversion as module
from openjepa.weights.convert.conversion import convert, sizes_of, verify
from openjepa.weights.formats import Networks, WeightsChoice, load_any
from openjepa.weights.native import save_network
from tests.helpers.foreign_weights import Malicious, official, weights
from tests.helpers.foreign_weights import written as saved
from tests.helpers.weights_written import (
    CONFIG,
    CONFIGS,
    PREDICTOR,
    TOKEN,
    assert_same,
    encoder,
    names,
    networks,
    run_folder,
    written,
)

OTHERS = ("transformers", "timm", "official", "safetensors")


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return run_folder(tmp_path / "runs" / "mine")


# ---------------------------------------------------------------------------------------------------------------- a run


@pytest.mark.parametrize("to", OTHERS)
def test_a_run_is_converted(to: str, run: Path, tmp_path: Path) -> None:
    """Into `<name>-<format>` here; weights, predictor with its masks, settings of the training, and a card."""
    done = convert(ConvertSettings(subject=run, to=to, license="apache-2.0"))  # type: ignore[arg-type]
    assert done.folder == tmp_path / f"mine-{to}" and all(check.difference == 0 for check in done.checks)
    place = done.folder / "checkpoint.pth.tar" if to == "official" else done.folder
    loaded, original = load_any(place, WeightsChoice(heads=3)), load_any(run)
    assert_same(loaded.encoder, original.encoder)
    assert original.predictor is not None
    assert_same(loaded.predictor, original.predictor)
    assert loaded.predictor_extra == ({} if to == "official" else {"mask_mode": "multiblock/unbiased"})
    assert yaml.safe_load((done.folder / "training.yaml").read_text()) == yaml.safe_load((run / "config.yaml").read_text())
    assert (done.folder / "README.md").read_text().startswith("---\nlicense: apache-2.0\n")
    assert sorted(path.name for path in tmp_path.iterdir()) == [f"mine-{to}", "runs"]


def test_a_released_checkpoint_of_a_run_holds_both_encoders(run: Path) -> None:
    """And the numbers that the released program writes beside them."""
    folder = convert(ConvertSettings(subject=run, to="official")).folder
    context = load_any(folder / "checkpoint.pth.tar", WeightsChoice(encoder="context", heads=3))
    assert_same(context.encoder, load_any(run, WeightsChoice(encoder="context")).encoder)
    tree = torch.load(folder / "checkpoint.pth.tar", weights_only=True)
    assert list(tree)[:3] == ["encoder", "predictor", "target_encoder"] and tree["batch_size"] == 128
    assert tree["lr"] == 0.001 and isinstance(tree["epoch"], int) and isinstance(tree["loss"], float)


def test_the_context_encoder(run: Path) -> None:
    folder = convert(ConvertSettings(subject=run, to="timm", encoder="context")).folder
    assert_same(load_any(folder).encoder, load_any(run, WeightsChoice(encoder="context")).encoder)
    with pytest.raises(ValueError, match="encoder='context' has no effect with --to official"):
        convert(ConvertSettings(subject=run, to="official", encoder="context"))
    alone = run_folder(run.parent / "alone", context=False)
    with pytest.raises(ValueError, match=r"has no folder context_encoder; train with method\.export_context_encoder"):
        convert(ConvertSettings(subject=alone, to="timm", encoder="context"))


def test_half_precision_says_how_far_features_move(run: Path) -> None:
    done = convert(ConvertSettings(subject=run, to="transformers", dtype="float16"))
    (remark,) = done.remarks
    found = re.fullmatch(r"rounding to float16 moves features on random images by at most (\S+) % of their length", remark)
    assert found is not None and 0.001 < float(found.group(1)) < 1
    assert done.checks[0].difference == 0
    save_network(run / "encoder", Export(CONFIG, _large()))
    with pytest.raises(ValueError, match=r"dtype='float16' cannot hold the weights norm\.weight, which are too large"):
        convert(ConvertSettings(subject=run, to="timm", dtype="float16"))
    assert not Path("mine-timm").exists()


def test_a_predictor_of_another_step_is_noted(run: Path) -> None:
    """As where training was just writing both."""
    predictor = load_any(run).predictor
    assert predictor is not None
    note = "the encoder is of step 4400, the predictor is of step 4300: the training was just writing them, so convert again"
    for step, notes in ((4400, []), (4300, [note])):
        save_network(run / "predictor", Export(PREDICTOR, predictor, {"step": step}))
        done = convert(ConvertSettings(subject=run, to="timm", overwrite=True))
        assert list(done.remarks) == notes


def _large() -> torch.nn.Module:
    network = encoder(CONFIG)
    with torch.no_grad():
        network.norm.weight[0] = 1e6
    return network


@torch.no_grad()
@pytest.mark.parametrize("name", ["ijepa", "dino"])
def test_positions_for_another_size(name: str, tmp_path: Path) -> None:
    """Are those that the encoder itself has there, so that outputs stay equal."""
    path = written(tmp_path / "given", "safetensors", networks(CONFIGS[name]))
    out = tmp_path / "out"
    convert(ConvertSettings(subject=path, to="transformers", output=out, image_size=(24, 16)))
    loaded = load_any(out)
    assert loaded.config == replace(CONFIGS[name], image_size=(24, 16))
    images = torch.randn(2, 3, 24, 16)
    expected = load_any(path).encoder(images).patches
    torch.testing.assert_close(loaded.encoder(images).patches, expected, rtol=0, atol=1e-5)


# -------------------------------------------------------------------------------------------------------- foreign files


def test_a_foreign_file_keeps_its_license(tmp_path: Path) -> None:
    path = saved(tmp_path / "IN1K-test.pth.tar", official())
    done = convert(ConvertSettings(subject=path, to="transformers", output=tmp_path / "hf", heads=3))
    card = (done.folder / "README.md").read_text()
    assert "converted from `IN1K-test.pth.tar`" in card and "the license of that file applies" in card
    assert yaml.safe_load(card.split("---")[1])["license"] == "unknown" and not (done.folder / "training.yaml").exists()
    again = convert(ConvertSettings(subject=done.folder, to="timm", output=tmp_path / "timm", license="cc-by-nc-4.0"))
    third = convert(ConvertSettings(subject=again.folder, to="safetensors", output=tmp_path / "own"))
    card = (third.folder / "README.md").read_text()  # what was said once stays: openjepa has not trained it
    assert "the license of that file applies" in card and "license: cc-by-nc-4.0" in card
    assert "converted from `IN1K-test.pth.tar` (I-JEPA's released checkpoint" in card
    assert_same(load_any(third.folder).encoder, load_any(path, WeightsChoice(heads=3)).encoder)
    assert load_any(third.folder).predictor is not None


def test_settings_travel_through_two_conversions(run: Path, tmp_path: Path) -> None:
    once = convert(ConvertSettings(subject=run, to="timm"))
    twice = convert(ConvertSettings(subject=once.folder, to="transformers", output=tmp_path / "twice"))
    assert yaml.safe_load((twice.folder / "training.yaml").read_text()) == yaml.safe_load((run / "config.yaml").read_text())
    mark = json.loads((twice.folder / "conversion.json").read_text())
    assert mark["is_ours"] is True and mark["training"]["step"] == 4400 and mark["to"] == "transformers"


@pytest.mark.parametrize("name", ["", "checkpoint.pth.tar"])
def test_a_released_checkpoint_is_converted_again(name: str, run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """From the folder or the file in it: still the run's weights, with its settings and license."""
    convert(ConvertSettings(subject=run, to="official", license="apache-2.0"))
    command([f"mine-official/{name}", "--to", "timm", "--heads", "3", "--output", "again"], "openjepa convert")
    assert_same(load_any(Path("again")).encoder, load_any(run).encoder)
    mark = json.loads(Path("again/conversion.json").read_text())
    assert (mark["source"], mark["is_ours"], mark["license"]) == ("mine", True, "apache-2.0")
    assert Path("again/training.yaml").is_file()


# ------------------------------------------------------------------------------------------------------------ bad input


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"to": None}, "to=None: say the format with --to"),
        ({"license": "Apache License"}, "is no identifier of the Hugging Face Hub; give one like apache-2.0"),
        ({"output": Path("runs/mine")}, "holds what is converted"),
        ({"output": Path("runs")}, "holds what is converted"),
        ({"output": Path("runs/mine/config.yaml/x")}, "config.yaml is a file, but a folder is needed"),
        ({"image_size": 18}, "the patch size 4 of the encoder does not divide image_size=18x18: use image_size=16"),
        ({"heads": 4}, "says itself that it has 3"),
    ],
)
def test_settings_that_cannot_work(changed: dict[str, Any], message: str, run: Path) -> None:
    before = names(run.parent.parent)
    with pytest.raises(ValueError, match=message):
        convert(replace(ConvertSettings(subject=run, to="timm"), **changed))
    assert names(run.parent.parent) == before


def test_nothing_is_overwritten_unasked(run: Path, tmp_path: Path) -> None:
    settings = ConvertSettings(subject=run, to="timm")
    folder = convert(settings).folder
    with pytest.raises(ValueError, match="exists; name another folder, or replace it with --overwrite"):
        convert(settings)
    (folder / "stale").write_text("of the first")
    convert(replace(settings, overwrite=True, to="transformers", output=folder))
    assert not (folder / "stale").exists() and "model_type" in json.loads((folder / "config.json").read_text())
    mine = tmp_path / "photos"
    mine.mkdir()
    (mine / "cat.jpg").write_bytes(b"x")
    with pytest.raises(ValueError, match=r"was not written by `openjepa convert` \(it holds no conversion.json\)"):
        convert(replace(settings, overwrite=True, output=mine))
    assert names(mine) == ["cat.jpg"]


def test_a_folder_that_cannot_be_written_to_is_named_before_the_work(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "access", lambda path, mode: not (Path(path) == tmp_path and mode & os.W_OK))
    said: list[str] = []
    with pytest.raises(ValueError, match=rf"nothing may be written into {tmp_path / 'a'}; name another --output"):
        convert(ConvertSettings(subject=run, to="timm", output=tmp_path / "a" / "b"), said.append)
    assert said == [] and not (tmp_path / "a").exists()


def test_an_encoder_that_the_format_cannot_hold(tmp_path: Path) -> None:
    path = written(tmp_path / "given", "safetensors", networks(CONFIGS["layer scale"]))
    with pytest.raises(ValueError, match=r"has layer scale, which .* use --to safetensors or --to timm or --to onnx"):
        convert(ConvertSettings(subject=path, to="transformers", output=tmp_path / "out"))
    with pytest.raises(ValueError, match="has layer scale and a class token and learned positions"):
        convert(ConvertSettings(subject=path, to="official", output=tmp_path / "out"))
    assert not (tmp_path / "out").exists()


def test_files_that_cannot_be_read_leave_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    mark = tmp_path / "executed"
    evil, cut, half = tmp_path / "evil.pth", tmp_path / "cut.safetensors", tmp_path / "half"
    torch.save({"encoder": Malicious(mark)}, evil)
    source = written(tmp_path / "given", "safetensors", networks(CONFIG))
    cut.write_bytes((source / "model.safetensors").read_bytes()[:5000])
    half.mkdir()
    (half / "config.json").write_text((source / "config.json").read_text())
    foreign = saved(tmp_path / "resnet.pth", {"conv1.weight": torch.ones(64, 3, 7, 7)})
    before = names(tmp_path)
    for path, message in (
        (evil, "openjepa executes nothing"),
        (cut, "is damaged or cut off"),
        (half, "it is not there; export the network again"),
        (foreign, "is of no known format"),
        (tmp_path / "absent.pth", "does not exist"),
    ):
        with pytest.raises(ValueError, match=message):
            convert(ConvertSettings(subject=path, to="transformers", output=tmp_path / "deep" / "er" / "out"))
        assert names(tmp_path) == before and not mark.exists() and not (tmp_path / "deep").exists()


# ------------------------------------------------------------------------------------------- what is written is checked


@pytest.mark.parametrize("to", OTHERS)
def test_weights_that_come_back_changed_are_noticed(to: str, run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A bit in the file of one weight: the folder does not appear."""
    write = module._written

    def spoiled(folder: Path, to: str, given: Networks, dtype: str) -> list[str]:
        changed = networks(CONFIG)
        with torch.no_grad():
            changed.encoder.blocks[1].mlp.fc2.bias[3] += 1e-6  # type: ignore[union-attr,operator,index]
        return write(folder, to, replace(given, encoder=changed.encoder), dtype)

    monkeypatch.setattr(module, "_written", spoiled)
    with pytest.raises(ValueError, match=r"weights came back changed.*nothing was written"):
        convert(ConvertSettings(subject=run, to=to))  # type: ignore[arg-type]
    assert not Path(f"mine-{to}").exists() and [path.name for path in Path.cwd().iterdir()] == ["runs"]


def test_outputs_that_differ_are_noticed(tmp_path: Path) -> None:
    """Equal weights in another network: the LayerNorm epsilon of config.json is not the encoder's."""
    given = replace(networks(CONFIG), context=None, predictor=None)
    path = written(tmp_path / "out", "transformers", given)
    (check,) = verify(path, "transformers", given)
    assert check.difference == 0
    settings = json.loads((path / "config.json").read_text())
    (path / "config.json").write_text(json.dumps(settings | {"layer_norm_eps": 1e-2}))
    with pytest.raises(ValueError, match=r"differ by up to .*, more than 2e-05; nothing was written"):
        verify(path, "transformers", given)


def test_another_pooling_is_noticed(tmp_path: Path) -> None:
    given = replace(networks(CONFIGS["class token"]), context=None, predictor=None)
    path = written(tmp_path / "out", "transformers", given)
    settings = json.loads((path / "config.json").read_text())
    settings["openjepa"]["pooling"] = "class_token"
    (path / "config.json").write_text(json.dumps(settings))
    with pytest.raises(ValueError, match=r"features .* differ by up to"):
        verify(path, "transformers", given)


def test_two_sizes_are_compared() -> None:
    assert sizes_of(CONFIG) == [(16, 16), (8, 12)] and sizes_of(replace(CONFIG, image_size=(4, 4))) == [(4, 4), (4, 8)]
    for side in range(4, 60, 4):
        first, second = sizes_of(replace(CONFIG, image_size=(side, side)))
        assert first != second and second[0] != second[1]


# ------------------------------------------------------------------------------------------------------ the command line


def test_the_command(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command([str(run), "--to", "transformers"], "openjepa convert")
    said = capsys.readouterr()
    assert "-> mine-transformers" in said.out and "model.safetensors" in said.out and "are equal" in said.out
    assert 'IJepaModel.from_pretrained("mine-transformers")' in said.out and "reading" in said.err


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--to", "tim"], "--to tim does not exist: .*timm"),
        ([], "needs --to with a format: safetensors, transformers"),
        (["--to", "timm", "--ouput", "x"], "unknown option --ouput: .*--output"),
    ],
)
def test_mistakes_on_the_command_line(argv: list[str], message: str, run: Path) -> None:
    with pytest.raises(ValueError, match=message):
        command([str(run), *argv], "openjepa convert")


def test_mistaken_subjects_on_the_command_line(run: Path) -> None:
    with pytest.raises(ValueError, match="needs a run folder, an encoder folder or a file"):
        command(["--to", "timm"], "openjepa convert")
    with pytest.raises(ValueError, match="did you mean 'mine'"):
        command([str(run.parent / "mien"), "--to", "timm"], "openjepa convert")


def test_a_file_without_a_class_token_beside_one_with(tmp_path: Path) -> None:
    """A DINO-like backbone, whose format is only read, becomes a ViTModel."""
    path = saved(tmp_path / "dino.pth", weights(True, "learned"))
    folder = convert(ConvertSettings(subject=path, to="transformers", output=tmp_path / "out", heads=3)).folder
    loaded = load_any(folder)
    assert loaded.config == replace(TOKEN, positions="learned") and "ViTModel" in loaded.what
    assert "add_pooling_layer=False" in (folder / "README.md").read_text()
