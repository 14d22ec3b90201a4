"""Settings of the encoder (a Vision Transformer), named sizes, configurations of exported networks, and checks of their sizes.

The checks: images and patches, widths and heads, and all sizes of a network in a file fit each other.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Literal

from openjepa.refusals import Refusal
from openjepa.settings.fields import (
    ABOVE_0,
    AT_LEAST_1,
    FINITE,
    NOT_NEGATIVE,
    POSITIVE,
    SHARE_BELOW_1,
    Range,
    Said,
    as_setting,
    between,
    check_ranges,
)

Size = Literal["test", "nano", "micro", "tiny", "small", "base", "large", "huge", "giant"]
Initialization = Literal["released", "depth_scaled", "fan_in", "xavier"]
Positions = Literal["sincos", "learned", "relative"]
PredictorPasses = Literal["separate", "joint", "cross"]


PATCH_SIZES = range(4, 17)
"""Sides of a patch, in pixels, with which an encoder can be trained."""
WIDTH, DEPTH = between(1, 2**16), between(1, 1000)
"""Limits for a network that a file describes: far above any existing one, and low enough to fit into memory."""
MLP_RATIO = Range(ABOVE_0, 64, "above 0 and at most 64")


@dataclass(frozen=True)
class Shape:
    """Width, depth, heads and MLP ratio (hidden width / width) of a Vision Transformer."""

    width: int
    depth: int
    heads: int
    mlp_ratio: float = 4.0


SIZES: dict[Size, Shape] = {
    "test": Shape(48, 2, 3),  # for tests only
    "nano": Shape(128, 4, 4),  # ours, for one CPU
    "micro": Shape(192, 6, 3),  # ours, for one CPU
    "tiny": Shape(192, 12, 3),
    "small": Shape(384, 12, 6),
    "base": Shape(768, 12, 12),
    "large": Shape(1024, 24, 16),
    "huge": Shape(1280, 32, 16),
    "giant": Shape(1408, 40, 16, 48 / 11),
}


@dataclass(frozen=True, kw_only=True)
class ModelSettings:
    """The encoder that is trained and exported."""

    size: Size = "small"
    """Named shape: tiny to giant are the ViT-Ti/S/B/L/H/g of the literature; nano and micro are ours for one CPU."""
    patch_size: Annotated[int, between(PATCH_SIZES[0], PATCH_SIZES[-1])] = 16
    """Side of a square patch in pixels (4 to 16)."""
    class_token: bool = False
    """Prepend a learned class token. I-JEPA and data2vec's targets do not use it; DINO, iBOT and MSN need it."""
    positions: Positions = "sincos"
    """`sincos`: a fixed table (I-JEPA, MAE); `learned`: a trained table (DINO, iBOT, MSN); `relative`: a trained attention bias
    for every offset, the same in all blocks (data2vec)."""
    resampling_offset: Annotated[float, SHARE_BELOW_1] = 0.0
    """Added to the new number of patches if learned positions are resampled for crops of another size: 0 (exact), or 0.1 as in
    the released DINO and iBOT code."""
    layer_scale: Annotated[float | None, POSITIVE] = None
    """Initial value of learned factors on both branches of every block (data2vec: 1e-4 for B, 1e-5 for L). None: no factors."""
    drop_path: Annotated[float, SHARE_BELOW_1] = 0.0
    """Largest stochastic-depth rate, growing linearly over the blocks. I-JEPA: 0."""
    layer_norm_eps: Annotated[float, POSITIVE] = 1e-6
    """Epsilon of every LayerNorm (released code: 1e-6)."""
    initialization: Initialization = "released"
    """`released`: every Linear drawn with std 0.02, as the released runs really had it; `depth_scaled`: residual outputs
    divided by sqrt(2 x layer), as their model file says before it is overwritten; `fan_in`: every Linear and the patch
    embedding drawn with std 1 / sqrt(inputs), so that narrow encoders and small patches keep their signal; `xavier`: both
    uniform within sqrt(6 / (inputs + outputs)), as in MAE's released code."""
    width: Annotated[int | None, AT_LEAST_1] = None
    """Overrides the width of `size`."""
    depth: Annotated[int | None, AT_LEAST_1] = None
    """Overrides the depth of `size`."""
    heads: Annotated[int | None, AT_LEAST_1] = None
    """Overrides the number of heads of `size`."""
    mlp_ratio: Annotated[float | None, POSITIVE] = None
    """Overrides the MLP ratio of `size`: hidden width of the MLPs / width."""

    def shape(self) -> Shape:
        """The named shape with the overrides applied."""
        named = SIZES[self.size]
        own = (self.width or named.width, self.depth or named.depth, self.heads or named.heads)
        return Shape(*own, self.mlp_ratio or named.mlp_ratio)

    def words(self) -> str:
        """A short description: `small/16`, or width, depth, heads and patch size if the shape of `size` is overridden."""
        shape = self.shape()
        if shape == SIZES[self.size]:
            return f"{self.size}/{self.patch_size}"
        return f"width {shape.width}, {shape.depth} blocks, {shape.heads} heads, patch {self.patch_size}"

    def grid(self, image_size: tuple[int, int]) -> tuple[int, int]:
        """Rows and columns of patches of an image. `image_size`: height and width in pixels."""
        return image_size[0] // self.patch_size, image_size[1] // self.patch_size

    def encoder(
        self,
        image_size: tuple[int, int],
        pixel_mean: tuple[float, float, float],
        pixel_std: tuple[float, float, float],
    ) -> "EncoderConfig":
        """The encoder that these settings describe. `image_size`: height and width of the crops in pixels."""
        shape = self.shape()
        return EncoderConfig(
            width=shape.width,
            depth=shape.depth,
            heads=shape.heads,
            mlp_ratio=shape.mlp_ratio,
            patch_size=self.patch_size,
            image_size=image_size,
            class_token=self.class_token,
            positions=self.positions,
            resampling_offset=self.resampling_offset,
            layer_scale=self.layer_scale,
            drop_path=self.drop_path,
            layer_norm_eps=self.layer_norm_eps,
            initialization=self.initialization,
            pixel_mean=pixel_mean,
            pixel_std=pixel_std,
        )


