"""The way from the settings to the first step: method, costs, length of the training, resume point and introduction."""

import hashlib
import os
from dataclasses import asdict, replace
from functools import lru_cache
from pathlib import Path

import torch
from rich.filesize import decimal

from openjepa.checks import never_reached
from openjepa.config import flatten, read_object
from openjepa.data.source import ListSource, ShardSource
from openjepa.engine import distributed
from openjepa.engine.checkpoint import RunIdentity, TrainerState, check_fits, read_state
from openjepa.engine.costs import StepCosts, count_step, each_context, times_contexts
from openjepa.engine.device import device_name, memory_limit, of_memory, supports_bf16
from openjepa.engine.parallel import choose_strategy
from openjepa.engine.parallel_costs import Division, Estimate, estimate
from openjepa.engine.run_folder import RunFolder, logged_step_seconds, logged_steps, weights_name
from openjepa.masks.sampler import MaskSampler, TokenShape
from openjepa.methods import METHODS
from openjepa.methods.base import CoupledTerm, Method, Surroundings
from openjepa.models.vit import VisionTransformer
from openjepa.records import read_summary
from openjepa.refusals import Refusal
from openjepa.schedules import Progress, warmup_steps
from openjepa.seeds import derive
from openjepa.settings.masks import MaskKind
from openjepa.settings.methods import MethodSettings
from openjepa.settings.run import OptimizationSettings, RunConfig
from openjepa.settings.sources import DataSettings
from openjepa.system.console import format_count
from openjepa.training.init import Start, StartingWeights, start_method
from openjepa.types import LoaderPosition, ViewSpec
from openjepa.weights.contents import weights_hash
from openjepa.weights.formats import WeightsChoice, load_any


def default_view(data: DataSettings) -> ViewSpec:
    """The view with the random crop of the data settings."""
    return ViewSpec(
        size=data.height_width(),
        scale=data.crop_scale,
        aspect=data.crop_aspect,
        interpolation=data.interpolation,
        horizontal_flip=data.horizontal_flip,
    )


def build_method(config: RunConfig, view: ViewSpec, sampler: MaskSampler) -> Method:
    """Builds the untrained method of a run on the CPU. Its weights depend only on the settings and the seed.

    `view`: the default view.
    """
    torch.manual_seed(derive("weights", config.run.seed))
    return _built(config.method, _surroundings(config, view, sampler))


def microbatch(config: RunConfig) -> int:
    """Images per forward and backward of one process."""
    return config.optim.images_at_a_time(distributed.world_size())


def division_of(config: RunConfig, device: torch.device, precision: str) -> Division:
    """How the processes that have joined divide a step of the run."""
    processes = distributed.world_size()
    strategy = choose_strategy(config.parallel, config.model.shape(), device.type, processes)
    microbatches = config.optim.batch_size // (microbatch(config) * processes)
    reduced, recompute = config.parallel.reduce_precision, config.run.recompute
    return Division(strategy, processes, microbatches, precision, reduced, recompute, config.optim.optimizer)


def step_costs(
    config: RunConfig, view: ViewSpec, sampler: MaskSampler, shapes: tuple[TokenShape, ...] | None = None
) -> StepCosts:
    """Costs of a step of the method that `build_method` builds. They are counted on a copy without values.

    `shapes`: the only token counts that occur. None: all token counts of `sampler`.
    """
    surroundings = _surroundings(config, view, sampler)
    teacher = None if surroundings.teacher is None else surroundings.teacher.to("meta")  # its values need not be kept
    return _counted(
        config.method,
        replace(surroundings, teacher=teacher),
        config.masks.kind,
        sampler.grid,
        sampler.shapes() if shapes is None else shapes,
        microbatch(config),
    )


@lru_cache(maxsize=32)
def _counted(
    settings: MethodSettings,
    surroundings: Surroundings,
    kind: MaskKind,
    grid: tuple[int, int],
    shapes: tuple[TokenShape, ...],
    images: int,
) -> StepCosts:
    with torch.device("meta"):
        method = _built(settings, surroundings).to("meta")
    return count_step(method, method.inputs(), kind, grid, shapes, images)


