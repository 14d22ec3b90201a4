"""The small recipes with the methods that I-JEPA is compared with: `mae-cpu-32` is `cpu-32` with MAE."""

from openjepa.recipes import small
from openjepa.recipes.matched import CHANGES, with_method
from openjepa.recipes.recipe import Recipe
from openjepa.settings.run import RunConfig

BASES = ("cpu-32", "cpu-64", "cpu-96", "gpu-224")
TITLES = {"mae": "MAE", "data2vec": "data2vec", "dino": "DINO", "ibot": "iBOT", "msn": "MSN"}
PLACES = {
    "cpu-32": "own images at 32 px on one CPU",
    "cpu-64": "own images at 64 px on one CPU",
    "cpu-96": "own images at 96 px on one CPU",
    "gpu-224": "own images at 224 px on one GPU",
}


def _rival(method: str, base: str) -> Recipe:
    """The recipe `base` with another method. Its docstring is made here: one text for all."""

    def build(preset: str) -> RunConfig:
        return with_method(small.RECIPES[base].config(preset), method)

    build.__doc__ = f"""{TITLES[method]} on {PLACES[base]}, with encoder, batch and images seen of `{base}`.

    `default`: published masks, crops and losses, heads in proportion to the encoder; a peak rate for short runs, which was set
    by short runs on CIFAR-10 at 32 px.

    openjepa train {method}-{base} --data.path ~/photos
    """
    return Recipe(build, ("default",))


RECIPES = {f"{method}-{base}": _rival(method, base) for method in CHANGES for base in BASES}
