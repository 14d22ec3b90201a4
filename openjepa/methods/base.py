"""Method: the contract between the training loop and a pretraining method."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from openjepa.masks.sampler import TokenShape
from openjepa.models.vit import VisionTransformer
from openjepa.schedules import Progress
from openjepa.settings.models import EncoderConfig, ModelSettings
from openjepa.types import Batch, Export, InputSpec, LossOutput, ParameterRule, ViewSpec

DEFAULT_RULES = (
    ParameterRule(matches=lambda name, value: value.ndim <= 1 or name.endswith("bias"), decay=False),
    ParameterRule(matches=lambda name, value: True, decay=True),
)
"""The groups of the released code: biases and 1-D parameters are not decayed, all others are (mask tokens are 3-D)."""


@dataclass(frozen=True)
class ProbeOutput:
    """Output of a method for the fixed probe batch. The loop watches it for collapse.

    Tensors stay on the device. Methods that regress features give targets and positions. The loop then compares `loss` with the
    losses of two trivial predictors under `distance`: the mean of all targets, and the mean target of each position. If they
    also give predictions and other targets, it measures what a prediction knows beyond its position. Other methods (DINO) leave
    these fields None.
    """

    features: Float[Tensor, "B D"]
    """One vector per image from the exported network, pooled as in the evaluation."""
    loss: Float[Tensor, ""]
    """The method's loss on this batch."""
    targets: Float[Tensor, "B M T D"] | None = None
    """The features that are regressed."""
    target_positions: Int[Tensor, "B M T"] | None = None
    """Patch index of each target."""
    distance: Callable[[Float[Tensor, "*shape"], Float[Tensor, "*shape"]], Float[Tensor, ""]] | None = None
    """The method's own loss between predictions and targets of equal shape."""
    predictions: Float[Tensor, "B M T D"] | None = None
    """The predictions of the targets."""
    other_targets: Float[Tensor, "B M T D"] | None = None
    """For each target the one of another image at the same position: that of the next image of the batch."""


@dataclass(frozen=True)
class CoupledTerm:
    """A term of the loss that depends on all images of a batch together."""

    words: str
    """What it is, e.g. `the batch normalization of the head`."""
    synchronized: bool = False
    """True if it is computed over the images of all processes, so that their number changes nothing."""


@dataclass(frozen=True)
class Encoders:
    """The encoders of a method, which can start from the weights of another encoder. Apart from tokens, they have one shape."""

    trained: VisionTransformer
    """The encoder with gradients: student, context encoder, anchor encoder."""
    averaged: VisionTransformer | None = None
    """Its moving average: teacher, target encoder. None if the method has none."""


@dataclass(frozen=True)
class Surroundings:
    """Everything that a method is built from, apart from its own settings."""

    model: ModelSettings
    """Settings of the encoder."""
    view: ViewSpec
    """The crop that the data settings describe. A method may ask for more crops and other ones."""
    pixel_mean: tuple[float, float, float]
    pixel_std: tuple[float, float, float]
    shapes: tuple[TokenShape, ...]
    """Token counts of the mask sampler."""
    teacher: VisionTransformer | None = None
    """The encoder that `MethodSettings.frozen_teacher` names. It is not to be changed: the method keeps a copy."""

    def encoder_config(self) -> EncoderConfig:
        """Settings of the encoder for views of this size."""
        return self.model.encoder(self.view.size, self.pixel_mean, self.pixel_std)


class Method(nn.Module, ABC):
    """A pretraining method. Concrete methods are final. They know no files, optimizers, data sources or devices.

    The loop calls, in this order and for every step: `forward` and backward of each microbatch, `before_step`, the check for
    finite numbers, clipping, the optimizer, `after_step`. Parameters without `requires_grad` are never optimized.

    Networks are submodules. Each runs in a profiler scope (`torch.profiler.record_function`) of its own name. `engine.costs`
    counts the FLOPs of each scope, and `openjepa bench step` measures its time. Costs are counted by a forward on the meta
    device, whose tensors have no values. `forward` must therefore not read any (`item()`, `nonzero()`). Reading a value would
    also make it wait for the device.
    """

    @abstractmethod
    def inputs(self) -> InputSpec:
        """The views and masks that each batch must hold."""

    @abstractmethod
    def forward(self, batch: Batch, progress: Progress) -> LossOutput:
        """Loss of one microbatch with normalized views. Changes no persistent state."""

    @abstractmethod
    def probe(self, batch: Batch, progress: Progress) -> ProbeOutput:
        """Output for the collapse monitor. Computed within `looking()`. Changes nothing."""

    def predicted_features(self, batch: Batch, progress: Progress) -> Float[Tensor, "B D"] | None:
        """Prediction for each image from the part that its masks leave visible, pooled to one vector.

        The monitor calls it with the same views under several draws of masks and measures LiDAR: how much the predictions tell
        the images apart, compared with how much they depend on the masks. Computed within `looking()`, without randomness.
        Changes nothing. Returns None, for every batch, if the method has no predictor; LiDAR is then left out.
        """
        return None

    @contextmanager
    def looking(self) -> Iterator[None]:
        """A context without gradients and drop path. Afterwards the method is as it was."""
        training = self.training
        self.eval()
        try:
            with torch.no_grad():
                yield
        finally:
            self.train(training)

    def before_step(self, progress: Progress) -> None:
        """Called after the last backward of a step, before clipping. May drop or change gradients."""

    @abstractmethod
    def after_step(self, progress: Progress) -> Mapping[str, float]:
        """Called after the optimizer. Commits statistics, then updates the moving average. Returns values to log (momentum)."""

    def coupled_terms(self) -> tuple[CoupledTerm, ...] | None:
        """Terms of the loss that depend on all images of a batch together. Gradient accumulation changes them.

        At the start of a run, a note names them if the microbatches of all processes are not the whole batch. Statistics that
        `after_step` commits over all microbatches do not count. Several processes are refused if a term is not synchronized
        (`engine.distributed.sum_over_ranks`), or if this returns None: then nobody has thought about it.
        """
        return None

    def parameter_rules(self) -> tuple[ParameterRule, ...]:
        """Rules for weight decay, learning rate and clipping of the parameters."""
        return DEFAULT_RULES

    def energies(self, batch: Batch, progress: Progress) -> Float[Tensor, "B B"] | None:
        """Energy of x of image i with y of image j: the method's own distance. Compatible pairs are on the diagonal.

        Computed within `looking()`. Changes nothing. `About` of the method's settings says what x and y are.
        Returns None, for every batch, if the method has no such distance; `openjepa bench energy` then refuses it.
        """
        return None

    def remarks(self, total_steps: int) -> list[str]:
        """Notes for the user on settings that are allowed but surely unintended in a run of `total_steps`.

        They are shown at the start of the run.
        """
        return []

    @abstractmethod
    def encoders(self) -> Encoders:
        """The encoders, which can start from given weights. All other parts then start from random weights."""

    @abstractmethod
    def exports(self) -> Mapping[str, Export]:
        """The networks that are shared, by folder name. `encoder` is the one that the paper evaluates."""
