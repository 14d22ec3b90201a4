"""openjepa plan: what a run needs on several numbers of GPUs, before any of them is rented.

FLOPs, activations and weights are counted on the meta device, as for `openjepa train --dry-run`. Seconds follow from rates that
makers state (`gpu_table`). docs/planning.md says what is assumed.
"""

import math
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import torch

from openjepa.checks import check
from openjepa.config import nearest_names
from openjepa.data.datasets.benchmarks import BENCHMARKS
from openjepa.data.source import open_splits
from openjepa.engine.costs import StepCosts
from openjepa.engine.parallel import Strategy, choose_strategy
from openjepa.engine.parallel_costs import (
    Division,
    MemoryParts,
    SentBytes,
    by_muon,
    checkpoint_copy,
    memory_parts,
    own_numbers,
    sent_bytes,
)
from openjepa.experiments.gpu_table import GPUS, PAPER_SHARE, Gpu
from openjepa.experiments.step_forecast import Machines, StepForecast, forecast_step
from openjepa.masks import MASKS
from openjepa.recipes import RECIPES
from openjepa.refusals import Refusal, refused
from openjepa.settings.derived import division_problem, fitting_microbatches, resolve
from openjepa.settings.experiments import PlanSettings
from openjepa.settings.run import RunConfig
from openjepa.settings.sources import is_without_path
from openjepa.training.startup import count_images, default_view, length_of, step_costs

RESERVED = 0.06
"""Share of a GPU's memory that is left for CUDA, NCCL and fragmentation. Assumed."""
KEPT_CHECKPOINTS = 3
"""The latest two, and the next one while it is written."""
DECODE_RATES = {"ijepa": 766.0, "mae": 766.0, "data2vec": 464.0, "dino": 127.0, "ibot": 117.0, "msn": 121.0}
"""Images/s of one core: JPEGs of 500 x 375 pixels to the views of 224 and 96 pixels of a method. I-JEPA and MAE: measured on an
AMD EPYC, the others on an Intel Xeon (benchmarks/results/README.md)."""
GPU_DEVICE = torch.device("cuda")
"""Names the kind of device whose attention kernels are planned for. Needs no GPU."""


@dataclass(frozen=True)
class WholeRun:
    """What is the same for every number of GPUs."""

    recipe: str
    preset: str
    method: str
    model: str
    gpu: str
    precision: str
    mfu: float
    """Share of the GPU's peak that a step is expected to reach without waiting."""
    trained_weights: int
    target_weights: int
    flops: dict[str, int]
    """FLOPs of the forward of one image, by part."""
    step_flops: int
    """FLOPs of one image in a step."""
    batch_size: int
    contexts: int
    """Contexts per image."""
    images: int | None
    """Training images; None if they are not known."""
    epochs: float | None
    steps: int
    total_flops: int
    checkpoint_bytes: int
    disk_bytes: int
    """Checkpoints that a run keeps, the one that it writes, and its exports."""


@dataclass(frozen=True)
class WayToTrain:
    """A strategy, with or without recomputation: the largest microbatch that fits into a GPU, and the hours of the run."""

    strategy: Strategy
    recompute: bool
    microbatch: int | None
    """None: not even a single image fits."""
    hours: float | None


