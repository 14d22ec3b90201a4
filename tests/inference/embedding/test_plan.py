"""Mistakes in a call of openjepa embed: one message that names the setting, its value and the fix; nothing is left behind."""

import errno
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from openjepa.cli import main
from openjepa.inference.embedding.parts import PartWriter
from openjepa.inference.embedding.table import open_table
from tests.helpers.embedding import embed, save_encoder
from tests.helpers.images import write_folder


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_encoder(tmp_path_factory.mktemp("encoder"))


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_folder(tmp_path_factory.mktemp("images"), 12, classes=False)


def message(capsys: pytest.CaptureFixture[str], *words: object) -> str:
    """What the command says before it exits with 2."""
    with pytest.raises(SystemExit) as caught:
        main(["embed", *map(str, words)])
    assert caught.value.code == 2
    return capsys.readouterr().err


def run(encoder: Path, images: Path, output: Path, *more: str) -> None:
    main(
        ["embed", str(encoder), "--data.path", str(images), "--output", str(output), "--device", "cpu", "--threads", "1", *more]
    )


# ------------------------------------------------------------------------------------------------------- before loading


def test_the_help_shows_examples_without_torch(capsys: pytest.CaptureFixture[str]) -> None:
    code = "import sys\nfrom openjepa.cli import main\ntry: main(['embed', '--help'])\nexcept SystemExit: "
    code += "print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.endswith("False\n") and "torchrun --nproc-per-node" in done.stdout and "--features pooled" in done.stdout


@pytest.mark.parametrize(
    ("output", "said"),
    [
        ("features.npz", "must end in .npy or .parquet: did you mean '.npy'?"),
        ("features", "must end in .npy or .parquet: give it one, e.g. features.npy"),
        ("missing/features.npy", "there is no folder"),
        ("folder.npy", "is a folder: name a file"),
    ],
)
def test_outputs_that_cannot_be(
    output: str, said: str, encoder: Path, images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "folder.npy").mkdir()
    assert said in message(capsys, encoder, "--data.path", images, "--output", tmp_path / output)
    assert [path.name for path in tmp_path.iterdir()] == ["folder.npy"]


def test_folders_that_may_not_be_written_to(
    encoder: Path, images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "access", lambda *_: False)
    said = message(capsys, encoder, "--data.path", images, "--output", tmp_path / "x.npy")
    assert f"nothing may be written into {tmp_path}" in said


@pytest.mark.parametrize("name", ["x.npy", "x.csv", "x.json"])
def test_files_of_others_are_never_replaced(
    name: str, encoder: Path, images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / name).write_text("mine")
    said = message(capsys, encoder, "--data.path", images, "--output", tmp_path / "x.npy", "--again")
    assert f"would replace {tmp_path / name}, which openjepa embed has not written" in said
    assert (tmp_path / name).read_text() == "mine" and len(list(tmp_path.iterdir())) == 1


