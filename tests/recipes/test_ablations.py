"""Every row of every ablation is a run that can start, and differs from the base run in what it says and in nothing else."""

from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest

from openjepa.checks import check
from openjepa.config import difference
from openjepa.recipes import load_recipe
from openjepa.recipes.ablations import ABLATIONS, BASE, Layers, Share, ablation_rows, parsed_changes, with_changes
from openjepa.refusals import Refusal
from openjepa.settings.run import RunConfig

NUM_ROWS = {
    "methods": 6,
    "masks": 5,
    "target-space": 3,
    "target-scale": 6,
    "context-scale": 4,
    "num-targets": 4,
    "target-masking": 2,
    "predictor-depth": 2,
    "weight-decay": 2,
    "predictor-width": 2,
    "contexts": 4,
    "target-layers": 4,
    "ema": 5,
    "regularizers": 3,
}

BEYOND = {"methods", "contexts", "target-layers", "ema", "regularizers"}
"""Ablations without published numbers."""


def base_of(name: str, recipe: str | None = None) -> RunConfig:
    ablation = ABLATIONS[name]
    return with_changes(load_recipe(recipe or ablation.base), ablation.common)


def test_all_are_there() -> None:
    assert {name: len(ablation.rows) for name, ablation in ABLATIONS.items()} == NUM_ROWS
    published = {name: len(ablation.published()) for name, ablation in ABLATIONS.items() if ablation.source}
    assert sum(published.values()) == 28 and set(published) == set(NUM_ROWS) - BEYOND


@pytest.mark.parametrize("recipe", ["cpu-32", "gpu-224"])
@pytest.mark.parametrize("name", NUM_ROWS)
def test_every_row_can_start_and_says_what_differs(name: str, recipe: str, tmp_path: Path) -> None:
    base = base_of(name, recipe)
    base = replace(base, data=replace(base.data, path=str(tmp_path)))  # type: ignore[call-arg]
    for row, config in ablation_rows(name, base).items():
        check(config)
        changes = ABLATIONS[name].rows[row].changes
        if {"method.name", "masks.strategy"} & set(changes):
            continue  # other settings come with them
        assert {setting for setting, *_ in difference(base, config)} <= set(changes), row
        assert row == ABLATIONS[name].first or config != base, row


def test_a_row_means_the_same_in_every_ablation_with_the_same_base() -> None:
    """They then share the runs of that row."""
    bases = [
        with_changes(base_of(name), ablation.rows[BASE].changes)
        for name, ablation in ABLATIONS.items()
        if ablation.source and BASE in ablation.rows
    ]
    assert len(bases) == 6 and all(config == bases[0] for config in bases)
    rows = Counter(row for ablation in ABLATIONS.values() for row in ablation.rows if row != BASE)
    assert max(rows.values()) == 1


def test_settings_that_follow_the_encoder_are_shares_of_it() -> None:
    small, large = (ablation_rows("predictor-width", base_of("predictor-width", name)) for name in ("cpu-32", "ijepa-vitl16"))
    widths = [[config.method.predictor_width for config in rows.values()] for rows in (small, large)]  # type: ignore[attr-defined]
    assert widths == [[48, 128], [384, 1024]], "those of the paper beside ViT-L"
    layers = [Layers(4), Layers(4, after=1 / 2), Layers(9)]
    assert [item.of_encoder(load_recipe("gpu-224")) for item in layers[:2]] == [(3, 6, 9, 12), (8, 9, 10, 12)]
    assert layers[2].of_encoder(base_of("masks")) == (1, 2, 3, 4)
    assert Share("depth", 1 / 9).of_encoder(base_of("masks")) == 1


def test_changes_are_read_from_words() -> None:
    found = parsed_changes(["optim.lr=1e-3", "masks.target-scale=[0.1, 0.2]", "monitor.knn=false", "optim.clip_grad=null"])
    config = with_changes(base_of("masks"), found)
    assert (config.optim.lr, config.masks.target_scale, config.monitor.knn) == (1e-3, (0.1, 0.2), False)  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("optim.lr", r"--set 'optim.lr' must be a setting as name=value"),
        ("lr=1", r"--set 'lr=1' must be a setting"),
        ("optim.lr=[1", r"the value cannot be read"),
        ("optim.lrr=1", r"unknown setting optim.lrr: did you mean 'optim.lr'"),
        ("optimum.lr=1", r"unknown setting optimum.lr"),
        ("optim.lr=high", r"optim.lr='high' must be a number"),
        ("masks.strategy=blocks", r"masks.strategy='blocks' does not exist"),
    ],
)
def test_impossible_changes_are_refused(word: str, message: str) -> None:
    with pytest.raises(Refusal, match=message):
        with_changes(base_of("masks"), parsed_changes([word]))
