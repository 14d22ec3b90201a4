"""What was run and on what, in words: rows of facts, the verdict on collapse, and where several runs differ."""

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

from openjepa.engine.timings import seconds_of_steps
from openjepa.measures.verdicts import HEALTHY, CollapseStatistics, collapsed
from openjepa.measures.verdicts import verdict as verdict_of
from openjepa.report.curves import format_number
from openjepa.report.reading import RunFolder, began_from, lookup, text
from openjepa.settings.methods import METHODS
from openjepa.system import shell
from openjepa.system.json_files import number

STATUS_WORDS = {
    "finished": "finished",
    "running": "running",
    "interrupted": "interrupted",
    "failed": "failed",
}
UNFINISHED = "unfinished"
"""Of a run that says it is running and that no process writes to: it was killed."""
MAX_DIFFERENCES = 60


@dataclass(frozen=True)
class Fact:
    """One row: a label and its value for each run ("" where it is unknown)."""

    label: str
    values: Sequence[str]


@dataclass(frozen=True)
class Verdict:
    """Whether the features collapsed."""

    tone: str
    """good, bad or unknown"""
    sentence: str
    evidence: str


def duration(seconds: float) -> str:
    """A time span in its two largest units."""
    if seconds < 60:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    if minutes < 60:
        return f"{minutes} min"
    hours, minutes = divmod(minutes, 60)
    if hours < 48:
        return f"{hours} h {minutes} min"
    days, hours = divmod(hours, 24)
    return f"{days} d {hours} h"


def status(run: RunFolder) -> str:
    """One word: finished, running, unfinished, interrupted, failed, or unknown for a folder without a summary."""
    word = STATUS_WORDS.get(str(run.summary.get("status", "")), "unknown")
    return UNFINISHED if word == "running" and run.is_locked is False else word


def error(run: RunFolder) -> str:
    """What ended a failed run."""
    return text(run.summary.get("error") or "no message", 600) if status(run) == "failed" else ""


def command(run: RunFolder, verb: str) -> str:
    """The command that makes a missing part."""
    return shell.command("openjepa", verb, run.path)


def facts(runs: Sequence[RunFolder]) -> list[Fact]:
    """The rows that at least one run has a value for."""
    makers = {
        "Status": _progress,
        "Error": error,
        "Recipe": _recipe,
        "Model": _model,
        "Began from": _origin,
        "Parameters": _parameters,
        "Data": _data,
        "Images seen": _images_seen,
        "Masks": _masks,
        "Masks drawn again": _redrawn,
        "Optimizer": _optimizer,
        "Compute": _compute,
        "Time": _time,
        "Hardware": _hardware,
        "Software": _software,
        "Seed": _seed,
        "Commit": _commit,
        "Started": _started,
    }
    rows = [Fact(label, [make(run) for run in runs]) for label, make in makers.items()]
    return [row for row in rows if any(row.values)]


def lede(run: RunFolder) -> str:
    """One sentence: what was trained by which method on what, for how long."""
    if run.is_encoder:
        shape = _model(run)
        return f"An evaluated encoder{f', {shape}' if shape else ''}: the folder says nothing of its training."
    method = method_name(run)
    model = _model(run).split(", width")[0].replace(", ", " with ", 1)
    # crops are what training sees; the size of the stored pictures would only stand beside them as a second number
    data, crops = re.sub(r",? \d+ x \d+ pixels", "", _description(run)), _crops(run)
    further = f"trained further from {origin}" if (origin := began_from(run)) else "trained"
    words = [model or "An encoder", f"{further} by {method}" if method else further]
    words.append(_joined_by(" of ", f"on crops of {crops}" if crops else "", data) if crops else f"on {data}" if data else "")
    seen, seconds = images_seen(run), total_seconds(run)
    time = duration(seconds) if seconds is not None else ""
    length = _joined_by(" in ", f"{format_number(seen)} images seen" if seen else "", time)
    return _joined_by("; ", " ".join(word for word in words if word), length) + "."


def method_name(run: RunFolder) -> str:
    """The method as it is written; empty where it is not known."""
    name = text(run.setting("method", "name", default=""), 30)
    return METHODS[name].settings.about.short if name in METHODS else name


def _joined(*parts: str) -> str:
    return _joined_by(", ", *parts)


def _joined_by(separator: str, *parts: str) -> str:
    return separator.join(part for part in parts if part)


def _short(value: Any, unit: str = "") -> str:
    finite = number(value)
    return "" if finite is None else format_number(finite) + unit


def _step(run: RunFolder) -> float | None:
    step = number(run.summary.get("step"))
    logged = run.log.points("train", "loss")
    return step if step is not None else (logged[-1][0] if logged else None)


def _progress(run: RunFolder) -> str:
    if run.is_encoder:
        return ""
    step, total = _step(run), number(run.summary.get("total_steps"))
    steps = ""
    if step is not None:
        steps = f"step {step:,.0f}" + (f" of {total:,.0f}" if total else "")
    word = status(run)
    return _joined("" if word == "unknown" and steps else word, steps)


