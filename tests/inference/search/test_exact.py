"""Nearest images: equal to a slow restatement in fp64, whatever the blocks; ties, exclusions, windows, what is not finite."""

from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from openjepa.inference.embedding.table import FeatureTable, open_table
from openjepa.inference.search import exact, vectors
from openjepa.inference.search.exact import nearest, nearest_windows, window_cosines
from openjepa.inference.search.vectors import Vectors, picked, place_means, table_mean
from tests.helpers.feature_tables import write_table


def table_of(
    path: Path, number: int = 60, shape: tuple[int, ...] = (24,), dtype: str = "float16", seed: int = 0
) -> FeatureTable:
    """Random features with a common mean, as those of encoders have."""
    rng = np.random.default_rng(seed)
    values = rng.normal(size=(number, *shape)) + 2 * rng.normal(size=shape[-1])
    return open_table(write_table(path, values.astype(dtype)))


def stored(table: FeatureTable) -> NDArray[np.float64]:
    return np.concatenate([np.asarray(block, np.float64) for _, block in table.blocks(1000)])


def slow(values: NDArray[np.float64], query: NDArray[np.float64], skip: int | None = None) -> list[tuple[float, int]]:
    """(-cosine, row) in order, one row after the other."""
    pairs = [(-float(np.dot(row, query) / np.linalg.norm(row) / np.linalg.norm(query)), n) for n, row in enumerate(values)]
    return sorted(pair for pair in pairs if pair[1] != skip)


