"""Learning rate, weight decay and momentum of every step against the released schedules."""

import json
from pathlib import Path

import pytest
from safetensors import safe_open

from openjepa.schedules import Progress, cosine_momentum, learning_rate, momentum, ramped_momentum, weight_decay
from openjepa.settings.run import OptimizationSettings
from tests.helpers.parity import SCHEDULE, part, read_golden

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


@pytest.mark.parametrize("name", ["data2vec_lr", "data2vec_tri_phase"])
def test_rates_of_data2vec(name: str) -> None:
    """A cosine, or constant with lines at both ends whose last steps have their end values."""
    golden, header = read_golden("schedules")
    case, recorded = header["cases"][name], part(golden, f"{name}/")
    length = case["epochs"] * case["steps_per_epoch"]
    is_cosine = name == "data2vec_lr"
    optim = OptimizationSettings(
        lr=case["base"],
        start_lr=case["start_warmup_value"],
        final_lr=case["final"],
        warmup_steps=case["warmup_epochs"] * case["steps_per_epoch"] if is_cosine else int(case["warmup"] * length),
        lr_schedule="cosine" if is_cosine else "constant_cooldown",
        cooldown=case.get("decay", 0.2),
        schedule_steps="inclusive",
    )
    for step, value in zip(recorded["index"].tolist(), recorded["value"].tolist(), strict=True):
        assert learning_rate(optim, Progress(step, length, case["steps_per_epoch"])) == pytest.approx(value, abs=SCHEDULE)


def test_ramp_of_data2vecs_momentum() -> None:
    golden, header = read_golden("schedules")
    case, recorded = header["cases"]["data2vec_ema"], part(golden, "data2vec_ema/")
    for step, value in zip(recorded["index"].tolist(), recorded["value"].tolist(), strict=True):
        ours = ramped_momentum(case["init"], case["final"], case["ramp_steps"] / 100, Progress(step, 100, 100))
        assert ours == pytest.approx(value, abs=SCHEDULE)
    assert ramped_momentum(0.9, 0.99, 0.0, Progress(0, 100, 100)) == 0.99


@pytest.mark.parametrize("name", ["mae_800", "mae_short"])
def test_rates_of_mae(name: str) -> None:
    """A function of the fractional epoch: the first step has a rate of 0, and the cosine ends one step after the last."""
    golden, header = read_golden("schedules")
    case, recorded = header["cases"][name], part(golden, f"{name}/")
    optim = OptimizationSettings(
        lr=case["lr"],
        start_lr=0.0,
        final_lr=case["min_lr"],
        warmup_epochs=case["warmup_epochs"],
        schedule_steps="from_zero",
    )
    length = case["epochs"] * case["steps_per_epoch"]
    assert recorded["index"][0] == 0 and recorded["lr"][0] == 0
    for step, value in zip(recorded["index"].tolist(), recorded["lr"].tolist(), strict=True):
        assert learning_rate(optim, Progress(step, length, case["steps_per_epoch"])) == pytest.approx(value, abs=SCHEDULE)
