"""Learning rate, weight decay and momentum of every step against the released schedules."""

import json
from pathlib import Path

import pytest
from safetensors import safe_open

from openjepa.schedules import Progress, cosine_momentum, learning_rate, momentum, weight_decay
from openjepa.settings.optimization import OptimizationSettings
from tests.parity.golden import SCHEDULE, read_golden
from tests.parity.official_names import part

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


@pytest.mark.parametrize("quantity", ["lr", "short", "wd", "momentum"])
@pytest.mark.parametrize("method", ["dino", "ibot"])
def test_dino_and_ibot(method: str, quantity: str) -> None:
    """One schedule for rate, decay and momentum: the end of the warm-up is reached, that of the cosine is not."""
    golden, header = read_golden("schedules")
    case, recorded = header["cases"][f"{method}_{quantity}"], part(golden, f"{method}_{quantity}/")
    start, end, length = case["base"], case["final"], case["epochs"] * case["steps_per_epoch"]
    optim = OptimizationSettings(
        lr=start,
        start_lr=case["start_warmup_value"],
        final_lr=end,
        warmup_epochs=case["warmup_epochs"],
        weight_decay=start,
        final_weight_decay=end,
        weight_decay_schedule="cosine",
        schedule_steps="inclusive",
    )
    for step, value in zip(recorded["index"].tolist(), recorded["value"].tolist(), strict=True):
        progress = Progress(step, length, case["steps_per_epoch"])
        ours = {
            "wd": weight_decay(optim, progress),
            "momentum": cosine_momentum(start, end, progress),
        }.get(quantity, learning_rate(optim, progress))
        assert ours == pytest.approx(value, abs=SCHEDULE)
