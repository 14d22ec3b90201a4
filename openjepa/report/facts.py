"""Facts about runs in words: rows of facts, the verdict on collapse, and the differences between several runs."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

from openjepa.config import number
from openjepa.measures.verdicts import (
    HEALTHY,
    CollapseStatistics,
    Look,
    PositionStatistics,
    judged,
    judged_positions,
)
from openjepa.records import seconds_of_steps
from openjepa.report.numbers import duration, format_number
from openjepa.report.reading import Run, began_from, text
from openjepa.settings.methods import METHODS
from openjepa.system import console

STATUS_WORDS = ("finished", "running", "interrupted", "failed")
UNFINISHED_RUN = "unfinished"
"""Status of a run that was killed: its summary says running, but no process writes to it."""
MAX_DIFFERENCES = 60
ABOUT_LABELS = {
    "title": "Method",
    "family": "Family",
    "x": "Given (x)",
    "y": "To be compatible (y)",
    "z": "What the predictor is told (z)",
    "energy": "Energy",
    "against_collapse": "Against collapse",
}


@dataclass(frozen=True)
class Fact:
    """One row: a label and its value for each run ("" if unknown)."""

    label: str
    values: Sequence[str]


@dataclass(frozen=True)
class Verdict:
    """A judgment on whether the features have collapsed."""

    tone: str
    """good, bad or unknown."""
    sentence: str
    evidence: str


def status(run: Run) -> str:
    """The status in one word: finished, running, unfinished, interrupted, failed, or unknown if there is no summary."""
    word = run.summary.status if run.summary.status in STATUS_WORDS else "unknown"
    return UNFINISHED_RUN if word == "running" and run.is_locked is False else word


def error(run: Run) -> str:
    """The error that ended a failed run."""
    return text(run.summary.error or "no message", 600) if status(run) == "failed" else ""


def openjepa_command(run: Run, verb: str) -> str:
    """The command `openjepa <verb>` that produces a missing part of the run."""
    return console.command("openjepa", verb, run.path)


def facts(runs: Sequence[Run]) -> list[Fact]:
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


def learned_from(runs: Sequence[Run]) -> list[Fact]:
    """One row for each part of a method that at least one run has. Older runs, which do not say, have empty values."""
    rows = [
        Fact(label, [text(getattr(run.summary.about, name, ""), 300) for run in runs]) for name, label in ABOUT_LABELS.items()
    ]
    return [row for row in rows if any(row.values)]


def lede(run: Run) -> str:
    """A sentence that says what was trained, by which method, on which data, and for how long."""
    if run.is_encoder:
        shape = _model(run)
        return f"An evaluated encoder{f', {shape}' if shape else ''}: the folder says nothing of its training."
    method, crops = method_name(run), _crops(run)
    shape = _joined_by(" of ", "An encoder", _shape(run))
    model = _joined_by(" with ", *_network(run)) or shape
    # the size of the stored pictures is left out: beside the size of the crops, which training sees, it would only confuse
    data = text(run.summary.data_facts.words(), 200) if run.summary.data_facts else _source(run)
    further = f"trained further from {origin}" if (origin := began_from(run)) else "trained"
    words = [model, f"{further} by {method}" if method else further]
    words.append(_joined_by(" of ", f"on crops of {crops}" if crops else "", data) if crops else f"on {data}" if data else "")
    seen, seconds = images_seen(run), total_seconds(run)
    time = duration(seconds) if seconds is not None else ""
    length = _joined_by(" in ", f"{format_number(seen)} images seen" if seen else "", time)
    return _joined_by("; ", " ".join(word for word in words if word), length) + "."


def method_name(run: Run) -> str:
    """The name of the method as papers write it; empty if unknown."""
    name = text(run.setting("method", "name", default=""), 30)
    return METHODS[name].settings.paper.name if name in METHODS else name


def _joined(*parts: str) -> str:
    return _joined_by(", ", *parts)


def _joined_by(separator: str, *parts: str) -> str:
    return separator.join(part for part in parts if part)


def _step(run: Run) -> float | None:
    logged = run.log.points("train", "loss")
    return run.summary.step if run.summary.step is not None else (logged[-1][0] if logged else None)


def _progress(run: Run) -> str:
    if run.is_encoder:
        return ""
    step, total = _step(run), run.summary.total_steps
    steps = ""
    if step is not None:
        steps = f"step {step:,.0f}" + (f" of {total:,.0f}" if total else "")
    word = status(run)
    return _joined("" if word == "unknown" and steps else word, steps)


def _recipe(run: Run) -> str:
    recipe, preset = text(run.config.get("recipe") or "", 60), text(run.config.get("preset") or "", 60)
    return f"{recipe} ({preset})" if preset and preset != recipe else recipe


def _model(run: Run) -> str:
    return _joined(*_network(run), _shape(run))


def _network(run: Run) -> tuple[str, str]:
    """Size and patch size of the network in words; empty if unknown."""
    size, patch = text(run.setting("model", "size", default=""), 30), text(run.setting("model", "patch_size", default=""), 10)
    is_named = not any(run.setting("model", name) for name in ("width", "depth", "heads", "mlp_ratio"))
    return (f"ViT{f' {size}' if is_named else ''}", f"{patch} px patches") if size else ("", "")


def _shape(run: Run) -> str:
    width, depth, heads = (number(run.model.get(name)) for name in ("width", "depth", "heads"))
    if width is None or depth is None or heads is None:
        return ""
    return f"width {width:.0f}, {depth:.0f} blocks, {heads:.0f} heads"


def _origin(run: Run) -> str:
    """The weights that the run started from; empty if they were random."""
    what = text(run.summary.init.get("what") or "", 160)
    return _joined_by(": ", began_from(run), what)


def _parameters(run: Run) -> str:
    counts = list(run.summary.parameters.items())[:6]
    return _joined(*(f"{text(name, 30)} {format_number(count)}" for name, count in counts))


def _data(run: Run) -> str:
    crops = _crops(run)
    return _joined(_description(run), f"crops of {crops}" if crops else "")


def _description(run: Run) -> str:
    return text(run.summary.data, 200) or _source(run)


def _source(run: Run) -> str:
    source, path = text(run.setting("data", "source", default=""), 40), text(run.setting("data", "path", default="") or "", 160)
    return f"{source} {path}".strip()


def _crops(run: Run) -> str:
    size = run.setting("data", "image_size")
    if isinstance(size, list | tuple) and len(size) == 2:
        return f"{text(size[0], 6)} x {text(size[1], 6)} px"
    return f"{text(size, 6)} px" if size else ""


def images_seen(run: Run) -> float | None:
    """Number of images that training has seen so far, counting repeats."""
    seen = run.summary.images_seen
    return seen if seen is not None else run.log.last("train", "images")


def _images_seen(run: Run) -> str:
    seen, epoch = images_seen(run), run.log.last("train", "epoch")
    if seen is None:
        return ""
    return f"{seen:,.0f}" + (f" ({format_number(epoch)} epochs)" if epoch else "")


def _masks(run: Run) -> str:
    return text(run.summary.mask_mode or run.setting("masks", "mode", default=""), 80)


def _redrawn(run: Run) -> str:
    again, padded = _share(run, "mask_redrawn"), _share(run, "mask_padded")
    return _joined(again, f"{padded} padded" if padded else "")


def _share(run: Run, name: str) -> str:
    """The count `name` of the log as a share of the masks of the images seen."""
    counts, images = [value for _, value in run.log.points("train", name)], run.log.last("train", "images")
    if not counts or not images:
        return ""
    return f"{100 * sum(counts) / images / contexts(run):.1f} %" if any(counts) else "none"


def contexts(run: Run) -> int:
    """Number of contexts per image. 1 if the settings do not say it."""
    value = number(run.setting("method", "contexts"))
    return int(value) if value is not None and 1 <= value < math.inf else 1


def _optimizer(run: Run) -> str:
    batch, rate = run.setting("optim", "batch_size"), number(run.setting("optim", "lr"))
    return _joined(
        f"batch {text(batch, 20)}" if batch else "",
        f"peak rate {format_number(rate)}" if rate is not None else "",
        f"precision {text(run.environment.precision, 20)}" if run.environment.precision else "",
    )


def _compute(run: Run) -> str:
    flops, seen = run.summary.flops_per_image, images_seen(run)
    if not flops:
        return ""
    each = f"{_flops(flops / contexts(run))} for each of {contexts(run)} contexts" if contexts(run) > 1 else ""
    return _joined(f"{_flops(flops)} per image", each, f"{_flops(flops * seen)} in all" if seen else "")


def _flops(value: float) -> str:
    for factor, unit in ((1e18, "EFLOPs"), (1e15, "PFLOPs"), (1e12, "TFLOPs"), (1e9, "GFLOPs")):
        if value >= factor:
            return f"{format_number(value / factor)} {unit}"
    return f"{format_number(value / 1e6)} MFLOPs"


def total_seconds(run: Run) -> float | None:
    """Seconds of training including monitoring and saving."""
    seconds = run.summary.seconds
    return seconds if seconds is not None else run.log.last("train", "seconds")


def step_seconds(run: Run) -> float | None:
    """Seconds of the training steps including the data path. Computed from logged speeds if the run did not write it."""
    seconds = run.summary.step_seconds
    seconds = seconds if seconds is not None else run.log.last("train", "step_seconds")
    speeds = run.log.points("train", "images_per_second", x="images")
    return seconds if seconds is not None or not speeds else seconds_of_steps(speeds)


def _time(run: Run) -> str:
    steps, total = step_seconds(run), total_seconds(run)
    rates = sorted(value for _, value in run.log.points("train", "images_per_second"))
    rate = f"{format_number(rates[len(rates) // 2])} images/s" if rates else ""
    rate += f" x {contexts(run)} contexts" if rates and contexts(run) > 1 else ""
    return _joined(
        f"{duration(steps)} of steps" if steps is not None else "",
        f"{duration(total)} with looks and saving" if total is not None else "",
        rate,
    )


def _hardware(run: Run) -> str:
    known = run.environment
    names = [text(name, 120) for name in (known.device_name, known.cpu, known.device)]
    threads = known.threads if known.device == "cpu" else None
    return _joined(*dict.fromkeys(names), f"{threads} thread{'s' if threads > 1 else ''}" if threads else "")


def _software(run: Run) -> str:
    names = ("openjepa", "torch", "python", "platform")
    shown = [(name, text(getattr(run.environment, name), 80)) for name in names]
    return _joined(*(value if name == "platform" else f"{name} {value}" for name, value in shown if value))


def _seed(run: Run) -> str:
    return text(run.setting("run", "seed", default=""), 30)


def _commit(run: Run) -> str:
    return text(run.environment.commit or "", 60)


def _started(run: Run) -> str:
    return text(run.environment.started, 40)


def collapse(run: Run) -> Verdict:
    """The flags and the sentence that training wrote, and its latest statistics of the features."""
    look = _look(run)
    said, evidence = look.words or "", _evidence(run)
    if run.energy is not None and run.energy.flat and run.energy.step == run.summary.step:
        kept = ", though its features still differ" if look.collapsed is False else ""
        return Verdict("bad", f"The method has collapsed: its energy is the same for all pairs{kept}.", evidence)
    if look.collapsed is not True and _predicts_positions(run):
        kept = ", though its features keep their spread and rank" if look.collapsed is False else ""
        return Verdict("bad", f"This run predicts positions, not images{kept}.", evidence)
    if look.collapsed is not None:
        return Verdict("bad" if look.collapsed else "good", said, evidence)
    if said or evidence:
        looks = len(_looks(run))
        few = f"Too early to tell: only {'one look' if looks == 1 else f'{looks} looks'} at the features so far."
        return Verdict("unknown", said or (few if looks < 3 else "Not known: the last look is not finite."), evidence)
    return Verdict("unknown", "Not watched: this run has not looked at its features yet.", "")


def _look(run: Run) -> Look:
    """The collapse flag and its sentence. For runs without the flag, training's rule is applied to what they logged."""
    said, flag = text(run.summary.verdict or "", 400), run.summary.collapsed
    if flag is not None:
        return Look(flag, said or ("The features have collapsed." if flag else HEALTHY))
    found = judged(_looks(run))
    return Look(None, said) if found.collapsed is None else found


