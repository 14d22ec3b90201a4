"""Files that are made once of a data file and kept in the cache of the `datasets` library."""

import hashlib
from collections.abc import Callable
from pathlib import Path

from openjepa.data.fingerprint import file_stamp
from openjepa.system.whole_files import whole_file


def prepared(file: Path, what: str, write: Callable[[Path], None]) -> Path:
    """The file that `write(path)` has made of `file`, now or earlier; it is made again if size or time of `file` change.

    `what`: all else that its contents depend on. Raises OSError if the cache cannot be written.
    """
    from datasets import config

    key = hashlib.sha256(f"{file.resolve()} {what} ".encode(errors="surrogateescape") + file_stamp(file))
    target = Path(config.HF_DATASETS_CACHE) / "openjepa" / key.hexdigest()[:32]
    if not target.exists():
        with whole_file(target) as unfinished:
            write(unfinished)
    return target
