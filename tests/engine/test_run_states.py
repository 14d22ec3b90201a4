"""States of runs: what their folders say, on this machine, on others and in copies, and whatever is damaged."""

import json
import os
import re
import shutil
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from openjepa.cli import main
from openjepa.engine.run_states import RunState, list_runs
from openjepa.refusals import Refusal
from openjepa.system.shared_files import take
from tests.helpers.example_run import TOTAL_STEPS, write_run

INTERVAL = 2.6
"""Seconds of ten steps of the runs that `write_run` writes."""


def aged(folder: Path, seconds: float) -> Path:
    """Dates the log of a run `seconds` back; ahead if it is negative."""
    then = time.time() - seconds
    os.utime(folder / "metrics.jsonl", (then, then))
    return folder


def state_of(folder: Path) -> RunState:
    (found,) = list_runs(folder)
    return found


@pytest.mark.parametrize(
    ("status", "locked", "age", "state"),
    [
        ("running", True, 5, "alive"),
        ("running", True, 50, "alive"),
        ("running", True, 70, "stuck"),
        ("running", True, -3600, "alive"),  # the clock of the file system was set back
        ("failed", True, 5, "alive"),  # it was started again
        ("running", False, 5, "alive"),  # its lock is on another machine
        ("running", False, 61, "interrupted"),  # killed, or a copy
        ("interrupted", False, 5, "interrupted"),
        ("failed", False, 61, "failed"),
        ("finished", False, 5, "finished"),
        ("finished", True, 5000, "finished"),  # evaluated, or asked for again
    ],
)
def test_the_state_follows_from_lock_status_and_age(tmp_path: Path, status: str, locked: bool, age: float, state: str) -> None:
    folder = aged(write_run(tmp_path / "run", steps=440, status=status), age)
    claim = take(folder / ".lock") if locked else None
    assert state_of(tmp_path).state == state
    if claim is not None:
        claim.release()


@pytest.mark.parametrize(("age", "state"), [(900, "alive"), (1110, "stuck")])
def test_a_run_is_stuck_after_ten_of_its_own_intervals(tmp_path: Path, age: float, state: str) -> None:
    folder = write_run(tmp_path / "run", steps=0, status="running")
    lines = [{"kind": "train", "step": step, "seconds": 100.0 * step / 10, "loss": 1.0} for step in range(10, 60, 10)]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    claim = take(aged(folder, age) / ".lock")
    found = state_of(tmp_path)
    assert found.state == state
    assert re.fullmatch(r"no step for 18m[2-5]\ds", found.reason) if state == "stuck" else not found.reason
    assert claim is not None
    claim.release()


def test_ages_do_not_depend_on_the_clock_of_this_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = write_run(tmp_path / "run", steps=440, status="running")
    now = time.time()
    for hours in (-5, 5):
        monkeypatch.setattr(time, "time", lambda hours=hours: now + 3600 * hours)
        found = state_of(folder)
        assert found.state == "alive" and found.step_age is not None and found.step_age < 60
        monkeypatch.undo()


