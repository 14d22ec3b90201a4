"""Which images are labeled: draws against a slow restatement, lists in every spelling, and every error."""

import pickle
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from numpy.typing import NDArray

from openjepa.data.selection import Subset, low_shot_rows
from openjepa.data.source import ListSource
from openjepa.data.tables.arrow import ArrowSource, ImageRows
from openjepa.seeds import derive_samples
from openjepa.settings.evaluation import LowShotSettings


class Names(ListSource):
    """Records that have names and classes but no images."""

    def __init__(
        self, names: list[str], labels: NDArray[np.int64] | None = None, classes: tuple[str, ...] | None = None
    ) -> None:
        self._names, self.labels, self.class_names = names, labels, classes

    def __len__(self) -> int:
        return len(self._names)

    def read(self, index: int) -> bytes:
        raise OSError("no image is read to choose one")

    def name(self, index: int) -> str:
        return self._names[index]


LABELS = np.random.default_rng(0).permutation(np.repeat([0, 1, 3], [250, 49, 3])).astype(np.int64)
SOURCE = Names([f"{number}.png" for number in range(len(LABELS))], LABELS, ("ant", "bee", "cow", "dog"))
IMAGENET = Names(
    ["n01440764/n01440764_18.JPEG", "n01440764/n01440764_36.JPEG", "n01443537/n01443537_2.JPEG", "n01443537/n01443537_16.JPEG"]
)
NO_LABELS = np.zeros(4, dtype=np.int64)


def slow_draw(labels: NDArray[np.int64], wanted: dict[int, int], seed: int) -> list[int]:
    """For each class, its records with the smallest keys."""
    chosen: list[int] = []
    for label, number in wanted.items():
        members = [row for row in range(len(labels)) if labels[row] == label]
        key = {row: int(derive_samples("subset", seed, np.array([3]), np.array([row]))[0]) for row in members}
        chosen += sorted(members, key=key.__getitem__)[:number]
    return sorted(chosen)


@pytest.mark.parametrize(
    ("percent", "wanted"),
    [(1.0, {0: 3, 1: 1, 3: 1}), (0.1, {0: 1, 1: 1, 3: 1}), (10.0, {0: 25, 1: 5, 3: 1}), (100.0, {0: 250, 1: 49, 3: 3})],
)
def test_percent_is_of_each_class_rounded_and_at_least_one(percent: float, wanted: dict[int, int]) -> None:
    """2.5 of 250 images are 3: halves are rounded up."""
    rows = low_shot_rows(SOURCE, LABELS, LowShotSettings(percent=percent, seed=7))
    assert rows.dtype == np.int64 and rows.tolist() == slow_draw(LABELS, wanted, 7)


def test_images_per_class_draws_so_many_of_each() -> None:
    rows = low_shot_rows(SOURCE, LABELS, LowShotSettings(images_per_class=2, seed=1))
    assert rows.tolist() == slow_draw(LABELS, {0: 2, 1: 2, 3: 2}, 1)


def test_smaller_draws_lie_within_larger_ones_and_depend_on_the_seed() -> None:
    def draw(number: int, seed: int) -> set[int]:
        return set(low_shot_rows(SOURCE, LABELS, LowShotSettings(images_per_class=number, seed=seed)).tolist())

    assert draw(1, 0) < draw(2, 0) < draw(3, 0)
    assert len({frozenset(draw(1, seed)) for seed in range(10)}) == 10
    percent = set(low_shot_rows(SOURCE, LABELS, LowShotSettings(percent=2.0)).tolist())
    assert draw(1, 0) < percent, "one percentage and one number draw in the same order"


def test_every_image_is_drawn_equally_often() -> None:
    """10 of 40 images, 400 times: each 100 times, with a standard deviation of 8.7."""
    labels = np.zeros(40, dtype=np.int64)
    source = Names([str(number) for number in range(40)])
    times = np.zeros(40)
    for seed in range(400):
        times[low_shot_rows(source, labels, LowShotSettings(images_per_class=10, seed=seed))] += 1
    assert times.sum() == 4000 and times.min() > 60 and times.max() < 140


def test_a_class_with_too_few_images_is_named() -> None:
    with pytest.raises(
        ValueError, match=r"images_per_class=50: 2 of 3 classes have fewer images \(bee has 49, dog has 3\); at most 3 "
    ):
        low_shot_rows(SOURCE, LABELS, LowShotSettings(images_per_class=50))
    with pytest.raises(ValueError, match=r"class 1 has 49, class 3 has 3"):
        low_shot_rows(Names(["x"] * len(LABELS)), LABELS, LowShotSettings(images_per_class=50))


# ------------------------------------------------------------------------------------------------------------------ lists


def listed(tmp_path: Path, text: str, source: ListSource = IMAGENET) -> list[int]:
    file = tmp_path / "list.txt"
    file.write_text(text)
    return low_shot_rows(source, NO_LABELS, LowShotSettings(list=str(file))).tolist()


@pytest.mark.parametrize(
    "line",
    [
        "n01443537_2.JPEG",
        "n01443537_2",
        "n01443537_2.png",
        "n01443537/n01443537_2.JPEG",
        "n01443537/n01443537_2",
        "train/n01443537/n01443537_2.JPEG",
        "/data/imagenet/train/n01443537/n01443537_2.JPEG",
        "./n01443537_2.JPEG",
    ],
)
def test_names_match_with_and_without_folder_and_suffix(tmp_path: Path, line: str) -> None:
    assert listed(tmp_path, f"# labeled images\n\n  {line}  \r\nn01440764_18.JPEG\n") == [0, 2]


