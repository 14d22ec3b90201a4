"""Commands as they are printed, recorded and shown on pages: whatever is in a path, they can be pasted into a shell."""

import shlex
import sys
from pathlib import Path


def command(*words: object) -> str:
    """Words of a command line, each quoted if a shell would read it otherwise."""
    return shlex.join(map(str, words))


def this_command() -> str:
    """The command that runs, without the folder of its program."""
    program = Path(sys.argv[0]).name
    return command(*(("python", "-m", "openjepa") if program == "__main__.py" else (program,)), *sys.argv[1:])
