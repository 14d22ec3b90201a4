"""The only pretraining loop. It is the same for every method. Read it from top to bottom."""

from collections.abc import Collection, Iterator
from contextlib import ExitStack
from dataclasses import replace
from itertools import islice
from pathlib import Path

import torch

from openjepa.checks import check
from openjepa.data.loading.loader import TrainingLoader
from openjepa.data.loading.order import BatchPlan
from openjepa.data.loading.unreadable import SkipLedger
from openjepa.data.passes import choose_workers
from openjepa.data.source import open_splits
from openjepa.engine import distributed
from openjepa.engine.checkpoint import TrainerState, latest_checkpoint, load_checkpoint, save_checkpoint, set_broken_aside
from openjepa.engine.clock import LoopClock
from openjepa.engine.device import autocast, keep_freed_memory, resolve_device, resolve_precision, set_threads
from openjepa.engine.failures import FiniteGuard, explain_memory, explain_not_finite
from openjepa.engine.optimizer import build_optimizer, clip_gradients, gradient_norm, set_rates
from openjepa.engine.run_folder import RunLog, open_run_folder, refuse_missing_tensorboard
from openjepa.masks import MASKS
from openjepa.methods.base import Method
from openjepa.schedules import Progress, learning_rate, weight_decay
from openjepa.seeds import derive
from openjepa.settings.derived import resolve
from openjepa.settings.run import RunConfig
from openjepa.system.console import Display
from openjepa.system.console import progress as progress_bar
from openjepa.system.interrupts import Interrupted, Interrupts
from openjepa.training.init import settled
from openjepa.training.meters import IntervalMeter
from openjepa.training.monitor import Monitor
from openjepa.training.outputs import Outputs
from openjepa.training.startup import (
    begin_from_weights,
    build_method,
    count_images,
    default_view,
    introduce,
    resume_point,
    run_identity,
    step_costs,
    training_length,
)
from openjepa.training.timed_steps import time_line
from openjepa.types import Batch, LossOutput