def _built(settings: MethodSettings, surroundings: Surroundings) -> Method:
    method: Method = METHODS[settings.name].load()(settings, surroundings)
    return method


def _surroundings(config: RunConfig, view: ViewSpec, sampler: MaskSampler) -> Surroundings:
    data, teacher = config.data, read_teacher(config.method)
    return Surroundings(config.model, view, data.pixel_mean, data.pixel_std, sampler.shapes(), teacher)


def read_teacher(settings: MethodSettings) -> VisionTransformer | None:
    """The encoder that the method needs and never changes, read from its weights. Raises Refusal if it cannot be read."""
    weights = settings.frozen_teacher()
    if weights is None:
        return None
    try:
        return load_any(weights, WeightsChoice(predictor=False)).encoder
    except Refusal as error:
        raise Refusal(
            f"method.teacher: {error}. (A run that goes on needs it, too: its hash tells whether the run stays the same.)"
        ) from error


def begin_from_weights(method: Method, config: RunConfig, weights: StartingWeights | None, found: Path | None) -> Start | None:
    """Copies the weights of `run.init` to a new method, and prints from what it starts.

    Returns None without `run.init`, or if the run continues from the checkpoint `found`, which holds all weights.
    """
    start = None if found is not None else start_method(method, config, weights)
    for line in start.lines() if start is not None else ():
        print(line)
    return start


def training_length(optim: OptimizationSettings, source: ListSource | ShardSource) -> tuple[int, float]:
    """`length_of` for the images of `source`."""
    return length_of(optim, count_images(source))


def length_of(optim: OptimizationSettings, num_images: int | None) -> tuple[int, float]:
    """Number of steps of the whole run, and number of steps per epoch. `num_images`: None for a stream of unknown length.

    Raises Refusal if the length of the data is not known and `optim.total_steps` is not set, if the data is smaller than one
    batch, or if a warm-up in epochs is not shorter than the run.
    """
    if num_images is None:
        if optim.total_steps is None:
            raise Refusal("optim.total_steps is required: the number of samples of this stream is not known")
        length = (optim.total_steps, float(optim.total_steps))
    else:
        per_epoch = num_images // optim.batch_size
        if per_epoch == 0:
            raise Refusal(f"optim.batch_size={optim.batch_size} is larger than the {num_images} training images; use fewer")
        length = (optim.total_steps or max(1, round(optim.epochs * per_epoch)), float(per_epoch))
    _check_warmup(optim, *length, is_known=num_images is not None)
    return length


def count_images(source: ListSource | ShardSource) -> int | None:
    """Number of images of a source; None if the length of a stream is not known."""
    return len(source) if isinstance(source, ListSource) else source.num_records


def _check_warmup(optim: OptimizationSettings, total_steps: int, steps_per_epoch: float, is_known: bool) -> None:
    steps = warmup_steps(optim, Progress(0, total_steps, steps_per_epoch))
    in_steps = optim.warmup_steps is not None
    if steps < total_steps + in_steps:  # a warm-up in steps may take the whole run; a remark then says so
        return
    found = f"{steps} steps" if is_known else "of a stream of unknown length"
    name = f"optim.warmup_steps={steps}" if in_steps else f"optim.warmup_epochs={optim.warmup_epochs:g} ({found})"
    raise Refusal(
        f"{name} is not shorter than the run of {total_steps} steps: "
        f"the learning rate would never reach optim.lr. Set optim.warmup_steps, e.g. {total_steps // 20}, or a longer run"
    )


def run_identity(source: ListSource | ShardSource, total_steps: int, settings: MethodSettings) -> RunIdentity:
    """Facts about the data that must not change when a run is continued. Reads only the names of images, and a teacher."""
    network = read_teacher(settings)
    teacher = None if network is None else weights_hash(network)
    if not isinstance(source, ListSource):
        return RunIdentity(total_steps, source.num_records, names=None, teacher=teacher)
    digest = hashlib.blake2b(digest_size=16)
    for index in range(len(source)):
        digest.update(os.fsencode(source.name(index)) + b"\0")
    return RunIdentity(total_steps, len(source), digest.hexdigest(), teacher)


