"""WebDataset tars: which file of a sample is its image and its label, as a list and as a stream."""

import io
import json
import pickle
import tarfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from openjepa.data.source import ListSource, ShardRecord, ShardSource
from openjepa.refusals import Refusal
from tests.helpers.images import shape_image
from tests.helpers.tables import offline as offline
from tests.helpers.tables import opened, png, write_members

pytestmark = pytest.mark.usefixtures("offline")
Row = tuple[str, bytes | str, int | None]
"""Name, image or reason, label."""


def encoded(seed: int, kind: str) -> bytes:
    buffer = io.BytesIO()
    shape_image(seed, 16).save(buffer, kind)
    return buffer.getvalue()


def listed(path: Path, **settings: object) -> list[Row]:
    """The rows of the training split as a list, also after a worker has got it."""
    source = opened(path, test_fraction=0.0, **settings).train
    assert isinstance(source, ListSource)
    source = pickle.loads(pickle.dumps(source))
    labels = source.labels if source.labels is not None else source.partial_labels
    rows: list[Row] = []
    for index in range(len(source)):
        try:
            content: bytes | str = source.read(index)
        except ValueError as error:
            content = str(error)
        label = None if labels is None or labels[index] < 0 else int(labels[index])
        rows.append((source.name(index).split(" (")[1][:-1], content, label))
    return rows


def streamed(path: Path, **settings: object) -> list[Row]:
    """The same of the stream."""
    source = opened(path, streaming=True, **settings).train
    assert isinstance(source, ShardSource)
    records = [record for shard in range(len(source)) for record in source.read_shard(shard)]
    return [(record.name.split(" (")[1][:-1], content_of(record), record.label) for record in records]


def content_of(record: ShardRecord) -> bytes | str:
    try:
        return record.read()
    except ValueError as error:
        return str(error)


def test_every_sample_may_have_another_kind_of_image(tmp_path: Path) -> None:
    images = {"jpg": "JPEG", "png": "PNG", "JPG": "JPEG", "Jpeg": "JPEG", "webp": "WEBP", "tif": "TIFF", "bmp": "BMP"}
    expected: list[Row] = []
    for number, (suffix, kind) in enumerate(images.items()):
        name, data = f"{number}.{suffix}", encoded(number, kind)
        members = {name: data, f"{number}.cls": str(number % 3).encode()}
        if number >= 4:  # the label first
            members = dict(reversed(members.items()))
        write_members(tmp_path / f"{number // 3}.tar", members, "a" if number % 3 else "w")
        expected.append((name, data, number % 3))
    assert listed(tmp_path) == streamed(tmp_path) == expected


@pytest.mark.parametrize("name", ["train.tar", "train.TAR", "train.tar.gz", "train.tgz"])
def test_tars_may_be_compressed(tmp_path: Path, name: str) -> None:
    members = {f"a.b/{seed}.{suffix}": png(seed) for seed in range(6) for suffix in ("png",)}
    write_members(tmp_path / name, members, "w:gz" if name.endswith("gz") else "w")
    assert listed(tmp_path) == streamed(tmp_path) == [(name, data, None) for name, data in members.items()]


def test_what_is_no_image_is_said_and_keeps_its_place(tmp_path: Path) -> None:
    members = {"README.md": b"text", "0.png": png(0), "0.cls": b"1", "._0.png": b"x", "__MACOSX.png": b"x", "folder": b"x"}
    members |= {"1.cls": b"0", "1.json": b"{}", "2.png": b"", "2.cls": b"1"}
    write_members(tmp_path / "a.tar", members)
    assert (
        listed(tmp_path)
        == streamed(tmp_path)
        == [
            ("README.md", "the sample has no image, only md", None),
            ("0.png", png(0), 1),
            ("1.cls", "the sample has no image, only cls, json", 0),
            ("2.png", b"", 1),
        ]
    )


