"""SGD with Nesterov momentum and LARS for many small models at once, each with its own learning rate and weight decay.

All parameters have the models on their first axis, so that one operation moves all of them. Whatever a model does, also when it
becomes infinite, touches no other.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

MOMENTUM = 0.9
TRUST_COEFFICIENT = 0.001
"""eta of You et al. (2017)."""


class _Stacked(ABC):
    """What both have: parameters, their momenta, and the order of a step."""

    def __init__(
        self,
        parameters: Sequence[Float[Tensor, "L ..."]],
        is_decayed: Sequence[bool],
        rates: Float[Tensor, " L"],
        decays: Float[Tensor, " L"],
    ) -> None:
        """`parameters` are changed in place; `is_decayed` says of each whether weight decay applies to it."""
        self._parameters, self._is_decayed = list(parameters), list(is_decayed)
        self._rates, self._decays = rates, decays
        self._momenta = [torch.zeros_like(value) for value in parameters]

    @torch.no_grad()
    def step(self, gradients: Sequence[Float[Tensor, "L ..."]], factor: float) -> None:
        """Moves the parameters; the rates are multiplied by `factor`. Without synchronization with the device."""
        parts = zip(self._parameters, gradients, self._momenta, self._is_decayed, strict=True)
        for value, gradient, momentum, is_decayed in parts:
            change = gradient + _along(self._decays, value) * value if is_decayed else gradient
            value.sub_(_along(self._rates * factor, value) * self._direction(value, change, momentum))

    @abstractmethod
    def _direction(self, value: Tensor, change: Tensor, momentum: Tensor) -> Tensor:
        """Adds `change`, the gradient with its decay, to `momentum` in place; what is subtracted, but for the rate."""


class StackedSgd(_Stacked):
    """SGD with Nesterov momentum as torch.optim.SGD does it: b = m b + g + decay w; w = w - rate (g + decay w + m b)."""

    def _direction(self, value: Tensor, change: Tensor, momentum: Tensor) -> Tensor:
        momentum.mul_(MOMENTUM).add_(change)
        return change + MOMENTUM * momentum


class StackedLars(_Stacked):
    """LARS (You et al., 2017): b = m b + trust (g + decay w); w = w - rate b, trust = eta |w| / |g + decay w|.

    Trust and norms are those of one parameter of one model; where a norm is zero the trust is 1. Parameters that are vectors in
    a model (biases, BatchNorm) have trust 1, too, but are decayed where `is_decayed` says so, as in the authors' VISSL, which
    decays a linear layer with its bias. The denominator is the norm of the sum, as in later uses of LARS for linear probes;
    You et al. write |g| + decay |w|.
    """

    def _direction(self, value: Tensor, change: Tensor, momentum: Tensor) -> Tensor:
        is_matrix = value.dim() > 2
        return momentum.mul_(MOMENTUM).add_(_trusted(value, change) if is_matrix else change)


def _trusted(value: Float[Tensor, "L ..."], change: Float[Tensor, "L ..."]) -> Float[Tensor, "L ..."]:
    """The change times each model's trust ratio."""
    size, change_size = value.flatten(1).norm(dim=1), change.flatten(1).norm(dim=1)
    known = (size > 0) & (change_size > 0)
    trust = torch.where(known, TRUST_COEFFICIENT * size / change_size.clamp(min=1e-30), 1.0)
    return change * _along(trust, value)


def _along(numbers: Float[Tensor, " L"], value: Float[Tensor, "L ..."]) -> Float[Tensor, "L ..."]:
    """One number per model, shaped to be multiplied with a parameter."""
    return numbers.view(-1, *(1,) * (value.dim() - 1))
