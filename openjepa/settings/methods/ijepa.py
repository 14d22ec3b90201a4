"""Settings of I-JEPA."""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Annotated, Literal, Self

from openjepa.refusals import Refusal
from openjepa.settings.fields import (
    AT_LEAST_1,
    NOT_NEGATIVE,
    POSITIVE,
    SHARE,
    SHARE_BELOW_1,
    SMALLEST_FIRST,
    SWEPT,
    as_setting,
    at_least,
)
from openjepa.settings.methods.shared import About, Heads, Paper, TeacherSettings
from openjepa.settings.models import PredictorPasses

OTHER_TARGETS = ("target_space", "target_masking", "target_layers", "target_layers_join", "teacher")
"""Settings whose default gives the targets of the paper: one vector of the target encoder for each patch."""


@dataclass(frozen=True, kw_only=True)
class IJepaSettings(TeacherSettings):
    """I-JEPA (arXiv 2301.08243): predict representations of target blocks from one context block."""

    paper = Paper("I-JEPA", "Assran et al. 2023", "2301.08243")
    about = About(
        title=paper.title,
        family="joint-embedding predictive",
        x="one context block of an image",
        y="several target blocks of the same image",
        z="where the targets lie: a mask token with the position of each of their patches",
        energy="distance between the predicted and the encoded target in the space of representations",
        against_collapse="the target encoder is a moving average without gradient, and the predictor is narrow",
    )
    mask_kinds = ("blocks",)
    checks = "openjepa.checks.methods:ijepa_checks"

    name: Literal["ijepa"] = "ijepa"
    predictor_width: Annotated[int | None, AT_LEAST_1] = 384
    """Width of the predictor (paper: 384 for every size). None: half of the encoder's (our small recipes)."""
    predictor_depth: Annotated[int, AT_LEAST_1] = 6
    """Number of blocks of the predictor (paper: 6 for B, 12 for L and H, 16 for g)."""
    predictor_heads: Annotated[Heads, AT_LEAST_1] = None
    """Attention heads of the predictor. None: as many as the encoder (paper and code). `half`: half as many."""
    loss: Literal["smooth_l1", "l2", "l1"] = "smooth_l1"
    """`smooth_l1`: beta 1, mean over all elements (code). `l2`: squared L2, mean over all elements, which is the paper's sum
    over patches divided by (patches per block x width). `l1`: mean absolute difference (V-JEPA 2, arXiv 2506.09985)."""
    target_space: Literal["features", "pixels", "pixels_then_features"] = "features"
    """What is predicted of the target blocks. `features`: the target encoder's output. `pixels`: pixels, each patch normalized
    as in MAE (the paper's Table 7, which says no more). There is then no target encoder, and the context encoder is exported.
    `pixels_then_features`: both, one after the other, by `pixels_until` and `features_from`."""
    pixels_until: Annotated[tuple[float, float], SHARE, SMALLEST_FIRST] = (0.25, 0.45)
    """Shares of the run between which the weight of the pixels falls from 1 to 0 on a line, for `pixels_then_features`."""
    features_from: Annotated[tuple[float, float], SHARE, SMALLEST_FIRST] = (0.25, 0.45)
    """Shares of the run between which the weight of the features rises from 0 to 1 on a line, for `pixels_then_features`."""
    target_norm: Literal["layer_norm", "none", "position", "dyntanh"] = "layer_norm"
    """Normalization of the target encoder's output. `layer_norm`: without affine (code: yes; not mentioned in the paper).
    `position`: every dimension at every position has mean 0 and variance 1 over the images of many batches, so that the mean
    patch of a position explains nothing (ours; CAPI, arXiv 2502.08769, balances its assignments by position). `dyntanh`:
    tanh(`dyntanh_alpha` x) of the last block's output before the encoder's final norm (after Colton, arXiv 2508.02829)."""
    position_momentum: Annotated[float, SHARE_BELOW_1] = 0.99
    """Share of the running averages of `target_norm=position` that a step keeps. They are divided by the sum of the weights of
    all batches, so that they fit from the second step on. The first step has no statistics: features stay as they are."""
    dyntanh_alpha: Annotated[float, POSITIVE] = 0.5
    """Factor before the tanh of `target_norm=dyntanh`. 0.5: where the learned factor of DyT starts (arXiv 2503.10622)."""
    target_masking: Literal["output", "input"] = "output"
    """`output`: targets are taken from the target encoder's output on the whole image. `input`: the target encoder sees the
    patches of one block alone, once for each block (the paper's Table 11: worse)."""
    target_layers: Annotated[tuple[int, ...], AT_LEAST_1, SWEPT] = ()
    """Blocks of the target encoder whose outputs are predicted, by their number: 1 is the first one. Each is normalized by
    itself (`target_norm`), without the encoder's final norm. Empty: the encoder's output, after that norm, as in the paper.
    Several layers: Bootleg (arXiv 2603.15553), V-JEPA 2.1 (arXiv 2603.14482), data2vec (arXiv 2202.03555)."""
    target_layers_join: Literal["concatenated", "averaged"] = "concatenated"
    """`concatenated`: all layers are predicted side by side, by a wider last Linear (Bootleg, V-JEPA 2.1). `averaged`: their
    mean is predicted (data2vec)."""
    teacher: str | None = None
    """Weights of another encoder, which gives the targets and stays as it is (SALT, arXiv 2509.24317): a run, an encoder's
    folder, a file or a name on the Hub, as for `run.init`. It must have the same patch size and pixel normalization, and may be
    of another size. There is then no moving average, and the context encoder is exported. A run that goes on reads it again,
    to see that it is the same. None: the moving average."""
    contexts: Annotated[int, AT_LEAST_1] = 1
    """Contexts per image, each with target blocks of its own (paper: 1). The target encoder sees an image once for all of them,
    and an image is decoded and cropped once (data2vec 2.0, arXiv 2212.07525, section 3.2). `optim.batch_size` counts images."""
    predictor_pass: PredictorPasses = "separate"
    """`separate`: the predictor runs once for each target block, and context and block see one another (paper, code). `joint`:
    it runs once for all blocks. A block sees the context and itself, the context sees itself alone and is computed once. That
    is cheaper, and another network (blocks kept apart as in the paper; one pass as in data2vec 2.0, arXiv 2212.07525). `cross`:
    mask tokens attend to the embedded context alone (CrossMAE, arXiv 2401.14391; CAPI, arXiv 2502.08769): cheaper still."""
    position_noise: Annotated[float, NOT_NEGATIVE] = 0.0
    """Variance of Gaussian noise on the position of each mask token in training (StoP, arXiv 2308.00566: 0.25). The noise has
    the encoder's width and goes through the matrix that projects the context, as in the paper. 0: none (I-JEPA)."""
    sampled_targets: Annotated[int | None, AT_LEAST_1] = None
    """Patches of each target block that are predicted, drawn at random in each step (CrossMAE, arXiv 2401.14391; CAPI, arXiv
    2502.08769). Smaller blocks stay whole. None: all patches (I-JEPA)."""
    context_loss: Annotated[float, NOT_NEGATIVE] = 0.0
    """Weight of a loss on what the predictor makes of the context tokens, by the same distance. A token counts by 1 / sqrt of
    its distance to the nearest target patch (V-JEPA 2.1, arXiv 2603.14482, with L1; its code: 0.5). 0: none (I-JEPA)."""
    context_loss_warmup: Annotated[tuple[float, float], SHARE, SMALLEST_FIRST] = (0.11, 0.22)
    """Shares of the run between which the weight of the context loss rises linearly from 0 (V-JEPA 2.1's code: steps 15,000
    to 30,000 of 135,000)."""
    regularizer: Literal["none", "vicreg", "sigreg"] = "none"
    """Terms that keep the pooled features of the contexts of a microbatch apart (of all processes). `vicreg`: variance,
    covariance and invariance (C-JEPA, arXiv 2410.19560). `sigreg`: random projections should be Gaussian (LeJEPA, arXiv
    2511.08544)."""
    regularizer_width: Annotated[int | None, AT_LEAST_1] = None
    """Width of two layers with batch normalization that project the pooled features first. None: no projection."""
    vicreg_weight: Annotated[float, NOT_NEGATIVE] = 0.001
    """Weight of all three terms of `vicreg` (C-JEPA: 0.001)."""
    vicreg_variance: Annotated[float, NOT_NEGATIVE] = 25.0
    """Factor of the variance term (VICReg, arXiv 2105.04906, and C-JEPA: 25)."""
    vicreg_covariance: Annotated[float, NOT_NEGATIVE] = 1.0
    """Factor of the covariance term (VICReg and C-JEPA: 1)."""
    vicreg_invariance: Annotated[float, NOT_NEGATIVE] = 25.0
    """Factor of the squared distance between the means of predictions and of targets (VICReg and C-JEPA: 25). 0: only
    variance and covariance."""
    sigreg_weight: Annotated[float, NOT_NEGATIVE] = 0.05
    """Weight of `sigreg` (LeJEPA: 0.05)."""
    sigreg_slices: Annotated[int, AT_LEAST_1] = 1024
    """Random directions per step (LeJEPA: 1024)."""
    sigreg_points: Annotated[int, at_least(3)] = 17
    """Points from -5 to 5 at which the characteristic functions are compared, an odd number (LeJEPA: 17)."""
    export_context_encoder: bool = False
    """Export the context encoder, too, beside the target encoder, which the paper evaluates."""

    def encodes_targets(self) -> bool:
        """True if targets come from a target encoder."""
        return self.target_space != "pixels"

    def averages(self) -> bool:
        """True if there is a moving average of the context encoder."""
        return self.encodes_targets() and self.teacher is None

    def frozen_teacher(self) -> str | None:
        """The weights of the target encoder, if it stays as it is."""
        return self.teacher

    def with_teacher_at(self, place: str) -> Self:
        """The same settings with the target encoder's weights at `place`."""
        return replace(self, teacher=place)

    def changed(self, names: Iterable[str]) -> list[str]:
        """Those of the settings `names` that differ from their defaults."""
        return [name for name in names if getattr(self, name) != getattr(IJepaSettings, name)]

    def other_targets(self) -> dict[str, object]:
        """The settings that make targets unlike those of the paper, by name. A predictor's config.json holds them."""
        return {name: getattr(self, name) for name in self.changed(OTHER_TARGETS)}


def check_target_layers(layers: tuple[int, ...], depth: int) -> None:
    """Raises Refusal if a target encoder with `depth` blocks does not have all of `layers`, or if one is named twice."""
    if layers and max(layers) > depth:
        spread = " ".join(map(str, sorted({max(1, round(depth * part / 4)) for part in range(1, 5)})))
        raise Refusal(
            f"{as_setting('method.target_layers', layers)} of a target encoder with {depth} blocks: use numbers from 1 to "
            f"{depth}, e.g. {spread}"
        )
