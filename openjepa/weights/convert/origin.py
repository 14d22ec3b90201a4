"""The origin of weights: the run that they belong to, with its settings and results, or an earlier conversion.

Settings are made fit for publication: of paths on this machine only the last part is kept.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import yaml

from openjepa.config import lenient, number, readable_object
from openjepa.records import Result
from openjepa.report.reading import Run, read_run
from openjepa.settings.inference import CONVERTED_MARK
from openjepa.system.console import hub_name
from openjepa.weights.contents import CHECKPOINT_FILE, weights_hash
from openjepa.weights.formats import Loaded

FORMAT, VERSION = "openjepa-conversion", 1
SETTINGS, TRAINING = "config.yaml", "training.yaml"
"""Files with a run's settings: in its folder, and in the folders that its weights were converted to."""
NO_NAMES = ("", ".", "..", "~")
RUN_ENCODERS = ("encoder", "context_encoder")
"""Folders inside a run whose weights belong to the run."""


@dataclass(frozen=True, kw_only=True)
class Mark:
    """The mark that a conversion leaves in its folder, by which a later conversion recognizes it."""

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
    """Everything known about weights apart from the weights themselves."""

    source: str
    """Name of the weights that were read or, if they were converted before, of the original ones."""
    is_ours: bool
    """True if openjepa trained them."""
    weights: str
    """Hash of the encoder as it was read."""
    run: Run | None = None
    """The run, or the folder of results of an encoder that belongs to no run."""
    settings: Mapping[str, Any] | None = None
    """The run's settings, fit for publication."""
    training: Mapping[str, Any] = field(default_factory=dict)
    """Numbers of the run that checkpoints of the released program also have."""
    license: str | None = None
    """License given in an earlier conversion."""
    what: str | None = None
    """A few words on the weights that an earlier conversion read."""

    def results_of(self, encoder: str, is_own_size: bool) -> tuple[Sequence[Result], list[str]]:
        """Evaluations of exactly these weights, and remarks on evaluations that were left out.

        Evaluations of the run's other encoder are ignored. Those of other weights, such as an earlier step's, are left
        out and counted. `encoder` is target or context. `is_own_size` is True if positions are those of the training size.
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
        """Remarks for a run that was trained further after these weights were written."""
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
    """The origin of the weights `loaded` from `subject`."""
    place = subject.expanduser()
    source, weights = place.resolve().name, weights_hash(loaded.encoder)
    if (run_folder := _run_folder(place)) is not None:
        run = read_run(run_folder)
        run = replace(run, config=published(run.config))
        training = _numbers(run) | dict(loaded.training)
        return Origin(run_folder.resolve().name, True, weights, run, run.config or None, training)
    folder = place.parent if place.name == CHECKPOINT_FILE else place
    if (mark := lenient(Mark, readable_object(folder / CONVERTED_MARK))) is not None:
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
    """The run folder that `place` is or whose encoder it is; None if there is none."""
    if (place / SETTINGS).is_file():
        return place
    parent = place.resolve().parent
    is_inside = place.is_dir() and place.resolve().name in RUN_ENCODERS and (parent / SETTINGS).is_file()
    return parent if is_inside else None


def _evaluated(place: Path) -> Run | None:
    """The folder of results of an encoder that belongs to no run: its own folder, or the one beside its file."""
    folder = place if place.is_dir() else place.with_name(f"{place.name}.results")
    return read_run(folder) if any((folder / "eval").glob("*.json")) else None


def _numbers(run: Run) -> dict[str, Any]:
    """Completed epochs, the last loss, batch size, number of processes and peak learning rate, if the run's files say them."""
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
    """The settings that an earlier conversion stored beside the weights; None if there are none."""
    try:
        found = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError):
        return None
    return published(found) if isinstance(found, dict) else None


def published(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Settings without the paths of the machine that trained. Names on the Hugging Face Hub are kept whole."""
    return {name: _published(value) for name, value in settings.items()}


def _published(value: Any) -> Any:
    if isinstance(value, Mapping):
        return published(value)
    if isinstance(value, list):
        return [_published(item) for item in value]
    return last_part(value) if isinstance(value, str) else value


def last_part(words: str) -> str:
    """The last part of a path. With wildcards, the folder before the first wildcard and what follows. Other words unchanged.

    Only settings that are paths or names on the Hub contain a slash.
    """
    if not re.search(r"[/\\]", words) or hub_name(words) is not None:
        return words
    parts = [part for part in re.split(r"[/\\]", words) if part not in NO_NAMES]
    wild = next((index for index, part in enumerate(parts) if re.search(r"[*?\[]", part)), len(parts))
    return "/".join(parts[max(0, wild - 1) :])
