"""All pairs, groups of near-duplicates and outliers: equal to slow restatements, whatever the blocks and the precision."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from openjepa.inference.embedding.table import open_table
from openjepa.inference.search import pairs as pairs_module
from openjepa.inference.search.cleaning import farthest, find_to_clean, typical_cosines
from openjepa.inference.search.pairs import File, Pairs, compare_all, groups_of
from openjepa.inference.search.vectors import Vectors, table_mean
from openjepa.settings.inference import SearchSettings
from tests.helpers.feature_tables import write_table


def clustered(number: int = 50, width: int = 16) -> NDArray[np.float32]:
    """Vectors around a few directions, so that cosines of all sizes occur."""
    rng = np.random.default_rng(1)
    centers = rng.normal(size=(8, width))
    return (centers[rng.integers(0, 8, number)] + rng.normal(size=(number, width)) * rng.uniform(0, 1, (number, 1))).astype(
        np.float32
    )


def cosines_of(values: NDArray[np.floating]) -> NDArray[np.float64]:
    units = values.astype(np.float64) / np.linalg.norm(values.astype(np.float64), axis=1, keepdims=True)
    return units @ units.T


@pytest.fixture(params=[(16, 8), (8, 8), (64, 64)])
def blocks(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pairs_module, "OUTER", request.param[0])
    monkeypatch.setattr(pairs_module, "INNER", request.param[1])
    monkeypatch.setattr(pairs_module, "SEARCHED", 5)


@pytest.mark.parametrize("bf16", [False, True])
@pytest.mark.parametrize("name", ["x.npy", "x.parquet"])
@pytest.mark.usefixtures("blocks")
def test_pairs_are_those_of_a_slow_comparison(bf16: bool, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pairs_module, "supports_bf16", lambda _: bf16)
    values = clustered()
    table = open_table(write_table(tmp_path / name, values))
    seen: list[int] = []
    found, means = compare_all(Vectors(table), threshold=0.7, advance=seen.append)
    expected = cosines_of(values)
    wanted = {(i, j) for i, j in zip(*np.nonzero(np.triu(expected, 1) >= 0.7), strict=True)}
    assert len(wanted) > 20 and found.complete and means is None
    assert set(zip(found.first.tolist(), found.second.tolist(), strict=True)) == wanted
    assert (np.diff(found.cosines) <= 0).all()
    np.testing.assert_allclose(found.cosines, expected[found.first, found.second], atol=1e-6)
    assert sum(seen) == len(table)


@pytest.mark.parametrize("centered", [False, True])
@pytest.mark.usefixtures("blocks")
def test_means_are_those_of_the_nearest_others(centered: bool, tmp_path: Path) -> None:
    values = clustered() + 3
    table = open_table(write_table(tmp_path / "x.npy", values))
    mean = table_mean(table) if centered else None
    _, means = compare_all(Vectors(table, mean), neighbors=4)
    expected = cosines_of(values - np.asarray(mean) if mean is not None else values)
    np.fill_diagonal(expected, -np.inf)
    np.testing.assert_allclose(means, np.sort(expected, axis=1)[:, -4:].mean(axis=1), atol=1e-5)


@pytest.mark.usefixtures("blocks")
def test_of_too_many_pairs_the_most_alike_are_kept(tmp_path: Path) -> None:
    values = clustered()
    table = open_table(write_table(tmp_path / "x.npy", values))
    every, _ = compare_all(Vectors(table), threshold=0.3)
    found, _ = compare_all(Vectors(table), threshold=0.3, max_pairs=9)
    assert not found.complete and every.complete and len(every.first) > 18
    assert found.first.tolist() == every.first[:9].tolist() and found.second.tolist() == every.second[:9].tolist()


@pytest.mark.parametrize("dtype", [np.float16, np.float32])
@pytest.mark.usefixtures("blocks")
def test_equal_features_have_a_cosine_of_exactly_1(dtype: type, tmp_path: Path) -> None:
    values = clustered(60, 300).astype(dtype)
    values[30:50] = values[:20]
    table = open_table(write_table(tmp_path / "x.npy", values))
    for mean in (None, table_mean(table)):
        found, _ = compare_all(Vectors(table, mean), threshold=1.0)
        assert found.first.tolist() == list(range(20)) and found.second.tolist() == list(range(30, 50))


def test_of_countless_equal_images_only_as_many_pairs_as_are_wanted_are_compared(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    compared: list[int] = []
    exactly = pairs_module._cosines

    def counted(*block: Any) -> torch.Tensor:
        compared.append(len(block[2]))
        return exactly(*block)

    monkeypatch.setattr(pairs_module, "SEARCHED", 4)
    monkeypatch.setattr(pairs_module, "_cosines", counted)
    table = open_table(write_table(tmp_path / "x.npy", np.ones((80, 5), np.float16)))
    found, _ = compare_all(Vectors(table), threshold=0.9, max_pairs=100)
    assert found.first.tolist() == [0] * 79 + [1] * 21 and not found.complete
    assert sum(compared) < 3 * 200 < 80 * 79 / 2


def test_one_image_has_no_pairs_and_few_have_all_the_others(tmp_path: Path) -> None:
    one = open_table(write_table(tmp_path / "one.npy", clustered(1)))
    found, means = compare_all(Vectors(one), threshold=-1.0, neighbors=10)
    assert len(found.first) == 0 and means is None and farthest(means, 5) == ()
    values = clustered(3)
    few = open_table(write_table(tmp_path / "few.npy", values))
    _, means = compare_all(Vectors(few), neighbors=10)
    expected = cosines_of(values)
    np.testing.assert_allclose(means, (expected.sum(axis=1) - 1) / 2, atol=1e-6)


def test_what_is_not_finite_is_named(tmp_path: Path) -> None:
    values = clustered()
    values[17, 3] = np.nan
    table = open_table(write_table(tmp_path / "x.npy", values))
    with pytest.raises(ValueError, match=r"row 17 \(17\.png\) are not finite"):
        compare_all(Vectors(table), threshold=0.9)


def test_outliers_are_the_farthest_the_first_row_first_among_equals() -> None:
    found = farthest(np.array([0.9, 0.2, 0.5, 0.2, 0.8]), 3)
    assert [item.row for item in found] == [1, 3, 2]
    assert [item.distance for item in found] == pytest.approx([0.8, 0.8, 0.5])


def pairs_of(*found: tuple[int, int, float]) -> Pairs:
    first, second, values = zip(*found, strict=True)
    return Pairs(np.array(first), np.array(second), np.array(values))


def file(height: int, width: int, size: int = 100, digest: str = "") -> File:
    return File(height, width, size, digest or f"{height}x{width}x{size}")


def test_the_largest_image_of_a_group_is_kept() -> None:
    files = {0: file(10, 10), 1: file(20, 20), 2: file(20, 20, 200), 5: file(9, 9), 6: file(9, 9, 90)}
    groups = groups_of(pairs_of((5, 6, 0.999), (0, 1, 0.99), (1, 2, 0.985), (0, 2, 0.98)), files.get)
    assert [[member.row for member in group.members] for group in groups] == [[5, 6], [2, 1, 0]]
    kept, other, last = groups[1].members
    assert kept.keep and kept.cosine is None
    assert (other.keep, other.duplicate_of, other.cosine) == (False, 2, 0.985)
    assert (last.keep, last.duplicate_of, last.cosine) == (False, 2, 0.98)
    assert (groups[1].highest, groups[1].lowest) == (0.99, 0.98)


def test_no_image_goes_because_of_a_chain() -> None:
    chain = pairs_of((0, 1, 0.99), (1, 2, 0.985), (2, 3, 0.98))
    sizes = {0: file(40, 40), 1: file(30, 30), 2: file(20, 20), 3: file(10, 10)}
    (group,) = groups_of(chain, sizes.get)
    assert [(member.row, member.duplicate_of) for member in group.members] == [(0, None), (2, None), (1, 0), (3, 2)]


def test_the_same_file_is_recognized_and_unreadable_images_are_not_kept_first() -> None:
    files = {0: None, 1: file(5, 5, digest="a"), 2: file(5, 5, digest="a")}
    (group,) = groups_of(pairs_of((0, 1, 0.99), (1, 2, 1.0), (0, 2, 0.99)), files.get)
    assert [(item.row, item.keep, item.identical) for item in group.members] == [
        (1, True, None),
        (2, False, True),
        (0, False, None),
    ]
    (unknown,) = groups_of(pairs_of((3, 8, 0.99)), lambda _: None)
    assert [(item.row, item.keep) for item in unknown.members] == [(3, True), (8, False)]


def test_a_cosine_in_bf16_is_never_farther_off_than_the_margin() -> None:
    values = torch.nn.functional.normalize(torch.rand(400, 7), dim=1)
    off = ((values.bfloat16() @ values.bfloat16().T).float() - values @ values.T).abs().max()
    assert 1e-4 < float(off) < pairs_module.MARGIN[torch.bfloat16]


def test_usual_cosines_are_those_of_pairs_of_different_images(tmp_path: Path) -> None:
    values = clustered(30)
    cosines = cosines_of(values)[np.triu_indices(30, 1)]
    table = open_table(write_table(tmp_path / "x.npy", values))
    assert typical_cosines(Vectors(table)) == pytest.approx(tuple(np.percentile(cosines, (50, 99))), abs=1e-6)
    assert typical_cosines(Vectors(open_table(write_table(tmp_path / "one.npy", values[:1])))) is None


@pytest.mark.parametrize(("center", "end"), [("yes", ": raise --threshold"), ("no", "what all images share with --center yes")])
def test_centering_is_only_advised_where_it_is_not_done(center: str, end: str, tmp_path: Path) -> None:
    write_table(tmp_path / "x.npy", np.random.default_rng(0).normal(size=(120, 8)).astype(np.float16))
    said: list[str] = []
    settings = SearchSettings(table=tmp_path / "x.npy", duplicates=True, picture=False, center=center, threshold=-0.5)  # type: ignore[arg-type]
    find_to_clean(settings, said.append)
    assert "more than one of 100 pairs drawn at random" in said[-1] and said[-1].endswith(end)
