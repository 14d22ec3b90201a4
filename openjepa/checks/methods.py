"""What each method needs of its settings, the masks and the encoder: one function a method, where it needs anything special.

What is allowed in a method's settings but surely not meant: values without effect, and epochs that the run does not have.
"""

import math
from collections.abc import Callable
from functools import partial

from openjepa.checks.grids import (
    check_blockwise,
    check_heads,
    check_patch_divides,
    check_positions,
    most_masked_of,
    nearest_multiple,
)
from openjepa.refusals import Refusal
from openjepa.settings.derived import heads_of, resolved
from openjepa.settings.masks import BlockwiseSettings, RandomPatchesSettings
from openjepa.settings.methods import Data2VecSettings, IBotSettings, IJepaSettings, MaeSettings, MethodSettings, MsnSettings
from openjepa.settings.methods.shared import MultiCropSettings, SelfDistillationSettings
from openjepa.settings.run import CHOICES, RunConfig

MASK_WORDS = {
    "blocks": "which predicts target blocks from a context",
    "tokens": "which masks single patches",
    "none": "which compares whole views without masks",
}
EQUALLY_MANY_MASKED = ("mae", "msn")
"""Methods that encode only visible patches, so that every image must have equally many."""


def method_checks(config: RunConfig) -> list[Callable[[], None]]:
    """That masks and encoder suit the method, and what the method's own settings must keep."""
    found: list[Callable[[], None]] = [
        partial(check, config) for check in (_check_mask_kind, _check_class_token, *METHOD_CHECKS.get(config.method.name, ()))
    ]
    if isinstance(config.method, MultiCropSettings):
        found += [partial(_check_crops, config.method, config), partial(_check_hue, config.method.jitter)]
    return found


def _check_mask_kind(config: RunConfig) -> None:
    method, masks, name = config.method, config.masks, config.method.name
    if masks.kind not in method.mask_kinds:
        fitting = [item for item, cls in CHOICES["masks"].options.items() if cls.kind in method.mask_kinds]
        fitting = ["random_patches"] if name in EQUALLY_MANY_MASKED else fitting
        raise Refusal(
            f"masks.strategy={masks.strategy} does not fit method.name={name}, {MASK_WORDS[method.mask_kinds[0]]}: "
            f"use masks.strategy={' or '.join(fitting)}, or start from a recipe of {name} (openjepa train --help), which sets "
            "everything else that suits it"
        )


def _check_class_token(config: RunConfig) -> None:
    if config.method.needs_class_token and not config.model.class_token:
        words = f"method.name={config.method.name} trains the class token: set model.class_token=True"
        raise Refusal(f"model.class_token=False, but {words}")


def _check_predictor_heads(config: RunConfig) -> None:
    method = config.method
    assert isinstance(method, IJepaSettings)
    heads = heads_of(method.predictor_heads, config.model.shape().heads)
    check_heads("method.predictor_heads", heads, "method.predictor_width", resolved(method.predictor_width))


def _check_predictor_positions(config: RunConfig) -> None:
    assert isinstance(config.method, IJepaSettings)
    check_positions("method.predictor_width", resolved(config.method.predictor_width))


def _check_decoder_heads(config: RunConfig) -> None:
    method = config.method
    assert isinstance(method, MaeSettings)
    heads = heads_of(method.decoder_heads, config.model.shape().heads)
    check_heads("method.decoder_heads", heads, "method.decoder_width", resolved(method.decoder_width))


def _check_decoder_positions(config: RunConfig) -> None:
    assert isinstance(config.method, MaeSettings)
    check_positions("method.decoder_width", resolved(config.method.decoder_width))


def _check_average_layers(config: RunConfig) -> None:
    method, depth = config.method, config.model.shape().depth
    assert isinstance(method, Data2VecSettings)
    if resolved(method.average_layers) > depth:
        raise Refusal(
            f"method.average_layers={method.average_layers} of an encoder with {depth} blocks: set method.average_layers to at "
            f"most {depth}; half of them ({max(1, depth // 2)}) is what is published"
        )


def _check_hue_of_data2vec(config: RunConfig) -> None:
    assert isinstance(config.method, Data2VecSettings)
    _check_hue(config.method.jitter)


def _check_ibot(config: RunConfig) -> None:
    method = config.method
    assert isinstance(method, IBotSettings)
    if method.class_weight == method.patch_weight == 0:
        raise Refusal("method.class_weight=0 and method.patch_weight=0 leave no loss: set one of them above 0, e.g. 1")
    if method.patch_weight > 0:
        _check_something_is_masked(config, e_g="0.3")


def _check_msn(config: RunConfig) -> None:
    together = config.optim.microbatch_size or config.optim.batch_size
    if together < 2:
        name = "batch_size" if config.optim.microbatch_size is None else "microbatch_size"
        raise Refusal(
            f"optim.{name}={together}, but method.name=msn normalizes over the images of a microbatch: set optim.{name} to at "
            "least 2, better to as many as fit"
        )


