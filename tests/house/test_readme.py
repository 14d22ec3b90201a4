"""Every command of the README and of the pages is right: marked blocks are run on generated images, the others are parsed.

Their Python examples are run by test_docs_examples.py.
"""

import re
import shlex
from pathlib import Path

import pytest

import openjepa
from docs.generate import pages
from openjepa.checks import check
from openjepa.cli import COMMANDS, main
from openjepa.commands.evaluate import parse_evaluate
from openjepa.commands.experiments.launch import launch_slurm
from openjepa.commands.train import parse_train
from openjepa.config import save_yaml
from openjepa.recipes import load_recipe
from tests.helpers.images import write_folder

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()
BLOCK = re.compile(r"(<!-- runnable -->\n)?```bash\n(.*?)```", re.DOTALL)
BLOCKS = {page: BLOCK.findall((ROOT / page).read_text()) for page in pages()}
RUNNABLE = [page for page, blocks in BLOCKS.items() if any(mark for mark, _ in blocks)]
LINES = [line.split(" # ")[0].strip() for blocks in BLOCKS.values() for _, text in blocks for line in text.splitlines() if line]
COMMAND_LINES = [line for line in dict.fromkeys(LINES) if line.startswith("openjepa ")]
# What makes a recipe small enough for a test; everything else of the commands stays as written.
SMALL = {
    "train": "--model.size test --method.predictor-width 24 --method.predictor-depth 1 --optim.batch-size 8 --system.workers 0"
    " --optim.total-steps 3 --optim.warmup-steps 1 --monitor.images 8 --system.progress none --run.device cpu",
    "evaluate": "--baselines untrained --workers 0 --device cpu",
    "visualize": "--num-images 2 --device cpu",
}


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home folder, which is also the working folder."""
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_something_is_found() -> None:
    assert RUNNABLE == ["README.md", "docs/train.md"]
    assert len(COMMAND_LINES) > 40


def test_runnable_blocks_run(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The commands of the page; those of the README are among them."""
    write_folder(home / "photos", 40, size=72)
    lines = {page: [line for mark, text in BLOCKS[page] if mark for line in text.splitlines()] for page in RUNNABLE}
    assert set(lines["README.md"]) <= set(lines["docs/train.md"])
    for line in lines["docs/train.md"]:
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


@pytest.mark.parametrize("line", COMMAND_LINES)
def test_every_command_parses(line: str, home: Path) -> None:
    for run in ("runs/cpu-64-default-photos", "runs/mine"):
        (home / run).mkdir(parents=True)
        save_yaml(load_recipe("cpu-64"), home / run / "config.yaml")
    words = shlex.split(line)[1:]
    name = next(name for name in COMMANDS if words[: len(name.split())] == name.split())
    if name == "train":
        config, _ = parse_train(words[1:], "openjepa train", "")
        check(config) if "--config" not in words else None
    elif name == "evaluate":
        parse_evaluate(words[1:], "openjepa evaluate", "")
    elif name == "launch slurm":
        launch_slurm([*words[2:], "--print"], "openjepa launch slurm")


def test_make_targets_exist() -> None:
    makefile = (ROOT / "Makefile").read_text()
    targets = {line.split()[1] for line in LINES if line.startswith("make ")}
    assert targets >= {"quickstart", "test"}
    assert all(re.search(f"^{target}:", makefile, re.MULTILINE) for target in targets)


def test_torch_is_pinned_as_in_the_constraints() -> None:
    pinned = re.search(r"^torch==(\S+)$", (ROOT / "constraints.txt").read_text(), re.MULTILINE)
    assert pinned and f"torch=={pinned.group(1)} --index-url" in README


def test_the_version_is_one() -> None:
    assert f'version = "{openjepa.__version__}"' in (ROOT / "pyproject.toml").read_text()