def test_numbers_are_those_of_the_files(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run", steps=440, status="running")
    summary = json.loads((folder / "summary.json").read_text()) | {"processes": 16}
    (folder / "summary.json").write_text(json.dumps(summary))
    (folder / "checkpoints" / "step_00000400").mkdir(parents=True)
    then = time.time() - 100
    os.utime(folder / "checkpoints" / "step_00000400", (then, then))
    last = [row for row in map(json.loads, (folder / "metrics.jsonl").read_text().splitlines()) if row["kind"] == "train"][-1]
    found = state_of(tmp_path)
    assert (found.name, found.recipe, found.method) == ("run", "ijepa-vits16", "ijepa")
    assert (found.step, found.total_steps, found.processes) == (440, TOTAL_STEPS, 16)
    assert (found.loss, found.images_per_second) == (last["loss"], last["images_per_second"])
    assert found.seconds_left == pytest.approx((TOTAL_STEPS - 440) * INTERVAL / 10)
    assert found.checkpoint_age == pytest.approx(100, abs=5)


def test_a_run_without_a_step(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run", steps=0, status="running")
    assert state_of(tmp_path).state == "never started"
    claim = take(folder / ".lock")
    assert (state_of(tmp_path).state, state_of(tmp_path).reason) == ("alive", "no step yet")
    assert claim is not None
    claim.release()
    summary = json.loads((folder / "summary.json").read_text()) | {"status": "failed", "error": "the disk\nis full"}
    (folder / "summary.json").write_text(json.dumps(summary))
    assert (state_of(tmp_path).state, state_of(tmp_path).reason) == ("failed", "the disk is full")


def test_runs_are_found_on_three_levels_and_a_run_folder_is_one(tmp_path: Path) -> None:
    first = write_run(tmp_path / "b", steps=10)
    for place in ("a", "ablation/c", "x/y/z", "x/y/too/deep", "b/inside", ".hidden"):
        shutil.copytree(first, tmp_path / place)
    (tmp_path / "logs").mkdir()
    assert [run.name for run in list_runs(tmp_path)] == ["a", "ablation/c", "b", "x/y/z"]
    assert [run.name for run in list_runs(first)] == ["b"]


def cut(path: Path) -> None:
    path.write_text(path.read_text()[:100])


def binary(path: Path) -> None:
    path.write_bytes(b"\xff\x00\x81: [")


def a_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


@pytest.mark.parametrize("damage", [cut, binary, a_folder])
@pytest.mark.parametrize("name", ["config.yaml", "summary.json", "metrics.jsonl"])
def test_a_damaged_file_is_named(
    tmp_path: Path, name: str, damage: Callable[[Path], None], capsys: pytest.CaptureFixture[str]
) -> None:
    folder = write_run(tmp_path / "run", steps=440)
    (folder / "config.yaml").write_text("a: [1,\n" * 40) if name == "config.yaml" else None
    damage(folder / name)
    if name == "metrics.jsonl" and damage is not a_folder:
        (folder / name).write_bytes((folder / name).read_bytes() + b"\n")
    main(["runs", str(tmp_path)])
    assert f"run: cannot read {name}\n" in capsys.readouterr().out
    assert state_of(tmp_path).step in ((440,) if name != "metrics.jsonl" else (440, 0))


@pytest.mark.parametrize("content", ["", '{"kind": "train", "st', "\x00\x01 no log"])
def test_a_log_without_a_whole_line_is_named_if_steps_were_taken(tmp_path: Path, content: str) -> None:
    folder = write_run(tmp_path / "run", steps=440)
    (folder / "metrics.jsonl").write_text(content)
    assert (state_of(tmp_path).damaged, state_of(tmp_path).step) == (("metrics.jsonl",), 440)


def test_a_run_without_its_summary_is_not_alive_if_nothing_holds_its_lock(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run", steps=440, status="running")
    (folder / "summary.json").write_text("{")
    assert (state_of(tmp_path).state, state_of(tmp_path).damaged) == ("interrupted", ("summary.json",))
    (folder / "checkpoints" / "step_00000020").mkdir(parents=True)
    for name in ("summary.json", "metrics.jsonl"):
        (folder / name).unlink()
    found = state_of(tmp_path)
    assert (found.state, found.step, found.damaged) == ("interrupted", 20, ("metrics.jsonl",))


def test_only_a_folder_is_proposed_for_a_folder_that_is_not_there(tmp_path: Path) -> None:
    (tmp_path / "runs.sh").touch()
    (tmp_path / "runs-old").mkdir()
    with pytest.raises(Refusal, match=r"did you mean '.*/runs-old'\?"):
        list_runs(tmp_path / "runs")


def test_a_line_that_is_being_written_is_no_damage(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run", steps=440, status="running")
    with (folder / "metrics.jsonl").open("a") as file:
        file.write('{"kind": "train", "step": 450, "sec')
    assert (state_of(tmp_path).damaged, state_of(tmp_path).step) == ((), 440)


def test_a_hundred_runs_are_listed_at_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first = write_run(tmp_path / "000", steps=TOTAL_STEPS)
    for number in range(1, 100):
        shutil.copytree(first, tmp_path / f"{number:03d}")
    begun = time.process_time()
    main(["runs", str(tmp_path), "--json"])
    assert time.process_time() - begun < 3
    assert len(json.loads(capsys.readouterr().out)) == 100


def test_the_table_and_the_json_say_the_same(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_run(tmp_path / "done")
    aged(write_run(tmp_path / "killed [bold]", steps=2200, status="running"), 7290)
    main(["runs", str(tmp_path)])
    head, _, done, killed, note = capsys.readouterr().out.splitlines()
    assert head.split() == ["run", "state", "done", "step", "img/s", "left", "processes", "loss", "saved"]
    assert done.startswith("done (ijepa-vits16)") and "finished" in done and "100%" in done and "4400/4400" in done
    assert "killed [bold]" in killed and " 50% " in killed and " 9m32s " in killed
    assert note == "killed [bold]: no step for 2h01m, and no process holds its lock"
    main(["runs", str(tmp_path), "--json"])
    found = json.loads(capsys.readouterr().out)
    assert [(run["name"], run["state"], run["step"]) for run in found] == [
        ("done", "finished", 4400),
        ("killed [bold]", "interrupted", 2200),
    ]


def test_no_runs_and_no_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    main(["runs", str(tmp_path)])
    assert f"no run in {tmp_path}" in capsys.readouterr().out
    monkeypatch.chdir(tmp_path)
    for words, message in (
        (["runs"], "FOLDER=runs does not exist"),
        (["runs", ".", "--json", "--watch", "2"], "--watch 2 has no"),
    ):
        with pytest.raises(SystemExit) as stopped:
            main(words)
        assert stopped.value.code == 2 and message in capsys.readouterr().err


def test_watching_lists_again_until_it_is_interrupted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = write_run(tmp_path / "run", steps=440, status="running")
    waits = []

    def wait(seconds: float) -> None:
        waits.append(seconds)
        if len(waits) == 2:
            raise KeyboardInterrupt
        shutil.rmtree(folder)
        write_run(folder, steps=880, status="running")

    monkeypatch.setattr("openjepa.commands.experiments.runs.time.sleep", wait)
    main(["runs", str(tmp_path), "--watch", "3"])
    assert waits == [3, 3] and "880/4400" in capsys.readouterr().out
