"""The command `openjepa embed`."""

import signal
import sys
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro

from openjepa.commands.parsing.arguments import Unprefixed, check_evaluated, data_of, given_settings, parse, require, subject_of
from openjepa.settings.fields import as_option, check_ranges
from openjepa.settings.inference import EmbedSettings
from openjepa.settings.sources import ONLY_TRAINING, DataSettings, FolderSettings
from openjepa.system.console import command

if TYPE_CHECKING:
    from openjepa.inference.embedding.embedding_run import Embedded

EMBED_HELP = """Features of every image of a folder or data set, as one file. ENCODER: an encoder folder, a file of published
weights, a Hugging Face folder or a name on the Hub. Of a run without --data.*, its own images are embedded.

examples:
  openjepa embed runs/mine --data.path ~/photos --output photos.npy
  openjepa embed facebook/ijepa_vith14_1k --data.path ~/photos \\
      --output photos.parquet
  openjepa embed runs/mine --output own.npy
  openjepa embed runs/mine --data.path ~/photos --features patches
  openjepa embed runs/mine --data.source huggingface --data.path "tars/*.tar" \\
      --data.streaming --output shards.parquet
  torchrun --nproc-per-node 8 -m openjepa embed runs/mine \\
      --data.path ~/photos --output photos.npy

X.npy is an array with one row per image, the images are listed in X.csv; X.parquet holds both. `openjepa search` reads either.
Unreadable images have no row and are listed in X.npy.skipped.jsonl.

Repeat the command to continue where it was stopped; what is done lies in X.npy.parts meanwhile. Start it several times, on any
number of machines that share the folder of the output, and the work is shared; on a machine with several GPUs use torchrun."""


EMBED_COMMON = (
    *("data.path", "data.source", "output", "again", "features", "splits", "image_size", "encoder", "dtype"),
    *("batch_size", "device", "workers"),
)
"""The options that the help shows without --help-all, in this order."""


@dataclass(frozen=True, kw_only=True)
class EmbedOptions:
    """The arguments of `openjepa embed`."""

    subject: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="RUN|ENCODER")] = Path()
    """Run folder, encoder folder, file of published weights, Hugging Face folder, or name on the Hub."""
    output: Path = Path("features.npy")
    """Table to write: X.npy (with the images in X.csv and its origin in X.json) or X.parquet (all in one file)."""
    again: bool = False
    """Start over even if a table, or parts of one, exist."""
    embedding: Annotated[EmbedSettings, Unprefixed] = field(default_factory=EmbedSettings)
    data: DataSettings = field(default_factory=FolderSettings)


def parse_embed(
    argv: Sequence[str], prog: str, description: str, check: Callable[[Path], object] = Path
) -> tuple[EmbedOptions, DataSettings | None]:
    """The options of `openjepa embed`, and its data settings. These are None, for the run's own, if none is given.

    A given path or source means other images, which are opened with default settings. Other data settings change the run's own.
    `check`: may refuse the subject before the options are read, because they depend on its data.
    """
    argv = require(EmbedOptions, argv, "a run folder or an encoder", prog)
    given = given_settings(argv)
    subject = subject_of(argv, check)
    defaults = EmbedOptions(data=data_of(None if given & {"data.path", "data.source"} else subject, argv))
    options = parse(EmbedOptions, argv, prog, description, defaults, common=EMBED_COMMON)
    return options, options.data if any(name.startswith("data.") for name in given) else None


def embed(argv: Sequence[str], prog: str) -> None:
    """Runs `openjepa embed`: embeds a data set."""
    # taken before torch is imported, so that all processes of one command start before any of them has written anything
    started = time.time()
    options, data = parse_embed(argv, prog, EMBED_HELP, check=check_evaluated)
    from openjepa.inference.embedding.table import check_output
    from openjepa.system.console import say

    check_ranges(options.embedding, said=as_option)
    check_output(options.output)
    for remark in _idle(given_settings(argv)):
        say(f"note: {remark}")
    from openjepa.engine import distributed
    from openjepa.inference.embedding.embedding_run import embed_dataset

    # the processes only exchange words, and may wait long while the main process puts a large table together
    with _terminated(), distributed.joined("cpu", distributed.PATIENT_SECONDS):
        embedded = embed_dataset(
            options.subject, data, options.embedding, options.output, again=options.again, started=started, say=say
        )
        _print(embedded)


def _idle(given: Collection[str]) -> list[str]:
    """Remarks on data settings that are `given` (dotted names) but have no effect on features."""
    idle = [name for name in sorted(given) if name.startswith("data.") and name.removeprefix("data.") in ONLY_TRAINING]
    instead = {
        "data.image_size": "; the size of embedded images is --image-size",
        "data.max_skipped": "; --max-skipped has one",
    }
    return [f"{name} concerns training and has no effect on features{instead.get(name, '')}" for name in idle]


@contextmanager
def _terminated() -> Iterator[None]:
    """Makes SIGTERM end the command as Ctrl-C does, with the exit code 143 and without a half-written part."""
    before = signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _print(embedded: "Embedded") -> None:
    """Prints a table of what was embedded, and the next command."""
    if embedded.status == "there already":
        print(
            f"{embedded.output} is there already, made of the same weights, settings and images (their names and a sample of "
            "their bytes are compared); --again makes it anew"
        )
        return
    if embedded.status == "by another process":
        print(f"{embedded.output} was put together by another process; this one has embedded {embedded.num_images:,} images")
        return
    from rich.table import Table

    from openjepa.system.console import plain_console

    table = Table(show_header=False, box=None, padding=(0, 2, 0, 0))
    table.add_column()
    table.add_column(overflow="fold")
    for name, value in _lines(embedded).items():
        table.add_row(name, value)
    plain_console().print(table)
    print(f"\nnext: {command('openjepa', 'search', embedded.output)} --image IMAGE")


def _lines(embedded: "Embedded") -> dict[str, str]:
    from rich.filesize import decimal

    manifest, rows = embedded.manifest, embedded.rows_by_split
    num_rows = sum(rows.values())
    splits = "" if len(rows) == 1 else " (" + ", ".join(f"{name} {number:,}" for name, number in rows.items()) + ")"
    lines = {"images": f"{num_rows:,}{splits}"}
    if manifest.skipped:
        lines["skipped"] = f"{manifest.skipped:,} that cannot be read, listed in {embedded.files()[-1]}"
    how = {"average": "the average of the patches", "class_token": "the class token"}[manifest.pooling]
    what = f"{manifest.shape[-1]} numbers an image, {how}"
    if manifest.kind == "patches":
        what = "{} x {} patches of {} numbers an image".format(*manifest.shape)
    lines["features"] = f"{what}; {manifest.dtype}, computed in {manifest.precision}"
    if embedded.num_images:
        rate = f"{embedded.num_images / max(embedded.seconds, 1e-9):,.1f} images/s"
        share = "" if embedded.num_images == num_rows else f" by this process, which embedded {embedded.num_images:,}"
        lines["speed"] = rate + share
    size = sum(path.stat().st_size for path in embedded.files())
    lines["written"] = f"{', '.join(str(path) for path in embedded.files())} ({decimal(size)})"
    return lines
