"""Benchmarks on generated miniatures: what the help says, missing and empty folders, CIFAR in every form, CLEVR."""

import io
import json
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from openjepa.cli import main
from openjepa.data.datasets.benchmarks import BENCHMARKS, find_benchmark
from openjepa.data.decode import decode_image
from tests.helpers.benchmark_folders import opened, put, table, write
from tests.helpers.images import shape_image


def test_help_lists_every_data_set(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["evaluate", "--help-all"])
    shown = " ".join(capsys.readouterr().out.split())  # long lines are folded to the terminal
    for benchmark in BENCHMARKS.values():
        assert " ".join(f"{benchmark.folders[0]} {benchmark.layout}".split()) in shown


@pytest.mark.parametrize("name", BENCHMARKS)
def test_a_missing_data_set_is_said_in_words_and_an_empty_one_is_an_error(name: str, tmp_path: Path) -> None:
    missing = find_benchmark(name, tmp_path)
    assert isinstance(missing, str) and BENCHMARKS[name].layout in missing
    for folder in BENCHMARKS[name].folders:
        assert folder in missing
        (tmp_path / folder).mkdir()
        with pytest.raises(ValueError, match=r"(?s)holds: .*Expected: "):
            find_benchmark(name, tmp_path)
        (tmp_path / folder).rmdir()


# -------------------------------------------------------------------------------------------------------------- CIFAR


def planes(number: int) -> NDArray[np.uint8]:
    """Pixels of a record [3, 32, 32]."""
    return np.random.default_rng(number).integers(0, 256, (3, 32, 32)).astype(np.uint8)


def write_binary(root: Path, name: str, num: int = 3) -> list[tuple[int, NDArray[np.uint8]]]:
    """The binary version with `num` records in each file; label and pixels of all training records."""
    root.mkdir(parents=True, exist_ok=True)
    files = [f"data_batch_{number}.bin" for number in range(1, 6)] if name == "cifar10" else ["train.bin"]
    records = []
    for place, file in enumerate([*files, "test_batch.bin" if name == "cifar10" else "test.bin"]):
        pixels = [planes(100 * place + row) for row in range(num)]
        labels = [row % 3 if name == "cifar10" else 97 + row % 3 for row in range(num)]
        front = b"" if name == "cifar10" else b"\x05"  # the coarse label
        (root / file).write_bytes(b"".join(front + bytes([a]) + b.tobytes() for a, b in zip(labels, pixels, strict=True)))
        records += list(zip(labels, pixels, strict=True)) if file in files else []
    return records


def class_list(number: int) -> str:
    return "".join(f"class {place}\n" for place in range(number)) + "\n"


@pytest.mark.parametrize("name", ["cifar10", "cifar100"])
@pytest.mark.parametrize("nested", [False, True])
def test_binary_cifar_is_read_without_loss(tmp_path: Path, name: str, nested: bool) -> None:
    folder = BENCHMARKS[name].folders[2]
    root = tmp_path / name / folder if nested else tmp_path / folder
    records = write_binary(root, name)
    write(
        root / ("batches.meta.txt" if name == "cifar10" else "fine_label_names.txt"),
        class_list(10 if name == "cifar10" else 100),
    )
    splits = opened(name, tmp_path)
    train: Any = pickle.loads(pickle.dumps(splits.train))
    assert len(pickle.dumps(splits.train)) < 3072, "pixels do not travel"
    assert [label for _, label in table(train)] == [label for label, _ in records]
    assert all(
        np.array_equal(decode_image(train.read(row)), pixels.transpose(1, 2, 0)) for row, (_, pixels) in enumerate(records)
    )
    assert train.class_names[train.labels[0]] == f"class {records[0][0]}"
    assert train.name(len(records) - 1) == ("data_batch_5.bin record 2" if name == "cifar10" else "train.bin record 2")
    with pytest.raises(IndexError, match=f"there is no record {len(records)}"):
        train.read(len(records))


