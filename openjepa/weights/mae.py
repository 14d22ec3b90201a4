"""MAE's checkpoints: `model` with the encoder, and in the full ones with the decoder and its mask token, which are not read.

A class token and fixed sin-cos positions tell MAE from DINO and iBOT. The encoder is pooled by its class token, as in
I-JEPA's evaluations ("methods with a cls token use the cls token"); MAE's own fine-tuning takes the mean of the patches.
"""

from torch import Tensor

from openjepa.weights.contents import Contents, Groups
from openjepa.weights.loaded import Choice, Loaded, refuse_context, size_words
from openjepa.weights.timm import PLACES, only_network
from openjepa.weights.vit_names import TOKEN, Vit, has_sincos, infer_config, read_vit, vit_groups

DECODER = ("decoder_", "mask_token")


def recognize(contents: Contents) -> bool:
    """A file with one network, which has a class token and either fixed positions or a decoder."""
    if contents.settings is not None or contents.path.is_dir():
        return False
    found = [group for name, group in vit_groups(contents.groups).items() if name in PLACES and TOKEN in group]
    return any(has_sincos(group) or has_decoder(group) for group in found)


def read(contents: Contents, choice: Choice) -> Loaded:
    """The encoder. Raises Refusal that lists what is missing or left over."""
    refuse_context(contents, choice)
    vit, where = Vit(contents, _encoder), str(contents.path)
    config = infer_config(vit.tensors(), choice.heads, where)
    return Loaded(read_vit(vit, config, where), config, None, None, f"MAE: {size_words(config)}")


def _encoder(groups: Groups) -> dict[str, Tensor]:
    return {name: value for name, value in only_network(groups).items() if not name.startswith(DECODER)}


def has_decoder(tensors: dict[str, Tensor]) -> bool:
    """Whether MAE's decoder is among the tensors."""
    return any(name.startswith("decoder_blocks.") for name in tensors)
