"""Checks of a method's settings, masks and encoder, and remarks on settings that are allowed but surely not meant."""

import math
from collections.abc import Callable
from functools import partial
from pkgutil import resolve_name

from openjepa.checks.grids import check_blockwise, most_masked_of
from openjepa.refusals import Refusal
from openjepa.settings.derived import heads_of, resolved
from openjepa.settings.fields import as_setting
from openjepa.settings.masks import BlockwiseSettings, MaskSettings, MultiblockSettings
from openjepa.settings.methods import Data2VecSettings, IBotSettings, IJepaSettings, MaeSettings, MethodSettings, MsnSettings
from openjepa.settings.methods.ijepa import check_target_layers
from openjepa.settings.methods.shared import Heads, MultiCropSettings, SelfDistillationSettings
from openjepa.settings.models import check_heads, check_patch_divides, check_positions, nearest_multiple
from openjepa.settings.run import RunConfig

Checks = list[Callable[[], None]]
OF_FEATURES = ("target_norm", "target_masking", "target_layers", "teacher")
"""Settings of I-JEPA's target encoder's output."""
MASK_WORDS = {
    "blocks": "which predicts target blocks from a context",
    "tokens": "which masks single patches",
    "none": "which compares whole views without masks",
}


def method_checks(config: RunConfig) -> Checks:
    """The checks of a resolved run's method: that masks and encoder suit it, and that its own settings fit together.

    The latter are what `checks` of its settings names, so that a new method brings its own.
    """
    method = config.method
    found: Checks = [partial(check, config) for check in (_check_mask_kind, _check_equal_counts, _check_class_token)]
    if isinstance(method, MultiCropSettings):
        found += [partial(_check_crops, method, config), partial(_check_hue, method.jitter)]
    if method.checks:
        found += resolve_name(method.checks)(method, config)
    return found


def ijepa_checks(method: IJepaSettings, config: RunConfig) -> Checks:
    """The checks of I-JEPA's predictor, targets and contexts."""
    predictor = _network_checks("predictor", method.predictor_heads, method.predictor_width, config)
    targets = [partial(check, method) for check in (_check_pixels, _check_context_loss, _check_ramps, _check_input_masking)]
    if method.teacher is None:
        targets.append(partial(check_target_layers, method.target_layers, config.model.shape().depth))
    others = (partial(_check_contexts, method, config.masks), partial(_check_regularizer, method, config))
    return [*predictor, *targets, *others]


def mae_checks(method: MaeSettings, config: RunConfig) -> Checks:
    """The checks of MAE's decoder."""
    return _network_checks("decoder", method.decoder_heads, method.decoder_width, config)


def data2vec_checks(method: Data2VecSettings, config: RunConfig) -> Checks:
    """The checks of data2vec's colors, averaged layers and masks."""
    return [
        partial(_check_hue, method.jitter),
        partial(_check_average_layers, method, config),
        partial(_check_something_is_masked, config, e_g="0.6"),
    ]


def ibot_checks(method: IBotSettings, config: RunConfig) -> Checks:
    """The check of iBOT's weights and masks."""
    return [partial(_check_ibot, method, config)]


def msn_checks(method: MsnSettings, config: RunConfig) -> Checks:
    """The check of MSN's microbatch."""
    return [partial(_check_msn, config)]


def _check_mask_kind(config: RunConfig) -> None:
    method, masks, name = config.method, config.masks, config.method.name
    if masks.kind not in method.mask_kinds:
        raise Refusal(
            f"masks.strategy={masks.strategy} does not fit method.name={name}, {MASK_WORDS[method.mask_kinds[0]]}: "
            f"use masks.strategy={' or '.join(method.fitting_masks())}, or start from a recipe of {name} (openjepa train "
            "--help), which sets everything else that suits it"
        )


def _check_class_token(config: RunConfig) -> None:
    if config.method.needs_class_token and not config.model.class_token:
        words = f"method.name={config.method.name} trains the class token: set model.class_token=True"
        raise Refusal(f"model.class_token=False, but {words}")