@dataclass(frozen=True)
class GpuColumn:
    """The run on one number of GPUs."""

    gpus: int
    nodes: int
    problem: str | None = None
    """Why the run cannot be on this number of GPUs, and what would fit; else None. Nothing below is known then."""
    strategy: str = ""
    recompute: bool = False
    microbatch: int = 0
    microbatches: int = 0
    """Number of microbatches of one GPU in a step."""
    ways: tuple[WayToTrain, ...] = ()
    memory: MemoryParts | None = None
    memory_bytes: float = 0.0
    """All parts of the memory, and what is reserved."""
    memory_limit: float = 0.0
    checkpoint_copy: float = 0.0
    """Bytes of main memory, beside each GPU, from which a checkpoint is written."""
    sent: SentBytes | None = None
    within_bytes: float = 0.0
    """Bytes that one GPU sends in a step to others of its node."""
    between_bytes: float = 0.0
    """Bytes that one GPU sends in a step to other nodes."""
    step: StepForecast | None = None
    step_seconds: float = 0.0
    efficiency: float = 0.0
    """Share of the step that is not spent waiting for other GPUs."""
    mfu: float = 0.0
    """Share of the peak of all GPUs that the run gets."""
    images_per_second: float = 0.0
    decoding_cores: float = 0.0
    """CPU cores that make the views of these images, on all nodes together."""
    hours: float = 0.0
    hours_at_paper_pace: float | None = None
    """Hours if the steps are as slow as those of the I-JEPA paper can have been. None if the
    user says the MFU, and for small recipes."""
    gpu_hours: float = 0.0

    def refusal(self) -> str:
        """The problem, beginning with the number of GPUs."""
        number, problem = f"{self.gpus} GPU{'s' * (self.gpus > 1)}", self.problem or ""
        return problem if problem.startswith(number) else f"{number}: {problem}"


@dataclass(frozen=True)
class RunPlan:
    """The plan of one run."""

    run: WholeRun
    columns: tuple[GpuColumn, ...]


def make_run_plan(config: RunConfig, settings: PlanSettings) -> RunPlan:
    """Plans the run `config`, whose derived settings may be None. Needs neither its images nor a GPU.

    Raises Refusal if the settings cannot work on any of the numbers of GPUs, or if the length of the run is not known.
    """
    gpu = _known_gpu(settings.gpu)
    images = _training_images(config, settings)
    config = _without_images(config)
    precision = _usable_precision(config.run.precision, gpu)
    check(config)
    undivided = [division_problem(config.optim.batch_size, number, called="GPUs") for number in settings.gpus]
    if all(undivided):  # said before the costs are counted, which takes long
        raise Refusal("; ".join(undivided))
    steps, per_epoch = length_of(resolve(config).optim, images)
    whole = resolve(config, steps)
    view = default_view(whole.data)
    sampler = MASKS[whole.masks.strategy].load()(whole.masks, whole.model.grid(view.size))
    costs = step_costs(whole, view, sampler)
    mfu = settings.mfu or gpu.expected_mfu(precision)
    run = _planned(whole, costs, gpu, precision, mfu, images, steps, per_epoch)
    planner = _Planner(config, settings, costs, run, gpu)
    columns = tuple(planner.column(number) for number in dict.fromkeys(settings.gpus))
    if all(column.problem for column in columns):
        raise Refusal("; ".join(column.refusal() for column in columns))
    return RunPlan(run, columns)


def _known_gpu(name: str) -> Gpu:
    if name not in GPUS:
        raise Refusal(
            f"--gpu {name} is not in the list; take the one that is most like it, with --mfu and --bandwidth: "
            f"{nearest_names(name, GPUS)}"
        )
    return GPUS[name]


def _without_images(config: RunConfig) -> RunConfig:
    """`config` with a path for its images if it has none, because a plan can do without them."""
    if is_without_path(config.data):
        return replace(config, data=replace(config.data, path="images"))  # type: ignore[call-arg]  # not every source has a path
    return config


def _usable_precision(wanted: str, gpu: Gpu) -> str:
    if wanted == "bf16" and gpu.bf16 is None:
        raise Refusal(f"run.precision=bf16: the {gpu.title} has no products in bf16; use fp32, or another --gpu")
    return "fp32" if wanted == "fp32" or gpu.bf16 is None else "bf16"


