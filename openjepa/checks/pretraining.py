"""Checks all settings of a pretraining run before anything is loaded, and remarks on settings that are surely not meant."""

import re
from collections.abc import Callable, Collection
from functools import partial

from openjepa.checks.grids import check_blockwise, check_random_patches, check_random_targets, check_rasterized
from openjepa.checks.methods import method_checks, without_effect
from openjepa.refusals import Refusal, refuse, refused
from openjepa.settings.derived import (
    division_problem,
    divisors,
    fitting_microbatches,
    near_divisors,
    nearest_by_ratio,
    resolve,
    resolved,
)
from openjepa.settings.fields import out_of_range
from openjepa.settings.masks import (
    BlockwiseSettings,
    MultiblockSettings,
    RandomPatchesSettings,
    RandomTargetsSettings,
    RasterizedSettings,
)
from openjepa.settings.methods import MethodSettings, TeacherSettings
from openjepa.settings.models import SIZES, ModelSettings, check_heads, check_patch_divides, check_positions
from openjepa.settings.run import OptimizationSettings, RunConfig, RunSettings
from openjepa.settings.sources import FolderSettings, HuggingFaceSettings, is_without_path

COMPUTED_WITH = (
    "model.",
    "masks.",
    "method.",
    "optim.batch_size",
    "optim.microbatch_size",
    "optim.images_per_device",
    "optim.epochs",
    "optim.total_steps",
    "optim.warmup_",
    "data.image_size",
)
"""Prefixes of settings from which others are computed. They must be in range before any setting is derived."""


def check(config: RunConfig, world_size: int = 1, is_model_known: bool = True) -> None:
    """Raises one Refusal that names all settings that cannot work, alone or with the others.

    Derived settings are checked with the values that they get. `world_size`: number of processes. `is_model_known`: False if
    the model depends on weights that are not read yet; checks that need the model are then left out.
    """
    problems, ranges = value_problems(config), [words for _, words in out_of_range(config)]
    checks: list[Callable[[], None]] = [partial(_check_source, config), partial(_check_run, config.run)]
    checks.append(partial(_check_average, config.method))
    if not problems:
        config = resolve(config, processes=world_size)
        checks += [partial(_check_batch, config, world_size), partial(_check_length, config.optim)]
        checks += _model_checks(config) if is_model_known else []
    refuse(list(dict.fromkeys(problems + ranges + refused(checks))))


def value_problems(config: RunConfig) -> list[str]:
    """Errors in the settings from which others are computed. `config` can be resolved only if there are none."""
    found = [words for name, words in out_of_range(config) if name.startswith(COMPUTED_WITH)]
    return found + refused([partial(_check_size, config.model)])


def _model_checks(config: RunConfig) -> list[Callable[[], None]]:
    """The checks that need the model: its sizes, the method and the masks. Those on the grid need a whole number of patches."""
    masks, shape, grid = config.masks, config.model.shape(), config.model.grid(config.data.height_width())
    found: list[Callable[[], None]] = [
        partial(check_patch_divides, config.model.patch_size, config.data.height_width()),
        partial(check_heads, "model.heads", shape.heads, "the width of the encoder", shape.width),
        partial(check_positions, "model.width", shape.width),
    ]
    if refused(found[:1]):
        return found
    found += method_checks(config)
    if isinstance(masks, MultiblockSettings):
        found.append(partial(_check_multiblock, grid))
    if isinstance(masks, RasterizedSettings):
        found.append(partial(check_rasterized, grid))
    if isinstance(masks, RandomTargetsSettings):
        found.append(partial(check_random_targets, masks, grid))
    if isinstance(masks, BlockwiseSettings):
        found.append(partial(check_blockwise, masks, grid))
    if isinstance(masks, RandomPatchesSettings):
        found.append(partial(check_random_patches, masks, grid))
    return found


