"""A checkpoint comes back bit for bit, a broken one is passed over, and no kill leaves half of one behind."""

import errno
import logging
import os
import resource
import shutil
import socket
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any

import pytest
import torch

from openjepa.engine import checkpoint, checkpoint_files
from openjepa.engine.checkpoint import (
    CheckpointWriter,
    check_fits,
    latest_checkpoint,
    load_checkpoint,
    read_state,
    set_broken_aside,
)
from openjepa.engine.checkpoint_files import KEPT_FREE_BYTES
from openjepa.refusals import Refusal
from tests.helpers.checkpoints import copies, equal, loaded, make, opened_by, save_checkpoint, state_at, step
from tests.helpers.processes import in_process


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


def test_a_checkpoint_of_the_version_before_several_processes_is_continued(tmp_path: Path) -> None:
    """`data/step_00000003` was written at commit 5a6eb6d: three steps of the network of seed 0."""
    saved = shutil.copytree(Path(__file__).parent / "data" / "step_00000003", tmp_path / "step_00000003")
    model, optimizer = make(0)
    for seed in range(3):
        step(model, optimizer, seed)
    assert latest_checkpoint(tmp_path) == saved
    expected = copies(model, optimizer)
    torch.testing.assert_close(loaded(saved), expected)  # another processor may round differently
    other, other_optimizer = make(1)
    check_fits(saved, other)
    assert load_checkpoint(saved, other, other_optimizer) == state_at(3)
    path = save_checkpoint(tmp_path, other, other_optimizer, state_at(4))
    assert latest_checkpoint(tmp_path) == path and equal(loaded(path), loaded(saved))


# ----------------------------------------------------------------------------------------- written beside the training


def test_a_slow_write_holds_the_values_at_the_save_while_the_training_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    go = threading.Event()

    def opened(path: Path, mode: str) -> IO[Any]:
        assert go.wait(30)
        return path.open(mode)

    model, optimizer = make(0)
    step(model, optimizer, 0)
    with CheckpointWriter(tmp_path, model, optimizer) as writer:
        for number in (1, 2):  # the second uses the same copies in memory
            expected = copies(model, optimizer)
            opened_by(monkeypatch, opened)
            path = writer.save(state_at(number))
            optimizer.param_groups[0]["lr"] = 0.125 * number
            for seed in range(1, 4):
                step(model, optimizer, seed)
            assert not path.exists() and not equal(expected, copies(model, optimizer))
            go.set()
            writer.finish()
            go.clear()
            monkeypatch.undo()
            assert equal(expected, loaded(path)) and read_state(path) == state_at(number)
        assert latest_checkpoint(tmp_path) == path
    other, other_optimizer = make(1)
    load_checkpoint(path, other, other_optimizer)
    assert other_optimizer.param_groups[0]["lr"] == 0.125  # set before the second save; the later one is not in it


def test_leaving_the_block_waits_for_the_write(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING)
    model, optimizer = make(0)
    with pytest.raises(KeyError), CheckpointWriter(tmp_path, model, optimizer) as writer:
        path = writer.save(state_at(1))
        raise KeyError
    assert latest_checkpoint(tmp_path) == path and not caplog.text
    with CheckpointWriter(tmp_path, model, optimizer) as writer:
        assert writer.save(state_at(1)) == path  # it is there already
        assert latest_checkpoint(tmp_path) == writer.save(state_at(2)).with_name("step_00000001")


# --------------------------------------------------------------------------------------------------------------- disks


def test_too_little_room_is_refused_before_anything_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, optimizer = make(0)
    step(model, optimizer, 0)
    good = save_checkpoint(tmp_path, model, optimizer, state_at(1))
    (tmp_path / ".writing-step_00000002").mkdir()  # a killed process left it; it may hold the room that is needed
    needed = sum(value.nbytes for value in copies(model, optimizer).values())
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=needed + KEPT_FREE_BYTES - 1))
    with CheckpointWriter(tmp_path, model, optimizer) as writer:
        with pytest.raises(
            Refusal, match=rf"{tmp_path}: step_00000002 and 67.1 MB of other files need 67.1 MB, but .* step_00000001"
        ):
            writer.save(state_at(2))
        assert list(tmp_path.iterdir()) == [good]
        monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=needed + KEPT_FREE_BYTES))
        writer.save(state_at(2))
    assert latest_checkpoint(tmp_path) == tmp_path / "step_00000002"


