"""The loader with unreadable images, caches and impossible settings; evaluation batches."""

import warnings
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import Tensor

from openjepa.data.decode import decode_image
from openjepa.data.loading import cache as cache_module
from openjepa.data.loading import loader as loader_module
from openjepa.data.loading.loader import TrainingLoader
from openjepa.data.loading.order import BatchPlan, permutation
from openjepa.data.loading.workers import parallel_map
from openjepa.data.passes import check_shared_memory, choose_workers, evaluation_batches
from openjepa.data.source import ListSource, ShardRecord
from openjepa.data.views import evaluation_view
from openjepa.settings.sources import FolderSettings
from openjepa.types import Batch, InputSpec, Skipped, ViewSpec
from tests.helpers.images import write_folder
from tests.helpers.loading import (
    CPU,
    INPUTS,
    SEED,
    START,
    RecordingSampler,
    Shards,
    load,
    opened,
    rows,
    same,
    spoiled_images,
    uneven_images,
)


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> ListSource:
    return uneven_images(tmp_path_factory.mktemp("images"))


@pytest.fixture(scope="module")
def spoiled(tmp_path_factory: pytest.TempPathFactory) -> tuple[ListSource, dict[str, str]]:
    return spoiled_images(tmp_path_factory.mktemp("spoiled"))


# ---------------------------------------------------------------------------------------------------- unreadable images


@pytest.mark.parametrize("kind", ["list", "shards", "memory", "device"])
def test_unreadable_images_are_replaced_by_the_next_and_listed(
    spoiled: tuple[ListSource, dict[str, str]], kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loader_module, "HOST_DEVICES", ())
    source, reasons = spoiled
    used = Shards(source, (40,)) if kind == "shards" else source
    batches = load(used, 5, cache=kind if kind in ("memory", "device") else "none")
    skipped = {skip.name: skip.reason for batch in batches for skip in batch.skipped}
    assert skipped.keys() == reasons.keys() and sum(len(batch.skipped) for batch in batches) == 4
    assert all(reasons[name] in reason for name, reason in skipped.items())
    if kind != "shards":
        order = permutation(SEED, 0, 40).tolist()
        good = [source.name(sample) not in reasons for sample in order]
        following = [next(p for p in list(range(slot, 40)) + list(range(40)) if good[p]) for slot in range(40)]
        used_samples = torch.cat([batch.sample_ids for batch in batches]).tolist()
        assert used_samples == [order[place] for place in following]


def test_a_source_of_bad_images_is_refused_at_start(tmp_path: Path, spoiled: tuple[ListSource, dict[str, str]]) -> None:
    small = opened(write_folder(tmp_path / "small", 12, 3))
    with pytest.raises(ValueError, match=r"none of the first 12 .*12x 3 x 3 pixels, smaller than a patch of 4"):
        load(small, 1)
    with pytest.raises(ValueError, match=r"4 of 40 images could not be used, more than data.max_skipped=0.05"):
        load(spoiled[0], 1, cache="memory", max_skipped=0.05)


def test_a_long_run_of_unreadable_images_stops_a_stream(images: ListSource) -> None:
    class Broken(Shards):
        def read_shard(self, shard: int) -> Iterator[ShardRecord]:
            return (replace(record, data=b"") for record in super().read_shard(shard))

    with pytest.raises(ValueError, match=r"24 images in a row cannot be used; the first is .*png: empty file"):
        load(Broken(images, (45,)), 1)


# --------------------------------------------------------------------------------------------------------------- caches


def pixels(batches: list[Batch]) -> Tensor:
    return torch.cat([batch.views["image"] for batch in batches], dim=1)


