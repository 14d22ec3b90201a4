"""openjepa embed stopped at any time, started several times, started over."""

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from openjepa.cli import main
from openjepa.embedding.computing import Computation
from openjepa.embedding.parts import PartsFolder, PartWriter
from openjepa.embedding.plan import Part
from openjepa.embedding.table import open_table
from openjepa.engine.claims import take
from openjepa.settings.data import HuggingFaceSettings
from tests.embedding import SETTINGS, digests, embed, in_process, save_encoder, slowed, stop_after
from tests.images import write_folder

NUM_PARTS = 6


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_encoder(tmp_path_factory.mktemp("encoder"))


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = write_folder(tmp_path_factory.mktemp("images"), 45)
    (folder / "disk" / "0009.png").write_bytes(b"no image")
    return folder


@pytest.fixture(scope="module")
def whole(encoder: Path, images: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Hashes of what an uninterrupted run writes."""
    folder = tmp_path_factory.mktemp("whole")
    for ending in ("npy", "parquet"):
        embed(encoder, images, folder / f"x.{ending}")
    return digests(folder)


# ------------------------------------------------------------------------------------------------------------- stopped


@pytest.mark.parametrize("ending", ["npy", "parquet"])
def test_a_killed_process_is_continued_bitwise(
    ending: str, encoder: Path, images: Path, whole: dict[str, str], tmp_path: Path
) -> None:
    output = tmp_path / f"x.{ending}"
    parts = tmp_path / f"x.{ending}.parts"
    process = in_process(slowed(partial(embed, encoder, images, output), 0.1))
    stop_after(process, parts, 2)
    assert process.exitcode == -signal.SIGKILL and not output.exists()
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
    process = in_process(slowed(partial(embed, encoder, images, output, workers=1), 0.1))
    stop_after(process, tmp_path / "x.npy.parts", 1)
    embed(encoder, images, output, workers=1)
    assert digests(tmp_path).items() <= whole.items() and output.exists()


def test_killed_while_it_puts_the_parts_together(encoder: Path, images: Path, whole: dict[str, str], tmp_path: Path) -> None:
    """Whatever the files of the table were then: an older table must not stand beside the images of this one."""
    from openjepa.embedding import assembling

    output = tmp_path / "x.npy"
    other = save_encoder(tmp_path / "other", seed=1)
    for place in ("_write_images", "_check"):
        embed(other, images, output, again=True)

        def die(*_: object) -> None:
            os.kill(os.getpid(), signal.SIGKILL)

        def dying(place: str = place) -> None:
            setattr(assembling, place, die)
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

    process = in_process(slowed(run, 0.1))
    stop_after(process, tmp_path / "x.npy.parts", 2, how)
    assert process.exitcode == code
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
    while not list((tmp_path / "x.npy.parts").glob("*.json")):
        time.sleep(0.005)
    held = take(tmp_path / "x.npy.parts" / ".claims" / "000001")  # another part that somebody has
    assert held is not None
    second = in_process(partial(embed, encoder, images, output))
    parts = PartsFolder(output)
    while len(parts.done()) < NUM_PARTS - 1:
        time.sleep(0.005)
    time.sleep(0.05)
    assert second.is_alive() and not output.exists()  # it waits for the part that is held
    held.release()
    second.join(60)
    assert second.exitcode == 0 and digests(tmp_path)["x.npy"] == whole["x.npy"]
    first.kill()
    first.join()


@pytest.mark.slow  # three processes import torch
def test_torchrun_shares_the_work(encoder: Path, images: Path, tmp_path: Path) -> None:
    output = tmp_path / "x.npy"
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--master-port", "0", "-m", "openjepa"]
    done = subprocess.run(
        [*command, *arguments(encoder, images, output)], capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr
    assert len(open_table(output)) == 44 and done.stdout.count("next: openjepa search") == 1


def test_streams_are_shared_shard_by_shard(encoder: Path, images: Path, tmp_path: Path) -> None:
    pytest.importorskip("datasets")
    from tests.test_embed import write_shards

    write_shards(tmp_path / "shards", images, (9, 3, 12, 20))
    data = HuggingFaceSettings(path=str(tmp_path / "shards"), streaming=True)
    embed(encoder, data, tmp_path / "alone.npy")
    output = tmp_path / "shared.npy"
    stop_after(in_process(slowed(partial(embed, encoder, data, output), 0.1)), tmp_path / "shared.npy.parts", 2)
    processes = [in_process(slowed(partial(embed, encoder, data, output), 0.1)) for _ in range(2)]
    for process in processes:
        process.join(60)
        assert process.exitcode == 0
    assert (tmp_path / "shared.npy").read_bytes() == (tmp_path / "alone.npy").read_bytes()
    assert (tmp_path / "shared.csv").read_bytes() == (tmp_path / "alone.csv").read_bytes()


def test_nobody_begins_a_part_while_another_process_takes_all_of_them_away(encoder: Path, images: Path, tmp_path: Path) -> None:
    output, parts = tmp_path / "x.npy", PartsFolder(tmp_path / "x.npy")
    stop_after(in_process(slowed(partial(embed, encoder, images, output), 0.1)), parts.path, 2)
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


# -------------------------------------------------------------------------------------------------------------- again


def test_what_is_there_already_is_not_made_again(encoder: Path, images: Path, tmp_path: Path) -> None:
    output = tmp_path / "x.npy"
    embed(encoder, images, output)
    before = output.stat().st_mtime_ns
    assert embed(encoder, images, output, batch_size=3, threads=2).status == "there already"
    assert output.stat().st_mtime_ns == before
    again = embed(encoder, images, output, again=True)
    assert again.num_images == 44 and output.stat().st_mtime_ns > before


def test_other_settings_weights_and_images_are_refused_and_named(encoder: Path, images: Path, tmp_path: Path) -> None:
    output = tmp_path / "x.npy"
    embed(encoder, images, output)
    other = save_encoder(tmp_path / "other", seed=1)
    with pytest.raises(ValueError, match=r"(?s)x\.npy holds other features.*dtype: float32, now float16.*--again"):
        embed(encoder, images, output, dtype="float16")
    with pytest.raises(ValueError, match=r"  weights: \w{12}\.\.\., now \w{12}\.\.\.\n"):
        embed(other, images, output)
    moved = write_folder(tmp_path / "more", 46)
    with pytest.raises(ValueError, match=r"  images: train 45 \(\w{12}\), now train 46 \(\w{12}\)"):
        embed(encoder, moved, output)
    assert not (tmp_path / "x.npy.parts").exists()
    assert embed(other, moved, output, again=True).rows_by_split == {"train": 46}


def test_parts_of_other_settings_are_refused_unless_again(
    encoder: Path, images: Path, whole: dict[str, str], tmp_path: Path
) -> None:
    output, parts = tmp_path / "x.npy", tmp_path / "x.npy.parts"
    begun = partial(embed, encoder, images, output, view="squash", part_images=5)
    stop_after(in_process(slowed(begun, 0.1)), parts, 2)
    with pytest.raises(ValueError, match=r"(?s)made otherwise.*view: squash, now crop.*part_images: 5, now 8.*--again"):
        embed(encoder, images, output)
    assert len(list(parts.glob("*.features"))) >= 2  # nothing was thrown away
    assert embed(encoder, images, output, again=True).num_images == 44
    assert digests(tmp_path).items() <= whole.items()


def test_parts_that_another_process_works_on_are_not_thrown_away(
    encoder: Path, images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("openjepa.embedding.starting.PATIENCE_SECONDS", 0.2)
    output, parts = tmp_path / "x.npy", tmp_path / "x.npy.parts"
    working = in_process(slowed(partial(embed, encoder, images, output, view="squash"), 1000))
    while not list(parts.glob("*.features")):
        time.sleep(0.005)
    with pytest.raises(ValueError, match=r"(?s)another process is computing other features.*End it"):
        embed(encoder, images, output, again=True)
    working.kill()
    working.join()
    assert embed(encoder, images, output, again=True).num_images == 44


def test_siblings_of_one_command_do_not_start_over_what_one_has_finished(encoder: Path, images: Path, tmp_path: Path) -> None:
    from openjepa.embedding.running import embed_dataset
    from openjepa.settings.data import FolderSettings

    started = time.time()
    data, output = FolderSettings(path=str(images)), tmp_path / "x.npy"
    settings = replace(SETTINGS)
    assert embed_dataset(encoder, data, settings, output, again=True, started=started).status == "written"
    assert embed_dataset(encoder, data, settings, output, again=True, started=started).status == "there already"
    assert embed_dataset(encoder, data, settings, output, again=True).status == "written"


def test_a_damaged_part_is_found_and_computed_again(
    encoder: Path, images: Path, whole: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    output, parts = tmp_path / "x.npy", tmp_path / "x.npy.parts"
    stop_after(in_process(slowed(partial(embed, encoder, images, output), 0.1)), parts, 2)
    damaged = bytearray((parts / "000001.features").read_bytes())
    damaged[100] ^= 1
    (parts / "000001.features").write_bytes(damaged)
    with pytest.raises(ValueError, match=r"part 1 in .* was damaged on the disk and has been dropped: repeat"):
        embed(encoder, images, output)
    assert not output.exists() and embed(encoder, images, output).num_images == 8
    assert digests(tmp_path).items() <= whole.items()


def test_a_table_that_cannot_be_read_again_is_not_left(
    encoder: Path, images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    output = tmp_path / "x.npy"
    monkeypatch.setattr("openjepa.embedding.assembling._blocks", lambda *_: iter([np.zeros((44, 24), np.float32)]))
    with pytest.raises(ValueError, match="could not be read again as it was written"):
        embed(encoder, images, output)
    assert not output.exists()
    monkeypatch.undo()
    assert embed(encoder, images, output).num_images == 0  # the parts were kept


def test_writers_leave_nothing_behind(tmp_path: Path) -> None:
    writer = PartWriter(tmp_path / "000001.features", tmp_path / "000001.json")
    writer.append(np.zeros((3, 4), np.float32))
    writer.abort()
    assert not list(tmp_path.iterdir())
