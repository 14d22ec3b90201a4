"""Costs that are counted on the meta device, beside what formulas by hand gave for recipes before.

What real steps of each method cost is compared in tests/methods/test_every_method.py.
"""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from openjepa.engine.costs import StepCosts, each_context, representatives, times_contexts
from openjepa.masks import MASKS
from openjepa.masks.sampler import TokenShape
from openjepa.recipes import load_recipe
from openjepa.settings.derived import resolve
from openjepa.settings.methods import IJepaSettings
from openjepa.settings.run import RunConfig
from openjepa.training.startup import default_view, step_costs

GOLDEN = json.loads((Path(__file__).parents[1] / "golden/costs.json").read_text())
FORMULA_BYTES = {"fp32": 54, "bf16": 40}
"""What the formula took for each token and unit of width (`kept_widths`), as was measured with I-JEPA."""


@pytest.mark.parametrize("name", GOLDEN)
def test_what_is_counted_is_what_formulas_by_hand_gave(name: str) -> None:
    """FLOPs to rounding (iBOT's formula left out the mean patch of a batch), bytes to four tenths (rough constants)."""
    config = resolve(load_recipe(name), total_steps=1000)
    view = default_view(config.data)
    sampler = MASKS[config.masks.strategy].load()(config.masks, config.model.grid(view.size))
    costs, before = step_costs(config, view, sampler), GOLDEN[name]
    rounding = 1e-5 if config.method.name == "ibot" else 1e-12
    assert dict(costs.flops) == pytest.approx(before["flops"], rel=rounding)
    assert costs.step_flops == pytest.approx(before["step_flops"], rel=rounding)
    images = config.optim.microbatch_size or config.optim.batch_size
    for precision, size in FORMULA_BYTES.items():
        found = costs.kept(torch.device("cuda"), precision)
        assert found == pytest.approx(size * before["kept_widths"] * images, rel=0.4)


def test_each_further_context_costs_a_step_without_the_target_encoder() -> None:
    config = resolve(load_recipe("cpu-32"), total_steps=1000)
    view = default_view(config.data)
    sampler = MASKS[config.masks.strategy].load()(config.masks, config.model.grid(view.size))
    one, four = (step_costs(_with_contexts(config, number), view, sampler) for number in (1, 4))
    teacher = one.flops["target_encoder"]
    assert four.flops["target_encoder"] == teacher and (one.contexts, four.contexts) == (1, 4)
    assert four.step_flops == pytest.approx(teacher + 4 * (one.step_flops - teacher), rel=1e-12)
    assert four.kept_bytes == pytest.approx(4 * one.kept_bytes, rel=0.05)
    assert (times_contexts(1), each_context(8e9, 1)) == ("", "")
    assert (times_contexts(4), each_context(8e9, 4)) == (" x 4 contexts", " (2.0G for each of 4 contexts)")


def _with_contexts(config: RunConfig, number: int) -> RunConfig:
    assert isinstance(config.method, IJepaSettings)
    return replace(config, method=replace(config.method, contexts=number))


def test_only_plain_attention_keeps_attention_weights() -> None:
    costs = StepCosts({}, 0.0, kept_bytes=6400.0, kept_scores=100.0)
    assert costs.kept(torch.device("cpu"), "fp32") == costs.kept(torch.device("cuda"), "fp32") == 6400
    assert costs.kept(torch.device("cuda"), "bf16") == 3600 and costs.kept(torch.device("cpu"), "bf16") == 3800


def test_six_shapes_stand_for_many() -> None:
    """Any quadratic function has the mean over six weighted shapes that it has over all sixty."""
    generator = torch.Generator().manual_seed(0)
    chances = torch.rand(60, generator=generator).double()
    shapes = [
        TokenShape(40 + 3 * (number // 6), 7 + 5 * (number % 6), chance, num_targets=4)
        for number, chance in enumerate((chances / chances.sum()).tolist())
    ]

    def cost(shape: TokenShape) -> float:
        return 5 + 3 * shape.context + 2 * shape.target + (shape.context + shape.target) ** 2 + 7 * shape.context**2

    few = representatives(shapes)
    assert len(few) == 6 and few[0][0].context == 67, "the largest is among them, which bytes are counted of"
    expected = sum(shape.probability * cost(shape) for shape in shapes)
    assert sum(weight * cost(shape) for shape, weight in few) == pytest.approx(expected, rel=1e-9)
    assert representatives(shapes[:6]) == [(shape, shape.probability) for shape in shapes[:6]]