def test_caches_give_the_same_crops_where_nothing_is_reduced(images: ListSource, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = {"plan": BatchPlan(8, 4)}
    plain = load(images, 6, **settings)  # type: ignore[arg-type]
    large = replace_cache_size(images, 64)
    assert same(large(cache="memory", workers=0), plain)
    assert same(large(cache="memory", workers=2), plain)
    assert same(large(cache="device", workers=0), plain), "the CPU is no other device"
    monkeypatch.setattr(loader_module, "HOST_DEVICES", ())
    for workers in (0, 1):
        on_device = large(cache="device", workers=workers)
        assert (pixels(on_device).int() - pixels(plain).int()).abs().max() <= 1
        assert [row[:5] for row in rows(on_device)] == [row[:5] for row in rows(plain)]


def replace_cache_size(source: ListSource, cache_size: int):  # type: ignore[no-untyped-def]
    def run(cache: str, workers: int) -> list[Batch]:
        settings = FolderSettings(image_size=16, cache=cache, cache_size=cache_size)  # type: ignore[arg-type]
        plan = BatchPlan(8, 4)
        loader = TrainingLoader(source, settings, INPUTS, RecordingSampler(), plan, SEED, workers, CPU)
        return list(loader.iterate(0, START, 6))

    return run


@pytest.mark.gpu
def test_crops_on_a_gpu_equal_those_of_the_workers(images: ListSource) -> None:
    if not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")
    settings = FolderSettings(image_size=16, cache="device", cache_size=64)
    device = torch.device("cuda")
    for cache, tolerance in (("device", 1), ("none", 0)):
        chosen = replace(settings, cache=cache)  # type: ignore[arg-type]
        loader = TrainingLoader(images, chosen, INPUTS, RecordingSampler(), BatchPlan(8, 4), SEED, 1, device)
        batches = [batch.to(device) for batch in loader.iterate(0, START, 6)]
        loader.close()
        assert batches[0].views["image"].device.type == "cuda" and batches[0].masks["image"].context.is_cuda
        difference = pixels(batches).cpu().int() - pixels(load(images, 6, plan=BatchPlan(8, 4))).int()
        assert difference.abs().max() <= tolerance


def test_many_images_are_decoded_by_all_cores_to_the_same_cache(images: ListSource, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cache_module, "CHUNK", 7)
    alone, together = (cache_module.build_cache(images, 18, workers=workers) for workers in (0, 2))
    assert torch.equal(alone.pixels_flat, together.pixels_flat) and np.array_equal(alone.starts, together.starts)


def test_caches_reduce_to_the_short_side_and_report_progress(images: ListSource) -> None:
    seen: list[int] = []
    cached = cache_module.build_cache(images, 18, advance=seen.append)
    assert sum(seen) == 45
    for index in range(45):
        height, width = decode_image(images.read(index)).shape[:2]
        assert min(cached.size(index)) == 18
        assert abs(cached.size(index)[1] / cached.size(index)[0] - width / height) < 0.06
    plain = cache_module.build_cache(images, 1000)
    assert all(np.array_equal(plain.pixels(i).numpy(), decode_image(images.read(i))) for i in range(45))


def test_a_cache_that_does_not_fit_is_refused(images: ListSource) -> None:
    with pytest.raises(ValueError, match=r"data.cache needs about [\d,]+ bytes .* more than the 1,000 bytes"):
        cache_module.build_cache(images, 18, max_bytes=1000)


# --------------------------------------------------------------------------------------------------- impossible settings


def test_impossible_batches_are_refused(images: ListSource) -> None:
    with pytest.raises(
        ValueError, match=r"microbatch_size=4 does not divide optim.batch_size=10; near values that do: 1, 2, 5, 10"
    ):
        BatchPlan(10, 4)
    with pytest.raises(ValueError, match=r"masks.group_size=6"):
        BatchPlan(16, 4, group_size=6)
    with pytest.raises(ValueError, match=r"optim.batch_size=64 is larger than the 45 training images"):
        load(images, 1, plan=BatchPlan(64, 64))
    with pytest.raises(ValueError, match=r"fewer images than optim.batch_size=64"):
        load(Shards(images, (45,)), 1, plan=BatchPlan(64, 64))
    with pytest.raises(ValueError, match=r"18 pixels cannot be divided into 4 patches"):
        load(images, 1, inputs=InputSpec({"image": ViewSpec((18, 18))}, ("image",)))


def test_number_of_workers() -> None:
    assert choose_workers(3, "memory") == 3 and choose_workers(None, "device") == 0
    assert 1 <= choose_workers(None) <= 16


def test_too_little_shared_memory_is_an_error() -> None:
    if not Path("/dev/shm").is_dir():
        pytest.skip("this system has no /dev/shm")
    with pytest.raises(ValueError, match=r"system.workers=4 needs 10,000,000,000,000,000 bytes of shared memory"):
        check_shared_memory(4, 10**16)
    check_shared_memory(1, 1)


def test_processes_of_a_machine_divide_its_memory_and_cores(images: ListSource, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(of_machine: str) -> None:
        with pytest.raises(ValueError, match=rf"more than the 8,000 bytes that may be used{of_machine}: set data.cache=none"):
            cache_module.build_cache(images, 18)
        if Path("/dev/shm").is_dir():
            with pytest.raises(ValueError, match=rf"/dev/shm has only 1,000 free{of_machine}: use fewer workers"):
                load(images, 1, workers=2)

    free, workers = {"memory": 10_000, "shm": 1000}, []
    monkeypatch.setattr(cache_module, "available_memory", lambda: free["memory"])
    monkeypatch.setattr("openjepa.data.passes.shutil.disk_usage", lambda folder: SimpleNamespace(free=free["shm"]))
    refused("")
    for name, number in (("WORLD_SIZE", 16), ("LOCAL_WORLD_SIZE", 8)):
        monkeypatch.setenv(name, str(number))
    free |= {"memory": 80_000, "shm": 8000}
    refused(r" \(the part of one of the 8 processes of this machine\)")
    monkeypatch.setattr(loader_module, "available_cores", lambda: 64)
    monkeypatch.setattr(loader_module, "MANY_IMAGES", 1)
    build = loader_module.build_cache
    monkeypatch.setattr(
        loader_module, "build_cache", lambda *given: workers.append(given[3]) or build(*given[:3], 0, max_bytes=10**9)
    )
    load(images, 1, cache="memory")
    assert workers == [8]


def double(value: int) -> int:
    if value == 7:
        raise ValueError("seven is not wanted")
    return 2 * value


def test_parallel_map_keeps_order_and_passes_errors_on() -> None:
    for workers in (0, 2):
        assert list(parallel_map(double, range(7), workers)) == [0, 2, 4, 6, 8, 10, 12]
        with pytest.raises(ValueError, match=r"^seven is not wanted$"):
            list(parallel_map(double, range(9), workers))


# ----------------------------------------------------------------------------------------------------------- evaluation


@pytest.mark.parametrize("workers", [0, 2])
def test_evaluation_keeps_order_and_lists_what_it_leaves_out(spoiled: tuple[ListSource, dict[str, str]], workers: int) -> None:
    source, reasons = spoiled
    unreadable: list[Skipped] = []
    batches = list(evaluation_batches(source, (16, 16), 9, workers, unreadable=unreadable))
    left_out = {name for name in reasons if "pixels" not in reasons[name]}  # small images can be evaluated
    assert {skip.name for skip in unreadable} == left_out
    indices = torch.cat([batch.indices for batch in batches]).tolist()
    assert indices == [index for index in range(40) if source.name(index) not in left_out]
    assert [len(batch.indices) for batch in batches] == [9, 9, 9, 9, 1]
    for batch in batches:
        assert batch.labels is not None and source.labels is not None
        assert torch.equal(batch.labels, torch.from_numpy(source.labels)[batch.indices])
    first = torch.from_numpy(decode_image(source.read(indices[0])))
    assert torch.equal(batches[0].images[0], evaluation_view(first, (16, 16)))


def test_evaluation_of_a_part_and_its_warning(spoiled: tuple[ListSource, dict[str, str]], images: ListSource) -> None:
    with pytest.warns(UserWarning, match=r"3 of 40 images to be evaluated cannot be read"):
        list(evaluation_batches(spoiled[0], (16, 16)))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        parts = [next(iter(evaluation_batches(images, (16, 16), max_images=10, seed=seed))) for seed in (0, 0, 1)]
    indices = [part.indices.tolist() for part in parts]
    assert indices[0] == indices[1] != indices[2] and indices[0] == sorted(set(indices[0])) and len(indices[0]) == 10


def test_the_smallest_crop_of_a_cached_image_has_the_pixels_of_its_view(tmp_path: Path) -> None:
    write_folder(tmp_path, 4, size=80)
    settings = FolderSettings(path=str(tmp_path), image_size=16, cache="memory", crop_scale=(0.3, 0.3), crop_aspect=(1.0, 1.0))
    loader = TrainingLoader(opened(tmp_path), settings, INPUTS, RecordingSampler(), BatchPlan(2, 2), SEED, 0, CPU)
    assert loader._cache is not None
    side = int(loader._cache.sizes[0, 0])
    assert 16 <= side * 0.3**0.5 < 17
