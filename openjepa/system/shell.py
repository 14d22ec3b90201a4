"""Words for a shell: tells paths from names on the Hugging Face Hub, and writes commands that can be pasted.

The Hub is asked only for words that cannot be a mistyped path of ours. In commands that are printed, recorded or shown on
pages, every word is quoted that a shell would otherwise read differently.
"""

import difflib
import re
import shlex
import sys
from collections.abc import Iterable
from pathlib import Path

MARK = "hf:"
"""Prefix that makes words a name on the Hub, even if a path of that name exists: hf:owner/name."""
PART = r"\w[\w.-]*"
WRITTEN = ("runs", "evaluations", "scenes", "ablations", "checkpoints", "encoder", "features")
KEPT = ("data", "datasets", "weights", "models", "output", "outputs", "results", "experiments", "images", "photos")
USUAL = ("log", "logs", "out", "exp", "train", "test", "val", "tmp", "scratch", "src", "home", "mnt", "work")
FOLDERS = frozenset({*WRITTEN, *KEPT, *USUAL})
"""Usual names of folders. They are never taken for an owner on the Hub, even if no such folder exists."""
FILES = (".pth", ".pt", ".tar", ".ckpt", ".bin", ".safetensors", ".onnx", ".npy", ".parquet", ".yaml", ".json", ".zip", ".gz")
"""Endings of files. Words with one of them are not a name on the Hub."""
ALIKE = 0.75
"""Similarity from which the first part of a name is taken for a mistyped folder."""
MOST_SHOWN = 8


def hub_name(words: Path | str, one_part: bool = False) -> str | None:
    """The name on the Hub, owner/name, that `words` mean; None if they mean a path.

    Without `hf:`, `words` are a name on the Hub if no such path exists and their first part does not resemble a folder here or
    one of FOLDERS. USUAL names are short, so they must match exactly: `mnist` is not `mnt`. `one_part`: also accepts names
    without an owner, which some data sets have.
    """
    text = str(words)
    if Path(text).expanduser().exists():
        return None
    if text.startswith(MARK):
        return text.removeprefix(MARK) or None
    parts = text.split("/")
    is_name = len(parts) == 2 or (one_part and len(parts) == 1 and "." not in text)
    if not is_name or not all(re.fullmatch(PART, part) for part in parts) or parts[-1].lower().endswith(FILES):
        return None
    is_folder = parts[0].lower() in USUAL or _alike(parts[0], [*WRITTEN, *KEPT, *_held(Path())], ALIKE)
    return None if is_folder else text


def absent(words: Path | str, hub: bool = True) -> str:
    """The end of an error about a path that does not exist: names the nearest path that exists.

    `hub`: also says how a name on the Hub is written, in case one was meant.
    """
    text = str(words)
    path = Path(text).expanduser()
    parent = next((item for item in path.parents if item.is_dir()), Path())
    missing = path.relative_to(parent).parts or ("",)
    held = sorted(name for name in _held(parent) if not name.startswith("."))
    if near := _alike(missing[0], held, 0.5):
        rest = parent.joinpath(near, *missing[1:])
        hint = f"did you mean {str(rest if rest.exists() else parent / near)!r}?"
    else:
        folders = [name for name in held if (parent / name).is_dir()]
        more = f" and {len(folders) - MOST_SHOWN} more" if len(folders) > MOST_SHOWN else ""
        hint = f"{str(parent)!r} exists and holds: {', '.join(folders[:MOST_SHOWN]) or 'no folders'}{more}"
    parts = text.split("/")
    is_name = len(parts) == 2 and all(re.fullmatch(PART, part) for part in parts) and parts[0] not in FOLDERS
    return f"does not exist; {hint}" + (f" (a name on the Hugging Face Hub is written {MARK}{text})" if hub and is_name else "")


def command(*words: object) -> str:
    """`words` as a command line. Each word is quoted if a shell would otherwise read it differently."""
    return shlex.join(map(str, words))


def this_command() -> str:
    """The command that is running, without the folder of its program."""
    program = Path(sys.argv[0]).name
    return command(*(("python", "-m", "openjepa") if program == "__main__.py" else (program,)), *sys.argv[1:])


def _alike(name: str, others: Iterable[str], likeness: float) -> str:
    """The most similar of `others` to `name`, ignoring case; empty if none is similar enough."""
    by_word = {other.lower(): other for other in others}
    found = difflib.get_close_matches(name.lower(), by_word, n=1, cutoff=likeness)
    return by_word[found[0]] if found else ""


def _held(folder: Path) -> list[str]:
    """Names in a folder; empty if it cannot be read."""
    try:
        return [item.name for item in folder.iterdir()]
    except OSError:
        return []
