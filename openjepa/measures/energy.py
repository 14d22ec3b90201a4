"""Measures of the energies of compatible and other pairs: does a method tell the pairs apart, and has it collapsed?

A method is an energy. It should be low if x and y belong together and higher otherwise (LeCun 2022; I-JEPA, section 2). In a
collapsed method the energy is the same for every pair: a flat landscape.
"""

import math

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from openjepa.measures.verdicts import EnergyStatistics
from openjepa.refusals import Refusal

FLAT = 0.01
"""Energies form a flat landscape if they vary by less than this share of their scale."""


def energy_statistics(energies: Float[Tensor, "G B B"]) -> EnergyStatistics:
    """Statistics of G groups of B images. Rows are images of x, columns images of y; compatible pairs are on the diagonal.

    Raises Refusal if a group has fewer than 2 images, or if energies are not finite.
    """
    num_groups, size, _ = energies.shape
    if size < 2:
        raise Refusal(f"energies need at least 2 images to form incompatible pairs; got {size}")
    values = energies.detach().double().cpu()
    if not values.isfinite().all():
        raise Refusal("some energies are not finite: the method's weights or its temperatures are broken")
    own = values.diagonal(dim1=1, dim2=2)  # [G, B]
    others = incompatible(values).view(num_groups, size, size - 1)
    wins = (own[..., None] < others).double() + 0.5 * (own[..., None] == others).double()
    shares = wins.mean(dim=2).flatten()  # one for each x
    ties = (others == own[..., None]).sum(dim=2)
    top = (own <= others.min(dim=2).values).double() / (1 + ties)
    other, std, mean = others.mean(), values.std(correction=0), values.mean()
    return EnergyStatistics(
        compatible=float(own.mean()),
        incompatible=float(other),
        gap=_ratio(float(other - own.mean()), float(other)),
        auc=float(shares.mean()),
        auc_error=float(shares.std()) / math.sqrt(len(shares)),
        top1=float(top.mean()),
        chance=1 / size,
        std=float(std),
        relative_std=_ratio(float(std), float(mean.abs())),
    )


def incompatible(energies: Float[Tensor, "G B B"]) -> Float[Tensor, " pairs"]:
    """The energies off the diagonal, group by group and row by row."""
    size = energies.shape[-1]
    off_diagonal: Bool[Tensor, "B B"] = ~torch.eye(size, dtype=torch.bool, device=energies.device)
    return energies[:, off_diagonal].flatten()


def is_flat(trained: EnergyStatistics, untrained: EnergyStatistics) -> bool:
    """True if training has collapsed: energies vary by less than 1 % of their scale.

    The scale is the larger mean, of before and after training. A method whose energies all fell to nearly 0 is therefore flat,
    however much the remaining energies vary in proportion.
    """
    scale = max(abs(item.compatible) + abs(item.incompatible) for item in (trained, untrained)) / 2
    return trained.std <= FLAT * scale


def _ratio(value: float, scale: float) -> float:
    return value / scale if scale else 0.0