def train(config: RunConfig, fresh: bool = False, dry_run: bool = False, given: Collection[str] = ()) -> Path | None:
    """Pretrains an encoder and returns its run folder (None for a dry run).

    The same settings continue an interrupted run exactly. `fresh`: starts a new folder beside it. `dry_run`: prints what the
    run would need, including the time of steps that are taken and thrown away, and stops before the first step. `given`: dotted
    names of settings that must not be replaced by those of the weights in `run.init`.

    Raises Refusal, with advice, if settings cannot work, data cannot be read, a loss is not finite or memory is too small.
    Raises Interrupted after a signal, once everything is saved.
    """
    # ---------------------------------------------------------------- machine
    config, weights = settled(config, given, fresh)
    check(config, distributed.world_size())
    config = resolve(config, processes=distributed.world_size())
    refuse_missing_tensorboard(config.system.tensorboard)
    device = resolve_device(config.run.device)
    precision = resolve_precision(config.run.precision, device)
    set_threads(config.system.threads)
    keep_freed_memory()

    # ---------------------------------------------------------------- data, masks, method
    seed, optim = config.run.seed, config.optim
    view = default_view(config.data)
    sampler = MASKS[config.masks.strategy].load()(config.masks, config.model.grid(view.size))  # impossible masks end here
    splits = open_splits(config.data, seed)
    total_steps, steps_per_epoch = training_length(optim, splits.train)
    config = resolve(config, total_steps)
    method, costs = build_method(config, view, sampler), step_costs(config, view, sampler)
    plan = BatchPlan(
        batch_size=optim.batch_size,
        microbatch_size=optim.microbatch_size or optim.batch_size // distributed.world_size(),
        rank=distributed.rank(),
        world_size=distributed.world_size(),
        group_size=config.masks.group_size,
    )
    for line in introduce(config, method, costs, sampler, splits.description, device, precision, total_steps, steps_per_epoch):
        print(line)
    if dry_run:
        if weights is not None:  # else the weights are random, or those of a checkpoint
            begin_from_weights(method, config, weights, found=None)
        print(time_line(config, costs.step_flops, device, total_steps))
        return None
    with ExitStack() as resources:
        # ------------------------------------------------------------ run folder and resume point
        folder = open_run_folder(config, fresh, device, precision)
        resources.callback(folder.close)
        found = latest_checkpoint(folder.checkpoints)
        identity = run_identity(splits.train, total_steps)
        state = resume_point(folder, found, identity, method)
        start = begin_from_weights(method, config, weights, found)
        del weights  # the method has copies
        set_broken_aside(folder.checkpoints, found)
        outputs = Outputs(folder, method, costs, sampler, device, precision, total_steps, splits, config.method.about, start)
        resources.enter_context(outputs.failure_noted())
        resources.enter_context(explain_memory(config))

        # ------------------------------------------------------------ loader, optimizer
        workers = choose_workers(config.system.workers, config.data.cache)
        with progress_bar("decoding", count_images(splits.train), style=config.system.progress) as advance:
            loader = TrainingLoader(splits.train, config.data, method.inputs(), sampler, plan, seed, workers, device, advance)
        resources.callback(loader.close)
        method.to(device)
        if config.run.compile:
            method.compile_blocks()
        optimizer = build_optimizer(method.named_parameters(), method.parameter_rules(), optim)
        if found:
            load_checkpoint(found, method, optimizer)

        # ------------------------------------------------------------ log, display, monitor
        log = RunLog(folder.path, state.step if found else -1, config.system.tensorboard)
        resources.callback(log.close)
        outputs.begin(state)
        display = Display(total_steps, state.step, config.system.progress)
        resources.callback(display.close)
        display.say(f"{'continuing' if found else 'new run'}: {folder.path}" + (f" from step {state.step}" if found else ""))
        monitor = Monitor(config, method, sampler, splits, device, precision, log, display.say)
        guard = FiniteGuard(optimizer, device, history=config.system.log_every)
        skips = SkipLedger(
            config.data.max_skipped, known=log.skipped_names(), num_seen=state.images_seen, num_skipped=state.samples_skipped
        )
        meter = IntervalMeter(state.step_seconds)

        # ------------------------------------------------------------ steps
        batches = loader.iterate(state.step, state.position, total_steps - state.step)
        microbatches_per_step = plan.batch_size // (plan.microbatch_size * plan.world_size)
        clock = LoopClock(
            device,
            total_steps,
            state.step,
            state.seconds,
            state.step_seconds,
            len(log.read("monitor")),
            prepared_steps=loader.prepared_steps,
            save_minutes=config.system.checkpoint_minutes,
        )
        interrupts = resources.enter_context(Interrupts())
        resources.enter_context(explain_not_finite(config, loader.name))
        if found:
            clock.aside("export", outputs.export, state)  # a kill between checkpoint and export leaves older exports
        if state.step < total_steps:
            clock.aside("prepare", monitor.prepare)
        if not found:
            clock.aside("look", monitor.look, Progress(0, total_steps, steps_per_epoch, optim.schedule_stretch))

        for step in range(state.step, total_steps):
            # rates and random numbers of this step
            progress = Progress(step, total_steps, steps_per_epoch, optim.schedule_stretch)
            rate, decay = learning_rate(optim, progress), weight_decay(optim, progress)
            set_rates(optimizer, rate, decay)
            torch.manual_seed(derive("step", seed, step, distributed.rank()))

            # forward and backward of each microbatch
            optimizer.zero_grad(set_to_none=True)
            microbatches = _take(batches, microbatches_per_step)
            for batch in microbatches:
                output = _forward(method, batch, progress, config, device, precision)
                torch.autograd.backward(output.total / microbatches_per_step)
                meter.add(output, batch)

            # finite? clip, step, update the target encoder
            method.before_step(progress)
            norm = gradient_norm(optimizer)
            guard.watch(step, meter.loss_sum(), norm, [batch.sample_ids for batch in microbatches])
            if optim.clip_grad is not None:
                clip_gradients(optimizer, norm, optim.clip_grad, optim.clip_mode)
            optimizer.step()
            committed = method.after_step(progress)

            # count
            for batch in microbatches:
                skips.count(batch, step + 1)
            for skipped_in, sample in skips.merge([skips.take()]):
                log.write_skipped(skipped_in, [sample])
            skips.raise_if_too_many()
            state = TrainerState(
                step=step + 1,
                position=microbatches[-1].next_position,
                images_seen=(step + 1) * plan.batch_size,
                samples_skipped=skips.num_skipped,
                identity=identity,
            )
            done = Progress(state.step, total_steps, steps_per_epoch, optim.schedule_stretch)
            last = state.step == total_steps
            stop = interrupts.requested is not None
            clock.step_done(state.step)

            # log, look, save, stop?
            if last or state.step % config.system.log_every == 0:
                guard.raise_if_bad()
                state = _timed(state, clock)
                values = meter.finish(state, done, {"lr": rate, "weight_decay": decay, "grad_norm": norm.item(), **committed})
                log.write("train", state.step, values)
                left = clock.seconds_left(state.step, monitor.looks_left(state.step, total_steps))
                display.update(state.step, meter.summary(values, monitor.latest), left)
            if last or monitor.is_due(state.step):
                clock.aside("look", monitor.look, done)
            if last or stop or clock.save_is_due() or _is_kept(state.step, config.system.keep_every):
                guard.raise_if_bad()
                state = _timed(state, clock)
                clock.aside("save", save_checkpoint, folder.checkpoints, method, optimizer, state, config.system.keep_every)
                clock.aside("export", outputs.export, state)
                clock.saved()
                state = _timed(state, clock)
            if stop and not last:
                outputs.finish("interrupted", state, monitor)
                raise Interrupted(interrupts.requested or "SIGTERM", state.step, folder.path)

        outputs.finish("finished", state, monitor)
    display.say(f"finished: {folder.path}")
    return folder.path


def _forward(
    method: Method, batch: Batch, progress: Progress, config: RunConfig, device: torch.device, precision: str
) -> LossOutput:
    on_device = batch.to(device).normalized(config.data.pixel_mean, config.data.pixel_std)
    with autocast(device, precision):
        return method(on_device, progress)  # type: ignore[no-any-return]


def _timed(state: TrainerState, clock: LoopClock) -> TrainerState:
    return replace(state, seconds=clock.seconds(), step_seconds=clock.step_seconds())


def _take(batches: Iterator[Batch], number: int) -> list[Batch]:
    taken = list(islice(batches, number))
    if len(taken) != number:
        raise RuntimeError("the loader ended before the last step")
    return taken


def _is_kept(step: int, keep_every: int | None) -> bool:
    return keep_every is not None and step % keep_every == 0
