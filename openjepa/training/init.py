"""Training that starts from given weights (`run.init`).

First `settled` reads the weights and adapts the settings of the model to them. Then `start_method` copies them to the networks.
"""

import os
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from openjepa.checks import check_patch_divides
from openjepa.config import flatten, load_run_config
from openjepa.engine.run_folder import run_path
from openjepa.methods.base import Method
from openjepa.models.predictor import Predictor
from openjepa.models.transformer import hidden_width
from openjepa.models.vit import VisionTransformer
from openjepa.refusals import Refusal, few
from openjepa.settings.methods import MethodSettings
from openjepa.settings.models import SIZES, EncoderConfig, ModelSettings, PredictorConfig, Shape
from openjepa.settings.run import RunConfig, RunSettings
from openjepa.system.console import hub_name
from openjepa.weights.contents import MOST_NAMES, weights_hash
from openjepa.weights.formats import Loaded, WeightsChoice, WrongChoice, load_any

SHAPE = ("size", "width", "depth", "heads", "mlp_ratio")
"""Settings of the model that together describe one shape."""
ENCODER = ("patch_size", "class_token", "positions", "layer_scale", "layer_norm_eps")
PIXELS = ("pixel_mean", "pixel_std")
PREDICTOR = ("predictor_width", "predictor_depth", "predictor_heads", "predictor_pass")
FOLLOWING = (
    *(f"model.{name}" for name in (*SHAPE, *ENCODER, "resampling_offset")),
    *(f"data.{name}" for name in PIXELS),
    *(f"method.{name}" for name in PREDICTOR),
)
"""All settings that weights decide. Drop path, how new weights are drawn, and the image size are decided by the run."""
CLASS_TOKEN, MASK_TOKEN, POSITIONS = "cls_token", "mask_token", "pos_embed"
ADDED = {CLASS_TOKEN: "the class token", MASK_TOKEN: "the mask token"}
"""Weights that a method may need although the starting weights lack them."""
PREDICTOR_SIZES = ("encoder_width", "width", "depth", "heads", "mlp_ratio", "layer_norm_eps", "outputs")
"""Settings that must agree for two predictors to be the same network. Positions are computed for every grid."""


@dataclass(frozen=True)
class StartingWeights:
    """Networks read from the weights of `run.init`."""

    path: str
    target: Loaded
    """The target encoder, or the only encoder, together with I-JEPA's predictor if there is one."""
    context: Loaded | None
    """The context encoder; None if there is only one encoder, or only one is used."""


@dataclass(frozen=True)
class Start:
    """Description of the weights from which a run has started, for its records and for people."""

    path: str
    what: str
    context: str | None
    """Description of the encoder from which the trained network has started; None if it is that of the moving average."""
    predictor: bool
    """True if the predictor has started from given weights too."""
    hashes: Mapping[str, str]
    """Hash of the weights of each network, by the name of the network (`weights.contents.weights_hash`)."""
    new: tuple[str, ...]
    """Parts of the method that have started from random weights."""
    notes: tuple[str, ...]

    def lines(self) -> list[str]:
        """Lines for the introduction of a run."""
        both = "; the trained network from its context encoder" if self.context else ""
        new = f"; new: {', '.join(self.new)}" if self.new else ""
        return [
            f"start      {self.path}",
            f"           {self.what}{both}{'; with its predictor' if self.predictor else ''}{new}",
            *(f"note: {note}" for note in self.notes),
        ]


def settled(config: RunConfig, given: Collection[str], fresh: bool) -> tuple[RunConfig, StartingWeights | None]:
    """Settings adapted to the weights of `run.init`, and these weights. Without `run.init`: `config` and None.

    `given`: dotted names of the settings that were set for this run; they must not contradict the weights. `fresh`: a new run,
    even if one exists. A run that has a checkpoint takes the adapted settings from its config.yaml and does not read the
    weights again. Raises Refusal if a given setting contradicts the weights, or if the weights cannot be read. The path of a
    teacher that stays as it is becomes absolute.
    """
    config = _with_teacher_found(config)
    if config.run.init is None:
        return config, None
    if not config.run.init:
        raise Refusal("run.init is empty: name a run, an encoder folder, a file of weights or a model on the Hub")
    config, before = _found(config, fresh)
    if before is not None:
        return as_before(config, before, given), None
    weights = read_weights(config.run)
    target = weights.target
    return following(config, target.config, target.predictor_config, given, weights.path), weights


