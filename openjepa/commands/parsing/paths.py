"""Checks of the paths that a command is given, before anything is loaded."""

from pathlib import Path

from openjepa.config import nearest
from openjepa.refusals import Refusal
from openjepa.settings.inference import MARK
from openjepa.system.shared_files import is_writable
from openjepa.system.shell import absent, command, hub_name


def check_subject(path: Path, *marks: str) -> None:
    """Raises Refusal, with the nearest folder that would do, unless `path` is a folder with one of the files `marks`."""
    _check_subject(path, marks, hub=False)


def _check_subject(path: Path, marks: tuple[str, ...], hub: bool) -> None:
    if any((path / mark).is_file() for mark in marks):
        return
    around = path if path.is_dir() else path.parent
    names = sorted({item.parent.name for mark in marks for item in around.glob(f"*/{mark}")})
    problem = f"{path} holds no {' or '.join(marks)}" if path.exists() else f"{path} does not exist"
    if names:
        raise Refusal(f"{problem}: {nearest(path.name, names)}")
    problem = problem if path.exists() else f"{path} {absent(path, hub)}"
    raise Refusal(f"{problem}: name a folder that `openjepa train` has written")


def check_evaluated(path: Path) -> None:
    """Raises Refusal unless `path` may be a run, an encoder folder, a converted one, a file of weights or a name on the Hub."""
    if not (path.is_file() or (path / MARK).is_file() or hub_name(path) is not None):
        _check_subject(path, ("config.yaml", "config.json"), hub=True)


def check_output_file(path: Path | None, ending: str, any_ending: bool = True, option: str = "--output") -> None:
    """Raises Refusal if `path`, which `option` gives, is a folder, cannot be written to, or does not end in `ending`.

    `any_ending`: other endings will do too.
    """
    if path is None:
        return
    if path.is_dir():
        raise Refusal(f"{option} {path} is a folder: name a file, e.g. {command(option, path / f'openjepa{ending}')}")
    if not path.parent.is_dir():
        raise Refusal(f"{option} {path}: there is no folder {path.parent}; make it first, or name a file elsewhere")
    if not any_ending and path.suffix.lower() != ending:
        raise Refusal(f"{option} {path} must end in {ending}, e.g. {command(option, path.with_suffix(ending))}")
    _check_writable(path, path.parent, option)


def check_output_folder(path: Path) -> None:
    """Raises Refusal if `path`, which --output gives, is a file or lies in one, or cannot be written to. It need not exist."""
    existing = next(item for item in (path, *path.parents) if item.exists())
    if not existing.is_dir():
        raise Refusal(f"--output {path}: {existing} is a file, but a folder is needed; name another one")
    _check_writable(path, existing, "--output")


def _check_writable(path: Path, folder: Path, option: str) -> None:
    if not is_writable(folder):
        raise Refusal(f"{option} {path}: {folder.absolute()} cannot be written to; name a place elsewhere")
