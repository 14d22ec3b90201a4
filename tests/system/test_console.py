"""What is printed: what a user named as it is (no markup, no emoji), times, counts, commands that a shell reads as meant."""

import ast
import html
import json
import re
import shlex
import shutil
import sys
from dataclasses import fields, replace
from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console
from rich.table import Table

from openjepa.commands.convert import _print as print_conversion
from openjepa.commands.embed import _print as print_embedded
from openjepa.commands.evaluate import print_results, print_row
from openjepa.commands.parsing.arguments import check_output_file
from openjepa.experiments.ablations.ablation_lengths import PlannedRun, Speed
from openjepa.experiments.ablations.ablation_tables import print_plan, print_tables
from openjepa.experiments.data_times import print_result
from openjepa.experiments.energies import measure_energy, print_energy
from openjepa.inference.embedding.embedding_run import Embedded
from openjepa.inference.embedding.table import check_output
from openjepa.inference.search.printing import print_answers
from openjepa.inference.search.search_run import find_neighbors
from openjepa.measures.verdicts import EnergyStatistics
from openjepa.recipes import load_recipe
from openjepa.recipes.ablations import ABLATIONS
from openjepa.records import Energy, Metric, Published, Result, SubjectResult
from openjepa.report import write_report
from openjepa.settings.experiments import EnergyBench
from openjepa.settings.inference import SearchSettings
from openjepa.system.console import Display, command, format_count, format_seconds, plain_console, progress, this_command
from openjepa.visualization import visualize_run
from openjepa.weights.convert.card import loading
from openjepa.weights.convert.conversion import Conversion
from tests.helpers.example_run import finished, write_run
from tests.helpers.feature_tables import CONFIG, plain_manifest, write_table

PACKAGE = Path(__file__).parents[2] / "openjepa"
HOSTILE = ["[/bold]", "[red]x", "[", "a]b[/]", ":smile:", "\\[x]", "[link=https://x]y"]
NAMES = [f"my {name} photos".replace("/", "-") for name in HOSTILE]  # as folders


