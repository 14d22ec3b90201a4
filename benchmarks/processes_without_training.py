"""embed and the features of evaluate: one process of two threads beside two of one thread, in turns.

`python -m benchmarks.processes_without_training [--rounds 5]`. Every round embeds the same photo-like files twice, and extracts
their features twice as `openjepa evaluate` does. Loading the encoder and starting do not count. Ratios are computed within a
round. All cores but two should be idle: on a busy machine two threads of one process wait for each other. The images per second
of processor time depend less on other programs (threads that wait sleep).
"""

import json
import os
import statistics
import subprocess
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import tyro
from PIL import Image

from benchmarks.records import keep, launcher, load, origin
from openjepa.data.passes import choose_workers, evaluation_batches, shared_evaluation_batches
from openjepa.data.source import ListSource, open_splits
from openjepa.engine import distributed
from openjepa.evaluation.feature_store import EncoderFeatures, ImageBatch, SplitView, extract_features
from openjepa.inference.embedding.embedding_run import embed_dataset
from openjepa.models.vit import build_encoder
from openjepa.settings.inference import EmbedSettings
from openjepa.settings.models import EncoderConfig
from openjepa.settings.sources import FolderSettings
from openjepa.types import Export
from openjepa.weights.native import load_encoder, save_network

SIZE, BATCH = (224, 224), 32
ROOT = Path(__file__).resolve().parents[1]


@dataclass(frozen=True)
class Options:
    """What is compared."""

    images: int = 384
    """Number of images."""
    rounds: int = 5
    """Number of times that both run."""
    measure: Path | None = None
    """Folder with the images and the encoder: measures in this process, or in those that torchrun has started."""
    output: Path | None = None
    """JSON file."""


def main() -> None:
    """Compares and prints, or measures once."""
    options = tyro.cli(Options, description=__doc__)
    if options.measure is not None:
        with distributed.joined("cpu"):
            print(json.dumps(measured(options.measure)))
        return
    with tempfile.TemporaryDirectory() as name:
        prepare(Path(name), options.images)
        rounds = [[run(Path(name), processes) for processes in (1, 2)] for _ in range(options.rounds)]
    found: dict[str, object] = {**origin(), "load": load(), "images": options.images}
    for what in rounds[0][0]:
        ratios = [two[what] / one[what] for one, two in rounds]
        found[what] = {
            "one process": [one[what] for one, _ in rounds],
            "two": [two[what] for _, two in rounds],
            "ratios": ratios,
            "median ratio": statistics.median(ratios),
        }
    keep(found, options.output)


def prepare(folder: Path, images: int) -> None:
    """Writes an encoder of ViT-Tiny/16 and JPEG files of 320 x 256 pixels with smooth structure."""
    config = EncoderConfig(width=192, depth=12, heads=3, mlp_ratio=4.0, patch_size=16, image_size=SIZE)  # ViT-Tiny/16
    save_network(folder / "encoder", Export(config, build_encoder(config)))
    generator = np.random.default_rng(0)
    (folder / "images" / "a").mkdir(parents=True)
    for number in range(images):
        small = Image.fromarray(generator.integers(0, 256, (16, 20, 3), dtype=np.uint8))
        small.resize((320, 256), Image.Resampling.BICUBIC).save(folder / "images" / "a" / f"{number:05d}.jpg")


def run(folder: Path, processes: int) -> dict[str, float]:
    """Images per second, measured in new processes: one of two threads, or two of one."""
    command = [*launcher(processes), "-m", "benchmarks.processes_without_training", "--measure", str(folder)]
    environment = {**os.environ, "OMP_NUM_THREADS": str(2 // processes), "OMP_WAIT_POLICY": "passive"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=True)
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


def measured(folder: Path) -> dict[str, float]:
    """Images per second, and per second of processor time, of embed and of evaluate's features, over all processes."""
    data = FolderSettings(path=str(folder / "images"), image_size=SIZE[0], test_fraction=0.0)
    threads = torch.get_num_threads()
    settings = EmbedSettings(part_images=32, batch_size=BATCH, device="cpu", threads=threads)
    output = folder / "x.npy"
    worked = _worked()
    embedded = embed_dataset(folder / "encoder", data, settings, output, again=True)
    embed_worked = _worked() - worked
    distributed.barrier()
    network, config = load_encoder(folder / "encoder")
    extractor = EncoderFeatures(network, config, torch.device("cpu"), "auto")
    source = open_splits(data, 0).train
    assert isinstance(source, ListSource)
    distributed.barrier()
    start, worked = time.monotonic(), _worked()
    extract_features(SplitView(source, "train", {}, lambda first: _batches(source, first)), {"encoder": extractor}, None)
    distributed.barrier()
    return {
        "embed": embedded.num_images / embedded.seconds,
        "embed, processor time": embedded.num_images / sum(distributed.gathered(embed_worked)),
        "features": len(source) / (time.monotonic() - start),
        "features, processor time": len(source) / sum(distributed.gathered(_worked() - worked)),
    }


def _worked() -> float:
    """Seconds of processor time of this process, and of its workers that have ended."""
    times = os.times()
    return times.user + times.system + times.children_user + times.children_system


def _batches(source: ListSource, first: int) -> Iterator[ImageBatch]:
    workers = choose_workers(None)  # as evaluate does
    if distributed.world_size() > 1:
        return shared_evaluation_batches(source, SIZE, BATCH, workers, fit="crop", first=first)
    return evaluation_batches(source, SIZE, BATCH, workers, first=first, unreadable=[])


if __name__ == "__main__":
    main()
