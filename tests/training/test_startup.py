"""What is settled before the first step: the length, the warm-up, remarks, and the images that the monitor looks at."""

import itertools
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from openjepa.commands.train import train as train_command
from openjepa.config import save_yaml
from openjepa.data.folders.folder import open_folder
from openjepa.data.source import ListSource, ShardRecord, ShardSource, Splits
from openjepa.engine import parallel_costs as estimates
from openjepa.engine.costs import StepCosts, WeightUnit
from openjepa.masks import MASKS
from openjepa.settings.masks import MultiblockSettings
from openjepa.settings.run import MonitorSettings, OptimizationSettings
from openjepa.settings.sources import FolderSettings
from openjepa.training import loop, startup
from openjepa.training.loop import train
from openjepa.training.monitor import draw_batches
from openjepa.training.startup import default_view, training_length
from openjepa.types import Batch, InputSpec
from tests.helpers.images import write_folder
from tests.helpers.small_runs import lines, small_config


class Stream(ShardSource):
    """The images of a list as one shard; it says how many they are, or does not."""

    def __init__(self, source: ListSource | None = None, num_records: int | None = None) -> None:
        self._source, self.num_records = source, num_records

    def __len__(self) -> int:
        return 1

    def read_shard(self, shard: int) -> Iterator[ShardRecord]:
        assert self._source is not None
        for index in range(len(self._source)):
            yield ShardRecord(self._source.name(index), self._source.read(index))