def refuse_other_runs(config: RunConfig, identity: RunIdentity, device: torch.device, precision: str) -> None:
    """Raises Refusal, naming what differs, unless all processes train the same run on the same data in the same arithmetic."""
    settings = {name: value for name, value in flatten(config).items() if not name.startswith("system.")}
    data = {f"data ({name})": value for name, value in asdict(identity).items()}
    distributed.refuse_differences(
        {**settings, **data, "kinds of device": device.type, "precisions": precision},
        "Start the same command everywhere, and give all processes the same images",
    )


def resume_point(folder: RunFolder, found: Path | None, identity: RunIdentity, method: Method) -> TrainerState:
    """The state from which training starts: that of the checkpoint `found`, or the beginning if it is None.

    Raises Refusal if the data, the length or the networks are not those of the checkpoint, or if an encoder was exported but no
    checkpoint can be used. Prints notes on smaller differences, and on a start from the beginning.
    """
    if found is not None:
        state = read_state(found)
        _check_identity(folder.path, state.identity, identity)
        check_fits(found, method)
        for note in folder.notes:
            print(f"note: {note}")
        return _with_seconds(state, folder.path)
    steps = logged_steps(folder.path)
    if (folder.path / "encoder").exists():
        raise Refusal(
            f"{folder.path} holds an exported encoder ({steps} steps are logged) but no checkpoint that can be used, so the "
            "run can neither go on nor start anew over it. Bring checkpoints/ back, or pass --fresh or --run.name for a new "
            "folder; nothing was changed."
        )
    if steps:
        print(f"note: {folder.path} was stopped after step {steps}, before its first checkpoint: it starts from the beginning")
    return TrainerState(step=0, position=LoaderPosition(), identity=identity)


def _with_seconds(state: TrainerState, path: Path) -> TrainerState:
    """`state` with the time until the end of the last session, because a checkpoint cannot count the time of its own saving."""
    summary = read_summary(read_object(path / "summary.json") or {})
    ended = summary.seconds if summary.step == state.step else None
    steps = state.step_seconds or logged_step_seconds(path, state.step)
    return replace(state, seconds=max(state.seconds, ended or 0.0), step_seconds=steps)


def _check_identity(path: Path, before: RunIdentity | None, now: RunIdentity) -> None:
    if before is None or before == now:
        return
    if before.num_images != now.num_images:
        change = f"{_count(before.num_images)} training images when the run began, {_count(now.num_images)} now"
    elif before.teacher != now.teacher:
        raise Refusal(
            f"{path} cannot be continued exactly: method.teacher holds other weights than when the run began. Restore them, or "
            "pass --fresh or --run.name for a new run."
        )
    elif before.names != now.names:
        change = f"as many training images ({_count(now.num_images)}) as when the run began, but with other names"
    else:
        change = f"{before.total_steps} steps when the run began, {now.total_steps} now"
    raise Refusal(
        f"{path} cannot be continued exactly: {change}; the order of the images and the schedules depend on it. Restore what "
        "data.path held then, or pass --fresh or --run.name for a new run."
    )


def _count(number: int | None) -> str:
    return "an unknown number of" if number is None else f"{number:,}"


def introduce(
    config: RunConfig,
    method: Method,
    costs: StepCosts,
    sampler: MaskSampler,
    data: str,
    device: torch.device,
    precision: str,
    total_steps: int,
    steps_per_epoch: float,
) -> list[str]:
    """Lines that describe the run, its data and device, and roughly the memory that it needs. `data`: words for the data.

    Raises Refusal if the estimated memory is far more than the device has.
    """
    images = total_steps * config.optim.batch_size
    origin = f" from {weights_name(config.run.init)}" if config.run.init else ""
    remarks = [*_coupled(config, method), *method.remarks(total_steps)]
    remarks += never_reached(config.method, total_steps, steps_per_epoch)
    remarks += slow_muon(config.optim, device)
    needs = estimate(costs, division_of(config, device, precision), microbatch(config), device)
    remarks += _memory(needs, microbatch(config), device)
    return [
        f"recipe     {config.recipe} ({config.preset}), method {config.method.name}, seed {config.run.seed}",
        f"data       {data}",
        f"device     {device} ({device_name(device)}), {precision}, {torch.get_num_threads()} threads",
        f"model      {config.model.words()}{origin}; {format_count(needs.trained_parameters)} weights, "
        f"{format_count(needs.flops_per_image)} FLOPs an image and step{each_context(needs.flops_per_image, costs.contexts)}",
        f"masks      {masks_line(config.masks.kind, sampler)}",
        f"training   {total_steps} steps of {config.optim.batch_size} images{times_contexts(costs.contexts)} "
        f"({format_count(images)} in all)",
        f"estimate   {decimal(round(needs.memory_bytes))} of memory (roughly){_main_memory(needs, device)}",
        *(f"note: {remark}" for remark in remarks),
    ]


