"""The command line: choices of components, overrides, suggestions, and help without torch."""

import json
import os
import subprocess
import sys
from dataclasses import fields, replace
from pathlib import Path

import pytest
from PIL import Image

import openjepa
import openjepa.cli
import openjepa.commands.train
from openjepa.checks import check
from openjepa.cli import COMMANDS, main
from openjepa.commands.evaluate import parse_evaluate
from openjepa.commands.parsing.arguments import option_value
from openjepa.commands.train import parse_train
from openjepa.config import load_run_config, save_yaml
from openjepa.masks import MASKS
from openjepa.recipes import load_recipe
from openjepa.settings.derived import resolve
from openjepa.settings.methods import IJepaSettings
from openjepa.settings.run import CHOICES, RunConfig
from openjepa.settings.sources import FolderSettings, HuggingFaceSettings, ScenesSettings
from tests.helpers.images import write_folder

REGISTRY_LINES = [(component, name) for component, choice in CHOICES.items() for name in choice.options]


def parsed(*argv: str) -> RunConfig:
    return parse_train(argv, "openjepa train", "")[0]


@pytest.mark.parametrize(("component", "name"), REGISTRY_LINES)
@pytest.mark.parametrize("recipe", ["quickstart", "cpu-64"])
def test_every_registry_line_can_be_chosen(recipe: str, component: str, name: str) -> None:
    choice = CHOICES[component]
    before = getattr(load_recipe(recipe), component)
    after = getattr(parsed(recipe, f"--{component}.{choice.field}", name), component)
    assert type(after) is choice.options[name]
    assert getattr(after, choice.field) == name
    for item in fields(choice.base):
        if item.name != choice.field:
            assert getattr(after, item.name) == getattr(before, item.name)


def test_the_chosen_component_brings_its_own_options() -> None:
    config = parsed("cpu-64", "--data.source=huggingface", "--data.path", "owner/name", "--data.label-column", "label")
    assert isinstance(config.data, HuggingFaceSettings)
    assert (config.data.path, config.data.label_column, config.data.image_size) == ("owner/name", "label", 64)
    with pytest.raises(ValueError, match=r"unknown option --data.label-column"):
        parsed("cpu-64", "--data.label-column", "label")


def test_hyphens_and_underscores_and_equals_signs_are_the_same() -> None:
    spellings = (["--data.image-size", "128"], ["--data.image_size", "128"], ["--data.image_size=128"])
    assert len({parsed("cpu-64", *spelling) for spelling in spellings}) == 1
    assert parsed("cpu-64", *spellings[0]).data.image_size == 128


def test_rectangles_flags_and_tuples() -> None:
    config = parsed("cpu-64", "--data.image-size", "64", "96", "--data.horizontal-flip", "--data.crop-scale", "0.2", "0.9")
    assert (config.data.image_size, config.data.horizontal_flip, config.data.crop_scale) == ((64, 96), True, (0.2, 0.9))


def test_home_is_expanded() -> None:
    config = parsed("cpu-64", "--data.path=~/photos")
    assert isinstance(config.data, FolderSettings) and config.data.path == str(Path.home() / "photos")


def test_a_file_repeats_a_run_and_can_be_overridden(tmp_path: Path) -> None:
    original = parsed("ijepa-vits16", "--preset", "paper", "--data.path", "x", "--optim.lr", "2e-3")
    save_yaml(original, tmp_path / "config.yaml")
    assert parsed("--config", str(tmp_path / "config.yaml")) == parsed(f"--config={tmp_path}") == original
    overridden = parsed("--config", str(tmp_path), "--data.source", "scenes", "--optim.lr", "3e-3")
    assert isinstance(overridden.data, ScenesSettings)
    assert overridden.optim.lr == 3e-3
    assert overridden.method == original.method


