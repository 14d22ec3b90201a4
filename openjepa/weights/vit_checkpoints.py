"""MAE's checkpoints: `model` with the encoder, and in the full ones with the decoder and its mask token, which are not read.

A class token and fixed sin-cos positions tell MAE from DINO and iBOT. The encoder is pooled by its class token, as in
I-JEPA's evaluations ("methods with a cls token use the cls token"); MAE's own fine-tuning takes the mean of the patches.
"""

from collections.abc import Mapping

from torch import Tensor

from openjepa.weights.contents import Contents
from openjepa.weights.formats import Choice, Loaded, refuse_context, size_words
from openjepa.weights.shared_names import TOKEN, Vit, has_sincos, infer_config, only_place, read_vit
from openjepa.weights.state_dicts import Network
from openjepa.weights.timm import only_network

DECODER = ("decoder_",)


def recognize(contents: Contents) -> bool:
    """A file with one network, which has a class token and either fixed positions or a decoder."""
    if contents.settings is not None or contents.path.is_dir():
        return False
    place = only_place(contents.networks)
    tensors = {} if place is None else contents.networks[place].tensors
    return TOKEN in tensors and (has_sincos(tensors) or has_decoder(tensors))


def read(contents: Contents, choice: Choice) -> Loaded:
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