def _network_checks(part: str, heads: Heads, width: int | None, config: RunConfig) -> Checks:
    """The checks of a second network, `predictor` or `decoder`."""
    width_name, num_heads = f"method.{part}_width", heads_of(heads, config.model.shape().heads)
    return [
        partial(check_heads, f"method.{part}_heads", num_heads, width_name, resolved(width)),
        partial(check_positions, width_name, resolved(width)),
    ]


def _check_pixels(method: IJepaSettings) -> None:
    """Raises Refusal if targets are only pixels, but settings of other targets were changed."""
    others = method.changed(OF_FEATURES)
    if not method.encodes_targets() and others:
        found = ", ".join(as_setting(f"method.{name}", getattr(method, name)) for name in others)
        raise Refusal(
            f"method.target_space={method.target_space} has no target encoder, which {found} is for: leave it out, or use "
            "method.target_space=features"
        )


def _check_context_loss(method: IJepaSettings) -> None:
    """Raises Refusal if there is a loss on context tokens that the predictor does not compute."""
    if method.context_loss and method.predictor_pass == "cross":
        raise Refusal(
            f"method.context_loss={method.context_loss:g} needs a predictor that computes context tokens, and with "
            "method.predictor_pass=cross they only give keys and values: set method.predictor_pass=joint"
        )


def _check_ramps(method: IJepaSettings) -> None:
    """Raises Refusal if a step between the pixels and the features would have no targets."""
    (last, gone), (begins, whole) = method.pixels_until, method.features_from
    if method.target_space == "pixels_then_features" and (begins > gone or begins == gone < whole):
        ramps = (as_setting(f"method.{name}", getattr(method, name)) for name in ("pixels_until", "features_from"))
        raise Refusal(
            f"{' and '.join(ramps)} leave steps without targets: let the features begin before the pixels end, e.g. "
            f"method.features_from={last:g} {gone:g}"
        )


def _check_contexts(method: IJepaSettings, masks: MaskSettings) -> None:
    if method.contexts > 1 and isinstance(masks, MultiblockSettings) and masks.mode == "official":
        raise Refusal(
            f"method.contexts={method.contexts} with masks.mode=official: the released program has one context per image, and "
            "its cut depends on how many masks are drawn at a time. Set masks.mode=unbiased, or method.contexts=1"
        )


def _check_input_masking(method: IJepaSettings) -> None:
    if method.context_loss and method.target_masking == "input":
        raise Refusal(
            f"method.context_loss={method.context_loss:g} has no targets with method.target_masking=input, which encodes only "
            "the target blocks: use method.target_masking=output, or method.context_loss=0"
        )
    if method.target_norm == "position" and method.target_masking == "input":
        raise Refusal(
            "method.target_norm=position needs features of every position, but method.target_masking=input encodes only the "
            "blocks: use method.target_masking=output, or another method.target_norm"
        )


def _check_regularizer(method: IJepaSettings, config: RunConfig) -> None:
    if method.regularizer == "none":
        return
    if config.optim.batch_size == 1 or config.optim.microbatch_size == 1:
        name = "batch_size" if config.optim.batch_size == 1 else "microbatch_size"
        raise Refusal(
            f"optim.{name}=1, but method.regularizer={method.regularizer} compares the images of a microbatch: set "
            f"optim.{name} to at least 2, better to as many as fit"
        )
    if method.regularizer == "sigreg" and method.sigreg_points % 2 == 0:
        raise Refusal(
            f"method.sigreg_points={method.sigreg_points} has no point in the middle: use an odd number, such as "
            f"{method.sigreg_points + 1}"
        )


def _check_average_layers(method: Data2VecSettings, config: RunConfig) -> None:
    depth = config.model.shape().depth
    if resolved(method.average_layers) > depth:
        raise Refusal(
            f"method.average_layers={method.average_layers} of an encoder with {depth} blocks: set method.average_layers to at "
            f"most {depth}; half of them ({max(1, depth // 2)}) is what is published"
        )


