"""`openjepa recipes`: all of them in groups, or one with its settings as a file that --config takes."""

from pathlib import Path

import pytest

from openjepa.cli import main
from openjepa.commands.recipes import recipe_groups
from openjepa.commands.train import parse_train
from openjepa.recipes import RECIPES, load_recipe

ALL_RUNS = [(name, preset) for name, recipe in RECIPES.items() for preset in recipe.presets]


def printed(capsys: pytest.CaptureFixture[str], *argv: str) -> str:
    main(["recipes", *argv])
    return capsys.readouterr().out


def test_every_recipe_stands_in_one_group_of_equal_presets(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    groups = recipe_groups()
    assert [name for names in groups.values() for name in names] == list(RECIPES)
    assert all(len({RECIPES[name].presets for name in names}) == 1 for names in groups.values())
    assert groups["your images, DINO"] == ["dino-cpu-32", "dino-cpu-64", "dino-cpu-96", "dino-gpu-224"]
    monkeypatch.setenv("COLUMNS", "80")
    text = printed(capsys)
    assert all(len(line) <= 80 for line in text.splitlines())
    flat = " ".join(text.split())
    assert all(f"{name} {' '.join(recipe.summary().split())}" in flat for name, recipe in RECIPES.items())
    assert "ImageNet, MSN (--preset official | paper):" in text and "your images, MAE (--preset default):" in text


@pytest.mark.parametrize(("name", "preset"), ALL_RUNS)
def test_a_printed_recipe_is_a_file_of_the_same_run(
    name: str, preset: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = printed(capsys, "--preset", preset, name)
    (tmp_path / "mine.yaml").write_text(text)
    config, _ = parse_train(["--config", str(tmp_path / "mine.yaml")], "openjepa train", "")
    assert config == load_recipe(name, preset)
    head = text.splitlines()[0]
    assert head == f"# openjepa recipes {name} --preset {preset}" and RECIPES[name].summary() in text


def test_settings_that_follow_others_show_their_values(capsys: pytest.CaptureFixture[str]) -> None:
    lines = [line.strip() for line in printed(capsys, "cpu-64").splitlines()]
    assert "ema_start: null  # follows other settings: 0.991667" in lines, "1 - 100 / 12000"
    assert "predictor_width: null  # follows other settings: 64" in lines, "half of 128"
    assert "warmup_steps: null  # follows other settings: 1200" in lines, "a tenth of 12000"


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["cpu64"], "recipe 'cpu64' does not exist: did you mean 'cpu-64'?"),
        (["cpu-64", "--preset", "oficial"], "did you mean 'official'?"),
        (["--preset", "official"], "--preset official has no effect without the name of a recipe"),
        (["cpu-64", "cpu-32"], "does not know what to do with 'cpu-32'"),
    ],
)
def test_mistakes_are_named(argv: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(["recipes", *argv])
    assert stopped.value.code == 2 and message in capsys.readouterr().err