@pytest.mark.parametrize("what", ["0.distcp", ".metadata.tmp", "trainer.json", "manifest.json"])
def test_a_disk_that_fills_during_the_write_leaves_the_checkpoint_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    model, optimizer = make(0)
    step(model, optimizer, 0)
    good = save_checkpoint(tmp_path, model, optimizer, state_at(1))
    expected = loaded(good)
    usual = Path.open

    def opened(path: Path, *arguments: Any, **named: Any) -> IO[Any]:
        return usual(Path("/dev/full") if path.name.endswith(what) else path, *arguments, **named)  # the system's own error

    monkeypatch.setattr(Path, "open", opened)
    with CheckpointWriter(tmp_path, model, optimizer) as writer:
        path = writer.save(state_at(2))
        with pytest.raises(
            Refusal, match=f"{path} could not be written: {os.strerror(errno.ENOSPC)}.*step_00000001, is as it was"
        ):
            writer.save(state_at(3))
        monkeypatch.undo()
        assert list(tmp_path.iterdir()) == [good] and equal(loaded(good), expected)
        writer.finish()  # the error was told once
        writer.save(state_at(3))
    assert latest_checkpoint(tmp_path) == tmp_path / "step_00000003"


def test_the_error_of_the_disk_is_told_even_amid_a_tensor(tmp_path: Path) -> None:
    """torch then says that its file has an unexpected position. The limit of the system stands for a disk that fills."""
    model, optimizer = make(0)
    step(model, optimizer, 0)
    good = save_checkpoint(tmp_path, model, optimizer, state_at(1))

    def work() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))
        with CheckpointWriter(tmp_path, model, optimizer) as writer, pytest.raises(Refusal, match=os.strerror(errno.EFBIG)):
            writer.save(state_at(2))
            writer.finish()
        assert latest_checkpoint(tmp_path) == good and len(list(tmp_path.iterdir())) == 1

    process = in_process(work)
    process.join(30)
    assert process.exitcode == 0


def test_a_file_that_another_machine_kept_for_itself_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checkpoint_files, "LATE_SECONDS", 0.05)
    file = tmp_path / "there"
    file.write_text("content")
    files = checkpoint_files.checksums(tmp_path, [file])
    file.unlink()
    with pytest.raises(Refusal, match=f"{file} was written by another process.*a disk that all machines share"):
        checkpoint_files.write_manifest(tmp_path, files)


def test_a_file_of_another_machine_that_appears_late_is_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file, hidden = tmp_path / "tensors" / "there", tmp_path / "hidden"
    file.parent.mkdir()
    file.write_text("content")
    files = checkpoint_files.checksums(tmp_path, [file])
    monkeypatch.setattr(checkpoint_files.time, "sleep", lambda seconds: hidden.rename(file))  # during the first wait
    file.rename(hidden)
    assert checkpoint_files.lasting_damage(tmp_path, files, wait=False) == "tensors/there is missing"
    assert checkpoint_files.lasting_damage(tmp_path, files, wait=True) is None
    file.rename(hidden)
    checkpoint_files.write_manifest(tmp_path, files)
    assert checkpoint_files.manifest_of(tmp_path) == files


def test_an_error_of_the_write_does_not_hide_that_of_the_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    model, optimizer = make(0)
    full = Path("/dev/full")
    opened_by(monkeypatch, lambda path, mode: full.open(mode))
    with pytest.raises(KeyError), CheckpointWriter(tmp_path, model, optimizer) as writer:
        writer.save(state_at(1))
        raise KeyError
    assert os.strerror(errno.ENOSPC) in caplog.text and "there is no earlier one" in caplog.text
    with pytest.raises(Refusal, match="No space"), CheckpointWriter(tmp_path, model, optimizer) as writer:
        writer.save(state_at(1))


