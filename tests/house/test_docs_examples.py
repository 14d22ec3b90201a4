"""Every Python example of the README, docs/python.md and docs/search.md runs, and its arrays have the shapes that it says.

The examples of a page are one program: each block goes on where the last one ended. They find a tiny run of I-JEPA under every
name that they load, and generated images. A comment `# [2, D]` behind an assignment is checked.
"""

import ast
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import openjepa
from openjepa.recipes import load_recipe
from openjepa.settings.methods import IJepaSettings
from openjepa.settings.run import RunConfig
from tests.helpers.images import shape_image, write_folder
from tests.helpers.tiny_encoder import write_ijepa

ROOT = Path(__file__).parents[2]
BLOCK = re.compile(r"^```python\n(.*?)^```", re.DOTALL | re.MULTILINE)
SHAPE = re.compile(r"^\s*(\w+) = .*  # \[([^\]]*)\]")
SUBJECT = re.compile(r"""["']((?:runs|facebook)/[\w/.-]+)["']""")
PAGES = {name: BLOCK.findall((ROOT / name).read_text()) for name in ("README.md", "docs/python.md", "docs/search.md")}
WIDTH = 48


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working folder of a user: photos, a table of features, and runs of every name that occurs."""
    monkeypatch.chdir(tmp_path)
    settings = IJepaSettings(predictor_width=24, predictor_depth=1, export_context_encoder=True)
    for subject in {name for blocks in PAGES.values() for block in blocks for name in SUBJECT.findall(block)}:
        write_ijepa(tmp_path / subject, settings)
    np.save(tmp_path / "photos.npy", np.random.default_rng(0).normal(size=(12, WIDTH)).astype(np.float16))
    for name in ("a.jpg", "b.jpg", "cat.jpg"):
        shape_image(len(name), 90).crop((0, 0, 90, 60)).save(tmp_path / name)
    write_folder(tmp_path / "photos", 12, size=40)
    monkeypatch.setattr(openjepa, "load_recipe", small_recipe, raising=False)
    return tmp_path


def small_recipe(name: str, preset: str | None = None) -> RunConfig:
    """A recipe with a tiny model, and as few steps and images as there are."""
    config = load_recipe(name, preset)
    return replace(
        config,
        model=replace(config.model, size="test"),
        method=replace(config.method, predictor_width=24, predictor_depth=1),  # type: ignore[call-arg]
        optim=replace(config.optim, batch_size=4, total_steps=3, warmup_steps=1),
        monitor=replace(config.monitor, images=8),
        system=replace(config.system, workers=0, progress="none"),
    )


def expected_shape(words: str, known: dict[str, Any]) -> list[int | None]:
    """Numbers as they are, D as the width, names as their values in the example; other letters are any number."""
    values = [word.strip() for word in words.split(",") if word.strip()]
    named = {"D": WIDTH} | {name: value for name, value in known.items() if isinstance(value, int)}
    return [int(word) if word.isdecimal() else named.get(word) for word in values]


def test_shapes_are_read_as_meant() -> None:
    assert expected_shape("2, D, rows, H", {"rows": 4}) == [2, WIDTH, 4, None]
    assert expected_shape("", {}) == []
    assert run_and_check("import torch\nx = torch.ones(2, 48)  # [2, D]\nx = x.T  # [D, 2]", {}) == 2
    with pytest.raises(AssertionError, match=r"but it is \[2\]"):
        run_and_check("import torch\nx = torch.ones(2)  # [3]", {})
    assert SHAPE.match("x = f([1], 2)  # [2, D]").groups() == ("x", "2, D")  # type: ignore[union-attr]


def run_and_check(block: str, scope: dict[str, Any]) -> int:
    """Runs a block statement by statement, and compares each tensor with the shape behind it; how many there were."""
    checked = 0
    for statement in ast.parse(block).body:
        exec(compile(ast.Module([statement], []), "example", "exec"), scope)
        for line in block.splitlines()[statement.lineno - 1 : statement.end_lineno]:
            if not (found := SHAPE.match(line)):
                continue
            value, expected = scope[found.group(1)], expected_shape(found.group(2), scope)
            assert isinstance(value, torch.Tensor | np.ndarray), line
            fits = [want in (None, side) for side, want in zip(value.shape, expected, strict=False)]
            assert len(value.shape) == len(expected) and all(fits), f"{line}, but it is {list(value.shape)}"
            checked += 1
    return checked


@pytest.mark.parametrize("page", PAGES)
def test_examples_run(page: str, home: Path) -> None:
    assert PAGES[page], "no example found"
    scope: dict[str, Any] = {"__name__": "example"}
    checked = sum(run_and_check(block, scope) for block in PAGES[page])
    assert checked >= (16 if page == "docs/python.md" else 1)
    if page == "docs/python.md":
        assert (home / "similarity.png").stat().st_size > 100 and (home / "tuned" / "predictor").is_dir()
        assert scope["run"] == Path("runs/photos") and list((home / "runs/photos/eval").glob("classification*.json"))
