"""AdamW with a method's parameter groups, rates set from schedules, and the check for finite numbers before a weight moves."""

from collections.abc import Iterable
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from openjepa.settings.optimization import OptimizationSettings
from openjepa.types import ParameterRule


def build_optimizer(
    named_parameters: Iterable[tuple[str, nn.Parameter]], rules: tuple[ParameterRule, ...], settings: OptimizationSettings
) -> torch.optim.AdamW:
    """Fused AdamW over the parameters that require gradients, one group per rule that matches any; the first match counts."""
    trainable = [(name, value) for name, value in named_parameters if value.requires_grad]
    members: list[list[nn.Parameter]] = [[] for _ in rules]
    for name, value in trainable:
        index = next((i for i, rule in enumerate(rules) if rule.matches(name, value)), None)
        if index is None:
            raise ValueError(f"no parameter rule matches {name!r}; a method's rules must end with one that matches everything")
        members[index].append(value)
    groups = [
        {"params": values, "weight_decay": 0.0, "decay": rule.decay, "lr_scale": rule.lr_scale, "clip": rule.clip}
        for values, rule in zip(members, rules, strict=True)
        if values
    ]
    fused = all(value.device.type in ("cpu", "cuda") for _, value in trainable)
    return torch.optim.AdamW(groups, lr=settings.lr, betas=(settings.beta1, settings.beta2), eps=settings.eps, fused=fused)


def set_rates(optimizer: torch.optim.Optimizer, learning_rate: float, weight_decay: float) -> None:
    """Sets the learning rate and weight decay of every group for the step about to be taken."""
    for group in optimizer.param_groups:
        group["lr"] = learning_rate * group["lr_scale"]
        group["weight_decay"] = weight_decay if group["decay"] else 0.0


def gradient_norm(optimizer: torch.optim.Optimizer) -> Float[Tensor, ""]:
    """Euclidean norm of all gradients; not finite where any of them is not."""
    gradients = [value.grad for group in optimizer.param_groups for value in group["params"] if value.grad is not None]
    return torch.nn.utils.get_total_norm(gradients)


def clip_gradients(
    optimizer: torch.optim.Optimizer, norm: Float[Tensor, ""], limit: float, mode: Literal["global", "per_tensor"] = "global"
) -> None:
    """Scales gradients by min(1, limit / (norm + 1e-6)); groups whose rule says so are left alone.

    `global`: one norm of all that are clipped (`norm`, where that is all there are); `per_tensor`: each parameter's own, as in
    the released DINO and iBOT code.
    """
    groups = [group for group in optimizer.param_groups if group["clip"]]
    parameters = [value for group in groups for value in group["params"] if value.grad is not None]
    gradients = [value.grad for value in parameters]
    if not parameters:
        return
    if mode == "global":
        whole = norm if len(groups) == len(optimizer.param_groups) else torch.nn.utils.get_total_norm(gradients)
        torch.nn.utils.clip_grads_with_norm_(parameters, limit, whole)
        return
    norms = torch.stack(torch._foreach_norm(gradients))
    torch._foreach_mul_(gradients, list((limit / (norms + 1e-6)).clamp(max=1.0).unbind()))