def slow_muon(optim: OptimizationSettings, device: torch.device) -> list[str]:
    """A note if Muon's products, which are in bf16 whatever the precision, run without hardware for it."""
    if optim.optimizer != "muon" or supports_bf16(device):
        return []
    return [
        f"optim.optimizer=muon multiplies in bf16, which {device} ({device_name(device)}) emulates: 0.7 s of a core in each "
        "step for a matrix of 384 x 384; optim.optimizer=adamw needs a thousandth of that"
    ]


def _coupled(config: RunConfig, method: Method) -> list[str]:
    """A note on terms of the loss that depend on all images of a batch, if they see only a part of it at a time.

    Raises Refusal if they would see only the images of one of several processes, or if the method does not say.
    """
    micro, batch, terms = config.optim.microbatch_size, config.optim.batch_size, method.coupled_terms()
    processes = distributed.world_size()
    if processes > 1:
        refuse_unsynchronized(config.method.name, terms, processes)
    if micro is None or micro * processes == batch or not terms:
        return []
    size = f"{micro}" if processes == 1 else f"{micro} in each of {processes} processes"
    words = " and ".join(term.words for term in terms)
    return [f"optim.microbatch_size={size} of {batch} images: only these are seen at a time by {words}"]


def refuse_unsynchronized(name: str, terms: tuple[CoupledTerm, ...] | None, processes: int) -> None:
    """Raises Refusal if the number of processes would change what the method `name` with these coupled terms learns."""
    apart = [term.words for term in terms or () if not term.synchronized]
    if terms is not None and not apart:
        return
    reason = f"{' and '.join(apart)} would see only its share of a batch" if apart else "its `coupled_terms` say nothing"
    raise Refusal(
        f"method.name={name} is not ready for {processes} processes: {reason}. Train in one process, or synchronize the terms "
        "that depend on the whole batch and say so in `coupled_terms` (docs/contributing.md)"
    )


def masks_line(kind: MaskKind, sampler: MaskSampler) -> str:
    """A description of the masks: strategy, grid and the most frequent token counts."""
    if kind == "none":
        return f"none, whole views of {sampler.grid[0]}x{sampler.grid[1]} patches"
    counts = "visible/masked patches" if kind == "tokens" else "context/target tokens"
    shapes = ", ".join(f"{shape.context}/{shape.target}" for shape in sampler.shapes()[:4])
    return f"{sampler.name} on {sampler.grid[0]}x{sampler.grid[1]} patches; {counts}: {shapes}"


def _main_memory(needs: Estimate, device: torch.device) -> str:
    """Words for what is held beside the memory of a GPU. Empty on a CPU, where it counts as memory of the device."""
    if device.type == "cpu":
        return ""
    return f"; {decimal(round(needs.checkpoint_copy))} of main memory for the copy of a checkpoint"


def _memory(needs: Estimate, microbatch: int, device: torch.device) -> list[str]:
    """A note if the device has less memory than the rough estimate. Raises Refusal if it has less than half of it."""
    limit = memory_limit(device)
    if needs.memory_bytes <= limit:
        return []
    words = (
        f"this run needs about {decimal(round(needs.memory_bytes))} of memory and {device} has {decimal(limit)}"
        f"{of_memory(device)}: lower optim.microbatch_size (now {microbatch}), set run.recompute, or choose a smaller "
        "model.size"
    )
    if needs.memory_bytes > 2 * limit:
        raise Refusal(words)
    return [words]