def test_a_parquet_file_of_others_is_never_replaced(
    encoder: Path, images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pyarrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    parquet.write_table(pyarrow.table({"mine": [1]}), tmp_path / "x.parquet")
    (tmp_path / "y.parquet").write_text("mine")
    for name in ("x.parquet", "y.parquet"):
        for again in ([], ["--again"]):
            before = (tmp_path / name).read_bytes()
            said = message(capsys, encoder, "--data.path", images, "--output", tmp_path / name, *again)
            assert f"{tmp_path / name} is no file of features that openjepa embed wrote" in said
            assert (tmp_path / name).read_bytes() == before
    assert len(list(tmp_path.iterdir())) == 2


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--part-images", "0"], "--part-images 0 must be at least 1"),
        (["--batch-size", "0"], "--batch-size 0 must be at least 1"),
        (["--max-skipped", "2"], "--max-skipped 2.0 must be between 0 and 1"),
        (["--workers", "-1"], "--workers -1 must be at least 0"),
        (["--dtyp", "float32"], "unknown option --dtyp: did you mean '--dtype'?"),
        (["--data.test-fractoin", "0"], "did you mean '--data.test-fraction'?"),
        (["--data.source", "foldr"], "--data.source foldr does not exist: did you mean 'folder'?"),
        (["--device", "cuda:77"], "--device"),
        (["--image-size", "36"], "the patch size 8 of the encoder does not divide --image-size 36x36: use --image-size 32"),
        (["--image-size", "4"], "does not divide --image-size 4x4: use --image-size 8"),
        (["--pooling", "class_token"], "--pooling class_token: this encoder has no class token"),
        (["--heads", "7"], "heads=7"),
        (["--encoder", "context"], "holds one encoder only"),
        (["--splits", "test"], "splits='test': the images have no test split"),
    ],
)
def test_settings_that_cannot_work(
    words: list[str], said: str, encoder: Path, images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert said in message(capsys, encoder, "--data.path", images, "--output", tmp_path / "x.npy", *words)
    assert not list(tmp_path.iterdir())


# -------------------------------------------------------------------------------------------------- subject and images


def test_subjects_that_are_none(encoder: Path, images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "needs a run folder or an encoder (see" in message(capsys, "--data.path", images)
    assert "does not exist" in message(capsys, encoder.parent / "encodr", "--data.path", images)
    (tmp_path / "text.pth").write_text("no weights")
    assert "text.pth" in message(capsys, tmp_path / "text.pth", "--data.path", images, "--output", tmp_path / "x.npy")
    assert [path.name for path in tmp_path.iterdir()] == ["text.pth"]


def test_images_that_are_none(encoder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = ("--output", tmp_path / "x.npy")
    empty, unreadable = tmp_path / "empty", tmp_path / "unreadable"
    for folder in (empty, unreadable):
        folder.mkdir()
    (unreadable / "a.jpg").write_text("no image")
    assert "is no run, so the images must be named: give --data.path FOLDER" in message(capsys, encoder, *output)
    assert "holds no images (0 other files)" in message(capsys, encoder, "--data.path", empty, *output)
    assert "none of the first 1 images" in message(capsys, encoder, "--data.path", unreadable, *output)
    assert "did you mean" in message(capsys, encoder, "--data.path", tmp_path / "emty", *output)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["empty", "unreadable"]


# ------------------------------------------------------------------------------------------------------------ the disk


def test_a_full_disk_leaves_whole_parts_only(
    encoder: Path, images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    written = PartWriter.append
    calls: list[int] = []

    def full(writer: PartWriter, rows: Any) -> None:
        calls.append(len(rows))
        if len(calls) == 4:  # the second batch of the second part
            writer._file.write(b"a part of a row")
            raise OSError(errno.ENOSPC, "No space left on device")
        written(writer, rows)

    monkeypatch.setattr(PartWriter, "append", full)
    words = [encoder, "--data.path", images, "--output", tmp_path / "x.npy", "--part-images", 5, "--batch-size", 3]
    assert "No space left on device" in message(capsys, *words)
    assert sorted(path.name for path in (tmp_path / "x.npy.parts").iterdir() if path.is_file()) == [
        "000000.features",
        "000000.json",
        "plan.json",
    ]
    assert [path.name for path in tmp_path.iterdir()] == ["x.npy.parts"]
    monkeypatch.undo()
    main([str(word) for word in ("embed", *words)])
    assert len(open_table(tmp_path / "x.npy")) == 12


def test_a_full_disk_while_the_table_is_written_keeps_the_parts_and_no_half_table(
    encoder: Path, images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    for ending, place in (
        ("npy", "openjepa.inference.embedding.parts._write_images"),
        ("parquet", "pyarrow.parquet.ParquetWriter"),
    ):
        output = tmp_path / f"x.{ending}"
        monkeypatch.setattr(place, full)
        with pytest.raises(OSError, match="No space left"):
            embed(encoder, images, output)
        assert [path.name for path in tmp_path.glob(f"*{ending}*")] == [f"x.{ending}.parts"]
        monkeypatch.undo()
        assert embed(encoder, images, output).num_images == 0 and len(open_table(output)) == 12


# ------------------------------------------------------------------------------------------------------------- summary


def test_the_command_says_what_it_has_done_and_what_comes_next(
    encoder: Path, images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "x.npy"
    run(encoder, images, output)
    said = " ".join(capsys.readouterr().out.split())
    for words in (
        "images 12 ",
        "24 numbers an image, the average of the patches; float16",
        "images/s",
        "next: openjepa search",
    ):
        assert words in said
    run(encoder, images, output)
    assert "is there already, made of the same weights, settings and images" in capsys.readouterr().out


def test_settings_of_training_are_said_to_have_no_effect(
    encoder: Path, images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run(encoder, images, tmp_path / "x.npy", "--data.image-size", "64", "--data.no-horizontal-flip", "--data.max-images", "5")
    notes = [line for line in capsys.readouterr().err.splitlines() if line.startswith("note: ")]
    assert notes == [
        "note: data.horizontal_flip concerns training and has no effect on features",
        "note: data.image_size concerns training and has no effect on features; the size of embedded images is --image-size",
    ]
    assert len(open_table(tmp_path / "x.npy")) == 5 and open_table(tmp_path / "x.npy").manifest.size == (32, 32)


def test_tables_that_are_damaged_are_refused(encoder: Path, images: Path, tmp_path: Path) -> None:
    output = tmp_path / "x.npy"
    embed(encoder, images, output)
    whole = output.read_bytes()
    output.write_bytes(whole[:-8])
    with pytest.raises(ValueError, match="damaged or cut off"):
        open_table(output)
    np.save(output, np.zeros((3, 24), np.float32))
    with pytest.raises(ValueError, match=r"holds float32 \[3, 24\], but x\.csv and x\.json describe float32 \[12, 24\]"):
        open_table(output)
    output.write_bytes(whole)
    listed = output.with_suffix(".csv").read_text()
    output.with_suffix(".csv").write_text(listed[: listed.rindex(",train")])
    with pytest.raises(ValueError, match=r"x\.csv is damaged or cut off"):
        open_table(output)
    output.with_suffix(".csv").write_text(listed)
    described = json.loads(output.with_suffix(".json").read_text())
    output.with_suffix(".json").write_text(json.dumps(described | {"version": 2}))
    with pytest.raises(ValueError, match="version 2; this openjepa reads version 1"):
        open_table(output)
