"""Lists the files whose functions run for a command: the path of an image through the package.

    python -m benchmarks.walks                  one line a command
    python -m benchmarks.walks embed --list     the files in the order in which they are entered

Each command runs on a few generated images in this process, without loader workers, so that a profiler sees every call. A file
counts if one of its functions is called; importing it does not count.
"""

import argparse
import contextlib
import io
import sys
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path
from types import CodeType, FrameType

import numpy as np
from PIL import Image

import openjepa
from openjepa.cli import main as run_command

PACKAGE = Path(openjepa.__file__).parent
TRAIN = "train cpu-32 --data.path images --run.name run --optim.total-steps 3 --optim.batch-size 8 --system.workers 0 --fresh"
COMMANDS = {
    "train": TRAIN,
    "evaluate": "evaluate runs/run --protocols knn linear --device cpu",
    "visualize": "visualize runs/run --num-images 2",
    "embed": "embed runs/run --data.path images --output features.npy --again",
    "search": "search features.npy --row 0 --no-picture",
    "report": "report runs/run",
}


def write_images(folder: Path, classes: int = 2, images: int = 24) -> None:
    """Class folders of small PNG files of random colors."""
    generator = np.random.default_rng(0)
    for number in range(classes * images):
        file = folder / f"class{number % classes}" / f"{number}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(generator.integers(0, 256, (40, 40, 3), dtype=np.uint8)).save(file)


@contextlib.contextmanager
def entered_files() -> Iterator[dict[str, int]]:
    """Calls of functions by file below the package, in the order in which the files are first entered."""
    calls: dict[str, int] = {}
    names: dict[CodeType, str | None] = {}

    def profile(frame: FrameType, event: str, argument: object) -> None:
        code = frame.f_code
        if event != "call":
            return
        if code not in names:
            path = Path(code.co_filename)
            is_function = code.co_name != "<module>" and bool(code.co_flags & 0x2)  # CO_NEWLOCALS: no module, no class body
            names[code] = path.relative_to(PACKAGE).as_posix() if is_function and path.is_relative_to(PACKAGE) else None
        if (name := names[code]) is not None:
            calls[name] = calls.get(name, 0) + 1

    threading.setprofile(profile)
    sys.setprofile(profile)
    try:
        yield calls
    finally:
        sys.setprofile(None)
        threading.setprofile(None)


def walk(command: str) -> dict[str, int]:
    """Calls by file of one command. What it prints is dropped."""
    said = io.StringIO()
    with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said), entered_files() as calls:
        try:
            run_command(command.split())
        except SystemExit:
            print(f"openjepa {command}\n{said.getvalue()}", file=sys.__stderr__)
            raise
    return calls


def main() -> None:
    """Runs the commands that are asked for, and those before them whose files they need."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("commands", nargs="*", help=f"of {', '.join(COMMANDS)}; all of them if none is named")
    parser.add_argument("--list", action="store_true", help="name the files")
    options = parser.parse_args()
    names, wanted = list(COMMANDS), options.commands or list(COMMANDS)
    if unknown := [name for name in wanted if name not in names]:
        parser.error(f"{unknown[0]!r} is none of {', '.join(names)}")
    with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder):
        write_images(Path("images"))
        for name in names[: max(map(names.index, wanted)) + 1]:
            calls = walk(COMMANDS[name])
            if name not in wanted:
                continue
            print(f"{name:<10}{len(calls):>4} files")
            if options.list:
                print("".join(f"  {file:<44}{count:>8} calls\n" for file, count in calls.items()), end="")


if __name__ == "__main__":
    main()
