"""Named runs. Each is a function from a preset to a RunConfig; its docstring gives source, presets, hardware and command.

`openjepa train NAME [--preset PRESET]` starts from one of them, and every setting can be overridden. One file for the small
recipes and one for each method; every file lists its own under RECIPES.
"""

from dataclasses import replace

from openjepa.config import nearest
from openjepa.recipes import data2vec, dino, ibot, ijepa, mae, msn, rivals, small
from openjepa.recipes.matched import ema_start_for
from openjepa.recipes.recipe import Recipe
from openjepa.refusals import Refusal
from openjepa.settings.methods import TeacherSettings
from openjepa.settings.run import RunConfig

__all__ = ["RECIPES", "Recipe", "load_recipe", "with_total_steps"]

RECIPES: dict[str, Recipe] = {
    **small.RECIPES,
    **rivals.RECIPES,
    **ijepa.RECIPES,
    **mae.RECIPES,
    **data2vec.RECIPES,
    **dino.RECIPES,
    **ibot.RECIPES,
    **msn.RECIPES,
}


def load_recipe(name: str, preset: str | None = None) -> RunConfig:
    """The settings of a recipe's preset. Raises Refusal that names the nearest recipe, or the presets."""
    if name not in RECIPES:
        raise Refusal(f"recipe {name!r} does not exist: {nearest(name, RECIPES)}")
    config = RECIPES[name].config(preset)
    return replace(config, recipe=name, preset=preset or RECIPES[name].presets[0])


def with_total_steps(config: RunConfig, total_steps: int) -> RunConfig:
    """A recipe given in steps at another length: the warm-up keeps its share of the run.

    The moving average of our small recipes follows too, so that the teacher is renewed as often; released values stay.
    """
    optim, method, before = config.optim, config.method, config.optim.total_steps
    if not before or total_steps < 1:
        return replace(config, optim=replace(optim, total_steps=total_steps))
    if optim.warmup_steps is not None:
        optim = replace(optim, warmup_steps=round(optim.warmup_steps * total_steps / before))
    if isinstance(method, TeacherSettings) and method.ema_start == ema_start_for(before):
        start = ema_start_for(total_steps)
        method = replace(method, ema_start=start, ema_end=start if method.ema_end == method.ema_start else method.ema_end)
    return replace(config, method=method, optim=replace(optim, total_steps=total_steps))
