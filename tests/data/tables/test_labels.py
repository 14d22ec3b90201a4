"""Classes from label columns: which number each value gets, over all splits, and how probes learn from them."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from openjepa.data.check import CheckSummary, inspect
from openjepa.data.selection import low_shot_rows
from openjepa.data.source import ListSource
from openjepa.data.tables.labels import Numbering, from_arrow, from_words
from openjepa.evaluation.evaluation_run import evaluate_run
from openjepa.refusals import Refusal
from openjepa.settings.evaluation import EvaluationSettings, LowShotSettings
from openjepa.settings.sources import HuggingFaceSettings
from tests.helpers.tables import offline as offline
from tests.helpers.tables import opened, pa, png, write_members, write_parquet
from tests.helpers.tiny_encoder import write_encoder

pytestmark = pytest.mark.usefixtures("offline")
Found = tuple[list[int], list[int], tuple[str, ...] | None]


def numbered(train: object, test: object, names: Sequence[str] | None = None) -> Found:
    """Labels of both splits and the class names."""
    columns = []
    for values in (train, test):
        chunks = pa.chunked_array([values if isinstance(values, pa.Array) else pa.array(values)])
        column = from_arrow("labels", chunks, tuple(names) if names else None)
        assert column is not None
        columns.append(column)
    numbering = Numbering(columns)
    found = [numbering.labels(column).tolist() for column in columns]
    return found[0], found[1], numbering.class_names


@pytest.mark.parametrize(
    ("train", "test", "expected"),
    [
        ([0, 2, 1, 0], [1, 2], ([0, 2, 1, 0], [1, 2], None)),
        ([0, 2, 0], [1, 2], ([0, 2, 0], [1, 2], None)),  # over both splits they are 0 to n-1
        ([4006381333, 4006381334, 7], [7, 4006381334], ([1, 2, 0], [0, 2], ("7", "4006381333", "4006381334"))),
        ([2**63 + 5, 3], [3], ([1, 0], [0], ("3", str(2**63 + 5)))),
        ([1, 2, 3], [3], ([0, 1, 2], [2], ("1", "2", "3"))),
        ([0, 5], [5], ([0, 1], [1], ("0", "5"))),
        ([10, 30], [20, 30], ([0, 2], [1, 2], ("10", "20", "30"))),  # the test split has a class of its own
        ([-7, -5, -7], [-5], ([0, 1, 0], [1], ("-7", "-5"))),
        ([-1, 1, -1], [1], ([0, 1, 0], [1], ("-1", "1"))),  # two classes
        ([-2, -1, 0], [0], ([0, 1, 2], [2], ("-2", "-1", "0"))),
        ([-1, 0, 1], [1, 0], ([-1, 0, 1], [1, 0], None)),  # -1: no label
        ([-1, 900, 40], [900], ([-1, 1, 0], [1], ("40", "900"))),
        ([0.0, 1.0, None], [1.0], ([0, 1, -1], [1], None)),
        ([7.0, float("nan"), 4e9], [4e9], ([0, -1, 1], [1], ("7", "4000000000"))),
        ([True, False, None], [True], ([1, 0, -1], [1], ("False", "True"))),
        (["owl", "ant", None, " "], ["ant"], ([1, 0, -1, -1], [0], ("ant", "owl"))),
        (["ant", "owl"], ["bee", "owl"], ([0, 1], [2, 1], ("ant", "owl", "bee"))),
        (["007", "7"], ["7"], ([0, 1], [1], ("007", "7"))),
        ([3, 4], ["4", "3"], ([0, 1], [1, 0], ("3", "4"))),  # one split as numbers, one as words
    ],
)
def test_classes_are_numbered_by_what_occurs(train: list[object], test: list[object], expected: Found) -> None:
    array = pa.array(train, pa.uint64()) if max([v for v in train if isinstance(v, int)], default=0) > 2**63 else train
    assert numbered(array, test) == expected


@pytest.mark.parametrize("text", ["string", "large_string", "string_view", "dictionary"])
def test_all_types_of_words_are_labels(text: str) -> None:
    words = pa.array(["owl", "ant", None, "owl"])
    array = words.dictionary_encode() if text == "dictionary" else words.cast(getattr(pa, text)())
    assert numbered(array, array) == ([1, 0, -1, 1], [1, 0, -1, 1], ("ant", "owl"))


def test_categories_may_stand_for_numbers() -> None:
    assert numbered(pa.array([900, 7, 900]).dictionary_encode(), [7])[::2] == ([1, 0, 1], ("7", "900"))


def test_declared_classes_keep_their_numbers_and_names() -> None:
    assert numbered([2, -1, None], [0], ["a", "b", "c"]) == ([2, -1, -1], [0], ("a", "b", "c"))
    with pytest.raises(Refusal, match="holds the class 3, but the files declare 3 classes"):
        numbered([3], [0], ["a", "b", "c"])


def test_what_is_no_class_is_refused_or_no_label() -> None:
    assert from_arrow("labels", pa.chunked_array([[0.5, 1.0]]), None) is None
    with pytest.raises(Refusal, match="labels holds list<"):
        from_arrow("labels", pa.chunked_array([[[1]]]), None)


def test_numbers_of_a_stream_stay() -> None:
    assert Numbering([from_words("labels", ["7", "900"])], as_they_are=True).class_names == ("7", "900")
    column = from_arrow("labels", pa.chunked_array([[900, 7]]), None)
    assert column is not None
    numbering = Numbering([column], as_they_are=True)
    assert numbering.labels(column).tolist() == [900, 7] and numbering.class_names is None


def test_catalogue_numbers_of_files_are_small_classes(tmp_path: Path) -> None:
    codes = [4006381333, 4006381334, 7]
    write_parquet(tmp_path / "a" / "train.parquet", range(6), declared=False, labels=codes * 2)
    write_parquet(tmp_path / "a" / "test.parquet", range(3), declared=False, labels=[7, 12, 4006381333])
    splits = opened(tmp_path / "a")
    assert isinstance(splits.train, ListSource) and splits.test is not None
    assert splits.train.class_names == splits.test.class_names == ("7", "12", "4006381333", "4006381334")
    assert np.array_equal(splits.train.labels, [2, 3, 0] * 2) and np.array_equal(splits.test.labels, [0, 1, 2])
    assert splits.remarks == ("1 test image of classes without training images (12), which probes get wrong",)
    assert splits.description.endswith(splits.remarks[0])


@pytest.mark.parametrize(
    ("labels", "expected", "names"),
    [
        (["7", "900", "7"], [0, 1, 0], ("7", "900")),
        (["1\n", "0\n", " 1 "], [1, 0, 1], None),
        (["02", "01", "00"], [2, 1, 0], None),
        (["owl", "ant", ""], [1, 0, -1], ("ant", "owl")),
    ],
)
def test_labels_of_tars(tmp_path: Path, labels: list[str], expected: list[int], names: tuple[str, ...] | None) -> None:
    members = {f"{i}.{e}": d for i, text in enumerate(labels) for e, d in (("png", png(i)), ("cls", text.encode()))}
    write_members(tmp_path / "a.tar", members)
    train = opened(tmp_path, test_fraction=0.0).train
    assert isinstance(train, ListSource) and train.class_names == names
    assert (train.labels if -1 not in expected else train.partial_labels).tolist() == expected  # type: ignore[union-attr]


def test_a_column_without_any_value_has_no_labels() -> None:
    """As pandas writes a column of nothing but None."""
    column = from_arrow("label", pa.chunked_array([pa.nulls(3)]), None)
    assert column is not None and (column.codes.tolist(), column.values) == ([-1, -1, -1], ())


# ---- on their way to probes


CODES = [4006381333, 4006381334, 7]


def write_catalogue(folder: Path) -> None:
    """60 training and 20 test images of three products; every tenth has no label."""
    for name, seeds in (("train", range(60)), ("test", range(60, 80))):
        labels = [None if seed % 10 == 9 else CODES[seed % 3] for seed in seeds]
        write_parquet(folder / f"{name}.parquet", seeds, declared=False, labels=labels)


def test_probes_learn_three_classes_from_the_labeled_rows(tmp_path: Path) -> None:
    write_catalogue(tmp_path / "set")
    said: list[str] = []
    settings = EvaluationSettings(
        protocols=("knn", "linear", "logistic"), neighbors=(1, 5), weight_decays=(0.01,), baselines=(), workers=0
    )
    data = HuggingFaceSettings(path=str(tmp_path / "set"))
    (result,) = evaluate_run(write_encoder(tmp_path / "run") / "encoder", settings, data, said.append)
    assert (result.num_train, result.num_test, result.num_classes) == (54, 18, 3)
    assert result.chance == pytest.approx(6 / 18)
    assert set(result.subjects["encoder"].metrics) == {"k-NN", "linear", "logistic"}
    notes = [
        "note: 6 training images without a label, which probes leave out",
        "note: 2 test images without a label, which probes leave out",
    ]
    assert said[:2] == notes and all(note.removeprefix("note: ") in result.data for note in notes)


def test_low_shot_draws_from_classes_that_occur(tmp_path: Path) -> None:
    write_parquet(tmp_path / "train.parquet", range(30), declared=False, labels=[CODES[seed % 3] for seed in range(30)])
    train = opened(tmp_path, test_fraction=0.0).train
    assert isinstance(train, ListSource) and train.labels is not None
    rows = low_shot_rows(train, train.labels, LowShotSettings(images_per_class=2))
    assert np.bincount(train.labels[rows]).tolist() == [2, 2, 2]
    with pytest.raises(ValueError, match=r"\(7 has 10, 4006381333 has 10, 4006381334 has 10\)"):
        low_shot_rows(train, train.labels, LowShotSettings(images_per_class=11))


def test_data_check_counts_rows_without_a_label(tmp_path: Path) -> None:
    write_catalogue(tmp_path)
    settings, summary = HuggingFaceSettings(path=str(tmp_path)), CheckSummary()
    found = list(inspect(settings, opened(tmp_path), 1))
    for item in found:
        summary.add(item)
    assert [item.class_name for item in found[:10]] == [*(str(CODES[seed % 3]) for seed in range(9)), ""]
    assert "  3 classes with 18 to 18 images; 6 images without a label" in list(summary.lines())
    assert "  3 classes with 6 to 6 images; 2 images without a label" in list(summary.lines())
