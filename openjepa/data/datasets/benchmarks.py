"""BENCHMARKS: data sets of the paper's tables, in the form that their official archives unpack to. Does not import torch."""

from dataclasses import dataclass
from pathlib import Path

from openjepa.data.source import Splits
from openjepa.refusals import Refusal
from openjepa.settings.fields import Line


@dataclass(frozen=True)
class Benchmark(Line):
    """One data set: where it lies and which function opens it."""

    title: str
    folders: tuple[str, ...]
    """Names of its folder below the data root, the preferred one first."""
    layout: str
    """Contents of the folder, in words, for the docs, the help and errors."""
    home: str
    """`package.module:name` of the function that opens the folder. It raises Refusal if something is missing."""
    num_classes: int | None = None
    """Number of classes. None if the data set has no single labeling."""
    num_train: int | None = None
    """Number of training images. None if unknown."""
    num_test: int | None = None
    """Number of test images. None if unknown."""


BENCHMARKS: dict[str, Benchmark] = {
    "imagenet1k": Benchmark(
        "ImageNet-1K",
        ("imagenet", "imagenet1k", "ILSVRC2012", "ILSVRC", "imagenet-object-localization-challenge"),
        "train/CLASS/*.JPEG, val/CLASS/*.JPEG or val/*.JPEG and the devkit; Kaggle's folders; Parquet",
        "openjepa.data.datasets.imagenet:open_imagenet",
        num_classes=1000,
        num_train=1_281_167,
        num_test=50_000,
    ),
    "cifar100": Benchmark(
        "CIFAR100",
        ("cifar100", "cifar-100", "cifar-100-binary", "cifar-100-python"),
        "cifar-100-binary/{train,test}.bin, Parquet, or train/CLASS and test/CLASS",
        "openjepa.data.datasets.cifar:open_cifar100",
        num_classes=100,
        num_train=50_000,
        num_test=10_000,
    ),
    "cifar10": Benchmark(
        "CIFAR10",
        ("cifar10", "cifar-10", "cifar-10-batches-bin", "cifar-10-batches-py"),
        "cifar-10-batches-bin/{data_batch_1..5,test_batch}.bin, Parquet, or train/CLASS and test/CLASS",
        "openjepa.data.datasets.cifar:open_cifar10",
        num_classes=10,
        num_train=50_000,
        num_test=10_000,
    ),
    "places205": Benchmark(
        "Places205",
        ("places205", "Places205"),
        "trainvalsplit_places205/{train,val}_places205.csv and images256/, also at the archive's depth",
        "openjepa.data.datasets.listed:open_places205",
        num_classes=205,
    ),
    "inat18": Benchmark(
        "iNat18",
        ("inat18", "inat2018", "inaturalist2018"),
        "train2018.json, val2018.json and train_val2018/",
        "openjepa.data.datasets.listed:open_inat18",
        num_classes=8142,
        num_train=437_513,
        num_test=24_426,
    ),
    "clevr": Benchmark(
        "CLEVR v1.0",
        ("CLEVR_v1.0", "clevr"),
        "images/{train,val} and scenes/CLEVR_{train,val}_scenes.json",
        "openjepa.data.scenes.scenes:open_scenes_below",
        num_train=70_000,
        num_test=15_000,
    ),
    "scenes": Benchmark(
        "Rendered scenes",
        ("scenes",),
        "what `openjepa data scenes --output scenes` renders, with instance masks",
        "openjepa.data.scenes.scenes:open_scenes_below",
    ),
}


def find_benchmark(name: str, data_root: Path) -> Splits | str:
    """The splits of a benchmark, or a sentence that says why it is absent. Raises Refusal if it is present but damaged."""
    benchmark = BENCHMARKS[name]
    for folder in benchmark.folders:
        if (data_root / folder).is_dir():
            return _opened(benchmark, data_root / folder)
    return f"no folder {', '.join(benchmark.folders[:-1])} or {benchmark.folders[-1]} in {data_root} ({benchmark.layout})"


def _opened(benchmark: Benchmark, folder: Path) -> Splits:
    try:
        splits: Splits = benchmark.load()(folder)
        return splits
    except ValueError as error:
        raise Refusal(f"{benchmark.title} in {folder} cannot be used: {error}. Expected there: {benchmark.layout}") from error
