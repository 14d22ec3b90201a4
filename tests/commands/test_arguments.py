"""Positional arguments stand anywhere: before, between and behind the options."""

from pathlib import Path
from typing import Any

import pytest

from openjepa.cli import main
from openjepa.commands.embed import EmbedOptions, parse_embed
from openjepa.commands.evaluate import EvaluateOptions, parse_evaluate
from openjepa.commands.parsing.arguments import is_value, most_words, positionals_first, split_options
from openjepa.commands.recipes import RecipesOptions
from openjepa.commands.report import ReportOptions
from openjepa.commands.search import with_number_of_outliers
from openjepa.commands.train import TrainOptions, parse_train
from openjepa.commands.visualize import VisualizeOptions
from openjepa.settings.clusters import SlurmSettings
from openjepa.settings.experiments import AblationSettings, EnergyBench, StepBench
from openjepa.settings.inference import ConvertSettings, SearchSettings

LINES: list[tuple[Any, str, list[list[str]]]] = [
    (
        TrainOptions,
        "cpu-64",
        [["--data.path", "x"], ["--dry-run"], ["--data.image-size", "64", "96"], ["--model.no-class-token"]],
    ),
    (TrainOptions, "cpu-64", [["--data.source=huggingface"], ["--data.label-column", "y"], ["--data.crop-scale", "0.2", "1"]]),
    (TrainOptions, "dino-cpu-64", [["--method.local_size", "32"], ["--optim.lr", "1e-3"], ["--run.init", "a b"], ["--fresh"]]),
    (EvaluateOptions, "runs/x", [["--neighbors", "5", "7"], ["--seed", "-1"], ["--protocols", "linear", "knn"], ["--again"]]),
    (EvaluateOptions, "[x]", [["--weight-decays", "1e-3", ".1"], ["--image-size", "None"], ["--baselines", "pixels"]]),
    (EmbedOptions, "runs/my run", [["--output", "x.npy"], ["--data.path", "y"], ["--again"], ["--image-size", "32"]]),
    (SearchSettings, "x.npy", [["--region", "0", "0", "1", "1"], ["--json"], ["--top", "3"], ["--no-picture"]]),
    (ConvertSettings, "runs/x", [["--to", "timm"], ["--overwrite"], ["--image-size", "32", "64"]]),
    (AblationSettings, "methods", [["--images", "5"], ["--seconds", "none"], ["--dry-run"]]),
    (StepBench, "cpu-64", [["--method", "dino"], ["--compile"], ["--repeats", "2"]]),
    (EnergyBench, "runs/x", [["--images", "5"], ["--device", "cpu"]]),
    (VisualizeOptions, "runs/x", [["--num-images", "2"], ["--device", "cpu"]]),
    (ReportOptions, "runs/x", [["--scaling"], ["--output", "x.html"]]),
    (RecipesOptions, "cpu-64", [["--preset", "official"]]),
]


@pytest.mark.parametrize(("cls", "word", "options"), LINES)
def test_a_positional_argument_is_found_everywhere(cls: Any, word: str, options: list[list[str]]) -> None:
    rest = [item for option in options for item in option]
    for place in range(len(options) + 1):
        parts = [*options[:place], [word], *options[place:]]
        assert positionals_first(cls, [item for part in parts for item in part]) == [word, *rest]


def test_several_are_kept_in_order() -> None:
    assert positionals_first(ReportOptions, ["--scaling", "b", "--output", "x", "a", "c"]) == [
        *("b", "a", "c"),
        *("--scaling", "--output", "x"),
    ]