def _check_ibot(method: IBotSettings, config: RunConfig) -> None:
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


def _check_equal_counts(config: RunConfig) -> None:
    """Raises Refusal if masks differ in their number of patches but only visible patches are encoded."""
    method, masks = config.method, config.masks
    if method.needs_equal_counts and masks.kind == "tokens" and not masks.equal_counts:
        raise Refusal(
            f"masks.strategy={masks.strategy} masks unequal numbers of patches, but method.name={method.name} "
            "encodes only the visible ones, equally many in every image: use masks.strategy=random_patches"
        )


def _check_something_is_masked(config: RunConfig, e_g: str) -> None:
    """Raises Refusal if masks of blocks mask nothing. Masks of single patches have a check of their own."""
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
    """Raises Refusal if small crops are not a whole number of patches, or are larger than the large crops."""
    if not method.local_crops:
        return
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


def _without_regularizer(method: IJepaSettings) -> list[str]:
    """Remarks on changed settings of regularizers that are not chosen."""
    off = [f"{name}_" for name in ("vicreg", "sigreg") if name != method.regularizer]
    off += ["regularizer_"] if method.regularizer == "none" else []
    names = [name for name in vars(method) if name.startswith(tuple(off))]
    return [
        f"method.{name}={getattr(method, name)} has no effect with method.regularizer={method.regularizer}"
        for name in method.changed(names)
    ]


def without_effect(method: MethodSettings) -> list[str]:
    """Remarks on settings that were changed but have no effect because of another setting."""
    found = []
    if isinstance(method, MsnSettings):
        rounds = method.sinkhorn_iterations
        if not method.sinkhorn and rounds != MsnSettings.sinkhorn_iterations:
            found.append(f"method.sinkhorn_iterations={rounds} has no effect with method.sinkhorn=False")
    if isinstance(method, IBotSettings):
        of_patches = method.patch_outputs
        if method.shared_head and of_patches not in (method.outputs, IBotSettings.patch_outputs):
            found.append(f"method.patch_outputs={of_patches} has no effect with method.shared_head=True")
    if isinstance(method, IJepaSettings):
        found += [*_without_effect_on_targets(method), *_without_regularizer(method)]
        warmup = method.context_loss_warmup
        if not method.context_loss and warmup != IJepaSettings.context_loss_warmup:
            found.append(f"method.context_loss_warmup={warmup[0]:g} {warmup[1]:g} has no effect with method.context_loss=0")
    if isinstance(method, Data2VecSettings):
        is_constant = method.ema_start == method.ema_end
        if is_constant and method.ema_ramp != Data2VecSettings.ema_ramp:
            found.append(f"method.ema_ramp={method.ema_ramp:g} has no effect: method.ema_start and method.ema_end are the same")
    return found


def _without_effect_on_targets(method: IJepaSettings) -> list[str]:
    """Remarks on settings of I-JEPA's targets that were changed but have no effect."""
    belong = {
        "pixels_until": ("target_space", "pixels_then_features"),
        "features_from": ("target_space", "pixels_then_features"),
        "position_momentum": ("target_norm", "position"),
        "dyntanh_alpha": ("target_norm", "dyntanh"),
    }
    found = [
        f"{as_setting(f'method.{name}', getattr(method, name))} has no effect without method.{other}={value}"
        for name in method.changed(belong)
        for other, value in [belong[name]]
        if getattr(method, other) != value
    ]
    if method.changed(["target_layers_join"]) and len(method.target_layers) < 2:
        found.append(
            f"method.target_layers_join={method.target_layers_join} has no effect without several method.target_layers"
        )
    if method.export_context_encoder and not method.averages():
        found.append("method.export_context_encoder has no effect: the context encoder is what is exported")
    return found


def never_reached(method: MethodSettings, total_steps: int, steps_per_epoch: float) -> list[str]:
    """Remarks on settings of DINO and iBOT in epochs, if the run is too short to reach them.

    `steps_per_epoch`: a stream of unknown length counts as one epoch.
    """
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
