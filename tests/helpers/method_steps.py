"""A method without its loop: sampler and method of a run, a batch for them, parts of a batch."""

from dataclasses import replace

import torch
from torch import Tensor

from openjepa.data.source import open_splits
from openjepa.masks import MASKS
from openjepa.masks.sampler import MaskSampler
from openjepa.methods.base import Method
from openjepa.settings.run import RunConfig
from openjepa.training.monitor import draw_batches
from openjepa.training.startup import build_method, default_view
from openjepa.types import Batch, Masks


def parts(config: RunConfig) -> tuple[MaskSampler, Method]:
    """Sampler and untrained method of a run."""
    view = default_view(config.data)
    sampler = MASKS[config.masks.strategy].load()(config.masks, config.model.grid(view.size))
    return sampler, build_method(config, view, sampler)


def batch_of(config: RunConfig, method: Method, sampler: MaskSampler, number: int = 8) -> Batch:
    """The first `number` images of a run, normalized, with the views and masks that its method asks for."""
    (batch,) = draw_batches(config, method.inputs(), sampler, open_splits(config.data, 0), number, micro=number, seed=3)
    return batch.normalized(config.data.pixel_mean, config.data.pixel_std)


def rows(batch: Batch, chosen: list[int]) -> Batch:
    """Some images of a batch, in the order of `chosen`, with the views and masks that are theirs."""
    size = len(batch.sample_ids)

    def of_masks(name: str, masks: Masks) -> Masks:
        count = len(batch.views[name])
        places = torch.cat([torch.tensor(chosen) + view * size for view in range(count)])
        found = {key: value for key, value in vars(masks).items() if isinstance(value, Tensor)}
        # each image may have several rows, one after the other
        tensors = {key: value.unflatten(0, (count * size, -1))[places].flatten(0, 1) for key, value in found.items()}
        return replace(masks, **tensors)  # type: ignore[arg-type]

    views = {name: view[:, chosen] for name, view in batch.views.items()}
    masks = {name: of_masks(name, value) for name, value in batch.masks.items()}
    return replace(batch, sample_ids=batch.sample_ids[chosen], views=views, masks=masks)