def _looks(run: Run) -> list[CollapseStatistics]:
    """The logged statistics of the features. Numbers that were not finite are nan."""
    return [CollapseStatistics(**look) for look in _logged(run, CollapseStatistics)]


def _predicts_positions(run: Run) -> bool | None:
    """The flag that training wrote. For runs without it, training's rule is applied to what they logged."""
    flag = run.summary.predicts_positions
    looks = [PositionStatistics(**look) for look in _logged(run, PositionStatistics)]
    return judged_positions(looks).positions if flag is None else flag


def _logged(run: Run, kind: type[CollapseStatistics | PositionStatistics]) -> list[dict[str, float]]:
    """The numbers of `kind` at each look by name; nan if they are not known or were not finite."""
    logged = {name: dict(run.log.points("monitor", name)) for name in run.log.series.get("monitor", {})}
    steps = sorted({step for values in logged.values() for step in values})
    return [{item.name: logged.get(item.name, {}).get(step, math.nan) for item in fields(kind)} for step in steps]


def _evidence(run: Run) -> str:
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
    return " ".join(part for part in (f"At the last look: {evidence}." if evidence else "", _beyond_positions(run)) if part)


def _beyond_positions(run: Run) -> str:
    """A sentence on what positions explain, and what predictions say beyond them; empty if it was not measured."""
    share, own, other = (run.log.last("monitor", name) for name in ("position_share", "cosine_own", "cosine_other"))
    if share is None or own is None or other is None:
        return ""
    return (
        f"Positions alone explain {max(0.0, share):.0%} of the targets' variance. Predictions have a cosine of {own:.2f} with "
        f"their own target and of {other:.2f} with another image's at the same place."
    )


def _settings(tree: Any, prefix: str = "", depth: int = 0) -> Iterator[tuple[str, str]]:
    """Yields every setting as (dotted name, value)."""
    if isinstance(tree, Mapping) and depth < 6:
        for name, value in tree.items():
            yield from _settings(value, f"{prefix}.{text(name, 60)}" if prefix else text(name, 60), depth + 1)
    else:
        yield prefix, text(tree, 200)


def differences(runs: Sequence[Run]) -> list[Fact]:
    """The settings in which the runs differ."""
    settings = [dict(_settings(run.config)) for run in runs]
    names = list(dict.fromkeys(name for known in settings for name in known))
    rows = [Fact(name, [known.get(name, "") for known in settings]) for name in names]
    return [row for row in rows if len(set(row.values)) > 1][:MAX_DIFFERENCES]


def settings_groups(run: Run) -> list[tuple[str, list[tuple[str, str]]]]:
    """All settings by group: run, data, model, ..."""
    groups: dict[str, list[tuple[str, str]]] = {}
    for name, value in list(_settings(run.config))[:400]:
        group, _, setting = name.partition(".")
        groups.setdefault(group if setting else "recipe", []).append((setting or group, value))
    return list(groups.items())
