"""Terms that keep the features of a batch apart, which I-JEPA can add to its loss: VICReg, as in C-JEPA, and SIGReg of LeJEPA.

Each looks at one vector per context and returns its terms by name, with their weights, so that they and the distance of the
predictions add up to the loss. Both compare the images of a microbatch of all processes.
"""

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import final

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn import functional as F
from torch.profiler import record_function

from openjepa.engine import distributed
from openjepa.methods.base import CoupledTerm
from openjepa.models.heads import projection_layers
from openjepa.seeds import derive
from openjepa.settings.methods import IJepaSettings

SPREAD = 1.0
"""Standard deviation that VICReg's variance term asks of each dimension (gamma)."""
VARIANCE_EPS = 1e-4
"""Added to a variance before its root (VICReg, section 4.1)."""
LARGEST_FREQUENCY = 5.0
"""The Epps-Pulley statistic is integrated from minus this to this (LeJEPA, arXiv 2511.08544)."""


@dataclass(frozen=True)
class PooledFeatures:
    """One vector for each context of the microbatch, averaged over patches."""

    context: Float[Tensor, "R D"]
    """Output of the context encoder, perhaps projected."""
    predictions: Float[Tensor, "R W"]
    """Predictions of all targets."""
    targets: Float[Tensor, "R W"]
    """All targets. They have no gradient."""


@final
class Regularizer(nn.Module):
    """Pools the features of a microbatch, projects those of the contexts if asked to, and computes the terms of the loss."""

    def __init__(self, settings: IJepaSettings, width: int) -> None:
        """`width`: that of the context encoder. Only a projection has weights."""
        super().__init__()
        self.settings = settings
        projected = settings.regularizer_width
        self.projection = nn.Identity() if projected is None else projection_layers((width, projected, projected), True)

    def forward(
        self,
        context: Float[Tensor, "R K D"],
        valid: Bool[Tensor, "R K"] | None,
        predictions: Float[Tensor, "R M T W"],
        targets: Float[Tensor, "R M T W"],
    ) -> dict[str, Float[Tensor, ""]]:
        """Weighted terms by name. `valid`: the tokens of `context` that are no padding."""
        with record_function("regularizer"):
            seen = self.projection(pooled_patches(context, valid))
            features = PooledFeatures(seen, predictions.mean(dim=(1, 2)), targets.mean(dim=(1, 2)))
            return TERMS[self.settings.regularizer](features, self.settings)

    def coupled_terms(self) -> tuple[CoupledTerm, ...]:
        """What compares the images of a microbatch."""
        return (CoupledTerm(f"the regularizer {self.settings.regularizer}", synchronized=True),)


def pooled_patches(patches: Float[Tensor, "R K D"], valid: Bool[Tensor, "R K"] | None) -> Float[Tensor, "R D"]:
    """Mean over the patches of each row that are `valid`; over all if it is None."""
    if valid is None:
        return patches.mean(dim=1)
    return (patches * valid[..., None]).sum(dim=1) / valid.sum(dim=1, keepdim=True)


def vicreg_terms(features: PooledFeatures, settings: IJepaSettings) -> dict[str, Float[Tensor, ""]]:
    """VICReg (Bardes et al., arXiv 2105.04906) on I-JEPA's features, as C-JEPA adds it (Mo & Tong, arXiv 2410.19560).

    Variance and covariance are those of the pooled context features, whose encoder the gradient reaches. The invariance is the
    squared distance between the means of an image's predictions and of its targets, which C-JEPA says I-JEPA learns badly.
    """
    spread = variance_and_covariance(features.context)
    with _in_fp32(features.context):
        invariance = F.mse_loss(features.predictions.float(), features.targets.float())
    weight = settings.vicreg_weight
    return {
        "variance": weight * settings.vicreg_variance * spread.variance,
        "covariance": weight * settings.vicreg_covariance * spread.covariance,
        "invariance": weight * settings.vicreg_invariance * invariance,
    }