def _with_teacher_found(config: RunConfig) -> RunConfig:
    """`config` with the absolute path of the weights that its method never changes. A name on the Hub stays as it is."""
    name = config.method.frozen_teacher()
    if name is None or hub_name(name) is not None:
        return config
    if not name:
        raise Refusal("method.teacher is empty: name a run, an encoder folder, a file of weights or a model on the Hub")
    place = os.path.abspath(Path(name).expanduser())  # noqa: PTH100  (resolve would follow links)
    return replace(config, method=config.method.with_teacher_at(place))


def _found(config: RunConfig, fresh: bool) -> tuple[RunConfig, RunConfig | None]:
    """`config` with the absolute path of the weights or their name on the Hub, and the result of `_begun` for it.

    If a begun run has started from a path, the words still mean this path, even if it no longer exists.
    """
    name = str(config.run.init)
    place = Path(name).expanduser()
    config = replace(config, run=replace(config.run, init=os.path.abspath(place)))  # noqa: PTH100  (resolve would follow links)
    before = None if fresh else _begun(config)
    if before is None and hub_name(name) is not None:
        config = replace(config, run=replace(config.run, init=name))
        before = None if fresh else _begun(config)
    return config, before


def _begun(config: RunConfig) -> RunConfig | None:
    """The settings with which this run began; None unless it has a checkpoint and started from the same weights."""
    path = run_path(config)
    if not any(path.glob("checkpoints/step_*")) or not (path / "config.yaml").is_file():
        return None
    before = load_run_config(path)
    return before if _origin(before.run) == _origin(config.run) else None


def _origin(run: RunSettings) -> tuple[object, ...]:
    return run.init, run.init_encoder, run.init_heads


def read_weights(run: RunSettings) -> StartingWeights:
    """Reads the weights that `run.init` names. Raises Refusal if they cannot be read or lack the requested encoder."""
    assert run.init is not None
    target = _read(run, WeightsChoice("context" if run.init_encoder == "context" else "target", run.init_heads))
    context = None
    if run.init_encoder == "both" and "context" in target.encoders:
        context = _read(run, WeightsChoice("context", run.init_heads, predictor=False))
    return StartingWeights(run.init, target, context)


def _read(run: RunSettings, choice: WeightsChoice) -> Loaded:
    assert run.init is not None
    try:
        return load_any(run.init, choice)
    except WrongChoice as error:
        raise Refusal(f"run.init: {error} (here --init-{error.setting})") from error
    except Refusal as error:
        raise Refusal(f"run.init: {error}") from error


def following(
    config: RunConfig, encoder: EncoderConfig, predictor: PredictorConfig | None, given: Collection[str], weights: str
) -> RunConfig:
    """`config` with the model, the normalization and the predictor that were read from weights.

    `given`: dotted names of the settings that were set for this run; all others are replaced. `weights`: name of the weights in
    errors. Raises Refusal if a given setting contradicts the weights, or if the images are not a whole number of patches. The
    settings of a predictor may differ: its weights are then new.
    """
    model = _model(config, encoder, given)
    _check_given(config, model, encoder, given, weights)
    pixels = {name: getattr(encoder, name) for name in PIXELS if f"data.{name}" not in given}  # given ones are kept
    data = replace(config.data, **pixels)
    method = _method(config, encoder, predictor, given)
    _check_patches(data.height_width(), encoder, weights)
    return replace(config, model=model, data=data, method=method)


def _model(config: RunConfig, encoder: EncoderConfig, given: Collection[str]) -> ModelSettings:
    """The model of the weights, with a class token if the method needs one, and with the resampling offset if it is given."""
    shape = Shape(encoder.width, encoder.depth, encoder.heads, encoder.mlp_ratio)
    offset = config.model.resampling_offset if "model.resampling_offset" in given else encoder.resampling_offset
    taken = {name: getattr(encoder, name) for name in ENCODER}
    taken["class_token"] = encoder.class_token or config.method.needs_class_token
    return replace(_with_shape(config.model, shape), resampling_offset=offset, **taken)


def _with_shape(model: ModelSettings, shape: Shape) -> ModelSettings:
    """`model` with this shape, expressed by the name of its size if it has one."""
    for name, known in SIZES.items():
        same = (known.width, known.depth, known.heads) == (shape.width, shape.depth, shape.heads)
        if same and _hidden(known) == _hidden(shape):
            return replace(model, size=name, width=None, depth=None, heads=None, mlp_ratio=None)
    return replace(model, width=shape.width, depth=shape.depth, heads=shape.heads, mlp_ratio=shape.mlp_ratio)


