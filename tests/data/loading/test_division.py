"""One global batch, divided over processes: together they see the same samples, crops, colors and masks as one process."""

import random
from collections.abc import Iterator
from functools import cache
from itertools import chain, product
from pathlib import Path
from typing import Any

import pytest

from openjepa.data.loading.loader import TrainingLoader
from openjepa.data.loading.order import BatchPlan
from openjepa.data.source import ListSource, ShardSource, open_splits
from openjepa.masks import MASKS
from openjepa.masks.official_draws import microbatch_note
from openjepa.masks.sampler import MaskSampler
from openjepa.settings.masks import (
    BlockwiseSettings,
    InverseBlockSettings,
    MaskSettings,
    MultiblockSettings,
    RandomPatchesSettings,
    SingleBlockSettings,
)
from openjepa.settings.sources import FolderSettings, HuggingFaceSettings
from openjepa.types import Batch, BlockMasks, ColorChange, InputSpec, LoaderPosition, ViewSpec
from tests.helpers.images import write_folder
from tests.helpers.loading import CPU, SEED, START
from tests.helpers.tables import offline as offline
from tests.helpers.tables import write_parquet, write_tar

pytestmark = pytest.mark.usefixtures("offline")
BATCH = 8
COLORS = ColorChange(jitter=(0.4, 0.4, 0.2, 0.1), jitter_probability=0.8, grayscale_probability=0.2, blur_probability=0.5)
INPUTS = InputSpec(
    {
        "image": ViewSpec((16, 16), horizontal_flip=True, colors=(COLORS,)),
        "small": ViewSpec((8, 8), count=2, scale=(0.1, 0.3)),
    },
    ("image",),
)
WINDOWS = (1, 7, 100)
KINDS = ("folder", "tars", "parquet")
LENGTHS = (3, 11, 1, 17, 9)
"""Images of the shards: 41, of which five steps of eight use 40."""
Row = tuple[object, ...]


def source(kind: str, folder: Path) -> ListSource | ShardSource:
    """41 images as a list, or as shards of uneven lengths."""
    if kind == "folder":
        write_folder(folder, 41, 20)
        return open_splits(FolderSettings(path=str(folder), test_fraction=0), 0).train
    first = 0
    for number, length in enumerate(LENGTHS):
        name = folder / f"train-{number}.{'tar' if kind == 'tars' else 'parquet'}"
        (write_tar if kind == "tars" else write_parquet)(name, range(first, first + length))
        first += length
    return open_splits(HuggingFaceSettings(path=str(folder), streaming=True), 0).train


@cache
def sampler_of(masks: MaskSettings) -> MaskSampler:
    return MASKS[masks.strategy].load()(masks, (8, 8))


def batches_of(
    data: ListSource | ShardSource,
    plan: BatchPlan,
    num_steps: int,
    *,
    masks: MaskSettings = MultiblockSettings(group_size=4),  # noqa: B008 (frozen)
    window: int = 7,
    workers: int = 0,
    start_step: int = 0,
    position: LoaderPosition = START,
) -> list[Batch]:
    """The microbatches of one process."""
    settings = HuggingFaceSettings(image_size=16, window=window)
    loader = TrainingLoader(data, settings, INPUTS, sampler_of(masks), plan, SEED, workers, CPU)
    try:
        return list(loader.iterate(start_step, position, num_steps))
    finally:
        loader.close()


def rows(batch: Batch) -> Iterator[Row]:
    """Everything about each image of a batch. Padding of masks belongs to a microbatch, not to an image."""
    masks = batch.masks["image"]
    for row, sample in enumerate(batch.sample_ids.tolist()):
        if isinstance(masks, BlockMasks):
            valid = slice(None) if masks.context_valid is None else masks.context_valid[row]
            drawn = (masks.context[row][valid].tolist(), masks.targets[row].tolist())
        else:
            drawn = (masks.masked[row].tolist(), None)
        label = None if batch.labels is None else int(batch.labels[row])
        yield (sample, label, *drawn, *(view[:, row].numpy().tobytes() for view in batch.views.values()))


def divided(
    data: ListSource | ShardSource, micro: int, world: int, num_steps: int, group: int | None = 4, **how: Any
) -> tuple[list[list[Row]], list[LoaderPosition]]:
    """The images of each step, over all processes, in the order of the slots; and where each step ends."""
    plans = [BatchPlan(BATCH, micro, rank, world, group_size=group) for rank in range(world)]
    ranks = [batches_of(data, plan, num_steps, **how) for plan in plans]
    waves = list(chain.from_iterable(zip(*ranks, strict=True)))
    per_step = BATCH // micro
    steps = [list(chain.from_iterable(map(rows, waves[i : i + per_step]))) for i in range(0, len(waves), per_step)]
    ends = [{batch.next_position for batch in waves[i : i + per_step]} for i in range(0, len(waves), per_step)]
    assert all(len(end) == 1 for end in ends) and len(steps) == num_steps
    return steps, [end.pop() for end in ends]


@pytest.mark.parametrize(("kind", "window"), [("folder", 7), *product(KINDS[1:], WINDOWS)])
def test_any_number_of_processes_sees_the_same_steps(kind: str, window: int, tmp_path: Path) -> None:
    """Two epochs, with uneven shards; and each epoch has every image once, but for the one that fills no step."""
    data = source(kind, tmp_path)
    whole, ends = divided(data, BATCH, 1, 10, group=BATCH, window=window)
    for micro, world in ((4, 2), (1, 4)):
        assert divided(data, micro, world, 10, group=BATCH, window=window) == (whole, ends), (micro, world)
    for epoch in range(2):
        pixels = [row[0] if kind == "folder" else row[4] for step in whole[5 * epoch : 5 * epoch + 5] for row in step]
        assert len(set(pixels)) == 40


