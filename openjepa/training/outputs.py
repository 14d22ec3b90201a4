"""Writes the files of a run for the other stages: exported networks, environment.json and summary.json."""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
from typing import Any

import torch

from openjepa.config import read_object
from openjepa.data.source import Splits
from openjepa.engine import distributed
from openjepa.engine.checkpoint import TrainerState, whole_state
from openjepa.engine.costs import StepCosts
from openjepa.engine.device import peak_memory
from openjepa.engine.run_folder import RunFolder, environment
from openjepa.masks.sampler import MaskSampler
from openjepa.methods.base import Method
from openjepa.records import Summary, read_summary
from openjepa.refusals import Lost
from openjepa.settings.methods import About
from openjepa.system.interrupts import Interrupted
from openjepa.training.init import Start
from openjepa.training.monitor import Monitor
from openjepa.types import Export
from openjepa.weights.native import save_network


class Outputs:
    """Writes the files of the run folder that describe the training and hold its result."""

    def __init__(
        self,
        folder: RunFolder,
        method: Method,
        costs: StepCosts,
        sampler: MaskSampler,
        device: torch.device,
        precision: str,
        total_steps: int,
        splits: Splits,
        about: About,
        start: Start | None = None,
    ) -> None:
        """Notes facts about `splits`, such as if probes can be tested on them. Writes nothing yet.

        `about`: description of the method for the report. `start`: the weights from which a new run has started, if any.
        """
        self._folder, self._method, self._device, self._precision = folder, method, device, precision
        self._total_steps = total_steps
        self._start: dict[str, Any] = {} if start is None else asdict(start)
        # the notes of earlier sessions; empty in the first session
        before = read_summary(read_object(folder.path / "summary.json") or {})
        self._earlier_peak = before.peak_memory_bytes
        self._last = replace(
            before,
            total_steps=total_steps,
            parameters=_count_parameters(method),
            flops_per_image=costs.step_flops,
            flops=dict(costs.flops),
            mask_mode=sampler.name,
            data=splits.description,
            data_facts=splits.facts(),
            labeled=splits.can_test,
            about=about,
            views={name: asdict(view) for name, view in method.inputs().views.items()},
        )

    def begin(self, state: TrainerState) -> None:
        """Writes environment.json and summary.json. Before the first step also exports the initial encoder, for probes.

        A run that is already at its end takes no step, so its files stay as they are. All processes call it together.
        """
        if state.step > 0:  # the starting weights of the first session are not read again
            self._start = (read_object(self._folder.path / "environment.json") or {}).get("init", {})
        if self._is_last(state):
            return
        distributed.from_main(lambda: self._folder.write_json("environment.json", self._environment(state)))
        self._write_summary("running", state, None)
        if state.step == 0:  # replaces an older one, since a run that failed before its first step may have had other settings
            self._save("encoder_initial", self._exports(state)["encoder"])

    def export(self, state: TrainerState) -> None:
        """Exports the networks as they are now. Also writes the summary, except after the last step, where `finish` does it.

        All processes call it together: each may hold a part of the networks. The main process writes.
        """
        for name, export in self._exports(state).items():
            self._save(name, export)
        if not self._is_last(state):
            self._write_summary("running", state, None)

    def _save(self, name: str, export: Export) -> None:
        weights = whole_state(export.module)
        # the run folder is locked
        distributed.from_main(lambda: save_network(self._folder.path / name, export, alone=True, weights=weights))

    @contextmanager
    def failure_noted(self) -> Iterator[None]:
        """Notes in summary.json what ends the run: an error, or a lost process. A kill of the main process leaves it as it is.

        A finished run stays finished.
        """
        try:
            yield
        except (Interrupted, KeyboardInterrupt):
            raise
        except BaseException as error:
            if self._last.status != "finished" and distributed.is_main():
                known = replace(self._last, step=self._last.step or 0, images_seen=self._last.images_seen or 0)
                self._folder.write_json("summary.json", _ended(known, error).content())
            raise

    def finish(self, status: str, state: TrainerState, monitor: Monitor) -> None:
        """Writes the last summary. `status`: finished or interrupted."""
        self._write_summary(status, state, monitor)

    def _is_last(self, state: TrainerState) -> bool:
        return bool(state.step >= self._total_steps)

    def _environment(self, state: TrainerState) -> dict[str, Any]:
        """The environment of the first session. Later sessions are listed under `continued`, with their first step."""
        now = asdict(environment(self._device, self._precision))
        first = read_object(self._folder.path / "environment.json") or {}
        if state.step == 0 or not first:
            return now | ({"init": self._start} if self._start else {})
        earlier = first.get("continued")
        return first | {"continued": [*(earlier if isinstance(earlier, list) else []), {"from_step": state.step, **now}]}

    def _exports(self, state: TrainerState) -> dict[str, Export]:
        """The method's networks. Their config.json also holds the step, and for the predictor the way masks were drawn."""
        known: dict[str, dict[str, object]] = {"predictor": {"mask_mode": self._last.mask_mode}}
        return {
            name: replace(export, extra={**export.extra, "step": state.step, **known.get(name, {})})
            for name, export in self._method.exports().items()
        }

    def _write_summary(self, status: str, state: TrainerState, monitor: Monitor | None) -> None:
        summary = replace(
            self._last,
            status=status,
            step=state.step,
            images_seen=state.images_seen,
            seconds=round(state.seconds, 2),
            step_seconds=round(state.step_seconds, 2),
            processes=distributed.world_size(),
            train_images=None if state.identity is None else state.identity.num_images,
            samples_skipped=state.samples_skipped,
            peak_memory_bytes=max(peak_memory(self._device), self._earlier_peak),
            init=self._start,
            error="",
            lost_in="",
            **_judgment(monitor),
        )
        distributed.from_main(lambda: self._folder.write_json("summary.json", summary.content()))
        self._last = summary


def _ended(known: Summary, error: BaseException) -> Summary:
    """The summary of a run that `error` ends. A lost process without an error of its own was killed, or hangs."""
    words = distributed.first_error() if isinstance(error, Lost) else str(error)
    if isinstance(error, Lost) and not words:
        return replace(known, status="interrupted", lost_in=error.waited_in)
    return replace(known, status="failed", error=words)


def _judgment(monitor: Monitor | None) -> dict[str, Any]:
    """Entries of the summary on the looks at the features. They are None before the end of a session."""
    if monitor is None:
        return {"collapsed": None, "verdict": None, "predicts_positions": None, "monitor": None}
    # as in the log, None stands for a number that was not finite
    latest = {name: value if math.isfinite(value) else None for name, value in monitor.latest.items()}
    look, positions = monitor.judged(), monitor.judged_positions().positions
    return {"collapsed": look.collapsed, "verdict": look.words, "predicts_positions": positions, "monitor": latest}


def _count_parameters(method: Method) -> dict[str, int]:
    """Number of parameters of each exported network, and of all trained parameters under `trained`."""
    counts = {name: sum(value.numel() for value in export.module.parameters()) for name, export in method.exports().items()}
    return counts | {"trained": sum(value.numel() for value in method.parameters() if value.requires_grad)}
