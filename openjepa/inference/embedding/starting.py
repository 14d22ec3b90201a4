"""Whether there is anything to do: a table that is there, parts that are gone on with, or a new beginning."""

from pathlib import Path

from openjepa.inference.embedding.parts import PartsFolder
from openjepa.inference.embedding.plan import Plan, changes, compared, finished_manifest, plan_entries
from openjepa.refusals import Refusal
from openjepa.system.claims import Claim

PATIENCE_SECONDS = 10.0
"""So long the workers of a killed process may take to notice that it is gone."""


def begin(plan: Plan, parts: PartsFolder, output: Path, again: bool, started: float) -> Claim | None:
    """Sets up the parts, new or those that are there, and says that this process works; None: the table is there already.

    `again`: starts over, but joins what siblings have begun since `started`. Raises Refusal where there is something else
    that may not be replaced.
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
    """The parts or the table of a version that did not note sizes and times of the images' files; else None."""
    entries = plan_entries(parts.plan_file)
    if entries is not None:
        return None if entries.get("files") else parts.path
    manifest = finished_manifest(output)
    return output if manifest is not None and not manifest.files else None


def _is_finished(plan: Plan, output: Path, again: bool, started: float) -> bool:
    if again and not (output.exists() and output.stat().st_mtime >= started):
        return False
    return _is_there(plan, output)


def _is_there(plan: Plan, output: Path) -> bool:
    """Whether the table is there. Raises Refusal where it is another one."""
    manifest = finished_manifest(output)
    if manifest is None:
        return False
    if found := changes(compared(manifest), compared(plan.manifest)):
        raise Refusal(f"{output} holds other features than these:\n{found}\nName another --output, or replace it with --again")
    return True


def _goes_on(plan: Plan, parts: PartsFolder, found: str, again: bool, started: float) -> bool:
    """Whether the parts that are there, which differ in what was `found`, are used. Raises Refusal where none may decide."""
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
