"""A mistyped path never asks the Hub, whatever takes it; a name that can be no path of ours, or with hf: before it, does."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import openjepa
from openjepa import cli
from openjepa.data.tables.huggingface import open_huggingface
from openjepa.settings.sources import HuggingFaceSettings
from openjepa.system.console import absent, hub_name
from openjepa.weights.convert.origin import last_part
from openjepa.weights.formats import load_any
from tests.helpers.tiny_encoder import write_encoder


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with a run, a file of weights and folders of images."""
    monkeypatch.chdir(tmp_path)
    write_encoder(tmp_path / "runs" / "mine")
    (tmp_path / "runs" / "mine" / "config.yaml").touch()
    (tmp_path / "holiday" / "beach").mkdir(parents=True)
    (tmp_path / "weights.pth").touch()
    return tmp_path


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names that the Hub was asked for; it never answers."""
    names: list[str] = []

    def ask(name: str, *_: object, **__: object) -> Any:
        names.append(name)
        raise OSError("no network in tests")

    monkeypatch.setattr(pytest.importorskip("huggingface_hub", reason="needs huggingface_hub"), "snapshot_download", ask)
    datasets = pytest.importorskip("datasets", reason="needs datasets")
    monkeypatch.setattr(datasets, "get_dataset_split_names", ask)
    monkeypatch.setattr(datasets, "load_dataset", ask)
    return names


TYPOS = (
    "runs/typo",
    "rnus/mine",
    "run/mine",
    "Runs/mine",
    "holidays/beach",
    "holiday/baech",
    "checkpoints/last",
    "evaluations/x",
    "logs/x",
    "out/x",
    "exp/12",
    "train/cats",
    "tmp/x",
    "scratch/me",
    "mnt/disk",
    "work/x",
    "data/photos",
    "someone/encoder.pth",
    "someone/IN1K-vit.h.14-300e.pth.tar",
    "someone/model.safetensors",
    "a/b/c",
    "./facebook/ijepa_vith14_1k",
    "../facebook/ijepa",
    "~/facebook/ijepa",
    "/facebook/ijepa_vith14_1k",
    "facebook//ijepa",
    "facebook/",
    "ijepa_vith14_1k",
    "",
)
NAMES = (
    "facebook/ijepa_vith14_1k",
    "timm/vit_small_patch14_dinov2.lvd142m",
    "google/vit-base-patch16-224",
    "hustvl/yolos-tiny",
    *(f"{owner}/x" for owner in ("apple", "nvidia", "laion", "openai", "Intel", "BAAI", "mit-han-lab", "owkin", "nateraw")),
)


@pytest.mark.parametrize("name", TYPOS)
def test_paths_are_no_names(name: str, here: Path) -> None:
    assert hub_name(name) is None


@pytest.mark.parametrize("name", NAMES)
def test_names(name: str, here: Path) -> None:
    assert hub_name(name) == hub_name(Path(name)) == hub_name(f"hf:{name}") == name


def test_a_name_that_is_meant_is_asked_for_though_it_is_like_a_path(here: Path) -> None:
    assert hub_name("hf:runs/typo") == "runs/typo" and hub_name("hf:mnist", one_part=True) == "mnist"
    assert hub_name("hf:") is None
    (here / "facebook" / "x").mkdir(parents=True)
    assert hub_name("facebook/x") is None  # it is there
    assert hub_name("facebook/other") is None  # and this may be mistyped
    assert hub_name("hf:facebook/x") == "facebook/x"


def test_data_sets_may_have_one_part(here: Path) -> None:
    assert hub_name("mnist") is None and hub_name("mnist", one_part=True) == "mnist"
    for typo in ("holidy", "photos", "Holiday2", "a.b", "photos.zip"):
        assert hub_name(typo, one_part=True) is None


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("runs/mein", "did you mean 'runs/mine'?"),
        ("rnus/mine", "did you mean 'runs/mine'? (a name on the Hugging Face Hub is written hf:rnus/mine)"),
        ("rnus/other", "did you mean 'runs'? (a name on the Hugging Face Hub is written hf:rnus/other)"),
        ("holidays/beach", "did you mean 'holiday/beach'? (a name on the Hugging Face Hub is written hf:holidays/beach)"),
        ("weigths.pth", "did you mean 'weights.pth'?"),
        ("facebok/ijepa", "'.' exists and holds: holiday, runs (a name on the Hugging Face Hub is written hf:facebok/ijepa)"),
        ("holiday/x", "'holiday' exists and holds: beach (a name on the Hugging Face Hub is written hf:holiday/x)"),
        ("logs/x", "'.' exists and holds: holiday, runs"),
        ("", "'.' exists and holds: holiday, runs"),
        ("a/b/c", "'.' exists and holds: holiday, runs"),
    ],
)
def test_what_may_be_meant(name: str, words: str, here: Path) -> None:
    assert absent(name) == f"does not exist; {words}"


@pytest.mark.parametrize("option", ["--init", "--config"])
def test_train_names_the_run_that_may_be_meant(option: str, here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        cli.main(["train", option, "runs/mein"])
    assert capsys.readouterr().err == f"openjepa: {option} runs/mein does not exist; did you mean 'runs/mine'?\n"


def test_train_without_a_run_says_where_recipes_are_listed(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for words, message in (
        (["--fresh"], "which run? Give a recipe (openjepa recipes lists them), or --config FILE, or --init RUN"),
        (["--init", "weights.pth"], "--init weights.pth is no run that says its settings: give a recipe with it"),
        (["--init", "facebook/x"], "--init facebook/x is no run that says its settings: give a recipe with it"),
    ):
        with pytest.raises(SystemExit):
            cli.main(["train", *words])
        assert message in capsys.readouterr().err


# ------------------------------------------------------------------------------------------------ everywhere it is taken

DATA = ["--data.path", "holiday"]
SUBJECTS: dict[str, Callable[[str], list[str]]] = {
    "evaluate": lambda name: ["evaluate", name, *DATA],
    "embed": lambda name: ["embed", name, *DATA, "--output", "a.npy"],
    "visualize": lambda name: ["visualize", name],
    "convert": lambda name: ["convert", name, "--to", "timm"],
    "report": lambda name: ["report", name],
    "search": lambda name: ["search", f"{name}.npy", "--row", "1"],
    "bench": lambda name: ["bench", "energy", name],
    "train --init": lambda name: ["train", "cpu-64", *DATA, "--init", name],
    "train --init alone": lambda name: ["train", *DATA, "--init", name],
    "train --config": lambda name: ["train", "--config", name],
    "train --data.path": lambda name: ["train", "cpu-64", "--data.source", "huggingface", "--data.path", name],
}


@pytest.mark.parametrize("name", ["runs/typo", "runs/mein", "rnus/mine"])
@pytest.mark.parametrize("command", SUBJECTS)
def test_commands_do_not_ask_the_hub_for_a_mistyped_path(
    command: str, name: str, here: Path, asked: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as caught:
        cli.main(SUBJECTS[command](name))
    assert caught.value.code == 2 and not asked
    message = capsys.readouterr().err
    assert name in message and "Traceback" not in message
    if command not in ("report", "search"):
        assert "mine" in message.replace(name, "")


def test_python_does_not_ask_the_hub_for_a_mistyped_path(here: Path, asked: list[str]) -> None:
    calls: list[Callable[[str], Any]] = [openjepa.load, load_any, lambda name: openjepa.embed(name, [])]
    calls += [openjepa.evaluate, lambda name: open_huggingface(HuggingFaceSettings(path=name), 0)]
    for call in calls:
        with pytest.raises(ValueError, match=r"rnus/mine'? does not exist; did you mean 'runs/mine'\?"):
            call("rnus/mine")
    assert not asked


def test_names_are_asked_for_without_their_mark(here: Path, asked: list[str]) -> None:
    for name in ("facebook/x", "hf:facebook/x", "hf:runs/x"):
        with pytest.raises(ValueError, match="could not be had from the Hugging Face Hub: no network in tests"):
            openjepa.load(name)
        with pytest.raises(ValueError, match="data set on the Hub that can be reached"):
            open_huggingface(HuggingFaceSettings(path=name), 0)
    assert asked == ["facebook/x", "facebook/x", "facebook/x", "facebook/x", "runs/x", "runs/x"]


def test_what_is_published_of_names_and_of_paths(here: Path) -> None:
    assert last_part("facebook/x") == "facebook/x" and last_part("hf:runs/x") == "hf:runs/x"
    assert last_part("data/secret") == "secret" and last_part("runs/gone") == "gone"
