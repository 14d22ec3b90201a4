"""The command `openjepa recipes`, and recipes in groups for the help of `openjepa train`."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Annotated

import tyro
import yaml

from openjepa.commands.parsing.arguments import parse, positionals_first
from openjepa.commands.parsing.help import folded
from openjepa.config import flatten, to_dict
from openjepa.recipes import RECIPES, load_recipe
from openjepa.refusals import Refusal
from openjepa.settings.derived import resolve
from openjepa.settings.run import RunConfig
from openjepa.system.console import command

RECIPES_HELP = """Lists the recipes of `openjepa train`, or prints one: where its values come from, and all its settings, as a
file that --config takes.

examples:
  openjepa recipes
  openjepa recipes ijepa-vitb16 --preset paper
  openjepa recipes cpu-64 > mine.yaml"""


@dataclass(frozen=True, kw_only=True)
class RecipesOptions:
    """The arguments of `openjepa recipes`."""

    name: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="[NAME]")] = ""
    """Recipe to print; without it, all recipes are listed."""
    preset: str | None = None
    """Preset of the recipe. None: its first."""


def recipes(argv: Sequence[str], prog: str) -> None:
    """Runs `openjepa recipes`: lists the recipes, or prints one."""
    given = positionals_first(RecipesOptions, argv, is_needed=False)
    options = parse(RecipesOptions, given, prog, RECIPES_HELP, RecipesOptions())
    if options.preset is not None and not options.name:
        raise Refusal(f"--preset {options.preset} has no effect without the name of a recipe")
    print(whole_recipe(options.name, options.preset) if options.name else listed_recipes())


def recipe_groups() -> dict[str, list[str]]:
    """The names of the recipes, grouped by images and method, in the order of the registry."""
    groups: dict[str, list[str]] = {}
    for name, recipe in RECIPES.items():
        method = recipe.config().method.paper.name
        groups.setdefault(f"your images, {method}" if recipe.is_small else f"ImageNet, {method}", []).append(name)
    return groups


def listed_recipes() -> str:
    """A list of all recipes with their summaries, under the images, method and presets of their group."""
    parts = []
    for title, names in recipe_groups().items():
        presets = dict.fromkeys(preset for name in names for preset in RECIPES[name].presets)
        lines = [f"  {name:<18}{RECIPES[name].summary()}" for name in names]
        parts.append("\n".join([f"{title} (--preset {' | '.join(presets)}):", *lines]))
    end = "The first preset is the default. A recipe with all its settings: openjepa recipes NAME [--preset X]"
    return folded("\n\n".join([*parts, end]))


def whole_recipe(name: str, preset: str | None) -> str:
    """The description of a recipe as comments, followed by its settings as YAML."""
    config = load_recipe(name, preset)
    recipe = RECIPES[name]
    about = [
        command("openjepa", "recipes", name, "--preset", config.preset),
        f"from {recipe.build.__module__}; presets: {' | '.join(recipe.presets)}",
        "",
        *recipe.about.splitlines(),
        "",
        recipe.command(name),
    ]
    comments = [f"# {line}".rstrip() for line in about]
    return "\n".join([*comments, "", *_settings(config)])


def _settings(config: RunConfig) -> Iterator[str]:
    """Yields the lines of the file. Derived settings stay None, so that they still follow. A comment gives their value."""
    values, group = flatten(resolve(config)), ""
    for line in yaml.safe_dump(to_dict(config), sort_keys=False, width=120).splitlines():
        name, _, value = line.strip().partition(": ")
        group = group if line.startswith(" ") else name.rstrip(":")
        followed = values.get(f"{group}.{name}") if value in ("null", "half") else None
        yield line if followed is None else f"{line}  # follows other settings: {followed}"
