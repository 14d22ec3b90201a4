"""Training that starts from weights: reads them once, and hands them to the networks of a method."""

import os
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from openjepa.config import load_run_config
from openjepa.engine.run_folder import run_path
from openjepa.methods.base import Method
from openjepa.models.predictor import Predictor
from openjepa.models.vit import VisionTransformer
from openjepa.refusals import Refusal
from openjepa.settings.models import EncoderConfig, PredictorConfig
from openjepa.settings.run import RunConfig, RunSettings
from openjepa.system.hub_names import hub_name
from openjepa.training.following import as_before, following
from openjepa.weights.filling import listed
from openjepa.weights.fingerprint import weights_hash
from openjepa.weights.loading import Choice, Loaded, load_any

CLASS_TOKEN, MASK_TOKEN, POSITIONS = "cls_token", "mask_token", "pos_embed"
ADDED = {CLASS_TOKEN: "the class token", MASK_TOKEN: "the mask token"}
"""Weights that a method may need though what it starts from lacks them."""
PREDICTOR_SIZES = ("encoder_width", "width", "depth", "heads", "mlp_ratio", "layer_norm_eps")
"""What makes two predictors the same network; its positions are computed for every grid."""


@dataclass(frozen=True)
class StartingWeights:
    """What was read."""

    path: str
    target: Loaded
    """The only encoder, or the target encoder; with I-JEPA's predictor where there is one."""
    context: Loaded | None
    """The context encoder, where there are both and both are wanted."""


@dataclass(frozen=True)
class Start:
    """What a run has started from, for its records and for people to read."""

    path: str
    what: str
    context: str | None
    """What the trained network has started from, where that is another encoder than the moving average's."""
    predictor: bool
    """Whether the predictor has started from weights too."""
    hashes: Mapping[str, str]
    """Of the weights of each network, by its name: `weights.fingerprint.weights_hash`."""
    new: tuple[str, ...]
    """Parts of the method that have started from random weights."""
    notes: tuple[str, ...]

    def lines(self) -> list[str]:
        """For the introduction of a run."""
        both = "; the trained network from its context encoder" if self.context else ""
        new = f"; new: {', '.join(self.new)}" if self.new else ""
        return [
            f"start      {self.path}",
            f"           {self.what}{both}{'; with its predictor' if self.predictor else ''}{new}",
            *(f"note: {note}" for note in self.notes),
        ]


def settled(config: RunConfig, given: Collection[str], fresh: bool) -> tuple[RunConfig, StartingWeights | None]:
    """The settings as the weights of `run.init` make them, and these weights. Without `run.init`: as they are, and None.

    A run that has a checkpoint takes from its config.yaml what followed from the weights when it began, and does not read them
    again. `given`: dotted names of the settings that were set for this run, which must not contradict the weights. Raises
    Refusal where they do, and where the weights cannot be read.
    """
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


def _found(config: RunConfig, fresh: bool) -> tuple[RunConfig, RunConfig | None]:
    """`config` with the absolute path of the weights, or with their name on the Hub; and what `_begun` finds of it.

    A path that a begun run has started from stays one when nothing lies there any more.
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
    """The settings of this run, where it has a checkpoint and has started from the same weights."""
    path = run_path(config)
    if not any(path.glob("checkpoints/step_*")) or not (path / "config.yaml").is_file():
        return None
    before = load_run_config(path)
    return before if _origin(before.run) == _origin(config.run) else None


def _origin(run: RunSettings) -> tuple[object, ...]:
    return run.init, run.init_encoder, run.init_heads


def read_weights(run: RunSettings) -> StartingWeights:
    """The weights that `run.init` names. Raises Refusal where they cannot be read or lack the encoder that is wanted."""
    assert run.init is not None
    target = _read(run, Choice("context" if run.init_encoder == "context" else "target", run.init_heads))
    context = None
    if run.init_encoder == "both" and "context" in target.encoders:
        context = _read(run, Choice("context", run.init_heads, predictor=False))
    return StartingWeights(run.init, target, context)


def _read(run: RunSettings, choice: Choice) -> Loaded:
    assert run.init is not None
    try:
        return load_any(run.init, choice)
    except ValueError as error:
        hints = []
        if "attention heads" in str(error):
            hints.append("here --init-heads")
        if "encoder=" in str(error):
            hints.append("here --init-encoder")
        raise Refusal(f"run.init: {error}{''.join(f' ({hint})' for hint in hints)}") from error


def start_method(method: Method, config: RunConfig, weights: StartingWeights | None) -> Start | None:
    """Hands the weights of `run.init` to the networks of a new method; None without `run.init`.

    `weights`: as `settled` has read them; None: they are read now. Encoders take all weights of theirs, positions resampled for
    the run's images. Raises Refusal that lists weights that have no place, or another shape.
    """
    if config.run.init is None:
        return None
    weights = weights or read_weights(config.run)
    encoders = method.encoders()
    averaged = encoders.averaged
    # a method without an average trains what is evaluated
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
    """Copies the weights of `source`, resampled to the network's grid; returns names that stay new, and names not used.

    Only tokens may be either, and the position of a class token that `source` lacks. Raises Refusal that lists all others.
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
    problems = [f"{word} {listed(names)}" for word, names in found.items() if names]
    if problems:
        raise Refusal(f"run.init={path} does not fit the encoder of this run: {'; '.join(problems)}")


def _notes(method: Method, config: RunConfig, target: Loaded, new: list[str], unused: list[str]) -> list[str]:
    """What of the encoder is new, what of the weights is not used, and what is done otherwise from now on."""
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
    """Whether the predictor could be taken; else a note says why."""
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
    """Attributes of the method with weights or statistics that did not come from a file."""
    ours = {id(value) for module in filled for value in module.state_dict(keep_vars=True).values()}
    state: Mapping[str, Any] = method.state_dict(keep_vars=True)
    tops = {name.split(".")[0] for name, value in state.items() if id(value) not in ours}
    return tuple(sorted(tops))
