"""What the tests of openjepa embed share: a small data set, an encoder, and processes that embed."""

import hashlib
import os
import signal
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from openjepa.inference.embedding.embedding_run import Embedded, embed_dataset
from openjepa.inference.embedding.parts import PartWriter
from openjepa.models.vit import build_encoder
from openjepa.settings.inference import EmbedSettings
from openjepa.settings.models import EncoderConfig
from openjepa.settings.sources import DataSettings, FolderSettings
from openjepa.types import Export
from openjepa.weights.native import save_network
from tests.helpers.images import write_folder
from tests.helpers.processes import in_process
from tests.helpers.waiting import wait_for

CONFIG = EncoderConfig(width=24, depth=1, heads=2, mlp_ratio=2.0, patch_size=8, image_size=(32, 32))
SETTINGS = EmbedSettings(part_images=8, batch_size=5, dtype="float32", precision="fp32", device="cpu", threads=1)


def save_encoder(folder: Path, seed: int = 0, config: EncoderConfig = CONFIG) -> Path:
    """An encoder folder with random weights."""
    torch.manual_seed(seed)
    save_network(folder, Export(config=config, module=build_encoder(config)))
    return folder


def embed(subject: Path, images: Path | DataSettings, output: Path, *, again: bool = False, **changes: Any) -> Embedded:
    """embed_dataset with SETTINGS but for `changes`."""
    data = FolderSettings(path=str(images)) if isinstance(images, Path) else images
    return embed_dataset(subject, data, replace(SETTINGS, **changes), output, again=again)


def write_images(folder: Path) -> Path:
    """45 images, one of which is none."""
    write_folder(folder, 45)
    (folder / "disk" / "0009.png").write_bytes(b"no image")
    return folder


def uninterrupted(subject: Path, images: Path, folder: Path) -> dict[str, str]:
    """Hashes of what a run writes that nothing stops."""
    for ending in ("npy", "parquet"):
        embed(subject, images, folder / f"x.{ending}")
    return digests(folder)


def digests(folder: Path) -> dict[str, str]:
    """Of every file of a folder."""
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.iterdir() if path.is_file()}


def slowed(work: Callable[[], object], seconds: float) -> Callable[[], object]:
    """The same work with a pause after every part."""

    def run() -> object:
        finish = PartWriter.finish

        def slow(*values: Any) -> None:
            finish(*values)
            time.sleep(seconds)

        PartWriter.finish = slow  # type: ignore[method-assign]  # in a process of its own
        return work()

    return run


def stopped(work: Callable[[], object], parts: Path, number: int, how: int = signal.SIGKILL) -> int | None:
    """Does `work` in a process that waits for a signal after `number` parts, sends it, and returns how the process ended."""
    ours, theirs = os.pipe()

    def run() -> object:
        os.close(theirs)
        signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs inherit that it is ignored
        finish = PartWriter.finish

        def wait(*values: Any) -> None:
            finish(*values)
            if len(list(parts.glob("[0-9]*.json"))) >= number:
                os.read(ours, 1)  # a signal that was sent before is handled as soon as this returns

        PartWriter.finish = wait  # type: ignore[method-assign]  # in a process of its own
        return work()

    process = in_process(run)

    def are_done() -> bool:
        assert process.is_alive()
        return len(list(parts.glob("[0-9]*.json"))) >= number

    wait_for(are_done, 120)
    assert process.pid is not None
    os.kill(process.pid, how)
    os.close(theirs)
    process.join()  # with a time limit it would wait for the workers of the process too
    os.close(ours)
    return process.exitcode


def write_shards(folder: Path, images: Path, lengths: tuple[int, ...]) -> None:
    import pyarrow
    import pyarrow.parquet as parquet

    folder.mkdir()
    files = sorted(images.rglob("*.png"))
    for number, length in enumerate(lengths):
        taken, files = files[:length], files[length:]
        entries = [{"bytes": path.read_bytes(), "path": path.name} for path in taken]
        table = pyarrow.table({"image": entries, "label": [number] * length})
        parquet.write_table(table, folder / f"train-{number:05d}-of-{len(lengths):05d}.parquet")