def test_broken_binaries_are_refused(tmp_path: Path) -> None:
    root = tmp_path / "cifar-10-batches-bin"
    write_binary(root, "cifar10")
    assert opened("cifar10", tmp_path).train.class_names is None, "names are not needed"
    write(root / "batches.meta.txt", class_list(9))
    with pytest.raises(ValueError, match=r"batches\.meta\.txt has 9 names; expected: 10"):
        opened("cifar10", tmp_path)
    (root / "batches.meta.txt").unlink()
    whole = (root / "data_batch_3.bin").read_bytes()
    for content, words in (
        (whole[:-1], r"has 9,218 bytes; expected: a whole number of records of 3,073 bytes"),
        (b"", "has 0 bytes"),
        (whole[:3073] + b"\x0a" + whole[3074:], r"record 1 has the label 10; expected: below 10"),
    ):
        (root / "data_batch_3.bin").write_bytes(content)
        with pytest.raises(ValueError, match=rf"data_batch_3\.bin:? {words}"):
            opened("cifar10", tmp_path)
    (root / "data_batch_3.bin").unlink()
    with pytest.raises(
        ValueError, match=r"lacks data_batch_3\.bin; it holds: data_batch_1\.bin, .*Expected: data_batch_1\.bin"
    ):
        opened("cifar10", tmp_path)


@pytest.mark.parametrize("name", ["cifar10", "cifar100"])
def test_the_pickled_version_is_never_opened(tmp_path: Path, name: str) -> None:
    folder = BENCHMARKS[name].folders[3]
    for root in (tmp_path / "alone" / folder, tmp_path / "inside" / name / folder):
        for file in ("data_batch_1", "batches.meta") if name == "cifar10" else ("train", "test", "meta"):
            write(root / file, "a pickle")
        with pytest.raises(ValueError, match=r"has the pickled Python version.*Expected: the \"binary version\".*cifar-100?-b"):
            opened(name, root.parent if root.parent.name == "alone" else root.parents[1])


def test_cifar_in_class_folders(tmp_path: Path) -> None:
    """A class of CIFAR-100 is called train."""
    root = put(tmp_path / "cifar100", "train/apple/1.png", "train/train/2.png", "test/train/3.png", "test/apple/4.png")
    splits = opened("cifar100", tmp_path)
    assert table(splits.train) == [("apple/1.png", 0), ("train/2.png", 1)]
    assert table(splits.test) == [("apple/4.png", 0), ("train/3.png", 1)]
    (root / "test").rename(root / "validation")
    with pytest.raises(ValueError, match=r"cifar100 has no folder test; it holds: train, validation\. Expected: train/CLASS"):
        opened("cifar100", tmp_path)


def write_parquet(file: Path, image: str, labels: dict[str, list[int]]) -> None:
    pa = pytest.importorskip("pyarrow", reason="needs the extra `data`")
    pytest.importorskip("datasets", reason="needs the extra `data`")
    import pyarrow.parquet as pq

    file.parent.mkdir(parents=True, exist_ok=True)
    encoded = []
    for number in range(len(next(iter(labels.values())))):
        buffer = io.BytesIO()
        shape_image(number, 16).save(buffer, "PNG")
        encoded.append({"bytes": buffer.getvalue(), "path": None})
    column = pa.array(encoded, pa.struct([("bytes", pa.binary()), ("path", pa.string())]))
    features: dict[str, Any] = {name: {"_type": "ClassLabel", "names": [f"{name} {n}" for n in range(100)]} for name in labels}
    content = pa.table({image: column, **labels})
    metadata = {"huggingface": json.dumps({"info": {"features": {image: {"_type": "Image"}, **features}}})}
    pq.write_table(content.replace_schema_metadata(metadata), file)


