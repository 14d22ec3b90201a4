"""Which settings of a run follow the weights that it starts from, and which of them somebody has set otherwise."""

from collections.abc import Collection
from dataclasses import replace
from pathlib import Path

from openjepa.checks import nearest_multiple
from openjepa.config import flatten
from openjepa.models.transformer import hidden_width
from openjepa.refusals import Refusal
from openjepa.settings.methods import IJepaSettings, MethodSettings
from openjepa.settings.models import SIZES, EncoderConfig, ModelSettings, PredictorConfig, Shape
from openjepa.settings.run import RunConfig

SHAPE = ("size", "width", "depth", "heads", "mlp_ratio")
"""Settings of the model that together say one thing."""
ENCODER = ("patch_size", "class_token", "positions", "layer_scale", "layer_norm_eps")
PIXELS = ("pixel_mean", "pixel_std")
PREDICTOR = ("predictor_width", "predictor_depth", "predictor_heads")
FOLLOWING = (
    *(f"model.{name}" for name in (*SHAPE, *ENCODER, "resampling_offset")),
    *(f"data.{name}" for name in PIXELS),
    *(f"method.{name}" for name in PREDICTOR),
)
"""All settings that weights decide. Drop path, how new weights are drawn, and the image size are the run's own."""


def following(
    config: RunConfig, encoder: EncoderConfig, predictor: PredictorConfig | None, given: Collection[str], weights: str
) -> RunConfig:
    """`config` with the model, the normalization and the predictor of what was read from `weights`.

    `given`: dotted names of the settings that somebody has set for this run; all others give way. Raises Refusal where one
    of them contradicts the weights, and where the images are no whole number of patches. A predictor may differ: it is then
    new.
    """
    model = _model(config, encoder, given)
    _check_given(config, model, encoder, given, weights)
    pixels = {name: getattr(encoder, name) for name in PIXELS if f"data.{name}" not in given}  # those given are allowed
    data = replace(config.data, **pixels)
    method = _method(config, encoder, predictor, given)
    _check_patches(data.height_width(), encoder, weights)
    return replace(config, model=model, data=data, method=method)


def as_before(config: RunConfig, before: RunConfig, given: Collection[str]) -> RunConfig:
    """`config` with the settings that followed the weights when the run began; those that are `given` stay as they are."""

    def taken(group: object, saved: object, prefix: str) -> dict[str, object]:
        names = [name.removeprefix(prefix) for name in FOLLOWING if name.startswith(prefix) and name not in given]
        return {name: getattr(saved, name) for name in names if name in vars(group) and name in vars(saved)}

    model = replace(config.model, **taken(config.model, before.model, "model."))  # type: ignore[arg-type]
    if model.shape() == before.model.shape():  # one shape has several spellings
        model = replace(model, **{name: getattr(before.model, name) for name in SHAPE})
    return replace(
        config,
        model=model,
        data=replace(config.data, **taken(config.data, before.data, "data.")),  # type: ignore[arg-type]
        method=replace(config.method, **taken(config.method, before.method, "method.")),  # type: ignore[arg-type]
    )


def _model(config: RunConfig, encoder: EncoderConfig, given: Collection[str]) -> ModelSettings:
    """A class token that the method needs is added; an offset that is given says how to resample, and contradicts nothing."""
    shape = Shape(encoder.width, encoder.depth, encoder.heads, encoder.mlp_ratio)
    offset = config.model.resampling_offset if "model.resampling_offset" in given else encoder.resampling_offset
    taken = {name: getattr(encoder, name) for name in ENCODER}
    taken["class_token"] = encoder.class_token or config.method.needs_class_token
    return replace(_with_shape(config.model, shape), resampling_offset=offset, **taken)


def _with_shape(model: ModelSettings, shape: Shape) -> ModelSettings:
    """By its name where it has one."""
    for name, known in SIZES.items():
        same = (known.width, known.depth, known.heads) == (shape.width, shape.depth, shape.heads)
        if same and _hidden(known) == _hidden(shape):
            return replace(model, size=name, width=None, depth=None, heads=None, mlp_ratio=None)
    return replace(model, width=shape.width, depth=shape.depth, heads=shape.heads, mlp_ratio=shape.mlp_ratio)


def _hidden(shape: Shape) -> int:
    return hidden_width(shape.width, shape.mlp_ratio)


def _check_given(config: RunConfig, model: ModelSettings, encoder: EncoderConfig, given: Collection[str], weights: str) -> None:
    """Raises Refusal that names every given setting that is not what the weights have, and what they have."""
    own, theirs = config.model.shape(), model.shape()
    wrong = []
    if "model.size" in given and own != theirs:
        wrong.append(f"model.size={config.model.size} ({_words(own)}), but the weights have {_words(theirs)}")
    for name in SHAPE[1:]:
        if f"model.{name}" in given and getattr(own, name) != getattr(theirs, name):
            wrong.append(f"model.{name}={getattr(own, name)}, but the weights have {getattr(theirs, name)}")
    wanted = {f"model.{name}": getattr(model, name) for name in ENCODER}
    if not Path(weights).is_file():  # where no settings stand beside the tensors, only the user knows the pixels
        wanted |= {f"data.{name}": getattr(encoder, name) for name in PIXELS}
    asked = flatten(config)
    wrong += [
        f"{name}={_shown(asked[name])}, but the weights have {_shown(value)}"
        for name, value in wanted.items()
        if name in given and asked[name] != value
    ]
    if wrong:
        raise Refusal(f"run.init={weights} contradicts {'; '.join(wrong)}: leave it out, the model follows the weights")


def _words(shape: Shape) -> str:
    return f"width {shape.width}, depth {shape.depth}, {shape.heads} heads, MLP ratio {shape.mlp_ratio:.4g}"


def _shown(value: object) -> str:
    return " ".join(map(str, value)) if isinstance(value, tuple) else str(value)


def _method(
    config: RunConfig, encoder: EncoderConfig, predictor: PredictorConfig | None, given: Collection[str]
) -> MethodSettings:
    """I-JEPA's predictor is that of the weights, if they have one."""
    method = config.method
    if predictor is None or not isinstance(method, IJepaSettings):
        return method
    heads = None if predictor.heads == encoder.heads else predictor.heads
    theirs = {"predictor_width": predictor.width, "predictor_depth": predictor.depth, "predictor_heads": heads}
    taken = {name: value for name, value in theirs.items() if f"method.{name}" not in given}
    return replace(method, **taken)  # type: ignore[arg-type]


def _check_patches(size: tuple[int, int], encoder: EncoderConfig, weights: str) -> None:
    """Raises Refusal, with sizes that fit, where the images are no whole number of the weights' patches."""
    patch = encoder.patch_size
    if not any(side % patch for side in size):
        return
    near, own = (_shown(tuple(dict.fromkeys(sides))) for sides in (_multiples(size, patch), encoder.image_size))
    raise Refusal(
        f"data.image_size={size[0]}x{size[1]} is no whole number of patches of {patch}x{patch} pixels, which "
        f"run.init={weights} has: use --data.image-size {', or '.join(dict.fromkeys((near, own)))}, at which it was trained"
    )


def _multiples(size: tuple[int, int], patch: int) -> tuple[int, ...]:
    return tuple(nearest_multiple(side, patch) for side in size)
