"""Commands refuse what cannot work before anything is loaded, measured or written."""

import re
from pathlib import Path

import pytest

from openjepa.cli import main
from openjepa.commands.bench import bench_energy
from openjepa.commands.data import data_masks
from openjepa.commands.evaluate import evaluate
from openjepa.commands.visualize import visualize
from openjepa.config import save_yaml
from openjepa.recipes import load_recipe


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
    with pytest.raises(ValueError, match=r"masks.strategy=none has nothing to show: use one of multiblock, random_patches, bl"):
        data_masks(["--masks.strategy", "none", "--output", str(tmp_path / "m.png")], "openjepa data masks")
    assert not list(tmp_path.iterdir())


def test_the_mode_beside_the_chosen_masks_warns_of_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = tmp_path / "m.png"
    options = ["--image-size", "96", "--patch-size", "12", "--masks.mode", "official", "--masks.min-keep", "3"]
    main(["data", "masks", "--output", str(output), *options])
    assert capsys.readouterr().err == "" and output.read_bytes().startswith(b"\x89PNG")
