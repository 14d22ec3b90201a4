"""JSON files that may be damaged, or that other programs have written: what they hold, or a Refusal that names the file.

Free of torch. Files are UTF-8 throughout.
"""

import json
import math
from collections.abc import Mapping
from dataclasses import MISSING, fields
from pathlib import Path
from typing import Any, TypeVar

from openjepa.config import from_dict
from openjepa.refusals import Refusal

Settings = TypeVar("Settings")

RESTORE = "bring it back as it was, or delete it"
"""What mends a damaged file of a run folder, unless a function is told otherwise."""


def object_in(text: str, where: object, mend: str = RESTORE) -> dict[str, Any]:
    """The object that `text` is in JSON. Raises Refusal, which names `where` and ends with `mend`, if it is anything else."""
    try:
        found = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise Refusal(f"{where} is not valid JSON ({error}); {mend}") from error
    if not isinstance(found, dict):
        raise Refusal(f"{where} is no JSON object, but a {type(found).__name__}; {mend}")
    return found


def read_object(path: Path, mend: str = RESTORE) -> dict[str, Any] | None:
    """The object in a file; None if there is no such file.

    Raises Refusal, which ends with `mend`, if it cannot be read or holds anything else.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise Refusal(f"{path} cannot be read ({error.strerror or error}); {mend}") from error
    except ValueError as error:
        raise Refusal(f"{path} is not valid JSON ({error}); {mend}") from error
    return object_in(text, path, mend)


def readable_object(path: Path) -> dict[str, Any] | None:
    """The object in a file; None if there is no such file or it holds anything else."""
    try:
        return read_object(path)
    except Refusal:
        return None


def readable(text: str) -> dict[str, Any] | None:
    """The object that `text`, such as a line of a log, is in JSON; None if it is anything else."""
    try:
        return object_in(text, "the text")
    except Refusal:
        return None


def log_lines(path: Path) -> list[str]:
    """The lines of a log, damaged ones included; none if there is no such file."""
    return path.read_text(encoding="utf-8", errors="replace").splitlines() if path.exists() else []


def number(value: object) -> float | None:
    """A finite number, or None for anything else (true and false included)."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    try:
        return float(value) if math.isfinite(value) else None
    except OverflowError:
        return None


def typed(kind: type[Settings], entries: Mapping[str, Any], where: object, mend: str = RESTORE) -> Settings:
    """An instance of the dataclass `kind` from those of `entries` that are its fields; the others are ignored.

    Raises Refusal, which names `where` and ends with `mend`, if one that has no default is missing or of another type.
    """
    known = {item.name: item for item in fields(kind)}  # type: ignore[arg-type]
    needed = [name for name, item in known.items() if item.default is MISSING and item.default_factory is MISSING]
    if missing := [name for name in needed if name not in entries]:
        raise Refusal(f"{where} lacks {', '.join(missing)}; {mend}")
    try:
        return from_dict(kind, {name: value for name, value in entries.items() if name in known})
    except ValueError as error:
        raise Refusal(f"{where} is damaged: {error}; {mend}") from error
