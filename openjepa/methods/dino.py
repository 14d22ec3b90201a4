"""DINO (Caron et al. 2021, arXiv 2104.14294): assign every crop of an image as a moving average assigns its large crops."""

from collections.abc import Mapping
from dataclasses import replace
from typing import final

import torch
from jaxtyping import Float
from torch import Tensor
from torch.profiler import record_function

from openjepa.methods.assignment import Center, assignments, cross_entropy_table, other_views_loss, teacher_temperature
from openjepa.methods.base import ProbeOutput, Surroundings
from openjepa.methods.multi_crop import (
    GLOBAL,
    SelfDistillation,
    build_head,
    class_tokens,
    views_of,
)
from openjepa.methods.teachers import EmaTeacher, momenta
from openjepa.models.heads import ProjectionHead
from openjepa.models.vit import VisionTransformer, build_encoder
from openjepa.schedules import Progress, cosine_momentum
from openjepa.settings.derived import resolved
from openjepa.settings.methods import DinoSettings
from openjepa.types import Batch, InputSpec, LossOutput

Crops = Mapping[str, Float[Tensor, "V B C h w"]]


@final
class Dino(SelfDistillation):
    """Student and teacher are an encoder and a head. The teacher sees the large crops, the student all crops.

    Follows the released code, which adds two things to the paper: the last layer is frozen at first, and gradients are clipped
    for each tensor separately (`optim.clip_mode`). It differs from that code in two ways. Batch normalization in the head,
    which is off in all published runs of Vision Transformers, takes the statistics of one microbatch of each process together.
    The center is the mean over the whole batch, however that is split.
    """

    settings: DinoSettings

    def __init__(self, settings: DinoSettings, surroundings: Surroundings) -> None:
        """Draws the weights from torch's global generator. The view of `surroundings` is the large crop."""
        super().__init__()
        self.settings = settings
        self.views = views_of(settings, surroundings.view)
        self.encoder_config = replace(surroundings.encoder_config(), pooling="class_token")
        self.student: VisionTransformer = build_encoder(self.encoder_config)
        self.student_head: ProjectionHead = build_head(settings, self.encoder_config.width)
        self.teacher = EmaTeacher(self.student)
        self.teacher_head = EmaTeacher(self.student_head)
        self.center = Center(resolved(settings.outputs), settings.center_momentum)

    def inputs(self) -> InputSpec:
        """Two large crops and some small ones, each with its own change of colors. No masks."""
        return InputSpec(views=self.views)

    def forward(self, batch: Batch, progress: Progress) -> LossOutput:
        """Section 3.1 of the paper: the teacher's assignments of the large crops, the student's of all, their distance."""
        outputs = self._teacher_outputs(batch.views)  # [2, B, K]
        self.center.collect(outputs)
        targets = self._targets(outputs, progress)
        loss = other_views_loss(targets, self._logits(batch.views))
        return LossOutput(total=loss, diagnostics={"target_entropy": torch.special.entr(targets).sum(dim=-1).mean()})

    def before_step(self, progress: Progress) -> None:
        """Freezes the last layer in the first epochs."""
        if progress.epoch < self.settings.freeze_last_layer_epochs:
            self.student_head.drop_last_gradients()

    def after_step(self, progress: Progress) -> Mapping[str, float]:
        """Moves the center by the teacher's outputs of this step, then the teacher towards the updated student."""
        self.center.commit()
        value = cosine_momentum(*momenta(self.settings), progress)
        self.teacher.update(self.student, value)
        self.teacher_head.update(self.student_head, value)
        return {"momentum": value, "teacher_temperature": self._temperature(progress)}

    def probe(self, batch: Batch, progress: Progress) -> ProbeOutput:
        """The teacher's class tokens of the first large crops, and the loss, without drop path."""
        with self.looking():
            tokens = class_tokens(self.teacher, _large(batch.views))  # [2, B, D]
            targets = self._targets(self.teacher_head(tokens), progress)
            loss = other_views_loss(targets, self._logits(batch.views))
        return ProbeOutput(tokens[0], loss)

    def energies(self, batch: Batch, progress: Progress) -> Float[Tensor, "B B"]:
        """Cross-entropy between the student's assignment of image i's second large crop and the teacher's of j's first."""
        with self.looking():
            first, second = ({GLOBAL: batch.views[GLOBAL][place : place + 1]} for place in (0, 1))
            targets = self._targets(self._teacher_outputs(first), progress)
            logits = self._student_logits(second)
        return cross_entropy_table(targets[0], logits[0])

    def _teacher_outputs(self, views: Crops) -> Float[Tensor, "V B K"]:
        with record_function("teacher"):
            tokens = class_tokens(self.teacher, _large(views))
        with record_function("teacher_head"):
            return self.teacher_head(tokens)  # type: ignore[no-any-return]

    def _targets(self, outputs: Float[Tensor, "V B K"], progress: Progress) -> Float[Tensor, "V B K"]:
        """The teacher's assignments. Centered, so that no output wins everywhere; sharpened, so that they are not uniform."""
        return assignments(outputs, self._temperature(progress), self.center.value)

    def _logits(self, views: Crops) -> Float[Tensor, "V B K"]:
        """The student's logits of all crops, the large ones first."""
        return self._student_logits({name: views[name] for name in self.views})

    def _student_logits(self, views: Crops) -> Float[Tensor, "V B K"]:
        with record_function("student"):
            tokens = class_tokens(self.student, views)
        with record_function("student_head"):
            outputs: Tensor = self.student_head(tokens)
        return outputs.float() / self.settings.student_temperature

    def _temperature(self, progress: Progress) -> float:
        own = self.settings
        epochs = own.teacher_temperature_warmup_epochs
        return teacher_temperature(own.teacher_temperature_start, own.teacher_temperature, epochs, progress)


def _large(views: Crops) -> Crops:
    return {GLOBAL: views[GLOBAL]}