def _training_images(config: RunConfig, settings: PlanSettings) -> int | None:
    """Number of training images: as said, as found in `data.path`, or those of the data set that the recipe is made for."""
    if settings.images is not None:
        return settings.images
    path = getattr(config.data, "path", None)
    if path is None or (path and Path(path).expanduser().exists()):
        return count_images(open_splits(config.data, config.run.seed).train)
    home = RECIPES[config.recipe].data if config.recipe in RECIPES else ""
    known = next((item.num_train for item in BENCHMARKS.values() if Path(home).name in item.folders), None)
    if known is None and path:
        raise Refusal(f"data.path={path} is not there; give --images N")
    if known is None and config.optim.total_steps is None:
        raise Refusal("data.path is empty, and the length of the run follows from the number of images: give --images N")
    return known


def _planned(
    config: RunConfig, costs: StepCosts, gpu: Gpu, precision: str, mfu: float, images: int | None, steps: int, per_epoch: float
) -> WholeRun:
    trained, average = (own_numbers(costs, 1, is_trained) for is_trained in (True, False))
    # weights, average and moments in fp32; Muon has one moment
    checkpoint = 4 * (3 * trained + average - by_muon(costs, 1, config.optim.optimizer))
    every = config.system.keep_every
    kept = KEPT_CHECKPOINTS + (steps // every if every else 0)
    return WholeRun(
        recipe=config.recipe,
        preset=config.preset,
        method=config.method.name,
        model=config.model.words(),
        gpu=gpu.title,
        precision=precision,
        mfu=mfu,
        trained_weights=trained,
        target_weights=average,
        flops={name: round(value) for name, value in costs.flops.items()},
        step_flops=round(costs.step_flops),
        batch_size=config.optim.batch_size,
        contexts=costs.contexts,
        images=images,
        epochs=None if images is None else steps / per_epoch,
        steps=steps,
        total_flops=round(costs.step_flops) * config.optim.batch_size * steps,
        checkpoint_bytes=checkpoint,
        disk_bytes=kept * checkpoint + 2 * 4 * trained,
    )


@dataclass(frozen=True)
class _Planner:
    """Plans one run on any number of GPUs."""

    config: RunConfig
    """With derived settings as None, because those of the batch follow from the number of GPUs."""
    settings: PlanSettings
    costs: StepCosts
    run: WholeRun
    gpu: Gpu

    def column(self, number: int) -> GpuColumn:
        """The run on `number` GPUs."""
        machines, batch = self._machines(number), self.config.optim.batch_size
        if problem := division_problem(batch, number, called="GPUs"):
            return GpuColumn(number, machines.nodes, problem)
        if problems := refused([partial(check, self.config, number)]):
            return GpuColumn(number, machines.nodes, "; ".join(problems))
        config = resolve(self.config, self.run.steps, number)
        strategies: tuple[Strategy, ...] = ("single",) if number == 1 else ("ddp", "fsdp2")
        ways = tuple(self._way(config, machines, strategy, recompute) for strategy in strategies for recompute in (False, True))
        strategy = choose_strategy(config.parallel, config.model.shape(), GPU_DEVICE.type, number)
        division = self._division(config, machines, strategy, config.run.recompute)
        if division is None:
            problem = _too_large(strategy, config.run.recompute, ways, self.gpu)
            return GpuColumn(number, machines.nodes, problem, ways=ways)
        return self._on(machines, division, ways)

    def _machines(self, number: int) -> Machines:
        within, between = self.gpu.link, self.gpu.network
        if self.settings.bandwidth:
            within, between = (1e9 * value for value in self.settings.bandwidth)
        return Machines(self.gpu, number, self.settings.gpus_per_node, within, between)

    def _way(self, config: RunConfig, machines: Machines, strategy: Strategy, recompute: bool) -> WayToTrain:
        largest = self._largest(config, machines.gpus, strategy, recompute)
        division = self._division(config, machines, strategy, recompute)
        hours = None if division is None else self.run.steps * self._forecast(machines, division, self.run.mfu).total() / 3600
        return WayToTrain(strategy, recompute, largest, hours)

    def _division(self, config: RunConfig, machines: Machines, strategy: Strategy, recompute: bool) -> Division | None:
        """The microbatch of the settings, or the largest below it that fits. None if none fits."""
        share = config.optim.batch_size // machines.gpus
        largest = self._largest(config, machines.gpus, strategy, recompute, config.optim.images_at_a_time(machines.gpus))
        return None if largest is None else self._divided(machines.gpus, share // largest, strategy, recompute)

    def _divided(self, number: int, microbatches: int, strategy: Strategy, recompute: bool) -> Division:
        reduced, optimizer = self.config.parallel.reduce_precision, self.config.optim.optimizer
        return Division(strategy, number, microbatches, self.run.precision, reduced, recompute, optimizer)

    def _largest(
        self, config: RunConfig, number: int, strategy: Strategy, recompute: bool, most: float = math.inf
    ) -> int | None:
        """The largest microbatch that fits, and has at most `most` images; None if none does."""
        share, limit = config.optim.batch_size // number, (1 - RESERVED) * self.gpu.memory
        sizes = fitting_microbatches(share, config.masks.group_size)
        for size in reversed([size for size in sizes if size <= most]):
            division = self._divided(number, share // size, strategy, recompute)
            if memory_parts(self.costs, division, size, GPU_DEVICE).total() <= limit:
                return size
        return None

    def _forecast(self, machines: Machines, division: Division, mfu: float) -> StepForecast:
        return forecast_step(self.costs, division, self.run.batch_size // machines.gpus, machines, mfu)

    def _on(self, machines: Machines, division: Division, ways: tuple[WayToTrain, ...]) -> GpuColumn:
        run, share = self.run, self.run.batch_size // machines.gpus
        microbatch = share // division.microbatches
        memory = memory_parts(self.costs, division, microbatch, GPU_DEVICE)
        sent = sent_bytes(self.costs, division)
        step = self._forecast(machines, division, run.mfu)
        has_pace = not self.settings.mfu and run.recipe in RECIPES and not RECIPES[run.recipe].is_small
        slower = None if not has_pace else self._forecast(machines, division, PAPER_SHARE * run.mfu)
        images_per_second = run.batch_size / step.total()
        hours = run.steps * step.total() / 3600
        return GpuColumn(
            gpus=machines.gpus,
            nodes=machines.nodes,
            strategy=division.strategy,
            recompute=division.recompute,
            microbatch=microbatch,
            microbatches=division.microbatches,
            ways=ways,
            memory=memory,
            memory_bytes=memory.total() + RESERVED * self.gpu.memory,
            memory_limit=self.gpu.memory,
            checkpoint_copy=checkpoint_copy(self.costs, division),
            sent=sent,
            within_bytes=sent.total() * (1 - machines.crossing()),
            between_bytes=sent.total() * machines.crossing(),
            step=step,
            step_seconds=step.total(),
            efficiency=step.efficiency(),
            mfu=share * run.step_flops / step.total() / self.gpu.peak(run.precision),
            images_per_second=images_per_second,
            decoding_cores=images_per_second / (self.settings.decode_rate or DECODE_RATES[run.method]),
            hours=hours,
            hours_at_paper_pace=None if slower is None else run.steps * slower.total() / 3600,
            gpu_hours=hours * machines.gpus,
        )


def _too_large(strategy: str, recompute: bool, ways: tuple[WayToTrain, ...], gpu: Gpu) -> str:
    """Words for a run of which not even one image fits, and the ways in which it does."""
    fitting = [way for way in ways if way.microbatch is not None]
    options = [f"--parallel.strategy {way.strategy}{' --run.recompute' if way.recompute else ''}" for way in fitting]
    how = f"{strategy}, {'with' if recompute else 'without'} recomputation"
    instead = " or ".join(options) or "more GPUs, or GPUs with more memory"
    return f"a single image does not fit into the {gpu.memory / 1e9:.0f} GB of the {gpu.title} ({how}); use {instead}"