def _hidden(shape: Shape) -> int:
    return hidden_width(shape.width, shape.mlp_ratio)


def _check_given(config: RunConfig, model: ModelSettings, encoder: EncoderConfig, given: Collection[str], weights: str) -> None:
    """Raises Refusal if given settings differ from the weights. Names all of them, with the values of the weights."""
    own, theirs = config.model.shape(), model.shape()
    wrong = []
    if "model.size" in given and own != theirs:
        wrong.append(f"model.size={config.model.size} ({_words(own)}), but the weights have {_words(theirs)}")
    for name in SHAPE[1:]:
        if f"model.{name}" in given and getattr(own, name) != getattr(theirs, name):
            wrong.append(f"model.{name}={getattr(own, name)}, but the weights have {getattr(theirs, name)}")
    wanted = {f"model.{name}": getattr(model, name) for name in ENCODER}
    if not Path(weights).is_file():  # a file holds tensors without settings: only the user knows the pixels
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
    """The method, with the settings of the weights' predictor if both have a predictor."""
    method = config.method
    if predictor is None:
        return method
    heads = None if predictor.heads == encoder.heads else predictor.heads
    sizes = {"predictor_width": predictor.width, "predictor_depth": predictor.depth, "predictor_heads": heads}
    theirs: dict[str, object] = sizes | {"predictor_pass": predictor.passes}
    taken = {name: value for name, value in theirs.items() if name in vars(method) and f"method.{name}" not in given}
    return replace(method, **taken)  # type: ignore[arg-type]


def _check_patches(size: tuple[int, int], encoder: EncoderConfig, weights: str) -> None:
    """Raises Refusal, naming sizes that fit, unless the images are a whole number of the weights' patches."""
    trained_at = _shown(tuple(dict.fromkeys(encoder.image_size)))
    check_patch_divides(encoder.patch_size, size, of=f"run.init={weights} (trained at {trained_at})")


def as_before(config: RunConfig, before: RunConfig, given: Collection[str]) -> RunConfig:
    """`config` with the settings that were adapted to the weights when the run began. `given` settings stay as they are."""

    def taken(group: object, saved: object, prefix: str) -> dict[str, object]:
        names = [name.removeprefix(prefix) for name in FOLLOWING if name.startswith(prefix) and name not in given]
        return {name: getattr(saved, name) for name in names if name in vars(group) and name in vars(saved)}

    model = replace(config.model, **taken(config.model, before.model, "model."))  # type: ignore[arg-type]
    if model.shape() == before.model.shape():  # one shape can be written in several ways
        model = replace(model, **{name: getattr(before.model, name) for name in SHAPE})
    return replace(
        config,
        model=model,
        data=replace(config.data, **taken(config.data, before.data, "data.")),  # type: ignore[arg-type]
        method=replace(config.method, **taken(config.method, before.method, "method.")),  # type: ignore[arg-type]
    )


def start_method(method: Method, config: RunConfig, weights: StartingWeights | None) -> Start | None:
    """Copies the weights of `run.init` to the networks of a new `method`. Returns None without `run.init`.

    `weights`: the result of `settled`; None: they are read now. Encoders take all of their weights, with positions resampled
    for the run's images. Raises Refusal if weights have no place or another shape, and lists them.
    """
    if config.run.init is None:
        return None
    weights = weights or read_weights(config.run)
    encoders = method.encoders()
    averaged = encoders.averaged
    # a method without a moving average trains the encoder that is evaluated
    source = weights.target if averaged is None or weights.context is None else weights.context
    new, unused = start_encoder(encoders.trained, source.encoder, weights.path)
    filled: list[nn.Module] = [encoders.trained]
    if averaged is not None:
        start_encoder(averaged, weights.target.encoder, weights.path)
        filled.append(averaged)
    hashes = {"encoder": weights_hash(weights.target.encoder)}
    is_context = source is not weights.target
    if is_context:
        hashes["context_encoder"] = weights_hash(source.encoder)
    notes = list(dict.fromkeys((*weights.target.notes, *source.notes)))
    notes += _notes(method, config, weights.target, new, unused)
    predictor, theirs = method.exports().get("predictor"), weights.target.predictor
    if predictor is not None and theirs is not None and _start_predictor(predictor.module, theirs, notes):
        filled.append(predictor.module)
        hashes["predictor"] = weights_hash(theirs)
    return Start(
        path=weights.path,
        what=weights.target.what,
        context=source.what if is_context else None,
        predictor="predictor" in hashes,
        hashes=hashes,
        new=_new_parts(method, filled),
        notes=tuple(notes),
    )


