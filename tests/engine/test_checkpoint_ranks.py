"""Checkpoints of several processes: any number of them reads what any number wrote, and one that fails fails in all."""

import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn
from torch.distributed import fsdp
from torch.distributed.device_mesh import init_device_mesh

from openjepa.engine import checkpoint, checkpoint_files, distributed
from openjepa.engine.checkpoint import (
    CheckpointWriter,
    check_fits,
    latest_checkpoint,
    load_checkpoint,
    set_broken_aside,
    whole_state,
)
from openjepa.engine.checkpoint_files import KEPT_FREE_BYTES
from openjepa.models.vit import build_encoder
from openjepa.types import Export
from openjepa.weights.native import save_network
from tests.helpers.checkpoints import adamw, copies, equal, loaded, make, network, opened_by, save_checkpoint, state_at, step
from tests.helpers.ranks import SECONDS, on_ranks, start_ranks
from tests.helpers.tiny_encoder import CONFIG


def sharded(model: nn.Module, parts: tuple[str, ...] = ()) -> nn.Module:
    """`model`, divided over the processes as FSDP2 does it; `parts` are units of their own."""
    mesh = init_device_mesh("cpu", (distributed.world_size(),))
    for name in parts:
        fsdp.fully_shard(model.get_submodule(name), mesh=mesh)
    return fsdp.fully_shard(model, mesh=mesh)


# ------------------------------------------------------------------------------------------ other numbers of processes


def _pass_on(folder: Path, divided: int, copied: int) -> list[str]:
    """Saves what checkpoint `divided` holds as the next one, divided over the processes, and `copied` from whole copies."""
    for number, model in ((divided, sharded(network(1), ("0",))), (copied, network(1))):
        optimizer, path = adamw(model), folder / f"step_{number:08d}"
        check_fits(path, model)
        assert load_checkpoint(path, model, optimizer) == state_at(number)
        with CheckpointWriter(folder, model, optimizer, keep_every=1) as writer:
            path = writer.save(state_at(number + 1))
            for seed in (1, 2):  # the training goes on
                step(model, optimizer, seed)
    return sorted(file.name for file in (path / "tensors").iterdir())


def test_what_any_number_of_processes_wrote_any_number_reads_bit_for_bit(tmp_path: Path) -> None:
    """Written by 1, read and written by 2, by 4 and by 2 again, divided (also unevenly, a row among four) and copied."""
    model, optimizer = make(0)
    for seed in range(3):
        step(model, optimizer, seed)
    expected, folder = copies(model, optimizer), tmp_path / "checkpoints"
    for number in (10, 20):
        save_checkpoint(folder, model, optimizer, state_at(number), keep_every=1)
    for processes, divided, copied in ((2, 10, 20), (4, 11, 21), (2, 22, 12)):
        files = on_ranks(processes, tmp_path / f"{divided}", _pass_on, folder, divided, copied)
        assert files[0] == [".metadata", *(f"__{rank}_0.distcp" for rank in range(processes))]
        for path in (folder / f"step_{divided + 1:08d}", folder / f"step_{copied + 1:08d}"):
            assert equal(loaded(path), expected)
    copied = (folder / f"step_{number:08d}" / "tensors" for number in (20, 21, 22, 13))
    written = {sum(file.stat().st_size for file in path.glob("*.distcp")) for path in copied}
    assert max(written) < 1.01 * min(written)  # what all processes hold is written once


# ------------------------------------------------------------------------------------------------------ faults of one


def _caught(call: Callable[[], object]) -> tuple[str, str]:
    """Kind and words of the error that `call` raises."""
    try:
        call()
    except Exception as error:
        return type(error).__name__, str(error)
    return "", ""


