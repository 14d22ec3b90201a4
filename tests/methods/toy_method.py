"""Mean color, a method in one file as docs/contributing.md works it through: its settings, its network and its loss.

Some patches of an image are replaced by a mask token. The encoder sees all others, and a linear layer must say which color each
masked patch has on average. A small relative of MAE: real, but no rival to it.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Annotated, Literal, final

from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F
from torch.profiler import record_function

from openjepa.methods.base import Encoders, Method, ProbeOutput, Surroundings
from openjepa.models.vit import VisionTransformer, build_encoder
from openjepa.schedules import Progress
from openjepa.settings.fields import POSITIVE
from openjepa.settings.methods import About, MethodSettings, Paper
from openjepa.types import Batch, EncoderOutput, Export, InputSpec, LossOutput, TokenMask

VIEW = "image"


# In the package this class would be settings/methods/mean_color.py. It is free of torch.
@dataclass(frozen=True, kw_only=True)
class MeanColorSettings(MethodSettings):
    """Mean color: foretell the average color of masked patches."""

    paper = Paper("Mean color", "an example, docs/contributing.md")
    about = About(
        title=paper.title,
        family="generative",
        x="an image with masked patches",
        y="the average color of each masked patch",
        z="where the masked patches lie: a mask token with the position of each",
        energy="smooth L1 distance between the foretold and the real color",
        against_collapse="colors cannot collapse: the targets are given, not learned",
    )
    mask_kinds = ("tokens",)

    name: Literal["mean_color"] = "mean_color"
    beta: Annotated[float, POSITIVE] = 0.5
    """Difference of a color up to which the loss is quadratic, in standard deviations of the pixels."""


# In the package the rest would be methods/mean_color.py.
@final
class MeanColor(Method):
    """An encoder whose output at a masked patch is mapped to three numbers."""

    def __init__(self, settings: MeanColorSettings, surroundings: Surroundings) -> None:
        """Draws the weights from torch's global generator."""
        super().__init__()
        self.settings = settings
        self.view = surroundings.view
        self.encoder_config = replace(surroundings.encoder_config(), mask_token=True)
        self.encoder: VisionTransformer = build_encoder(self.encoder_config)
        self.head = nn.Linear(self.encoder_config.width, 3)

    def inputs(self) -> InputSpec:
        """One random crop with a mask."""
        return InputSpec(views={VIEW: self.view}, masked_views=(VIEW,))

    def forward(self, batch: Batch, progress: Progress) -> LossOutput:
        """Smooth L1 distance of the colors, averaged over the masked patches of all images."""
        images, mask = batch.views[VIEW][0], batch.masks[VIEW]
        assert isinstance(mask, TokenMask)  # `mask_kinds` promises it
        with record_function("encoder"):
            encoded: EncoderOutput = self.encoder(images, replace=mask.masked)
        with record_function("head"):
            colors = self.head(encoded.patches).float()  # [B, N, 3]
        targets = mean_colors(images, self.encoder_config.patch_size)
        distances = F.smooth_l1_loss(colors, targets, beta=self.settings.beta, reduction="none").mean(dim=-1)  # [B, N]
        # a weighted mean, because to ask how many patches are masked would make the device wait
        return LossOutput((distances * mask.masked).sum() / mask.masked.sum().clamp(min=1))

    def after_step(self, progress: Progress) -> Mapping[str, float]:
        """There is no moving average."""
        return {}

    def probe(self, batch: Batch, progress: Progress) -> ProbeOutput:
        """Pooled features of whole images, and the loss."""
        with self.looking():
            encoded: EncoderOutput = self.encoder(batch.views[VIEW][0])
            return ProbeOutput(encoded.pooled(self.encoder_config.pooling), self(batch, progress).total)

    def encoders(self) -> Encoders:
        """The only one."""
        return Encoders(self.encoder)

    def exports(self) -> Mapping[str, Export]:
        """The encoder; the linear layer serves pretraining only."""
        return {"encoder": Export(self.encoder_config, self.encoder)}


def mean_colors(images: Float[Tensor, "B 3 h w"], patch_size: int) -> Float[Tensor, "B N 3"]:
    """The average color of each patch, in raster order."""
    return F.avg_pool2d(images.float(), patch_size).flatten(2).transpose(1, 2)
