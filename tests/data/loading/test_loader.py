"""The order of the loader, its independence of workers and division, and exact resume."""

import os
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from openjepa.data.decode import decode_image
from openjepa.data.loading import loader as loader_module
from openjepa.data.loading import order
from openjepa.data.loading.loader import TrainingLoader
from openjepa.data.loading.order import BatchPlan, permutation
from openjepa.data.source import ListSource, ShardRecord, open_splits
from openjepa.data.views import crop_and_resize, crop_box
from openjepa.seeds import derive, derive_samples, uniforms
from openjepa.settings.sources import FolderSettings, HuggingFaceSettings
from openjepa.types import Batch, BlockMasks, InputSpec, LoaderPosition, ViewSpec
from tests.helpers.images import write_folder
from tests.helpers.loading import (
    CPU,
    INPUTS,
    SEED,
    START,
    VIEW,
    RecordingSampler,
    Shards,
    load,
    opened,
    rows,
    same,
    spoiled_images,
    uneven_images,
)

DATA = Path(os.environ.get("OPENJEPA_DATA", Path(__file__).parents[3] / ".." / "shared" / "data"))


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> ListSource:
    return uneven_images(tmp_path_factory.mktemp("images"))


@pytest.fixture(scope="module")
def spoiled(tmp_path_factory: pytest.TempPathFactory) -> tuple[ListSource, dict[str, str]]:
    return spoiled_images(tmp_path_factory.mktemp("spoiled"))


# ---------------------------------------------------------------------------------------------------------------- order


def test_an_epoch_has_every_sample_once_and_drops_the_rest(images: ListSource) -> None:
    batches = load(images, 12, plan=BatchPlan(8, 4))
    assert len(batches) == 24
    for epoch in range(2):  # 45 samples: five steps of eight, five samples dropped
        samples = torch.cat([batch.sample_ids for batch in batches[10 * epoch : 10 * (epoch + 1)]]).tolist()
        assert len(set(samples)) == 40
        assert samples == permutation(SEED, epoch, 45)[:40].tolist()
    assert batches[0].labels is not None and images.labels is not None
    assert torch.equal(batches[0].labels, torch.from_numpy(images.labels)[batches[0].sample_ids])


def test_orders_of_epochs_and_seeds_differ_and_are_fair() -> None:
    orders = {tuple(permutation(seed, epoch, 50).tolist()) for seed in range(10) for epoch in range(10)}
    assert len(orders) == 100 and all(sorted(order) == list(range(50)) for order in orders)
    first = Counter(int(permutation(0, epoch, 5)[0]) for epoch in range(5000))
    assert all(abs(count - 1000) < 5 * np.sqrt(800) for count in first.values())


def test_positions_count_used_samples(images: ListSource) -> None:
    positions = [batch.next_position for batch in load(images, 6)]
    assert positions == [LoaderPosition(0, 8 * step) for step in range(1, 6)] + [LoaderPosition(1, 8)]


