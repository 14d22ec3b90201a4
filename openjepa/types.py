"""Data that the parts of openjepa hand to each other, and the letters that name the axes of tensors.

Axis letters, used in every signature:
    B  images in a (micro)batch          V  views of one name           C  color channels
    N  patches of the grid               K  patches the context keeps   M  target blocks
    T  patches per target block          D  width of the encoder        P  width of the predictor
    h, w  pixels                         H, W  rows and columns of the patch grid
    R  rows of masks: B x contexts       W  width of the targets, if it may differ from D
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import lru_cache

import torch
from jaxtyping import Bool, Float, Int, Shaped, UInt8
from torch import Tensor, nn


@dataclass(frozen=True)
class BlockMasks:
    """Context and target patches of each image. A patch is its raster index, row * W + column, on a grid of H x W patches."""

    context: Int[Tensor, "B K"]
    targets: Int[Tensor, "B M T"]
    grid: tuple[int, int]
    """Rows H and columns W."""
    context_valid: Bool[Tensor, "B K"] | None = None
    """False where a context is padded: the index there is 0 and attention must ignore it. None if nothing is padded."""
    redrawn: int = 0
    """Number of samples whose blocks were drawn again because too few context patches were left."""
    padded: int = 0
    """Number of samples that still had too few context patches and were padded."""

    def to(self, device: torch.device) -> "BlockMasks":
        """The same masks on `device`."""
        valid = None if self.context_valid is None else self.context_valid.to(device, non_blocking=True)
        context, targets = self.context.to(device, non_blocking=True), self.targets.to(device, non_blocking=True)
        return replace(self, context=context, targets=targets, context_valid=valid)


@dataclass(frozen=True)
class TokenMask:
    """Masked patches (True) of each image, for methods that replace or drop single tokens."""

    masked: Bool[Tensor, "B N"]
    grid: tuple[int, int]
    num_masked: int | None = None
    """Number of masked patches per image. None if it differs between images."""

    def visible(self) -> Int[Tensor, "B K"]:
        """Raster indices of the visible patches, ascending. Raises ValueError if `num_masked` is None.

        The number of visible patches comes from `num_masked`, so that the CPU need not wait for the device.
        """
        return self.divided()[0]

    def divided(self) -> tuple[Int[Tensor, "B K"], Int[Tensor, "B T"]]:
        """Raster indices of the visible and of the masked patches, ascending. Raises ValueError if `num_masked` is None."""
        if self.num_masked is None:
            raise ValueError("images with different numbers of masked patches have no common number of visible ones")
        visible_first = self.masked.byte().argsort(dim=1, stable=True)
        num_visible = self.masked.shape[1] - self.num_masked
        return visible_first[:, :num_visible], visible_first[:, num_visible:]

    def to(self, device: torch.device) -> "TokenMask":
        """The same mask on `device`."""
        return replace(self, masked=self.masked.to(device, non_blocking=True))


Masks = BlockMasks | TokenMask


@dataclass(frozen=True)
class Skipped:
    """A sample that could not be read. The next sample of the order took its place."""

    name: str
    reason: str
    kind: str = ""
    """What several of them may share: the reason without what only this file has."""


@dataclass(frozen=True)
class LoaderPosition:
    """Position of the training in the order of samples. This is the whole state of the loader."""

    epoch: int = 0
    offset: int = 0
    """Number of samples of this epoch that all processes together have used."""


@dataclass(frozen=True)
class Batch:
    """One microbatch of one process."""

    sample_ids: Int[Tensor, " B"]
    """Index of each sample in its source. For a stream, a running number."""
    views: Mapping[str, UInt8[Tensor, "V B C h w"] | Float[Tensor, "V B C h w"]]
    """One entry per crop size. uint8 as the loader gives them; normalized floats as a method gets them."""
    masks: Mapping[str, Masks] = field(default_factory=dict)
    """Masks by the name of their views. V x B rows, view by view, as in `views[name].flatten(0, 1)`.

    With several contexts per image (`InputSpec.contexts`), each of these rows is followed by those of its other contexts.
    """
    labels: Int[Tensor, " B"] | None = None
    skipped: tuple[Skipped, ...] = ()
    next_position: LoaderPosition = LoaderPosition()
    """Position of the loader after the optimizer step that this microbatch belongs to."""

    def to(self, device: torch.device) -> "Batch":
        """The same batch with views and masks on `device`."""
        views = {name: view.to(device, non_blocking=True) for name, view in self.views.items()}
        masks = {name: mask.to(device) for name, mask in self.masks.items()}
        return replace(self, views=views, masks=masks)

    def normalized(self, mean: tuple[float, ...], std: tuple[float, ...]) -> "Batch":
        """The batch with float views, (pixel / 255 - mean) / std per channel, computed on the device they are on."""
        return replace(self, views={name: normalize(view, tuple(mean), tuple(std)) for name, view in self.views.items()})


def normalize(
    pixels: UInt8[Tensor, "*lead C h w"], mean: tuple[float, ...], std: tuple[float, ...]
) -> Float[Tensor, "*lead C h w"]:
    """Float32 pixels, (pixel / 255 - mean) / std per channel, on the device of `pixels`."""
    scale, shift = _scale_and_shift(mean, std, pixels.device)
    return torch.addcmul(shift, pixels.to(torch.float32), scale)


@lru_cache(maxsize=16)
def _scale_and_shift(mean: tuple[float, ...], std: tuple[float, ...], device: torch.device) -> tuple[Tensor, Tensor]:
    """Cached per device: making a tensor from Python numbers on a device waits for it, which would cost time in every step."""
    scale = torch.tensor([1 / (255 * s) for s in std], device=device).view(-1, 1, 1)
    return scale, torch.tensor([-m / s for m, s in zip(mean, std, strict=True)], device=device).view(-1, 1, 1)


@dataclass(frozen=True)
class ColorChange:
    """Random color changes of a view. Each part is drawn for every view independently."""

    jitter: tuple[float, float, float, float] = (0.0, 0.0, 0.0, 0.0)
    """Largest change of brightness, contrast and saturation (fractions) and of hue (turns)."""
    jitter_probability: float = 0.0
    grayscale_probability: float = 0.0
    blur_probability: float = 0.0
    blur_sigma: tuple[float, float] = (0.1, 2.0)
    """Smallest and largest standard deviation of the Gaussian blur, in pixels of the view."""
    solarize_probability: float = 0.0
    """Probability that pixel values of 128 and more are inverted."""


@dataclass(frozen=True)
class ViewSpec:
    """One kind of view that a method asks the loader for: random crops of one size."""

    size: tuple[int, int]
    """Height and width in pixels."""
    count: int = 1
    """Number of views per image (V)."""
    """Views per image (V)."""
    scale: tuple[float, float] = (0.3, 1.0)
    """Smallest and largest area of the crop, as a fraction of the image."""
    aspect: tuple[float, float] = (3 / 4, 4 / 3)
    """Smallest and largest width / height of the crop."""
    interpolation: str = "bilinear"
    horizontal_flip: bool = False
    colors: tuple[ColorChange, ...] = ()
    """One entry for each of the `count` views. If empty, colors stay as they are."""


@dataclass(frozen=True)
class InputSpec:
    """The views and masks that a method wants in each batch."""

    views: Mapping[str, ViewSpec]
    masked_views: tuple[str, ...] = ()
    """Names of the views that need masks. The mask sampler draws one mask for each of their views and images."""
    contexts: int = 1
    """Number of masks that are drawn for each of these views, one after the other in the rows of a batch's masks."""


