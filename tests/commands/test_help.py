"""The help teaches: examples first, what is common, whole lines; explanations are those of the settings."""

import inspect
import re
import shlex
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from openjepa.cli import COMMANDS, main
from openjepa.commands.data import CheckOptions
from openjepa.commands.embed import EMBED_COMMON, EmbedOptions
from openjepa.commands.evaluate import EVALUATE_COMMON, EvaluateOptions
from openjepa.commands.experiments.ablate import ABLATE_COMMON
from openjepa.commands.parsing.arguments import explanations, option_names, options_of, positionals_first
from openjepa.commands.parsing.help import folded
from openjepa.commands.train import TRAIN_COMMON, TrainOptions, parse_train
from openjepa.recipes import RECIPES
from openjepa.settings.experiments import AblationSettings, DataBench, StepBench
from openjepa.settings.inference import SearchSettings
from openjepa.settings.run import RunSettings
from openjepa.settings.sources import HuggingFaceSettings


@pytest.fixture(params=[80, 120])
def columns(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> int:
    monkeypatch.setenv("COLUMNS", str(request.param))
    return int(request.param)


def helped(capsys: pytest.CaptureFixture[str], *argv: str) -> str:
    try:
        main(argv)
    except SystemExit as stopped:
        assert stopped.code == 0
    return capsys.readouterr().out


def test_the_help_of_train_is_short_and_in_order(columns: int, capsys: pytest.CaptureFixture[str]) -> None:
    text = helped(capsys, "train", "--help")
    lines = text.splitlines()
    assert len(lines) <= 70
    places = [lines.index(line) for line in lines if line.startswith(("usage:", "examples:", "recipes", "common options:"))]
    assert len(places) == 4 and places == sorted(places)
    assert places[1] < 8 and "--help-all" in lines[-1] and "openjepa recipes" in lines[places[2]]
    words = {word.strip(",") for word in text.split()}
    assert set(RECIPES) <= words and len(TRAIN_COMMON) == 15
    for name, default in (("image-size", 64), ("total-steps", 12000), ("batch-size", 32), ("lr", 0.001), ("size", "nano")):
        shown = next(index for index, line in enumerate(lines) if re.match(rf"  --\w+\.{name} ", line))
        assert f"(default: {default})" in " ".join(" ".join(lines[shown : shown + 4]).split()), name


def test_the_defaults_are_those_of_the_recipe(capsys: pytest.CaptureFixture[str]) -> None:
    text = " ".join(helped(capsys, "train", "--help", "gpu-224").split())
    assert "those of gpu-224" in text and "microbatches. (default: 256)" in text and "divide it. (default: 224)" in text


@pytest.mark.parametrize("name", COMMANDS)
def test_every_help_fits_the_terminal_but_for_commands_to_copy(
    name: str, columns: int, capsys: pytest.CaptureFixture[str]
) -> None:
    for option in ("--help", "--help-all"):
        lines = helped(capsys, *name.split(), option).splitlines()
        assert lines[0].startswith(f"usage: openjepa {name}")
        assert not [line for line in lines if len(line) > columns]


def test_the_overview_fits_the_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    for words in ([], ["bench"], ["data", "--help"]):
        text = helped(capsys, *words)
        assert text and not [line for line in text.splitlines() if len(line) > 80]


@pytest.mark.parametrize("name", ["embed", "train", "convert", "evaluate", "ablate", "data masks"])
def test_long_examples_can_be_pasted(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    """A shell joins their lines: a backslash ends all but the last, and the next one is indented further."""
    text = helped(capsys, *name.split(), "--help-all")
    joined = [shlex.split(line) for line in re.sub(r" \\\n {6,}", " ", text).splitlines() if line.startswith("  openjepa ")]
    assert "\\\n" in text and all(words[0] == "openjepa" for words in joined)
    assert any(len(shlex.join(words)) > 78 for words in joined) or name in ("data masks", "train", "evaluate")
    assert not [words for words in joined if "\\" in words]


def test_switches_that_are_on_show_both_ways(capsys: pytest.CaptureFixture[str]) -> None:
    text = helped(capsys, "search", "--help")
    assert "  --picture | --no-picture\n" in text and re.search(r"\n  --json  +Print", text)


@pytest.mark.parametrize(
    ("name", "word"), [("train", "[RECIPE]"), ("bench step", "[RECIPE]"), ("recipes", "[NAME]"), ("search", "FEATURES")]
)
def test_brackets_say_what_may_be_left_out(name: str, word: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert helped(capsys, *name.split(), "--help").startswith(f"usage: openjepa {name} {word} [OPTIONS]\n")


def test_commands_read_no_source_and_work_without_it(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def no_source(_: object) -> str:
        raise OSError("could not get source code")

    explanations.cache_clear()
    with monkeypatch.context() as patch:
        patch.setattr(inspect, "getsource", pytest.fail)
        assert positionals_first(TrainOptions, ["--data.path", "x", "cpu-64"]) == ["cpu-64", "--data.path", "x"]
        patch.setattr(inspect, "getsource", no_source)
        assert parse_train(["--data.path", "x", "cpu-64"], "openjepa train", "")[1].recipe == "cpu-64"
        assert "  --data.path TEXT" in helped(capsys, "train", "--help")
    explanations.cache_clear()
    assert "Folder of images." in helped(capsys, "train", "--help")


@pytest.mark.parametrize("words", ["train", "data check", "bench step", "evaluate", "recipes", "data"])
def test_help_before_the_command_is_help_behind_it(words: str, capsys: pytest.CaptureFixture[str]) -> None:
    after = helped(capsys, *words.split(), "--help")
    assert helped(capsys, "help", *words.split()) == after == helped(capsys, *words.split(), "-h")
    assert after and helped(capsys, "help") == helped(capsys, "--help") == helped(capsys)


@pytest.mark.parametrize("content", ["", "model: [", "optim: {lrr: 3}", None])
@pytest.mark.parametrize("words", ["train --config {} --help", "help train --config {}", "evaluate {} -h", "embed {} -h"])
def test_help_is_given_whatever_else_is_wrong(
    words: str, content: str | None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    if content is not None:
        (tmp_path / "config.yaml").write_text(content)
    given = words.format(tmp_path if content is not None else tmp_path / "missing").split()
    assert helped(capsys, *given).startswith("usage: openjepa ")


def test_help_is_given_for_recipes_that_do_not_exist(capsys: pytest.CaptureFixture[str]) -> None:
    for words in ("train typo --help", "train cpu-64 --preset typo --help", "ablate --recipe typo --help"):
        assert helped(capsys, *words.split()).startswith("usage: openjepa ")
    assert helped(capsys, "help", "help") == helped(capsys, "--help")


@pytest.mark.parametrize(("name", "options"), [("train cpu-64", TrainOptions()), ("evaluate", EvaluateOptions())])
def test_all_options_stand_in_the_long_help(name: str, options: object, capsys: pytest.CaptureFixture[str]) -> None:
    text = helped(capsys, *name.split(), "--help-all")
    assert not [option for option in option_names(options) if option not in text]


def test_the_chosen_component_shows_its_options(capsys: pytest.CaptureFixture[str]) -> None:
    assert "--data.label-column" not in helped(capsys, "train", "--help")
    text = " ".join(helped(capsys, "train", "--data.source", "huggingface", "--help").split())
    for name, words in explanations(HuggingFaceSettings).items():
        assert name in ("source", "path", "image_size") or words in text, name


def test_explanations_are_the_lines_under_the_fields() -> None:
    assert explanations(RunSettings)["seed"] == "Seed of weights, order, crops and masks."
    assert explanations(RunSettings)["init"].endswith("The model's settings follow them (docs/continue.md).")
    found = explanations(HuggingFaceSettings)
    assert found["window"] == "Streaming: samples that are shuffled together."
    assert "Parquet" in found["path"], "its own, not that of another source"
    assert found["max_images"] == "Use only this many training images, drawn with the seed. None: all.", "of the base"


@pytest.mark.parametrize(
    ("cls", "common"),
    [
        (TrainOptions, TRAIN_COMMON),
        (EvaluateOptions, EVALUATE_COMMON),
        (EmbedOptions, EMBED_COMMON),
        (AblationSettings, ABLATE_COMMON),
        *((cls, ()) for cls in (SearchSettings, StepBench, DataBench, CheckOptions)),
    ],
)
def test_every_option_is_explained_and_common_ones_exist(cls: Any, common: tuple[str, ...]) -> None:
    options = list(options_of(cls, cls()))
    assert all(option.explanation for option in options)
    assert set(common) <= {option.name for option in options}
    assert sum(bool(option.metavar) for option in options) <= 1, "the word in front"
    assert [option.flag() for option in options if not option.metavar] == option_names(cls())
    assert not [option.name for option in options_of(cls) if option.name.rpartition(".")[2].startswith("no_")]


def test_paragraphs_are_filled_and_tables_and_commands_keep_their_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "60")
    command = "  openjepa train cpu-64 --data.path ~/photos --optim.total-steps 100 --run.name x"
    text = f"One two\nthree.\n\nexamples:\n{command}\n\nnames:\n  first   {'word ' * 12}end"
    assert folded(text).splitlines() == [
        *("One two three.", "", "examples:", command, "", "names:"),
        *("  first   " + " ".join(["word"] * 10), "          word word end"),
    ]


def test_what_needs_no_torch_does_not_import_it() -> None:
    code = "import sys, contextlib\nfrom openjepa.cli import main\n"
    commands = [["train", "--help"], ["train", "--help-all"], ["recipes", "cpu-64"], ["help", "embed"], ["runs", "docs"]]
    code += f"for words in {commands}:\n"
    code += "    with contextlib.suppress(SystemExit):\n        main(words)\nassert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, stdout=subprocess.DEVNULL, timeout=120)


@dataclass
class _Bare:
    value: int = 0


def test_a_field_without_a_line_has_no_explanation() -> None:
    assert [option.explanation for option in options_of(_Bare, _Bare())] == [""]
