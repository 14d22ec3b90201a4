"""Method: the contract between the training loop and a pretraining method."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field

from torch import nn

from openjepa.schedules import Progress
from openjepa.types import Batch, InputSpec, LossOutput, ParameterRule

DEFAULT_RULES = (
    ParameterRule(matches=lambda name, value: value.ndim <= 1 or name.endswith("bias"), decay=False),
    ParameterRule(matches=lambda name, value: True, decay=True),
)
"""The released code's groups: biases and 1-D parameters are not decayed, all else is (mask tokens are 3-D, so they are)."""


@dataclass(frozen=True)
class Export:
    """A network that is shared as `<run>/<name>/config.json` + `model.safetensors`."""

    config: object
    """Frozen settings dataclass (EncoderConfig, PredictorConfig, ...) that rebuilds the module."""
    module: nn.Module
    extra: Mapping[str, object] = field(default_factory=dict)
    """More to write into config.json (for a predictor: the mask settings)."""


class Method(nn.Module, ABC):
    """A pretraining method. Concrete methods are final; they know no files, optimizers, data sources or devices.

    The loop calls, in this order and for every step: `forward` and backward of each microbatch, `before_step`, the check for
    finite numbers, clipping, the optimizer, `after_step`. Parts of the forward run in profiler scopes
    (`torch.profiler.record_function`) named as in `flops()`. Parameters without `requires_grad` are never optimized.
    """

    batch_coupled: bool = False
    """True where a term of the loss depends on the whole batch, so that gradient accumulation changes it."""

    @abstractmethod
    def inputs(self) -> InputSpec:
        """Which views and masks each batch must hold."""

    @abstractmethod
    def forward(self, batch: Batch, progress: Progress) -> LossOutput:
        """Loss of one microbatch with normalized views. Changes no persistent state."""

    def before_step(self, progress: Progress) -> None:
        """After the last backward of a step, before clipping: may drop or change gradients."""

    @abstractmethod
    def after_step(self, progress: Progress) -> Mapping[str, float]:
        """After the optimizer: commits statistics, then moves the teacher. Returns what is worth logging (e.g. momentum)."""

    def parameter_rules(self) -> tuple[ParameterRule, ...]:
        """Weight decay and rate of each parameter."""
        return DEFAULT_RULES

    @abstractmethod
    def flops(self) -> Mapping[str, float]:
        """FLOPs of one image's forward by part (2 per multiply-add) at the mean token counts; backward is not included.

        The parts are named as the profiler scopes are. `trained_parts()` says which of them are also differentiated.
        """

    @abstractmethod
    def trained_parts(self) -> tuple[str, ...]:
        """Parts of `flops()` that have a backward pass, which costs twice their forward."""

    @abstractmethod
    def exports(self) -> Mapping[str, Export]:
        """The networks that are shared, by folder name; `encoder` is the one the paper evaluates."""

    def step_flops(self) -> float:
        """FLOPs of one image's training step: forward of every part and twice that again for the trained ones."""
        trained = self.trained_parts()
        return sum(value * (3 if name in trained else 1) for name, value in self.flops().items())