@dataclass(frozen=True)
class LossOutput:
    """The loss and diagnostics that a method returns for one microbatch. Tensors stay on the device."""

    total: Float[Tensor, ""]
    """The scalar that is differentiated."""
    parts: Mapping[str, Float[Tensor, ""]] = field(default_factory=dict)
    """Detached terms of the loss, logged as `loss/<name>`."""
    diagnostics: Mapping[str, Shaped[Tensor, "..."]] = field(default_factory=dict)
    """Detached values that are logged but not optimized."""


@dataclass(frozen=True)
class EncoderOutput:
    """The output of an encoder, after its final norm, in fp32."""

    patches: Float[Tensor, "B K D"]
    class_token: Float[Tensor, "B D"] | None = None
    blocks: tuple[Float[Tensor, "B K D"], ...] = ()
    """Outputs of the last blocks, before the final norm and without class token, if they were asked for."""

    def pooled(self, pooling: str) -> Float[Tensor, "B D"]:
        """One vector per image: the `average` of the patches, or the `class_token`.

        Raises ValueError if `pooling` is "class_token" and the encoder has none.
        """
        if pooling == "average":
            return self.patches.mean(dim=1)
        if self.class_token is None:
            raise ValueError(f"pooling={pooling!r} needs an encoder with a class token; this one has none: use 'average'")
        return self.class_token


# FSDP2 must find the tensors that its networks return
torch.export.register_dataclass(EncoderOutput)


@dataclass(frozen=True)
class ParameterRule:
    """The optimizer's treatment of the parameters that match. If several rules match, the first one counts."""

    matches: Callable[[str, nn.Parameter], bool]
    """True if the rule applies to a parameter, given its name and value."""
    decay: bool
    """True if weight decay applies."""
    lr_scale: float = 1.0
    """Factor on the learning rate."""
    clip: bool = True
    """True if gradient clipping includes this parameter, both in the norm and in the scaling."""


TRAINED: Mapping[str, object] = {"role": "trained"}
"""What config.json says of an exported encoder that gradients have trained. Without it, it is a target encoder."""


@dataclass(frozen=True)
class Export:
    """A network that is shared as `<run>/<name>/config.json` + `model.safetensors`."""

    config: object
    """Frozen settings dataclass (EncoderConfig, PredictorConfig, ...) that the module can be rebuilt from."""
    module: nn.Module
    extra: Mapping[str, object] = field(default_factory=dict)
    """Further entries of config.json: the mask settings of a predictor, TRAINED of an encoder that is no target encoder."""
