"""The encoder that `openjepa.load` returns: a torch module that also takes images of any kind and size."""

from collections.abc import Callable, Iterable, Iterator, Sized
from dataclasses import asdict
from operator import index
from pathlib import Path
from typing import Literal, SupportsIndex, get_args

import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor, nn

from openjepa.engine.device import Output, encode, in_caches
from openjepa.inference.areas import Areas, indices_of
from openjepa.inference.images import Picture, Pictures, View, ViewName, batches, prepared_view, separate
from openjepa.inference.prediction import Prediction, compare_block, objective_of, refuse_other_targets
from openjepa.models.predictor import Predictor
from openjepa.refusals import Refusal
from openjepa.system.console import progress as progress_bar
from openjepa.system.shared_files import is_writable
from openjepa.types import EncoderOutput, Export
from openjepa.weights.formats import Loaded
from openjepa.weights.native import PREDICTOR_FOLDER, save_network

InputSize = int | tuple[int, int] | None
"""Side of a square in pixels, or (height, width); None: the training size."""
Precision = Literal["auto", "bf16", "fp32"]
Pooling = Literal["own", "average", "class_token"]


class Encoder(nn.Module):
    """A pretrained encoder. It is on the CPU, in fp32 and in evaluation mode until `.to`, `.half` or `.train` change that.

    `encoder(images)` is the plain network: normalized images [B, 3, h, w] -> `EncoderOutput`, with gradients. `embed`,
    `embed_patches` and `predict` take images of any kind and size, prepare them as the evaluations do, and keep no gradients.
    """

    def __init__(self, loaded: Loaded) -> None:
        """`loaded`: result of `openjepa.weights.formats.load_any`."""
        super().__init__()
        self.network = loaded.encoder
        """The Vision Transformer."""
        self.predictor: Predictor | None = loaded.predictor
        """I-JEPA's predictor; None if it was not read."""
        self.config = loaded.config
        """Settings of the network."""
        self.what = loaded.what
        """Short description of the encoder."""
        self.notes = loaded.notes
        """Notes on reading: prefixes cut off names in the file, and entries that were not read."""
        self.objective = None if loaded.predictor is None else objective_of(loaded.predictor_extra)
        """Objective that the predictor was trained for; None without a predictor."""
        self._predictor_extra = dict(loaded.predictor_extra)
        self.eval()

    def extra_repr(self) -> str:
        """Description and notes on reading, for print(encoder)."""
        return "; ".join((self.what, *self.notes))

    @property
    def device(self) -> torch.device:
        """Device of the weights."""
        return self.network.norm.weight.device

    @property
    def dtype(self) -> torch.dtype:
        """Type of the weights: float32 unless they were cast."""
        return self.network.norm.weight.dtype

    def forward(self, images: Float[Tensor, "B 3 h w"], keep: Int[Tensor, "B K"] | None = None) -> EncoderOutput:
        """Runs the network with gradients on images normalized with `config.pixel_mean` and `config.pixel_std`.

        `keep`: raster indices of the only patches to encode. Outputs are fp32. Raises Refusal if the images are not floats or
        the patch size does not divide their size.
        """
        if not images.is_floating_point():
            raise Refusal(
                f"encoder(images) takes normalized floats, not {images.dtype}: use encoder.embed for images as they come, or "
                "openjepa.types.normalize(images, encoder.config.pixel_mean, encoder.config.pixel_std)"
            )
        return self.network(images.to(self.dtype), keep)  # type: ignore[no-any-return]

    def embed(
        self,
        images: Pictures,
        *,
        pooling: Pooling = "own",
        view: ViewName = "crop",
        size: InputSize = None,
        precision: Precision = "auto",
        batch_size: int = 64,
        progress: bool = False,
    ) -> Float[Tensor, "B D"]:
        """One vector per image, in fp32 on the CPU, in the order of the images.

        `images`: one or many paths, PIL images, arrays or tensors. One or two batches are taken ahead from a generator.
        `pooling`: `average` of the patches, `class_token`, or `own`, the one with which the encoder's method is evaluated.
        `view`: `crop` is the view of the evaluations (short side to 256/224 of `size`, center crop). `squash` resizes the whole
        image to `size`. `whole` keeps the aspect ratio and resizes the short side to that of `size`.
        `size`: side in pixels, or (height, width), multiples of the patch size; None: the training size.
        `precision`: `auto` is bf16 if the hardware has it. Weights that were cast compute in their own type.
        `batch_size`: number of images of one shape that are encoded together.
        `progress`: shows a bar with rate and time left, on a terminal.
        Raises Refusal if something is not an image (and names it), or if settings do not fit.
        """
        pooling_name = self._pooling(pooling)
        numbers: list[int] = []
        pooled = [torch.empty(0, self.config.width)]
        for batch, output, _ in self._outputs(images, self._view(view, size), precision, batch_size, progress):
            numbers += batch
            pooled.append(output.pooled(pooling_name).cpu())
        return _in_order(torch.cat(pooled), numbers)

    def embed_patches(
        self,
        images: Pictures,
        *,
        view: ViewName = "crop",
        size: InputSize = None,
        precision: Precision = "auto",
        batch_size: int = 64,
        progress: bool = False,
    ) -> Float[Tensor, "B H W D"]:
        """Features of the patches of each image, on the grid of H rows and W columns, in fp32 on the CPU.

        Arguments as in `embed`. Also raises Refusal if `view` is `whole` and the grids of the images differ.
        """
        numbers: list[int] = []
        features: list[Tensor] = []
        shapes = {self.grid(size)} if view != "whole" else set()
        for batch, output, grid in self._outputs(images, self._view(view, size), precision, batch_size, progress):
            _check_common(shapes, grid)
            numbers += batch
            features.append(output.patches.view(-1, *grid, self.config.width).cpu())
        return _in_order(torch.cat(features), numbers) if features else torch.empty(0, *self.grid(size), self.config.width)

    def predict(
        self,
        images: Pictures,
        context: Areas | None,
        targets: Areas,
        *,
        view: ViewName = "crop",
        size: InputSize = None,
        targets_from: "Encoder | None" = None,
        precision: Precision = "auto",
        batch_size: int = 16,
    ) -> Prediction:
        """Predicts target blocks from the context patches, and compares them with the encoder's features.

        `context`: the only patches that are encoded; several areas are joined; None: all patches outside the targets.
        `targets`: one or several target blocks. A target may overlap the context; `in_context` says where.
        Each area is an `openjepa.PatchBox`, a boolean mask [H, W] or raster indices on `encoder.grid(size)`. It is the same for
        all images. Each target block is predicted by itself, without seeing the others (I-JEPA, section 3). If `size` is not
        the training size, positions are computed for the new grid.
        `targets_from`: the encoder that makes the targets; None: this one. `view`, `size`, `precision`: as in `embed`.

        In training the context comes from the context encoder and the targets from the target encoder, its moving average.
        Here one encoder, by default the target encoder, makes both. At the end of training the two are close, but not equal. If
        the run kept both, `load(run, encoder="context").predict(..., targets_from=load(run))` does exactly what training did.

        Raises Refusal if there is no predictor, if it was trained for other targets (`method.target_space=pixels`), or if an
        area is empty or reaches beyond the grid.
        """
        objective = self.objective
        if objective is None:
            raise Refusal(
                f"this encoder ({self.what}) came without a predictor; there is one in runs of I-JEPA (give the run folder, "
                "not encoder/ in it), in the released I-JEPA checkpoints, and in what openjepa convert wrote of these"
            )
        refuse_other_targets(self._predictor_extra)
        teacher = self if targets_from is None else targets_from
        if (teacher.config.width, teacher.config.patch_size) != (self.config.width, self.config.patch_size):
            raise Refusal("targets_from is an encoder of another width or patch size than this one")
        shapes: set[tuple[int, int]] = set()
        predicted, actual = [], []
        for _, pixels in self._batches(separate(images), self._view(view, size), batch_size):
            grid = self._grid_of(pixels)
            _check_common(shapes, grid)
            blocks = indices_of(targets, grid, "targets")
            kept = _context_indices(context, blocks, grid)
            predicted.append(self._predicted(pixels, kept, blocks, precision))
            features = teacher.encode_pixels(pixels, precision).patches.cpu()
            actual.append([objective.targets(features[:, block]) for block in blocks])
        if not predicted:
            raise Refusal("predict needs an image, but images is empty")
        paired = zip(blocks, zip(*predicted, strict=True), zip(*actual, strict=True), strict=True)
        found = (compare_block(block, kept, torch.cat(first), torch.cat(second), objective) for block, first, second in paired)
        return Prediction(grid, kept, tuple(found))

    def grid(self, size: InputSize = None) -> tuple[int, int]:
        """Rows and columns of patches of an image in the view `crop` or `squash`."""
        return self.config.grid(self.view_size(size))

    def view_size(self, size: InputSize = None) -> tuple[int, int]:
        """(height, width) of prepared images, in pixels; None: the training size. Raises Refusal if `size` is not a size."""
        if size is None:
            return self.config.image_size
        try:
            height, width = (size, size) if isinstance(size, SupportsIndex) else size
            return index(height), index(width)
        except (TypeError, ValueError):
            raise Refusal(f"size={size!r} is neither a number of pixels nor (height, width)") from None

    def prepared(self, image: Picture, view: ViewName = "crop", size: InputSize = None) -> UInt8[Tensor, "3 h w"]:
        """One image as the network sees it, before normalization. Raises Refusal as `embed` does."""
        return prepared_view(image, self._view(view, size))

    def encode_pixels(self, pixels: UInt8[Tensor, "B 3 h w"], precision: Precision = "auto") -> EncoderOutput:
        """The output for prepared images, on the encoder's device, in fp32, without gradients. A CPU takes a few at a time."""
        parts = in_caches(pixels, self.config.patch_size, self.device)
        outputs = [self._encode(self, part, precision) for part in parts]
        if len(outputs) == 1:
            return outputs[0]  # type: ignore[no-any-return]
        tokens = [output.class_token for output in outputs if output.class_token is not None]
        return EncoderOutput(torch.cat([output.patches for output in outputs]), torch.cat(tokens) if tokens else None)

    def save(self, folder: Path | str) -> None:
        """Writes encoder and predictor in fp32, in the layout of a run folder. `openjepa.load(folder)` reads them again.

        Each is replaced as a whole. Raises Refusal if `folder` is a run (its encoder would be lost), if it holds a predictor
        but this encoder has none, or if it cannot be written to.
        """
        place = Path(folder).expanduser()
        if not is_writable(place):
            raise Refusal(f"{place} cannot be written to: give another folder")
        if (place / "config.yaml").exists():
            raise Refusal(f"{place} is the folder of a run, whose encoder is not replaced: give another folder")
        if self.predictor is None and (place / PREDICTOR_FOLDER).exists():
            raise Refusal(f"{place} holds the predictor of another encoder, and this one has none: give another folder")
        save_network(place / "encoder", Export(self.config, self.network))
        if self.predictor is not None and self.objective is not None:
            extra = {**self._predictor_extra, **asdict(self.objective)}
            save_network(place / PREDICTOR_FOLDER, Export(self.predictor.config, self.predictor, extra))

    def _predicted(
        self, pixels: UInt8[Tensor, "B 3 h w"], kept: Int[Tensor, " K"], blocks: list[Int[Tensor, " T"]], precision: Precision
    ) -> list[Float[Tensor, "B T D"]]:
        """Predicted features of each block. Blocks of one length are predicted together."""
        predictor = self.predictor
        assert predictor is not None
        context = kept.to(self.device).expand(len(pixels), -1)  # [B, K]
        found: dict[int, Tensor] = {}

        def predict(normalized: Float[Tensor, "B 3 h w"]) -> None:
            tokens = self(normalized, context).patches.to(self.dtype)
            for length in {len(block) for block in blocks}:
                chosen = [number for number, block in enumerate(blocks) if len(block) == length]
                asked = torch.stack([blocks[number] for number in chosen]).to(self.device)  # [M, T]
                asked = asked.expand(len(pixels), -1, -1)
                predictions = predictor(tokens, context, asked, self._grid_of(pixels)).cpu()  # [B, M, T, D]
                found.update(zip(chosen, predictions.unbind(1), strict=True))

        self._encode(predict, pixels, precision)
        return [found[number] for number in range(len(blocks))]

    def _encode(
        self, network: Callable[[Float[Tensor, "B 3 h w"]], Output], pixels: UInt8[Tensor, "B 3 h w"], precision: Precision
    ) -> Output:
        """`encode` without gradients or dropped paths, even in training mode. Uses bf16 only if the weights are fp32."""
        if precision not in get_args(Precision):
            raise Refusal(f"precision={precision!r} is not known: use 'auto', 'bf16' or 'fp32', or cast the weights: .half()")
        chosen = precision if self.dtype == torch.float32 else "fp32"
        training = [module for module in self.modules() if module.training]
        try:
            for module in training:
                module.training = False
            # an autocast around the caller must not decide
            with torch.no_grad(), torch.autocast(self.device.type, enabled=False):
                return encode(network, pixels, self.config, self.device, chosen)
        finally:
            for module in training:
                module.training = True

    def _view(self, name: ViewName, size: InputSize) -> View:
        return View(name, self.view_size(size), self.config.patch_size)

    def _pooling(self, pooling: Pooling) -> str:
        """The pooling with `own` resolved. Raises Refusal if this encoder does not have it."""
        if pooling not in get_args(Pooling):
            raise Refusal(f"pooling={pooling!r} is not known: use 'own', 'average' or 'class_token'")
        if pooling == "class_token" and not self.config.class_token:
            raise Refusal("pooling='class_token' needs an encoder with a class token; this one has none: use 'average'")
        return self.config.pooling if pooling == "own" else pooling

    def _grid_of(self, pixels: UInt8[Tensor, "B 3 h w"]) -> tuple[int, int]:
        height, width = pixels.shape[-2:]
        return self.config.grid((height, width))

    def _batches(self, images: Iterable[Picture], view: View, batch_size: int) -> Iterator[tuple[list[int], Tensor]]:
        """Yields numbers and views of the images. Uses as many threads as torch, beside a GPU at least two."""
        if batch_size < 1:
            raise Refusal(f"batch_size={batch_size} is too small: use 1 or more")
        threads = max(torch.get_num_threads(), 1 if self.device.type == "cpu" else 2)
        return batches(images, view, batch_size, threads)

    def _outputs(
        self, images: Pictures, view: View, precision: Precision, batch_size: int, progress: bool
    ) -> Iterator[tuple[list[int], EncoderOutput, tuple[int, int]]]:
        """Yields numbers, outputs and the grid of images of one shape, batch by batch."""
        listed = separate(images)
        total = len(listed) if isinstance(listed, Sized) else None
        with progress_bar("embedding", total, style="auto" if progress else "none") as advance:
            for numbers, pixels in self._batches(listed, view, batch_size):
                yield numbers, self.encode_pixels(pixels, precision), self._grid_of(pixels)
                advance(len(numbers))


