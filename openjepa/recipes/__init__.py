"""Named runs: a table in which each row says what the run is, where its values come from and what its presets are.

`openjepa train NAME [--preset PRESET]` starts from a recipe, and every setting can be overridden. Published runs have one file
per method. Our own are in small.py and matched.py. Every file lists its recipes under RECIPES.
"""

from dataclasses import replace

from openjepa.config import flatten, nearest
from openjepa.recipes import data2vec, dino, ibot, ijepa, mae, matched, msn, small
from openjepa.recipes.recipe import Recipe
from openjepa.refusals import Refusal
from openjepa.settings.derived import RULES, left_to_follow, resolve
from openjepa.settings.run import RunConfig

__all__ = ["RECIPES", "Recipe", "kept_by_file", "load_recipe"]

RECIPES: dict[str, Recipe] = {
    **small.RECIPES,
    **matched.RECIPES,
    **ijepa.RECIPES,
    **mae.RECIPES,
    **data2vec.RECIPES,
    **dino.RECIPES,
    **ibot.RECIPES,
    **msn.RECIPES,
}


def load_recipe(name: str, preset: str | None = None) -> RunConfig:
    """The settings of a recipe's preset. Derived settings are None until `openjepa.settings.derived.resolve`.

    `preset`: None means the first. Raises Refusal if the recipe or the preset does not exist, and names the nearest.
    """
    if name not in RECIPES:
        raise Refusal(f"recipe {name!r} does not exist: {nearest(name, RECIPES)}")
    config = RECIPES[name].config(preset)
    return replace(config, recipe=name, preset=preset or RECIPES[name].presets[0])


def kept_by_file(file: RunConfig, config: RunConfig) -> dict[str, object]:
    """Settings of `file` that stay although `config` changes what they depend on, with the values that would follow now.

    They stay, perhaps to the user's surprise, because a file sets all values. A value is None if it depends on a length of the
    run that is not known yet. Empty if `file` names none of our recipes.
    """
    if file.recipe not in RECIPES or file.preset not in RECIPES[file.recipe].presets:
        return {}
    recipe = load_recipe(file.recipe, file.preset)
    said, kept = flatten(file), flatten(config)
    before, after = (flatten(resolve(left_to_follow(run, recipe))) for run in (file, config))
    stays = [name for name in RULES if name in said and said[name] == before.get(name) == kept.get(name)]
    return {name: after[name] for name in stays if name in after and after[name] != said[name]}
