"""Checkpoints of MAE, and of DINO, iBOT, DINOv2 and MSN: Vision Transformers with a class token.

Fixed sin-cos positions tell MAE from the others, which learn them. `model` of MAE holds the encoder, and in full checkpoints
the decoder and its mask token, which are not read. MAE's own fine-tuning takes the mean of the patches; here its encoder is
pooled by the class token, as in I-JEPA's evaluations ("methods with a cls token use the cls token").

A full checkpoint of the others holds `teacher` and `student` (MSN: `target_encoder` and `encoder`), each a backbone with its
projection head, which is not read. A published backbone alone is a plain dictionary, or one under `state_dict`. Their papers
evaluate the class token of the teacher.
"""

import re
from collections.abc import Mapping
from dataclasses import replace

from torch import Tensor

from openjepa.weights.contents import Contents
from openjepa.weights.formats import Choice, Loaded, Reader, WrongChoice, refuse_context, size_words
from openjepa.weights.shared_names import NOT_READ, TOKEN, Vit, has_sincos, infer_config, only_place, read_vit, vits
from openjepa.weights.state_dicts import Network
from openjepa.weights.timm import only_network

DECODER = ("decoder_",)


def recognize_mae(contents: Contents) -> bool:
    """A file with one network, which has a class token and either fixed positions or a decoder."""
    if contents.settings is not None or contents.path.is_dir():
        return False
    place = only_place(contents.networks)
    tensors = {} if place is None else contents.networks[place].tensors
    return TOKEN in tensors and (has_sincos(tensors) or has_decoder(tensors))


def read_mae(contents: Contents, choice: Choice) -> Loaded:
    """The encoder. Raises Refusal that lists what is missing or left over."""
    refuse_context(contents, choice)
    vit, where = Vit(contents, _encoder), str(contents.path)
    config = infer_config(vit.tensors(), choice.heads, where)
    return Loaded(read_vit(vit, config, where), config, None, None, f"MAE: {size_words(config)}", notes=vit.notes())


def _encoder(networks: Mapping[str, Network]) -> Network:
    return only_network(networks).without(DECODER)


def has_decoder(tensors: Mapping[str, Tensor]) -> bool:
    """Whether MAE's decoder is among the tensors."""
    return any(name.startswith("decoder_blocks.") for name in tensors)


PAIRS = {"target": ("teacher", "target_encoder"), "context": ("student", "encoder")}
PROJECTION = ("fc.fc", "fc.bn")
"""MSN's projection head."""
MASKED, MASKED_V2 = "masked_embed", "mask_token"
"""iBOT's and DINOv2's token for masked patches."""
USUAL = ("module.", "backbone.", "module.backbone.")
"""What the programs themselves put before names."""
CHUNK = re.compile(r"^blocks\.\d+\.(?=\d+\.)")
"""Blocks in chunks, as DINOv2 trains them: the second number is the block's."""


def recognize_dino(contents: Contents) -> bool:
    """A file with a teacher or student, or one network, that has a class token and no fixed positions."""
    if contents.settings is not None or contents.path.is_dir():
        return False
    networks = contents.networks
    place = only_place(networks)
    if place is None:
        pairs = {name for names in PAIRS.values() for name in names}
        return "predictor" not in networks and any(
            name in pairs and TOKEN in item.tensors for name, item in vits(networks).items()
        )
    tensors = networks[place].tensors
    return TOKEN in tensors and not has_sincos(tensors) and not has_decoder(tensors)


def read_dino(contents: Contents, choice: Choice) -> Loaded:
    """The teacher (or the student). Raises Refusal that lists what is missing or left over."""
    name = _place(contents, choice)
    vit = Vit(contents, lambda networks: _backbone(networks[name]))
    where = f"{contents.path}, {name}" if name else str(contents.path)
    config = infer_config(vit.tensors(), choice.heads, where)
    encoder = read_vit(vit, config, where)
    part = f", {choice.encoder} encoder ({name})" if name in PAIRS[choice.encoder] else ""
    words = f"{_method(contents.networks)}{part}: {size_words(config)}"
    return Loaded(encoder, config, None, None, words, _encoders(contents.networks), notes=vit.notes(USUAL))


def _encoders(networks: Mapping[str, Network]) -> tuple[str, ...]:
    """Which of the two are there; a network without a name of either counts as the target."""
    found = vits(networks)
    return tuple(which for which, names in PAIRS.items() if any(name in found for name in names)) or ("target",)


def _place(contents: Contents, choice: Choice) -> str:
    """The dictionary with the encoder that is wanted."""
    found = vits(contents.networks)
    names = [name for name in PAIRS[choice.encoder] if name in found]
    if names:
        return names[0]
    if any(name in found for pair in PAIRS.values() for name in pair):
        raise WrongChoice(
            f"encoder={choice.encoder!r}: {contents.path} has no {' or '.join(PAIRS[choice.encoder])}, "
            f"only {', '.join(found)}; choose the other encoder",
            "encoder",
        )
    refuse_context(contents, choice)
    place = only_place(contents.networks)
    assert place is not None  # else it is of no or another format
    return place


def _backbone(network: Network) -> Network:
    network = network.without((*NOT_READ, *PROJECTION, *DECODER))
    return replace(network, tensors={CHUNK.sub("blocks.", name): value for name, value in network.tensors.items()})


def _method(networks: Mapping[str, Network]) -> str:
    """A guess for people to read, by what else is in the file."""
    names = {name for item in vits(networks).values() for name in item.tensors}
    if MASKED in names:
        return "iBOT"
    if MASKED_V2 in names:
        return "DINOv2"
    return "MSN" if "target_encoder" in networks or "fc.fc1.weight" in names else "DINO or alike"


MAE = Reader(recognize_mae, read_mae)
DINO = Reader(recognize_dino, read_dino)
