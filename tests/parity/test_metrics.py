"""alpha-ReQ and LiDAR against numbers computed from the papers' formulas in float64 by someone else."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from openjepa.measures.features import alpha_req, lidar

DATA = Path(__file__).parent / "data"
NUMBERS = load_file(DATA / "metrics.safetensors")
MATRICES = {name: value for name, value in load_file(DATA / "rankme.safetensors").items() if name.endswith("/Z")}
SPECTRA = sorted(name.removesuffix("/alpha_weighted") for name in NUMBERS if name.endswith("/alpha_weighted"))
GROUPS = sorted(name.removesuffix("/X") for name in NUMBERS if name.endswith("/X"))


def test_all_cases_are_there() -> None:
    assert SPECTRA == ["gauss", "onehot", "power1", "power2_mean", "wide"] and GROUPS == ["lidar_a", "lidar_b", "lidar_few"]


@pytest.mark.parametrize("name", SPECTRA)
def test_alpha_req(name: str) -> None:
    features = MATRICES[f"{name}/Z"]
    first, last = NUMBERS[f"{name}/alpha_fit_ranks"].tolist()
    for key, found in (
        ("alpha_weighted", alpha_req(features, first, last)),
        ("alpha_unweighted", alpha_req(features, first, last, weighted=False)),
        ("alpha_all_ranks_unweighted", alpha_req(features, 1, None, weighted=False)),
    ):
        assert found == pytest.approx(float(NUMBERS[f"{name}/{key}"]), rel=1e-9, abs=1e-12), key


@pytest.mark.parametrize("name", SPECTRA)
@pytest.mark.parametrize("first", [1, 4, 9])
def test_alpha_req_is_the_fit_of_the_known_eigenvalues(name: str, first: int) -> None:
    eigenvalues = NUMBERS[f"{name}/eigenvalues"].numpy()
    ranks = np.arange(first, min(100, len(eigenvalues)) + 1)
    # polyfit squares its weights
    slope = np.polyfit(np.log(ranks), np.log(eigenvalues[ranks - 1]), 1, w=np.sqrt(1 / ranks))[0]
    assert alpha_req(MATRICES[f"{name}/Z"], first) == pytest.approx(-slope, rel=1e-8, abs=1e-12)


def test_rounding_of_the_features_is_no_spectrum() -> None:
    assert len(NUMBERS["rank3/eigenvalues"]) == 3
    assert math.isnan(alpha_req(MATRICES["rank3/Z"]))
    known = NUMBERS["rank3/eigenvalues"].numpy()
    slope = np.polyfit(np.log([1, 2, 3]), np.log(known), 1)[0]
    assert alpha_req(MATRICES["rank3/Z"], 1, None, weighted=False) == pytest.approx(-slope, rel=1e-8)


@pytest.mark.parametrize("name", GROUPS)
def test_lidar(name: str) -> None:
    groups = NUMBERS[f"{name}/X"]
    for key, found in (
        ("unbiased", lidar(groups)),
        ("biased", lidar(groups, biased=True)),
        ("delta0_01", lidar(groups, delta=0.01)),
        ("spt", lidar(groups, eps=1e-8, eps_on="eigenvalues")),
    ):
        assert found == pytest.approx(float(NUMBERS[f"{name}/{key}"]), rel=1e-9), key


@pytest.mark.parametrize("name", GROUPS)
@pytest.mark.parametrize("eps", [1e-9, 1e-5])
def test_lidar_is_the_entropy_of_the_known_eigenvalues(name: str, eps: float) -> None:
    eigenvalues = NUMBERS[f"{name}/eigenvalues"].clamp(min=0)  # rounding leaves some of the zeros of `few` below 0
    shares = eigenvalues / eigenvalues.sum() + eps
    expected = float(torch.exp(-(shares * shares.log()).sum()))
    assert lidar(NUMBERS[f"{name}/X"], eps=eps) == pytest.approx(expected, rel=1e-8)