def remarks(config: RunConfig, given: Collection[str] = ()) -> list[str]:
    """Remarks on what is allowed but surely not meant: settings without effect, and a warm-up as long as the run.

    `given`: dotted names of the settings that the command line sets. A setting that only decides others is remarked on if it is
    among them. Mask strategies give their own warnings. `never_reached` is called once the length is known in steps.
    """
    found = _without_followers(config, given)
    config = resolve(config)
    optim = config.optim
    if optim.total_steps is not None and optim.epochs != OptimizationSettings.epochs:
        found.append(f"optim.epochs={optim.epochs} has no effect: optim.total_steps={optim.total_steps} sets the length")
    if optim.warmup_steps is not None and optim.warmup_steps == optim.total_steps:
        found.append(
            f"optim.warmup_steps={optim.warmup_steps} is the whole training: the learning rate never falls from optim.lr"
        )
    if optim.weight_decay_schedule == "constant" and optim.final_weight_decay != OptimizationSettings.final_weight_decay:
        found.append(f"optim.final_weight_decay={optim.final_weight_decay} has no effect with weight_decay_schedule=constant")
    if optim.cooldown != OptimizationSettings.cooldown and optim.lr_schedule == "cosine":
        found.append(f"optim.cooldown={optim.cooldown} has no effect with optim.lr_schedule=cosine")
    if optim.muon_momentum != OptimizationSettings.muon_momentum and optim.optimizer != "muon":
        found.append(f"optim.muon_momentum={optim.muon_momentum:g} has no effect with optim.optimizer={optim.optimizer}")
    if optim.clip_mode != OptimizationSettings.clip_mode and optim.clip_grad is None:
        found.append(f"optim.clip_mode={optim.clip_mode} has no effect without optim.clip_grad")
    if config.data.cache_size is not None and config.data.cache == "none":
        found.append(f"data.cache_size={config.data.cache_size} has no effect with data.cache=none")
    masks = config.masks
    is_shared = masks.kind == "blocks" or (isinstance(masks, RandomPatchesSettings) and masks.shared)
    if masks.group_size is not None and not is_shared:
        found.append(f"masks.group_size={masks.group_size} has no effect: these masks ({masks.strategy}) share nothing")
    run, usual = config.run, RunSettings()
    for name in ("init_encoder", "init_heads"):
        if run.init is None and getattr(run, name) != getattr(usual, name):
            found.append(f"run.{name}={getattr(run, name)} has no effect without run.init")
    return found + without_effect(config.method)


def _without_followers(config: RunConfig, given: Collection[str]) -> list[str]:
    """Remarks on `given` settings that decide others, if all of those are set too. No remarks on those of a recipe."""
    optim, found = config.optim, []
    if "optim.warmup_share" in given and optim.warmup_share is not None:
        said = [name for name in ("warmup_steps", "warmup_epochs") if getattr(optim, name) is not None]
        if said:
            words = f"optim.{said[0]}={getattr(optim, said[0])} says the length of the warm-up"
            found.append(f"optim.warmup_share={optim.warmup_share:g} has no effect: {words}")
    if "optim.images_per_device" in given and optim.images_per_device is not None and optim.microbatch_size is not None:
        said_both = config.masks.group_size is not None or config.masks.kind != "blocks"
        if said_both:
            words = f"optim.microbatch_size={optim.microbatch_size}"
            words += "" if config.masks.kind != "blocks" else f" and masks.group_size={config.masks.group_size}"
            found.append(f"optim.images_per_device={optim.images_per_device} has no effect beside {words}")
    return found


# -------------------------------------------------------------------------------------------------- image and networks


def _check_size(model: ModelSettings) -> None:
    if model.size not in SIZES:
        raise Refusal(f"model.size={model.size!r} must be one of {', '.join(SIZES)}")


# ------------------------------------------------------------------------------------------------- batch, length, data