def sigreg_terms(features: PooledFeatures, settings: IJepaSettings) -> dict[str, Float[Tensor, ""]]:
    """SIGReg (Balestriero & LeCun, arXiv 2511.08544) of the pooled context features: they should be a standard Gaussian.

    The directions are drawn anew in every step, from the seed of torch's global generator. The loop seeds it by the step, in
    all processes and for each microbatch alike.
    """
    rows = features.context
    directions = random_directions(rows.shape[1], settings.sigreg_slices, rows.device)
    return {"gaussian": settings.sigreg_weight * epps_pulley(rows, directions, settings.sigreg_points).mean()}


Terms = Callable[[PooledFeatures, IJepaSettings], dict[str, Float[Tensor, ""]]]
"""A function from the features of a microbatch to weighted terms of the loss by name."""
TERMS: Mapping[str, Terms] = {"vicreg": vicreg_terms, "sigreg": sigreg_terms}
"""The functions by the names of `method.regularizer`."""


def random_directions(width: int, number: int, device: torch.device) -> Float[Tensor, "width number"]:
    """Vectors of length 1 that depend on the last seed of torch's global generator, not on what it has drawn since.

    Processes whose target blocks differ in size draw unequally many numbers for them, but need the same directions.
    """
    if device.type == "meta":
        return torch.empty(width, number, device=device)
    generator = torch.Generator(device).manual_seed(derive("directions", torch.initial_seed()))
    return F.normalize(torch.randn(width, number, device=device, generator=generator), dim=0)


@dataclass(frozen=True)
class SpreadTerms:
    """VICReg's terms of one set of features, without weights."""

    variance: Float[Tensor, ""]
    """Mean over dimensions of max(0, 1 - standard deviation). 0 if every dimension is spread enough."""
    covariance: Float[Tensor, ""]
    """Sum of the squared covariances between different dimensions, divided by their number. 0 if none are correlated."""


def variance_and_covariance(rows: Float[Tensor, "n D"]) -> SpreadTerms:
    """VICReg's equations 1 to 4: v = 1/D sum_j max(0, 1 - sqrt(Var_j + eps)) and c = 1/D sum_{i != j} C_ij^2.

    The covariance matrix C of the `rows` of all processes has the divisor n - 1, and Var is its diagonal. All processes have
    equally many rows.
    """
    with _in_fp32(rows):
        values = rows.float()
        number = len(values) * distributed.world_size()
        centered = values - distributed.mean_over_ranks(values.mean(dim=0))
        covariances = distributed.sum_over_ranks(centered.T @ centered) / (number - 1)
        deviations = (covariances.diagonal() + VARIANCE_EPS).sqrt()
        between = covariances - torch.diag(covariances.diagonal())
        return SpreadTerms(F.relu(SPREAD - deviations).mean(), between.square().sum() / len(between))


def epps_pulley(rows: Float[Tensor, "n D"], directions: Float[Tensor, "D S"], points: int) -> Float[Tensor, " S"]:
    """Epps-Pulley statistic of the `rows` of all processes along each direction, against a standard Gaussian.

    EP = n * integral |phi_n(t) - exp(-t^2/2)|^2 exp(-t^2/2) dt, where phi_n(t) = 1/n sum_j exp(i t x_j), by the trapezoidal
    rule at `points` evenly spaced t from -5 to 5. Its mean over Gaussian samples of any size is 1.06. The integrand is even and
    `points` is odd, so that half of the points suffices. The text of the paper writes the weight as exp(-t^2/sigma^2) with
    sigma 1, its pseudocode has the one used here.
    """
    with _in_fp32(rows):
        projected = rows.float() @ directions  # [n, S]
        frequencies = torch.linspace(0.0, LARGEST_FREQUENCY, (points + 1) // 2, device=rows.device)
        angles = projected[..., None] * frequencies  # [n, S, t]
        real, imaginary = distributed.mean_over_ranks(torch.stack([angles.cos().mean(dim=0), angles.sin().mean(dim=0)]))
        gaussian = (-frequencies.square() / 2).exp()
        integrand = ((real - gaussian).square() + imaginary.square()) * gaussian
        return 2 * len(rows) * distributed.world_size() * torch.trapezoid(integrand, frequencies, dim=-1)


def _in_fp32(rows: Tensor) -> AbstractContextManager[object]:
    """A context without autocast. Costs are counted on the meta device, which has none."""
    return nullcontext() if rows.is_meta else torch.autocast(rows.device.type, enabled=False)
