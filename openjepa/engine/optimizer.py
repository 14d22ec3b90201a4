"""AdamW, alone or beside Muon, with a method's parameter groups, its rates, and the norm and clipping of gradients.

With layer-wise decay of the learning rate, a layer moves less the nearer it is to the pixels (as in BEiT and MAE).
"""

from collections.abc import Callable, Iterable
from typing import Any, Literal, final

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from openjepa import operators
from openjepa.engine import distributed
from openjepa.settings.run import OptimizationSettings
from openjepa.types import ParameterRule


def build_optimizer(
    named_parameters: Iterable[tuple[str, nn.Parameter]], rules: tuple[ParameterRule, ...], settings: OptimizationSettings
) -> torch.optim.Optimizer:
    """The optimizer of the parameters that require gradients. Each has the group of the first rule that matches it."""
    trainable = [(name, value) for name, value in named_parameters if value.requires_grad]
    fused = all(value.device.type in ("cpu", "cuda") for _, value in trainable)
    by_muon = [(name, value) for name, value in trainable if settings.optimizer == "muon" and is_hidden_matrix(name, value)]
    by_adamw = [
        (name, value) for name, value in trainable if settings.optimizer == "adamw" or not is_hidden_matrix(name, value)
    ]
    betas = (settings.beta1, settings.beta2)
    adamw = torch.optim.AdamW(_groups(by_adamw, rules), lr=settings.lr, betas=betas, eps=settings.eps, fused=fused)
    if settings.optimizer == "adamw":
        return adamw
    muon = torch.optim.Muon(
        _groups(by_muon, rules), lr=settings.lr, momentum=settings.muon_momentum, adjust_lr_fn="match_rms_adamw"
    )
    return MuonBesideAdamW(muon, adamw)


def is_hidden_matrix(name: str, value: nn.Parameter) -> bool:
    """True for the weight matrices inside of transformer blocks. Heads, embeddings and tables are outside of them."""
    return value.ndim == 2 and "blocks" in name.split(".")[:-1]


def _groups(trainable: Iterable[tuple[str, nn.Parameter]], rules: tuple[ParameterRule, ...]) -> list[dict[str, Any]]:
    """The parameter groups, one for each rule that is the first to match a parameter."""
    members: list[list[nn.Parameter]] = [[] for _ in rules]
    for name, value in trainable:
        index = next((i for i, rule in enumerate(rules) if rule.matches(name, value)), None)
        if index is None:
            raise ValueError(f"no parameter rule matches {name!r}; a method's rules must end with one that matches everything")
        members[index].append(value)
    return [
        {"params": values, "weight_decay": 0.0, "decay": rule.decay, "lr_scale": rule.lr_scale, "clip": rule.clip}
        for values, rule in zip(members, rules, strict=True)
        if values
    ]


@final
class MuonBesideAdamW(torch.optim.Optimizer):
    """Two optimizers that look like one: a checkpoint, clipping and the rates see all groups and all moments.

    Muon (Jordan 2024, kellerjordan.github.io/posts/muon) moves a matrix along its momentum with all singular values near 1,
    which five Newton-Schulz iterations in bf16 give. The matrix of queries, keys and values counts as one.
    """

    def __init__(self, muon: torch.optim.Muon, adamw: torch.optim.AdamW) -> None:
        """Takes over the groups of both, which have different parameters."""
        self._parts: dict[str, torch.optim.Optimizer] = {"muon": muon, "adamw": adamw}
        groups = [{**group, "moved_by": name} for name, part in self._parts.items() for group in part.param_groups]
        super().__init__(groups, {})

    def step(self, closure: None = None) -> None:  # type: ignore[override]  # no loss is computed here
        """One step of each optimizer, with the groups and moments as they are now (a checkpoint may have replaced them)."""
        for name, part in self._parts.items():
            part.state = self.state
            part.param_groups = [group for group in self.param_groups if group["moved_by"] == name]
            part.step()


def set_rates(optimizer: torch.optim.Optimizer, learning_rate: float, weight_decay: float) -> None:
    """Sets the learning rate and weight decay of every group for the step about to be taken."""
    for group in optimizer.param_groups:
        group["lr"] = learning_rate * group["lr_scale"]
        group["weight_decay"] = weight_decay if group["decay"] else 0.0


def gradient_norm(optimizer: torch.optim.Optimizer) -> Float[Tensor, ""]:
    """Euclidean norm of all gradients, over all processes that hold parts of them. It is not finite if any gradient is not."""
    gradients = [value.grad for group in optimizer.param_groups for value in group["params"] if value.grad is not None]
    return _whole_norm(gradients)


def _whole_norm(gradients: list[Tensor]) -> Float[Tensor, ""]:
    norm = torch.nn.utils.get_total_norm(gradients)
    return norm.full_tensor() if isinstance(norm, DTensor) else norm


def clip_gradients(
    optimizer: torch.optim.Optimizer, norm: Float[Tensor, ""], limit: float, mode: Literal["global", "per_tensor"] = "global"
) -> None:
    """Scales gradients by min(1, limit / (norm + 1e-6)). Groups whose rule forbids it are not clipped.

    `mode`: `global` uses one norm of all gradients that are clipped, which is `norm` if every group is. `per_tensor` uses each
    parameter's own norm, as in the released DINO and iBOT code.
    """
    groups = [group for group in optimizer.param_groups if group["clip"]]
    parameters = [value for group in groups for value in group["params"] if value.grad is not None]
    gradients = [value.grad for value in parameters]
    if not parameters:
        return
    if mode == "global":
        whole = norm if len(groups) == len(optimizer.param_groups) else _whole_norm(gradients)
        torch.nn.utils.clip_grads_with_norm_(parameters, limit, whole)
        return
    parts = [value.to_local() if isinstance(value, DTensor) else value for value in gradients]
    norms = operators.norms(parts)
    if isinstance(gradients[0], DTensor):  # each process holds a part of every gradient
        norms = distributed.sum_over_ranks(norms.square()).sqrt()
    operators.scale_(parts, (limit / (norms + 1e-6)).clamp(max=1.0))


def layer_number(name: str, depth: int, prefix: str = "encoder.") -> int:
    """Number of the layer of a parameter, in an encoder with `depth` blocks and the head on it.

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
    """Factor on the learning rate of a layer: decay ** (depth + 1 - layer), which is 1 for the head."""
    return float(decay ** (depth + 1 - layer))


def layer_decay_rules(depth: int, decay: float, prefix: str = "encoder.") -> tuple[ParameterRule, ...]:
    """Rules for all parameters, two per layer: without weight decay (biases, norms, class token, positions) and with it."""
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
    # class token and positions have three axes, but act as biases
    return value.ndim > 1 and not name.endswith(("cls_token", "pos_embed"))
