"""Attentive probe: a learned query over the patches of a frozen encoder (Bardes et al., 2024, V-JEPA).

A probe is one cross-attention block with MLP and a linear layer, trained with AdamW. There is one probe for each learning rate;
all are trained in one pass over the same patches. V-JEPA also applies AutoAugment and random erasing to the training images.
Here they are only cropped and mirrored, as for the linear probe. A class token is ignored.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor, nn
from torch.nn import functional

from openjepa.engine.device import seed_generator
from openjepa.engine.distributed import add_over_ranks
from openjepa.evaluation.probes.trained import (
    Rows,
    check_finite_outputs,
    numbered_steps,
    own_images,
    test_view_fit,
    train_and_choose,
    training_on,
    usual_augmentation,
)
from openjepa.evaluation.protocol import ImageProbe, ProtocolResult
from openjepa.models.transformer import INIT_STD, Mlp
from openjepa.schedules import cosine
from openjepa.seeds import derive
from openjepa.settings.evaluation import AttentiveSettings, EvaluationSettings
from openjepa.system.console import progress

MLP_RATIO = 4


class AttentiveProbe(nn.Module):
    """y = q + proj(attention(q, norm1(x))); y = y + mlp(norm2(y)); linear(y). The attention heads together have width D.

    There is only one query, so the keys and values of patches are never computed. Let x be the patches normalized without an
    affine part, and norm1 = s x + t. Head h scores patch n by q_h . K_h (s x_n + t) = (s K_h' q_h) . x_n plus a term that is
    equal for all patches. Softmax ignores that term, as it would ignore a bias of the keys. The output of head h is
    sum_n a_n V_h (s x_n + t) = V_h (s sum_n a_n x_n + t), because the weights a_n add up to 1. So `directions` gives the
    vectors that patches are scored by, and `classify` starts from the weighted means of the patches. At D = 1280 with 16 heads
    that is a hundredth of the operations on patches.
    """

    def __init__(self, width: int, heads: int, num_classes: int, layer_norm_eps: float) -> None:
        """Draws weights from torch's global generator: query with std 0.02, matrices with std 1 / sqrt(inputs). Biases are 0.

        For matrices, the usual std of 0.02 is nearly the same at the width of a ViT-H, but leaves hardly any signal in a
        narrow probe.
        """
        super().__init__()
        self.heads = heads
        self.query = nn.Parameter(torch.empty(1, width))
        self.norm1 = nn.LayerNorm(width, eps=layer_norm_eps)
        self.to_query = nn.Linear(width, width)
        self.to_key = nn.Linear(width, width, bias=False)
        self.to_value = nn.Linear(width, width)
        self.proj = nn.Linear(width, width)
        self.norm2 = nn.LayerNorm(width, eps=layer_norm_eps)
        self.mlp = Mlp(width, MLP_RATIO * width)
        self.linear = nn.Linear(width, num_classes)
        nn.init.trunc_normal_(self.query, std=INIT_STD)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=module.in_features**-0.5)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)

    def directions(self) -> Float[Tensor, "heads D"]:
        """The vector of each head whose product with a normalized patch is the patch's score."""
        width = self.query.shape[1]
        query = self.to_query(self.query).view(self.heads, 1, -1)
        keys = self.to_key.weight.view(self.heads, -1, width)
        directions: Tensor = (query @ keys).squeeze(1) * self.norm1.weight * (width // self.heads) ** -0.5
        return directions

    def classify(self, means: Float[Tensor, "B heads D"]) -> Float[Tensor, "B C"]:
        """Scores of the classes from each head's weighted mean of the normalized patches."""
        width = self.query.shape[1]
        seen = means * self.norm1.weight + self.norm1.bias
        values = self.to_value.weight.view(self.heads, -1, width)
        mixed = torch.einsum("bhk,hdk->bhd", seen, values).flatten(1) + self.to_value.bias
        pooled = self.query + self.proj(mixed)
        pooled = pooled + self.mlp(self.norm2(pooled))
        return self.linear(pooled)  # type: ignore[no-any-return]


class AttentiveProbes(nn.Module):
    """Several probes of equal shape on the same patches. They run in fp32: beside the encoder they cost too little for bf16."""

    def __init__(self, num: int, width: int, heads: int, num_classes: int, layer_norm_eps: float) -> None:
        """Makes `num` probes, each with its own random weights."""
        super().__init__()
        self.eps = layer_norm_eps
        self.probes = nn.ModuleList([AttentiveProbe(width, heads, num_classes, layer_norm_eps) for _ in range(num)])

    def forward(self, patches: Float[Tensor, "B N D"]) -> Float[Tensor, "B probes C"]:
        """Scores of every probe. Two matrix products with the patches serve all probes, which do not affect each other."""
        normed = functional.layer_norm(patches, patches.shape[-1:], eps=self.eps)
        directions = torch.cat([probe.directions() for probe in self.probes])  # type: ignore[operator]
        weights = (normed @ directions.T).softmax(dim=1)  # [B, N, probes x heads]
        means = (weights.transpose(1, 2) @ normed).chunk(len(self.probes), dim=1)
        scores = [probe.classify(mean).float() for probe, mean in zip(self.probes, means, strict=True)]  # type: ignore[operator]
        return torch.stack(scores, dim=1)


@dataclass(frozen=True)
class TrainedProbes:
    """Trained probes and the encoder they work on."""

    probe: ImageProbe
    probes: AttentiveProbes
    rates: Sequence[float]
    unreadable: Sequence[str]
    """Names of the training images that could not be read."""

    def names(self) -> list[tuple[str, str, str]]:
        """Features, head and setting of each probe."""
        return [("patches", "attentive", f"lr {rate:g}") for rate in self.rates]

    def answer(self, images: UInt8[Tensor, "B 3 h w"]) -> Float[Tensor, "B heads C"]:
        """Scores of each probe. The encoder gets no gradient, and only the encoder runs in the probe's precision."""
        scores: Tensor = self.probes(self.patches(images))
        return scores

    @torch.no_grad()
    def patches(self, images: UInt8[Tensor, "B 3 h w"]) -> Float[Tensor, "B N D"]:
        """The encoder's patch features, in float32."""
        return self.probe.outputs(images).patches.float()


def evaluate_attentive(probe: ImageProbe, settings: EvaluationSettings) -> tuple[ProtocolResult, ...]:
    """Accuracy of the best attentive probe, for each selection rule (see `trained.train_and_choose`).

    Raises Refusal if every learning rate was too high, if the encoder's outputs are not finite, or if no image of a split can
    be read.
    """
    fit = test_view_fit(probe, usual_augmentation(probe))
    return train_and_choose(probe, settings, lambda rows: train_probes(probe, settings, rows), fit, "attentive.learning_rates")


def train_probes(probe: ImageProbe, settings: EvaluationSettings, rows: Rows) -> TrainedProbes:
    """Trains one probe per learning rate on the records `rows` of the training split."""
    own, config = settings.attentive, probe.config
    training = training_on(
        probe,
        rows,
        settings,
        epochs=own.epochs,
        batch_size=own.batch_size,
        augmentation=usual_augmentation(probe),
        interpolation="bicubic",
    )
    with torch.random.fork_rng(devices=[]):
        seed_generator(torch.device("cpu"), derive("weights", settings.seed, 2))  # not a GPU's generator
        probes = AttentiveProbes(len(own.learning_rates), config.width, config.heads, probe.num_classes, config.layer_norm_eps)
    trained = TrainedProbes(probe, probes.to(probe.device), own.learning_rates, training.unreadable)
    optimizer = build_probe_optimizer(probes, own)
    total = own.epochs * training.steps_per_epoch
    with progress("attentive probe", own.epochs * len(rows)) as advance:
        for step, (images, labels) in numbered_steps(own.epochs, training.steps_per_epoch, training.batches):
            if step == 0:
                check_finite_outputs(trained.patches(images[: training.piece]), probe)
            _train_step(trained, optimizer, images, labels, training.piece, cosine(1.0, 0.0, step / total))
            advance(len(labels))
    return trained


def _train_step(
    trained: TrainedProbes,
    optimizer: torch.optim.AdamW,
    images: UInt8[Tensor, "B 3 h w"],
    labels: Int[Tensor, " B"],
    piece: int,
    factor: float,
) -> None:
    """Takes one step of every probe at its peak rate times `factor`, with `piece` images per forward pass of the encoder.

    Every process gets all images and computes the gradient of its share of them.
    """
    for group in optimizer.param_groups:
        group["lr"] = group["peak"] * factor
    optimizer.zero_grad()
    own = own_images(len(labels))
    for part, answers in zip(torch.split(images[own], piece), torch.split(labels[own], piece), strict=True):
        loss = loss_sum(trained.answer(part), answers) / len(labels)
        loss.backward()  # type: ignore[no-untyped-call]
    add_over_ranks([value.grad for value in trained.probes.parameters() if value.grad is not None])
    optimizer.step()


def loss_sum(scores: Float[Tensor, "B probes C"], labels: Int[Tensor, " B"]) -> Float[Tensor, ""]:
    """Cross-entropy summed over images and probes, so that each probe's gradient is that of its own loss."""
    repeated = labels[:, None].expand(-1, scores.shape[1])
    return functional.cross_entropy(scores.flatten(0, 1), repeated.flatten(), reduction="sum")


def build_probe_optimizer(probes: AttentiveProbes, settings: AttentiveSettings) -> torch.optim.AdamW:
    """AdamW with one learning rate per probe. Vectors (biases, norms) have no weight decay."""
    groups = [
        {
            "params": [value for value in probe.parameters() if (value.dim() > 1) == is_decayed],
            "peak": rate,
            "weight_decay": decay,
        }
        for probe, rate in zip(probes.probes, settings.learning_rates, strict=True)
        for is_decayed, decay in ((True, settings.weight_decay), (False, 0.0))
    ]
    device = next(probes.parameters()).device
    return torch.optim.AdamW(groups, lr=settings.learning_rates[0], fused=device.type in ("cpu", "cuda"))
