"""Commands that are printed, recorded or shown on a page can be pasted into a shell, whatever is in a path."""

import ast
import html
import json
import re
import shlex
import shutil
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from openjepa.commands.embed import _print as print_embedded
from openjepa.commands.parsing.arguments import check_output_file
from openjepa.experiments.energies import measure_energy
from openjepa.inference.embedding.embedding_run import Embedded
from openjepa.inference.embedding.table import check_output
from openjepa.report import write_report
from openjepa.settings.experiments import EnergyBench
from openjepa.system.shell import command, this_command
from openjepa.visualization import visualize_run
from openjepa.weights.convert.card import loading
from tests.helpers.example_run import write_run
from tests.helpers.feature_tables import CONFIG, plain_manifest, write_table

PLACES = ["my photos", "tables [2020]", "it's", 'say "x"', "$HOME & co;", "a  b", "back\\slash", "*", "(x)", "#1"]


@pytest.fixture(params=PLACES)
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    folder = tmp_path / str(request.param)
    folder.mkdir()
    return folder


def test_words_come_back(place: Path) -> None:
    assert shlex.split(command("openjepa", "train", "--data.path", place, "--x", "")) == [
        *("openjepa", "train", "--data.path", str(place), "--x", "")
    ]
    assert command("openjepa", "evaluate", "runs/cpu-64") == "openjepa evaluate runs/cpu-64"


@pytest.mark.parametrize(
    ("program", "words"), [("/usr/bin/openjepa", ["openjepa"]), ("/x/openjepa/__main__.py", ["python", "-m", "openjepa"])]
)
def test_the_recorded_command(program: str, words: list[str], place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", [program, "train", "cpu-64", "--data.path", str(place)])
    assert shlex.split(this_command()) == [*words, "train", "cpu-64", "--data.path", str(place)]


def test_the_next_command_of_embed(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    table = write_table(place / "x.npy", np.eye(2, 4, dtype=np.float32))
    print_embedded(Embedded(output=table, status="written", manifest=plain_manifest(np.eye(2, 4))))
    line = next(line for line in capsys.readouterr().out.splitlines() if line.startswith("next: "))
    assert shlex.split(line)[1:] == ["openjepa", "search", str(table), "--image", "IMAGE"]


def test_hints_of_refusals(place: Path) -> None:
    def words(call: Any, *arguments: object) -> list[str]:
        with pytest.raises(ValueError) as refused:
            call(*arguments)
        text = str(refused.value)
        found = re.search(r"e\.g\. (--output .*)$|\((openjepa .*)\)$", text, re.DOTALL)
        assert found, text
        return shlex.split(found.group(1) or found.group(2))

    assert words(check_output_file, place, ".html") == ["--output", str(place / "openjepa.html")]
    assert words(check_output_file, place / "x.jpg", ".png", False) == ["--output", str(place / "x.png")]
    assert words(check_output, _folder(place / "x.npy")) == ["--output", str(place / "x.npy" / "features.npy")]
    write_run(place / "run")
    shutil.rmtree(place / "run" / "encoder")
    training = ["openjepa", "train", "--config", str(place / "run" / "config.yaml")]
    assert words(visualize_run, place / "run", 1, 0, "cpu") == training
    assert words(measure_energy, replace(EnergyBench(), run=place / "run")) == training


def _folder(path: Path) -> Path:
    path.mkdir()
    return path


def test_commands_on_the_page_of_a_run(place: Path) -> None:
    run = write_run(place / "run")
    given = ["openjepa", "train", "cpu-64", "--data.path", str(place)]
    environment = json.loads((run / "environment.json").read_text())
    (run / "environment.json").write_text(json.dumps(environment | {"command": shlex.join(given)}))
    page = write_report([run]).read_text()
    codes = re.findall(r'<code class="shell">(.*?)</code>', page, re.DOTALL)
    found = [shlex.split(html.unescape(re.sub(r"<[^>]*>", "", code))) for code in codes]
    assert given in found and ["openjepa", "evaluate", str(run)] in found and ["openjepa", "visualize", str(run)] in found


@pytest.mark.parametrize("to", ["transformers", "timm", "onnx", "official"])
def test_code_that_loads_a_converted_folder(to: str, place: Path) -> None:
    config = {**vars(CONFIG), "image_size": (32, 32)}
    for library, code in loading(to, str(place), config, "ViTModel"):
        strings = {node.value for node in ast.walk(ast.parse(code)) if isinstance(node, ast.Constant)}
        endings = ("", "/model.onnx", "/checkpoint.pth.tar")
        named = {f"local-dir:{place}", *(f"{place}{ending}" for ending in endings)}
        assert strings & named, (library, code)