def test_several_images_need_a_choice(tmp_path: Path) -> None:
    mask = encoded(9, "PNG")
    write_members(
        tmp_path / "a.tar", {"0.JPG": encoded(0, "JPEG"), "0.seg.png": mask, "1.jpg": encoded(1, "JPEG"), "1.seg.png": mask}
    )
    with pytest.raises(Refusal, match=r"several images \(jpg, seg.png\): choose one with data.image_column"):
        opened(tmp_path)
    with pytest.raises(Refusal, match=r"several images \(jpg, seg.png\): choose one with data.image_column"):
        opened(tmp_path, streaming=True)
    photos: list[Row] = [("0.JPG", encoded(0, "JPEG"), None), ("1.jpg", encoded(1, "JPEG"), None)]
    assert listed(tmp_path, image_column="jpg") == streamed(tmp_path, image_column="JPG") == photos
    assert [row[1] for row in listed(tmp_path, image_column="seg.png")] == [mask, mask]


def test_a_sample_with_two_images_is_one_unreadable_record(tmp_path: Path) -> None:
    write_members(tmp_path / "a.tar", {"0.png": png(0), "1.png": png(1), "1.PNG": png(2), "2.png": png(2)})
    rows = listed(tmp_path)
    assert rows == streamed(tmp_path) and [row[1] for row in rows[::2]] == [png(0), png(2)]
    assert "several images (png, png)" in str(rows[1][1])


@pytest.mark.parametrize(
    ("column", "expected", "names"),
    [
        (None, [1, 0, 1], None),
        ("CLS", [1, 0, 1], None),
        ("txt", [1, 0, 1], ("ant", "owl")),
        ("json.species", [0, 1, 0], ("7", "4000000000")),
        ("json.Code", [1, 0, 1], ("07", "7")),
    ],
)
def test_where_labels_stand(tmp_path: Path, column: str | None, expected: list[int], names: tuple[str, ...] | None) -> None:
    members = {}
    for seed, label in enumerate([1, 0, 1]):
        content = {"species": [4_000_000_000, 7][label], "Code": ["07", "7"][label], "more": {"Code": "x"}}
        members[f"{seed}.json"] = json.dumps(content).encode()
        members[f"{seed}.png"], members[f"{seed}.cls"] = png(seed), f"{label}\n".encode()
        members[f"{seed}.txt"] = b"owl" if label else b"ant"
    write_members(tmp_path / "a.tar", members)
    train = opened(tmp_path, test_fraction=0.0, label_column=column).train
    assert isinstance(train, ListSource) and train.labels is not None
    assert (train.labels.tolist(), train.class_names) == (expected, names)


def test_a_label_that_is_nowhere_is_refused(tmp_path: Path) -> None:
    write_members(tmp_path / "a.tar", {"0.png": png(0), "0.json": b'{"species": [1]}', "1.png": png(1), "1.json": b"broken"})
    for column in ("cls", "json.species", "json"):
        with pytest.raises(Refusal, match=rf"data.label_column='{column}' holds no labels of the split 'train'"):
            opened(tmp_path, label_column=column)


def test_links_and_holes_are_said(tmp_path: Path) -> None:
    write_members(tmp_path / "a.tar", {"0.png": png(0)})
    with tarfile.open(tmp_path / "a.tar", "a") as tar:
        for name, kind in (("1.png", tarfile.LNKTYPE), ("2.png", tarfile.SYMTYPE), ("folder.png", tarfile.DIRTYPE)):
            info = tarfile.TarInfo(name)
            info.type, info.linkname = kind, "0.png"
            tar.addfile(info)
    reason = "a link to 0.png, which is not followed in a tar"
    assert listed(tmp_path) == streamed(tmp_path) == [("0.png", png(0), None), ("1.png", reason, None), ("2.png", reason, None)]


def test_names_that_are_no_text_and_halves_of_characters(tmp_path: Path) -> None:
    """Where a link leads to, fields of a sample, names, and labels."""
    write_members(tmp_path / "a.tar", {"caf\udce9.png": png(0), "x.caf\udce9.jpg": b"1", "x.b.jpg": b"2", "y.caf\udce9": b""})
    with tarfile.open(tmp_path / "a.tar", "a") as tar:
        info = tarfile.TarInfo("z.png")
        info.type, info.linkname = tarfile.SYMTYPE, "caf\udce9.png"
        tar.addfile(info)
    several = "the sample has several images (caf\udce9.jpg, b.jpg): choose one with data.image_column"
    assert (
        listed(tmp_path)
        == streamed(tmp_path)
        == [
            ("caf\udce9.png", png(0), None),
            ("x.caf\udce9.jpg", several, None),
            ("y.caf\udce9", "the sample has no image, only caf\udce9", None),
            ("z.png", "a link to caf\udce9.png, which is not followed in a tar", None),
        ]
    )


