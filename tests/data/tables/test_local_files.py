"""Which files a path means, and which split they belong to."""

import os
from pathlib import Path

import pytest

from openjepa.data.tables.local_files import find_files, split_of
from openjepa.refusals import Refusal


def touch(*files: Path) -> None:
    for file in files:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.touch()


def splits(path: Path | str) -> dict[str, list[str]]:
    """File names by split."""
    found = find_files(str(path))
    assert found is not None
    return {split: [Path(file).name for file in files] for split, files in found.splits.items()}


@pytest.mark.parametrize(
    ("name", "split"),
    [
        ("train-00000-of-00004.parquet", "train"),
        ("val-00000-of-00004.parquet", "validation"),
        ("cifar10-train-00000-of-00001.parquet", "train"),
        ("data/test/0.parquet", "test"),
        ("test/train_0001.parquet", "train"),  # the nearest word counts
        ("train2017.parquet", "train"),
        ("validated-train.parquet", "train"),
        ("testament/0.parquet", ""),
        ("trainval.parquet", ""),
        ("contest.parquet", ""),
        ("0.parquet", ""),
        ("train/test-time-train.parquet", "train"),
        ("train_test_split/test/0.parquet", "test"),
        ("dev/validation-0.parquet", "validation"),
        ("Training Set/a.TAR", "train"),
    ],
)
def test_names_say_their_split(name: str, split: str) -> None:
    assert split_of(Path(name)) == split


@pytest.mark.parametrize("name", ["test-time-train.parquet", "cifar-train-test.parquet", "a/train_val.tar", "train-test/0.tar"])
def test_names_that_say_two_splits_are_refused(name: str, tmp_path: Path) -> None:
    with pytest.raises(Refusal, match=r"could mean the splits \w+ and \w+: give it a name that says one"):
        split_of(Path(name))
    touch(tmp_path / Path(name).name.replace("0.tar", "train-test.tar"))
    assert list(splits(tmp_path)) == ["train"]  # a single file need not be told from others


def test_other_names_of_the_hub_are_splits_of_their_own(tmp_path: Path) -> None:
    touch(*(tmp_path / f"{split}-00000-of-00001.parquet" for split in ("train", "test", "unlabeled")))
    assert list(splits(tmp_path)) == ["test", "train", "unlabeled"]
    touch(tmp_path / "others" / "cats-00000-of-00001.parquet", tmp_path / "others" / "dogs-00000-of-00001.parquet")
    assert splits(tmp_path / "others") == {"train": ["cats-00000-of-00001.parquet", "dogs-00000-of-00001.parquet"]}


NAMES = ["tables [2020]", "a*b", "what?", "[ab]", "[!x]", "x[", "{a,b}", "~", "caf\xe9 #1"]


