"""Every command of the README is right: marked blocks are run on generated images, the others are parsed.

Its Python examples are run by test_docs_examples.py.
"""

import re
import shlex
from pathlib import Path

import pytest

import openjepa
from openjepa.checks import check
from openjepa.cli import COMMANDS, main
from openjepa.commands.evaluate import parse_evaluate
from openjepa.commands.train import parse_train
from openjepa.config import save_yaml
from openjepa.recipes import RECIPES, load_recipe
from tests.helpers.images import write_folder

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()
BLOCK = re.compile(r"(<!-- runnable -->\n)?```bash\n(.*?)```", re.DOTALL)
BLOCKS = [(bool(mark), text) for mark, text in BLOCK.findall(README)]
COMMAND_LINES = [line.split("#")[0].strip() for _, text in BLOCKS for line in text.splitlines() if line]
# What makes a recipe small enough for a test; everything else of the commands stays as written.
SMALL = {
    "train": "--model.size test --method.predictor-width 24 --method.predictor-depth 1 --optim.batch-size 8 --system.workers 0"
    " --optim.total-steps 3 --optim.warmup-steps 1 --monitor.images 8 --system.progress none --run.device cpu",
    "evaluate": "--baselines untrained --workers 0 --device cpu",
    "visualize": "--num-images 2 --device cpu",
}


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home folder with photos, which is also the working folder."""
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    write_folder(tmp_path / "photos", 40, size=72)
    return tmp_path


def test_something_is_found() -> None:
    assert sum(runnable for runnable, _ in BLOCKS) >= 1
    assert len(COMMAND_LINES) > 10


def test_runnable_blocks_run(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for text in (text for runnable, text in BLOCKS if runnable):
        for line in text.splitlines():
            words = shlex.split(line)
            main([*words[1:], *shlex.split(SMALL.get(words[1], ""))])
    run = home / "runs" / "cpu-64-default-photos"
    assert (run / "report.html").stat().st_size > 10_000
    assert list((run / "eval").glob("*.json"))
    assert (home / "neighbors.png").exists() and (home / "cleaning" / "outliers.csv").exists()
    assert (home / "photos-encoder" / "config.json").exists()
    assert "openjepa evaluate runs/cpu-64-default-photos" in capsys.readouterr().out
    images = sorted((home / "photos").rglob("*.png"))[:2]
    assert tuple(openjepa.embed(run, images).shape) == (2, 48)


@pytest.mark.parametrize("line", [line for line in COMMAND_LINES if line.startswith("openjepa ")])
def test_every_command_parses(line: str, home: Path) -> None:
    run = home / "runs" / "cpu-64-default-photos"
    run.mkdir(parents=True)
    save_yaml(load_recipe("cpu-64"), run / "config.yaml")
    words = shlex.split(line)[1:]
    name = next(name for name in COMMANDS if words[: len(name.split())] == name.split())
    if name == "train":
        config, _ = parse_train(words[1:], "openjepa train", "")
        check(config) if "--config" not in words else None
    elif name == "evaluate":
        parse_evaluate(words[1:], "openjepa evaluate", "")


def test_make_targets_exist() -> None:
    makefile = (ROOT / "Makefile").read_text()
    for line in COMMAND_LINES:
        if line.startswith("make "):
            assert re.search(rf"^{line.split()[1]}:", makefile, re.MULTILINE)


def test_every_recipe_is_in_the_table() -> None:
    rows = [re.findall(r"`([\w-]+)`", line.split("|")[1]) for line in README.splitlines() if line.startswith("| `")]
    named = {(row[0].split("-")[0] if name.startswith("-") else "") + name for row in rows for name in row}
    assert set(RECIPES) <= named


def test_links_to_files_exist() -> None:
    links = re.findall(r"\]\(((?:docs|benchmarks)[^)#]*)\)", README)
    assert links
    missing = [link for link in links if not (ROOT / link).exists()]
    assert not missing


def test_torch_is_pinned_as_in_the_constraints() -> None:
    pinned = re.search(r"^torch==(\S+)$", (ROOT / "constraints.txt").read_text(), re.MULTILINE)
    assert pinned and f"torch=={pinned.group(1)} --index-url" in README


def test_the_version_is_one() -> None:
    assert f'version = "{openjepa.__version__}"' in (ROOT / "pyproject.toml").read_text()