# --------------------------------------------------------------------------------------------------------------- kills


class Dying:
    """A file that ends its process in the middle of a write."""

    def __init__(self, stream: IO[bytes]) -> None:
        self._stream = stream

    def write(self, data: bytes) -> int:
        if self._stream.tell() > 2000:
            self._stream.write(data[: len(data) // 2])
            self._stream.flush()
            os._exit(9)
        return self._stream.write(data)

    def __enter__(self) -> "Dying":
        return self

    def __exit__(self, *error: object) -> None:
        self._stream.close()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def _die(*_: object, **__: object) -> None:
    os._exit(9)


STAGES: dict[str, Callable[[pytest.MonkeyPatch], None]] = {
    "folder made": lambda patch: patch.setattr(checkpoint, "save_tensors", _die),
    "amid tensors": lambda patch: opened_by(patch, lambda path, mode: Dying(path.open(mode))),  # type: ignore[return-value]
    "tensors written": lambda patch: patch.setattr(checkpoint, "checksums", _die),
    "before the manifest": lambda patch: patch.setattr(checkpoint, "write_manifest", _die),
    "manifest written": lambda patch: patch.setattr(checkpoint_files, "flush_folder", _die),
    "before the name": lambda patch: patch.setattr(Path, "replace", _die),
    "named": lambda patch: patch.setattr(checkpoint, "flush_folder", _die),
    "before pruning": lambda patch: patch.setattr(checkpoint, "prune", _die),
    "amid pruning": lambda patch: patch.setattr(shutil, "rmtree", _die),
}


@pytest.mark.parametrize("stage", STAGES)
def test_a_kill_at_any_moment_leaves_a_whole_newest_checkpoint(tmp_path: Path, stage: str) -> None:
    model, optimizer = make(0)
    step(model, optimizer, 0)
    before = [save_checkpoint(tmp_path, model, optimizer, state_at(number)) for number in (1, 2)][-1]
    old = loaded(before)
    step(model, optimizer, 1)

    def work() -> None:
        with pytest.MonkeyPatch.context() as patch, CheckpointWriter(tmp_path, model, optimizer) as writer:
            STAGES[stage](patch)
            writer.save(state_at(3))

    process = in_process(work)
    process.join(30)
    assert process.exitcode == 9
    is_named = stage in ("named", "before pruning", "amid pruning")
    found = latest_checkpoint(tmp_path)
    assert found == (tmp_path / "step_00000003" if is_named else before)
    assert equal(loaded(found), copies(model, optimizer) if is_named else old)
    path = save_checkpoint(tmp_path, model, optimizer, state_at(4))
    assert sorted(tmp_path.iterdir()) == [found, path]  # nothing is left of the kill


# --------------------------------------------------------------------------------------------------- clocks, hosts, time


def test_clocks_times_of_files_and_names_of_hosts_mean_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, optimizer = make(0)
    paths = [save_checkpoint(tmp_path, model, optimizer, state_at(1))]
    monkeypatch.setattr(socket, "gethostname", lambda: "another")
    monkeypatch.setattr(time, "time", lambda: 0.0)  # the clock was set back
    paths.append(save_checkpoint(tmp_path, model, optimizer, state_at(2)))
    for first, second in ((10**9, 2 * 10**9), (4 * 10**9, 10**8)):  # also into the future
        for path, moment in zip(paths, (first, second), strict=True):
            for file in [path, *path.rglob("*")]:
                os.utime(file, (moment, moment))
        assert latest_checkpoint(tmp_path) == paths[1]
        set_broken_aside(tmp_path, paths[1])
    paths.append(save_checkpoint(tmp_path, model, optimizer, state_at(3)))
    assert sorted(tmp_path.iterdir()) == paths[1:]  # the oldest by its step was removed
