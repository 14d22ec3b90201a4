"""TrainingLoader: microbatches of crops and masks from a source. Their order is a pure function of seed and position."""

import math
from collections.abc import Callable, Generator, Iterator
from dataclasses import replace
from itertools import islice
from time import monotonic

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor

from openjepa.data.decode import check_usable
from openjepa.data.loading.cache import MEMORY_SHARE, PixelCache, build_cache, crop_batch
from openjepa.data.loading.chunks import Chunk, ChunkReader, ChunkResult, MaskDrawer
from openjepa.data.loading.colors import change_colors, draw_colors
from openjepa.data.loading.order import BatchPlan, Samples, list_steps, shard_steps
from openjepa.data.loading.workers import parallel_map
from openjepa.data.passes import check_shared_memory
from openjepa.data.source import ListSource, ShardSource
from openjepa.refusals import Refusal
from openjepa.settings.sources import DataSettings, HuggingFaceSettings
from openjepa.system.console import silent
from openjepa.system.machine import available_cores, available_memory, local_processes
from openjepa.types import Batch, BlockMasks, InputSpec, LoaderPosition, Masks

CHUNK_BYTES = 8_000_000
"""Bytes of pixels per task of a worker. Small, so that the first batch comes soon and little shared memory is used."""
MANY_IMAGES = 8192
"""If there are at least this many images, one process per core fills the cache."""
HOST_DEVICES = ("cpu",)
"""Devices that share their memory with the workers. There, cropping images one by one is faster than in a batch."""
REMEMBERED_STEPS = 4
"""Number of steps for which the names of a stream's samples are remembered."""


