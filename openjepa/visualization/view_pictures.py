"""Pictures of the crops of an image that a method trains on, as the loader makes them."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import UInt8

from openjepa.config import RESTORE, read_object
from openjepa.data.decode import decode_image
from openjepa.data.loading.loader import TrainingLoader
from openjepa.data.loading.order import BatchPlan
from openjepa.data.source import ListSource, open_splits
from openjepa.data.views import evaluation_view
from openjepa.masks import MASKS
from openjepa.refusals import Refusal
from openjepa.seeds import derive
from openjepa.settings.run import RunConfig
from openjepa.types import Batch, ColorChange, InputSpec, LoaderPosition, ViewSpec
from openjepa.visualization.sheet import Sheet, enlarge

COLUMN = 208
"""Width in pixels of an image and of its large crops."""
GAP, LEFT = 8, 44
MOST_IMAGES = 8


def read_views(run: Path) -> dict[str, ViewSpec]:
    """The views of each image in a run's training, from its summary.json; empty for older runs, which do not say.

    Raises Refusal if the file has views that no training writes.
    """
    known = (read_object(run / "summary.json") or {}).get("views", {})
    try:
        return {name: _view(fields) for name, fields in known.items()}
    except (AttributeError, KeyError, TypeError) as error:
        raise Refusal(f"{run / 'summary.json'} has views that no training writes ({error}); {RESTORE}") from error


def _view(fields: Mapping[str, Any]) -> ViewSpec:
    colors = [ColorChange(**{name: _tuples(value) for name, value in color.items()}) for color in fields["colors"]]
    return ViewSpec(**{**{name: _tuples(value) for name, value in fields.items()}, "colors": tuple(colors)})


def _tuples(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


def changes_views(views: Mapping[str, ViewSpec]) -> bool:
    """True if there is more to show than one plain crop."""
    return sum(view.count for view in views.values()) > 1 or any(view.colors for view in views.values())


def view_sheet(config: RunConfig, views: Mapping[str, ViewSpec], num_images: int, seed: int = 0) -> Sheet:
    """A sheet with one column for each of at most eight training images: the image, its large crops, then its small crops."""
    source, batch = _draw(config, views, min(num_images, MOST_IMAGES), seed)
    largest = max(view.size[1] for view in views.values())
    rows = [(name, *_tiling(view, largest)) for name, view in views.items()]
    heights = [(-(-views[name].count // across)) * (cell[0] + GAP) for name, across, cell in rows]
    tops = [0]
    if source is not None:
        tops[0] = COLUMN + GAP
    for height in heights:
        tops.append(tops[-1] + height)
    sheet = Sheet(LEFT + len(batch.sample_ids) * (COLUMN + GAP) - GAP, tops[-1] - GAP)
    if source is not None:
        sheet.words("image", 26, COLUMN / 2, size=21, align="center", upwards=True)
        for column, index in enumerate(batch.sample_ids.tolist()):
            sheet.image(_whole(source, index), _left(column), 0)
    for (name, across, cell), top, height in zip(rows, tops[:-1], heights, strict=True):
        sheet.words(name, 26, top + (height - GAP) / 2, size=21, align="center", upwards=True)
        _place(sheet, batch.views[name].permute(0, 1, 3, 4, 2).contiguous().numpy(), across, cell, top)
    return sheet


def _place(sheet: Sheet, crops: UInt8[np.ndarray, "V B h w 3"], across: int, cell: tuple[int, int], top: int) -> None:
    for number, images in enumerate(crops):
        row, place = divmod(number, across)
        for column, image in enumerate(images):
            sheet.image(enlarge(image, cell), _left(column) + place * (cell[1] + GAP), top + row * (cell[0] + GAP))


def _left(column: int) -> int:
    return LEFT + column * (COLUMN + GAP)


def _tiling(view: ViewSpec, largest: int) -> tuple[int, tuple[int, int]]:
    """The number of crops side by side in a column, and the height and width of each in pixels."""
    across = 1 if view.size[1] == largest else max(2, largest // view.size[1])
    width = (COLUMN - (across - 1) * GAP) // across
    return across, (max(1, round(width * view.size[0] / view.size[1])), width)


def _draw(config: RunConfig, views: Mapping[str, ViewSpec], number: int, seed: int) -> tuple[ListSource | None, Batch]:
    """The source if its images have an index, and the first microbatch of a loader with a seed that training never uses."""
    train = open_splits(config.data, config.run.seed).train
    number = min(number, len(train)) if isinstance(train, ListSource) else number
    grid = config.model.grid(config.data.height_width())
    sampler = MASKS[config.masks.strategy].load()(config.masks, grid)
    uncached = replace(config.data, cache="none")
    plan, order = BatchPlan(batch_size=number, microbatch_size=number), derive("order", config.run.seed, -3, seed)
    loader = TrainingLoader(train, uncached, InputSpec(views), sampler, plan, order, 0, torch.device("cpu"))
    batch = next(loader.iterate(0, LoaderPosition(), 1))
    loader.close()
    return train if isinstance(train, ListSource) else None, batch


def _whole(source: ListSource, index: int) -> UInt8[np.ndarray, "h w 3"]:
    pixels = torch.from_numpy(decode_image(source.read(index)))
    return evaluation_view(pixels, (COLUMN, COLUMN), "crop").permute(1, 2, 0).contiguous().numpy()