def test_what_is_left_out_of_class_folders_is_said(tmp_path: Path) -> None:
    put(
        tmp_path / "cifar10",
        *[f"{split}/{label}/1.png" for split in ("train", "test") for label in "ab"],
        "test/a/@eaDir/1.jpg",
    )
    with pytest.warns(UserWarning, match=r"CIFAR10: .*test: 1 service folder of another program left out \(@eaDir\)"):
        splits = opened("cifar10", tmp_path)
    assert table(splits.test) == [("a/1.png", 0), ("b/1.png", 1)]


@pytest.mark.parametrize("place", ["", "cifar100/", "[old] data/"])
def test_parquet_of_cifar100_gives_the_fine_labels(tmp_path: Path, place: str) -> None:
    root = tmp_path / "cifar100"
    for split, fine in (("train", [5, 99, 7]), ("test", [99, 5])):
        columns = {"fine_label": fine, "coarse_label": [1] * len(fine)}
        write_parquet(root / f"{place}{split}-00000-of-00001.parquet", "img", columns)
    splits = opened("cifar100", tmp_path)
    assert [label for _, label in table(splits.train)] == [5, 99, 7] and [label for _, label in table(splits.test)] == [99, 5]
    assert splits.train.class_names is not None and splits.train.class_names[99] == "fine_label 99"
    assert decode_image(splits.train.read(0)).shape == (16, 16, 3)  # type: ignore[union-attr]


def test_parquet_of_other_benchmarks_and_its_errors(tmp_path: Path) -> None:
    for name, folder, test in (("cifar10", "cifar10", "test"), ("imagenet1k", "imagenet/data", "validation")):
        write_parquet(tmp_path / folder / "train-00000-of-00001.parquet", "image", {"label": [3, 1]})
        write_parquet(tmp_path / folder / f"{test}-00000-of-00001.parquet", "image", {"label": [1]})
        assert [label for _, label in table(opened(name, tmp_path).test)] == [1]
    file = tmp_path / "cifar10" / "test-00000-of-00001.parquet"
    write_parquet(file, "image", {"label": [1, 9]})
    with pytest.raises(ValueError, match="the test split has 1 classes without training images: label 9"):
        opened("cifar10", tmp_path)
    write_parquet(file, "image", {"label": [-1, -1]})
    with pytest.raises(ValueError, match="lacks labels or a labeled test split"):
        opened("cifar10", tmp_path)
    write_parquet(file, "image", {"kind": [1]})
    with pytest.raises(ValueError, match=r"test-00000-of-00001\.parquet has no column label; it has image, kind"):
        opened("cifar10", tmp_path)
    file.write_bytes(b"PAR1")
    with pytest.raises(ValueError, match=r"test-00000-of-00001\.parquet is no readable Parquet file"):
        opened("cifar10", tmp_path)


# -------------------------------------------------------------------------------------------------------------- CLEVR


@pytest.mark.parametrize("folder", ["CLEVR_v1.0", "clevr"])
def test_clevr(tmp_path: Path, folder: str) -> None:
    root = tmp_path / folder
    for split, counts in (("train", (3, 10, 4)), ("val", (4,))):
        names = [f"CLEVR_{split}_{place:06d}.png" for place in range(len(counts))]
        put(root / "images" / split, *names)
        scenes = [
            {"image_filename": name, "objects": [{"pixel_coords": [1, 2, 8.2 + place]} for place in range(count)]}
            for name, count in zip(names, counts, strict=True)
        ]
        write(root / "scenes" / f"CLEVR_{split}_scenes.json", json.dumps({"scenes": scenes}))
    splits = opened("clevr", tmp_path)
    assert [values.tolist() for values in splits.extra_labels["count"]] == [[0, 7, 1], [1]]
    assert [values.tolist() for values in splits.extra_labels["distance"]] == [[1, 1, 1], [1]]
    (root / "images" / "val" / "CLEVR_val_000000.png").unlink()
    with pytest.raises(ValueError, match=r"CLEVR_val_scenes\.json names 1 of 1 images that"):
        opened("clevr", tmp_path)
