"""Learning rate, weight decay and momentum of every step against the released schedules."""

import json
from pathlib import Path

import pytest
from safetensors import safe_open

from openjepa.schedules import Progress, learning_rate, momentum, weight_decay
from openjepa.settings.optimization import OptimizationSettings

FILE = Path(__file__).parent / "data" / "ijepa_schedules.safetensors"
CASES = ("ijepa_official_in1k_h14", "ijepa_paper_like", "ijepa_ipe_scale1.25", "ijepa_wd_down")


@pytest.mark.parametrize("name", CASES)
def test_every_recorded_step(name: str) -> None:
    with safe_open(FILE, "pt") as file:
        case = json.loads(file.metadata()["json"])["cases"][name]
        tensors = {key: file.get_tensor(f"{name}/{key}") for key in _keys(file.keys(), name)}
    optim = OptimizationSettings(
        epochs=case["epochs"],
        lr=case["lr"],
        start_lr=case["start_lr"],
        final_lr=case["final_lr"],
        warmup_epochs=case["warmup_epochs"],
        weight_decay=case["wd"],
        final_weight_decay=case["final_wd"],
        weight_decay_schedule="cosine",
    )
    for prefix in ("", "edge_"):
        for row, step in enumerate(tensors[f"{prefix}index"].tolist()):
            progress = Progress(step, case["total_steps"], case["steps_per_epoch"], stretch=case["ipe_scale"])
            assert learning_rate(optim, progress) == pytest.approx(tensors[f"{prefix}lr"][row].item(), abs=1e-12)
            assert weight_decay(optim, progress) == pytest.approx(tensors[f"{prefix}wd"][row].item(), abs=1e-12)
            if not prefix:
                value = momentum(*case["ema"], progress)
                assert value == pytest.approx(tensors["momentum"][row].item(), abs=1e-12)


def _keys(names: list[str], case: str) -> list[str]:
    keys = [name.removeprefix(f"{case}/") for name in names if name.startswith(f"{case}/")]
    assert len(keys) == 7
    return keys
