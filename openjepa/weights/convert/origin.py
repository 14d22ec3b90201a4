"""Where weights come from: the run they belong to, its settings and results, or the folder they were converted from before.

Settings are made fit to be published: only the last part of places on this machine is kept.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import yaml

from openjepa.records import Result
from openjepa.report.reading import Run, read_run
from openjepa.settings.inference import MARK
from openjepa.system.json_files import lenient, number, readable_object
from openjepa.system.shell import hub_name
from openjepa.weights.contents import CHECKPOINT_FILE, weights_hash
from openjepa.weights.formats import Loaded

FORMAT, VERSION = "openjepa-conversion", 1
SETTINGS, TRAINING = "config.yaml", "training.yaml"
"""Settings of a run, in its folder, and in the folders that its weights were converted to."""
NO_NAMES = ("", ".", "..", "~")
RUN_ENCODERS = ("encoder", "context_encoder")
"""Folders of a run whose weights are the run's."""


@dataclass(frozen=True, kw_only=True)
class Mark:
    """What a conversion says of its folder, by which a later one knows it."""

    format: str = FORMAT
    version: int = VERSION
    to: str = ""
    source: str = ""
    is_ours: bool = False
    what: str | None = None
    encoder: str = ""
    dtype: str = ""
    license: str | None = None
    weights: str = ""
    training: Mapping[str, Any] = field(default_factory=dict)
    checks: Sequence[Mapping[str, Any]] = ()
    openjepa: str = ""


@dataclass(frozen=True)
class Origin:
    """What is known of weights beside themselves."""

    source: str
    """Name of what was read; of a folder that was converted before, of what it was converted from."""
    is_ours: bool
    """Whether openjepa trained them."""
    weights: str
    """Hash of the encoder as it was read."""
    run: Run | None = None
    """The run, or the results of an encoder that belongs to none."""
    settings: Mapping[str, Any] | None = None
    """The run's settings, as they can be published."""
    training: Mapping[str, Any] = field(default_factory=dict)
    """Numbers of the run that checkpoints of the released program also hold."""
    license: str | None = None
    """License that was given when the folder was converted before."""
    what: str | None = None
    """What that folder was converted from, in a few words."""

    def results_of(self, encoder: str, is_own_size: bool) -> tuple[Sequence[Result], list[str]]:
        """Evaluations of just these weights, and remarks on what the run's files say of others.

        Those of the other encoder are not meant at all; those of an earlier step of the run are left out and counted.
        `encoder`: target or context. `is_own_size`: whether positions are those of the training size.
        """
        found = [item for item in (self.run.evaluations if self.run else ()) if not item.skipped]
        meant = [item for item in found if item.encoder in (encoder, "external")]
        kept = [item for item in meant if self._is_current(item)]
        remarks = self._of_another_step()
        if len(kept) < len(meant):
            remarks.append(f"{len(meant) - len(kept)} results in eval/ are of other weights and are left out")
        if kept and not is_own_size:
            remarks.append("results were measured before positions were made for another image size")
        return kept, remarks

    def _of_another_step(self) -> list[str]:
        """A run goes on for a while after its weights were written."""
        own = number(self.training.get("step"))
        logged = self.run.log.points("train", "loss") if self.run and not self.run.is_encoder else []
        if own is None or not logged or logged[-1][0] <= own:
            return []
        last = logged[-1][0]
        return [f"the weights are of step {own:,.0f}; images seen, time and compute of the recipe are of step {last:,.0f}"]

    def _is_current(self, result: Result) -> bool:
        if result.weights:
            return result.weights == self.weights
        own = self.training.get("step")
        return result.step is None or own is None or result.step == own


def find_origin(subject: Path, loaded: Loaded) -> Origin:
    """What is known of what was read from `subject`."""
    place = subject.expanduser()
    source, weights = place.resolve().name, weights_hash(loaded.encoder)
    if (run_folder := _run_folder(place)) is not None:
        run = read_run(run_folder)
        run = replace(run, config=published(run.config))
        training = _numbers(run) | dict(loaded.training)
        return Origin(run_folder.resolve().name, True, weights, run, run.config or None, training)
    folder = place.parent if place.name == CHECKPOINT_FILE else place
    if (mark := lenient(Mark, readable_object(folder / MARK))) is not None:
        return Origin(
            mark.source or source,
            mark.is_ours,
            weights,
            _evaluated(place),
            _carried(folder / TRAINING),
            training=mark.training,
            license=mark.license,
            what=mark.what,
        )
    return Origin(source, loaded.is_own, weights, _evaluated(place), training=dict(loaded.training))


def _run_folder(place: Path) -> Path | None:
    """The run that `place` is, or whose encoder it is."""
    if (place / SETTINGS).is_file():
        return place
    parent = place.resolve().parent
    is_inside = place.is_dir() and place.resolve().name in RUN_ENCODERS and (parent / SETTINGS).is_file()
    return parent if is_inside else None


def _evaluated(place: Path) -> Run | None:
    """The results of an encoder that belongs to no run: in its folder, or beside its file."""
    folder = place if place.is_dir() else place.with_name(f"{place.name}.results")
    return read_run(folder) if any((folder / "eval").glob("*.json")) else None


def _numbers(run: Run) -> dict[str, Any]:
    """Whole epochs done, the last loss, batch size, processes and peak rate, as far as the run's files say."""
    epoch = run.log.last("train", "epoch")
    values: dict[str, Any] = {
        "epoch": None if epoch is None else int(epoch),
        "loss": run.log.last("train", "loss"),
        "batch_size": number(run.setting("optim", "batch_size")),
        "world_size": run.summary.processes,
        "lr": number(run.setting("optim", "lr")),
    }
    whole = ("batch_size", "world_size")
    return {name: int(value) if name in whole else value for name, value in values.items() if value is not None}


def _carried(path: Path) -> dict[str, Any] | None:
    """The settings that an earlier conversion has put beside the weights."""
    try:
        found = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError):
        return None
    return published(found) if isinstance(found, dict) else None


def published(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Settings without the folders of whoever trained; names on the Hugging Face Hub stay whole."""
    return {name: _published(value) for name, value in settings.items()}


def _published(value: Any) -> Any:
    if isinstance(value, Mapping):
        return published(value)
    if isinstance(value, list):
        return [_published(item) for item in value]
    return last_part(value) if isinstance(value, str) else value


def last_part(words: str) -> str:
    """The last part of a path, or with wildcards the folder before the first one and what follows; other words as they are.

    No setting but a path or a name on the Hub has a slash.
    """
    if not re.search(r"[/\\]", words) or hub_name(words) is not None:
        return words
    parts = [part for part in re.split(r"[/\\]", words) if part not in NO_NAMES]
    wild = next((index for index, part in enumerate(parts) if re.search(r"[*?\[]", part)), len(parts))
    return "/".join(parts[max(0, wild - 1) :])
