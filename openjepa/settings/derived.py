"""Settings that follow from others. They are None until `resolve` gives them a value. Free of torch.

A value that is set in a file, on the command line or in Python is never changed. A recipe leaves a setting None if it follows
from others. RULES says how it follows.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import TypeVar

from openjepa.settings.methods import Heads, IBotSettings, IJepaSettings, MaeSettings, TeacherSettings
from openjepa.settings.models import Shape
from openjepa.settings.run import OptimizationSettings, RunConfig

Value = TypeVar("Value")

PUBLISHED_SIDE = 224
"""Side, in pixels, of the images for which published values are meant."""
LOCAL_SHARE = 96 / 224
"""Side of a small crop divided by the side of a large one."""
LEAST_BLUR = 0.1
"""Least standard deviation of a blur, in pixels. A smaller one has no effect."""
MOST_OUTPUTS = 4096
"""Most outputs of the heads of DINO and iBOT. The published 65,536 would cost more than a small encoder."""
MSN_RATIOS = ((1024, 0.7), (768, 0.3))
"""Least width of an encoder, and the share of patches that MSN drops for it (published: B/16 0.3, L/7 0.7)."""
MSN_SMALL_RATIO = 0.15
"""Share of patches that MSN drops for narrower encoders (published: S/16)."""
RENEWALS = 50
"""Number of times that our small recipes renew the target encoder in a run."""
LOOKS, LEAST_STEPS_OF_A_LOOK = 10, 100
"""Number of looks of the monitor in a run, and the fewest steps between two looks."""
REFERENCE_PATCHES, REFERENCE_KEEP = 196, 10
"""Number of patches of the grid of the released masks, and `min_keep` on that grid."""


def resolved(value: Value | None) -> Value:
    """The value of a setting that `resolve` has filled in."""
    assert value is not None, "a derived setting is still None: call openjepa.settings.derived.resolve(config) first"
    return value


def heads_of(wanted: Heads, encoder_heads: int) -> int:
    """Number of attention heads of a second network.

    `wanted`: a number, None (as many as the encoder), or `half`, which keeps the width of a head if the network is half as wide
    as the encoder. If the encoder's number is odd, `half` means as many as the encoder.
    """
    if wanted == "half" and encoder_heads % 2 == 0:
        return encoder_heads // 2
    return wanted if isinstance(wanted, int) else encoder_heads


@dataclass(frozen=True)
class _Run:
    """The run as the rules see it."""

    config: RunConfig
    total_steps: int | None
    """Number of steps of the run; None if it is not known yet."""
    processes: int

    @property
    def shape(self) -> Shape:
        return self.config.model.shape()

    @property
    def side(self) -> int:
        """Shorter side of the images in pixels."""
        return min(self.config.data.height_width())


def resolve(config: RunConfig, total_steps: int | None = None, processes: int = 1) -> RunConfig:
    """`config` with a value for every setting that follows from others. Resolving twice changes nothing.

    `total_steps`: length of the run, if the settings give it in epochs. Without it, settings that depend on the length stay
    None. `processes`: number of processes that share the batch.
    """
    for name, rule in RULES.items():
        group, field = name.split(".")
        settings = getattr(config, group)
        if getattr(settings, field, 0) in (None, "half"):
            value = rule(_Run(config, config.optim.total_steps or total_steps, processes))
            config = replace(config, **{group: replace(settings, **{field: value})})
    # the values that follow from these replace them
    config = replace(config, optim=replace(config.optim, warmup_share=None, images_per_device=None))
    if isinstance(config.method, TeacherSettings) and config.method.ema_start is not None:
        config = replace(config, method=replace(config.method, ema_memory=None))
    return config


def left_to_follow(config: RunConfig, recipe: RunConfig) -> RunConfig:
    """`config` with None again for every setting that `recipe` leaves to follow from others."""
    for name in (*RULES, "optim.warmup_share", "optim.images_per_device", "method.ema_memory"):
        group, field = name.split(".")
        ours, theirs = getattr(config, group), getattr(recipe, group)
        is_shared = type(ours) is type(theirs) and hasattr(ours, field)
        if is_shared and (name not in RULES or getattr(theirs, field) in (None, "half")):
            config = replace(config, **{group: replace(ours, **{field: getattr(theirs, field)})})
    return config


# -------------------------------------------------------------------------------------------------------- from the length


def ema_start_for(total_steps: int, memory: float | None = None) -> float:
    """First EMA momentum of our recipes. It renews the target encoder 50 times in a run of any length, which suits short runs.

    `memory`: the share of the run that the average remembers at the start, instead of a hundredth. The released 0.996 renews it
    4 times in 2,000 steps. The export is then a mean of context encoders whose average age is 44 % of the run (docs/log.md).
    """
    forgets = 2 * RENEWALS if memory is None else 1 / memory
    return round(max(0.0, 1 - forgets / total_steps), 6)


def _ema_start(run: _Run) -> float | None:
    method = run.config.method
    assert isinstance(method, TeacherSettings)
    return ema_start_for(run.total_steps, method.ema_memory) if run.total_steps else None


def _ema_end(run: _Run) -> float | None:
    method = run.config.method
    assert isinstance(method, TeacherSettings)
    return method.ema_start


def _monitor_every(run: _Run) -> int | None:
    return max(LEAST_STEPS_OF_A_LOOK, run.total_steps // LOOKS) if run.total_steps else None


def _warmup_steps(run: _Run) -> int | None:
    """Steps of the warm-up, for a run whose length is set in steps and whose warm-up is set only as a share."""
    optim = run.config.optim
    if optim.warmup_epochs is not None or optim.warmup_share is None or optim.total_steps is None:
        return None
    return round(optim.warmup_share * optim.total_steps)


def _warmup_epochs(run: _Run) -> float | None:
    """Epochs of the warm-up, for a run whose length is in epochs. If the warm-up is in steps: the default, without effect."""
    optim = run.config.optim
    if optim.total_steps is None and optim.warmup_share is not None:
        return optim.warmup_share * optim.epochs
    return OptimizationSettings.warmup_epochs if optim.warmup_steps is not None else None


# --------------------------------------------------------------------------------------------- from the sizes of the model


def _half_width(run: _Run) -> int:
    return run.shape.width // 2


def _predictor_heads(run: _Run) -> int | None:
    method = run.config.method
    assert isinstance(method, IJepaSettings)
    return None if method.predictor_heads is None else heads_of(method.predictor_heads, run.shape.heads)


def _decoder_heads(run: _Run) -> int:
    method = run.config.method
    assert isinstance(method, MaeSettings)
    return heads_of(method.decoder_heads, run.shape.heads)


def _outputs(run: _Run) -> int:
    return min(MOST_OUTPUTS, 16 * run.shape.width)


def _patch_outputs(run: _Run) -> int | None:
    method = run.config.method
    assert isinstance(method, IBotSettings)
    return method.outputs


def _msn_ratio(run: _Run) -> float:
    return next((ratio for width, ratio in MSN_RATIOS if run.shape.width >= width), MSN_SMALL_RATIO)


# --------------------------------------------------------------------------------------------- from the sizes of the images


def _local_size(run: _Run) -> int:
    patch = run.config.model.patch_size
    return max(patch, round(LOCAL_SHARE * run.side / patch) * patch)


def _blur_sigma(run: _Run) -> tuple[float, float]:
    return max(LEAST_BLUR, 0.1 * run.side / PUBLISHED_SIDE), max(LEAST_BLUR, 2.0 * run.side / PUBLISHED_SIDE)


def _min_keep(run: _Run) -> int:
    """`min_keep` in proportion to the grid. With the released 10 patches, masks on small grids would be redrawn forever."""
    rows, columns = run.config.model.grid(run.config.data.height_width())
    return min(REFERENCE_KEEP, REFERENCE_KEEP * rows * columns // REFERENCE_PATCHES)


# ---------------------------------------------------------------------------------------------------------- from the batch


def _group_size(run: _Run) -> int | None:
    """Images in a group of I-JEPA's masks: those of one device. The group is a multiple of a microbatch that is set."""
    near, batch = run.config.optim.images_per_device, run.config.optim.batch_size
    if near is None or run.config.masks.kind != "blocks":
        return None
    whole = [number for number in divisors(batch) if number % (run.config.optim.microbatch_size or 1) == 0]
    return nearest_by_ratio(whole or divisors(batch), near)