def test_recipe_and_file_exclude_each_other(tmp_path: Path) -> None:
    save_yaml(load_recipe("cpu-64"), tmp_path / "config.yaml")
    with pytest.raises(ValueError, match="leave out the recipe"):
        parsed("cpu-64", "--config", str(tmp_path))


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        ((), "Give a recipe .openjepa recipes lists them."),
        (("cpu64",), "did you mean 'cpu-64'"),
        (("cpu-64", "--preset", "oficial"), "did you mean 'official'"),
        (("cpu-64", "--data.source", "foldr"), "--data.source foldr does not exist: did you mean 'folder'"),
        (("cpu-64", "--data.source"), "--data.source needs a value: one of folder, huggingface, scenes"),
        (("cpu-64", "--data.pth", "x"), "unknown option --data.pth: did you mean '--data.path'"),
        (("cpu-64", "--optim.learning-rate=3"), "unknown option --optim.learning-rate: did you mean '--optim"),
        (("cpu-64", "--path", "x"), "unknown option --path: "),
        (("mae-cpu-64", "--method.contexts", "4"), "unknown option --method.contexts: only for method.name=ijepa, not mae"),
        (("cpu-64", "photos"), "does not know what to do with 'photos'"),
        (
            ("cpu-64", "--model.class-token", "False"),
            "with 'False': a setting that is on or off takes no value; write --model.class-token or --model.no-class-token",
        ),
    ],
)
def test_mistakes_suggest_the_nearest(argv: tuple[str, ...], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        parsed(*argv)


def test_epochs_replace_the_steps_of_a_recipe() -> None:
    recipe = resolve(load_recipe("cpu-64")).optim
    assert recipe.total_steps is not None and recipe.warmup_steps is not None
    optim = resolve(parsed("cpu-64", "--optim.epochs", "50")).optim
    assert optim.warmup_epochs is not None
    assert (optim.epochs, optim.total_steps, optim.warmup_steps) == (50, None, None)
    assert optim.warmup_epochs / 50 == pytest.approx(recipe.warmup_steps / recipe.total_steps)
    both = parsed("cpu-64", "--optim.epochs", "50", "--optim.total-steps", "7", "--optim.warmup-steps", "1").optim
    assert (both.total_steps, both.warmup_steps) == (7, 1)
    assert parsed("cpu-64", "--optim.warmup-epochs", "2").optim.warmup_steps is None


def test_a_file_without_a_step_is_out_of_range(tmp_path: Path) -> None:
    config = load_recipe("cpu-64")
    save_yaml(replace(config, optim=replace(config.optim, total_steps=0)), tmp_path / "config.yaml")
    with pytest.raises(ValueError, match=r"optim\.total_steps=0 must be at least 1"):
        check(parsed("--config", str(tmp_path), "--data.path", "x"))
    overruled = parsed("--config", str(tmp_path), "--optim.epochs", "5").optim
    assert (overruled.total_steps, overruled.epochs) == (None, 5)
    assert parsed("--config", str(tmp_path), "--optim.total-steps", "7").optim.total_steps == 7


def test_another_size_keeps_the_predictor_of_a_small_recipe_at_half() -> None:
    def predictor_width(*argv: str) -> int | None:
        method = resolve(parsed(*argv)).method
        assert isinstance(method, IJepaSettings)
        return method.predictor_width

    assert predictor_width("cpu-64", "--model.size", "base") == 384
    assert predictor_width("cpu-64", "--model.size=large", "--method.predictor-width", "96") == 96
    assert predictor_width("cpu-64") == 64
    assert predictor_width("ijepa-vitb16", "--model.size", "large") == 384
    assert predictor_width("ijepa-vitl16", "--model.size", "base") == 384


def test_the_last_value_of_an_option_counts() -> None:
    argv = ["cpu-64", "--data.source", "folder", "--data.source=scenes"]
    assert option_value(argv, "data.source") == "scenes"
    assert option_value(argv, "data.path") is None
    assert isinstance(parsed(*argv).data, ScenesSettings)


def test_evaluate_takes_the_data_of_the_run_unless_told(tmp_path: Path) -> None:
    save_yaml(load_recipe("quickstart"), tmp_path / "config.yaml")
    options, data = parse_evaluate([str(tmp_path), "--neighbors", "5", "7"], "openjepa evaluate", "")
    assert (options.subject, options.evaluation.neighbors, data) == (tmp_path, (5, 7), None)
    _, data = parse_evaluate([str(tmp_path), "--data.label", "distance"], "openjepa evaluate", "")
    assert data == ScenesSettings(image_size=64, cache=load_recipe("quickstart").data.cache, label="distance")
    _, data = parse_evaluate([str(tmp_path), "--data.source", "folder", "--data.path", "x"], "openjepa evaluate", "")
    assert isinstance(data, FolderSettings) and (data.path, data.image_size) == ("x", 64)
    with pytest.raises(ValueError, match="unknown option --neighbor: did you mean '--neighbors'"):
        parse_evaluate([str(tmp_path), "--neighbor", "5"], "openjepa evaluate", "")


def run_cli(*argv: str, **environment: str) -> subprocess.CompletedProcess[str]:
    code = "import sys; from openjepa.cli import main; main(sys.argv[1:])"
    command = [sys.executable, "-c", code, *argv]
    env = {**os.environ, "COLUMNS": "120", **environment}
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False, env=env)


