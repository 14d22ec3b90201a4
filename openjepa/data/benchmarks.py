"""BENCHMARKS: data sets of the paper's tables, as their official archives unpack below one folder. Free of torch."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from openjepa.data.source import Splits
from openjepa.settings.data import FolderSettings, ScenesSettings


@dataclass(frozen=True)
class Benchmark:
    """One data set: where it lies and how it is opened."""

    title: str
    folders: tuple[str, ...]
    """Names of its folder below the data root, the preferred first."""
    layout: str
    """What the folder holds, in words for the docs, the help and errors."""
    open: Callable[[Path], Splits]
    """Opens the folder. Raises ValueError where something is missing."""


def _imagenet(root: Path) -> Splits:
    from openjepa.data.folder import open_folder

    return open_folder(FolderSettings(path=str(root)), 0)


def _clevr(root: Path) -> Splits:
    from openjepa.data.scenes import open_scenes

    return open_scenes(ScenesSettings(path=str(root)), 0)


BENCHMARKS: dict[str, Benchmark] = {
    "imagenet1k": Benchmark("ImageNet-1K", ("imagenet", "imagenet1k"), "train/CLASS/*.JPEG and val/CLASS/*.JPEG", _imagenet),
    "clevr": Benchmark(
        "CLEVR v1.0", ("CLEVR_v1.0", "clevr"), "images/{train,val} and scenes/CLEVR_{train,val}_scenes.json", _clevr
    ),
}


def find_benchmark(name: str, data_root: Path) -> Splits | str:
    """The splits of a benchmark, or in words why it is not there. Raises ValueError where it is there but broken."""
    benchmark = BENCHMARKS[name]
    for folder in benchmark.folders:
        if (data_root / folder).is_dir():
            return benchmark.open(data_root / folder)
    return f"no folder {' or '.join(benchmark.folders)} in {data_root} ({benchmark.layout})"