@pytest.fixture(params=HOSTILE)
def text(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def shown(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Any:
    """What was printed since, its line breaks taken away: tables fold."""
    monkeypatch.setenv("COLUMNS", "200")
    return lambda: "".join(capsys.readouterr())


def test_only_one_place_makes_consoles_and_bars() -> None:
    makers = {path.name for path in PACKAGE.rglob("*.py") if re.search(r"(?<!\w)Console\(", path.read_text())}
    bars = {path.name for path in PACKAGE.rglob("*.py") if "rich.progress" in path.read_text()}
    assert makers == bars == {"console.py"}


def test_cells_headings_titles_and_captions(text: str) -> None:
    table = Table(text, title=text, caption=text)
    table.add_row(text)
    output = StringIO()
    plain_console(file=output, width=80).print(table, text)
    assert output.getvalue().count(text) == 5


@pytest.mark.parametrize("style", ["live", "plain"])
def test_the_display_of_a_loop(text: str, style: Any, shown: Any) -> None:
    display = Display(2, 0, style, plain_seconds=0.0)
    display.say(f"skipped: {text}")
    display.update(2, {text: text}, seconds_left=None)
    display.close()
    printed = shown()
    assert f"skipped: {text}" in printed and f"{text} {text}" in printed


@pytest.mark.parametrize("style", ["live", "none"])
def test_a_bar_shows_description_number_and_time_left(text: str, style: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    output = StringIO()
    terminal = Console(file=output, width=120, force_terminal=True, color_system=None)
    monkeypatch.setattr("openjepa.system.console.plain_console", lambda **_: terminal)
    with progress(text, 40, 10, style=style) as advance:
        advance(20)
    assert (f"{text} " in output.getvalue() and "30/40 ? left" in output.getvalue()) == (style == "live")


def test_results_of_an_evaluation(text: str, shown: Any) -> None:
    metric = Metric(0.5, 0.01, "higher", "held_out", f"head {text}")
    subjects = {"encoder": SubjectResult({f"probe {text}": metric})}
    published = (Published(method=f"M {text}", architecture=text, value=1.0, source=text, protocol="x"),)
    done = Result("t", f"Task {text}", "run", "target", "held_out", subjects, variant="v", num_test=3, published=published)
    measured = replace(done, measures={"encoder": {f"rank {text}": 2.0}}, departures=(f"departs {text}",))
    skipped = Result("s", f"Other {text}", "run", "target", "held_out", skipped=f"reason {text}")
    print_row(done)
    print_row(skipped)
    print_results([measured, skipped])
    printed = shown()
    for word in ("head", "probe", "M", "Task", "rank", "departs", "Other", "reason"):
        assert f"{word} {text}" in printed, word


def test_neighbors_of_a_search(text: str, tmp_path: Path, shown: Any) -> None:
    features = np.eye(3, 4, dtype=np.float32)
    manifest = replace(plain_manifest(features), class_names=(f"class{text}",))
    rows = [(f"{text}{number}.png".replace(",", ""), "train", number, 0) for number in range(3)]
    table = write_table(tmp_path / "features.npy", features, rows, manifest)
    print_answers(find_neighbors(SearchSettings(table=table, row=("0",), picture=False)))
    printed = shown()
    assert f"nearest to row 0: {text}0.png" in printed and f"{text}1.png" in printed and f"class{text}" in printed


def test_tables_of_an_ablation(text: str, tmp_path: Path, shown: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    results = [finished("ijepa", 0, 0.6), finished("mae", 0, 0.6, status="failed", error=f"ValueError: {text}")]
    monkeypatch.setattr("openjepa.experiments.ablations.ablation_tables.read_results", lambda output: results)
    print_tables(tmp_path / text.replace("/", "-"), "methods")
    config = load_recipe("cpu-32")
    config = replace(config, run=replace(config.run, name="x"))
    run = PlannedRun(f"row {text}", 0, ("images",), config, Speed(1.0, 1.0))
    print_plan(ABLATIONS["methods"], [run], [])
    printed = shown()
    assert f"ValueError: {text}" in printed and f"{text.replace('/', '-')}/methods.md" in printed and f"row {text}" in printed


@pytest.mark.parametrize("name", NAMES)
def test_files_of_embed_and_convert(name: str, tmp_path: Path, shown: Any) -> None:
    folder = tmp_path / name
    folder.mkdir()
    table = write_table(folder / "x.npy", np.eye(2, 4, dtype=np.float32))
    print_embedded(
        Embedded(
            output=table, status="written", manifest=plain_manifest(np.eye(2, 4)), rows_by_split={f"split {name}": 2, "b": 0}
        )
    )
    config = {**vars(CONFIG), "image_size": (32, 32)}
    print_conversion(Conversion(folder, "transformers", f"what {name}", [], [f"note {name}"], config, "ViTModel"))
    printed = shown().replace("\n", "")
    assert (
        f"{name}/x.npy" in printed.replace(" " * 4, "") and f"what {name} -> {folder}" in printed and f"note {name}" in printed
    )


def test_tables_of_the_benchmarks(text: str, shown: Any) -> None:
    print_result({"images": 3, "path": f"path {text}", "images_per_second": {text: 1.0}, "ratios": {text: 1.0}})
    numbers = EnergyStatistics(**{item.name: 1.0 for item in fields(EnergyStatistics)})
    about = {"split": f"split {text}", "verdict": f"verdict {text}", "method": text}
    print_energy(Energy(**about, images=3, group=2, step=1, untrained=numbers, trained=numbers))
    printed = " ".join(shown().split())
    assert f"path {text}" in printed and f"split {text}" in printed and f"verdict {text} (method {text}, step 1)" in printed


def test_plain_display_prints_step_time_left_and_values(capsys: pytest.CaptureFixture[str]) -> None:
    display = Display(10, 0, "plain", plain_seconds=0.0)
    display.update(4, {"loss": "0.2"}, None)
    display.update(5, {"loss": "0.1"}, 185.0)
    display.close()
    assert capsys.readouterr().err.splitlines() == ["step 4/10  ? left  loss 0.2", "step 5/10  3m05s left  loss 0.1"]


@pytest.mark.parametrize(("seconds", "text"), [(4.6, "5s"), (185, "3m05s"), (7620, "2h07m"), (273600, "3d04h")])
def test_times_are_short(seconds: float, text: str) -> None:
    assert format_seconds(seconds) == text


@pytest.mark.parametrize(("number", "text"), [(512, "512"), (12345, "12.3k"), (21.6e6, "21.6M")])
def test_counts_are_short(number: float, text: str) -> None:
    assert format_count(number) == text


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