def test_mistakes_are_one_message_and_exit_code_2() -> None:
    done = run_cli("train", "cpu-64")
    assert done.returncode == 2
    assert done.stderr.startswith("openjepa: data.path is empty: say where the images are")
    assert "Traceback" not in done.stderr
    assert "Traceback" in run_cli("train", "cpu-64", OPENJEPA_DEBUG="1").stderr


def test_an_impossible_value_names_the_possible_ones() -> None:
    done = run_cli("train", "cpu-64", "--model.size", "smal")
    assert done.returncode == 2
    assert "--model.size" in done.stderr and "small" in done.stderr


def test_an_unknown_command_suggests_the_nearest(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(["trian"])
    assert stopped.value.code == 2
    assert "did you mean 'train'" in capsys.readouterr().err


def test_commands_that_need_a_run_say_so(capsys: pytest.CaptureFixture[str]) -> None:
    for command in ("evaluate", "visualize", "report"):
        with pytest.raises(SystemExit) as stopped:
            main([command])
        assert stopped.value.code == 2
        assert f"openjepa {command} needs" in capsys.readouterr().err


def test_a_group_of_commands_lists_them(capsys: pytest.CaptureFixture[str]) -> None:
    main(["data"])
    shown = capsys.readouterr().out
    assert shown.startswith("usage: openjepa data COMMAND [OPTIONS]\n") and "\nopenjepa data COMMAND --help explains" in shown
    assert [line.split()[1] for line in shown.splitlines() if line.startswith("  ")] == ["check", "pack", "masks", "scenes"]


def test_data_check_counts_and_names_bad_files(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for label in ("a", "b"):
        (tmp_path / label).mkdir()
        for number in range(5):
            Image.new("RGB", (40 + number, 30), (number, 0, 0)).save(tmp_path / label / f"{number}.png")
    (tmp_path / "a" / "bad.jpg").write_bytes(b"not an image")
    main(["data", "check", "--data.path", str(tmp_path), "--data.test-fraction", "0"])
    lines = capsys.readouterr().out.splitlines()
    assert "train: 10 of 11 images can be used" in lines
    assert "  short side: 30 to 30 pixels, median 30" in lines
    assert [line for line in lines if line.startswith("  cannot be used: a/bad.jpg")]


def test_data_masks_draws_both_modes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    picture = tmp_path / "masks.png"
    main(["data", "masks", "--output", str(picture), "--image-size", "64", "96", "--patch-size", "8"])
    with Image.open(picture) as image:
        height = image.height
    assert capsys.readouterr().err == ""
    main(["data", "masks", "--output", str(picture), "--image-size", "64", "--patch-size", "8"])
    assert "note: masks.mode=official is not shown: masks.min_keep=10" in capsys.readouterr().err
    with Image.open(picture) as image:
        assert 100 < image.height < height
    with pytest.raises(SystemExit):
        main(["data", "masks", "--output", str(picture), "--image-size", "65"])


def test_data_masks_draws_a_row_an_image(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    size = ["--image-size", "40", "56", "--patch-size", "8", "--num-images", "2"]
    folder, side = write_folder(tmp_path / "images", 4), round(176 / 7)

    def width_and_height(*arguments: str) -> tuple[int, int]:
        main(["data", "masks", "--output", str(tmp_path / "masks.png"), *size, *arguments])
        with Image.open(tmp_path / "masks.png") as image:
            return image.size

    def expected(num_columns: int) -> tuple[int, int]:
        return 4 + num_columns * (7 * side + 8) - 8, 50 + 2 * (5 * side + 8) - 8

    drawing = [name for name, entry in MASKS.items() if entry.settings.kind != "none"]
    assert width_and_height("--show", "strategies") == expected(1 + len(drawing))
    assert width_and_height("--show", "targets", "--images", str(folder)) == expected(1 + 1 + 4)
    assert width_and_height("--show", "targets", "--masks.strategy", "rasterized") == expected(1 + 1 + 3)
    assert capsys.readouterr().err == ""
    width_and_height("--show", "strategies", "--image-size", "16", "16")
    assert "note: masks.strategy=block is not shown: masks.target_scale=" in capsys.readouterr().err


def test_ctrl_c_exits_with_130(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def interrupted(argv: object, prog: str) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(openjepa.commands.train, "train", interrupted)
    with pytest.raises(SystemExit) as stopped:
        main(["train"])
    assert stopped.value.code == 130
    assert "Traceback" not in capsys.readouterr().err


def test_help_of_every_command_works_without_torch() -> None:
    code = f"""
import contextlib, io, json, sys
from openjepa.cli import main
helps = {{}}
for argv in {[["--help"], *([*name.split(), "--help"] for name in COMMANDS)]!r}:
    with contextlib.redirect_stdout(io.StringIO()) as text, contextlib.suppress(SystemExit):
        main(argv)
    helps[" ".join(argv)] = text.getvalue()
print(json.dumps([helps, "torch" in sys.modules]))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=True)
    helps, torch_imported = json.loads(done.stdout)
    assert not torch_imported
    assert all(name in helps["--help"] for name in COMMANDS)
    assert all(len(text) > 200 for text in helps.values()), {name: len(text) for name, text in helps.items()}
    for name in ("cpu-64", "ijepa-vitb16", "--data.source folder|huggingface|scenes", "--optim.lr"):
        assert name in helps["train --help"]


def test_help_shows_the_options_of_the_chosen_component() -> None:
    done = run_cli("train", "cpu-64", "--data.source", "huggingface", "--help")
    assert done.returncode == 0
    assert "--data.label-column" in done.stdout


def test_the_resolved_settings_are_a_config_file(tmp_path: Path) -> None:
    config = parsed("gpu-128", "--data.path", "x", "--model.size", "base")
    save_yaml(config, tmp_path / "config.yaml")
    assert load_run_config(tmp_path).model.size == "base"


def test_another_number_of_steps_keeps_the_share_of_the_warmup() -> None:
    config = resolve(parsed("cpu-64", "--optim.total-steps", "400"))
    assert (config.optim.total_steps, config.optim.warmup_steps) == (400, 40)
    assert isinstance(config.method, IJepaSettings) and config.method.ema_start == 0.75  # renewed as often as in the recipe
    assert parsed("cpu-64", "--optim.total-steps", "400", "--method.ema-start", "0.9").method.ema_start == 0.9  # type: ignore[attr-defined]
    official = parsed("cpu-64", "--preset", "official", "--optim.total-steps", "4000").method
    assert isinstance(official, IJepaSettings) and official.ema_start == 0.996
    assert parsed("cpu-64", "--optim.total-steps", "40", "--optim.warmup-steps", "7").optim.warmup_steps == 7


@pytest.mark.parametrize("encoding", ["utf-8:strict", "ascii:strict", "latin-1:strict"])
def test_names_that_the_terminal_cannot_show_are_written_out(tmp_path: Path, encoding: str) -> None:
    for folder in (b"caf\xe9", "\u72ac".encode()):
        place = tmp_path / "data" / os.fsdecode(folder)
        place.mkdir(parents=True)
        Image.new("RGB", (16, 16)).save(place / "good.png")
        (place / os.fsdecode(b"bad\xff.png")).write_bytes(b"no image")
    done = run_cli("data", "check", "--data.path", str(tmp_path / "data"), PYTHONIOENCODING=encoding)
    assert done.returncode == 0, done.stderr
    assert r"cannot be used: caf\udce9/bad\udcff.png: not an image" in done.stdout


def test_the_package_is_the_command() -> None:
    found = subprocess.run([sys.executable, "-m", "openjepa", "--version"], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == openjepa.__version__


def test_commands_that_share_no_work_are_refused_in_several_processes(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("RANK", "1")  # without torchrun it means nothing
    main(["--version"])
    assert capsys.readouterr().out.strip() == openjepa.__version__
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(SystemExit) as ended:
        main(["report", "runs/a"])
    assert ended.value.code == 2
    assert "openjepa report runs in one process, and torchrun has started 2" in capsys.readouterr().err


def test_a_fault_that_all_processes_find_is_left_to_the_first(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    slept: list[float] = []
    monkeypatch.setattr(openjepa.cli.time, "sleep", slept.append)
    for rank, waits in (("0", 0), ("1", 1)):
        monkeypatch.setenv("WORLD_SIZE", "2")
        monkeypatch.setenv("RANK", rank)
        for words in (["nothing"], ["train", "cpu-64", "--optim.lr", "fast"]):  # ours, and one that tyro finds
            slept.clear()
            with pytest.raises(SystemExit) as ended:
                main(words)
            assert ended.value.code == 2 and len(slept) == waits  # torchrun ends this process meanwhile
            said = capsys.readouterr().err
            assert "Error parsing --optim.lr" in said if "fast" in words else said.startswith("openjepa: unknown command"), said
