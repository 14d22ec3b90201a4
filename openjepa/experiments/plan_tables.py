"""The plan of a run as a table for people and as JSON for programs."""

import json
import math
from collections.abc import Callable
from dataclasses import asdict, fields
from functools import partial

from rich.box import SIMPLE_HEAD
from rich.filesize import decimal
from rich.table import Table

from openjepa.engine.costs import each_context, times_contexts
from openjepa.engine.parallel_costs import MemoryParts
from openjepa.experiments.run_plan import RESERVED, GpuColumn, RunPlan, WholeRun
from openjepa.system.console import format_count, plain_console

Shown = Callable[[GpuColumn], str]


def plan_as_json(plan: RunPlan) -> str:
    """All numbers of the plan: bytes, seconds, FLOPs. Numbers that are not known are null."""
    return json.dumps(asdict(plan), indent=1)


def print_run_plan(plan: RunPlan) -> None:
    """Prints the run, and a table with one column for each number of GPUs."""
    console = plain_console()
    for line in _about(plan.run):
        console.print(line, soft_wrap=True)
    possible = [column for column in plan.columns if column.problem is None]
    table = Table("", *(f"{column.gpus} GPU{'s' * (column.gpus > 1)}" for column in possible), box=SIMPLE_HEAD, pad_edge=False)
    table.columns[0].no_wrap = True
    for shown in table.columns[1:]:
        shown.justify = "right"
    for title, rows in _sections(plan):
        table.add_row(title, style="bold")
        for name, show in rows:
            table.add_row(f"  {name}", *map(show, possible))
    console.print(table)
    for column in plan.columns:
        if column.problem is not None:
            console.print(column.refusal(), soft_wrap=True)


def _about(run: WholeRun) -> list[str]:
    forward = ", ".join(f"{name.replace('_', ' ')} {format_count(value)}" for name, value in run.flops.items() if value)
    images = "" if run.images is None else f", {run.epochs:.4g} epochs of {run.images:,} images"
    average = f", and {format_count(run.target_weights)} in the target encoder" if run.target_weights else ""
    return [
        f"run      {run.recipe} ({run.preset}), method {run.method}, model {run.model}",
        f"length   {run.steps:,} steps of {run.batch_size} images{times_contexts(run.contexts)}{images}",
        f"weights  {format_count(run.trained_weights)} trained{average}",
        f"FLOPs    {format_count(run.step_flops)} an image and step{each_context(run.step_flops, run.contexts)} "
        f"(forward: {forward}); {run.total_flops:.3g} in all",
        f"GPU      {run.gpu}, {run.precision}; expected utilization of its peak {run.mfu:.0%}",
        f"disk     {decimal(run.checkpoint_bytes)} a checkpoint; {decimal(run.disk_bytes)} with all that are kept, and exports",
    ]


def _sections(plan: RunPlan) -> list[tuple[str, list[tuple[str, Shown]]]]:
    """Titles of the sections of the table, and their rows."""
    kinds = list(dict.fromkeys((way.strategy, way.recompute) for column in plan.columns for way in column.ways))
    has_pace = any(column.hours_at_paper_pace is not None for column in plan.columns)
    return [
        (
            "division",
            [
                ("nodes", lambda column: str(column.nodes)),
                ("strategy", lambda column: column.strategy),
                ("blocks are recomputed", lambda column: "yes" if column.recompute else "no"),
                ("images per GPU and step", lambda column: f"{column.microbatch * column.microbatches}"),
                ("  in microbatches", lambda column: f"{column.microbatches} x {column.microbatch}"),
            ],
        ),
        ("all ways: largest microbatch, hours", [(_kind(*kind), partial(_way, *kind)) for kind in kinds]),
        *_memory_sections(),
        (
            "sent by a GPU in a step",
            [
                ("gathered weights", lambda column: decimal(round(column.sent.gathered)) if column.sent else ""),
                ("reduced gradients", lambda column: decimal(round(column.sent.reduced)) if column.sent else ""),
                ("  of all, within its node", lambda column: decimal(round(column.within_bytes))),
                ("  to other nodes", lambda column: decimal(round(column.between_bytes))),
            ],
        ),
        (
            "time of a step, in ms",
            [
                *((name, _milliseconds(name)) for name in ("compute", "optimizer", "communication", "waiting")),
                ("all", lambda column: _in_ms(column.step_seconds)),
                ("efficiency", lambda column: f"{column.efficiency:.0%}"),
                ("utilization of the peak", lambda column: f"{column.mfu:.0%}"),
            ],
        ),
        (
            "the run",
            [
                ("images/s", lambda column: f"{column.images_per_second:,.0f}"),
                *([("contexts/s", partial(_contexts_per_second, plan.run.contexts))] if plan.run.contexts > 1 else []),
                ("CPU cores that make the views", lambda column: f"{math.ceil(column.decoding_cores):,}"),
                ("  on each node", lambda column: f"{math.ceil(column.decoding_cores / column.nodes):,}"),
                ("hours", lambda column: _in_hours(column.hours)),
                *([("  at the pace of the paper", _at_paper_pace)] if has_pace else []),
                (
                    "GPU hours",
                    lambda column: f"{column.gpu_hours:,.0f}" if column.gpu_hours >= 10 else _in_hours(column.gpu_hours),
                ),
            ],
        ),
    ]


def _memory_sections() -> list[tuple[str, list[tuple[str, Shown]]]]:
    """The sections on memory, of GPUs and of nodes."""
    return [
        (
            "memory of a GPU",
            [
                *((item.name.replace("_", " "), _memory(item.name)) for item in fields(MemoryParts)),
                ("reserved", lambda column: decimal(round(RESERVED * column.memory_limit))),
                ("all", lambda column: decimal(round(column.memory_bytes))),
                ("it has", lambda column: decimal(round(column.memory_limit))),
            ],
        ),
        (
            "main memory, copy of a checkpoint",
            [
                ("beside each GPU", lambda column: decimal(round(column.checkpoint_copy))),
                ("on each node", lambda column: decimal(round(column.checkpoint_copy * column.gpus / column.nodes))),
            ],
        ),
    ]


def _kind(strategy: str, recompute: bool) -> str:
    return f"{strategy}{', recomputed' if recompute else ''}"


def _way(strategy: str, recompute: bool, column: GpuColumn) -> str:
    found = next((way for way in column.ways if (way.strategy, way.recompute) == (strategy, recompute)), None)
    if found is None:
        return "-"
    return "does not fit" if found.microbatch is None else f"{found.microbatch}, {_in_hours(found.hours or 0)}"


def _memory(part: str) -> Shown:
    return lambda column: decimal(round(getattr(column.memory, part)))


def _milliseconds(part: str) -> Shown:
    return lambda column: _in_ms(getattr(column.step, part))


def _at_paper_pace(column: GpuColumn) -> str:
    return "" if column.hours_at_paper_pace is None else _in_hours(column.hours_at_paper_pace)


def _contexts_per_second(contexts: int, column: GpuColumn) -> str:
    return f"{contexts * column.images_per_second:,.0f}"


def _in_ms(seconds: float) -> str:
    """Milliseconds with one digit after the point; below one, with two digits that are not zeros in front."""
    return f"{1000 * seconds:.1f}" if seconds == 0 or seconds >= 1e-3 else f"{1000 * seconds:.2g}"


def _in_hours(hours: float) -> str:
    """Hours with one digit after the point; minutes or seconds, with their unit, if it is less than one hour."""
    if hours >= 1:
        return f"{hours:,.1f}"
    return f"{60 * hours:.1f} min" if hours >= 1 / 60 else f"{3600 * hours:.2g} s"
