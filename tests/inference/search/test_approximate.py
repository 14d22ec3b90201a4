"""The index beside a table: found neighbors, exact cosines, made once and made anew when the table changes."""

import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch

pytest.importorskip("usearch", reason="needs the extra search")

from openjepa.cli import main
from openjepa.inference.embedding.table import FeatureTable, open_table
from openjepa.inference.search import approximate
from openjepa.inference.search.approximate import index_paths, open_index
from openjepa.inference.search.exact import nearest
from openjepa.inference.search.vectors import Vectors
from tests.helpers.feature_tables import write_table


def table_of(path: Path, number: int = 400, seed: int = 0) -> FeatureTable:
    values = np.random.default_rng(seed).normal(size=(number, 16)) + 1
    return open_table(write_table(path, values.astype(np.float16)))


@pytest.mark.parametrize("centered", [False, True])
def test_it_finds_what_the_exact_search_finds(centered: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(approximate, "ADDED", 64)
    table, said = table_of(tmp_path / "x.npy"), []
    index = open_index(table, centered, said.append)
    mean = index.vectors.mean
    assert (mean is not None) == centered and index.recall > 0.99 and "nearest 10 of a sample" in said[0]
    queries = Vectors(table, mean).rows(list(range(20)))
    found, exact = index.nearest(queries, 5, list(range(20))), nearest(Vectors(table, mean), queries, 5, list(range(20)))
    same = [a.rows.tolist() == b.rows.tolist() for a, b in zip(found, exact, strict=True)]
    assert sum(same) >= 19
    for a, b in zip(found, exact, strict=True):
        if a.rows.tolist() == b.rows.tolist():
            np.testing.assert_array_equal(a.cosines, b.cosines)


def test_equal_images_are_as_good_as_each_other(tmp_path: Path) -> None:
    values = np.random.default_rng(0).normal(size=(8, 16)).repeat(40, axis=0)
    assert open_index(open_table(write_table(tmp_path / "x.npy", values.astype(np.float16))), False, str).recall > 0.99
    assert open_index(open_table(write_table(tmp_path / "one.npy", values[:1].astype(np.float16))), False, str).recall == 1


def test_it_is_made_once_and_anew_for_other_features(tmp_path: Path) -> None:
    table, said = table_of(tmp_path / "x.npy"), []
    path, about = index_paths(table)
    open_index(table, True, said.append)
    made = path.stat().st_mtime_ns
    index = open_index(open_table(table.path), True, said.append)
    assert path.stat().st_mtime_ns == made and len(said) == 1
    queries = torch.randn(3, 16)
    once = index.nearest(queries, 4)
    assert [item.rows.tolist() for item in index.nearest(queries, 4)] == [item.rows.tolist() for item in once]
    open_index(table, False, said.append)
    assert (
        "was made of other features, or by another version: it is made anew" in said[1]
        and not json.loads(about.read_text())["centered"]
    )
    other = table_of(tmp_path / "x.npy", seed=1)
    os.utime(other.path, ns=(1, 1))
    index = open_index(other, False, said.append)
    assert len(said) == 5
    assert index.nearest(Vectors(other).rows([7]), 1)[0].rows.tolist() == [7]


@pytest.mark.parametrize("mean", [[], [1.0, 2.0], ["a"] * 16, [float("nan")] * 16, None])
def test_an_index_with_a_damaged_mean_is_made_anew(mean: object, tmp_path: Path) -> None:
    table, said = table_of(tmp_path / "x.npy"), []
    about = index_paths(table)[1]
    queries = open_index(table, True, said.append).vectors.rows([7])
    about.write_text(json.dumps(json.loads(about.read_text()) | {"mean": mean}))
    index = open_index(table, True, said.append)
    assert "it is made anew" in said[1] and index.nearest(queries, 1)[0].rows.tolist() == [7]


def test_an_interrupted_build_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    table = table_of(tmp_path / "x.npy")

    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(approximate, "_add", interrupted)
    with pytest.raises(KeyboardInterrupt):
        open_index(table, True, str)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["x.csv", "x.json", "x.npy"]


def test_a_new_index_is_never_described_by_an_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    table, said = table_of(tmp_path / "x.npy"), []
    open_index(table, True, str)

    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(approximate, "asdict", interrupted)  # between the index and what it says of itself
        open_index(table, False, str)
    open_index(table, True, said.append)
    assert "it is made anew" in said[0]


def test_a_folder_that_cannot_be_written_to_is_named_before_the_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    table = table_of(tmp_path / "x.npy")
    monkeypatch.setattr(os, "access", lambda path, mode: not (Path(path).absolute() == tmp_path and mode & os.W_OK))
    monkeypatch.setattr(approximate, "_build", None)
    with pytest.raises(ValueError, match=r"makes the index .*x\.npy\.usearch, but its folder cannot be written to"):
        open_index(table, True, str)
    monkeypatch.chdir(tmp_path)
    for argv in (["--row", "0"], ["--duplicates"], ["--row", "0", "--output", str(tmp_path / "x.png")]):
        with pytest.raises(SystemExit, match="2"):
            main(["search", "x.npy", *argv])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["x.csv", "x.json", "x.npy"]


def test_ctrl_c_in_the_library_is_one(tmp_path: Path) -> None:
    from openjepa.inference.search.approximate import _add

    class Stopped:
        def add(self, *_: object, **__: object) -> None:
            raise RuntimeError("Operation has been terminated")

    with pytest.raises(KeyboardInterrupt):
        _add(Stopped(), 0, torch.ones(2, 3), lambda _: None)


def test_a_damaged_index_is_named(tmp_path: Path) -> None:
    table = table_of(tmp_path / "x.npy")
    open_index(table, True, str)
    path, _ = index_paths(table)
    path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(ValueError, match=r"x\.npy\.usearch is damaged: delete it"):
        open_index(table, True, str)


def test_the_command_uses_it(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    table_of(tmp_path / "x.npy")
    main(["search", "x.npy", "--row", "3", "--json", "--no-picture"])
    exact = capsys.readouterr().out
    main(["search", "x.npy", "--row", "3", "--json", "--no-picture", "--approximate"])
    output = capsys.readouterr()
    assert output.out == exact and "x.npy.usearch: " in output.err


def test_patches_have_no_index_of_regions(tmp_path: Path) -> None:
    from openjepa.inference.search.queries import Query
    from openjepa.inference.search.search_run import Opened, _by_index
    from openjepa.settings.inference import SearchSettings

    values = np.random.default_rng(0).normal(size=(5, 2, 2, 4)).astype(np.float16)
    opened = Opened(open_table(write_table(tmp_path / "p.npy", values)), False, None)
    query = Query("x", torch.ones(4), places=(slice(0, 1), slice(0, 1)))
    with pytest.raises(ValueError, match="--approximate finds whole images, not regions in a table of patches"):
        _by_index(SearchSettings(), opened, [query], [None], str)


def test_without_the_package_the_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "usearch", None)
    with pytest.raises(ValueError, match=r"pip install 'openjepa\[search\]'"):
        open_index(table_of(tmp_path / "x.npy"), True, str)
