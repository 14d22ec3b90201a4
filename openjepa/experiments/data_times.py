"""Times the data path on one core: decoding and cropping beside Pillow and the whole loader, or the views of a method.

All pipelines use the same files with the same crops and filter, and take turns. Each figure is the median over rounds of images
per second of processor time, so other programs on the machine hardly matter. A ratio is the median of the rounds' ratios. The
loader runs several epochs per round with I-JEPA's masks. With a worker, that includes the worker's start and the transfer to
this process. The views of a recipe or method are timed with and without color changes, each from files and from cached pixels.
"""

import io
import resource
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from PIL import Image
from rich.table import Table
from torch import Tensor

from openjepa.checks import check
from openjepa.data.decode import decode_image
from openjepa.data.folders.folder import open_folder
from openjepa.data.loading.loader import TrainingLoader
from openjepa.data.loading.order import BatchPlan
from openjepa.data.source import ListSource
from openjepa.data.views import NUMBERS_PER_VIEW, crop_and_resize, crop_box
from openjepa.engine.device import keep_freed_memory
from openjepa.experiments.generated_photos import write_photos
from openjepa.masks import MASKS
from openjepa.recipes import load_recipe
from openjepa.recipes.matched import with_method
from openjepa.seeds import derive_samples, uniforms
from openjepa.settings.derived import resolve
from openjepa.settings.experiments import DataBench
from openjepa.settings.masks import MultiblockSettings
from openjepa.settings.run import RunConfig
from openjepa.settings.sources import FolderSettings
from openjepa.system.console import plain_console
from openjepa.training.startup import build_method, default_view
from openjepa.types import InputSpec, LoaderPosition, ViewSpec

FILTERS = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}
RATIOS = (
    *((f"openjepa {name}", f"Pillow {name}") for name in FILTERS),
    ("loader", "openjepa bilinear"),
    ("loader, 1 worker", "openjepa bilinear"),
)
"""Pairs of pipelines whose rates are compared."""
LOADER_EPOCHS = 30
"""Epochs of the loader per round, so that the start of a worker does not hide its steady rate."""


@dataclass(frozen=True)
class Pipeline:
    """One way from files to batches of images."""

    run: Callable[[], None]
    images: int
    """Number of images per call."""


def time_data(options: DataBench) -> None:
    """The command `openjepa bench data`: measures and prints. Raises Refusal if an option is out of range."""
    options.check()
    with tempfile.TemporaryDirectory() as folder:
        path = options.path or Path(folder)
        if options.path is None:
            write_photos(path, min(options.images, 64))
        if options.recipe or options.method:
            print_views(bench_views(views_config(options, path), options.repeats, options.images))
        else:
            print_result(bench_data(path, options.repeats, options.image_size, options.images))


def views_config(options: DataBench, path: Path) -> RunConfig:
    """The run whose views are timed, on the images of the folder `path`. Raises Refusal if the run cannot work."""
    config = load_recipe(options.recipe, options.preset) if options.recipe else RunConfig()
    side = config.data.image_size if options.recipe else options.image_size
    shared = {name: getattr(config.data, name) for name in ("crop_scale", "crop_aspect", "interpolation", "horizontal_flip")}
    config = replace(config, data=FolderSettings(path=str(path), test_fraction=0.0, image_size=side, **shared))
    config = with_method(config, options.method or config.method.name)
    check(config)
    return resolve(config)


def bench_views(config: RunConfig, repeats: int = 7, images: int = 128) -> dict[str, Any]:
    """Measures images per second and core of a method's views, and the cost of their color changes.

    Each figure is for the training loader with masks, in this process, on one thread.
    """
    assert isinstance(config.data, FolderSettings)
    source = open_folder(config.data, seed=0).train
    assert isinstance(source, ListSource)
    view = default_view(config.data)
    sampler = MASKS[config.masks.strategy].load()(config.masks, config.model.grid(view.size))
    # a small encoder will do: views do not depend on its weights
    narrow = replace(config, model=replace(config.model, size="test", width=None, heads=1, depth=config.model.shape().depth))
    inputs = build_method(narrow, view, sampler).inputs()
    plain = replace(inputs, views={name: replace(spec, colors=()) for name, spec in inputs.views.items()})
    num = min(images, len(source))
    plan = BatchPlan(num, num)

    def pipeline(views: InputSpec, cache: Literal["none", "memory"]) -> Pipeline:
        settings = replace(config.data, cache=cache)
        loader = TrainingLoader(source, settings, views, sampler, plan, 0, 0, torch.device("cpu"))

        def run() -> None:
            for _ in loader.iterate(0, LoaderPosition(), 1):
                pass

        return Pipeline(run, num)

    pipelines = {"crops from files": pipeline(plain, "none"), "crops from kept pixels": pipeline(plain, "memory")}
    if plain != inputs:
        pipelines["crops and colors from files"] = pipeline(inputs, "none")
        pipelines["crops and colors from kept pixels"] = pipeline(inputs, "memory")
    keep_freed_memory()
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        rates = _rates(pipelines, repeats)
    finally:
        torch.set_num_threads(threads)
    return {
        "recipe": config.recipe,
        "method": config.method.name,
        "views": {name: f"{spec.count} x {spec.size[0]}x{spec.size[1]}" for name, spec in inputs.views.items()},
        "masks": sampler.name,
        "images": num,
        "repeats": repeats,
        "images_per_second": {name: statistics.median(values) for name, values in rates.items()},
        "milliseconds_of_the_colors": _added(rates, "crops and colors from kept pixels", "crops from kept pixels"),
    }