def _context_indices(context: Areas | None, blocks: list[Tensor], grid: tuple[int, int]) -> Int[Tensor, " K"]:
    """Raster indices of the context, several areas joined. None: all patches outside the blocks."""
    if context is None:
        outside = torch.ones(grid[0] * grid[1], dtype=torch.bool)
        outside[torch.cat(blocks)] = False
        if not outside.any():
            raise Refusal("context=None is all patches outside the targets, but these cover the whole grid: name a context")
        return outside.nonzero()[:, 0]
    found = indices_of(context, grid, "context")
    return found[0] if len(found) == 1 else torch.unique(torch.cat(found))


def _check_common(shapes: set[tuple[int, int]], grid: tuple[int, int]) -> None:
    """Adds `grid` to `shapes`. Raises Refusal if `shapes` holds another grid."""
    shapes.add(grid)
    if len(shapes) > 1:
        found = " and ".join(f"{rows}x{columns}" for rows, columns in sorted(shapes))
        raise Refusal(f"view='whole' gives these images different grids ({found}): give one at a time, or use 'crop'")


def _in_order(rows: Float[Tensor, "B *shape"], numbers: list[int]) -> Float[Tensor, "B *shape"]:
    """The rows sorted by the numbers of their images."""
    if numbers == list(range(len(numbers))):
        return rows
    return rows[torch.tensor(numbers).argsort()]