@dataclass(frozen=True, kw_only=True)
class EncoderConfig:
    """Everything needed to rebuild an exported encoder. It is written to `encoder/config.json` beside the weights."""

    width: Annotated[int, WIDTH]
    """Dimensions of a token."""
    depth: Annotated[int, DEPTH]
    """Number of blocks."""
    heads: Annotated[int, WIDTH]
    """Attention heads of every block."""
    mlp_ratio: Annotated[float, MLP_RATIO]
    """Hidden width of the MLPs / width."""
    patch_size: Annotated[int, between(1, 1024)]
    """Side of a square patch in pixels."""
    image_size: Annotated[tuple[int, int], between(1, 2**16)]
    """Height and width of the training images, in pixels. Other sizes that the patch size divides work too."""
    class_token: bool = False
    """True if a learned token comes before the tokens of the patches."""
    positions: Positions = "sincos"
    """`sincos`: a fixed table, computed for every grid (I-JEPA, MAE); `learned`: weights `pos_embed` for the training size,
    resampled bicubically to the grid of other sizes (DINO, iBOT, MSN); `relative`: a table of attention biases for every offset
    between two patches, shared by all blocks and resampled likewise (data2vec)."""
    resampling_offset: Annotated[float, SHARE_BELOW_1] = 0.0
    """Added to the new number of patches if learned positions are resampled (see `ModelSettings`)."""
    layer_scale: Annotated[float | None, FINITE] = None
    """Initial value of the learned factors `gamma_1` and `gamma_2` on the branches of every block. None: no factors."""
    mask_token: bool = False
    """True if the encoder has a learned token that stands for masked patches."""
    drop_path: Annotated[float, SHARE_BELOW_1] = 0.0
    """Largest stochastic-depth rate in training."""
    layer_norm_eps: Annotated[float, POSITIVE] = 1e-6
    """Epsilon of every LayerNorm."""
    initialization: Initialization = "released"
    """How new weights are drawn (see `ModelSettings`)."""
    pooling: Literal["average", "class_token"] = "average"
    """How one vector per image is made from the output: as in the evaluations of the method's paper."""
    pixel_mean: Annotated[tuple[float, float, float], FINITE] = (0.485, 0.456, 0.406)
    """Mean of the RGB channels in [0, 1], subtracted before the patch embedding (ImageNet's)."""
    pixel_std: Annotated[tuple[float, float, float], POSITIVE] = (0.229, 0.224, 0.225)
    """Standard deviation of the RGB channels (ImageNet's)."""

    def grid(self, image_size: tuple[int, int] | None = None) -> tuple[int, int]:
        """Rows and columns of patches at `image_size` (default: the training size)."""
        height, width = image_size or self.image_size
        return height // self.patch_size, width // self.patch_size


@dataclass(frozen=True, kw_only=True)
class PredictorConfig:
    """Everything needed to rebuild an exported predictor. It is written to `predictor/config.json`."""

    encoder_width: Annotated[int, WIDTH]
    """Width of the encoder whose output the predictor reads."""
    width: Annotated[int, WIDTH]
    """Dimensions of a token."""
    depth: Annotated[int, DEPTH]
    """Number of blocks."""
    heads: Annotated[int, WIDTH]
    """Attention heads of every block."""
    grid: Annotated[tuple[int, int], between(1, 2**14)]
    """Rows and columns of patches in training."""
    mlp_ratio: Annotated[float, MLP_RATIO] = 4.0
    layer_norm_eps: Annotated[float, POSITIVE] = 1e-6
    initialization: Initialization = "released"
    output_width: Annotated[int | None, WIDTH] = None
    """Numbers that are predicted for a patch. None: the encoder's width."""
    passes: PredictorPasses = "separate"
    """`separate`: a sequence for each target block; `joint` and `cross`: one for all, see `IJepaSettings.predictor_pass`."""
    position_noise: Annotated[float, NOT_NEGATIVE] = 0.0
    """Variance of the noise on the positions of mask tokens in training (see `IJepaSettings`). Other uses have none."""

    @property
    def outputs(self) -> int:
        """Numbers that are predicted for a patch."""
        return self.output_width or self.encoder_width


