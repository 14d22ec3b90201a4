"""Method: the contract between the training loop and a pretraining method."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from openjepa.masks.sampler import TokenShape
from openjepa.models.transformer import Block
from openjepa.models.vit import VisionTransformer
from openjepa.schedules import Progress
from openjepa.settings.models import EncoderConfig, ModelSettings
from openjepa.types import Batch, Export, InputSpec, LossOutput, ParameterRule, ViewSpec

DEFAULT_RULES = (
    ParameterRule(matches=lambda name, value: value.ndim <= 1 or name.endswith("bias"), decay=False),
    ParameterRule(matches=lambda name, value: True, decay=True),
)
"""The released code's groups: biases and 1-D parameters are not decayed, all else is (mask tokens are 3-D, so they are)."""


@dataclass(frozen=True)
class ProbeOutput:
    """Output of a method for the fixed probe batch, by which the loop watches for collapse.

    Tensors stay on the device. Methods that regress features give targets and positions, and the loop compares `loss` with
    what two trivial predictors get under `distance`: the mean of all targets, and the mean target of each position. Others
    (DINO) leave them None.
    """

    features: Float[Tensor, "B D"]
    """One vector per image from the network that is exported, pooled as it is evaluated."""
    loss: Float[Tensor, ""]
    """The method's loss on this batch."""
    targets: Float[Tensor, "B M T D"] | None = None
    """What is regressed."""
    target_positions: Int[Tensor, "B M T"] | None = None
    """Patch of each target."""
    distance: Callable[[Float[Tensor, "*shape"], Float[Tensor, "*shape"]], Float[Tensor, ""]] | None = None
    """The method's own loss between predictions and targets of any one shape."""


@dataclass(frozen=True)
class Encoders:
    """The encoders of a method, all of one shape but for tokens: what can start from the weights of another encoder."""

    trained: VisionTransformer
    """The one with gradients: student, context encoder, anchor encoder."""
    averaged: VisionTransformer | None = None
    """Its moving average: teacher, target encoder. None: the method has none."""


@dataclass(frozen=True)
class Surroundings:
    """What a method is built from, beside its own settings."""

    model: ModelSettings
    """The encoder."""
    view: ViewSpec
    """The crop that the data settings describe; a method may ask for more and other ones."""
    pixel_mean: tuple[float, float, float]
    pixel_std: tuple[float, float, float]
    shapes: tuple[TokenShape, ...]
    """Token counts that the mask sampler gives."""

    def encoder_config(self) -> EncoderConfig:
        """Settings of the encoder for views of this size."""
        return self.model.encoder(self.view.size, self.pixel_mean, self.pixel_std)


class Method(nn.Module, ABC):
    """A pretraining method. Concrete methods are final; they know no files, optimizers, data sources or devices.

    The loop calls, in this order and for every step: `forward` and backward of each microbatch, `before_step`, the check for
    finite numbers, clipping, the optimizer, `after_step`. Parameters without `requires_grad` are never optimized.

    Networks are submodules, each in a profiler scope (`torch.profiler.record_function`) of its own name: `engine.costs` counts
    the FLOPs of each and `openjepa bench step` times it. Costs are counted by a forward on the meta device, whose tensors have
    no values, so `forward` must not ask for any (`item()`, `nonzero()`), which would make it wait for the device anyway.
    """

    @abstractmethod
    def inputs(self) -> InputSpec:
        """Which views and masks each batch must hold."""

    @abstractmethod
    def forward(self, batch: Batch, progress: Progress) -> LossOutput:
        """Loss of one microbatch with normalized views. Changes no persistent state."""

    @abstractmethod
    def probe(self, batch: Batch, progress: Progress) -> ProbeOutput:
        """Output for the collapse monitor. Computed within `looking()`; changes nothing."""

    def predicted_features(self, batch: Batch, progress: Progress) -> Float[Tensor, "B D"] | None:
        """Prediction of each image from the part that its masks leave visible, pooled to one vector.

        The monitor calls it with the same views under several draws of masks and measures LiDAR: how far the predictions tell
        the images apart, beside how far they depend on the masks. Computed within `looking()`, without randomness; changes
        nothing. Returns None, for every batch, if the method has no predictor: LiDAR is then left out.
        """
        return None

    @contextmanager
    def looking(self) -> Iterator[None]:
        """A block without gradients and drop path. Afterwards the method is as it was."""
        training = self.training
        self.eval()
        try:
            with torch.no_grad():
                yield
        finally:
            self.train(training)

    def before_step(self, progress: Progress) -> None:
        """Called after the last backward of a step, before clipping: may drop or change gradients."""

    @abstractmethod
    def after_step(self, progress: Progress) -> Mapping[str, float]:
        """Called after the optimizer: commits statistics, then updates the moving average. Returns values to log (momentum)."""

    def coupled_terms(self) -> tuple[str, ...]:
        """Terms of the loss, in words, that depend on all images of a batch together: gradient accumulation changes them.

        The start of a run warns of them if a microbatch is not the whole batch. Statistics that `after_step` commits over all
        microbatches are no such terms.
        """
        return ()

    def parameter_rules(self) -> tuple[ParameterRule, ...]:
        """Weight decay and rate of each parameter."""
        return DEFAULT_RULES

    def energies(self, batch: Batch, progress: Progress) -> Float[Tensor, "B B"] | None:
        """Energy of x of image i with y of image j, the method's own distance; compatible pairs lie on the diagonal.

        Computed within `looking()`; changes nothing. `About` of the method's settings says what x and y are.
        Returns None, for every batch, if the method has no such distance: `openjepa bench energy` then refuses it.
        """
        return None

    def remarks(self, total_steps: int) -> list[str]:
        """Notes for the user on what is allowed but surely not meant in a run of `total_steps`. Shown at its start."""
        return []

    def compile_blocks(self) -> None:
        """Compiles every transformer block by itself with torch.compile. Parameters and their names stay."""
        for module in self.modules():
            if isinstance(module, Block):
                module.compile()

    @abstractmethod
    def encoders(self) -> Encoders:
        """The encoders, which can start from given weights. All else then starts from random ones."""

    @abstractmethod
    def exports(self) -> Mapping[str, Export]:
        """The networks that are shared, by folder name; `encoder` is the one the paper evaluates."""
