"""openjepa embed where a table is there, or parts of one: gone on with, refused, or started over."""

import time
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from openjepa.inference.embedding.embedding_run import embed_dataset
from openjepa.inference.embedding.parts import PartWriter
from openjepa.inference.embedding.table import open_table
from openjepa.settings.sources import FolderSettings
from tests.helpers.embedding import SETTINGS, digests, embed, save_encoder, slowed, stopped, uninterrupted, write_images
from tests.helpers.images import write_folder
from tests.helpers.processes import in_process


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_encoder(tmp_path_factory.mktemp("encoder"))


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_images(tmp_path_factory.mktemp("images"))


@pytest.fixture(scope="module")
def whole(encoder: Path, images: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    return uninterrupted(encoder, images, tmp_path_factory.mktemp("whole"))


def test_what_is_there_already_is_not_made_again(encoder: Path, images: Path, tmp_path: Path) -> None:
    output = tmp_path / "x.npy"
    embed(encoder, images, output)
    before = output.stat().st_mtime_ns
    assert embed(encoder, images, output, batch_size=3, threads=2).status == "there already"
    assert output.stat().st_mtime_ns == before
    there = embed(encoder, images, output)
    assert there.manifest == open_table(output).manifest and there.manifest.skipped == 1  # what was found, not the plan
    assert sorted(there.files()) == sorted(tmp_path.iterdir())
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
    stopped(begun, parts, 2)
    with pytest.raises(ValueError, match=r"(?s)made otherwise.*view: squash, now crop.*part_images: 5, now 8.*--again"):
        embed(encoder, images, output)
    assert len(list(parts.glob("*.features"))) >= 2  # nothing was thrown away
    assert embed(encoder, images, output, again=True).num_images == 44
    assert digests(tmp_path).items() <= whole.items()


def test_parts_that_another_process_works_on_are_not_thrown_away(
    encoder: Path, images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("openjepa.inference.embedding.embedding_run.PATIENCE_SECONDS", 0.2)
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
    stopped(partial(embed, encoder, images, output), parts, 2)
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
    monkeypatch.setattr("openjepa.inference.embedding.parts._blocks", lambda *_: iter([np.zeros((44, 24), np.float32)]))
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
