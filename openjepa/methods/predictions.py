"""What I-JEPA's predictor is asked for beyond whole target blocks: a sample of each block, and the context itself."""

from collections.abc import Sequence
from dataclasses import replace
from typing import final

import torch
from jaxtyping import Float
from torch import Tensor

from openjepa.masks.sampler import TokenShape
from openjepa.methods.targets import rising
from openjepa.models.transformer import SlotDraws
from openjepa.refusals import Refusal
from openjepa.schedules import Progress
from openjepa.settings.methods import IJepaSettings
from openjepa.types import BlockMasks


@final
class SampledTargets(SlotDraws):
    """In training, keeps a random sample of the patches of each target block, drawn anew in each step.

    CrossMAE (arXiv 2401.14391) and CAPI (arXiv 2502.08769) predict a part of the masked patches, which costs less. The others
    stay hidden from the context, and the predictor gets no mask tokens for them. Every patch of a block is as likely as any.
    """

    def __init__(self, number: int, shapes: Sequence[TokenShape]) -> None:
        """`number`: patches per block. `shapes`: all counts of the masks. Raises Refusal if no block has more."""
        super().__init__()
        self.number = number
        largest = max(shape.target for shape in shapes)
        if number >= largest:
            raise Refusal(
                f"method.sampled_targets={number} leaves nothing out of target blocks of at most {largest} patches: "
                f"use at most {largest - 1}, or leave it out"
            )

    def draws(self) -> bool:
        """True: each step draws the samples."""
        return True

    def forward(self, masks: BlockMasks) -> BlockMasks:
        """The masks with the sampled targets, in the order of the draw. Blocks that are not larger than a sample stay whole."""
        targets = masks.targets
        if not self.training or targets.shape[2] <= self.number:
            return masks
        shape, device = targets.shape[1:], targets.device
        drawn: Tensor = self.drawn(len(targets), lambda n: torch.rand(n, *shape, device=device))
        chosen = drawn.topk(self.number, dim=2, sorted=False).indices
        return replace(masks, targets=targets.gather(2, chosen))


def context_loss_weight(settings: IJepaSettings, progress: Progress) -> float:
    """Weight of the loss on context tokens at this step: 0, then a line up to `settings.context_loss`."""
    return settings.context_loss * rising(settings.context_loss_warmup, progress)


def nearness(masks: BlockMasks) -> Float[Tensor, "R 1 K"]:
    """Weight of each context token in the loss: 1 / sqrt(d), d the distance to the nearest target patch (V-JEPA 2.1).

    d is the Euclidean distance of patch centers in patches, at least 1. Padding gets 0, and the other tokens of its context as
    much more that a mean over all is one over these: contexts of every size then count alike, in whatever microbatch they are.
    """
    columns = masks.grid[1]
    context, targets = masks.context[:, :, None], masks.targets.flatten(1)[:, None]  # [R, K, 1], [R, 1, M*T]
    down, across = context // columns - targets // columns, context % columns - targets % columns
    nearest = (down**2 + across**2).amin(dim=2).clamp_min(1)  # [R, K]: squared distance
    weights = nearest.float() ** -0.25
    if masks.context_valid is not None:
        valid = masks.context_valid.to(weights.dtype)
        weights = weights * valid / valid.mean(dim=1, keepdim=True)
    return weights[:, None]
