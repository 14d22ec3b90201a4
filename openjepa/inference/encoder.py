"""The encoder that `openjepa.load` gives: a torch module that also takes images as they come."""

from collections.abc import Iterator
from typing import Literal

import torch
from jaxtyping import Float, UInt8
from torch import Tensor, nn

from openjepa.data.views import EVALUATION_MARGIN, evaluation_view, whole_view
from openjepa.engine.device import autocast, resolve_precision
from openjepa.engine.embedding import in_caches
from openjepa.inference.pictures import Picture, Pictures, pixels_of, separate
from openjepa.types import EncoderOutput, normalize
from openjepa.weights.loaded import Loaded

ViewName = Literal["crop", "squash", "whole"]
Precision = Literal["auto", "bf16", "fp32"]


class Encoder(nn.Module):
    """A pretrained encoder, on the CPU, in fp32 and evaluation mode, until `.to(device)` moves it.

    `encoder(images)` is the plain network: normalized images [B, 3, h, w] -> `EncoderOutput`. `embed` and `embed_patches` take
    images of any kind and size, prepare them as in the evaluations, and keep no gradients.
    """

    def __init__(self, loaded: Loaded) -> None:
        """Of what `openjepa.weights.loading.load_any` read."""
        super().__init__()
        self.network = loaded.encoder
        self.predictor = loaded.predictor
        """I-JEPA's predictor, where it was read too."""
        self.config = loaded.config
        """Settings of the network."""
        self.what = loaded.what
        """What it is, in a few words."""
        self.eval()

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.network.norm.weight.device

    def forward(self, images: Float[Tensor, "B 3 h w"]) -> EncoderOutput:
        """The network on images normalized with `config.pixel_mean` and `pixel_std`, with gradients."""
        return self.network(images)  # type: ignore[no-any-return]

    def embed(
        self,
        images: Pictures,
        *,
        pooling: Literal["own", "average", "class_token"] = "own",
        view: ViewName = "crop",
        size: int | tuple[int, int] | None = None,
        precision: Precision = "auto",
        batch_size: int = 64,
    ) -> Float[Tensor, "B D"]:
        """One vector per image, in fp32 on the CPU.

        `pooling`: `own` is what the encoder's method evaluates. `view`: `crop` is that of the evaluations (short side to
        256/224 of `size`, center crop), `squash` resizes all of the image to `size`, `whole` keeps its shape, its short side
        becoming that of `size`. `size`: pixels, or (height, width); None: the training size. `precision`: `auto` is bf16 where
        the hardware has it. Raises ValueError for what is no image.
        """
        pooling_name = self.config.pooling if pooling == "own" else pooling
        pooled = [torch.empty(0, self.config.width)]
        for output, _ in self._outputs(images, view, size, precision, batch_size):
            pooled.append(output.pooled(pooling_name).cpu())
        return torch.cat(pooled)

    def embed_patches(
        self,
        images: Pictures,
        *,
        view: ViewName = "crop",
        size: int | tuple[int, int] | None = None,
        precision: Precision = "auto",
        batch_size: int = 64,
    ) -> Float[Tensor, "B H W D"]:
        """Features of the patches of each image, on their grid of H rows and W columns, in fp32 on the CPU.

        As `embed`. Raises ValueError also where `whole` images differ in shape, so that their grids do.
        """
        grids: list[Tensor] = []
        for output, grid in self._outputs(images, view, size, precision, batch_size):
            grids.append(output.patches.view(-1, *grid, self.config.width).cpu())
        shapes = {tuple(item.shape[1:3]) for item in grids}
        if len(shapes) > 1:
            found = ", ".join(f"{rows}x{columns}" for rows, columns in sorted(shapes))
            raise ValueError(f"view='whole' gives these images different grids ({found}): embed one at a time, or use 'crop'")
        rows, columns = self.config.grid(self.view_size(size))
        return torch.cat(grids) if grids else torch.empty(0, rows, columns, self.config.width)

    def view_size(self, size: int | tuple[int, int] | None = None) -> tuple[int, int]:
        """(height, width) in pixels of the prepared images; None: the training size."""
        if size is None:
            return self.config.image_size
        return (size, size) if isinstance(size, int) else size

    def prepared(
        self, image: Picture, view: ViewName = "crop", size: int | tuple[int, int] | None = None
    ) -> UInt8[Tensor, "3 h w"]:
        """One image as the network sees it, before normalization."""
        height, width = self.view_size(size)
        pixels = pixels_of(image, 2 * round(max(height, width) * EVALUATION_MARGIN))
        if view == "whole":
            return whole_view(pixels, min(height, width), self.config.patch_size)
        return evaluation_view(pixels, (height, width), view)

    def encode_pixels(self, pixels: UInt8[Tensor, "B 3 h w"], precision: Precision = "auto") -> EncoderOutput:
        """The output for prepared images, on the encoder's device, without gradients; on a CPU a few at a time."""
        resolved = resolve_precision(precision, self.device)
        outputs = [self._encode(part, resolved) for part in in_caches(pixels, self.config.patch_size, self.device)]
        if len(outputs) == 1:
            return outputs[0]
        tokens = [output.class_token for output in outputs if output.class_token is not None]
        return EncoderOutput(torch.cat([output.patches for output in outputs]), torch.cat(tokens) if tokens else None)

    @torch.inference_mode()
    def _encode(self, pixels: UInt8[Tensor, "B 3 h w"], precision: str) -> EncoderOutput:
        on_device = pixels.to(self.device, non_blocking=True)
        with autocast(self.device, precision):
            return self.network(normalize(on_device, self.config.pixel_mean, self.config.pixel_std))  # type: ignore[no-any-return]

    def _outputs(
        self, images: Pictures, view: ViewName, size: int | tuple[int, int] | None, precision: Precision, batch_size: int
    ) -> Iterator[tuple[EncoderOutput, tuple[int, int]]]:
        """Outputs and patch grids of the images in their order, as many at a time as have one shape."""
        waiting: list[Tensor] = []
        for image in separate(images):
            prepared = self.prepared(image, view, size)
            if waiting and (len(waiting) == batch_size or waiting[0].shape != prepared.shape):
                yield self._batch(waiting, precision)
                waiting = []
            waiting.append(prepared)
        if waiting:
            yield self._batch(waiting, precision)

    def _batch(self, prepared: list[Tensor], precision: Precision) -> tuple[EncoderOutput, tuple[int, int]]:
        return self.encode_pixels(torch.stack(prepared), precision), self.config.grid(tuple(prepared[0].shape[-2:]))  # type: ignore[arg-type]