@pytest.mark.parametrize(
    ("num_images", "optim", "message"),
    [
        (
            800,
            {"total_steps": 150},
            r"warmup_epochs=15 \(150 steps\) .* run of 150 steps: .* Set optim\.warmup_steps, e\.g\. 7",
        ),
        (800, {"epochs": 15}, r"warmup_epochs=15 \(150 steps\) is not shorter"),
        (None, {"total_steps": 5000, "warmup_epochs": 1}, r"warmup_epochs=1 \(of a stream of unknown length\) is not shorter"),
    ],
)
def test_a_warmup_as_long_as_the_run_is_refused(num_images: int | None, optim: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        training_length(OptimizationSettings(batch_size=80, **optim), Stream(num_records=num_images))  # type: ignore[arg-type]


def test_a_shorter_warmup_is_taken() -> None:
    optim = OptimizationSettings(batch_size=80, total_steps=151)
    assert training_length(optim, Stream(num_records=800)) == (151, 10.0)
    in_steps = OptimizationSettings(batch_size=80, total_steps=100, warmup_steps=5)
    assert training_length(in_steps, Stream()) == (100, 100.0)


def test_a_slow_teacher_is_remarked_whatever_gives_the_length(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    images = write_folder(tmp_path / "images", 40)
    for length in ({"total_steps": 8}, {"total_steps": None, "epochs": 2}):
        assert train(small_config(images, tmp_path, **length), dry_run=True) is None
        assert "note: method.ema_start=0.996 is slow for 8 steps" in capsys.readouterr().out


def probe(train_source: ListSource | Stream, folder: Path, number: int) -> list[Batch]:
    config = small_config(folder, folder)
    sampler = MASKS["multiblock"].load()(config.masks, (8, 8))
    inputs = InputSpec({"image": default_view(config.data)}, ("image",))
    return draw_batches(config, inputs, sampler, Splits(train_source), number, 8, seed=1)


@pytest.mark.parametrize("knows", [False, True])
def test_a_small_stream_gives_the_probe_what_it_has(tmp_path: Path, knows: bool) -> None:
    folder = write_folder(tmp_path / "images", 30, classes=False)
    source = open_folder(FolderSettings(path=str(folder)), 0).train
    assert isinstance(source, ListSource)
    taken = probe(Stream(source, len(source) if knows else None), folder, 512)
    ids = list(itertools.chain.from_iterable(batch.sample_ids.tolist() for batch in taken))
    assert len(ids) == len(set(ids)) == 24  # whole microbatches of 8
    assert len(probe(Stream(source), folder, 16)) == 2
    assert len(probe(source, folder, 512)) == 3


def test_labels_on_one_side_train_without_the_online_knn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    images = write_folder(tmp_path / "images", 40)
    unlabeled = open_folder(FolderSettings(path=str(write_folder(tmp_path / "flat", 20, classes=False))), 0).train
    opened = loop.open_splits
    monkeypatch.setattr(loop, "open_splits", lambda settings, seed: replace(opened(settings, seed), train=unlabeled))
    run = train(replace(small_config(images, tmp_path), monitor=MonitorSettings(every=2, images=16, knn=True)))
    assert run is not None and "knn" not in lines(run, "monitor")[0]


def test_the_estimate_counts_weights_activations_and_what_the_process_holds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(estimates, "peak_memory", lambda _: 1000)
    units = (WeightUnit(((9, 10), (9,)), is_trained=True, is_block=False),)
    costs = StepCosts({}, 2e9, kept_bytes=640, kept_scores=70, units=units)
    for precision, bytes_per_weight in (
        ("bf16", 30),
        ("fp32", 28),
    ):  # value, gradient, two moments, a checkpoint's copy, and bf16 copies
        division = estimates.Division("single", 1, precision=precision)
        needs = estimates.estimate(costs, division, 1, torch.device("cpu"))
        kept = {"fp32": 640, "bf16": 360 + 2 * 70}[precision]
        assert (
            needs.memory_bytes == 1000 + kept + bytes_per_weight * 99
            and needs.flops_per_image == 2e9
            and needs.trained_parameters == 99
        )
        on_gpu = estimates.estimate(costs, division, 1, torch.device("cuda"))
        assert on_gpu.memory_bytes <= needs.memory_bytes - 1000 - 12 * 99 and on_gpu.checkpoint_copy == 12 * 99


def test_muon_without_bf16_products_is_remarked(monkeypatch: pytest.MonkeyPatch) -> None:
    muon, device = OptimizationSettings(optimizer="muon"), torch.device("cpu")
    for has_products in (False, True):
        monkeypatch.setattr(startup, "supports_bf16", lambda _, has=has_products: has)
        assert len(startup.slow_muon(muon, device)) == (not has_products)
    assert startup.slow_muon(OptimizationSettings(), device) == []


def test_too_little_memory_is_remarked_and_less_than_half_of_it_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    config = small_config(write_folder(tmp_path / "images", 40), tmp_path)
    monkeypatch.setattr(startup, "memory_limit", lambda device: 1000)
    words = r"needs about .*B of memory and cpu has .*B: lower optim.microbatch_size \(now 8\)"
    for needed, is_short in ((1000.0, False), (2000.0, True)):
        needs = estimates.Estimate(1, 1.0, needed, 0.0)
        monkeypatch.setattr(startup, "estimate", lambda *_, needs=needs: needs)
        train(config, dry_run=True)
        assert bool(re.search(f"note: this run {words}", capsys.readouterr().out)) == is_short
    monkeypatch.setattr(startup, "estimate", lambda *_: estimates.Estimate(1, 1.0, 2001.0, 0.0))
    with pytest.raises(ValueError, match=words):
        train(config, dry_run=True)


def test_masks_that_cannot_be_drawn_are_refused_before_the_images_are_opened(tmp_path: Path) -> None:
    """The released code would draw a target of at most `min_keep` patches again for ever."""
    config = small_config(tmp_path / "there-are-no-images", tmp_path)
    config = replace(config, masks=MultiblockSettings(mode="official", min_keep=100))
    with pytest.raises(ValueError, match=r"masks.min_keep=100 .* would be drawn again for ever; the largest value that fits"):
        train(config)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("labeled", [True, False])
def test_the_next_command_fits_the_data(labeled: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Without labels there is nothing to probe: pictures come next."""
    folder = write_folder(tmp_path / "images", 24, classes=labeled)
    config = small_config(folder, tmp_path)
    save_yaml(config, tmp_path / "run.yaml")
    train_command(["--config", str(tmp_path / "run.yaml")], "openjepa train")
    assert f"next: openjepa {'evaluate' if labeled else 'visualize'} {tmp_path / 'run'}" in capsys.readouterr().out