@pytest.mark.parametrize("name", NAMES)
def test_a_path_that_exists_is_that_path(tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    touch(tmp_path / name / "train.parquet", tmp_path / name / "deeper" / "test.parquet", tmp_path / "a" / "val.parquet")
    touch(tmp_path / "axb" / "val.parquet")
    assert splits(tmp_path / name) == {"test": ["test.parquet"], "train": ["train.parquet"]}
    assert splits(tmp_path / name / "train.parquet") == {"train": ["train.parquet"]}
    assert splits(f"{tmp_path / name}/t*.parquet") == {"train": ["train.parquet"]}
    assert splits(f"{tmp_path / name}/*/*.parquet") == {"test": ["test.parquet"]}
    monkeypatch.chdir(tmp_path)
    if name != "~":
        assert splits(name) == {"test": ["test.parquet"], "train": ["train.parquet"]}
        assert splits(f"{name}/*.parquet") == {"train": ["train.parquet"]}


def test_patterns_still_work(tmp_path: Path) -> None:
    touch(*(tmp_path / f"part{number}" / f"train-{number}.tar" for number in range(3)), tmp_path / "part1" / "notes.txt")
    assert splits(f"{tmp_path}/part[01]/*.tar") == {"train": ["train-0.tar", "train-1.tar"]}
    assert splits(f"{tmp_path}/**/*.tar") == {"train": ["train-0.tar", "train-1.tar", "train-2.tar"]}
    with pytest.raises(Refusal, match="matches no file"):
        splits(f"{tmp_path}/[x]/*.tar")
    with pytest.raises(Refusal, match=r"part\*\*"):
        splits(f"{tmp_path}/part**/*.tar")


def test_hidden_files_are_left_out_and_endings_may_be_large(tmp_path: Path) -> None:
    touch(tmp_path / "train.PARQUET", tmp_path / "._train.parquet", tmp_path / ".cache" / "test.parquet", tmp_path / "a.csv.gz")
    assert splits(tmp_path) == {"train": ["train.PARQUET"]}
    touch(tmp_path / "tars" / "0.tar.GZ", tmp_path / "tars" / "1.tgz", tmp_path / "tars" / "2.tar")
    assert splits(tmp_path / "tars") == {"train": ["0.tar.GZ", "1.tgz", "2.tar"]}
    with pytest.raises(Refusal, match="one kind; it holds parquet, tars"):
        splits(tmp_path)


def test_names_on_the_hub_are_no_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert find_files("owner/name") is None and find_files("name") is None
    touch(tmp_path / "owner" / "name" / "0.tar")
    assert splits("owner/name") == {"train": ["0.tar"]} and os.sep == "/"


SERVICE = ["#recycle", "@eaDir", "$RECYCLE.BIN", "__MACOSX", "old/lost+found", "lost+found/deeper"]


@pytest.mark.parametrize("folder", SERVICE)
@pytest.mark.parametrize("ending", ["parquet", "tar", "tar.gz"])
def test_what_other_programs_keep_is_left_out_and_counted(tmp_path: Path, folder: str, ending: str) -> None:
    """A deleted table must not be trained on, whether a folder or a pattern is given."""
    touch(tmp_path / f"a/train.{ending}", tmp_path / folder / f"old-train.{ending}", tmp_path / folder / f"test.{ending}")
    name = folder.removesuffix("/deeper").removeprefix("old/")
    for path in (tmp_path, f"{tmp_path}/**/*.{ending}"):
        found = find_files(str(path))
        assert found is not None and found.splits == {"train": [str(tmp_path / f"a/train.{ending}")]}
        assert found.left_out == (f"1 service folder of another program left out ({name})",)
    assert len(splits(tmp_path / folder)) == 2, "its own path is meant"
    assert len(splits(f"{tmp_path / folder}/*.{ending}")) == 2


@pytest.mark.parametrize("pattern", ["*.parquet", "*", "*/*.parquet", "**/*.parquet", "*/t*"])
def test_patterns_leave_out_hidden_files_unless_they_name_them(tmp_path: Path, pattern: str) -> None:
    good = [tmp_path / "train.parquet", tmp_path / "a" / "train.parquet"]
    touch(*good, *(file.with_name("._train.parquet") for file in good), tmp_path / ".cache" / "train.parquet")
    assert {name for names in splits(f"{tmp_path}/{pattern}").values() for name in names} == {"train.parquet"}
    assert splits(f"{tmp_path}/._*.parquet") == {"train": ["._train.parquet"]}
    assert splits(f"{tmp_path}/.c*/*.parquet") == {"train": ["train.parquet"]}


def test_a_folder_that_is_named_as_a_file_counts_by_its_files(tmp_path: Path) -> None:
    """As Spark writes a table."""
    for split, numbers in (("train", (0, 1)), ("test", (0,))):
        touch(*(tmp_path / f"{split}.parquet" / f"part-0000{number}.parquet" for number in numbers))
        touch(tmp_path / f"{split}.parquet/_SUCCESS", tmp_path / f"{split}.parquet/.part-00000.parquet.crc")
    expected = {"test": ["part-00000.parquet"], "train": ["part-00000.parquet", "part-00001.parquet"]}
    for path in (tmp_path, f"{tmp_path}/*.parquet", f"{tmp_path}/*.parquet/*.parquet", f"{tmp_path}/**/*.parquet"):
        assert splits(path) == expected
    assert splits(tmp_path / "train.parquet") == {"train": expected["train"]}


def test_bad_entries_beside_tables_are_counted(tmp_path: Path) -> None:
    touch(tmp_path / "train.parquet", tmp_path / "photos" / "1.heic", tmp_path / ".git" / "x.parquet")
    (tmp_path / "gone.parquet").symlink_to(tmp_path / "nowhere")
    (tmp_path / "gone.txt").symlink_to(tmp_path / "nowhere")
    (tmp_path / "up").symlink_to(tmp_path)
    found = find_files(str(tmp_path))
    assert found is not None and list(found.splits) == ["train"]
    assert found.left_out == (
        "1 hidden folder left out (.git)",
        "1 link that cannot be followed left out (gone.parquet)",
        "1 folder that was reached before left out (up)",
    )
    found = find_files(f"{tmp_path}/*.parquet")
    assert found is not None and found.left_out == ("1 link that cannot be followed left out (gone.parquet)",)
