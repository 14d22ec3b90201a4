"""The only pretraining loop. It is the same for every method. Read it from top to bottom."""

from collections.abc import Collection, Iterator
from contextlib import ExitStack
from dataclasses import replace
from itertools import islice
from pathlib import Path

import torch
from torch import nn

from openjepa.checks import check
from openjepa.data.loading.loader import TrainingLoader
from openjepa.data.loading.order import BatchPlan
from openjepa.data.loading.unreadable import SkipLedger
from openjepa.data.passes import choose_workers
from openjepa.data.source import open_splits
from openjepa.engine import distributed
from openjepa.engine.checkpoint import CheckpointWriter, TrainerState, latest_checkpoint, load_checkpoint, set_broken_aside
from openjepa.engine.clock import LoopClock
from openjepa.engine.device import autocast, keep_freed_memory, resolve_device, resolve_precision, set_threads
from openjepa.engine.failures import FiniteGuard, explain_memory, explain_not_finite
from openjepa.engine.optimizer import build_optimizer, clip_gradients, gradient_norm, set_rates
from openjepa.engine.parallel import Reduction, choose_strategy, over_processes, prepare_blocks, processes_line
from openjepa.engine.run_folder import RunLog, open_run_folder, refuse_missing_tensorboard
from openjepa.masks import MASKS
from openjepa.methods.teachers import networks
from openjepa.models.transformer import ImageSlots
from openjepa.schedules import Progress, learning_rate, weight_decay
from openjepa.seeds import derive
from openjepa.settings.derived import resolve
from openjepa.settings.run import RunConfig
from openjepa.system.console import Display
from openjepa.system.console import progress as progress_bar
from openjepa.system.interrupts import Interrupted, Interrupts
from openjepa.training.agreement import Agreement
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
    microbatch,
    refuse_other_runs,
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

    All processes that torchrun has started call it with the same settings. They share every batch, and each returns the folder.

    Raises Refusal, with advice, if settings cannot work, data cannot be read, a loss is not finite or memory is too small.
    Raises Interrupted after a signal, once everything is saved.
    """
    device = resolve_device(config.run.device)
    with distributed.joined(device, config.parallel.timeout_seconds, orderly=(Interrupted,)):
        return _train(config, fresh, dry_run, given, device)


def _train(config: RunConfig, fresh: bool, dry_run: bool, given: Collection[str], device: torch.device) -> Path | None:
    # ---------------------------------------------------------------- machine
    config, weights = settled(config, given, fresh)
    processes = distributed.world_size()
    check(config, processes)
    config = resolve(config, processes=processes)
    refuse_missing_tensorboard(config.system.tensorboard)
    precision = resolve_precision(config.run.precision, device)
    strategy = choose_strategy(config.parallel, config.model.shape(), device.type, processes)
    set_threads(config.system.threads)
    keep_freed_memory()

    # ---------------------------------------------------------------- data, masks, method
    seed, optim = config.run.seed, config.optim
    view = default_view(config.data)
    sampler = MASKS[config.masks.strategy].load()(config.masks, config.model.grid(view.size))  # impossible masks end here
    splits = distributed.in_all(lambda: open_splits(config.data, seed))
    total_steps, steps_per_epoch = training_length(optim, splits.train)
    config = resolve(config, total_steps)
    identity = run_identity(splits.train, total_steps, config.method)
    refuse_other_runs(config, identity, device, precision)
    method, costs = build_method(config, view, sampler), step_costs(config, view, sampler)
    plan = BatchPlan(optim.batch_size, microbatch(config), distributed.rank(), processes, config.masks.group_size)
    lines = introduce(config, method, costs, sampler, splits.description, device, precision, total_steps, steps_per_epoch)
    for line in (*lines, *processes_line(strategy, config.parallel, device)):
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
        state = resume_point(folder, found, identity, method)
        start = begin_from_weights(method, config, weights, found)
        del weights  # the method has copies
        set_broken_aside(folder.checkpoints, found)
        outputs = Outputs(folder, method, costs, sampler, device, precision, total_steps, splits, config.method.about, start)
        resources.enter_context(outputs.failure_noted())
        resources.enter_context(explain_memory(config))
        resources.enter_context(distributed.explain_lost(config.parallel.timeout_seconds))

        # ------------------------------------------------------------ loader, networks, optimizer
        workers = choose_workers(config.system.workers, config.data.cache)
        style = config.system.progress if distributed.is_main() else "none"
        with progress_bar("decoding", count_images(splits.train), style=style) as advance:
            inputs = method.inputs()
            loader = distributed.in_all(
                lambda: TrainingLoader(splits.train, config.data, inputs, sampler, plan, seed, workers, device, advance)
            )
        resources.callback(loader.close)
        method.to(device)
        prepare_blocks(method, config.run)
        trained = over_processes(method, networks(method), strategy, config.parallel, device, precision)
        slots, reduction = ImageSlots(method, inputs.contexts), Reduction(trained)
        optimizer = build_optimizer(method.named_parameters(), method.parameter_rules(), optim)
        if found:
            load_checkpoint(found, method, optimizer)
        limit = config.parallel.timeout_seconds
        writer = CheckpointWriter(folder.checkpoints, method, optimizer, config.system.keep_every, timeout_seconds=limit)
        resources.enter_context(writer)

        # ------------------------------------------------------------ log, display, monitor
        log = RunLog(folder.path, state.step if found else -1, config.system.tensorboard)
        resources.callback(log.close)
        outputs.begin(state)
        display = Display(total_steps, state.step, style)
        resources.callback(display.close)
        display.say(f"{'continuing' if found else 'new run'}: {folder.path}" + (f" from step {state.step}" if found else ""))
        monitor = Monitor(config, method, sampler, splits, device, precision, log, display.say)
        guard = FiniteGuard(optimizer, device, history=config.system.log_every)
        skips = SkipLedger(
            config.data.max_skipped, known=log.skipped_names(), num_seen=state.images_seen, num_skipped=state.samples_skipped
        )
        # what was counted since the last line, if the run ends between two
        resources.callback(lambda: log.write_skipped(skips.merge([skips.take()])))
        meter, is_saved = IntervalMeter(state.step_seconds, inputs.contexts), found is not None

        # ------------------------------------------------------------ steps
        batches = loader.iterate(state.step, state.position, total_steps - state.step)
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
        agreement = Agreement(config.system.log_every, state.step)
        resources.enter_context(explain_not_finite(config, loader.name))
        if found:
            clock.aside("export", outputs.export, state)  # a kill between checkpoint and export leaves those of another step
        if state.step < total_steps:
            clock.aside("prepare", monitor.prepare)
        if not found:
            clock.aside("look", monitor.look, Progress(0, total_steps, steps_per_epoch, optim.schedule_stretch))

        for step in range(state.step, total_steps):
            # rates of this step
            progress = Progress(step, total_steps, steps_per_epoch, optim.schedule_stretch)
            rate, decay = learning_rate(optim, progress), weight_decay(optim, progress)
            set_rates(optimizer, rate, decay)

            # forward and backward of each microbatch
            distributed.doing(f"forward and gradients of step {step + 1}")
            optimizer.zero_grad(set_to_none=True)
            microbatches = _take(batches, plan.num_microbatches)
            for number, batch in enumerate(microbatches):
                # all microbatches of all processes draw the numbers of the whole batch, and each uses those of its images
                torch.manual_seed(derive("step", seed, step, 0))
                slots.set(plan.first_slot(number), plan.microbatch_size, plan.batch_size)
                reduction.before(is_last=number + 1 == plan.num_microbatches)
                output = _add_gradients(trained, batch, progress, config, device, precision, plan.num_microbatches)
                meter.add(output, batch)

            # finite? clip, step, update the target encoder
            method.before_step(progress)
            norm = gradient_norm(optimizer)
            guard.watch(step, meter.loss_sum(), norm, [batch.sample_ids for batch in microbatches])
            if optim.clip_grad is not None:
                clip_gradients(optimizer, norm, optim.clip_grad, optim.clip_mode)
            optimizer.step()
            committed = method.after_step(progress)

            # count, decide with the other processes
            for batch in microbatches:
                skips.count(batch, step + 1)
            state = TrainerState(
                step=step + 1,
                position=microbatches[-1].next_position,
                images_seen=(step + 1) * plan.batch_size,
                samples_skipped=skips.num_skipped,
                identity=identity,
            )
            done = Progress(state.step, total_steps, steps_per_epoch, optim.schedule_stretch)
            last = state.step == total_steps
            save_is_due = clock.save_is_due() or writer.has_failed()  # a save that has failed ends the run in the next one
            decision = agreement.after(state.step, interrupts.requested, save_is_due, last)
            logs = last or state.step % config.system.log_every == 0
            saves = last or decision.stop or decision.save or _is_kept(state.step, config.system.keep_every)
            clock.step_done(state.step)
            if logs or saves:
                log.write_skipped(skips.merge(distributed.gathered(skips.take())))
                skips.raise_if_too_many()
                guard.raise_if_bad()
                state = replace(state, samples_skipped=skips.num_skipped)

            # log, look, save, stop? The run's seconds are read anew after each of them, because they count all of it
            if logs:
                state = _timed(state, clock)
                rates = {"lr": rate, "weight_decay": decay, "grad_norm": norm.item(), **committed}
                values = meter.finish(state, done, rates, loader.seconds_waited, loader.reads_repeated)
                log.write("train", state.step, values)
                left = clock.seconds_left(state.step, monitor.looks_left(state.step, total_steps))
                display.update(state.step, meter.summary(values, monitor.latest), left)
            if last or monitor.is_due(state.step):
                clock.aside("look", monitor.look, done)
            if saves:
                state = _timed(state, clock)
                clock.aside("save", writer.save, state, wait=not is_saved)  # an export without a checkpoint cannot be continued
                is_saved = True
                clock.aside("export", outputs.export, state)
                clock.saved()
                state = _timed(state, clock)
            if decision.stop and not last:
                writer.finish()
                outputs.finish("interrupted", state, monitor)
                raise Interrupted(decision.stop, state.step, folder.path)

        writer.finish()
        outputs.finish("finished", state, monitor)
    display.say(f"finished: {folder.path}")
    return folder.path


def _add_gradients(
    trained: nn.Module, batch: Batch, progress: Progress, config: RunConfig, device: torch.device, precision: str, parts: int
) -> LossOutput:
    """Forward and backward of one of the `parts` of this process in a step."""
    on_device = batch.to(device).normalized(config.data.pixel_mean, config.data.pixel_std)
    with autocast(device, precision):
        output: LossOutput = trained(on_device, progress)
    torch.autograd.backward(output.total / parts)
    return output


def _timed(state: TrainerState, clock: LoopClock) -> TrainerState:
    return replace(state, seconds=clock.seconds(), step_seconds=clock.step_seconds())


def _take(batches: Iterator[Batch], number: int) -> list[Batch]:
    taken = list(islice(batches, number))
    if len(taken) != number:
        raise RuntimeError("the loader ended before the last step")
    return taken


def _is_kept(step: int, keep_every: int | None) -> bool:
    return keep_every is not None and step % keep_every == 0
