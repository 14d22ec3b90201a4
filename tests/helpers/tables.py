"""Parquet files and tars of generated images for tests, and the library's cache in the test's own folder."""

import io
import json
import tarfile
from collections.abc import Sequence
from pathlib import Path

import pytest

from openjepa.data.source import ListSource, Splits, open_splits
from openjepa.settings.sources import HuggingFaceSettings
from tests.helpers.images import shape_image

pa = pytest.importorskip("pyarrow", reason="needs the extra `data`")
pytest.importorskip("datasets", reason="needs the extra `data`")
import pyarrow.parquet as pq  # noqa: E402

NAMES = ["square", "disk"]


@pytest.fixture
def offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No network, and the library's cache in the test's own folder."""
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_OFFLINE", True)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "library_cache")
    datasets.disable_progress_bars()


def png(seed: int) -> bytes:
    """An image file."""
    buffer = io.BytesIO()
    shape_image(seed, 16).save(buffer, "PNG")
    return buffer.getvalue()


def write_parquet(
    file: Path,
    seeds: range,
    declared: bool = True,
    label: str = "label",
    words: bool = False,
    labels: Sequence[object] | None = None,
) -> None:
    """Images in the Hugging Face format; without `declared` as plain columns."""
    file.parent.mkdir(parents=True, exist_ok=True)
    images = [{"bytes": png(seed), "path": f"{seed}.png"} for seed in seeds]
    if labels is None:
        labels = [NAMES[seed % 2] for seed in seeds] if words else [seed % 2 for seed in seeds]
    column = pa.array(images, pa.struct([("bytes", pa.binary()), ("path", pa.string())]))
    table = pa.table({"image": column, label: labels if isinstance(labels, pa.Array) else pa.array(labels)})
    if declared:
        features = {"image": {"_type": "Image"}, label: {"_type": "ClassLabel", "names": NAMES}}
        table = table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})
    pq.write_table(table, file, row_group_size=3)


def opened(path: Path | str, **settings: object) -> Splits:
    """The splits of a path."""
    return open_splits(HuggingFaceSettings(path=str(path), **settings), 0)  # type: ignore[arg-type]


def check(source: object, seeds: range) -> ListSource:
    """The source holds the images of these seeds in order."""
    assert isinstance(source, ListSource) and len(source) == len(seeds)
    assert [source.read(index) for index in range(len(source))] == [png(seed) for seed in seeds]
    return source


def write_tar(file: Path, seeds: range) -> None:
    """Samples `000.png` with `000.cls`, and so on."""
    write_members(file, {f"{s:03d}.{e}": d for s in seeds for e, d in (("png", png(s)), ("cls", str(s % 2).encode()))})


def write_members(file: Path, members: dict[str, bytes], mode: str = "w") -> None:
    """A tar of these files, in this order."""
    file.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(file, mode) as tar:  # type: ignore[call-overload]
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