@dataclass(frozen=True, kw_only=True)
class DecoderConfig:
    """Everything needed to build MAE's decoder."""

    encoder_width: int
    width: int
    depth: int
    heads: int
    grid: tuple[int, int]
    """Rows and columns of patches."""
    patch_size: int
    """Side of a square patch in pixels."""
    mlp_ratio: float = 4.0
    layer_norm_eps: float = 1e-6
    initialization: Initialization = "released"

    def pixels(self) -> int:
        """Number of values in one patch: its pixels in three channels."""
        return 3 * self.patch_size**2


# ---------------------------------------------------------------------------------------------------- sizes that fit each other


MOST_POSITIONS = 2**30
"""Most values in a table of fixed positions."""


def height_and_width(size: int | tuple[int, int]) -> tuple[int, int]:
    """(height, width) of a size. `size`: the same, or the side of a square."""
    return (size, size) if isinstance(size, int) else size


def check_patch_divides(
    patch: int,
    size: tuple[int, int],
    size_name: str = "data.image_size",
    patch_name: str = "model.patch_size",
    of: str | None = None,
    said: Said = as_setting,
) -> None:
    """Raises Refusal, naming values that fit, unless the sides of an image are multiples of the patch size.

    `size`: height and width in pixels. `size_name`, `patch_name`: names of the settings. `said`: formats them. `of`: what has
    this patch size, if no setting can change it.
    """
    if all(side >= patch and side % patch == 0 for side in size):
        return
    patches = said(patch_name, patch) if of is None else f"the patch size {patch} of {of}"
    fitting = [number for number in PATCH_SIZES if of is None and min(size) > 0 and not any(side % number for side in size)]
    instead = f"{patch_name} one of {', '.join(map(str, fitting))}, or " if fitting else ""
    nearest = said(size_name, tuple(nearest_multiple(side, patch) for side in dict.fromkeys(size)))
    raise Refusal(f"{patches} does not divide {said(size_name, f'{size[0]}x{size[1]}')}: use {instead}{nearest}")


def nearest_multiple(side: int, patch: int) -> int:
    """The multiple of `patch` nearest to `side`, in pixels; at least one patch."""
    return max(patch, round(side / patch) * patch)


def check_heads(name: str, heads: int, width_name: str, width: int) -> None:
    """Raises Refusal, naming numbers of heads that fit, unless `heads` divides `width`."""
    if width % heads:
        fitting = [number for number in range(1, 33) if width % number == 0]
        raise Refusal(f"{name}={heads} does not divide {width_name} ({width}); heads that do: {', '.join(map(str, fitting))}")


def check_positions(name: str, width: int) -> None:
    """Raises Refusal unless sine-cosine positions can have this width."""
    if width % 4:
        low = max(4, width // 4 * 4)
        raise Refusal(f"{name}={width} must be a multiple of 4 for sine-cosine positions, e.g. {low} or {low + 4}")


def check_encoder(config: EncoderConfig, names: Mapping[str, str] | None = None) -> None:
    """Raises Refusal if no encoder can have these settings. `names`: the file's own names of settings, for errors."""

    def called(name: str) -> str:
        return (names or {}).get(name, name)

    check_ranges(config, said=lambda name, value: as_setting(called(name), value))
    check_heads(called("heads"), config.heads, called("width"), config.width)
    check_patch_divides(config.patch_size, config.image_size, called("image_size"), of="the encoder")
    if config.positions == "sincos":
        _check_table(config.width, config.grid(), called("width"), called("image_size"))
    if config.pooling == "class_token" and not config.class_token:
        raise Refusal("pooling='class_token' needs a class token (class_token=False)")


def check_predictor(config: PredictorConfig) -> None:
    """Raises Refusal if no predictor can have these settings."""
    check_ranges(config)
    check_heads("heads", config.heads, "width", config.width)
    _check_table(config.width, config.grid, "width", "grid")


def _check_table(width: int, grid: tuple[int, int], width_name: str, grid_name: str) -> None:
    check_positions(width_name, width)
    if width * grid[0] * grid[1] > MOST_POSITIONS:
        raise Refusal(f"{grid_name} gives a grid of {grid[0]}x{grid[1]} patches, too large for {width_name}={width}")
