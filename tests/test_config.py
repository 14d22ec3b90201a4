"""Settings survive the trip to YAML and back, and every mistake is named with its fix."""

import subprocess
import sys
from dataclasses import FrozenInstanceError, dataclass, field, fields, is_dataclass, replace
from pathlib import Path
from typing import Any, Literal

import pytest
import yaml

from openjepa.config import ABSENT, difference, expand_home, flatten, from_dict, load_run_config, load_yaml, save_yaml, to_dict
from openjepa.masks import MASKS
from openjepa.methods import METHODS
from openjepa.recipes import RECIPES, load_recipe
from openjepa.settings.run import CHOICES, RunConfig
from openjepa.settings.sources import SOURCES, HuggingFaceSettings, ScenesSettings

REGISTRIES = {"data": SOURCES, "masks": MASKS, "method": METHODS}
ALL_RUNS = [(name, preset) for name, recipe in RECIPES.items() for preset in recipe.presets]


@dataclass(frozen=True)
class Inner:
    kind: Literal["a", "b"] = "a"
    size: int | tuple[int, int] = 3
    rates: tuple[float, ...] = (0.1,)
    name: str | None = None


@dataclass(frozen=True)
class Outer:
    inner: Inner = field(default_factory=Inner)
    flag: bool = False
    lr: float = 1.0


def test_a_line_of_a_registry_has_the_name_that_its_settings_choose_it_by() -> None:
    for component, registry in REGISTRIES.items():
        choice = CHOICES[component]
        assert choice.registry is registry
        assert [getattr(settings(), choice.field) for settings in choice.options.values()] == list(registry)
        assert all(issubclass(settings, choice.base) for settings in choice.options.values())


@pytest.mark.parametrize(("recipe", "preset"), ALL_RUNS)
def test_every_recipe_survives_yaml(tmp_path: Path, recipe: str, preset: str) -> None:
    config = load_recipe(recipe, preset)
    save_yaml(config, tmp_path / "config.yaml")
    assert load_run_config(tmp_path) == load_run_config(tmp_path / "config.yaml") == config


@pytest.mark.parametrize("settings", [entry.settings for entries in REGISTRIES.values() for entry in entries.values()])  # type: ignore[attr-defined]
def test_every_registered_settings_class_survives_a_dict(settings: type[Any]) -> None:
    assert from_dict(settings, to_dict(settings())) == settings()


def test_tuples_unions_and_missing_names() -> None:
    data = yaml.safe_load("inner: {size: [3, 4], rates: [1e-3, 2], name: x}\nlr: 3")
    assert from_dict(Outer, data) == Outer(inner=Inner(size=(3, 4), rates=(1e-3, 2.0), name="x"), lr=3.0)
    assert from_dict(Outer, {}) == Outer()


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"inner": {"knd": "a"}}, r"unknown setting inner\.knd: did you mean 'inner\.kind'\?"),
        ({"zzz": 1}, r"unknown setting zzz: valid: flag, inner, lr"),
        ({"inner": {"kind": "c"}}, r"inner\.kind='c' is not one of a, b"),
        ({"inner": {"size": [1, 2, 3]}}, r"inner\.size"),
        ({"inner": {"rates": ["x"]}}, r"inner\.rates\[0\]='x' must be a number"),
        ({"inner": 3}, r"inner must be a mapping"),
        ({"flag": 1}, r"flag=1 must be true or false"),
        ({"flag": "yes"}, r"flag='yes' must be true or false"),
        ({"lr": True}, r"lr=True must be a number"),
        ({"inner": {"name": 3}}, r"inner\.name=3 must be a string"),
    ],
)
def test_mistakes_are_named(data: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        from_dict(Outer, data)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("data: {source: foldr}", "data.source='foldr' does not exist; did you mean 'folder'"),
        ("data: {path: x}", "data.source is missing; one of: folder, huggingface, scenes"),
        ("data: {source: folder, streaming: true}", "unknown setting data.streaming"),
        ("- 1", "must hold a mapping"),
        ("a: [", "is no YAML file"),
    ],
)
def test_files_are_named_in_errors(tmp_path: Path, text: str, message: str) -> None:
    file = tmp_path / "run.yaml"
    file.write_text(text)
    with pytest.raises(ValueError, match=message) as caught:
        load_run_config(file)
    assert str(file) in str(caught.value)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"config.yaml cannot be read"):
        load_run_config(tmp_path)


def test_yaml_cannot_run_code(tmp_path: Path) -> None:
    file = tmp_path / "run.yaml"
    file.write_text("recipe: !!python/object/apply:os.getcwd []")
    with pytest.raises(ValueError, match="is no YAML file"):
        load_yaml(file)


def test_difference_names_every_change_and_only_those() -> None:
    old = RunConfig(data=HuggingFaceSettings(path="x"))
    new = replace(old, data=ScenesSettings(path="x"), optim=replace(old.optim, lr=0.5))
    assert difference(old, old) == []
    changes = {name: (before, after) for name, before, after in difference(old, new)}
    assert changes["optim.lr"] == (1e-3, 0.5)
    assert changes["data.source"] == ("huggingface", "scenes")
    assert changes["data.label"] == (ABSENT, "count")
    assert changes["data.streaming"] == (False, ABSENT)
    assert "data.path" not in changes
    assert difference(to_dict(old), to_dict(new)) == difference(old, new)


def test_flatten_reaches_every_field() -> None:
    config = RunConfig()
    groups = [getattr(config, item.name) for item in fields(config)]
    leaves = sum(len(fields(group)) if is_dataclass(group) else 1 for group in groups)
    assert len(flatten(config)) == leaves


def test_home_is_expanded_in_strings_only_at_the_start() -> None:
    config = RunConfig(data=HuggingFaceSettings(path="~/photos", subset="a~/b"))
    expanded = expand_home(config).data
    assert isinstance(expanded, HuggingFaceSettings)
    assert expanded.path == str(Path.home() / "photos")
    assert expanded.subset == "a~/b"


@dataclass(frozen=True)
class Files:
    output: Path | None = None
    runs: tuple[Path, ...] = ()


def test_home_is_expanded_in_paths_too() -> None:
    given = Files(Path("~/x.html"), (Path("~"), Path("a/~/b"), Path("~other")))
    assert expand_home(given) == Files(Path.home() / "x.html", (Path.home(), Path("a/~/b"), Path("~other")))
    assert expand_home(Files()) == Files()


def test_settings_are_frozen() -> None:
    with pytest.raises(FrozenInstanceError):
        RunConfig().model.patch_size = 3  # type: ignore[misc]


TORCH_FREE = [
    "settings.run",
    "settings.evaluation",
    "config",
    "checks",
    "recipes",
    "schedules",
    "commands.parsing.arguments",
    "commands.train",
    "commands.evaluate",
    "cli",
    "report",
]


def test_torch_free_modules_do_not_import_torch() -> None:
    names = [f"openjepa.{name}" for name in [*TORCH_FREE, "methods", "masks", "data"]]
    code = f"import importlib, sys; [importlib.import_module(name) for name in {names}]; sys.exit('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr or "torch was imported"
