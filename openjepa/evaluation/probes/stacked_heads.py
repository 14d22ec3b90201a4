"""Many linear heads trained in one pass: each kind of features, with and without BatchNorm, at each setting of a sweep.

Heads on the same features are rows of one matrix, so a step takes four matrix products for any number of heads. The optimizers,
SGD with Nesterov momentum and LARS, keep the heads on the first axis of every parameter. Each head has its own learning rate
and weight decay, and one operation updates all heads. Heads do not affect each other, even if one diverges.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional

from openjepa.settings.evaluation import HeadOptimizer

MOMENTUM = 0.9
TRUST_COEFFICIENT = 0.001
"""eta of You et al. (2017)."""


class _Stacked(ABC):
    """An optimizer of many small models: their parameters, their momenta, and the update step."""

    def __init__(
        self,
        parameters: Sequence[Float[Tensor, "L ..."]],
        is_decayed: Sequence[bool],
        rates: Float[Tensor, " L"],
        decays: Float[Tensor, " L"],
    ) -> None:
        """`parameters` are changed in place. Weight decay applies to those whose entry of `is_decayed` is True."""
        self._parameters, self._is_decayed = list(parameters), list(is_decayed)
        self._rates, self._decays = rates, decays
        self._momenta = [torch.zeros_like(value) for value in parameters]

    @torch.no_grad()
    def step(self, gradients: Sequence[Float[Tensor, "L ..."]], factor: float) -> None:
        """Updates the parameters with the learning rates times `factor`. Does not wait for the device."""
        parts = zip(self._parameters, gradients, self._momenta, self._is_decayed, strict=True)
        for value, gradient, momentum, is_decayed in parts:
            change = gradient + _along(self._decays, value) * value if is_decayed else gradient
            value.sub_(_along(self._rates * factor, value) * self._direction(value, change, momentum))

    @abstractmethod
    def _direction(self, value: Tensor, change: Tensor, momentum: Tensor) -> Tensor:
        """Adds `change`, the gradient with weight decay, to `momentum` in place. Returns the step for a learning rate of 1."""


class StackedSgd(_Stacked):
    """SGD with Nesterov momentum as in torch.optim.SGD: b = m b + g + decay w; w = w - rate (g + decay w + m b)."""

    def _direction(self, value: Tensor, change: Tensor, momentum: Tensor) -> Tensor:
        momentum.mul_(MOMENTUM).add_(change)
        return change + MOMENTUM * momentum


class StackedLars(_Stacked):
    """LARS (You et al., 2017): b = m b + trust (g + decay w); w = w - rate b, trust = eta |w| / |g + decay w|.

    Trust and norms belong to one parameter of one model. If a norm is zero, the trust is 1. Vectors (biases, BatchNorm) also
    have trust 1, but weight decay applies to them if `is_decayed` says so, as in the authors' VISSL, where a linear layer's
    bias is decayed. The denominator is the norm of the sum, as in later uses of LARS for linear probes; You et al. write
    |g| + decay |w|.
    """

    def _direction(self, value: Tensor, change: Tensor, momentum: Tensor) -> Tensor:
        is_matrix = value.dim() > 2
        return momentum.mul_(MOMENTUM).add_(_trusted(value, change) if is_matrix else change)


def _trusted(value: Float[Tensor, "L ..."], change: Float[Tensor, "L ..."]) -> Float[Tensor, "L ..."]:
    """`change` times each model's trust ratio."""
    size, change_size = value.flatten(1).norm(dim=1), change.flatten(1).norm(dim=1)
    known = (size > 0) & (change_size > 0)
    trust = torch.where(known, TRUST_COEFFICIENT * size / change_size.clamp(min=1e-30), 1.0)
    return change * _along(trust, value)


def _along(numbers: Float[Tensor, " L"], value: Float[Tensor, "L ..."]) -> Float[Tensor, "L ..."]:
    """Reshapes one number per model so that it can be multiplied with a parameter."""
    return numbers.view(-1, *(1,) * (value.dim() - 1))


BATCH_NORM_EPS = 1e-5
BATCH_NORM_MOMENTUM = 0.1
"""Both are torch's defaults, which the authors keep."""
LOGITS_IN_MEMORY = 2**26
"""Largest number of logits of one group of heads held at a time (256 MiB)."""


@dataclass(frozen=True)
class Sweep:
    """The settings that each kind of head is trained with: rates[i] belongs to weight_decays[i]."""

    rates: tuple[float, ...]
    weight_decays: tuple[float, ...]
    optimizer: HeadOptimizer


