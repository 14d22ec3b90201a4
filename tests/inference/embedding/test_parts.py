"""openjepa embed stopped at any time, started several times, started over."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from openjepa.cli import main
from openjepa.inference.embedding.compute import Computation
from openjepa.inference.embedding.embed_plan import Part
from openjepa.inference.embedding.embedding_run import embed_dataset
from openjepa.inference.embedding.parts import PartsFolder
from openjepa.inference.embedding.table import open_table
from openjepa.settings.sources import FolderSettings, HuggingFaceSettings
from openjepa.system.shared_files import take
from tests.helpers.embedding import SETTINGS, digests, embed, save_encoder, slowed, stopped, uninterrupted, write_images
from tests.helpers.processes import in_process
from tests.helpers.ranks import on_ranks
from tests.helpers.waiting import wait_for

NUM_PARTS = 6


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_encoder(tmp_path_factory.mktemp("encoder"))


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_images(tmp_path_factory.mktemp("images"))


@pytest.fixture(scope="module")
def whole(encoder: Path, images: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    return uninterrupted(encoder, images, tmp_path_factory.mktemp("whole"))


# ------------------------------------------------------------------------------------------------------------- stopped


@pytest.mark.parametrize("ending", ["npy", "parquet"])
def test_a_killed_process_is_continued_bitwise(
    ending: str, encoder: Path, images: Path, whole: dict[str, str], tmp_path: Path
) -> None:
    output = tmp_path / f"x.{ending}"
    parts = tmp_path / f"x.{ending}.parts"
    assert stopped(partial(embed, encoder, images, output), parts, 2) == -signal.SIGKILL and not output.exists()
    with pytest.raises(ValueError, match="it is not finished: repeat the same `openjepa embed`"):
        open_table(output)
    kept = {path: path.stat().st_mtime_ns for path in parts.glob("*.features")}
    seen: list[str] = []
    finish = Computation.run

    def spied(computation: Computation) -> bool:
        found = finish(computation)
        seen.append(str({path: path.stat().st_mtime_ns for path in kept} == kept))
        return found

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Computation, "run", spied)
        embedded = embed(encoder, images, output)
    assert seen[0] == "True" and 0 < embedded.num_images < 44  # what was done has been kept
    assert digests(tmp_path).items() <= whole.items() and f"x.{ending}" in digests(tmp_path) and not parts.exists()


def test_a_process_killed_with_workers_is_continued(encoder: Path, images: Path, whole: dict[str, str], tmp_path: Path) -> None:
    output = tmp_path / "x.npy"
    stopped(partial(embed, encoder, images, output, workers=1), tmp_path / "x.npy.parts", 1)
    embed(encoder, images, output, workers=1)
    assert digests(tmp_path).items() <= whole.items() and output.exists()


def test_killed_while_it_puts_the_parts_together(encoder: Path, images: Path, whole: dict[str, str], tmp_path: Path) -> None:
    """Whatever the files of the table were then: an older table must not stand beside the images of this one."""
    from openjepa.inference.embedding import parts

    output = tmp_path / "x.npy"
    other = save_encoder(tmp_path / "other", seed=1)
    for place in ("_write_images", "_check"):
        embed(other, images, output, again=True)

        def die(*_: object) -> None:
            os.kill(os.getpid(), signal.SIGKILL)

        def dying(place: str = place) -> None:
            setattr(parts, place, die)
            embed(encoder, images, output, again=True)

        process = in_process(dying)
        process.join(60)
        assert process.exitcode == -signal.SIGKILL
        if output.exists():
            assert digests(tmp_path)["x.npy"] == whole["x.npy"]
        assert embed(encoder, images, output).num_images == 0
        assert digests(tmp_path).items() <= whole.items() and not (tmp_path / "x.npy.parts").exists()


def arguments(encoder: Path, images: Path, output: Path, *more: str) -> list[str]:
    words = ["embed", str(encoder), "--data.path", str(images), "--output", str(output), "--part-images", "8"]
    words += ["--batch-size", "5", "--dtype", "float32", "--precision", "fp32", "--device", "cpu", "--threads", "1"]
    return [*words, *more]


@pytest.mark.parametrize(("how", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_signals_leave_whole_parts_only(
    how: int, code: int, encoder: Path, images: Path, whole: dict[str, str], tmp_path: Path
) -> None:
    output, log = tmp_path / "x.npy", tmp_path / "log"

    def run() -> None:
        sys.stdout = sys.stderr = log.open("w", buffering=1)
        main(arguments(encoder, images, output))

    assert stopped(run, tmp_path / "x.npy.parts", 2, how) == code
    names = [path.name for path in (tmp_path / "x.npy.parts").iterdir() if path.is_file()]
    assert len(names) == 1 + 2 * sum(name.endswith(".features") for name in names)  # no half parts
    if how == signal.SIGINT:
        assert "parts are done and kept in" in log.read_text() and "goes on" in log.read_text()
    log.unlink()
    main(arguments(encoder, images, output))
    assert digests(tmp_path).items() <= whole.items()


# ------------------------------------------------------------------------------------------------------------- several


def test_several_processes_share_the_work(encoder: Path, images: Path, whole: dict[str, str], tmp_path: Path) -> None:
    output = tmp_path / "x.npy"
    results = tmp_path / "results"
    results.mkdir()

    def run(number: int) -> None:
        embedded = embed(encoder, images, output)
        (results / str(number)).write_text(json.dumps([embedded.status, embedded.num_images]))

    processes = [in_process(slowed(partial(run, number), 0.1)) for number in range(3)]
    for process in processes:
        process.join(60)
        assert process.exitcode == 0
    found = [json.loads((results / str(number)).read_text()) for number in range(3)]
    assert sorted(status for status, _ in found).count("written") == 1
    assert sum(number for _, number in found) == 44 and all(number < 44 for _, number in found)  # each image once
    assert digests(tmp_path) == {name: value for name, value in whole.items() if "parquet" not in name}
    assert not (tmp_path / "x.npy.parts").exists()


def test_parts_of_a_killed_process_are_taken_over_by_one_that_waits(
    encoder: Path, images: Path, whole: dict[str, str], tmp_path: Path
) -> None:
    output = tmp_path / "x.npy"
    first = in_process(slowed(partial(embed, encoder, images, output, part_images=8), 1000))  # holds its first part for ever
    wait_for(lambda: list((tmp_path / "x.npy.parts").glob("*.json")), 60)
    held = take(tmp_path / "x.npy.parts" / ".claims" / "000001")  # another part that somebody has
    assert held is not None
    second = in_process(partial(embed, encoder, images, output))
    parts = PartsFolder(output)
    wait_for(lambda: len(parts.done()) == NUM_PARTS - 1, 60)
    time.sleep(0.05)
    assert second.is_alive() and not output.exists()  # it waits for the part that is held
    held.release()
    second.join(60)
    assert second.exitcode == 0 and digests(tmp_path)["x.npy"] == whole["x.npy"]
    first.kill()
    first.join()


def _ended(*words: object) -> object:
    """The exit code of a command in one of several processes."""
    try:
        main(list(map(str, words)))
    except SystemExit as error:
        return error.code
    return 0


def test_launched_processes_share_the_parts_and_the_first_one_speaks(
    encoder: Path, images: Path, whole: dict[str, str], tmp_path: Path
) -> None:
    output, ranks = tmp_path / "output", tmp_path / "ranks"
    output.mkdir()
    assert on_ranks(2, ranks, _ended, *arguments(encoder, images, output / "x.npy"), joined=False) == [0, 0]
    names = ("x.npy", "x.csv", "x.json", "x.npy.skipped.jsonl")
    assert digests(output) == {name: whole[name] for name in names}
    first, second = ((ranks / f"rank{rank}.txt").read_text() for rank in range(2))
    assert first.count("next: openjepa search") == 1 and second == ""
    assert "images/s" in first and "by this process" not in first  # all images count, whoever embedded them


def test_a_refusal_of_all_launched_processes_is_told_once(encoder: Path, images: Path, tmp_path: Path) -> None:
    broken, ranks = tmp_path / "broken", tmp_path / "ranks"
    shutil.copytree(encoder, broken)
    network = load_file(broken / "model.safetensors")
    save_file({name: value * torch.nan for name, value in network.items()}, broken / "model.safetensors")
    assert on_ranks(2, ranks, _ended, *arguments(broken, images, tmp_path / "x.npy"), joined=False) == [2, 2]
    said = "".join((ranks / f"rank{rank}.txt").read_text() for rank in range(2))
    assert said.count("are not finite: probably") == said.count("openjepa:") == 1


@pytest.mark.slow  # three processes import torch
def test_torchrun_shares_the_work(encoder: Path, images: Path, tmp_path: Path) -> None:
    output = tmp_path / "x.npy"
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "openjepa"]
    done = subprocess.run(
        [*command, *arguments(encoder, images, output)], capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr
    assert len(open_table(output)) == 44 and done.stdout.count("next: openjepa search") == 1


def test_streams_are_shared_shard_by_shard(encoder: Path, images: Path, tmp_path: Path) -> None:
    pytest.importorskip("datasets")
    from tests.helpers.embedding import write_shards

    write_shards(tmp_path / "shards", images, (9, 3, 12, 20))
    data = HuggingFaceSettings(path=str(tmp_path / "shards"), streaming=True)
    embed(encoder, data, tmp_path / "alone.npy")
    output = tmp_path / "shared.npy"
    stopped(partial(embed, encoder, data, output), tmp_path / "shared.npy.parts", 2)
    processes = [in_process(slowed(partial(embed, encoder, data, output), 0.1)) for _ in range(2)]
    for process in processes:
        process.join(60)
        assert process.exitcode == 0
    assert (tmp_path / "shared.npy").read_bytes() == (tmp_path / "alone.npy").read_bytes()
    assert (tmp_path / "shared.csv").read_bytes() == (tmp_path / "alone.csv").read_bytes()


def test_nobody_begins_a_part_while_another_process_takes_all_of_them_away(encoder: Path, images: Path, tmp_path: Path) -> None:
    output, parts = tmp_path / "x.npy", PartsFolder(tmp_path / "x.npy")
    stopped(partial(embed, encoder, images, output), parts.path, 2)
    part = Part(NUM_PARTS - 1, "train", 40, 5)
    claim = parts.claim(part)
    assert claim is not None and parts.claim(part) is None and parts.claim(replace(part, number=0)) is None
    claim.release()
    with parts.set_up():
        parts.forget_all()
        assert parts.claim(part) is None and parts.claim(replace(part, number=0)) is None
    assert not parts.path.exists() and parts.claim(part) is None


def test_a_process_killed_while_it_takes_the_parts_away_leaves_them_to_the_next(
    encoder: Path, images: Path, whole: dict[str, str], tmp_path: Path
) -> None:
    output = tmp_path / "x.npy"

    def dying() -> None:
        iterdir = Path.iterdir

        def die(path: Path) -> object:
            if output.exists():  # the plan has just been removed
                os.kill(os.getpid(), signal.SIGKILL)
            return iterdir(path)

        Path.iterdir = die  # type: ignore[assignment,method-assign]
        embed(encoder, images, output)

    process = in_process(dying)
    process.join(60)
    assert process.exitcode == -signal.SIGKILL and list((tmp_path / "x.npy.parts").glob("*.features"))
    assert embed(encoder, images, output).status == "there already"
    assert digests(tmp_path)["x.npy"] == whole["x.npy"] and not (tmp_path / "x.npy.parts").exists()


def test_ctrl_c_while_the_table_is_put_together_says_that_all_is_kept(
    encoder: Path, images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    said: list[str] = []
    data, output = FolderSettings(path=str(images)), tmp_path / "x.npy"
    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr("openjepa.inference.embedding.embedding_run.assemble", interrupted)
        embed_dataset(encoder, data, SETTINGS, output, say=said.append)
    assert said[-1].startswith(f"{NUM_PARTS} of {NUM_PARTS} parts are done and kept in")
    assert said[-1].endswith("the same command (without --again) goes on")
    assert embed_dataset(encoder, data, SETTINGS, output).num_images == 0

    def forget(parts: PartsFolder) -> None:
        forget_all(parts)
        raise KeyboardInterrupt

    forget_all = PartsFolder.forget_all
    other = tmp_path / "y.npy"
    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(PartsFolder, "write_plan", lambda parts, text: parts.plan_file.write_text(text))
        patched.setattr(PartsFolder, "forget_all", forget)
        embed_dataset(encoder, data, SETTINGS, other, say=said.append)
    assert said[-1] == f"{other} is complete" and len(open_table(other)) == 44