def test_images_without_folders_match_names_with_them(tmp_path: Path) -> None:
    flat = Names(["n01440764_18.JPEG", "n01440764_36.JPEG"])
    assert listed(tmp_path, "n01440764/n01440764_36.JPEG\n", flat) == [1]


def test_rows_of_tables_match_by_their_path(tmp_path: Path) -> None:
    paths = ["n01440764_18.JPEG", "a/n01440764_36.JPEG", None]
    rows = ImageRows(pa.array([{"bytes": b"x", "path": path} for path in paths]))
    table = ArrowSource(lambda: [rows], "train", b"")
    assert [table.name(row) for row in (1, 2)] == ["train row 1 (a/n01440764_36.JPEG)", "train row 2"]
    part = Subset(table, np.array([2, 1]))
    assert [part.image_name(row) for row in (0, 1)] == ["train row 2", "a/n01440764_36.JPEG"]
    assert listed(tmp_path, "n01440764_36.JPEG\nn01440764_18\n", table) == [0, 1]


def test_folder_and_suffix_tell_equal_names_apart(tmp_path: Path) -> None:
    source = Names(["cat/1.png", "cat/1.jpg", "dog/1.png", "dog/v1.5"])
    assert listed(tmp_path, "dog/1\ncat/1.jpg\n", source) == [1, 2]
    assert listed(tmp_path, "1.jpg\n", source) == [1]
    assert listed(tmp_path, "v1.5\n", source) == [3], "not every dot starts a suffix"
    with pytest.raises(ValueError, match=r"2 of its names could be several images: cat/1 \(cat/1\.png, cat/1\.jpg\), 1\.png"):
        listed(tmp_path, "cat/1\n1.png\n", source)


def test_names_of_other_folders_are_absent(tmp_path: Path) -> None:
    text = "n01440764/n01443537_2.JPEG\nn5_1.JPEG\nn5_2.JPEG\nn5_3.JPEG\nn01440764_18.JPEG\n"
    with pytest.raises(
        ValueError, match=r"4 of its names are not among the training images: n01440764/n01443537_2\.JPEG, n5_1"
    ):
        listed(tmp_path, text)


def test_a_subset_that_lacks_listed_images_is_refused(tmp_path: Path) -> None:
    subset = Subset(IMAGENET, np.array([0, 3]))
    assert listed(tmp_path, "n01443537_16\n", subset) == [1]
    with pytest.raises(ValueError, match="the list must name images of the whole training split"):
        listed(tmp_path, "n01443537_2\n", subset)


def test_a_few_absent_names_of_a_list_are_left_out_aloud(tmp_path: Path) -> None:
    file = tmp_path / "list.txt"
    file.write_text("n01440764_18\nn01443537_2\nn5_1\n")
    shot = LowShotSettings(list=str(file))
    with pytest.warns(UserWarning, match=r"list\.txt names 1 of 3 images that are not there: n5_1"):
        assert low_shot_rows(IMAGENET, NO_LABELS, shot, max_skipped=0.4).tolist() == [0, 2]
    with pytest.raises(ValueError, match=r"1 of its names are not among the training images: n5_1"):
        low_shot_rows(IMAGENET, NO_LABELS, shot, max_skipped=0.3)
    file.write_text("n5_1\n")
    with pytest.raises(ValueError, match=r"1 of its names are not among the training images: n5_1"):
        low_shot_rows(IMAGENET, NO_LABELS, shot, max_skipped=1.0)


def test_what_is_named_twice_counts_once_with_a_note(tmp_path: Path) -> None:
    with pytest.warns(UserWarning, match="names 2 images more than once; they count once"):
        assert listed(tmp_path, "n01443537_2\nn01443537_2\nn01443537/n01443537_2.JPEG\nn01440764_18\n") == [0, 2]


@pytest.mark.parametrize(("content", "words"), [(b"\n# nothing\n", "names no images"), (b"\xff\xfe\x00x", "cannot be read")])
def test_lists_without_names_are_refused(tmp_path: Path, content: bytes, words: str) -> None:
    file = tmp_path / "list.txt"
    file.write_bytes(content)
    with pytest.raises(ValueError, match=rf"low_shot\.list='.*list\.txt' {words}"):
        low_shot_rows(IMAGENET, NO_LABELS, LowShotSettings(list=str(file)))
    with pytest.raises(ValueError, match=r"absent\.txt' cannot be read \(FileNotFoundError\)"):
        low_shot_rows(IMAGENET, NO_LABELS, LowShotSettings(list=str(tmp_path / "absent.txt")))


def test_the_published_list_has_so_many_rows_at_its_size(tmp_path: Path) -> None:
    """A generated list of 12,811 names among 128,110 images: all are found, none twice."""
    names = [f"n{number % 1000:08d}/n{number % 1000:08d}_{number}.JPEG" for number in range(128_110)]
    source = pickle.loads(pickle.dumps(Names(names)))
    rows = np.random.default_rng(0).permutation(128_110)[:12_811]
    assert listed(tmp_path, "\n".join(names[row].split("/")[1] for row in rows), source) == sorted(rows.tolist())