def test_crops_and_masks_are_functions_of_seed_epoch_and_sample(images: ListSource) -> None:
    """Restated from the parts: the crop numbers of a sample, its mask seed, and the group's seed by step."""
    for step, batch in enumerate(load(images, 7, plan=BatchPlan(8, 8, group_size=8))):
        epoch = np.array([step // 5])
        samples = batch.sample_ids.numpy()
        masks = batch.masks["image"]
        assert isinstance(masks, BlockMasks)
        assert masks.context[:, 0].tolist() == derive_samples("mask", SEED, epoch, samples).tolist()
        assert set(masks.targets.flatten().tolist()) == {derive("group", SEED, step, 0)} and masks.redrawn == step
        numbers = uniforms(derive_samples("crop", SEED, epoch, samples), 23)
        for row, sample in enumerate(samples.tolist()):
            pixels = torch.from_numpy(decode_image(images.read(sample)))
            box = crop_box(numbers[row].tolist(), pixels.shape[0], pixels.shape[1], VIEW)
            expected = crop_and_resize(pixels, box, (16, 16), "bilinear", flip=bool(numbers[row, 22] < 0.5))
            assert torch.equal(batch.views["image"][0, row], expected)


def test_views_of_several_names_and_numbers_are_independent(images: ListSource) -> None:
    inputs = InputSpec({"image": VIEW, "small": ViewSpec((8, 12), count=3, scale=(0.05, 0.3))}, ("image",))
    (batch,) = load(images, 1, inputs=inputs)
    assert batch.views["image"].shape == (1, 8, 3, 16, 16) and batch.views["small"].shape == (3, 8, 3, 8, 12)
    assert not torch.equal(batch.views["small"][0], batch.views["small"][1])
    assert torch.equal(batch.views["image"], load(images, 1)[0].views["image"]), "one view does not depend on the others"


def test_every_view_has_masks_of_its_own(images: ListSource) -> None:
    """V x B rows, view by view; the first view's are those of a method with one view, and a group shares its seed."""
    inputs = InputSpec({"image": VIEW, "wide": ViewSpec((8, 12), count=3)}, ("image", "wide"))
    (batch,) = load(images, 1, inputs=inputs)
    (single,) = load(images, 1)
    image, wide, alone = batch.masks["image"], batch.masks["wide"], single.masks["image"]
    assert isinstance(image, BlockMasks) and isinstance(wide, BlockMasks) and isinstance(alone, BlockMasks)
    assert torch.equal(image.context, alone.context) and wide.context.shape == (24, 1)
    samples = batch.sample_ids.numpy()
    for view in range(3):
        seeds = derive_samples("mask", derive("mask", SEED, 1 + view), np.array([0]), samples)
        assert wide.context[8 * view : 8 * (view + 1), 0].tolist() == seeds.tolist()
    assert len(set(wide.targets.flatten().tolist())) == 1


def test_every_context_has_masks_of_its_own(images: ListSource) -> None:
    """The rows of an image follow one another. Its first context is that of a method with one; all share the group's seed."""
    inputs = InputSpec({"image": VIEW, "wide": ViewSpec((8, 12), count=2)}, ("image", "wide"), contexts=3)
    (batch,) = load(images, 1, inputs=inputs)
    (single,) = load(images, 1, inputs=replace(inputs, contexts=1))
    assert same_views(batch, single), "an image is decoded and cropped once"
    for name, count in (("image", 1), ("wide", 2)):
        many, one = batch.masks[name], single.masks[name]
        assert isinstance(many, BlockMasks) and isinstance(one, BlockMasks)
        seeds = many.context.view(count, 8, 3)
        assert torch.equal(seeds[..., 0].reshape(-1, 1), one.context)
        assert set(many.targets.flatten().tolist()) == set(one.targets.flatten().tolist())
    every = torch.cat([masks.context.flatten() for masks in batch.masks.values()])  # type: ignore[union-attr]
    assert len(set(every.tolist())) == 8 * 3 * 3
    parts = load(images, 1, inputs=inputs, plan=BatchPlan(8, 2))
    whole = torch.cat([part.masks["image"].context for part in parts])  # type: ignore[union-attr]
    assert torch.equal(whole, batch.masks["image"].context)  # type: ignore[union-attr]


def same_views(first: Batch, second: Batch) -> bool:
    return all(torch.equal(view, second.views[name]) for name, view in first.views.items())


# ------------------------------------------------------------------------------------------- workers, division, resume


@pytest.mark.parametrize("kind", ["list", "shards"])
def test_any_number_of_workers_gives_the_same(
    images: ListSource, spoiled: tuple[ListSource, dict[str, str]], kind: str
) -> None:
    for source in (images, spoiled[0]):
        used = source if kind == "list" else Shards(source, (3, 20, 2, 15))
        expected = load(used, 6, plan=BatchPlan(16, 16))
        for workers in (1, 2):
            assert same(load(used, 6, plan=BatchPlan(16, 16), workers=workers), expected)


def test_large_microbatches_are_put_together_from_chunks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loader_module, "CHUNK_BYTES", 60 * 3 * 16 * 16)
    source = opened(write_folder(tmp_path, 150, 12, classes=False))
    plan = BatchPlan(140, 140)
    assert same(load(source, 2, plan=plan, workers=2), load(source, 2, plan=plan))


@pytest.mark.parametrize("kind", ["list", "shards"])
@pytest.mark.parametrize("bad", [False, True])
def test_microbatches_and_processes_together_are_the_same_step(
    images: ListSource, spoiled: tuple[ListSource, dict[str, str]], kind: str, bad: bool
) -> None:
    chosen = spoiled[0] if bad else images
    source = chosen if kind == "list" else Shards(chosen, (3, 20, 2, 15))
    whole = rows(load(source, 6, plan=BatchPlan(16, 16, group_size=16)))
    skipped = [skip for batch in load(source, 6, plan=BatchPlan(16, 16)) for skip in batch.skipped]
    for micro, world in ((8, 1), (4, 1), (4, 2), (2, 4), (8, 2)):
        plans = [BatchPlan(16, micro, rank, world, group_size=16) for rank in range(world)]
        ranks = [load(source, 6, plan=plan) for plan in plans]
        waves = [batch for microbatch in zip(*ranks, strict=True) for batch in microbatch]
        assert rows(waves) == whole
        assert [skip for batch in waves for skip in batch.skipped] == skipped


def test_mask_groups_follow_the_slots_not_the_processes(images: ListSource) -> None:
    def groups(plans: list[BatchPlan]) -> list[int]:
        ranks = [load(images, 1, plan=plan) for plan in plans]
        masks = [batch.masks["image"] for microbatch in zip(*ranks, strict=True) for batch in microbatch]
        return [seed for mask in masks if isinstance(mask, BlockMasks) for seed in mask.targets.flatten().tolist()]

    expected = [derive("group", SEED, 0, slot // 8) for slot in range(16)]
    for micro, world in ((8, 1), (4, 1), (4, 2), (8, 2)):
        assert groups([BatchPlan(16, micro, rank, world, group_size=8) for rank in range(world)]) == expected


@pytest.mark.parametrize("kind", ["list", "shards"])
def test_resume_from_any_step_continues_the_uninterrupted_stream(images: ListSource, kind: str) -> None:
    source = images if kind == "list" else Shards(images, (11, 1, 17, 16))
    plan = BatchPlan(8, 4)
    whole = load(source, 13, plan=plan)
    for step in range(1, 13):
        position = whole[2 * step - 1].next_position
        assert same(load(source, 13 - step, step, position, plan=plan), whole[2 * step :]), f"resumed at {step}"
    assert same(load(source, 6, 7, whole[13].next_position, plan=plan, workers=2), whole[14:])


def test_a_stream_has_every_record_once_per_epoch_in_its_windows(images: ListSource) -> None:
    batches = load(Shards(images, (11, 1, 17, 16)), 11, plan=BatchPlan(5, 5))
    for epoch in range(2):  # 45 records, nine steps
        part = batches[9 * epoch : 9 * (epoch + 1)]
        labels = [label for batch in part if batch.labels is not None for label in batch.labels.tolist()]
        assert len(labels) == len(set(labels)) == 5 * len(part)
        shards = permutation(SEED, epoch, 4).tolist()
        ends = [11, 12, 29, 45]
        stored = [i for shard in shards for i in range(ends[shard] - (11, 1, 17, 16)[shard], ends[shard])]
        for first in range(0, len(labels) - 6, 7):  # window of 7
            assert sorted(labels[first : first + 7]) == sorted(stored[first : first + 7])
            assert labels[first : first + 7] != stored[first : first + 7]


def test_names_of_samples(images: ListSource) -> None:
    settings = HuggingFaceSettings(image_size=16, window=7)
    for source in (images, Shards(images, (20, 25))):
        loader = TrainingLoader(source, settings, INPUTS, RecordingSampler(), BatchPlan(8, 8), SEED, 0, CPU)
        batch = next(iter(loader.iterate(0, START, 1)))
        assert batch.labels is not None
        for sample, label in zip(batch.sample_ids.tolist(), batch.labels.tolist(), strict=True):
            assert loader.name(sample) == images.name(sample if source is images else label)
        assert loader.steps_per_epoch == (5 if source is images else None)
        assert loader.num_images == (45 if source is images else None)
        loader.close()
    assert loader.name(10**6) == "sample 1000000 of the stream"


def test_time_spent_waiting_for_data_is_counted(images: ListSource, monkeypatch: pytest.MonkeyPatch) -> None:
    """A clock that only reading moves: what the user of the batches does between two of them does not count."""
    now = [0.0]

    class Slow(Shards):
        def read_shard(self, shard: int) -> Iterator[ShardRecord]:
            for record in super().read_shard(shard):
                now[0] += 1.0
                yield record

    monkeypatch.setattr(loader_module, "monotonic", lambda: now[0])
    monkeypatch.setattr(order, "SPARES", 16)
    settings = HuggingFaceSettings(image_size=16, window=1)
    loader = TrainingLoader(Slow(images, (45,)), settings, INPUTS, RecordingSampler(), BatchPlan(4, 4), SEED, 0, CPU)
    waited = []
    for _ in loader.iterate(0, START, 3):
        waited.append(loader.seconds_waited)
        now[0] += 100.0
    assert waited == [20.0, 24.0, 28.0], "a step of four and the spares, then four more each"


def test_starting_workers_leaves_the_global_generator_alone(images: ListSource) -> None:
    torch.manual_seed(3)
    expected = torch.rand(4)
    torch.manual_seed(3)
    load(images, 2, workers=1)
    assert torch.equal(torch.rand(4), expected)


@pytest.mark.data
@pytest.mark.parametrize("name", ["imagewoof128", "imagenet-sample-100"])
def test_real_photos_do_not_depend_on_workers_or_interruptions(name: str) -> None:
    if not (DATA / name).is_dir():
        pytest.skip(f"needs {name} in {DATA} (OPENJEPA_DATA)")
    is_folder = name == "imagenet-sample-100"
    settings = FolderSettings(path=str(DATA / name)) if is_folder else HuggingFaceSettings(path=str(DATA / name))
    source = open_splits(settings, 0).train
    whole = load(source, 5)
    assert not any(batch.skipped for batch in whole)
    assert same(load(source, 5, workers=2), whole)
    assert same(load(source, 2, 3, whole[2].next_position), whole[3:])
