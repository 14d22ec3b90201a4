"""Checkpoints of MAE, DINO, iBOT, DINOv2 and MSN: Vision Transformers with a class token.

MAE is recognized by its fixed sin-cos positions; the others learn theirs. `model` of MAE holds the encoder. Full checkpoints
also hold the decoder and its mask token, which are not read. MAE's own fine-tuning takes the mean of the patches. Here its
encoder is pooled by the class token, as in I-JEPA's evaluations ("methods with a cls token use the cls token").

A full checkpoint of the others holds `teacher` and `student` (MSN: `target_encoder` and `encoder`). Each is a backbone with a
projection head; the head is not read. A published backbone alone is a plain dictionary, or a dictionary under `state_dict`. The
papers evaluate the class token of the teacher.
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
    """True for a file with one network that has a class token and either fixed positions or a decoder."""
    if contents.settings is not None or contents.path.is_dir():
        return False
    place = only_place(contents.networks)
    tensors = {} if place is None else contents.networks[place].tensors
    return TOKEN in tensors and (has_sincos(tensors) or has_decoder(tensors))


def read_mae(contents: Contents, choice: Choice) -> Loaded:
    """Reads MAE's encoder. Raises Refusal if keys are missing or left over, and lists them."""
    refuse_context(contents, choice)
    vit, where = Vit(contents, _encoder), str(contents.path)
    config = infer_config(vit.tensors(), choice.heads, where)
    return Loaded(read_vit(vit, config, where), config, None, None, f"MAE: {size_words(config)}", notes=vit.notes())


def _encoder(networks: Mapping[str, Network]) -> Network:
    return only_network(networks).without(DECODER)


def has_decoder(tensors: Mapping[str, Tensor]) -> bool:
    """True if MAE's decoder is among the tensors."""
    return any(name.startswith("decoder_blocks.") for name in tensors)


PAIRS = {"target": ("teacher", "target_encoder"), "context": ("student", "encoder")}
PROJECTION = ("fc.fc", "fc.bn")
"""Names in MSN's projection head."""
MASKED, MASKED_V2 = "masked_embed", "mask_token"
"""Names of iBOT's and DINOv2's mask tokens."""
USUAL = ("module.", "backbone.", "module.backbone.")
"""Prefixes that the programs themselves put before names."""
CHUNK = re.compile(r"^blocks\.\d+\.(?=\d+\.)")
"""Prefix of blocks in chunks, as DINOv2 trains them. The number after it is the block's."""


def recognize_dino(contents: Contents) -> bool:
    """True for a file with a teacher or student, or with one network, that has a class token and no fixed positions."""
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
    """Reads the teacher (or the student). Raises Refusal if keys are missing or left over, and lists them."""
    name = _place(contents, choice)
    vit = Vit(contents, lambda networks: _backbone(networks[name]))
    where = f"{contents.path}, {name}" if name else str(contents.path)
    config = infer_config(vit.tensors(), choice.heads, where)
    encoder = read_vit(vit, config, where)
    part = f", {choice.encoder} encoder ({name})" if name in PAIRS[choice.encoder] else ""
    words = f"{_method(contents.networks)}{part}: {size_words(config)}"
    return Loaded(encoder, config, None, None, words, _encoders(contents.networks), notes=vit.notes(USUAL))


def _encoders(networks: Mapping[str, Network]) -> tuple[str, ...]:
    """The encoders in the file, `target` or `context`. A network with neither name counts as the target."""
    found = vits(networks)
    return tuple(which for which, names in PAIRS.items() if any(name in found for name in names)) or ("target",)


def _place(contents: Contents, choice: Choice) -> str:
    """The name of the dictionary with the wanted encoder."""
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
    assert place is not None  # otherwise the file has no format or another one
    return place


def _backbone(network: Network) -> Network:
    network = network.without((*NOT_READ, *PROJECTION, *DECODER))
    return replace(network, tensors={CHUNK.sub("blocks.", name): value for name, value in network.tensors.items()})


def _method(networks: Mapping[str, Network]) -> str:
    """A guess at the method, for the user, from the rest of the file."""
    names = {name for item in vits(networks).values() for name in item.tensors}
    if MASKED in names:
        return "iBOT"
    if MASKED_V2 in names:
        return "DINOv2"
    return "MSN" if "target_encoder" in networks or "fc.fc1.weight" in names else "DINO or alike"


MAE = Reader(recognize_mae, read_mae)
DINO = Reader(recognize_dino, read_dino)
