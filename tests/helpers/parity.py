"""Helpers of the parity tests: recorded numbers of published programs, and their names of parameters.

Those of the rivals are too large for this repository. They lie in `shared/golden` beside the checkout; a test
that needs them is skipped, and says so, where they are absent.
"""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from torch import Tensor

FOLDER = Path(__file__).parents[2] / ".." / "shared" / "golden"
FORWARD, LOSS, SCHEDULE = 2e-5, 1e-5, 1e-12
"""Absolute tolerances of a float32 CPU implementation, as the README of the files gives them."""


def read_golden(name: str) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Tensors and header of `<name>.safetensors`; skips the test where the file is absent."""
    path = FOLDER / f"{name}.safetensors"
    if not path.is_file():
        pytest.skip(f"the recorded numbers {path.name} are not in shared/golden beside the checkout")
    with safe_open(path, "pt") as file:
        return {key: file.get_tensor(key) for key in file.keys()}, json.loads(file.metadata()["json"])  # noqa: SIM118


def assert_close(ours: Tensor, theirs: Tensor, tolerance: float = FORWARD) -> None:
    """Equal shapes and values within an absolute tolerance."""
    torch.testing.assert_close(ours, theirs, rtol=0, atol=tolerance)


def assert_gradient(ours: Tensor | None, theirs: Tensor) -> None:
    """A gradient within 1e-6 times its largest entry (or times 1)."""
    assert ours is not None
    assert_close(ours, theirs, 1e-6 * max(1.0, theirs.abs().max().item()))


def assert_trained(
    ours: dict[str, Tensor], theirs: dict[str, Tensor], noise: dict[str, float], rates: Tensor, allowed: float = 5e-6
) -> None:
    """Weights after steps with these learning rates: `allowed` + 4 times what separates the recorded run from one in float64.

    Biases of the keys have a gradient of 0 in exact arithmetic, because softmax does not see them. Adam divides what rounding
    leaves of it by its own size, so in every step a bias moves by up to the rate, in a direction that differs between
    processors: after all steps two right runs differ by up to twice the sum of the rates. Biases of queries and values do not.
    """
    assert theirs and ours.keys() == theirs.keys()
    for name, value in theirs.items():
        if name.endswith("qkv.bias"):
            (query, key, rest), expected = ours[name].chunk(3), value.chunk(3)
            assert_close(key, expected[1], 2 * rates.sum().item())
            assert_close(torch.cat([query, rest]), torch.cat([expected[0], expected[2]]), allowed)
            continue
        assert_close(ours[name], value, allowed + 4 * noise[name])


DATA = Path(__file__).parents[1] / "parity" / "data"


def read(name: str) -> dict[str, Tensor]:
    with safe_open(DATA / f"{name}.safetensors", "pt") as file:
        return {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118


PREDICTOR_NAMES = {"predictor_embed": "embed", "predictor_blocks": "blocks", "predictor_norm": "norm", "predictor_proj": "proj"}
FIXED = ("pos_embed", "predictor_pos_embed")


def part(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """The tensors whose names start with `prefix`, without it."""
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}


def encoder_state(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Our encoder's state: the same names, without the fixed position table."""
    return {name: value for name, value in tensors.items() if name not in FIXED}


def predictor_name(name: str) -> str:
    """Our name of one parameter of the predictor."""
    first, _, rest = name.partition(".")
    return f"{PREDICTOR_NAMES.get(first, first)}.{rest}" if rest else name


def predictor_state(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Our predictor's state."""
    return {predictor_name(name): value for name, value in tensors.items() if name not in FIXED}
