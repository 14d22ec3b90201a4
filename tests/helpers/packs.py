"""A folder of images to pack, and what a source holds in a comparable form."""

from pathlib import Path

from openjepa.data.source import NO_LABEL, ListSource, ShardSource
from openjepa.data.tables.pack_run import Packed, pack_folder
from openjepa.settings.sources import PackSettings
from openjepa.system.console import silent
from tests.helpers.images import shape_image

Content = list[tuple[bytes, str | None]]
"""Bytes and class of each image."""


def write_photos(folder: Path, train: int = 30, test: int = 12) -> Path:
    """A folder with train/ and val/, each with the classes disk and square, as PNG and JPEG files."""
    for split, seeds in (("train", range(train)), ("val", range(train, train + test))):
        for seed in seeds:
            place = folder / split / ("disk" if seed % 2 else "square")
            place.mkdir(parents=True, exist_ok=True)
            shape_image(seed, 16).save(place / f"{seed:03d}.{'jpg' if seed % 3 else 'png'}")
    return folder


def packed(folder: Path, output: Path, workers: int = 0, **settings: object) -> Packed:
    """The result of packing `folder` in shards of eight images, if `settings` do not say otherwise."""
    return pack_folder(folder, output, PackSettings(**{"shard_images": 8, **settings}), workers, silent)  # type: ignore[arg-type]


def content(source: ListSource | ShardSource | None) -> Content:
    """The images of a source in their order, with the names of their classes."""
    assert source is not None
    if isinstance(source, ListSource):
        labels = [NO_LABEL] * len(source) if source.known_labels is None else source.known_labels.tolist()
        found = [(source.read(index), label) for index, label in enumerate(labels)]
    else:
        shards = (source.read_shard(shard) for shard in range(len(source)))
        found = [(record.read(), NO_LABEL if record.label is None else record.label) for shard in shards for record in shard]
    names = source.class_names
    return [(data, None if label == NO_LABEL else names[label] if names else str(label)) for data, label in found]


def files_of(folder: Path) -> dict[str, bytes]:
    """Name and bytes of every file of a folder."""
    return {file.name: file.read_bytes() for file in sorted(folder.iterdir())}
