"""Reads run folders in any state: unfinished, half-written, copied from elsewhere or edited by strangers.

No file is trusted. What does not parse is counted or left out, numbers must be finite, texts are cut to a length, and only
files inside the folder are opened.
"""

import json
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from openjepa.config import number, readable, readable_yaml
from openjepa.engine.run_states import RUN_FILES
from openjepa.records import Energy, Environment, Result, Summary, read_energy, read_environment, read_evaluation, read_summary
from openjepa.refusals import Refusal
from openjepa.system.shared_files import is_taken

MAX_TEXT = 400
MAX_SKIPPED_SHOWN = 100
MAX_JSON_BYTES = 4_000_000


@dataclass
class Log:
    """metrics.jsonl: the numbers of each kind of line, by name, as (step, images, value)."""

    series: dict[str, dict[str, list[tuple[float, float, float]]]] = field(default_factory=dict)
    broken_lines: int = 0

    def points(self, kind: str, name: str, x: str = "step") -> list[tuple[float, float]]:
        """(x, value) for every logged value of one number. x is the step or, if `x` is "images", the images seen."""
        column = 1 if x == "images" else 0
        return [(row[column], row[2]) for row in self.series.get(kind, {}).get(name, [])]

    def last(self, kind: str, name: str) -> float | None:
        """The latest value of one number."""
        rows = self.series.get(kind, {}).get(name)
        return rows[-1][2] if rows else None


@dataclass(frozen=True)
class Figure:
    """One picture of figures/figures.json. `file` is in the run's figures folder."""

    title: str
    caption: str
    alt: str
    file: Path


@dataclass(frozen=True)
class SkippedImages:
    """Images that could not be read: their number, and the first of them."""

    total: int
    first: list[tuple[str, str]]
    kinds: list[tuple[str, int]]


@dataclass(frozen=True)
class Run:
    """The contents of all files of one run."""

    path: Path
    name: str
    config: Mapping[str, Any]
    environment: Environment
    summary: Summary
    model: Mapping[str, Any]
    """encoder/config.json, or config.json if the folder holds an encoder alone."""
    log: Log
    evaluations: list[Result]
    """One for each file of eval/."""
    energy: Energy | None
    """energy.json, as `openjepa bench energy` writes it, if there is one."""
    figures: list[Figure]
    skipped: SkippedImages
    is_locked: bool | None
    """True if a process holds the run's lock, and so is training it now. None if the file system cannot tell."""
    unreadable: list[str]
    """Files of the folder that exist but could not be read."""
    is_encoder: bool = False
    """True if the folder holds an evaluated encoder and no run, so that nothing is known about its training."""

    def setting(self, *names: str, default: Any = None) -> Any:
        """The setting of config.yaml at a path, e.g. ("optim", "lr")."""
        return lookup(self.config, *names, default=default)


def began_from(run: Run) -> str:
    """The weights that a run started from: their name and parent folder; empty if they were random."""
    return text("/".join(Path(str(run.setting("run", "init", default=None) or "")).parts[-2:]), 80)


def lookup(tree: Any, *names: str, default: Any = None) -> Any:
    """The value at a path of nested mappings, or `default` if there is none."""
    for name in names:
        if not isinstance(tree, Mapping) or name not in tree:
            return default
        tree = tree[name]
    return tree


def text(value: Any, limit: int = MAX_TEXT) -> str:
    """A value as one short line of text."""
    line = " ".join(str(value).split())
    return line if len(line) <= limit else line[: limit - 1] + "…"


def read_run(path: Path) -> Run:
    """Reads a run folder, or the folder of an evaluated encoder. Raises Refusal if it is neither."""
    if not path.is_dir():
        raise Refusal(f"runs={str(path)!r} is no folder: give run folders as `openjepa train` writes them (runs/<name>)")
    is_encoder = not any((path / name).exists() for name in RUN_FILES)
    if is_encoder and not any((path / "eval").glob("*.json")):
        raise Refusal(
            f"runs={str(path)!r} holds neither config.yaml nor metrics.jsonl, and no eval/*.json: it is no run of "
            "`openjepa train` and no encoder that `openjepa evaluate` has written results of"
        )
    unreadable: list[str] = []
    encoder = path if is_encoder else path / "encoder"
    config = _parsed(path / "config.yaml", unreadable, readable_yaml)
    energy = _read_json(path / "energy.json", unreadable)
    environment = read_environment(_read_json(path / "environment.json", unreadable))
    summary = read_summary(_read_json(path / "summary.json", unreadable))
    before = "encoder" if is_encoder else "start" if summary.init else "untrained"
    return Run(
        path=path,
        name=text(path.resolve().name, 80),
        config=config,
        environment=environment,
        summary=summary,
        model=_read_json(encoder / "config.json", unreadable),
        log=read_log(path / "metrics.jsonl"),
        evaluations=[_before_training(result, before) for result in _read_evaluations(path / "eval", unreadable)],
        energy=read_energy(energy) if energy else None,
        figures=_read_figures(path / "figures", unreadable),
        skipped=_read_skipped(path / "skipped.jsonl"),
        is_locked=is_taken(path / ".lock"),
        unreadable=unreadable,
        is_encoder=is_encoder,
    )