@pytest.mark.parametrize("name", ["x.npy", "x.parquet"])
@pytest.mark.parametrize("dtype", ["float16", "float32"])
@pytest.mark.parametrize("centered", [False, True])
def test_the_nearest_are_those_of_a_slow_search(
    name: str, dtype: str, centered: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(vectors, "BLOCK_VALUES", 24 * 11)  # several blocks, the last one short
    monkeypatch.setattr(exact, "SCORES", 60 * 2)  # queries in several passes
    table = table_of(tmp_path / name, dtype=dtype)
    values, queries = stored(table), torch.randn(5, 24, dtype=torch.float64)
    mean = table_mean(table) if centered else None
    if centered:
        np.testing.assert_allclose(mean, values.mean(axis=0), atol=1e-6)
        queries -= mean
        values = values - np.asarray(mean)
    seen: list[int] = []
    found = nearest(Vectors(table, mean), queries, 7, [None, 3, 59, None, 0], seen.append)
    assert sum(seen) == 3 * 60
    for answer, query, skip in zip(found, queries.numpy(), [None, 3, 59, None, 0], strict=True):
        expected = slow(values, query, skip)[:7]
        assert answer.rows.tolist() == [row for _, row in expected]
        np.testing.assert_allclose(answer.cosines, [-value for value, _ in expected], atol=1e-12)


def test_equal_images_come_in_the_order_of_their_rows_in_whatever_block(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    values = np.random.default_rng(0).normal(size=(37, 24)).astype(np.float32)
    values[[2, 9, 20, 33, 36]] = values[5]
    table = open_table(write_table(tmp_path / "x.npy", values))
    answers = []
    for rows in (1, 4, 8, 37):
        monkeypatch.setattr(vectors, "BLOCK_VALUES", 24 * rows)
        answers.append(nearest(Vectors(table), torch.from_numpy(values[5:6]), 4)[0])
    assert all(answer.rows.tolist() == [2, 5, 9, 20] for answer in answers)
    assert all(np.array_equal(answer.cosines, answers[0].cosines) for answer in answers)
    assert nearest(Vectors(table), torch.from_numpy(values[5:6]), 4, [9])[0].rows.tolist() == [2, 5, 20, 33]


def test_close_cosines_are_told_apart_beyond_fp32(tmp_path: Path) -> None:
    angles = np.array([3, 1, 2, 5, 4]) * 1e-4  # cosines 1 - angle^2 / 2: apart by less than 1e-7
    values = np.stack([np.cos(angles), np.sin(angles)], axis=1).astype(np.float32)
    table = open_table(write_table(tmp_path / "x.npy", values))
    assert nearest(Vectors(table), torch.tensor([[1.0, 0.0]]), 5)[0].rows.tolist() == [1, 2, 0, 4, 3]


def test_the_best_of_many_that_fp32_cannot_tell_apart_are_found(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    query = rng.normal(size=256)
    table = open_table(write_table(tmp_path / "x.npy", (query + 1e-3 * rng.normal(size=(500, 256))).astype(np.float32)))
    answer = nearest(Vectors(table), torch.from_numpy(query[None]), 5)[0]
    assert answer.rows.tolist() == [row for _, row in slow(stored(table), query)][:5]


def test_more_neighbors_than_images_are_all_images(tmp_path: Path) -> None:
    table = table_of(tmp_path / "x.npy", number=4)
    query = torch.from_numpy(stored(table)[2:3])
    assert sorted(nearest(Vectors(table), query, 10)[0].rows) == [0, 1, 2, 3]
    assert sorted(nearest(Vectors(table), query, 10, [2])[0].rows) == [0, 1, 3]


def test_hundreds_of_equal_images_are_in_the_order_of_their_rows(tmp_path: Path) -> None:
    table = open_table(write_table(tmp_path / "x.npy", np.ones((300, 5), np.float16)))
    assert nearest(Vectors(table), torch.ones(1, 5), 200)[0].rows.tolist() == list(range(200))


def test_a_table_of_one_row(tmp_path: Path) -> None:
    table = table_of(tmp_path / "x.npy", number=1)
    query = torch.from_numpy(stored(table))
    answer = nearest(Vectors(table), query, 3)[0]
    assert answer.rows.tolist() == [0] and answer.cosines[0] == pytest.approx(1)
    assert nearest(Vectors(table), query, 3, [0])[0].rows.tolist() == []


def test_a_vector_without_direction_has_cosine_0(tmp_path: Path) -> None:
    values = np.eye(3, dtype=np.float32)
    values[1] = 0
    table = open_table(write_table(tmp_path / "x.npy", values))
    answer = nearest(Vectors(table), torch.tensor([[1.0, 0.0, -1.0]]), 3)[0]
    assert answer.rows.tolist() == [0, 1, 2] and answer.cosines[1] == 0


@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize("centered", [False, True])
def test_numbers_that_are_not_finite_are_named(value: float, centered: bool, tmp_path: Path) -> None:
    values = np.ones((9, 4), dtype=np.float16)
    values[6, 2] = value
    table = open_table(write_table(tmp_path / "x.npy", values))
    with pytest.raises(ValueError, match=r"features of row 6 \(6\.png\) are not finite.*--precision fp32"):
        nearest(Vectors(table, table_mean(table) if centered else None), torch.ones(1, 4), 3)
    with pytest.raises(ValueError, match="features of a query are not finite"):
        nearest(Vectors(table), torch.full((1, 4), torch.nan), 3)


def test_what_does_not_fit_is_refused(tmp_path: Path) -> None:
    table = table_of(tmp_path / "x.npy")
    with pytest.raises(ValueError, match=r"shape \[1, 23\], but the table has vectors of width 24"):
        nearest(Vectors(table), torch.ones(1, 23), 3)
    with pytest.raises(ValueError, match="top=0 must be at least 1"):
        nearest(Vectors(table), torch.ones(1, 24), 0)


@pytest.mark.parametrize("name", ["x.npy", "x.parquet"])
def test_picked_rows_are_the_stored_ones(name: str, tmp_path: Path) -> None:
    table = table_of(tmp_path / name, shape=(2, 3, 5))
    rows = [0, 1, 6, 7, 30, 58, 59]
    np.testing.assert_array_equal(picked(table, rows).numpy(), stored(table)[rows])


def test_patches_are_averaged_for_whole_images(tmp_path: Path) -> None:
    table = table_of(tmp_path / "x.npy", shape=(2, 3, 5))
    values, query = stored(table).mean(axis=(1, 2)), np.arange(5.0)
    answer = nearest(Vectors(table), torch.from_numpy(query[None]), 60)[0]
    assert answer.rows.tolist() == [row for _, row in slow(values, query)]


@pytest.mark.parametrize("window", [(1, 1), (2, 1), (2, 3), (4, 5)])
@pytest.mark.parametrize("centered", [False, True])
def test_windows_are_averages_of_patches(window: tuple[int, int], centered: bool) -> None:
    features = torch.randn(2, 4, 5, 6, dtype=torch.float64)
    query, means = torch.randn(6, dtype=torch.float64), torch.randn(4, 5, 6, dtype=torch.float64) * centered
    found = window_cosines(features, query, window, means if centered else None)
    assert found.shape == (2, 4 - window[0] + 1, 5 - window[1] + 1)
    for image, row, column in np.ndindex(*found.shape):
        part = (features[image] - means)[row : row + window[0], column : column + window[1]].reshape(-1, 6).mean(dim=0)
        assert float(found[image, row, column]) == pytest.approx(float(torch.cosine_similarity(part, query, dim=0)))


def test_the_best_window_of_each_image_counts_and_its_place_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vectors, "BLOCK_VALUES", 4 * 5 * 6 * 7)
    table = table_of(tmp_path / "x.npy", number=20, shape=(4, 5, 6))
    values, query = stored(table), torch.randn(6, dtype=torch.float64)
    answer = nearest_windows(table, query, (3, 2), 6, skip=4)
    maps = window_cosines(torch.from_numpy(values), query, (3, 2)).numpy()  # of 2 x 4 places
    best = maps.reshape(20, -1).max(axis=1)
    best[4] = -2
    expected = np.argsort(-best, kind="stable")[:6]
    assert answer.rows.tolist() == expected.tolist()
    np.testing.assert_allclose(answer.cosines, best[expected], atol=1e-12)
    assert answer.places is not None
    for row, place in zip(answer.rows, answer.places, strict=True):
        assert maps[row, place[0], place[1]] == pytest.approx(best[row])


def test_equal_windows_give_the_first_place_and_the_first_row(tmp_path: Path) -> None:
    values = np.zeros((5, 3, 3, 4), dtype=np.float16)
    values[..., 1] = 1
    for row in (1, 3):
        values[row, 1:, 2] = values[row, 2, 0] = [1, 0, 0, 0]
    table = open_table(write_table(tmp_path / "x.npy", values))
    answer = nearest_windows(table, torch.tensor([1.0, 0, 0, 0]), (1, 1), 2)
    assert answer.rows.tolist() == [1, 3]
    assert answer.places is not None and answer.places.tolist() == [[1, 2], [1, 2]]


def test_a_window_larger_than_the_grid_is_refused() -> None:
    with pytest.raises(ValueError, match="window of 5 x 2 patches does not fit into the grid of 4 x 4"):
        window_cosines(torch.ones(1, 4, 4, 3), torch.ones(3), (5, 2))


def test_windows_of_huge_features_are_refused_not_lost(tmp_path: Path) -> None:
    values = np.random.default_rng(0).normal(size=(4, 3, 3, 5)).astype(np.float32)
    values[2] = 3e38
    table = open_table(write_table(tmp_path / "x.npy", values))
    with pytest.raises(ValueError, match="cosines are not finite: the features are too large to compare"):
        nearest_windows(table, torch.ones(5), (2, 2), 3)


@pytest.mark.parametrize("shape", [(5,), (3, 4, 5)])
def test_of_equal_images_nothing_is_left_but_zeros(shape: tuple[int, ...], tmp_path: Path) -> None:
    """The averages of equal patches differ from their rounded mean by 1e-8, which has a direction like any other number."""
    one = np.random.default_rng(0).normal(size=shape)
    table = open_table(write_table(tmp_path / "x.npy", np.stack([one] * 7).astype(np.float16)))
    centered = Vectors(table, table_mean(table))
    assert not centered.rows([0, 3]).any()
    for query in (centered.rows([2]), torch.randn(1, 5, dtype=torch.float64)):
        assert not nearest(centered, query, 3)[0].cosines.any()
    assert np.allclose(nearest(Vectors(table), Vectors(table).rows([2]), 3)[0].cosines, 1)


def test_small_differences_around_a_large_mean_are_kept(tmp_path: Path) -> None:
    """A millionth of the mean is more than fp32 rounds by."""
    rng = np.random.default_rng(0)
    mean = rng.normal(size=64)
    values = (mean + 1e-6 * np.linalg.norm(mean) * rng.normal(size=(500, 64)) / 8).astype(np.float32)
    table = open_table(write_table(tmp_path / "x.npy", values))
    centered = Vectors(table, table_mean(table))
    assert bool(centered.rows(list(range(500))).any(dim=1).all())


def test_patches_much_longer_than_their_average(tmp_path: Path) -> None:
    """Blocks and single rows agree: the average is taken in fp64, where patches cancel each other."""
    rng = np.random.default_rng(0)
    places = rng.normal(size=(8, 8, 16))
    places -= places.mean(axis=(0, 1)) * 0.999
    table = open_table(write_table(tmp_path / "x.npy", (places + 1e-3 * rng.normal(size=(40, 8, 8, 16))).astype(np.float32)))
    for vectors_of in (Vectors(table), Vectors(table, table_mean(table))):
        blocks = torch.cat([block.double().clone() for _, block, _ in vectors_of.blocks()])
        rows = vectors_of.rows(list(range(40)))
        assert float((blocks - rows).norm(dim=1).max() / rows.norm(dim=1).min()) < 1e-6


def test_windows_that_equal_the_mean_have_no_direction(tmp_path: Path) -> None:
    one = np.random.default_rng(0).normal(size=(4, 4, 5))
    values = np.stack([one + 1e-8 * number for number in range(6)]).astype(np.float32)
    table = open_table(write_table(tmp_path / "x.npy", values))
    answer = nearest_windows(table, torch.randn(5), (2, 2), 3, place_means(table))
    assert not answer.cosines.any()


def test_a_window_is_found_by_what_it_shows_not_by_its_place(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    places, content = 5 * rng.normal(size=(6, 7, 16)), rng.normal(size=(40, 6, 7, 16))
    content[9, 3:5, 4:6] = content[2, 0:2, 1:3]  # elsewhere in another image
    table = open_table(write_table(tmp_path / "x.npy", (places + content).astype(np.float32)))
    means, values = place_means(table), stored(table)
    np.testing.assert_allclose(means, values.mean(axis=0), atol=1e-6)
    query = torch.from_numpy(values[2, 0:2, 1:3] - means[0:2, 1:3].numpy()).mean(dim=(0, 1))
    found = nearest_windows(table, query, (2, 2), 1, means, skip=2)
    assert found.rows.tolist() == [9] and found.places is not None and found.places.tolist() == [[3, 4]]
    not_centered = nearest_windows(table, torch.from_numpy(values[2, 0:2, 1:3]).mean(dim=(0, 1)), (2, 2), 1, skip=2)
    assert not_centered.places is not None and not_centered.places.tolist() == [[0, 1]]


@pytest.mark.parametrize("k", [1, 3, 5, 40])
def test_the_kth_largest_is_that_of_the_sorted_numbers(k: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exact, "CHUNK", 8)
    for seed in range(30):
        numbers = torch.randint(0, 30, (43,), generator=torch.Generator().manual_seed(seed)).float()
        assert exact._kth_largest(numbers, k) == float(numbers.sort(descending=True).values[k - 1])


@pytest.mark.parametrize("threads", [1, 2, 5])
def test_blocks_on_several_threads_come_in_order(threads: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vectors, "BLOCK_VALUES", 24 * 3)
    monkeypatch.setattr(vectors, "ROUND", 4)
    table, before = table_of(tmp_path / "x.npy"), torch.get_num_threads()
    found = list(vectors.map_blocks(table, lambda first, block: (first, block.double().clone()), threads))
    assert [first for first, _ in found] == list(range(0, 60, 3))
    np.testing.assert_array_equal(torch.cat([block for _, block in found]).numpy(), stored(table))
    assert torch.get_num_threads() == before

    def fail(first: int, _: object) -> None:
        if first > 20:
            raise ValueError(f"row {first}")

    with pytest.raises(ValueError, match="row 21"):
        list(vectors.map_blocks(table, fail, threads))
    assert torch.get_num_threads() == before


@pytest.mark.parametrize("windows", [False, True])
def test_near_ties_close_to_a_large_mean_are_in_their_right_order(windows: bool, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    near = rng.normal(size=(200, 4, 4, 16))
    near[..., 0] = 0
    near /= np.linalg.norm(near, axis=-1, keepdims=True)
    near[..., 0] = 1 + rng.uniform(0, 1e-4, near.shape[:-1])
    values = (10_000 * rng.normal(size=16) + near).astype(np.float32)
    table = open_table(write_table(tmp_path / "x.npy", values))
    mean, query = table_mean(table), np.eye(16)[0]
    if windows:
        means = place_means(table)
        answer = nearest_windows(table, torch.from_numpy(query), (2, 2), 9, means)
        wide = values.astype(np.float64) - means.numpy()
        rows = (wide[:, 1:, 1:] + wide[:, 1:, :-1] + wide[:, :-1, 1:] + wide[:, :-1, :-1]) / 4
        cosines = (rows[..., 0] / np.linalg.norm(rows, axis=-1)).reshape(200, -1).max(axis=1)
    else:
        answer = nearest(Vectors(table, mean), torch.from_numpy(query[None]), 9)[0]
        rows = values.astype(np.float64).mean(axis=(1, 2)) - mean.numpy()
        cosines = rows[:, 0] / np.linalg.norm(rows, axis=-1)
    assert answer.rows.tolist() == np.argsort(-cosines, kind="stable")[:9].tolist()