def _added(rates: dict[str, list[float]], larger: str, smaller: str) -> float:
    """Milliseconds per image that pipeline `larger` takes more than `smaller`: median over the rounds."""
    if larger not in rates:
        return 0.0
    return statistics.median(1000 / a - 1000 / b for a, b in zip(rates[larger], rates[smaller], strict=True))


def bench_data(path: Path, repeats: int = 7, image_size: int = 224, images: int = 128) -> dict[str, Any]:
    """Measures images per second and core of each pipeline, and their ratios."""
    source = open_folder(FolderSettings(path=str(path), test_fraction=0.0), seed=0).train
    assert isinstance(source, ListSource)
    num = min(images, len(source))
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        rates = _rates(_pipelines(path, source, num, image_size), repeats)
    finally:
        torch.set_num_threads(threads)
    result: dict[str, Any] = {"path": str(path), "images": num, "image_size": image_size, "repeats": repeats}
    result["images_per_second"] = {name: statistics.median(values) for name, values in rates.items()}
    result["ratios"] = {
        f"{ours} / {reference}": statistics.median(a / b for a, b in zip(rates[ours], rates[reference], strict=True))
        for ours, reference in RATIOS
    }
    return result


def _pipelines(path: Path, source: ListSource, num: int, image_size: int) -> dict[str, Pipeline]:
    """The pipelines to time on `num` images, by name."""
    size = (image_size, image_size)
    samples = np.arange(num)
    numbers = uniforms(derive_samples("crop", 0, np.array([0]), samples), NUMBERS_PER_VIEW).tolist()
    batch = torch.empty((num, 3, *size), dtype=torch.uint8)

    def run(crop: Callable[[bytes, list[float], str], Tensor], interpolation: str) -> None:
        for index in range(num):
            batch[index] = crop(source.read(index), numbers[index], interpolation)

    def with_pillow(data: bytes, mine: list[float], interpolation: str) -> Tensor:
        image = Image.open(io.BytesIO(data)).convert("RGB")
        top, left, height, width = crop_box(mine, image.height, image.width, ViewSpec(size))
        part = image.crop((left, top, left + width, top + height)).resize(size[::-1], FILTERS[interpolation])
        return torch.from_numpy(np.array(part)).permute(2, 0, 1)

    def ours(data: bytes, mine: list[float], interpolation: str) -> Tensor:
        pixels = torch.from_numpy(decode_image(data))
        box = crop_box(mine, pixels.shape[0], pixels.shape[1], ViewSpec(size))
        return crop_and_resize(pixels, box, size, interpolation)

    pipelines: dict[str, Pipeline] = {}
    for name in FILTERS:
        pipelines[f"Pillow {name}"] = Pipeline(partial(run, with_pillow, name), num)
        pipelines[f"openjepa {name}"] = Pipeline(partial(run, ours, name), num)
    pipelines["loader"] = _loader(path, source, num, image_size, workers=0)
    pipelines["loader, 1 worker"] = _loader(path, source, num, image_size, workers=1)
    return pipelines


def _loader(path: Path, source: ListSource, num: int, image_size: int, workers: int) -> Pipeline:
    """The training loader with I-JEPA's masks, LOADER_EPOCHS epochs long."""
    settings = FolderSettings(path=str(path), image_size=image_size)
    inputs = InputSpec({"image": ViewSpec((image_size, image_size))}, ("image",))
    side = max(1, image_size // 16)
    sampler = MASKS["multiblock"].load()(MultiblockSettings(), (side, side))
    plan = BatchPlan(num, num)
    loader = TrainingLoader(source, settings, inputs, sampler, plan, 0, workers, torch.device("cpu"))

    def run() -> None:
        for _ in loader.iterate(0, LoaderPosition(), LOADER_EPOCHS):
            pass
        loader.close()

    return Pipeline(run, num * LOADER_EPOCHS)


def _rates(pipelines: dict[str, Pipeline], repeats: int) -> dict[str, list[float]]:
    """Images per second of processor time, by pipeline and round. One round before the first warms up."""
    rates: dict[str, list[float]] = {name: [] for name in pipelines}
    for round_number in range(repeats + 1):
        for name, pipeline in pipelines.items():
            start = _processor_seconds()
            pipeline.run()
            seconds = _processor_seconds() - start
            if round_number:
                rates[name].append(pipeline.images / seconds)
    return rates


def _processor_seconds() -> float:
    """Processor time of this process and of its finished workers."""
    children = resource.getrusage(resource.RUSAGE_CHILDREN)
    return time.process_time() + children.ru_utime + children.ru_stime


def print_result(result: dict[str, Any]) -> None:
    """Prints the rates and their ratios."""
    console = plain_console()
    rates = Table("pipeline", "images/s of one core", title=f"{result['images']} images of {result['path']}")
    for name, rate in result["images_per_second"].items():
        rates.add_row(name, f"{rate:.0f}")
    ratios = Table("ratio", "median of the rounds")
    for name, ratio in result["ratios"].items():
        ratios.add_row(name, f"{ratio:.2f}")
    console.print(rates, ratios)


def print_views(result: dict[str, Any]) -> None:
    """Prints the rates of a method's views and the cost of their colors."""
    views = ", ".join(f"{name} {sizes}" for name, sizes in result["views"].items())
    table = Table(
        "pipeline", "images/s of one core", "ms an image", title=f"{result['method']}: {views}; masks {result['masks']}"
    )
    for name, rate in result["images_per_second"].items():
        table.add_row(name, f"{rate:.0f}", f"{1000 / rate:.2f}")
    table.add_section()
    table.add_row("colors alone", "", f"{result['milliseconds_of_the_colors']:.2f}")
    plain_console().print(table)
