"""Layer-wise decay of the learning rate: the nearer a layer is to the pixels, the less it moves (as in BEiT and MAE)."""

from collections.abc import Callable

from torch import nn

from openjepa.types import ParameterRule


def layer_number(name: str, depth: int, prefix: str = "encoder.") -> int:
    """Layer of a parameter of an encoder with `depth` blocks, or of the head on it.

    0: patch embedding, class token and learned positions; l = 1 .. depth: block number l; depth + 1: the last norm and
    everything whose name does not start with `prefix`.
    """
    parts = name.removeprefix(prefix).split(".")
    if not name.startswith(prefix):
        return depth + 1
    if parts[0] in ("patch_embed", "cls_token", "mask_token", "pos_embed"):
        return 0
    return int(parts[1]) + 1 if parts[0] == "blocks" else depth + 1


def layer_scale(layer: int, depth: int, decay: float) -> float:
    """Factor decay ** (depth + 1 - layer) on the learning rate: 1 for the head."""
    return float(decay ** (depth + 1 - layer))


def layer_decay_rules(depth: int, decay: float, prefix: str = "encoder.") -> tuple[ParameterRule, ...]:
    """Two rules per layer for all parameters: without weight decay (biases, norms, class token, positions) and with it."""
    return tuple(
        ParameterRule(_matcher(layer, depth, prefix, is_decayed), is_decayed, layer_scale(layer, depth, decay))
        for layer in range(depth + 2)
        for is_decayed in (False, True)
    )


def _matcher(layer: int, depth: int, prefix: str, is_decayed: bool) -> Callable[[str, nn.Parameter], bool]:
    def matches(name: str, value: nn.Parameter) -> bool:
        return layer_number(name, depth, prefix) == layer and _is_decayed(name, value) == is_decayed

    return matches


def _is_decayed(name: str, value: nn.Parameter) -> bool:
    # class token and positions are 3-D, but biases in what they do
    return value.ndim > 1 and not name.endswith(("cls_token", "pos_embed"))
