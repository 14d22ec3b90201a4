"""RankMe against numbers computed from the paper's formula in float64 by someone else."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from openjepa.measures.features import rankme

NUMBERS = load_file(Path(__file__).parent / "data" / "rankme.safetensors")
MATRICES = sorted(name.removesuffix("/Z") for name in NUMBERS if name.endswith("/Z"))


def test_all_matrices_are_there() -> None:
    assert MATRICES == ["gauss", "onehot", "power1", "power2_mean", "rank3", "wide"]


@pytest.mark.parametrize("name", MATRICES)
@pytest.mark.parametrize(("eps", "key"), [(0.0, "rankme_eps0"), (1e-7, "rankme_eps1e-07"), (1e-5, "rankme_eps1e-05")])
def test_rankme(name: str, eps: float, key: str) -> None:
    assert rankme(NUMBERS[f"{name}/Z"], eps) == pytest.approx(float(NUMBERS[f"{name}/{key}"]), rel=1e-9)


@pytest.mark.parametrize("name", MATRICES)
def test_rankme_does_not_center(name: str) -> None:
    features = NUMBERS[f"{name}/Z"].double()
    centered = float(NUMBERS[f"{name}/rankme_centred_eps1e-07"])
    assert rankme(features - features.mean(dim=0)) == pytest.approx(centered, rel=1e-9)
    if name == "power2_mean":
        assert abs(rankme(features) - centered) > 10


def test_bf16_features_are_ranked_in_float64() -> None:
    features = NUMBERS["gauss/Z"].bfloat16()
    assert rankme(features) == rankme(features.double())
    assert torch.is_tensor(features) and rankme(features) == pytest.approx(float(NUMBERS["gauss/rankme_eps1e-07"]), rel=1e-2)
