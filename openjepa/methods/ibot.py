"""iBOT (Zhou et al. 2022, arXiv 2111.07832): DINO on class tokens, and the same on the masked patches of the large crops."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import final

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.profiler import record_function

from openjepa.methods.assignment import (
    Center,
    assignments,
    cross_entropy,
    cross_entropy_table,
    other_views_loss,
    teacher_temperature,
)
from openjepa.methods.base import ProbeOutput, Surroundings
from openjepa.methods.multi_crop import (
    GLOBAL,
    LOCAL,
    NUM_GLOBAL,
    SelfDistillation,
    build_head,
    class_tokens_of,
    views_of,
)
from openjepa.methods.teachers import EmaTeacher, momenta
from openjepa.models.heads import TokenHead, TokenOutputs, at_places
from openjepa.models.vit import VisionTransformer, build_encoder
from openjepa.refusals import Refusal
from openjepa.schedules import Progress, cosine_momentum
from openjepa.settings.derived import resolved
from openjepa.settings.methods import IBotSettings
from openjepa.types import Batch, EncoderOutput, InputSpec, LossOutput, TokenMask

Images = Float[Tensor, "V B C h w"]


@dataclass(frozen=True)
class _Masked:
    """Masked patches of the large crops, as a mask and as places. R = 2 B rows, view by view."""

    mask: Bool[Tensor, "R N"]
    places: Int[Tensor, "R S"]
    """Raster indices of the masked patches, then of other patches up to S, the number that the fullest mask needs."""
    weights: Float[Tensor, "R S"]
    """1 if the place is masked, else 0."""


@final
class IBot(SelfDistillation):
    """Student and teacher are an encoder and a head. The student sees large crops with masked patches, and small crops.

    As in the released code, the patch loss is averaged over the masked patches of each image (the paper sums them), and an
    image without masked patches counts as 0. As there, both last layers are frozen at first, the patch center is the mean over
    all patches, masked or not, and gradients are clipped for each tensor separately (`optim.clip_mode`).

    It differs from that code as our DINO does. Centers count the whole batch, however it is split. Batch normalization in the
    head, which no published run with these encoders has, takes the statistics of the tokens of one microbatch of each process
    together. Of these, the student's head sees only the masked ones.
    """

    settings: IBotSettings

    def __init__(self, settings: IBotSettings, surroundings: Surroundings) -> None:
        """Draws the weights from torch's global generator. The view of `surroundings` is the large crop."""
        super().__init__()
        self.settings = settings
        self.views = views_of(settings, surroundings.view)
        self.num_places = max(shape.places for shape in surroundings.shapes)
        self.encoder_config = replace(surroundings.encoder_config(), pooling="class_token")
        self.student: VisionTransformer = build_encoder(replace(self.encoder_config, mask_token=True))
        patch_outputs = resolved(settings.outputs if settings.shared_head else settings.patch_outputs)
        own_layer = None if settings.shared_head else patch_outputs
        self.student_head = TokenHead(build_head(settings, self.encoder_config.width, own_layer))
        self.teacher = EmaTeacher(self.student, without=("mask_token",))
        self.teacher_head = EmaTeacher(self.student_head)
        self.center = Center(resolved(settings.outputs), settings.center_momentum)
        self.patch_center = Center(patch_outputs, settings.patch_center_momentum)

    def inputs(self) -> InputSpec:
        """Two large crops with masks and some small ones, each with its own change of colors."""
        return InputSpec(views=self.views, masked_views=(GLOBAL,))

    def forward(self, batch: Batch, progress: Progress) -> LossOutput:
        """Section 3.1 of the paper: the teacher's assignments of whole large crops, the student's of masked ones, distances."""
        masked = self._masked(batch)
        _, teacher = self._teach(batch.views[GLOBAL], masked)
        self.center.collect(teacher.class_tokens)
        self.patch_center.collect(teacher.patch_mean)  # one row per microbatch; all microbatches are equally large
        return self._loss(teacher, self._learn(batch, masked), masked, progress)

    def before_step(self, progress: Progress) -> None:
        """Freezes the last layers in the first epochs."""
        if progress.epoch < self.settings.freeze_last_layer_epochs:
            self.student_head.head.drop_last_gradients()

    def after_step(self, progress: Progress) -> Mapping[str, float]:
        """Moves the centers by the teacher's outputs of this step, then the teacher towards the updated student."""
        self.center.commit()
        self.patch_center.commit()
        value = cosine_momentum(*momenta(self.settings), progress)
        self.teacher.update(self.student, value)
        self.teacher_head.update(self.student_head, value)
        of_class, of_patches = self._temperatures(progress)
        return {"momentum": value, "teacher_temperature": of_class, "patch_temperature": of_patches}

    def probe(self, batch: Batch, progress: Progress) -> ProbeOutput:
        """The teacher's class tokens of the first large crops, and the loss, without drop path."""
        with self.looking():
            masked = self._masked(batch)
            tokens, teacher = self._teach(batch.views[GLOBAL], masked)
            loss = self._loss(teacher, self._learn(batch, masked), masked, progress).total
        return ProbeOutput(tokens[0], loss)

    def energies(self, batch: Batch, progress: Progress) -> Float[Tensor, "B B"]:
        """Cross-entropy between the student's assignment of image i's second large crop and the teacher's of image j's first.

        The student's crop is masked. Only class tokens are compared, because a masked patch has a counterpart only in the crop
        it was masked in.
        """
        with self.looking():
            first, second = batch.views[GLOBAL]
            masked = self._masked(batch)
            places = masked.places[len(first) :]
            taught: EncoderOutput = self.teacher(first)
            learned: EncoderOutput = self.student(second, replace=masked.mask[len(first) :])
            outputs: TokenOutputs = self.teacher_head(class_tokens_of(taught, 1), taught.patches, places)
            targets = self._class_targets(outputs.class_tokens, progress)
            outputs = self.student_head(class_tokens_of(learned, 1), at_places(learned.patches, places))
        return cross_entropy_table(targets[0], self._logits(outputs.class_tokens)[0])

    def _teach(self, crops: Images, masked: _Masked) -> tuple[Float[Tensor, "V B D"], TokenOutputs]:
        """The teacher's class tokens of the whole large crops, and its head's outputs for these and for the masked patches."""
        with record_function("teacher"):
            encoded: EncoderOutput = self.teacher(crops.flatten(0, 1))
        tokens = class_tokens_of(encoded, NUM_GLOBAL)
        with record_function("teacher_head"):
            return tokens, self.teacher_head(tokens, encoded.patches, masked.places)

    def _learn(self, batch: Batch, masked: _Masked) -> TokenOutputs:
        """The student head's outputs for the class tokens of all crops and for the masked patches, which it cannot see."""
        with record_function("student"):
            large: EncoderOutput = self.student(batch.views[GLOBAL].flatten(0, 1), replace=masked.mask)
            tokens = [class_tokens_of(large, NUM_GLOBAL)]
            if LOCAL in self.views:
                small = batch.views[LOCAL]
                tokens.append(class_tokens_of(self.student(small.flatten(0, 1)), len(small)))
        with record_function("student_head"):
            return self.student_head(torch.cat(tokens), at_places(large.patches, masked.places))  # type: ignore[no-any-return]

    def _loss(self, teacher: TokenOutputs, student: TokenOutputs, masked: _Masked, progress: Progress) -> LossOutput:
        """Equations 2 and 3 of the paper: between crops for class tokens, within each large crop for its masked patches."""
        own = self.settings
        targets = self._class_targets(teacher.class_tokens, progress)
        of_class = own.class_weight * other_views_loss(targets, self._logits(student.class_tokens))
        patch_targets = assignments(teacher.patches, self._temperatures(progress)[1], self.patch_center.value)
        of_patches = own.patch_weight * masked_loss(patch_targets, self._logits(student.patches), masked.weights)
        return LossOutput(
            total=of_class + of_patches,
            parts={"class": of_class.detach(), "patch": of_patches.detach()},
            diagnostics={"target_entropy": torch.special.entr(targets).sum(dim=-1).mean()},
        )

    def _class_targets(self, outputs: Float[Tensor, "V B K"], progress: Progress) -> Float[Tensor, "V B K"]:
        """The teacher's assignments. Centered, so that no output wins everywhere; sharpened, so that they are not uniform."""
        return assignments(outputs, self._temperatures(progress)[0], self.center.value)

    def _logits(self, outputs: Float[Tensor, "*lead K"]) -> Float[Tensor, "*lead K"]:
        return outputs.float() / self.settings.student_temperature

    def _temperatures(self, progress: Progress) -> tuple[float, float]:
        """Temperatures of the teacher's softmax over class tokens and over patches."""
        own = self.settings
        epochs = own.teacher_temperature_warmup_epochs
        return (
            teacher_temperature(own.teacher_temperature_start, own.teacher_temperature, epochs, progress),
            teacher_temperature(own.patch_temperature_start, own.patch_temperature, epochs, progress, own.patch_start_epoch),
        )

    def _masked(self, batch: Batch) -> _Masked:
        """Masked patches of each large crop, padded to the fullest possible mask, so that no shape depends on the draw."""
        masks = batch.masks[GLOBAL]
        if not isinstance(masks, TokenMask):
            raise Refusal(
                "method.name='ibot' masks single patches: use a mask strategy that does, such as masks.strategy='blockwise'"
            )
        places = masks.masked.byte().argsort(dim=1, descending=True, stable=True)[:, : self.num_places]
        return _Masked(masks.masked, places, masks.masked.gather(1, places).float())


def masked_loss(
    targets: Float[Tensor, "R S K"], logits: Float[Tensor, "R S K"], weights: Float[Tensor, "R S"]
) -> Float[Tensor, ""]:
    """Mean over images of the mean cross-entropy of their masked patches (weight 1). An image without any counts as 0."""
    sums = (weights * cross_entropy(targets, logits)).sum(dim=1)
    return (sums / weights.sum(dim=1).clamp(min=1)).mean()