@pytest.mark.parametrize(
    ("cls", "line", "found"),
    [
        (SearchSettings, "--image cat.jpg dog.jpg x.npy --top 3", "x.npy --image cat.jpg dog.jpg --top 3"),
        (EvaluateOptions, "--tasks classification runs/x", "runs/x --tasks classification"),
        (AblationSettings, "--methods mae dino methods", "methods --methods mae dino"),
        (SearchSettings, "--image cat.jpg", "--image cat.jpg"),
        (SearchSettings, "--row 3 x.npy --image a b", "--row 3 x.npy --image a b"),
        (SearchSettings, "x.npy --image cat.jpg dog.jpg", "x.npy --image cat.jpg dog.jpg"),
    ],
)
def test_a_list_gives_its_last_word_if_nothing_else_is_there(cls: Any, line: str, found: str) -> None:
    if "--row" in line:  # of two lists the last one
        found = "b --row 3 x.npy --image a"
    assert positionals_first(cls, line.split()) == found.split()


def test_outliers_without_a_number_leave_the_table_alone() -> None:
    given = with_number_of_outliers(["--outliers", "x.npy", "--json"])
    assert positionals_first(SearchSettings, given) == ["x.npy", "--outliers", "100", "--json"]
    assert with_number_of_outliers(["x.npy", "--outliers", "7"]) == ["x.npy", "--outliers", "7"]


def test_settings_are_the_same_wherever_the_recipe_stands() -> None:
    options = [["--data.path", "x"], ["--optim.epochs", "3"], ["--method.ema-start", "0.9"], ["--data.image-size", "64"]]
    first = parse_train(["cpu-64", *(item for option in options for item in option)], "openjepa train", "")
    for place in range(1, len(options) + 1):
        line = [item for option in [*options[:place], ["cpu-64"], *options[place:]] for item in option]
        assert parse_train(line, "openjepa train", "") == first
    with pytest.raises(ValueError, match="which run\\? Give a recipe"):
        parse_train(["--data.path", "x"], "openjepa train", "")


def test_evaluate_and_embed_find_their_subject(tmp_path: Path) -> None:
    run = str(tmp_path)
    assert parse_evaluate(["--neighbors", "5", "7", run], "p", "") == parse_evaluate([run, "--neighbors", "5", "7"], "p", "")
    assert parse_embed(["--data.path", "x", run], "p", "") == parse_embed([run, "--data.path", "x"], "p", "")


@pytest.mark.parametrize("command", ["evaluate", "visualize", "embed", "convert", "bench energy"])
def test_commands_refuse_what_is_missing_wherever_it_stands(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    for words in (["a/b/none", "--device", "cpu"], ["--device", "cpu", "a/b/none"]):
        words = [word for word in words if command != "convert" or word not in ("--device", "cpu")]
        with pytest.raises(SystemExit) as stopped:
            main([*command.split(), *words, *(["--to", "timm"] if command == "convert" else [])])
        assert stopped.value.code == 2 and "a/b/none does not exist" in capsys.readouterr().err


def test_how_many_words_a_value_takes() -> None:
    kinds = [bool, int, str | None, tuple[float, float], int | tuple[int, int], tuple[str, ...] | None]
    assert [most_words(kind) for kind in kinds] == [0, 1, 1, 2, 2, float("inf")]
    assert is_value("3", int) and is_value("None", int | None) and not is_value("x", int | None) and is_value("x", str)


@pytest.mark.parametrize(
    ("line", "own", "others"),
    [
        ("cpu-64 --nodes 2 --optim.lr 1e-3 --print", "--nodes 2 --print", "cpu-64 --optim.lr 1e-3"),
        ("--seeds 0 1 cpu-64 --data.crop-scale 0.2 1", "--seeds 0 1", "cpu-64 --data.crop-scale 0.2 1"),
        ("--no-requeue cpu-64 --time=60 --fresh --help", "--no-requeue --time=60", "cpu-64 --fresh --help"),
        ("cpu-64 --data.path --nodes 2", "--nodes 2", "cpu-64 --data.path"),
        ("cpu-64 --run.name time --partition gpu", "--partition gpu", "cpu-64 --run.name time"),
    ],
)
def test_options_of_two_commands_are_told_apart(line: str, own: str, others: str) -> None:
    assert split_options(SlurmSettings, line.split()) == (own.split(), others.split())
