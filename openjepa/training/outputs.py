"""What a run leaves for the other stages: exported networks, environment.json and summary.json."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from openjepa import distributed
from openjepa.engine.checkpoint import TrainerState
from openjepa.engine.device import peak_memory
from openjepa.engine.interrupts import Interrupted
from openjepa.engine.run_folder import RunFolder, environment
from openjepa.masks.base import MaskSampler
from openjepa.methods.base import Method
from openjepa.training.monitor import Monitor
from openjepa.types import Export
from openjepa.weights.native import save_network


class Outputs:
    """Writes the files of the run folder that say what was trained and hold the result."""

    def __init__(
        self,
        folder: RunFolder,
        method: Method,
        sampler: MaskSampler,
        device: torch.device,
        precision: str,
        total_steps: int,
        data: str,
    ) -> None:
        """`data` is one line about the data set."""
        self._folder, self._method, self._device, self._precision = folder, method, device, precision
        self._fixed = {
            "total_steps": total_steps,
            "parameters": _count_parameters(method),
            "flops_per_image": method.step_flops(),
            "flops": dict(method.flops()),
            "mask_mode": sampler.name,
            "data": data,
        }
        self._last: dict[str, Any] = dict(self._fixed)
        self._earlier_peak = _earlier_peak(folder)

    def begin(self, state: TrainerState) -> None:
        """environment.json and summary.json; before the first step also the untrained encoder, which every probe needs."""
        if not distributed.is_main():
            return
        self._folder.write_json("environment.json", self._environment(state))
        self._write_summary("running", state, None)
        initial = self._folder.path / "encoder_initial"
        if state.step == 0 and not initial.exists():
            save_network(initial, self._exports(state)["encoder"])

    def export(self, state: TrainerState) -> None:
        """The networks that are shared, as they are now, and the summary."""
        if not distributed.is_main():
            return
        for name, export in self._exports(state).items():
            save_network(self._folder.path / name, export)
        self._write_summary("running", state, None)

    @contextmanager
    def failure_noted(self) -> Iterator[None]:
        """Whatever error ends the run, summary.json says so; a kill leaves it at `running`."""
        try:
            yield
        except Interrupted:
            raise
        except BaseException as error:
            self._folder.write_json("summary.json", {**self._last, "status": "failed", "error": str(error)})
            raise

    def finish(self, status: str, state: TrainerState, monitor: Monitor) -> None:
        """The last summary: `finished` or `interrupted`."""
        if distributed.is_main():
            self._write_summary(status, state, monitor)

    def _environment(self, state: TrainerState) -> dict[str, Any]:
        """Of the first session; those that continued it stand under `continued`, each with the step it started from."""
        now = environment(self._device, self._precision)
        first = _read_json(self._folder.path / "environment.json")
        if state.step == 0 or not first:
            return now
        return first | {"continued": [*first.get("continued", []), {"from_step": state.step, **now}]}

    def _exports(self, state: TrainerState) -> dict[str, Export]:
        """The method's networks; their config.json also says after which step, and how masks were drawn for the predictor."""
        known: dict[str, dict[str, object]] = {"predictor": {"mask_mode": self._fixed["mask_mode"]}}
        return {
            name: replace(export, extra={**export.extra, "step": state.step, **known.get(name, {})})
            for name, export in self._method.exports().items()
        }

    def _write_summary(self, status: str, state: TrainerState, monitor: Monitor | None) -> None:
        content = {
            "status": status,
            "step": state.step,
            "images_seen": state.images_seen,
            "seconds": round(state.seconds, 2),
            "samples_skipped": state.samples_skipped,
            "peak_memory_bytes": max(peak_memory(self._device), self._earlier_peak),
            **self._fixed,
        }
        if monitor is not None:
            content |= {"verdict": monitor.verdict(), "monitor": monitor.latest}
        self._folder.write_json("summary.json", content)
        self._last = content


def _count_parameters(method: Method) -> dict[str, int]:
    """Trained parameters of each exported network and in all."""
    counts = {name: sum(value.numel() for value in export.module.parameters()) for name, export in method.exports().items()}
    return counts | {"trained": sum(value.numel() for value in method.parameters() if value.requires_grad)}


def _earlier_peak(folder: RunFolder) -> int:
    """Peak memory of the sessions before this one; 0 for the first."""
    return int(_read_json(folder.path / "summary.json").get("peak_memory_bytes", 0))


def _read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file; nothing where there is no such file."""
    return dict(json.loads(path.read_text())) if path.exists() else {}
