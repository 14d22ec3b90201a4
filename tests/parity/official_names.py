"""Helper of the parity tests: parameter names of the released I-JEPA code -> ours."""

from torch import Tensor

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
