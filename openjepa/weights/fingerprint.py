"""A hash of a network's weights: what was computed with it is known by it."""

import hashlib

import torch
from torch import nn


def weights_hash(network: nn.Module) -> str:
    """Hash of all weights and their names."""
    digest = hashlib.sha256()
    for name, value in sorted(network.state_dict().items()):
        digest.update(f"{name} {tuple(value.shape)} {value.dtype}".encode())
        digest.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