@pytest.mark.parametrize(
    ("word", "name"),
    [
        ("\ud800a", r"\ud800a"),
        ("b\udfff", r"b\udfff"),
        ("caf\udce9", r"caf\udce9"),
        ("owl\0", "owl\0"),
        ("\U0001f989", "\U0001f989"),
    ],
)
def test_labels_may_have_halves_of_characters(tmp_path: Path, word: str, name: str) -> None:
    members = {}
    for seed in range(4):
        members[f"{seed}.png"], members[f"{seed}.json"] = png(seed), json.dumps({"s": word if seed % 2 else "A"}).encode()
    write_members(tmp_path / "a.tar", members)
    train = opened(tmp_path, test_fraction=0.0, label_column="json.s").train
    assert isinstance(train, ListSource) and train.labels is not None
    assert (train.labels.tolist(), train.class_names) == ([0, 1, 0, 1], ("A", name))


@pytest.mark.parametrize("where", ["in a file", "in a header", "behind a file", "gzip", "no tar"])
def test_of_a_damaged_tar_the_whole_samples_are_used(tmp_path: Path, where: str) -> None:
    image = png(1)
    write_members(tmp_path / "0.tar", {"0.png": png(0), "1.png": image, "2.png": png(2)})
    whole = (tmp_path / "0.tar").read_bytes()
    second = whole.index(image)
    third = second + -(-len(image) // 512) * 512
    assert whole[third : third + 5] == b"2.png"
    if where == "gzip":
        write_members(tmp_path / "0.tar", {"0.png": png(0), "1.png": np.random.default_rng(0).bytes(100_000)}, "w:gz")
    cuts = {"in a file": whole[: second + 5], "in a header": whole[: third + 100], "no tar": b"an error page" * 100}
    cuts |= {"behind a file": whole[:third] + b"\xff" * 1024, "gzip": (tmp_path / "0.tar").read_bytes()[:-50_000]}
    (tmp_path / "0.tar").write_bytes(cuts[where])
    write_members(tmp_path / "1.tar", {"9.png": png(9)})
    if where == "gzip":
        with pytest.raises(Refusal, match=r"0.tar cannot be unpacked"):
            listed(tmp_path)
    rows = streamed(tmp_path) if where == "gzip" else listed(tmp_path)
    good = [row[1] for row in rows if isinstance(row[1], bytes)]
    assert good == [*{"in a file": [png(0)], "gzip": [png(0)], "no tar": []}.get(where, [png(0), image]), png(9)]
    (reason,) = [row[1] for row in rows if row[0] == "0.tar"]
    assert str(reason).startswith(f"the rest of the tar {tmp_path / '0.tar'} cannot be read (")
    assert [row for row in streamed(tmp_path) if row[0] == "0.tar"] == [row for row in rows if row[0] == "0.tar"]


def test_the_index_follows_the_file(tmp_path: Path) -> None:
    write_members(tmp_path / "a.tar", {"0.png": png(0)})
    assert listed(tmp_path) == [("0.png", png(0), None)]
    write_members(tmp_path / "a.tar", {"0.png": png(0), "1.png": png(1)})
    assert listed(tmp_path) == [("0.png", png(0), None), ("1.png", png(1), None)]
    Image.open(io.BytesIO(png(1))).verify()


def test_json_that_nests_too_deep_is_no_label(tmp_path: Path) -> None:
    deep = b"[" * 100_000
    members = {
        "0.png": png(0),
        "0.json": deep,
        "1.png": png(1),
        "1.json": b'{"s": "b"}',
        "2.png": png(2),
        "2.json": b'{"s": "a"}',
    }
    write_members(tmp_path / "a.tar", members)
    assert [row[2] for row in listed(tmp_path, label_column="json.s")] == [None, 1, 0]