class BatchStatistics:
    """BatchNorm of features without its affine part. Training uses the batch's statistics, tests the running ones.

    torch's running statistics start at mean 0 and variance 1. A share 0.9^t of these values is left after t batches: 5 % after
    28, which may be more than the variance of a feature. Here the running statistics are weighted means of the batches alone:
    they start at zero, and tests divide them by 1 - 0.9^t. After some hundred batches the two are equal.
    """

    def __init__(self, width: int, device: torch.device) -> None:
        """Starts with zero statistics, before any batch."""
        self.mean = torch.zeros(width, device=device)
        self.variance = torch.zeros(width, device=device)
        self._num_batches = 0

    def train(self, features: Float[Tensor, "B D"]) -> Float[Tensor, "B D"]:
        """Normalizes the batch to mean 0 and variance 1, and adds its mean and unbiased variance to the running ones."""
        variance, mean = torch.var_mean(features, dim=0, correction=0)
        unbiased = variance * (len(features) / max(1, len(features) - 1))
        self.mean.lerp_(mean, BATCH_NORM_MOMENTUM)
        self.variance.lerp_(unbiased, BATCH_NORM_MOMENTUM)
        self._num_batches += 1
        return (features - mean) * (variance + BATCH_NORM_EPS).rsqrt()

    def test(self, features: Float[Tensor, "B D"]) -> Float[Tensor, "B D"]:
        """Normalizes the batch by the running statistics. At least one training batch must have been seen."""
        assert self._num_batches > 0, "there are no statistics before the first step"
        seen = 1 - (1 - BATCH_NORM_MOMENTUM) ** self._num_batches
        return (features - self.mean / seen) * (self.variance / seen + BATCH_NORM_EPS).rsqrt()