def _recipe(run: RunFolder) -> str:
    recipe, preset = text(run.config.get("recipe") or "", 60), text(run.config.get("preset") or "", 60)
    return f"{recipe} ({preset})" if preset and preset != recipe else recipe


def _model(run: RunFolder) -> str:
    size, patch = text(run.setting("model", "size", default=""), 30), text(run.setting("model", "patch_size", default=""), 10)
    shape = [number(run.model.get(name)) for name in ("width", "depth", "heads")]
    detail = f"width {shape[0]:.0f}, {shape[1]:.0f} blocks, {shape[2]:.0f} heads" if all(s is not None for s in shape) else ""
    is_named = not any(run.setting("model", name) for name in ("width", "depth", "heads", "mlp_ratio"))
    name = f"ViT{f' {size}' if is_named else ''}, {patch} px patches" if size else ""
    return _joined(name, detail)


def _origin(run: RunFolder) -> str:
    """The weights that it has started from; empty where they were random."""
    what = text(lookup(run.summary, "init", "what", default="") or "", 160)
    return _joined_by(": ", began_from(run), what)


def _parameters(run: RunFolder) -> str:
    parameters = run.summary.get("parameters")
    if not isinstance(parameters, Mapping):
        return _short(parameters)
    return _joined(*(f"{text(name, 30)} {_short(value)}" for name, value in list(parameters.items())[:6] if _short(value)))


def _data(run: RunFolder) -> str:
    crops = _crops(run)
    return _joined(_description(run), f"crops of {crops}" if crops else "")


def _description(run: RunFolder) -> str:
    description = text(run.summary.get("data") or run.environment.get("data") or "", 200)
    source, path = text(run.setting("data", "source", default=""), 40), text(run.setting("data", "path", default="") or "", 160)
    return description or f"{source} {path}".strip()


def _crops(run: RunFolder) -> str:
    size = run.setting("data", "image_size")
    if isinstance(size, list | tuple) and len(size) == 2:
        return f"{text(size[0], 6)} x {text(size[1], 6)} px"
    return f"{text(size, 6)} px" if size else ""


def images_seen(run: RunFolder) -> float | None:
    """Images that training has used so far, repeats counted."""
    seen = number(run.summary.get("images_seen"))
    return seen if seen is not None else run.log.last("train", "images")


def _images_seen(run: RunFolder) -> str:
    seen, epoch = images_seen(run), run.log.last("train", "epoch")
    if seen is None:
        return ""
    return f"{seen:,.0f}" + (f" ({format_number(epoch)} epochs)" if epoch else "")


def _masks(run: RunFolder) -> str:
    return text(run.summary.get("mask_mode") or run.setting("masks", "mode", default=""), 80)


def _redrawn(run: RunFolder) -> str:
    again, padded = _share(run, "mask_redrawn"), _share(run, "mask_padded")
    return _joined(again, f"{padded} padded" if padded else "")


def _share(run: RunFolder, name: str) -> str:
    """How many of the images a count of the log concerns."""
    counts, images = [value for _, value in run.log.points("train", name)], run.log.last("train", "images")
    if not counts or not images:
        return ""
    return f"{100 * sum(counts) / images:.1f} %" if any(counts) else "none"


def _optimizer(run: RunFolder) -> str:
    batch, rate = run.setting("optim", "batch_size"), number(run.setting("optim", "lr"))
    return _joined(
        f"batch {text(batch, 20)}" if batch else "",
        f"peak rate {format_number(rate)}" if rate is not None else "",
        f"precision {text(run.environment['precision'], 20)}" if run.environment.get("precision") else "",
    )


def _compute(run: RunFolder) -> str:
    flops, seen = number(run.summary.get("flops_per_image")), images_seen(run)
    return _joined(f"{_flops(flops)} per image", f"{_flops(flops * seen)} in all" if seen else "") if flops else ""


def _flops(value: float) -> str:
    for factor, unit in ((1e18, "EFLOPs"), (1e15, "PFLOPs"), (1e12, "TFLOPs"), (1e9, "GFLOPs")):
        if value >= factor:
            return f"{format_number(value / factor)} {unit}"
    return f"{format_number(value / 1e6)} MFLOPs"


def total_seconds(run: RunFolder) -> float | None:
    """Seconds of training with looks and saving."""
    seconds = number(run.summary.get("seconds"))
    return seconds if seconds is not None else run.log.last("train", "seconds")


def step_seconds(run: RunFolder) -> float | None:
    """Seconds of the steps with their data path alone; of runs that did not write them, what follows from their speeds."""
    seconds = number(run.summary.get("step_seconds"))
    seconds = seconds if seconds is not None else run.log.last("train", "step_seconds")
    speeds = run.log.points("train", "images_per_second", x="images")
    return seconds if seconds is not None or not speeds else seconds_of_steps(speeds)


def _time(run: RunFolder) -> str:
    steps, total = step_seconds(run), total_seconds(run)
    rates = sorted(value for _, value in run.log.points("train", "images_per_second"))
    rate = f"{format_number(rates[len(rates) // 2])} images/s" if rates else ""
    return _joined(
        f"{duration(steps)} of steps" if steps is not None else "",
        f"{duration(total)} with looks and saving" if total is not None else "",
        rate,
    )


