"""The runs of an ablation, their lengths, and the file that keeps both fixed when the ablation is continued.

Lengths at equal time follow from the speed of each row on this machine. It is measured in rounds of real training steps, in
which all rows take short turns.
"""

import json
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

from openjepa.config import difference, from_dict, read_object, to_dict
from openjepa.recipes.ablations import ablation_named, parsed_changes, with_changes
from openjepa.refusals import Refusal
from openjepa.settings.derived import resolve
from openjepa.settings.experiments import AblationSettings
from openjepa.settings.run import CHOICES, RunConfig
from openjepa.system.shared_files import whole_file
from openjepa.training.timed_steps import RealSteps

Budget = Literal["images", "seconds"]
PLAN = "plan.json"
KEPT = ("seconds", "probe_images", "scenes")
"""Options that must stay the same while runs are added: those for lengths and for the evaluation of encoders."""


@dataclass(frozen=True)
class Speed:
    """The cost of a row on this machine."""

    images_per_second: float
    """Images per second of training including the data path, measured in turns with the other rows."""
    flops: float
    """FLOPs per image in a training step."""


@dataclass(frozen=True)
class PlannedRun:
    """One run of an ablation."""

    row: str
    seed: int
    budgets: tuple[Budget, ...]
    """Tables that it belongs to: both if their lengths are equal."""
    config: RunConfig
    speed: Speed
    has_baselines: bool = False
    """True if the untrained encoder and pixels are evaluated beside it."""

    @property
    def name(self) -> str:
        """Name of its folder. A run has the same name in every table."""
        assert self.config.run.name is not None
        return self.config.run.name

    @property
    def images(self) -> int:
        """Number of images seen."""
        return (self.config.optim.total_steps or 0) * self.config.optim.batch_size

    @property
    def seconds(self) -> float:
        """Seconds that the training should take."""
        return self.images / self.speed.images_per_second