def distinct(folders: Sequence[Run]) -> list[Run]:
    """The runs with distinct names. Equal names are preceded by as many parent folders as needed.

    Raises Refusal if a folder is named twice.
    """
    places = [folder.path.resolve() for folder in folders]
    for path, count in Counter(places).items():
        if count > 1:
            raise Refusal(f"runs holds {str(path)!r} {count} times: name each run folder once")
    names = [folder.name for folder in folders]
    depth = 2
    while len(set(names)) < len(names):
        counts = Counter(names)
        names = [
            name if counts[name] == 1 else text("/".join(place.parts[-depth:]), 160)
            for name, place in zip(names, places, strict=True)
        ]
        depth += 1
        if depth > max(len(place.parts) for place in places) + 1:
            break  # long names may stay equal because they are cut
    return [replace(folder, name=name) for folder, name in zip(folders, names, strict=True)]


def read_log(path: Path) -> Log:
    """Reads metrics.jsonl. Lines that are not JSON objects, which a killed run may leave, are only counted."""
    log = Log()
    if not path.is_file():
        return log
    with path.open(encoding="utf-8", errors="replace") as lines:
        for line in lines:
            if line.strip():
                _add_line(log, line)
    return log


def _add_line(log: Log, line: str) -> None:
    row = readable(line)
    step = number(row.get("step")) if row is not None else None
    if row is None or step is None:
        log.broken_lines += 1
        return
    images = number(row.get("images"))
    kind = log.series.setdefault(str(row.get("kind", "train")), {})
    if images is None:
        images = _images_at(log, step)
    for name, value in row.items():
        finite = number(value)
        if finite is not None and name not in ("step", "kind"):
            kind.setdefault(name, []).append((step, images, finite))


def _images_at(log: Log, step: float) -> float:
    """Images seen at `step`, in proportion to the last training line. For lines that lack the number."""
    rows = log.series.get("train", {}).get("images")
    return rows[-1][2] * step / rows[-1][0] if rows and rows[-1][0] > 0 else step


def _read_text(path: Path, unreadable: list[str]) -> str | None:
    if not path.is_file():
        return None
    try:
        if path.stat().st_size > MAX_JSON_BYTES:
            raise ValueError
        return path.read_text(encoding="utf-8")
    except (OSError, ValueError):
        unreadable.append(text(path.name, 80))
        return None


def _read_json(path: Path, unreadable: list[str]) -> dict[str, Any]:
    return _parsed(path, unreadable, readable)


def _parsed(path: Path, unreadable: list[str], parse: Callable[[str], dict[str, Any] | None]) -> dict[str, Any]:
    content = _read_text(path, unreadable)
    if content is None:
        return {}
    parsed = parse(content)
    if parsed is None:
        unreadable.append(text(path.name, 80))
    return parsed or {}


def _read_evaluations(folder: Path, unreadable: list[str]) -> list[Result]:
    found = [(path.stem, _read_json(path, unreadable)) for path in sorted(folder.glob("*.json"), key=lambda path: path.stem)]
    return [read_evaluation(content, stem) for stem, content in found if content]


def _before_training(result: Result, name: str) -> Result:
    """The result with `name` for the encoder if it is that of the run before its first step, which was evaluated by itself."""
    if result.given != "encoder" or result.step != 0:
        return result
    renamed = {"encoder": name}
    return replace(
        result,
        subjects={renamed.get(subject, subject): found for subject, found in result.subjects.items()},
        measures={renamed.get(subject, subject): found for subject, found in result.measures.items()},
        heads=[{**head, "subject": renamed.get(str(head.get("subject")), head.get("subject"))} for head in result.heads],
    )


def _read_figures(folder: Path, unreadable: list[str]) -> list[Figure]:
    content = _read_text(folder / "figures.json", unreadable)
    if content is None:
        return []
    try:
        listed = json.loads(content)
    except (ValueError, RecursionError):
        unreadable.append("figures.json")
        return []
    entries = listed.get("figures", []) if isinstance(listed, dict) else listed
    figures = []
    for entry in entries if isinstance(entries, list) else []:
        file = folder / Path(str(lookup(entry, "file", default=""))).name
        if file.is_file() and file.resolve().is_relative_to(folder.resolve()):
            title, caption = (
                text(lookup(entry, "title", default=file.stem), 120),
                text(lookup(entry, "caption", default=""), 800),
            )
            figures.append(Figure(title, caption, text(lookup(entry, "alt", default=title)), file))
    return figures


def _read_skipped(path: Path) -> SkippedImages:
    if not path.is_file():
        return SkippedImages(0, [], [])
    first: list[tuple[str, str]] = []
    kinds: Counter[str] = Counter()
    with path.open(encoding="utf-8", errors="replace") as lines:
        for row in filter(None, map(readable, lines)):
            reason = text(row.get("reason", "unknown"), 200)
            # older lines have no kind: the words before the first colon of their reason, whose rest may quote the file
            kinds[text(row.get("kind") or reason.split(":")[0], 200)] += 1
            first.append((text(row.get("name", "?"), 200), reason))
            del first[MAX_SKIPPED_SHOWN:]
    return SkippedImages(sum(kinds.values()), first, kinds.most_common(6))