def _faults(folder: Path, encoders: Path) -> dict[str, Any]:
    """Errors in each process, and what lies in the folder after each fault of process 1 (or of the disk)."""
    main, seen = distributed.is_main(), {}
    model, optimizer = make(0)
    model = sharded(model)
    optimizer = adamw(model)
    step(model, optimizer, 0)

    def note(name: str, *found: object) -> None:
        distributed.barrier()
        seen[name] = (*found, sorted(path.name for path in folder.iterdir()))
        distributed.barrier()

    with CheckpointWriter(folder, model, optimizer) as writer:
        for number in (1, 2):
            writer.save(state_at(number))
        writer.finish()
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=KEPT_FREE_BYTES + 100))
            note("little room", _caught(lambda: writer.save(state_at(3))))
        with pytest.MonkeyPatch.context() as patch:
            full = Path("/dev/full")
            opened_by(patch, lambda path, mode: (path if main else full).open(mode))
            writer.save(state_at(3))
            note("full disk", _caught(writer.finish))
        with pytest.MonkeyPatch.context() as patch:
            if not main:
                patch.setattr(writer, "_staged", lambda tensors: 1 / 0)
            note("no copy", _caught(lambda: writer.save(state_at(3))))
        with pytest.MonkeyPatch.context() as patch:
            if not main:  # its machine does not see the files of the others yet
                patch.setattr(checkpoint, "damage", lambda path, checksum: "is missing")
            note("late", latest_checkpoint(folder))
        checkpoint_files.LATE_SECONDS = 0.1
        if main:
            newest = folder / "step_00000002" / "tensors" / "__1_0.distcp"
            newest.write_bytes(newest.read_bytes()[:-1])
        distributed.barrier()
        found = latest_checkpoint(folder)
        set_broken_aside(folder, found)
        note("cut", found)
        writer.save(state_at(2))
        writer.finish()
        note("mended", latest_checkpoint(folder))

    torch.manual_seed(0)
    encoder = sharded(build_encoder(CONFIG), ("blocks.0", "blocks.1"))
    weights = whole_state(encoder)
    if main:
        save_network(encoders / "gathered", Export(CONFIG, encoder), weights=weights)
    return seen | {"gathered": len(weights)}


def test_a_fault_in_one_process_ends_in_all_and_leaves_the_checkpoint_before(tmp_path: Path) -> None:
    folder = tmp_path / "checkpoints"
    first, second = on_ranks(2, tmp_path / "ranks", _faults, folder, tmp_path)
    kept = ["step_00000001", "step_00000002"]

    (kind, words), left = first["little room"]
    assert kind == "Refusal" and words.startswith(f"{folder}: step_00000003 and 67.1 MB of other files need") and left == kept
    assert second["little room"] == (("RepeatedRefusal", words), kept)

    (kind, words), left = first["full disk"]
    assert kind == "Refusal" and left == kept
    assert words.startswith(f"{folder / 'step_00000003'} could not be written: No space left on device")
    assert "step_00000002, is as it was" in words and second["full disk"] == (("RepeatedRefusal", words), kept)

    assert first["no copy"][0] == ("RepeatedRefusal", "process 1: division by zero")
    assert second["no copy"][0][0] == "ZeroDivisionError"

    for seen in (first, second):
        assert seen["late"] == (folder / kept[1], kept)
        assert seen["cut"] == (folder / kept[0], ["broken_step_00000002", "step_00000001"])
        assert seen["mended"] == (folder / kept[1], ["broken_step_00000002", *kept])
    said = "checkpoint .*step_00000002 is broken (tensors/__1_0.distcp has .* bytes instead of .*falling back"
    assert re.search(said.replace("(", r"\("), (tmp_path / "ranks" / "rank0.txt").read_text())
    assert "broken" not in (tmp_path / "ranks" / "rank1.txt").read_text()

    torch.manual_seed(0)
    save_network(tmp_path / "whole", Export(CONFIG, build_encoder(CONFIG)))
    for name in ("model.safetensors", "config.json"):
        assert (tmp_path / "gathered" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
    assert second["gathered"] == 0


def _killed(folder: Path, error: Path) -> None:
    """Process 1 dies in the middle of its part. Process 0 notes its error."""
    with distributed.joined(torch.device("cpu"), timeout_seconds=SECONDS), pytest.MonkeyPatch.context() as patch:
        model, optimizer = make(0)
        writer = CheckpointWriter(folder, model, optimizer)
        writer.save(state_at(1))
        writer.finish()
        if not distributed.is_main():
            opened_by(patch, lambda path, mode: os._exit(9))
        writer.save(state_at(2))
        error.write_text(_caught(writer.finish)[0])
        os._exit(0)


def test_a_process_that_dies_amid_a_save_does_not_leave_the_others_waiting(tmp_path: Path) -> None:
    folder, error = tmp_path / "checkpoints", tmp_path / "error"
    processes = start_ranks(2, tmp_path / "ranks", _killed, folder, error)
    for process in processes:
        process.join(SECONDS / 2)
    assert [process.exitcode for process in processes] == [0, 9] and error.read_text()
    assert latest_checkpoint(folder) == folder / "step_00000001" and len(list(folder.iterdir())) == 1
