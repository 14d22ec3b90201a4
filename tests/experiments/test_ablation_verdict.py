"""Differences between rows are paired by seed, and the verdict follows from them and the published numbers alone."""

import math
import statistics

import pytest

from openjepa.experiments.ablations.ablation_verdict import Ordering, OrderVerdict, Paired, order_words, ordering, paired

VALUES = {"a": {0: 50.0, 1: 54.0, 2: 52.0}, "b": {0: 47.0, 1: 52.0, 2: 49.0}}


def test_the_error_of_two_rows_is_that_of_their_differences() -> None:
    found = paired(VALUES)
    differences = [VALUES["b"][seed] - VALUES["a"][seed] for seed in range(3)]
    assert found.seeds == 3 and found.differences("a")["b"] == pytest.approx(statistics.fmean(differences))
    assert found.error == pytest.approx(statistics.stdev(differences) / math.sqrt(3))


def test_what_a_seed_does_to_all_rows_is_no_noise() -> None:
    moved = {row: {seed: value + 10 * seed for seed, value in found.items()} for row, found in VALUES.items()}
    assert paired(moved).error == pytest.approx(paired(VALUES).error)


def test_only_common_seeds_are_compared() -> None:
    found = paired(VALUES | {"c": {1: 60.0}, "d": {}})
    assert found.seeds == 1 and found.error is None and set(found.means) == {"a", "b", "c"}
    assert found.differences("a") == {"a": 0.0, "b": -2.0, "c": 6.0} and found.differences("d") == {}
    assert paired({}) == Paired({}, 0, None) == paired({"a": {0: 1.0}, "b": {1: 1.0}})


@pytest.mark.parametrize(
    ("means", "error", "verdict"),
    [
        ((50.0, 40.0, 30.0), 1.0, "agrees"),
        ((50.0, 40.0, 39.0), 1.0, "agrees"),
        ((50.0, 49.0, 47.0), 1.0, "partly"),
        ((40.0, 50.0, 30.0), 1.0, "partly"),
        ((30.0, 40.0, 50.0), 1.0, "contradicts"),
        ((50.0, 40.0, 30.0), 20.0, "within noise"),
    ],
)
def test_the_verdict(means: tuple[float, ...], error: float, verdict: OrderVerdict) -> None:
    found = ordering(Paired(dict(zip("abc", means, strict=True)), 2, error), {"a": 54.2, "b": 20.2, "c": 15.5, "not run": 1.0})
    assert found is not None and found.verdict == verdict
    assert found.agree + found.disagree + found.noise == 3
    assert order_words(found, "linear").startswith("The published ordering")


def test_there_is_no_verdict_without_an_error_or_published_differences() -> None:
    assert ordering(Paired({"a": 1.0, "b": 2.0}, 1, None), {"a": 1.0, "b": 2.0}) is None
    assert ordering(Paired({"a": 1.0, "b": 2.0}, 2, 0.1), {"a": 1.0, "b": 1.0}) is None
    assert ordering(Paired({"a": 1.0}, 2, 0.1), {}) is None
    assert order_words(None, "k-NN").startswith("No verdict by k-NN")


def test_a_pair_within_the_noise_counts_for_neither_side() -> None:
    found = ordering(Paired({"a": 2.0, "b": 0.0}, 2, 1.0), {"a": 1.0, "b": 0.0})
    assert found == Ordering(agree=0, disagree=0, noise=1)