def _check_batch(config: RunConfig, world_size: int) -> None:
    batch, micro, group = config.optim.batch_size, config.optim.microbatch_size, config.masks.group_size
    if problem := division_problem(batch, world_size):
        raise Refusal(problem)
    share, one_time, wrong = batch // world_size, config.optim.images_at_a_time(world_size), []
    if problem := division_problem(batch, world_size, micro):
        wrong.append(problem)
    if group is not None and batch % group:
        fitting = near_divisors(batch, group)
        wrong.append(f"masks.group_size={group} does not divide optim.batch_size={batch}; near values that do: {fitting}")
    if group is not None and not wrong and group % one_time:
        fix = f"set optim.microbatch_size to a divisor of {group}"
        wrong.append(f"masks.group_size={group} is no multiple of the microbatch ({one_time} images): {fix}")
    if wrong and group is not None:
        fitting_group = nearest_by_ratio(divisors(batch), group)
        fitting_micro = nearest_by_ratio(fitting_microbatches(share, fitting_group), one_time)
        wrong.append(f"these fit together: optim.microbatch_size={fitting_micro} and masks.group_size={fitting_group}")
    if wrong:
        raise Refusal("; ".join(wrong))


def _check_length(optim: OptimizationSettings) -> None:
    if optim.total_steps is not None and optim.warmup_steps is not None and optim.warmup_steps > optim.total_steps:
        raise Refusal(f"optim.warmup_steps={optim.warmup_steps} is more than optim.total_steps={optim.total_steps}")
    if optim.warmup_steps is None and optim.warmup_epochs is None:
        raise Refusal(
            "optim.warmup_epochs, optim.warmup_steps and optim.warmup_share are all None: set one, e.g. optim.warmup_share=0.1"
        )
    if optim.warmup_steps is None and optim.total_steps is None and resolved(optim.warmup_epochs) >= optim.epochs:
        raise Refusal(
            f"optim.warmup_epochs={optim.warmup_epochs:g} is not shorter than optim.epochs={optim.epochs:g}: the learning rate "
            f"would never reach optim.lr. Set optim.warmup_epochs, e.g. {optim.epochs / 20:g}"
        )


def _check_average(method: MethodSettings) -> None:
    """Raises Refusal if the momentum at the first step is given in two ways."""
    if isinstance(method, TeacherSettings) and method.ema_memory is not None and method.ema_start is not None:
        raise Refusal(
            f"method.ema_memory={method.ema_memory:g} and method.ema_start={method.ema_start:g} both give the momentum at the "
            "first step: use method.ema_start=None (--method.ema-start None), or leave out method.ema_memory"
        )


def _check_multiblock(grid: tuple[int, int]) -> None:
    if min(grid) < 2:
        fix = "use a smaller model.patch_size or a larger data.image_size"
        raise Refusal(f"masks.strategy=multiblock needs at least 2x2 patches; this grid is {grid[0]}x{grid[1]}: {fix}")


def _check_run(run: RunSettings) -> None:
    if not re.fullmatch(r"auto|cpu|mps|cuda(:[0-9]+)?", run.device):
        raise Refusal(f"run.device={run.device!r} must be auto, cpu, cuda, cuda:<number> or mps")
    if run.name is not None and (run.name in (".", "..") or re.search(r"[/\\\0]", run.name)):
        fix = "give the folder that holds the runs as run.output"
        raise Refusal(f"run.name={run.name!r} must be the name of one folder, without separators, '.' or '..': {fix}")
    for setting, value in (("run.name", run.name), ("run.output", run.output)):
        if value is not None and not _is_text(value):
            raise Refusal(f"{setting}={value!r} has bytes that are no text (UTF-8): weights cannot be read from such a path")


def _is_text(words: str) -> bool:
    return words.encode("utf-8", errors="ignore").decode() == words


def _check_source(config: RunConfig) -> None:
    data = config.data
    if is_without_path(data):
        example = "--data.path ~/photos" if isinstance(data, FolderSettings) else "--data.path owner/name"
        raise Refusal(f"data.path is empty: say where the images are, e.g. {example}")
    if not isinstance(data, HuggingFaceSettings) or not data.streaming:
        return
    if config.optim.total_steps is None:
        raise Refusal("data.streaming=True needs optim.total_steps: the length of a stream is not known")
    if data.cache != "none":
        raise Refusal(f"data.cache={data.cache!r} needs a list of images, not a stream: set data.cache=none")