def _check_equally_many_are_masked(config: RunConfig) -> None:
    """For methods that encode only visible patches; masks of another kind are refused as such."""
    if config.masks.kind == "tokens" and not isinstance(config.masks, RandomPatchesSettings):
        raise Refusal(
            f"masks.strategy={config.masks.strategy} masks unequal numbers of patches, but method.name={config.method.name} "
            "encodes only the visible ones, equally many in every image: use masks.strategy=random_patches"
        )


def _check_something_is_masked(config: RunConfig, e_g: str) -> None:
    """Of blocks of patches, which may be wished away; masks of single patches have a check of their own."""
    masks, grid = config.masks, config.model.grid(config.data.height_width())
    if not isinstance(masks, BlockwiseSettings):
        return
    check_blockwise(masks, grid)
    if most_masked_of(masks, grid) < 1:
        raise Refusal(
            f"masks.ratios={max(masks.ratios):g} of {grid[0]}x{grid[1]} patches masks none, which leaves {config.method.name} "
            f"nothing to predict: set masks.ratios to e.g. {e_g}"
        )


def _check_crops(method: MultiCropSettings, config: RunConfig) -> None:
    """What all methods of several crops need."""
    if method.local_crops:
        size, patch, side = resolved(method.local_size), config.model.patch_size, max(config.data.height_width())
        check_patch_divides(patch, (size, size), size_name="method.local_size")
        if size > side:
            raise Refusal(
                f"method.local_size={size} makes the small crops larger than the large ones, "
                f"data.image_size={side}: use e.g. method.local_size={nearest_multiple(side * 3 // 7, patch)}"
            )


def _check_hue(jitter: tuple[float, float, float, float]) -> None:
    if jitter[3] > 0.5:
        raise Refusal(
            f"method.jitter: the last value, {jitter[3]:g}, is the largest turn of the hue: use at most 0.5, half a turn"
        )


METHOD_CHECKS: dict[str, tuple[Callable[[RunConfig], None], ...]] = {
    "ijepa": (_check_predictor_heads, _check_predictor_positions),
    "mae": (_check_equally_many_are_masked, _check_decoder_heads, _check_decoder_positions),
    "data2vec": (_check_average_layers, _check_hue_of_data2vec, partial(_check_something_is_masked, e_g="0.6")),
    "ibot": (_check_ibot,),
    "msn": (_check_equally_many_are_masked, _check_msn),
}


def without_effect(method: MethodSettings) -> list[str]:
    """Values that were changed but that another setting switches off."""
    found = []
    if isinstance(method, MsnSettings):
        rounds = method.sinkhorn_iterations
        if not method.sinkhorn and rounds != MsnSettings.sinkhorn_iterations:
            found.append(f"method.sinkhorn_iterations={rounds} has no effect with method.sinkhorn=False")
    if isinstance(method, IBotSettings):
        of_patches = method.patch_outputs
        if method.shared_head and of_patches not in (method.outputs, IBotSettings.patch_outputs):
            found.append(f"method.patch_outputs={of_patches} has no effect with method.shared_head=True")
    if isinstance(method, Data2VecSettings):
        is_constant = method.ema_start == method.ema_end
        if is_constant and method.ema_ramp != Data2VecSettings.ema_ramp:
            found.append(f"method.ema_ramp={method.ema_ramp:g} has no effect: method.ema_start and method.ema_end are the same")
    return found


def never_reached(method: MethodSettings, total_steps: int, steps_per_epoch: float) -> list[str]:
    """What DINO and iBOT count in epochs, in a run that has fewer. A stream of unknown length counts as one epoch."""
    if not isinstance(method, SelfDistillationSettings):
        return []
    epochs, found = total_steps / steps_per_epoch, []
    if method.freeze_last_layer_epochs >= epochs:
        found.append(
            f"method.freeze_last_layer_epochs={method.freeze_last_layer_epochs:g} of a run of {epochs:.3g} epochs: the last "
            "layer never learns; set it to 0, or train longer"
        )
    ramps = {"teacher_temperature": (method.teacher_temperature_start, method.teacher_temperature, 0)}
    if isinstance(method, IBotSettings):
        ramps["patch_temperature"] = (method.patch_temperature_start, method.patch_temperature, method.patch_start_epoch)
    warmup = method.teacher_temperature_warmup_epochs
    for name, (start, end, first) in ramps.items():
        if start != end and first + warmup > math.ceil(epochs):
            found.append(
                f"method.{name}={end:g} is never reached: its {first + warmup} epochs are more than the {epochs:.3g} of the "
                "run; lower method.teacher_temperature_warmup_epochs, or train longer"
            )
    return found
