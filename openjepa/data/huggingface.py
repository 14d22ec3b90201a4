"""Anything the `datasets` library reads: Parquet and WebDataset tars on disk, names on the Hub, and streams of shards.

Local Parquet files that fit into memory are read by pyarrow alone; other lists are Arrow files that the library prepares once
in its own cache and maps into memory. Images stay encoded; order and position in a stream are ours.
"""

import glob
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from openjepa.data.cache import available_memory
from openjepa.data.folder import existing_path
from openjepa.data.skipping import check_usable
from openjepa.data.source import ListSource, ShardSource, Splits
from openjepa.extras import require_package
from openjepa.refusals import Refusal
from openjepa.settings.data import HuggingFaceSettings

TEST_SPLITS = ("test", "validation", "val")
"""Splits the probes are tested on, the preferred first."""
SPLIT_WORDS = {"train": "train", "training": "train", "test": "test", "testing": "test"}
SPLIT_WORDS |= {"validation": "validation", "valid": "validation", "val": "validation", "dev": "validation"}
"""What the name of a file or folder may say of its split."""
IN_MEMORY_SHARE = 0.25
"""Parquet files up to this share of the free memory are read into it; larger ones are mapped."""
BUILDERS = {".parquet": "parquet", ".tar": "webdataset", ".gz": "webdataset", ".tgz": "webdataset"}
"""What reads the files of a suffix."""


@dataclass(frozen=True)
class _LocalFiles:
    """Files on disk by split, all read by one builder of the library."""

    builder: str
    splits: dict[str, list[str]]


def open_huggingface(settings: HuggingFaceSettings, seed: int) -> Splits:
    """Training and test split of local files or of a data set on the Hub; with `streaming` the training split is a stream.

    Local files belong to the split that their name or folder says (`train-00000-of-00004.parquet`, `val/0.tar`); where none
    says any, all are training images. Raises Refusal where something is missing, and names what there is.
    """
    require_library()
    local = _local_files(settings.path)
    available = _hub_splits(settings) if local is None else list(local.splits)
    train_split = _split_name(settings.train_split, available, local, "train_split")
    train: ListSource | ShardSource
    if settings.streaming:
        train = _open_stream(settings, local, train_split)
    else:
        train = _open_list(settings, local, train_split)
        check_usable(train, f"data.path={settings.path!r}")
    test = _open_test(settings, local, available, train, train_split)
    return Splits(train, test, _description(settings, train, test))


def split_names(settings: HuggingFaceSettings) -> list[str]:
    """Splits of local files or of a data set on the Hub, as `train_split` and `test_split` name them."""
    require_library()
    local = _local_files(settings.path)
    return _hub_splits(settings) if local is None else list(local.splits)


def left_out(settings: HuggingFaceSettings) -> dict[str, ListSource]:
    """Splits that `open_huggingface` does not open, by name: unlabeled or further ones. None of what is streamed."""
    if settings.streaming:
        return {}
    local = _local_files(settings.path)
    available = _hub_splits(settings) if local is None else list(local.splits)
    train_split = _split_name(settings.train_split, available, local, "train_split")
    others = [name for name in available if name != train_split]
    if settings.test_split is not None:
        tested = _split_name(settings.test_split, available, local, "test_split")
        others = [name for name in others if name != tested]
    opened = {name: _open_list(settings, local, name) for name in others}
    if settings.test_split is None:
        tested = next((name for name in TEST_SPLITS if name in opened and opened[name].labels is not None), "")
        opened.pop(tested, None)
    return opened


def require_library() -> None:
    """Raises Refusal where the packages of the extra `data` are missing."""
    for package in ("datasets", "pyarrow"):
        require_package(package, "data.source=huggingface")


def _local_files(path: str) -> _LocalFiles | None:
    """The files that `path` means, or None where it is a name on the Hub."""
    if glob.has_magic(path):
        pattern = Path(path).expanduser()
        root = Path(pattern.anchor)  # of a relative pattern: here
        files = sorted(
            str(file) for file in root.glob(str(pattern.relative_to(root)) if pattern.is_absolute() else str(pattern))
        )
        if not files:
            raise Refusal(f"data.path={path!r} matches no file")
        return _grouped(files, Path(os.path.commonpath([Path(file).parent for file in files])), path)
    folder = Path(path).expanduser()
    if not folder.exists() and re.fullmatch(r"[\w.-]+/[\w.-]+|[\w-]+", path) and not path.startswith("."):
        return None
    folder = existing_path(path)
    if folder.is_file():
        return _grouped([str(folder)], folder.parent, path)
    return _grouped(sorted(str(file) for file in folder.rglob("*") if file.suffix in BUILDERS), folder, path)