@pytest.mark.parametrize("kind", KINDS)
def test_workers_of_several_processes_change_nothing(kind: str, tmp_path: Path) -> None:
    data = source(kind, tmp_path)
    whole = divided(data, BATCH, 1, 3, group=BATCH)
    assert divided(data, 2, 4, 3, group=BATCH, workers=1) == whole
    assert divided(data, 4, 2, 3, group=BATCH, workers=2) == whole


@pytest.mark.parametrize("kind", KINDS)
def test_a_run_goes_on_with_another_number_of_processes(kind: str, tmp_path: Path) -> None:
    data = source(kind, tmp_path)
    whole, ends = divided(data, BATCH, 1, 12, group=BATCH)
    for step, (micro, world) in ((1, (2, 4)), (5, (2, 2)), (8, (1, 4))):
        how = {"start_step": step, "position": ends[step - 1]}
        assert divided(data, micro, world, 12 - step, group=BATCH, **how) == (whole[step:], ends[step:])


MASK_SETTINGS: tuple[MaskSettings, ...] = (
    *(MultiblockSettings(context_cut=cut) for cut in ("random_subset", "random_window", "smallest", "none")),
    SingleBlockSettings(),
    InverseBlockSettings(),
    BlockwiseSettings(ratios=(0.0, 0.3), spreads=(0.0, 0.2)),
    BlockwiseSettings(),
    RandomPatchesSettings(),
    RandomPatchesSettings(shared=True),
)


@pytest.mark.parametrize("masks", MASK_SETTINGS, ids=str)
@pytest.mark.parametrize("group", [4, 8])
def test_masks_of_every_strategy_do_not_depend_on_the_division(masks: MaskSettings, group: int, tmp_path: Path) -> None:
    """A mask group may span processes: with groups of 4, two processes share one, or four have two together."""
    data = source("folder", tmp_path)
    whole = divided(data, group, 1, 4, group, masks=masks)
    for micro, world in ((2, 1), (4, 2), (1, 4)):
        assert divided(data, micro, world, 4, group, masks=masks) == whole, (micro, world)


def test_contexts_and_targets_have_one_length_in_a_group_that_spans_processes(tmp_path: Path) -> None:
    data = source("folder", tmp_path)
    lengths = set()
    for rank in range(4):
        for number, batch in enumerate(batches_of(data, BatchPlan(BATCH, 1, rank, 4, group_size=4), 4)):
            masks = batch.masks["image"]
            assert isinstance(masks, BlockMasks) and masks.context_valid is None
            lengths.add((number // 2, number % 2, masks.context.shape[1], masks.targets.shape[2]))
    assert len(lengths) == 8, "one shape for each step and group"
    assert len({shape[2] for shape in lengths}) == 1 and len({shape[3] for shape in lengths}) > 1


def test_official_masks_depend_on_the_microbatch_and_a_note_says_so(tmp_path: Path) -> None:
    data, masks = source("folder", tmp_path), MultiblockSettings(mode="official", min_keep=4)
    whole = divided(data, 2, 1, 3, masks=masks)
    assert divided(data, 2, 2, 3, masks=masks) == divided(data, 2, 4, 3, masks=masks) == whole
    assert divided(data, 4, 1, 3, masks=masks)[0] != whole[0]
    assert microbatch_note(masks, 2, 2) is None and microbatch_note(MultiblockSettings(), 4, 2) is None
    note = microbatch_note(masks, 4, 2)
    assert note is not None and note.startswith("a microbatch had 4 images and now has 2: masks.mode=official draws")


@pytest.mark.parametrize("processes", [2, 4])
def test_a_microbatch_of_all_processes_is_one_of_a_single_process(processes: int) -> None:
    """The k-th of `m` images in each of N processes has the images of the k-th of N x m in one, so coupled terms agree."""
    alone = BatchPlan(32, 4 * processes)
    plans = [BatchPlan(32, 4, rank, processes) for rank in range(processes)]
    for number in range(alone.num_microbatches):
        together = [plan.first_slot(number) + place for plan in plans for place in range(4)]
        assert together == [alone.first_slot(number) + place for place in range(4 * processes)]


def test_plans_of_random_divisions_fill_every_slot_once() -> None:
    draw = random.Random(0)
    for _ in range(200):
        micro, world, number = draw.randint(1, 5), draw.randint(1, 6), draw.randint(1, 4)
        batch = micro * world * number
        plans = [BatchPlan(batch, micro, rank, world) for rank in range(world)]
        slots = [plan.first_slot(m) + i for plan in plans for m in range(plan.num_microbatches) for i in range(micro)]
        assert sorted(slots) == list(range(batch))
        groups = [size for size in range(micro, batch + 1, micro) if batch % size == 0]
        size = draw.choice(groups)
        for rank in range(world):
            plan = BatchPlan(batch, micro, rank, world, group_size=size)
            for m in range(plan.num_microbatches):
                inside = {(plan.first_slot(m) + i) // size for i in range(micro)}
                assert inside == {plan.group(m)}
