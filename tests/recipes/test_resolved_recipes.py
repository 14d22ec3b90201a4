"""The resolved settings of every recipe are those that they were when derived settings still had numbers.

A meant change writes the hashes anew: `OPENJEPA_GOLDEN=write pytest tests/recipes/test_resolved_recipes.py`; the log says why.
"""

import hashlib
import json
import os
from pathlib import Path

import pytest

from openjepa.config import flatten
from openjepa.recipes import RECIPES, load_recipe
from openjepa.settings.derived import resolve
from openjepa.settings.run import RunConfig

GOLDEN = Path(__file__).parents[1] / "golden" / "recipes.json"
"""`method model masks data optim rest` of each run: the first digits of a hash of its settings."""
SINCE: dict[str, object] = {
    "optim.warmup_share": None,
    "optim.images_per_device": None,
    "run.recompute": False,
    "parallel.strategy": "auto",
    "parallel.reduce_precision": "fp32",
    "parallel.timeout_seconds": 1800.0,
    "masks.cut_images": 128,
    "method.target_space": "features",
    "method.pixels_until": (0.25, 0.45),
    "method.features_from": (0.25, 0.45),
    "method.contexts": 1,
    "method.predictor_pass": "separate",
    "method.position_noise": 0.0,
    "method.sampled_targets": None,
    "method.context_loss": 0.0,
    "method.context_loss_warmup": (0.11, 0.22),
    "method.position_momentum": 0.99,
    "method.dyntanh_alpha": 0.5,
    "method.target_masking": "output",
    "method.target_layers": (),
    "method.teacher": None,
    "method.target_layers_join": "concatenated",
    "method.ema_memory": None,
    "optim.optimizer": "adamw",
    "optim.muon_momentum": 0.95,
    "method.regularizer": "none",
    "method.regularizer_width": None,
    "method.vicreg_weight": 0.001,
    "method.vicreg_variance": 25.0,
    "method.vicreg_covariance": 1.0,
    "method.vicreg_invariance": 25.0,
    "method.sigreg_weight": 0.05,
    "method.sigreg_slices": 1024,
    "method.sigreg_points": 17,
}
"""Settings that came later, with the value that changes nothing, which every recipe has."""
GROUPS = ("method", "model", "masks", "data", "optim")
ALL_RUNS = [(name, preset) for name, recipe in RECIPES.items() for preset in recipe.presets]


def digests(config: RunConfig) -> str:
    """One short hash a group of settings, so that a failure tells where to look."""
    groups: dict[str, dict[str, object]] = {name: {} for name in (*GROUPS, "rest")}
    for name, value in flatten(config).items():
        if name in SINCE:
            assert value == SINCE[name]
            continue
        group = name.split(".")[0]
        groups[group if group in GROUPS else "rest"][name] = plain(value)
    return " ".join(
        hashlib.blake2b(json.dumps(group, sort_keys=True).encode(), digest_size=4).hexdigest() for group in groups.values()
    )


def plain(value: object) -> object:
    """1 and 1.0 are one value."""
    if isinstance(value, tuple):
        return [plain(item) for item in value]
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else value


@pytest.mark.parametrize(("name", "preset"), ALL_RUNS)
def test_resolved_settings_stay(name: str, preset: str) -> None:
    found, golden = digests(resolve(load_recipe(name, preset))), json.loads(GOLDEN.read_text())
    if os.environ.get("OPENJEPA_GOLDEN") == "write":
        GOLDEN.write_text(json.dumps(golden | {f"{name} {preset}": found}, indent=1) + "\n")
        return
    assert found == golden[f"{name} {preset}"]


def test_every_recipe_is_in_the_file() -> None:
    assert set(json.loads(GOLDEN.read_text())) == {f"{name} {preset}" for name, preset in ALL_RUNS}