def _grouped(files: list[str], root: Path, path: str) -> _LocalFiles:
    builders = {BUILDERS.get(Path(file).suffix, Path(file).suffix) for file in files}
    if len(builders) != 1 or not builders <= set(BUILDERS.values()):
        held = ", ".join(sorted(builders)) or "neither"
        raise Refusal(f"data.path={path!r} must hold Parquet files or tars, one kind; it holds {held}")
    splits: dict[str, list[str]] = {}
    for file in files:
        splits.setdefault(_split_of(Path(file).relative_to(root)), []).append(file)
    if "" in splits and len(splits) == 1:
        return _LocalFiles(builders.pop(), {"train": splits[""]})
    if "" in splits:
        raise Refusal(f"data.path={path!r}: {splits[''][0]!r} does not say its split, but other files do")
    return _LocalFiles(builders.pop(), splits)


def _split_of(file: Path) -> str:
    """The split that a file's name, or else a folder above it, says; empty where none does."""
    for part in (file.name, *reversed(file.parts[:-1])):
        for word in re.split(r"[^a-z]+", part.lower()):
            if word in SPLIT_WORDS:
                return SPLIT_WORDS[word]
    return ""


def _hub_splits(settings: HuggingFaceSettings) -> list[str]:
    from datasets import get_dataset_split_names

    try:
        return list(get_dataset_split_names(settings.path, settings.subset))
    except Exception as error:  # the library and its connections raise many kinds
        raise Refusal(
            f"data.path={settings.path!r} is neither a folder here nor a data set on the Hub that can be reached "
            f"({type(error).__name__}: {error})"
        ) from error


def _split_name(wanted: str, available: list[str], local: _LocalFiles | None, setting: str) -> str:
    name = SPLIT_WORDS.get(wanted, wanted) if local is not None else wanted
    if name not in available:
        raise Refusal(f"data.{setting}={wanted!r} is not a split; there are {sorted(available)}")
    return name


def _open_test(
    settings: HuggingFaceSettings,
    local: _LocalFiles | None,
    available: list[str],
    train: ListSource | ShardSource,
    train_split: str,
) -> ListSource | None:
    """The test split: the one chosen, else the first usual one with labels; None where there is none."""
    if settings.test_split is not None:
        return _open_list(settings, local, _split_name(settings.test_split, available, local, "test_split"), train)
    for name in TEST_SPLITS:
        if name in available and name != train_split:
            test = _open_list(settings, local, name, train)
            if test.labels is not None:  # a split without labels cannot test anything
                return test
    return None


def _open_list(
    settings: HuggingFaceSettings, local: _LocalFiles | None, split: str, train: ListSource | ShardSource | None = None
) -> ListSource:
    """A split as a list; where its classes are words they are numbered as those of `train`."""
    from openjepa.data.arrow import ArrowSource, open_dataset, open_parquet

    source: ArrowSource
    if local is not None and local.builder == "parquet" and _fits_in_memory(local.splits[split]):
        source = open_parquet(local.splits[split], settings, split)
    else:
        source = open_dataset(_load(settings, local, split, streaming=False), settings, split)
    if train is not None and train.class_names and source.class_names and train.class_names != source.class_names:
        source.renumber(train.class_names)
    return source


def _fits_in_memory(files: list[str]) -> bool:
    return sum(Path(file).stat().st_size for file in files) <= IN_MEMORY_SHARE * available_memory()


def _open_stream(settings: HuggingFaceSettings, local: _LocalFiles | None, split: str) -> ShardSource:
    from openjepa.data.streams import open_stream

    dataset = _load(settings, local, split, streaming=True)
    known = (dataset.info.splits or {}).get(split)
    num_records = None if known is None else known.num_examples
    return open_stream(dataset, settings, split, num_records)


def _load(settings: HuggingFaceSettings, local: _LocalFiles | None, split: str, streaming: bool) -> Any:
    """A split through the library, images undecoded where it is a list."""
    from datasets import load_dataset

    if local is None:
        return load_dataset(settings.path, settings.subset, split=split, streaming=streaming)
    return load_dataset(local.builder, data_files={split: local.splits[split]}, split=split, streaming=streaming)


def _description(settings: HuggingFaceSettings, train: ListSource | ShardSource, test: ListSource | None) -> str:
    count = f"{len(train):,} images" if isinstance(train, ListSource) else f"a stream of {len(train)} shards"
    classes = f" in {len(train.class_names)} classes" if train.class_names else ""
    if not classes and isinstance(train, ListSource) and train.labels is not None:
        classes = f" in {len(np.unique(train.labels))} classes"
    return f"{settings.name()}: {count} to train{classes}" + (f", {len(test):,} to test" if test is not None else "")