@torch.no_grad()
def start_encoder(network: VisionTransformer, source: VisionTransformer, path: str) -> tuple[list[str], list[str]]:
    """Copies the weights of `source` to `network`, with positions resampled to its grid. `path`: name of the weights in errors.

    Returns the names in `network` that stay new, and the names in `source` that are not used. Both can only be tokens, and the
    position of a class token that `source` lacks. Raises Refusal if other names do not match, and lists them.
    """
    own = network.state_dict()
    theirs = dict(source.weights_for(network.config.grid()))
    if POSITIONS in theirs and network.config.class_token and not source.config.class_token:
        theirs[POSITIONS] = torch.cat([own[POSITIONS][:, :1], theirs[POSITIONS]], dim=1)
    new, unused = sorted(own.keys() - theirs.keys()), sorted(theirs.keys() - own.keys())
    _check_places(own, theirs, path)
    network.load_state_dict({name: theirs.get(name, value) for name, value in own.items()})
    return new, unused


def _check_places(own: Mapping[str, Tensor], theirs: Mapping[str, Tensor], path: str) -> None:
    missing = [name for name in own if name not in theirs and name not in ADDED]
    extra = [name for name in theirs if name not in own and name != MASK_TOKEN]
    wrong = [
        f"{name} {list(theirs[name].shape)} instead of {list(value.shape)}"
        for name, value in own.items()
        if name in theirs and theirs[name].shape != value.shape
    ]
    found = {"missing": missing, "left over": extra, "of another shape": wrong}
    problems = [f"{word} {few(names, MOST_NAMES)}" for word, names in found.items() if names]
    if problems:
        raise Refusal(f"run.init={path} does not fit the encoder of this run: {'; '.join(problems)}")


def _notes(method: Method, config: RunConfig, target: Loaded, new: list[str], unused: list[str]) -> list[str]:
    """Notes for the user: new parts, unused weights, changed behavior."""
    name, notes = config.method.name, []
    if new:
        words = [ADDED[item] for item in new]
        if CLASS_TOKEN in new and config.model.positions == "learned":
            words.append("its position")
        notes.append(f"{' and '.join(words)} of the encoder {'is' if len(words) == 1 else 'are'} new: the weights have none")
    if unused:
        notes.append(f"{' and '.join(ADDED[item] for item in unused)} of the weights is not used: {name} needs none")
    if target.predictor is not None and "predictor" not in method.exports():
        notes.append(f"the predictor of the weights is not used: {name} has none")
    exported = method.exports()["encoder"].config
    assert isinstance(exported, EncoderConfig)
    own, theirs = exported.grid(), target.config.grid()
    if own != theirs:
        how = "computed" if exported.positions == "sincos" else "resampled"
        sizes = f"{own[0]}x{own[1]} patches; the weights have seen {theirs[0]}x{theirs[1]}"
        notes.append(f"positions are {how} for the grid of this run, {sizes}")
    if exported.pooling != target.config.pooling:
        before, now = (config.pooling.replace("_", " ") for config in (target.config, exported))
        notes.append(f"features are pooled by {now}, as {name} is evaluated; those of the weights by {before}")
    return notes


def _start_predictor(network: nn.Module, source: Predictor, notes: list[str]) -> bool:
    """Copies the predictor's weights. If it is another network, returns False and adds a note that says why."""
    assert isinstance(network, Predictor)
    own, theirs = network.config, source.config
    differing = [name for name in PREDICTOR_SIZES if getattr(own, name) != getattr(theirs, name)]
    if differing:
        notes.append(
            f"the predictor is new: {_sizes(own, differing)} was asked for, and the weights' has {_sizes(theirs, differing)}"
        )
        return False
    network.load_state_dict(source.state_dict())
    return True


def _sizes(config: PredictorConfig, names: list[str]) -> str:
    return ", ".join(f"{name} {getattr(config, name):g}" for name in names)


def _new_parts(method: Method, filled: list[nn.Module]) -> tuple[str, ...]:
    """Names of the method's attributes with weights or statistics outside of the `filled` modules."""
    ours = {id(value) for module in filled for value in module.state_dict(keep_vars=True).values()}
    state: Mapping[str, Any] = method.state_dict(keep_vars=True)
    tops = {name.split(".")[0] for name, value in state.items() if id(value) not in ours}
    return tuple(sorted(tops))
