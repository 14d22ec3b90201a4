"""MSN (Assran et al. 2022, arXiv 2204.07141): assign masked and small views to prototypes as the whole view is assigned."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import final

import torch
from jaxtyping import Float
from torch import Tensor
from torch.profiler import record_function

from openjepa.engine import distributed
from openjepa.methods.assignment import assignments, cross_entropy, cross_entropy_table
from openjepa.methods.base import DEFAULT_RULES, CoupledTerm, Encoders, Method, ProbeOutput, Surroundings
from openjepa.methods.multi_crop import (
    FIRST,
    LOCAL,
    SECOND,
    class_tokens_of,
    color_change,
    local_views,
)
from openjepa.methods.teachers import EmaTeacher, encoders_with_average, momenta, slow_teacher_remarks
from openjepa.models.heads import BatchNormHead, Prototypes
from openjepa.models.vit import VisionTransformer, build_encoder
from openjepa.refusals import Refusal
from openjepa.schedules import Progress, momentum, sharpening
from openjepa.settings.derived import resolved
from openjepa.settings.methods import MsnSettings
from openjepa.types import Batch, EncoderOutput, Export, InputSpec, LossOutput, ParameterRule, TokenMask, ViewSpec

TARGET, ANCHOR = "target", "anchor"
"""Names of the whole large view and of the large views with dropped patches. Small views are `multi_crop.LOCAL`."""
SMALLEST = torch.finfo(torch.float32).tiny
PROTOTYPES = ParameterRule(matches=lambda name, value: name.startswith("prototypes."), decay=False, clip=False)


@final
class Msn(Method):
    """Encoder and head see views with dropped patches and small views. Their moving averages see another view, whole.

    Follows the released code in these points. Patches are dropped only from large views. Schedules may be stretched
    (`optim.schedule_stretch`). Sinkhorn balances targets that are already sharpened. Batch normalization in the head is
    separate for large and small views. Prototypes are neither decayed nor clipped.

    It differs from that code in one point: batch normalization keeps no running statistics, which nothing reads. As there,
    batch normalization, Sinkhorn and the mean assignment see the images of all processes, but of one microbatch each.
    """

    def __init__(self, settings: MsnSettings, surroundings: Surroundings) -> None:
        """Draws the weights from torch's global generator. The view of `surroundings` is a large one."""
        super().__init__()
        self.settings = settings
        self.views = _views_of(settings, surroundings.view)
        self.encoder_config = replace(surroundings.encoder_config(), pooling="class_token")
        self.anchor_encoder: VisionTransformer = build_encoder(self.encoder_config)
        hidden, output = resolved(settings.head_hidden), resolved(settings.output_width)
        self.anchor_head = BatchNormHead(self.encoder_config.width, hidden, output, input_norm=settings.head_input_norm)
        self.prototypes = Prototypes(resolved(settings.prototypes), output)
        self.target_encoder = EmaTeacher(self.anchor_encoder)
        self.target_head = EmaTeacher(self.anchor_head)

    def inputs(self) -> InputSpec:
        """A whole large view, large views with masks, and small ones, each with its own change of colors."""
        return InputSpec(views=self.views, masked_views=(ANCHOR,))

    def forward(self, batch: Batch, progress: Progress) -> LossOutput:
        """Section 3 of the paper: the target's sharpened assignment, those of the anchors, their distance and the entropies."""
        _, target = self._target_logits(batch)
        return self._loss(target, self._anchor_logits(batch), progress)

    def after_step(self, progress: Progress) -> Mapping[str, float]:
        """Moves the target encoder and head towards the anchor encoder and head, which the optimizer has just updated."""
        value = momentum(*momenta(self.settings), progress)
        self.target_encoder.update(self.anchor_encoder, value)
        self.target_head.update(self.anchor_head, value)
        return {"momentum": value, "sharpening": self._sharpening(progress)}

    def probe(self, batch: Batch, progress: Progress) -> ProbeOutput:
        """The target encoder's class tokens of the whole views, and the loss, without drop path."""
        with self.looking():
            tokens, target = self._target_logits(batch)
            loss = self._loss(target, self._anchor_logits(batch), progress).total
        return ProbeOutput(tokens, loss)

    def energies(self, batch: Batch, progress: Progress) -> Float[Tensor, "B B"]:
        """Mean cross-entropy between the assignments of image i's anchors and the sharpened assignment of image j's target.

        Without Sinkhorn, so that the target of an image does not depend on the others.
        """
        with self.looking():
            targets = assignments(self._target_logits(batch)[1], self._sharpening(progress))
            anchors = self._anchor_logits(batch)  # [V, B, K]
        return torch.stack([cross_entropy_table(targets, logits) for logits in anchors]).mean(dim=0)

    def coupled_terms(self) -> tuple[CoupledTerm, ...]:
        """Batch normalization of the head, and the terms that keep the assignments from collapsing, if they are on."""
        own, terms = self.settings, ["the batch normalization of the head"]
        if own.mean_entropy_weight:
            terms.append("the mean assignment of method.mean_entropy_weight")
        if own.sinkhorn:
            terms.append("the balancing of method.sinkhorn")
        return tuple(CoupledTerm(words, synchronized=True) for words in terms)

    def parameter_rules(self) -> tuple[ParameterRule, ...]:
        """As in the released code: no decay and no clipping for the prototypes."""
        return (PROTOTYPES, *DEFAULT_RULES)

    def remarks(self, total_steps: int) -> list[str]:
        """A note if the target encoder, which is exported, hardly changes in a run of this length."""
        return slow_teacher_remarks(momentum, *momenta(self.settings), total_steps)

    def encoders(self) -> Encoders:
        """Anchor encoder and target encoder, without their heads."""
        return encoders_with_average(self.anchor_encoder, self.target_encoder)

    def exports(self) -> Mapping[str, Export]:
        """The target encoder, which the paper evaluates by its class token."""
        return {"encoder": Export(self.encoder_config, self.target_encoder.network)}

    def _target_logits(self, batch: Batch) -> tuple[Float[Tensor, "B D"], Float[Tensor, "B K"]]:
        """Class token and assignment of each whole view. The assignment is given as logits before sharpening."""
        with record_function("target_encoder"):
            tokens = class_tokens_of(self.target_encoder(batch.views[TARGET][0]), 1)[0]
        with record_function("target_head"):
            points: Tensor = self.target_head(tokens)
        with record_function("prototypes"), torch.no_grad():
            return tokens, self._logits(points)

    def _anchor_logits(self, batch: Batch) -> Float[Tensor, "V B K"]:
        """Assignments of all anchors, as logits, the large ones first. Each size has its own batch normalization."""
        large, small = batch.views[ANCHOR], batch.views[LOCAL] if LOCAL in self.views else None
        with record_function("anchor_encoder"):
            masked: EncoderOutput = self.anchor_encoder(large.flatten(0, 1), _visible(batch))
            tokens = [class_tokens_of(masked, len(large))]
            if small is not None:
                tokens.append(class_tokens_of(self.anchor_encoder(small.flatten(0, 1)), len(small)))
        with record_function("anchor_head"):
            points = torch.cat([self.anchor_head(of_size) for of_size in tokens])
        with record_function("prototypes"):
            return self._logits(points)

    def _logits(self, points: Float[Tensor, "*lead P"]) -> Float[Tensor, "*lead K"]:
        return smoothed_logits(self.prototypes(points) / self.settings.temperature, self.settings.label_smoothing)

    def _loss(self, target: Float[Tensor, "B K"], anchors: Float[Tensor, "V B K"], progress: Progress) -> LossOutput:
        """Equation 1 of the paper, which has no term for the entropy of single assignments. Parts are without weights."""
        own = self.settings
        targets = assignments(target, self._sharpening(progress))
        terms = assignment_terms(sinkhorn(targets, own.sinkhorn_iterations) if own.sinkhorn else targets, anchors)
        total = terms.ce + own.mean_entropy_weight * terms.me_max + own.entropy_weight * terms.entropy
        return LossOutput(
            total=total,
            parts={name: term.detach() for name, term in vars(terms).items()},
            diagnostics={"target_entropy": torch.special.entr(targets).sum(dim=-1).mean()},
        )

    def _sharpening(self, progress: Progress) -> float:
        return sharpening(self.settings.sharpening_start, self.settings.sharpening_end, progress)


