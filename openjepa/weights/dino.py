"""Checkpoints of DINO and iBOT, which share a layout, and of MSN: a class token and learned positions.

A full checkpoint holds `teacher` and `student` (MSN: `target_encoder` and `encoder`), each a backbone with its projection head,
which is not read; a published backbone alone is a plain dictionary, or one under `state_dict`. The teacher is what their papers
evaluate, by its class token.
"""

from torch import Tensor

from openjepa.refusals import Refusal
from openjepa.weights.contents import Contents, Groups
from openjepa.weights.loaded import Choice, Loaded, refuse_context, size_words
from openjepa.weights.mae import has_decoder
from openjepa.weights.timm import PLACES
from openjepa.weights.vit_names import TOKEN, Vit, has_sincos, infer_config, read_vit, unwrapped, vit_groups

PAIRS = {"target": ("teacher", "target_encoder"), "context": ("student", "encoder")}
HEADS = ("head.mlp", "head.last_layer", "fc.fc", "fc.bn")
"""Projection heads: DINO's and iBOT's, MSN's."""
MASKED = "masked_embed"
"""iBOT's token for masked patches, which an encoder of whole images does not need."""


def recognize(contents: Contents) -> bool:
    """A file with a teacher or student, or one network, that has a class token and no fixed positions."""
    if contents.settings is not None or contents.path.is_dir():
        return False
    found = {name: group for name, group in vit_groups(contents.groups).items() if TOKEN in group}
    pairs = {name for names in PAIRS.values() for name in names}
    if "predictor" in contents.groups:
        return False
    return any(
        name in pairs or (name in PLACES and not has_sincos(group) and not has_decoder(group)) for name, group in found.items()
    )


def read(contents: Contents, choice: Choice) -> Loaded:
    """The teacher (or the student). Raises Refusal that lists what is missing or left over."""
    name = _place(contents, choice)
    vit = Vit(contents, lambda groups: _backbone(groups[name]))
    where = f"{contents.path}, {name}" if name else str(contents.path)
    config = infer_config(vit.tensors(), choice.heads, where)
    encoder = read_vit(vit, config, where)
    part = f", {choice.encoder} encoder ({name})" if name not in PLACES else ""
    words = f"{_method(contents.groups)}{part}: {size_words(config)}"
    return Loaded(encoder, config, None, None, words, _encoders(contents.groups))


def _encoders(groups: Groups) -> tuple[str, ...]:
    """Which of the two are there; a network without a name of either counts as the target."""
    found = vit_groups(groups)
    return tuple(which for which, names in PAIRS.items() if any(name in found for name in names)) or ("target",)


def _place(contents: Contents, choice: Choice) -> str:
    """The dictionary with the encoder that is wanted."""
    found = vit_groups(contents.groups)
    names = [name for name in PAIRS[choice.encoder] if name in found]
    if names:
        return names[0]
    if any(name in found for pair in PAIRS.values() for name in pair):
        raise Refusal(
            f"encoder={choice.encoder!r}: {contents.path} has no {' or '.join(PAIRS[choice.encoder])}, "
            f"only {', '.join(found)}; choose the other encoder"
        )
    refuse_context(contents, choice)
    return next(name for name in PLACES if name in found)


def _backbone(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    plain = unwrapped(tensors)
    return {name: value for name, value in plain.items() if not name.startswith(HEADS) and name != MASKED}


def _method(groups: Groups) -> str:
    """A guess for people to read, by what else is in the file."""
    networks = vit_groups(groups)
    if any(MASKED in group for group in networks.values()):
        return "iBOT"
    return (
        "MSN"
        if "target_encoder" in networks or any("fc.fc1.weight" in group for group in networks.values())
        else "DINO or alike"
    )