def _hardware(run: RunFolder) -> str:
    known = run.environment
    names = [text(known.get(name) or "", 120) for name in ("device_name", "cpu", "device")]
    threads = number(known.get("threads")) if known.get("device") == "cpu" else None
    return _joined(*dict.fromkeys(names), f"{threads:.0f} thread{'s' if threads > 1 else ''}" if threads else "")


def _software(run: RunFolder) -> str:
    names = ("openjepa", "torch", "python", "platform")
    shown = [(name, text(run.environment.get(name) or "", 80)) for name in names]
    return _joined(*(value if name == "platform" else f"{name} {value}" for name, value in shown if value))


def _seed(run: RunFolder) -> str:
    return text(run.setting("run", "seed", default=""), 30)


def _commit(run: RunFolder) -> str:
    return text(run.environment.get("commit") or "", 60)


def _started(run: RunFolder) -> str:
    return text(run.environment.get("started") or "", 40)


def verdict(run: RunFolder) -> Verdict:
    """Collapse: the flag and the sentence that training wrote, and the numbers of its last look at the features."""
    is_collapsed, said = _judged(run)
    evidence = _evidence(run)
    if run.energy.get("flat") is True and run.energy.get("step") == run.summary.get("step"):
        kept = ", though its features still differ" if is_collapsed is False else ""
        return Verdict("bad", f"The method has collapsed: its energy is the same for all pairs{kept}.", evidence)
    if is_collapsed is not None:
        return Verdict("bad" if is_collapsed else "good", said, evidence)
    if said or evidence:
        looks = len(_looks(run))
        few = f"Too early to tell: only {'one look' if looks == 1 else f'{looks} looks'} at the features so far."
        return Verdict("unknown", said or (few if looks < 3 else "Not known: the last look is not finite."), evidence)
    return Verdict("unknown", "Not watched: this run has not looked at its features yet.", "")


def _judged(run: RunFolder) -> tuple[bool | None, str]:
    """Whether the features collapsed (None: not known), and the sentence that says so.

    Runs without the flag are judged by the rule of training on what they logged; what they say in words is not read.
    """
    said, flag = text(run.summary.get("verdict") or "", 400), run.summary.get("collapsed")
    if isinstance(flag, bool):
        return flag, said or ("The features have collapsed." if flag else HEALTHY)
    history = _looks(run)
    found = collapsed(history)
    return found, said if found is None else verdict_of(history) or HEALTHY


def _looks(run: RunFolder) -> list[CollapseStatistics]:
    """The looks at the features that were logged; numbers that were not finite are nan."""
    names = [item.name for item in fields(CollapseStatistics)]
    logged = {name: dict(run.log.points("monitor", name)) for name in run.log.series.get("monitor", {})}
    steps = sorted({step for values in logged.values() for step in values})
    return [CollapseStatistics(*(logged.get(name, {}).get(step, math.nan) for name in names)) for step in steps]


def _evidence(run: RunFolder) -> str:
    rank, spread, cosine, loss = (run.log.last("monitor", name) for name in ("rankme", "feature_std", "cosine", "loss"))
    width = number(run.model.get("width"))
    parts = []
    if rank is not None:
        parts.append(f"effective rank {format_number(rank)}" + (f" in {width:.0f} dimensions" if width else ""))
    if cosine is not None:
        parts.append(f"mean cosine between images {cosine:.2f}")
    if spread is not None:
        parts.append(f"feature spread {format_number(spread)}")
    trivial = [run.log.last("monitor", name) for name in ("loss_mean_target", "loss_position_mean")]
    known = [value for value in trivial if value is not None]
    if loss is not None and known:
        parts.append(f"loss {format_number(loss)} where the better trivial predictor has {format_number(min(known))}")
    evidence = _joined(*parts)
    return f"At the last look: {evidence}." if evidence else ""


def flatten(tree: Any, prefix: str = "", depth: int = 0) -> Iterator[tuple[str, str]]:
    """(dotted name, value) of every setting."""
    if isinstance(tree, Mapping) and depth < 6:
        for name, value in tree.items():
            yield from flatten(value, f"{prefix}.{text(name, 60)}" if prefix else text(name, 60), depth + 1)
    else:
        yield prefix, text(tree, 200)


def differences(runs: Sequence[RunFolder]) -> list[Fact]:
    """The settings in which the runs differ."""
    settings = [dict(flatten(run.config)) for run in runs]
    names = list(dict.fromkeys(name for known in settings for name in known))
    rows = [Fact(name, [known.get(name, "") for known in settings]) for name in names]
    return [row for row in rows if len(set(row.values)) > 1][:MAX_DIFFERENCES]


def settings_groups(run: RunFolder) -> list[tuple[str, list[tuple[str, str]]]]:
    """All settings by their group: run, data, model, ..."""
    groups: dict[str, list[tuple[str, str]]] = {}
    for name, value in list(flatten(run.config))[:400]:
        group, _, setting = name.partition(".")
        groups.setdefault(group if setting else "recipe", []).append((setting or group, value))
    return list(groups.items())
