"""Commands refuse what cannot work before anything is loaded, measured or written."""

import re
from pathlib import Path

import pytest

from openjepa.cli import main
from openjepa.commands.data import data_masks
from openjepa.commands.evaluate import evaluate
from openjepa.commands.experiments.bench import bench_energy
from openjepa.commands.visualize import visualize
from openjepa.config import save_yaml
from openjepa.recipes import load_recipe
from tests.helpers.images import write_folder


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    """Two run folders, and a folder that is none."""
    for name in ("cpu-64-default-photos", "quickstart"):
        (tmp_path / name).mkdir()
        save_yaml(load_recipe("quickstart"), tmp_path / name / "config.yaml")
    (tmp_path / "cpu-64-default-empty").mkdir()
    return tmp_path


@pytest.mark.parametrize("command", [evaluate, visualize, bench_energy])
@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("cpu-64-default-foto", "cpu-64-default-foto does not exist: did you mean 'cpu-64-default-photos'?"),
        ("zzz", "zzz does not exist: valid: cpu-64-default-photos, quickstart"),
        ("cpu-64-default-empty", "cpu-64-default-empty holds no config.yaml"),
        ("", " or config.json: valid: cpu-64-default-photos, quickstart"),
        ("zzz/run", "zzz/run does not exist; "),
    ],
)
def test_a_folder_that_is_no_run_is_named(runs: Path, command: object, name: str, message: str) -> None:
    if command is not evaluate:
        message = message.replace(" or config.json", "")
    with pytest.raises(ValueError, match=re.escape(message)):
        command([str(runs / name)], "openjepa")  # type: ignore[operator]


@pytest.mark.parametrize(
    ("argv", "fix"),
    [
        (
            ["report", "run", "--output", "folder"],
            "--output folder is a folder: name a file, e.g. --output folder/openjepa.h",
        ),
        (["report", "run", "--output", "missing/x.html"], "--output missing/x.html: there is no folder missing"),
        (["data", "masks", "--output", "m.jpg"], "--output m.jpg must end in .png, e.g. --output m.png"),
        (["data", "masks", "--output", "folder"], "name a file, e.g. --output folder/openjepa.png"),
        (["quickstart", "--output", "file"], "--output file: file is a file, but a folder is needed"),
        (["quickstart", "--output", "file/runs"], "--output file/runs: file is a file, but a folder is needed"),
        (["data", "scenes", "--output", "file"], "--output file: file is a file, but a folder is needed"),
        (["bench", "step", "--output", "missing/x.json"], "--output missing/x.json: there is no folder missing"),
    ],
)
def test_outputs_that_cannot_be_written_are_refused_first(
    argv: list[str], fix: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").touch()
    with pytest.raises(SystemExit) as stopped:
        main(argv)
    assert stopped.value.code == 2 and fix in capsys.readouterr().err
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["file", "folder"]


def test_no_masks_are_not_drawn(tmp_path: Path) -> None:
    with pytest.raises(
        ValueError, match=r"masks.strategy=none has nothing to show: use one of multiblock, .*random_patches, bl"
    ):
        data_masks(["--masks.strategy", "none", "--output", str(tmp_path / "m.png")], "openjepa data masks")
    assert not list(tmp_path.iterdir())


def test_the_mode_beside_the_chosen_masks_warns_of_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = tmp_path / "m.png"
    options = ["--image-size", "96", "--patch-size", "12", "--masks.mode", "official", "--masks.min-keep", "3"]
    main(["data", "masks", "--output", str(output), *options])
    assert capsys.readouterr().err == "" and output.read_bytes().startswith(b"\x89PNG")


def test_data_pack_says_what_it_did_and_refuses_other_places(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    photos, shards = write_folder(tmp_path / "photos", 12, 16), tmp_path / "shards"
    (photos / "disk" / "text.jpg").write_text("no image")
    main(["data", "pack", str(photos), "--output", str(shards), "--shard-images", "5", "--workers", "0"])
    said = capsys.readouterr()
    assert "13 images in 2 classes" in said.err
    assert said.out.splitlines() == [
        f"{shards}: 3 shards, 61.4 kB",
        "images: train 12; 2 classes",
        f"left out: 1 image (1 not an image), listed in {shards / 'left-out.csv'}",
        f"next: openjepa train RECIPE --data.source huggingface --data.path {shards}",
    ]
    main(["data", "pack", "--output", str(shards), "--verify"])
    assert capsys.readouterr().out == f"{shards}: all 3 shards are as they were packed\n"
    for words, message in (
        (["--output", str(shards)], "openjepa data pack needs a folder of images"),
        ([str(photos), "--output", "s3://bucket/shards"], "s3:/bucket/shards is no folder on a disk: pack into one, then copy"),
        ([str(photos / "disk" / "text.jpg"), "--output", str(tmp_path / "new")], "is a file: give the folder"),
        ([str(photos), "--output", str(tmp_path / "new"), "--shard-mb", "0"], "--shard-mb 0.0 must be above 0"),
    ):
        with pytest.raises(SystemExit) as ended:
            main(["data", "pack", *words])
        assert ended.value.code == 2 and message in capsys.readouterr().err
    assert not (tmp_path / "new").exists()