def _microbatch_size(run: _Run) -> int | None:
    """Images in a microbatch. The number divides the share of one process of the batch, and the group of masks."""
    near, batch = run.config.optim.images_per_device, run.config.optim.batch_size
    if near is None:
        return None
    return nearest_by_ratio(fitting_microbatches(max(1, batch // run.processes), run.config.masks.group_size), near)


def fitting_microbatches(share: int, group_size: int | None) -> list[int]:
    """The sizes of a microbatch that divide the `share` of a process and a group of masks, the smallest first.

    `share` and `group_size`: number of images. None: a group has the whole batch.
    """
    return divisors(math.gcd(share, group_size or share))


def division_problem(batch: int, processes: int, microbatch: int | None = None, called: str = "processes") -> str:
    """Why `batch` images cannot be divided over processes and microbatches, with near numbers that fit. Empty if they can.

    `microbatch`: number of images; None means the whole share of a process. `called`: word for the processes.
    """
    if batch % processes:
        numbers = divisors(batch)
        fewer, more = [item for item in numbers if item < processes], [item for item in numbers if item > processes]
        below = batch // processes * processes
        batches = [item for item in (below, below + processes) if item > 0]
        return (
            f"{processes} {called} do not divide optim.batch_size={batch}: use {_either(fewer[-1:] + more[:1])} {called}, or "
            f"--optim.batch-size {_either(batches)}"
        )
    share = batch // processes
    if microbatch is None or share % microbatch == 0:
        return ""
    per_process = f"optim.batch_size={batch}" + (f" / {processes} {called}" if processes > 1 else "")
    near = near_divisors(share, microbatch)
    return f"optim.microbatch_size={microbatch} does not divide {per_process}; near values that do: {near}"


def _either(numbers: list[int]) -> str:
    return " or ".join(map(str, numbers))


def near_divisors(number: int, value: int) -> str:
    """The four divisors of `number` whose ratio to `value` is nearest to 1, in words."""
    closest = sorted(divisors(number), key=lambda item: abs(math.log(item / value)))[:4]
    return ", ".join(map(str, sorted(closest)))


def divisors(number: int) -> list[int]:
    """All divisors of `number`, the smallest first. `number` must be above 0."""
    small = [item for item in range(1, math.isqrt(number) + 1) if number % item == 0]
    return sorted({*small, *(number // item for item in small)})


def nearest_by_ratio(numbers: list[int], value: int) -> int:
    """The one of `numbers` whose ratio to `value` is nearest to 1."""
    return min(numbers, key=lambda item: abs(math.log(item / value)))


RULES: Mapping[str, Callable[[_Run], object]] = {
    "optim.warmup_steps": _warmup_steps,
    "optim.warmup_epochs": _warmup_epochs,
    "masks.group_size": _group_size,
    "optim.microbatch_size": _microbatch_size,
    "masks.ratio": _msn_ratio,
    "masks.min_keep": _min_keep,
    "monitor.every": _monitor_every,
    "method.ema_start": _ema_start,
    "method.ema_end": _ema_end,
    "method.predictor_width": _half_width,
    "method.predictor_heads": _predictor_heads,
    "method.decoder_width": _half_width,
    "method.decoder_heads": _decoder_heads,
    "method.average_layers": lambda run: max(1, run.shape.depth // 2),
    "method.local_size": _local_size,
    "method.blur_sigma": _blur_sigma,
    "method.outputs": _outputs,
    "method.patch_outputs": _patch_outputs,
    "method.head_hidden": lambda run: min(2048, 4 * run.shape.width),
    "method.bottleneck": lambda run: min(256, run.shape.width // 2),
    "method.prototypes": lambda run: min(1024, 4 * run.shape.width),
    "method.output_width": lambda run: min(256, run.shape.width),
}
"""The rule of each setting that may be None or `half`. A rule may use the values of the rules before it."""