class TrainingLoader:
    """Microbatches of one process.

    A batch does not depend on `workers`. The batches of a step, taken together, do not depend on how the plan divides it.
    Batches are on the CPU (pinned if `device` is a GPU), except the views if `data.cache=device`.
    """

    def __init__(
        self,
        source: ListSource | ShardSource,
        data: DataSettings,
        inputs: InputSpec,
        sampler: MaskDrawer,
        plan: BatchPlan,
        seed: int,
        workers: int,
        device: torch.device,
        advance: Callable[[int], None] = silent,
    ) -> None:
        """Checks the data and fills the cache. Meanwhile calls `advance` with the number of images added since its last call.

        Raises Refusal if the data and the settings do not fit together, or too many images cannot be used.
        """
        self._source = source
        self._inputs = inputs
        self._plan = plan
        self._seed = seed
        self._workers = workers
        self._device = device
        self._window = data.window if isinstance(data, HuggingFaceSettings) else 1
        self._names: dict[int, str] = {}
        self._running: Generator[ChunkResult, None, None] | None = None
        self.seconds_waited = 0.0
        """Seconds for which whoever takes the microbatches has waited for them. Without workers, the time to make them."""
        self.reads_repeated = 0
        """Number of reads of images that were tried again after an error or without an answer."""
        min_side = _patch_side(inputs, sampler)
        self._check_length()
        self._on_device = data.cache == "device" and device.type not in HOST_DEVICES
        self._check_shared_memory()
        self._cache = self._open_cache(data, min_side, advance)
        cache = None if self._cache is None or not self._on_device else self._cache.without_pixels()
        self._reader = ChunkReader(source, inputs, sampler, seed, min_side, cache or self._cache, self._on_device)
        self._geometry = self._move_to_device()

    @property
    def num_images(self) -> int | None:
        """Number of images of the source. None if it is a stream of unknown length."""
        return len(self._source) if isinstance(self._source, ListSource) else self._source.num_records

    @property
    def steps_per_epoch(self) -> int | None:
        """Number of whole steps in one pass. None if the source is a stream of unknown length."""
        return None if self.num_images is None else self.num_images // self._plan.batch_size

    @property
    def prepared_steps(self) -> int:
        """Number of steps that workers may have prepared before the first one is used."""
        size = self._chunk_size()
        per_step = -(-self._plan.microbatch_size // size) * self._plan.num_microbatches
        return -(-self._in_flight(size) // per_step)

    def name(self, sample_id: int) -> str:
        """Name of a sample. For a stream, only the names of the last steps are remembered."""
        if isinstance(self._source, ListSource):
            return self._source.name(sample_id)
        return self._names.get(sample_id, f"sample {sample_id} of the stream")

    def iterate(self, start_step: int, position: LoaderPosition, num_steps: int) -> Iterator[Batch]:
        """The microbatches of `num_steps` steps from `start_step` on. The first step starts at `position`."""
        self.close()
        chunk_size = self._chunk_size()
        per_microbatch = -(-self._plan.microbatch_size // chunk_size)
        chunks = self._chunks(islice(self._steps(start_step, position), num_steps), chunk_size)
        results = parallel_map(self._reader, chunks, self._workers, 2 * per_microbatch, self._reader.describe)
        self._running = results
        begun = monotonic()
        while parts := list(islice(results, per_microbatch)):
            batch = self._batch(parts)
            self.reads_repeated += sum(part.num_repeated for part in parts)
            self.seconds_waited += monotonic() - begun
            yield batch
            begun = monotonic()

    def close(self) -> None:
        """Stops the workers of an unfinished iteration."""
        if self._running is not None:
            self._running.close()
            self._running = None

    def _chunk_size(self) -> int:
        """Number of images per task of a worker."""
        if self._workers == 0 or self._on_device:
            return self._plan.microbatch_size
        return min(self._plan.microbatch_size, max(1, CHUNK_BYTES // self._bytes_per_image()))

    def _bytes_per_image(self) -> int:
        return sum(3 * view.count * view.size[0] * view.size[1] for view in self._inputs.views.values())

    def _check_shared_memory(self) -> None:
        """Raises Refusal if the crops that workers prepare do not fit. Not later, when another process may have workers."""
        if self._workers and not self._on_device:
            size = self._chunk_size()
            check_shared_memory(self._workers, self._in_flight(size) * size * self._bytes_per_image())

    def _in_flight(self, chunk_size: int) -> int:
        """Number of chunks that workers are working on or have finished ahead of time."""
        return max(2 * self._workers, 2 * -(-self._plan.microbatch_size // chunk_size)) if self._workers else 0

    def _steps(self, start_step: int, position: LoaderPosition) -> Iterator[Samples]:
        batch_size = self._plan.batch_size
        if isinstance(self._source, ListSource):
            return list_steps(len(self._source), batch_size, self._seed, position, start_step)
        return shard_steps(self._source, self._window, batch_size, self._seed, position, start_step)

    def _chunks(self, steps: Iterator[Samples], chunk_size: int) -> Iterator[Chunk]:
        """The tasks of this process, in the order in which their results are needed."""
        size = self._plan.microbatch_size
        for samples in steps:
            spares = len(samples.ids) - self._plan.batch_size
            after = replace(samples.position, offset=samples.position.offset + self._plan.batch_size)
            for microbatch in range(self._plan.num_microbatches):
                first = self._plan.first_slot(microbatch)
                for start in range(first, first + size, chunk_size):
                    num = min(chunk_size, first + size - start)
                    ids, records = samples.candidates(start, num, spares)
                    yield Chunk(
                        step=samples.step,
                        epoch=samples.position.epoch,
                        num=num,
                        ids=ids,
                        next_position=after,
                        records=records,
                        mask_ids=samples.ids[first : first + size] if start == first else None,
                        group=self._plan.group(microbatch),
                    )

    def _batch(self, parts: list[ChunkResult]) -> Batch:
        ids = np.concatenate([part.ids for part in parts])
        if isinstance(self._source, ShardSource):
            self._remember(parts)
        labels = [part.labels for part in parts if part.labels is not None]
        return Batch(
            sample_ids=torch.from_numpy(ids),
            views=self._views(parts, ids.tolist()),
            masks={name: self._pinned(masks) for name, masks in parts[0].masks.items()},
            labels=torch.from_numpy(np.concatenate(labels)) if len(labels) == len(parts) else None,
            skipped=tuple(skipped for part in parts for skipped in part.skipped),
            next_position=parts[0].chunk.next_position,
        )

    def _views(self, parts: list[ChunkResult], ids: list[int]) -> dict[str, Tensor]:
        if self._on_device:
            return self._views_on_device(parts, ids)
        views = {}
        for name in self._inputs.views:
            pieces = [part.views[name] for part in parts]
            if len(pieces) == 1 and self._device.type != "cuda":
                views[name] = pieces[0]
                continue
            shape = (pieces[0].shape[0], len(ids), *pieces[0].shape[2:])
            joined = torch.empty(shape, dtype=torch.uint8, pin_memory=self._device.type == "cuda")
            views[name] = torch.cat(pieces, dim=1, out=joined)
        return views

    def _views_on_device(self, parts: list[ChunkResult], ids: list[int]) -> dict[str, Tensor]:
        """Cuts the crops out of the drawn boxes and changes their colors, on the device."""
        boxes = {name: np.concatenate([part.boxes[name] for part in parts], axis=1) for name in self._inputs.views}
        views = {name: self._crop_on_device(name, torch.from_numpy(boxes[name]), ids) for name in boxes}
        slot_ids = np.concatenate([part.chunk.slot_ids() for part in parts])
        for name, drawn in draw_colors(self._inputs.views, slot_ids, self._seed, parts[0].chunk.epoch).items():
            change_colors(views[name].flatten(0, 1), drawn)
        return views

    def _crop_on_device(self, name: str, boxes: Int[Tensor, "V B 5"], ids: list[int]) -> Tensor:
        assert self._cache is not None and self._geometry is not None
        spec = self._inputs.views[name]
        largest = (int(boxes[..., 2].max()), int(boxes[..., 3].max()))
        rows = torch.tensor(ids, pin_memory=self._device.type == "cuda").to(self._device, non_blocking=True)
        starts, widths = self._geometry[:, rows]
        boxes = boxes.to(self._device, non_blocking=True)
        crops = [
            crop_batch(self._cache.pixels_flat, starts, widths, boxes[view], largest, spec.size, spec.interpolation)
            for view in range(spec.count)
        ]
        return torch.stack(crops)

    def _pinned(self, masks: Masks) -> Masks:
        """Masks in pinned memory if they go to a GPU, so that copying them does not wait for it."""
        if self._device.type != "cuda":
            return masks
        if isinstance(masks, BlockMasks):
            valid = None if masks.context_valid is None else masks.context_valid.pin_memory()
            return replace(masks, context=masks.context.pin_memory(), targets=masks.targets.pin_memory(), context_valid=valid)
        return replace(masks, masked=masks.masked.pin_memory())

    def _remember(self, parts: list[ChunkResult]) -> None:
        for part in parts:
            self._names.update(zip(part.ids.tolist(), part.names, strict=True))
        while len(self._names) > REMEMBERED_STEPS * self._plan.batch_size:
            del self._names[next(iter(self._names))]

    def _check_length(self) -> None:
        num, batch_size = self.num_images, self._plan.batch_size
        if num is not None and num < batch_size:
            raise Refusal(f"optim.batch_size={batch_size} is larger than the {num} training images: use at most {num}")

    def _open_cache(self, data: DataSettings, min_side: int, advance: Callable[[int], None]) -> PixelCache | None:
        if not isinstance(self._source, ListSource):
            return None
        if data.cache == "none":
            check_usable(self._source, "the training set", min_side)
            return None
        limit = None
        cores = available_cores() // local_processes()
        workers = self._workers if len(self._source) < MANY_IMAGES else max(self._workers, cores)
        if self._on_device and self._device.type == "cuda":
            in_host = available_memory() / local_processes()  # pixels pass through it
            limit = int(MEMORY_SHARE * min(torch.cuda.mem_get_info(self._device)[0], in_host))
        short_side = data.cache_size or _detail_kept(self._inputs)
        cache = build_cache(self._source, short_side, min_side, workers, advance, limit)
        if len(cache.skipped) > data.max_skipped * len(cache):
            first = next(iter(cache.skipped.values()))
            raise Refusal(
                f"{len(cache.skipped)} of {len(cache)} images could not be used, more than data.max_skipped="
                f"{data.max_skipped:g}; the first: {first.name} ({first.reason}). Repair or remove them, or raise "
                "data.max_skipped"
            )
        return cache

    def _move_to_device(self) -> Int[Tensor, "2 N"] | None:
        """Moves the cached pixels to the device if `data.cache=device`. Returns the start and width of each image, there."""
        if self._cache is None or not self._on_device:
            return None
        self._cache.pixels_flat = self._cache.pixels_flat.to(self._device)
        geometry = np.stack([self._cache.starts, self._cache.sizes[:, 1]])
        return torch.from_numpy(geometry).to(self._device)


def _detail_kept(inputs: InputSpec) -> int:
    """Short side at which the smallest crops of a cached square image still have as many pixels as their views."""
    return max(math.ceil(max(view.size) / math.sqrt(view.scale[0])) for view in inputs.views.values())


def _patch_side(inputs: InputSpec, sampler: MaskDrawer) -> int:
    """Longest side of a patch, in pixels. Raises Refusal if the grid of the masks does not divide the views."""
    sides = [1]
    for name in inputs.masked_views:
        for side, patches in zip(inputs.views[name].size, sampler.grid, strict=True):
            if side % patches:
                raise Refusal(f"data.image_size: {side} pixels cannot be divided into {patches} patches")
            sides.append(side // patches)
    return max(sides)