def base_config(config: RunConfig, settings: AblationSettings) -> RunConfig:
    """The run that all rows vary, with the length of the table at equal images.

    If the recipe's length is in epochs, its warm-up keeps its share of the run. Raises Refusal if then no number of images is
    given, or if a setting that all rows change does not exist.
    """
    if config.optim.total_steps is None and settings.images is None:
        raise Refusal(
            f"--recipe {config.recipe} has its length in epochs, but runs are compared by images seen: give --images, or use a "
            "small recipe, e.g. --recipe cpu-32"
        )
    run = replace(config.run, device=settings.device, precision=settings.precision, output=str(settings.output))
    config = replace(config, data=settings.data, model=settings.model, system=settings.system, run=run)
    changes = {**ablation_named(settings.ablation).common, **parsed_changes(settings.set)}
    config = with_changes(config, changes)
    if settings.images is None:
        return config
    return _of_length(_with_warmup_share(config), max(1, settings.images // config.optim.batch_size))


def _with_warmup_share(config: RunConfig) -> RunConfig:
    """`config` with a warm-up as a share of the run, if its length and its warm-up are in epochs."""
    optim = config.optim
    if optim.total_steps is not None or optim.warmup_epochs is None or optim.warmup_steps is not None:
        return config
    share = min(optim.warmup_epochs / optim.epochs, 1.0)
    return replace(config, optim=replace(optim, warmup_epochs=None, warmup_share=share))


def planned_runs(rows: Mapping[str, RunConfig], speeds: Mapping[str, Speed], settings: AblationSettings) -> list[PlannedRun]:
    """Every run once, seed by seed, longest first within a seed, so that several processes end at about the same time.

    Runs of the table at equal time have the number of steps that fits into the time at the measured speed. So each schedule
    spans its whole run.
    """
    chosen = [row for row in rows if not settings.rows or row in settings.rows]
    first = next(iter(rows))
    seconds = _seconds(rows[first], speeds[first], settings)
    runs = []
    for seed in range(settings.seeds):
        found = [run for row in chosen for run in _runs(row, rows[row], seed, speeds[row], seconds)]
        found = [replace(run, has_baselines=run.row == first and "images" in run.budgets) for run in found]
        runs += sorted(found, key=lambda run: -run.seconds)
    return runs


def _seconds(config: RunConfig, speed: Speed, settings: AblationSettings) -> float | None:
    """Seconds of training of each run in the table at equal time; None if there is no such table."""
    if settings.seconds == "none":
        return None
    if settings.seconds == "auto":
        return (config.optim.total_steps or 0) * config.optim.batch_size / speed.images_per_second
    return float(settings.seconds)


def _runs(row: str, config: RunConfig, seed: int, speed: Speed, seconds: float | None) -> list[PlannedRun]:
    budgets: dict[int, list[Budget]] = {config.optim.total_steps or 0: ["images"]}
    if seconds is not None:
        steps = max(1, round(seconds * speed.images_per_second / config.optim.batch_size))
        budgets.setdefault(steps, []).append("seconds")
    return [
        PlannedRun(row, seed, tuple(found), _at_length(row, config, steps, seed), speed) for steps, found in budgets.items()
    ]


def _at_length(row: str, config: RunConfig, steps: int, seed: int) -> RunConfig:
    run = replace(config.run, seed=seed, name=f"{row}-{steps}steps-seed{seed}")
    return resolve(replace(_of_length(config, steps), run=run))


def _of_length(config: RunConfig, steps: int) -> RunConfig:
    return replace(config, optim=replace(config.optim, total_steps=steps))


def kept_speeds(
    output: Path,
    base: RunConfig,
    settings: AblationSettings,
    rows: Mapping[str, RunConfig],
    measure: Callable[[Mapping[str, RunConfig]], dict[str, Speed]],
) -> dict[str, Speed]:
    """The speeds in the plan file of `output`, so that runs keep their lengths. Missing speeds are measured and added.

    New rows are measured beside the first row and rescaled to the first row's earlier speed. Raises Refusal if `output` holds
    runs with another base run, other lengths, or another evaluation.
    """
    path = output / PLAN
    content = read_object(path) or {}
    if content:
        _check_same(output, content, base, settings)
    speeds = {row: Speed(**speed) for row, speed in content.get("speeds", {}).items()}
    missing = [row for row in rows if row not in speeds]
    if missing:
        first = next(iter(rows))
        measured = measure({row: config for row, config in rows.items() if row in (first, *missing)})
        factor = speeds[first].images_per_second / measured[first].images_per_second if first in speeds else 1.0
        speeds |= {row: replace(measured[row], images_per_second=factor * measured[row].images_per_second) for row in missing}
    with whole_file(path) as file:
        file.write_text(json.dumps(_content(base, settings, speeds), indent=1) + "\n")
    return speeds


def _content(base: RunConfig, settings: AblationSettings, speeds: Mapping[str, Speed]) -> dict[str, Any]:
    kept = {name: getattr(settings, name) for name in KEPT}
    return kept | {"base": to_dict(resolve(base)), "speeds": {row: asdict(speed) for row, speed in speeds.items()}}


def _check_same(output: Path, content: Mapping[str, Any], base: RunConfig, settings: AblationSettings) -> None:
    before = from_dict(RunConfig, content["base"], CHOICES)
    # the machine's settings and the folder cannot change a result
    now = replace(resolve(base), system=before.system, run=replace(base.run, output=before.run.output))
    changes: Sequence[tuple[str, object, object]] = [
        *((name, content[name], getattr(settings, name)) for name in KEPT if name in content),  # older plans lack some of these
        *difference(before, now),
    ]
    changed = [f"{name} {old!r} -> {new!r}" for name, old, new in changes if old != new]
    if changed:
        raise Refusal(
            f"--output {output} holds runs that are not comparable with these (there -> asked for): {', '.join(changed)}. "
            "Repeat its options to continue it, or name another --output"
        )


def measure_speeds(rows: Mapping[str, RunConfig], rounds: int) -> dict[str, Speed]:
    """Measures images per second of every row: loader, masks, forward, backward, optimizer and moving average.

    The ratio of each row's speed to the first row's is taken within each round. A slowdown of the machine that lasts longer
    than a round then affects all rows alike. The median ratio over the rounds is multiplied by the first row's median speed.
    """
    turns = {row: RealSteps(config) for row, config in rows.items()}
    try:
        found = [{row: turn.images_per_second() for row, turn in turns.items()} for _ in range(rounds)]
    finally:
        for turn in turns.values():
            turn.close()
    first = next(iter(rows))
    common = statistics.median(speeds[first] for speeds in found)
    return {
        row: Speed(common * statistics.median(speeds[row] / speeds[first] for speeds in found), turn.flops)
        for row, turn in turns.items()
    }