@dataclass(frozen=True)
class AssignmentTerms:
    """The terms of the loss, without weights."""

    ce: Float[Tensor, ""]
    """Mean cross-entropy between targets and anchors."""
    me_max: Float[Tensor, ""]
    """log K minus the entropy of the mean assignment of all anchors. 0 if all prototypes are used equally."""
    entropy: Float[Tensor, ""]
    """Mean entropy of the anchors' assignments."""


def assignment_terms(targets: Float[Tensor, "B K"], logits: Float[Tensor, "V B K"]) -> AssignmentTerms:
    """The terms for the targets of B images and the logits of their V anchors each. The mean is that of all processes."""
    probabilities = logits.softmax(dim=-1)
    mean = distributed.mean_over_ranks(probabilities.mean(dim=(0, 1)))
    mean = mean.clamp(min=SMALLEST)  # the derivative of x log x at 0 is not finite
    return AssignmentTerms(
        ce=cross_entropy(targets, logits).mean(),
        me_max=math.log(len(mean)) - torch.special.entr(mean).sum(),
        entropy=cross_entropy(probabilities, logits).mean(),
    )


def smoothed_logits(logits: Float[Tensor, "*lead K"], smoothing: float) -> Float[Tensor, "*lead K"]:
    """Logits of (1 - s) softmax(logits) + s / K: assignments to prototypes whose one-hot labels are smoothed by s."""
    if smoothing == 0:
        return logits
    return torch.logaddexp(
        logits.log_softmax(dim=-1) + math.log1p(-smoothing), logits.new_full((), math.log(smoothing / logits.shape[-1]))
    )


def sinkhorn(assigned: Float[Tensor, "B K"], iterations: int) -> Float[Tensor, "B K"]:
    """Assignments balanced over the prototypes. Each iteration gives all prototypes the same sum, then every image the sum 1.

    At the end, rows sum to 1 and columns nearly to B / K (Cuturi 2013, as in the released code). B counts the images of all
    processes.
    """
    for _ in range(iterations):
        assigned = assigned / distributed.sum_over_ranks(assigned.sum(dim=0, keepdim=True)).clamp(min=SMALLEST)
        assigned = assigned / assigned.sum(dim=1, keepdim=True)
    return assigned


def _views_of(settings: MsnSettings, view: ViewSpec) -> dict[str, ViewSpec]:
    """The views by name. The whole view and the masked ones are drawn in the same way."""
    num_masked = settings.masked_views
    masked = replace(view, count=num_masked, colors=(color_change(settings, SECOND),) * num_masked)
    return {TARGET: replace(view, colors=(color_change(settings, FIRST),)), ANCHOR: masked, **local_views(settings, view)}


def _visible(batch: Batch) -> Tensor:
    """Indices of the visible patches of the masked views [V B, K]. Raises Refusal if the masks are blocks."""
    masks = batch.masks[ANCHOR]
    if not isinstance(masks, TokenMask):
        raise Refusal(
            "method.name='msn' drops single patches: use a mask strategy that masks such, masks.strategy='random_patches'"
        )
    return masks.visible()
