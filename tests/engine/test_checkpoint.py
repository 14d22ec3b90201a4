"""A checkpoint comes back bit for bit, a broken one is passed over, and no kill leaves half of one behind."""

import logging
from pathlib import Path

import pytest
import torch
from torch import nn

from openjepa.engine.checkpoint import TrainerState, latest_checkpoint, load_checkpoint, save_checkpoint, set_broken_aside
from openjepa.engine.optimizer import build_optimizer
from openjepa.settings.run import OptimizationSettings
from openjepa.types import LoaderPosition, ParameterRule

RULES = (
    ParameterRule(matches=lambda name, value: value.ndim == 1, decay=False),
    ParameterRule(matches=lambda name, value: True, decay=True),
)


def make(seed: int) -> tuple[nn.Module, torch.optim.AdamW]:
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(4, 8), nn.LayerNorm(8), nn.Linear(8, 2))
    model[2].requires_grad_(False)  # a frozen teacher is saved too, but never optimized
    return model, build_optimizer(model.named_parameters(), RULES, OptimizationSettings())


def step(model: nn.Module, optimizer: torch.optim.AdamW, seed: int) -> None:
    optimizer.zero_grad()
    model(torch.randn(3, 4, generator=torch.Generator().manual_seed(seed))).square().mean().backward()
    optimizer.step()


def state_at(number: int) -> TrainerState:
    return TrainerState(step=number, position=LoaderPosition(1, 2), images_seen=7, seconds=1.5, samples_skipped=3)


def test_training_goes_on_bitwise_equal_after_a_reload(tmp_path: Path) -> None:
    model, optimizer = make(0)
    for seed in range(3):
        step(model, optimizer, seed)
    path = save_checkpoint(tmp_path, model, optimizer, state_at(3))
    step(model, optimizer, 3)

    other, other_optimizer = make(1)
    assert load_checkpoint(path, other, other_optimizer) == state_at(3)
    step(other, other_optimizer, 3)
    for expected, found in zip(model.state_dict().values(), other.state_dict().values(), strict=True):
        assert torch.equal(expected, found)


def test_a_parameter_that_had_no_gradient_yet_starts_as_if_nothing_was_saved(tmp_path: Path) -> None:
    """A layer that stands still at first (DINO's last) has no moments when the checkpoint is written."""
    (model, optimizer), (fresh, fresh_optimizer) = make(0), make(0)
    for network, moments in ((model, optimizer), (fresh, fresh_optimizer)):
        network[1].requires_grad_(False)
        step(network, moments, 0)
        network[1].requires_grad_(True)
    path = save_checkpoint(tmp_path, model, optimizer, state_at(1))
    other, other_optimizer = make(1)
    load_checkpoint(path, other, other_optimizer)
    for network, moments in ((model, optimizer), (other, other_optimizer), (fresh, fresh_optimizer)):
        step(network, moments, 1)
    for expected, saved, found in zip(fresh.parameters(), model.parameters(), other.parameters(), strict=True):
        assert torch.equal(expected, found) and torch.equal(expected, saved)


def test_loading_an_older_state_leaves_no_trace_of_the_newer(tmp_path: Path) -> None:
    model, optimizer = make(0)
    step(model, optimizer, 0)
    path = save_checkpoint(tmp_path, model, optimizer, state_at(1))
    before = {name: value.clone() for name, value in model.state_dict().items()}
    moments = [values["exp_avg"].clone() for values in optimizer.state.values()]
    step(model, optimizer, 1)
    step(model, optimizer, 2)
    load_checkpoint(path, model, optimizer)
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    for values, moment in zip(optimizer.state.values(), moments, strict=True):
        assert values["step"].item() == 1 and torch.equal(values["exp_avg"], moment)


@pytest.mark.parametrize("damage", ["flip", "truncate", "remove", "manifest"])
def test_a_broken_latest_falls_back_loudly(tmp_path: Path, caplog: pytest.LogCaptureFixture, damage: str) -> None:
    model, optimizer = make(0)
    good = save_checkpoint(tmp_path, model, optimizer, state_at(1))
    bad = save_checkpoint(tmp_path, model, optimizer, state_at(2))
    tensors = next(path for path in (bad / "tensors").iterdir() if path.suffix == ".distcp")
    content = bytearray(tensors.read_bytes())
    if damage == "flip":
        content[len(content) // 2] ^= 1
        tensors.write_bytes(content)
    elif damage == "truncate":
        tensors.write_bytes(content[:-1])
    elif damage == "remove":
        tensors.unlink()
    else:
        (bad / "manifest.json").write_text("{")
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    with caplog.at_level(logging.WARNING, logger="openjepa"):
        assert latest_checkpoint(tmp_path) == good
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")} == before, "who only looks changes nothing"
    set_broken_aside(tmp_path, good)
    assert str(bad) in caplog.text and "falling back" in caplog.text
    again = save_checkpoint(tmp_path, model, optimizer, state_at(2))
    assert latest_checkpoint(tmp_path) == again == bad  # the broken one is no longer in the way
    assert (tmp_path / "broken_step_00000002").is_dir()


def test_without_a_whole_checkpoint_all_are_set_aside(tmp_path: Path) -> None:
    for name in ("step_00000001", "step_00000002", "broken_step_00000002"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "name").write_text(name)
    assert latest_checkpoint(tmp_path) is None
    set_broken_aside(tmp_path, None)
    left = {path.name: (path / "name").read_text() for path in tmp_path.iterdir()}
    assert left == {"broken_step_00000001": "step_00000001", "broken_step_00000002": "step_00000002"}


def test_what_a_kill_leaves_half_written_is_no_checkpoint(tmp_path: Path) -> None:
    (tmp_path / ".writing-step_00000005").mkdir()
    assert latest_checkpoint(tmp_path) is None
    model, optimizer = make(0)
    saved = save_checkpoint(tmp_path, model, optimizer, state_at(5))
    assert latest_checkpoint(tmp_path) == saved
    assert [path.name for path in tmp_path.iterdir()] == ["step_00000005"]


def test_two_newest_and_every_kth_are_kept(tmp_path: Path) -> None:
    model, optimizer = make(0)
    for number in range(1, 8):
        save_checkpoint(tmp_path, model, optimizer, state_at(number), keep_every=3)
    assert sorted(int(path.name[5:]) for path in tmp_path.iterdir()) == [3, 6, 7]
