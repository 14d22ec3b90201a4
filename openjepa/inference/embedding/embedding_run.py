"""Embeds a data set: finds what is left to do, computes parts alongside other processes, and puts the parts together."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

from openjepa.engine import distributed
from openjepa.inference.embedding.compute import Computation, Watch, can_pack, choose_decoders, pack_encoder, records_of
from openjepa.inference.embedding.embed_plan import (
    EmbeddedImages,
    EmbedPlan,
    changes,
    compared_entries,
    find_images,
    finished_manifest,
    load_on_device,
    make_embed_plan,
    make_manifest,
    plan_entries,
)
from openjepa.inference.embedding.parts import PartsFolder, assemble, skipped_file
from openjepa.inference.embedding.table import Manifest, check_output
from openjepa.inference.encoder import Encoder
from openjepa.refusals import Refusal
from openjepa.settings.fields import as_option, check_ranges
from openjepa.settings.inference import EmbedSettings
from openjepa.settings.sources import DataSettings
from openjepa.system.console import Say, progress, silent
from openjepa.system.shared_files import Claim

PATIENCE_SECONDS = 10.0
"""Seconds that workers of a killed process get to notice that it is dead."""
POLL_SECONDS = 0.5
"""Seconds between two checks for parts that other processes have finished."""


@dataclass(frozen=True, kw_only=True)
class Embedded:
    """Result of `embed_dataset`."""

    output: Path
    """The table."""
    status: Literal["written", "by another process", "there already"]
    manifest: Manifest
    rows_by_split: dict[str, int] = field(default_factory=dict)
    """Number of rows of each split; empty if another process put the table together."""
    num_images: int = 0
    """Number of images that this process has embedded; with processes that have joined, the number that all of them have."""
    seconds: float = 0.0
    """Time from the first image until the table was finished, without loading the encoder."""

    def files(self) -> list[Path]:
        """All files that belong to the table."""
        beside = [self.output.with_suffix(ending) for ending in (".csv", ".json")] if self.output.suffix == ".npy" else []
        return [self.output, *beside, *([skipped_file(self.output)] if self.manifest.skipped else [])]


def embed_dataset(
    subject: Path | str,
    data: DataSettings | None,
    settings: EmbedSettings,
    output: Path | str,
    *,
    again: bool = False,
    started: float | None = None,
    say: Say = silent,
) -> Embedded:
    """Writes features of all images of `data` to the table `output`.

    `subject`: the encoder, anything that `openjepa.load` reads. `data`: None means the data of the run that `subject` is or
    lies in. `output`: ends in .npy or .parquet (see table.py). `again`: starts over even if a table or parts of it exist.
    `started`: when the command began, in seconds since 1970; what is newer was made by a sibling process and is not made again.
    `say`: called with a line about each step.

    Any number of processes may run with the same arguments: they share the work. Processes that have joined
    (`engine.distributed`) let the main one begin and put the table together, and return the same. The same call continues one
    that was stopped, and the table is bitwise the same. Raises Refusal if settings cannot work, if a table or its parts were
    made of other images, weights or settings, and at the end if too many images cannot be read.
    """
    started = time.time() if started is None else started
    output = Path(output).expanduser()
    check_ranges(settings, said=as_option)
    check_output(output)
    encoder = load_on_device(subject, settings)
    say(f"encoder: {encoder.what}")
    for note in encoder.notes:
        say(f"note: {note}")
    images, seed = find_images(Path(subject).expanduser(), data, settings)
    say(f"images: {images.summary()}")
    for what in images.not_used:
        say(f"note: {what}")
    plan = make_embed_plan(make_manifest(subject, encoder, images, seed, settings), images.sources, settings.part_images)
    if can_pack(encoder.device, plan.manifest.precision):
        pack_encoder(encoder.network)
    parts = PartsFolder(output)
    if not again and (unstamped := before_stamps(parts, output)) is not None:
        say(
            f"{unstamped} was begun by a version that did not note sizes and times of the images' files: if images were "
            "overwritten in place since, it has the features of the old ones (--again embeds all anew)"
        )
        plan = replace(plan, manifest=replace(plan.manifest, files=""))  # features may be of older files
    claim: Claim | None = None

    def begin() -> bool:
        nonlocal claim
        claim = begin_parts(plan, parts, output, again, started)
        return claim is not None

    if not distributed.from_main(begin):
        return Embedded(output=output, status="there already", manifest=finished_manifest(output) or plan.manifest)
    if not distributed.is_main():
        claim = begin_parts(plan, parts, output, False, started)  # goes on with what the main process has begun
    try:
        return _work(encoder, plan, parts, images, settings, output, say)
    finally:
        if claim is not None:
            claim.release()


def begin_parts(plan: EmbedPlan, parts: PartsFolder, output: Path, again: bool, started: float) -> Claim | None:
    """Sets up new parts or continues old ones, and claims work on them. Returns None if the table is already finished.

    `again`: starts over, but joins what sibling processes have begun since `started`. Raises Refusal if something exists that
    must not be replaced.
    """
    if not again and not parts.path.exists() and _is_there(plan, output):
        return None  # before a folder is made
    with parts.set_up():
        before = plan_entries(parts.plan_file)
        if before is None and _is_finished(plan, output, again, started):
            return None
        if before is None or not _goes_on(plan, parts, changes(before, plan.entries()), again, started):
            parts.write_plan(plan.to_json())
        return parts.start_working()


def before_stamps(parts: PartsFolder, output: Path) -> Path | None:
    """The parts or the table, if an older version made them, which did not note sizes and times of the files; else None."""
    entries = plan_entries(parts.plan_file)
    if entries is not None:
        return None if entries.get("files") else parts.path
    manifest = finished_manifest(output)
    return output if manifest is not None and not manifest.files else None


def _is_finished(plan: EmbedPlan, output: Path, again: bool, started: float) -> bool:
    if again and not (output.exists() and output.stat().st_mtime >= started):
        return False
    return _is_there(plan, output)


def _is_there(plan: EmbedPlan, output: Path) -> bool:
    """True if the table is finished. Raises Refusal if there is another table in its place."""
    manifest = finished_manifest(output)
    if manifest is None:
        return False
    if found := changes(compared_entries(manifest), compared_entries(plan.manifest)):
        raise Refusal(f"{output} holds other features than these:\n{found}\nName another --output, or replace it with --again")
    return True


def _goes_on(plan: EmbedPlan, parts: PartsFolder, found: str, again: bool, started: float) -> bool:
    """True if the existing parts are continued. `found`: how they differ. Raises Refusal if the user must decide."""
    if found and not again:
        raise Refusal(
            f"{parts.path} holds parts that were made otherwise:\n{found}\nContinue with the settings of then, name another "
            "--output, or start over with --again"
        )
    if not again or (not found and parts.plan_file.stat().st_mtime >= started):
        return True
    is_busy = parts.is_worked_in(PATIENCE_SECONDS)
    if found and is_busy:
        raise Refusal(
            f"another process is computing other features in {parts.path}:\n{found}\nEnd it, or name another --output"
        )
    return is_busy


def _work(
    encoder: Encoder,
    plan: EmbedPlan,
    parts: PartsFolder,
    images: EmbeddedImages,
    settings: EmbedSettings,
    output: Path,
    say: Say,
) -> Embedded:
    """Computes parts until all are done by this or other processes. Puts them together unless another process does."""
    done = parts.done()
    if done:
        say(f"going on: {len(done):,} of {len(plan.parts):,} parts are there already")
    begun = time.monotonic()
    with _watched(plan, parts, done) as watch:
        workers = choose_decoders(settings.workers, encoder.device)
        computation = Computation(encoder, plan, parts, dict(images.sources), settings.batch_size, workers, watch)
        try:
            _compute(computation, plan, parts, watch)
            rows, manifest = distributed.from_main(
                lambda: (_put_together(plan, parts, output, settings), finished_manifest(output))
            )
        except KeyboardInterrupt:
            kept = f"{len(parts.done()):,} of {len(plan.parts):,} parts are done and kept in {parts.path}"
            say(f"{kept}: the same command (without --again) goes on" if parts.exists() else f"{output} is complete")
            raise
        seconds = time.monotonic() - begun
    if manifest is None:
        raise Refusal(f"{output} was removed while it was being made, and its parts too: repeat the command")
    return Embedded(
        output=output,
        status="by another process" if rows is None else "written",
        manifest=manifest,
        rows_by_split=rows or {},
        num_images=sum(distributed.gathered(computation.num_images)),
        seconds=seconds,
    )


def _compute(computation: Computation, plan: EmbedPlan, parts: PartsFolder, watch: Watch) -> None:
    """Computes until all parts are done. Takes over the parts of a stopped process."""
    while parts.exists():
        if computation.run():
            continue
        if len(parts.done()) == len(plan.parts):
            return
        watch.look()
        time.sleep(POLL_SECONDS)


def _put_together(plan: EmbedPlan, parts: PartsFolder, output: Path, settings: EmbedSettings) -> dict[str, int] | None:
    """Number of rows of each split if this process wrote the table; None if another process did."""
    while parts.exists():
        claim = parts.claim_assembling()
        if claim is None:
            time.sleep(POLL_SECONDS)
            continue
        try:
            if not parts.exists():
                return None
            rows_by_split = assemble(plan, parts, output, settings.max_skipped)
            with parts.set_up():
                parts.forget_all()
            return rows_by_split
        finally:
            claim.release()
    return None


@contextmanager
def _watched(plan: EmbedPlan, parts: PartsFolder, done: set[int]) -> Iterator[Watch]:
    """Shows a progress bar of the whole work, once on each machine."""
    num_done = sum(records_of(number, plan, parts) for number in done)
    with progress("embedding", plan.num_records, num_done) as advance:
        yield Watch(plan, parts, done, advance)