class HeadGroup:
    """L linear classifiers of C classes on the same D features, all with or all without a preceding affine map of BatchNorm."""

    def __init__(self, num: int, classes: int, width: int, *, is_normed: bool, generator: torch.Generator) -> None:
        """Draws weights and biases uniformly in +-1 / sqrt(D), as torch's linear layer. BatchNorm's map is the identity."""
        bound = width**-0.5
        self.weight = torch.empty(num, classes, width).uniform_(-bound, bound, generator=generator)
        self.bias = torch.empty(num, classes).uniform_(-bound, bound, generator=generator)
        self.scale = torch.ones(num, width) if is_normed else None
        self.shift = torch.zeros(num, width) if is_normed else None

    def to(self, device: torch.device) -> "HeadGroup":
        """Moves the group to `device` and returns it."""
        self.weight, self.bias = self.weight.to(device), self.bias.to(device)
        if self.scale is not None and self.shift is not None:
            self.scale, self.shift = self.scale.to(device), self.shift.to(device)
        return self

    def parameters(self) -> list[Float[Tensor, "L ..."]]:
        """Weight and bias, followed by BatchNorm's scale and shift if the group has them."""
        return [self.weight, self.bias] + [value for value in (self.scale, self.shift) if value is not None]

    def logits(self, features: Float[Tensor, "B D"]) -> Float[Tensor, "B L C"]:
        """Scores of every head. `features` must already be normalized if the group has BatchNorm."""
        weight, bias = self._effective()
        return torch.addmm(bias.flatten(), features, weight.flatten(0, 1).T).view(len(features), *bias.shape)

    def gradients(self, features: Float[Tensor, "B D"], labels: Int[Tensor, " B"]) -> list[Float[Tensor, "L ..."]]:
        """Gradients of every head's mean cross-entropy, in the order of `parameters`.

        A head with BatchNorm is W (s x + t) + b = (W s) x + (W t + b). One product with the images gives the gradient G of the
        effective weight W s and the gradient g of the effective bias. The gradients of W, s and t follow without the images:
        G s + g t', W * G summed over classes, and W' g.
        """
        weight, bias = self._effective()
        of_weight, of_bias = torch.zeros_like(weight), torch.zeros_like(bias)
        num_rows = max(1, LOGITS_IN_MEMORY // bias.numel())
        for rows, answers in zip(torch.split(features, num_rows), torch.split(labels, num_rows), strict=True):
            logits = torch.addmm(bias.flatten(), rows, weight.flatten(0, 1).T).view(len(rows), *bias.shape)
            residual = functional.softmax(logits, dim=2)  # [rows, L, C]
            right = answers[:, None, None].expand(-1, len(bias), 1)
            residual.scatter_add_(2, right, residual.new_full((1, 1, 1), -1.0).expand_as(right))
            of_weight.flatten(0, 1).addmm_(residual.flatten(1).T, rows)
            of_bias += residual.sum(dim=0)
        of_weight, of_bias = of_weight.div_(len(features)), of_bias.div_(len(features))
        if self.scale is None or self.shift is None:
            return [of_weight, of_bias]
        of_scale = (of_weight * self.weight).sum(dim=1)
        of_shift = torch.einsum("lcd,lc->ld", self.weight, of_bias)
        of_weight = torch.addcmul(of_weight * self.scale[:, None], of_bias[:, :, None], self.shift[:, None])
        return [of_weight, of_bias, of_scale, of_shift]

    def _effective(self) -> tuple[Float[Tensor, "L C D"], Float[Tensor, "L C"]]:
        """Weight and bias of the equivalent linear layer, which includes BatchNorm's affine map."""
        if self.scale is None or self.shift is None:
            return self.weight, self.bias
        return self.weight * self.scale[:, None], self.bias + torch.einsum("lcd,ld->lc", self.weight, self.shift)


class StackedHeads:
    """{last layer, last four layers} x {linear, BatchNorm + linear} x the settings of a sweep."""

    def __init__(self, width: int, num_layers: int, classes: int, sweep: Sweep, seed: int, device: torch.device) -> None:
        """`width` is that of one layer. The features of all `num_layers` layers stand side by side, the last layer last."""
        self._sweep = sweep
        self._statistics = BatchStatistics(width * num_layers, device)
        self._widths = {"last": width, "last_four": width * num_layers}
        generator = torch.Generator().manual_seed(seed)
        self.groups: Mapping[tuple[str, str], HeadGroup] = {
            (features, kind): HeadGroup(
                len(sweep.rates), classes, size, is_normed=kind == "batch_norm", generator=generator
            ).to(device)
            for features, size in self._widths.items()
            for kind in ("linear", "batch_norm")
        }
        self._optimizers = [_optimizer(group, sweep, device) for group in self.groups.values()]

    def names(self) -> list[tuple[str, str, str]]:
        """Features, head and setting of every head, in the order of `logits`."""
        settings = list(zip(self._sweep.rates, self._sweep.weight_decays, strict=True))
        return [(*group, f"lr {rate:g}, weight decay {decay:g}") for group in self.groups for rate, decay in settings]

    @torch.no_grad()
    def step(self, features: Float[Tensor, "B F"], labels: Int[Tensor, " B"], factor: float) -> None:
        """Takes one step of every head on one batch, with the learning rates times `factor`. Does not wait for the device."""
        normed = self._statistics.train(features)
        for (name, kind), group, optimizer in zip(self.groups, self.groups.values(), self._optimizers, strict=True):
            inputs = (normed if kind == "batch_norm" else features)[:, -self._widths[name] :]
            optimizer.step(group.gradients(inputs, labels), factor)

    @torch.no_grad()
    def logits(self, features: Float[Tensor, "B F"]) -> Float[Tensor, "B heads C"]:
        """Scores of all heads, with the running statistics."""
        normed = self._statistics.test(features)
        return torch.cat(
            [
                group.logits((normed if kind == "batch_norm" else features)[:, -self._widths[name] :])
                for (name, kind), group in self.groups.items()
            ],
            dim=1,
        )


def _optimizer(group: HeadGroup, sweep: Sweep, device: torch.device) -> StackedSgd | StackedLars:
    rates = torch.tensor(sweep.rates, device=device)
    decays = torch.tensor(sweep.weight_decays, device=device)
    parameters = group.parameters()
    # the authors' files decay the linear layer with its bias, but not BatchNorm
    is_decayed = [value is group.weight or value is group.bias for value in parameters]
    kind = StackedLars if sweep.optimizer == "lars" else StackedSgd
    return kind(parameters, is_decayed, rates, decays)


def needed_bytes(width: int, num_layers: int, classes: int, num_settings: int, batch_size: int) -> int:
    """Estimates the bytes of memory that StackedHeads takes while it trains."""
    # weights and momenta of all groups; and, while one group is updated, four more tensors of its size
    numbers = 2 * width * (1 + num_layers) * classes * num_settings
    passing = 4 * width * num_layers * classes * num_settings
    logits = 3 * min(LOGITS_IN_MEMORY, batch_size * classes * num_settings)
    features = 4 * batch_size * width * num_layers
    return 4 * (2 * numbers + passing + logits + features)


def all_pairs(rates: Sequence[float], weight_decays: Sequence[float]) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """All pairs of both lists, as two lists of equal length."""
    pairs = [(rate, decay) for rate in rates for decay in weight_decays]
    return tuple(rate for rate, _ in pairs), tuple(decay for _, decay in pairs)
