"""What training cost, as numbers: the horizontal axes of the scaling curves."""

from collections.abc import Mapping
from dataclasses import dataclass

from openjepa.report.facts import images_seen, method_name, step_seconds, total_seconds
from openjepa.report.reading import RunFolder, began_from, lookup, text
from openjepa.system.json_files import number


@dataclass(frozen=True)
class Axis:
    """One quantity that accuracy is drawn against."""

    name: str
    title: str
    unit: str
    lacks: str
    """Where the number should have stood."""


AXES = (
    Axis("flops", "Training compute", "FLOPs", "no training FLOPs: summary.json lacks flops_per_image or images_seen"),
    Axis("hours", "Training time", "device-hours", "no hours: neither summary.json nor metrics.jsonl has seconds"),
    Axis("images", "Images seen", "images", "no images seen: neither summary.json nor metrics.jsonl has them"),
    Axis("data", "Data size", "training images", "no data size: summary.json does not say how many training images there are"),
    Axis("parameters", "Model size", "parameters of the encoder", "no model size: summary.json lacks parameters.encoder"),
)


@dataclass(frozen=True)
class Training:
    """One run, or what of it an evaluated encoder had behind it."""

    values: Mapping[str, float]
    """By the axis' name; unknown ones are missing."""
    family: str
    """Method, recipe, and the weights it began from."""
    size: str
    device: str

    @property
    def series(self) -> str:
        """What one color stands for: method, recipe, weights of the start, and size."""
        return f"{self.family}, {self.size}" if self.size else self.family


def training(run: RunFolder, step: float | None = None) -> Training:
    """What the run has used: in all, or up to `step` where an encoder was evaluated earlier."""
    share = _share_done(run, step)
    images, flops = images_seen(run), number(run.summary.get("flops_per_image"))
    seconds = step_seconds(run)
    seconds = seconds if seconds is not None else total_seconds(run)
    devices = number(run.summary.get("processes")) or 1.0
    found = {
        "flops": None if images is None or flops is None else flops * images * share,
        "hours": None if seconds is None else seconds * devices * share / 3600,
        "images": None if images is None else images * share,
        "data": _data_size(run),
        "parameters": number(lookup(run.summary, "parameters", "encoder")),
    }
    # a logarithmic axis has no place for 0
    values = {name: value for name, value in found.items() if value is not None and value > 0}
    return Training(values, _family(run), _size(run), _device(run, devices))


def _share_done(run: RunFolder, step: float | None) -> float:
    """The part of the run that lies before `step`."""
    now = number(run.summary.get("step"))
    return step / now if step is not None and now is not None and 0 < step < now else 1.0


def _data_size(run: RunFolder) -> float | None:
    """Training images: as the summary counts them, else images seen per epoch."""
    counted = number(run.summary.get("train_images"))
    if counted is not None:
        return counted
    epochs, images = run.log.last("train", "epoch"), run.log.last("train", "images")
    return float(round(images / epochs)) if epochs and images else None


def _family(run: RunFolder) -> str:
    recipe, preset = (text(run.config.get(name) or "", 40) for name in ("recipe", "preset"))
    named = f"{recipe} ({preset})" if preset not in ("", "default", recipe) else recipe
    # what those weights have cost is in none of the axes, so such a run is on no line with one that lacks them
    origin = f"from {began_from(run)}" if began_from(run) else ""
    return " ".join(word for word in (method_name(run), named, origin) if word) or "unknown"


def _size(run: RunFolder) -> str:
    size, patch = run.setting("model", "size"), text(run.setting("model", "patch_size") or "?", 8)
    changed = [f"{name} {text(value, 8)}" for name in ("width", "depth") if (value := run.setting("model", name))]
    if not size:
        return ""
    return f"{' '.join(changed)}, patch {patch}" if len(changed) == 2 else " ".join([f"{text(size, 20)}/{patch}", *changed])


def _device(run: RunFolder, devices: float) -> str:
    known = run.environment
    name = text(known.get("device_name") or known.get("cpu") or known.get("device") or "unknown device", 60)
    threads = number(known.get("threads")) if known.get("device") == "cpu" else None
    shown = f"{name}, {threads:.0f} thread{'s' if threads != 1 else ''}" if threads else name
    return f"{devices:.0f} x {shown}" if devices > 1 else shown
