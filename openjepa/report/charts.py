"""Which curves a page shows."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from openjepa.report.curves import NUM_COLORS, Chart, Series
from openjepa.report.reading import RunFolder, text


@dataclass(frozen=True)
class Quantity:
    """One number of metrics.jsonl and how it is shown."""

    title: str
    kind: str
    name: str
    note: str
    from_zero: bool = False


LEARNING = (
    Quantity(
        "Effective rank", "monitor", "rankme", "RankMe of the probe batch's features; a fall towards 1 is collapse.", True
    ),
    Quantity("LiDAR", "monitor", "lidar", "Effective rank of what tells images apart; a fall towards 1 is collapse.", True),
    Quantity("Slope of the spectrum", "monitor", "alpha_req", "alpha-ReQ of the probe batch's features; near 1 is best."),
    Quantity(
        "Feature spread", "monitor", "feature_std", "Standard deviation over images, mean over dimensions; 0 is collapse.", True
    ),
    Quantity("Similarity of images", "monitor", "cosine", "Mean cosine between two images' features; 1 is collapse."),
    Quantity(
        "Entropy of the targets",
        "train",
        "target_entropy",
        "Of the single assignments to outputs or prototypes, in nats; 0 is a sharp choice, the logarithm of their number none.",
        True,
    ),
    Quantity("Online k-NN accuracy", "monitor", "knn", "Share of test images whose nearest neighbors vote rightly."),
)
MACHINERY = (
    Quantity("Learning rate", "train", "lr", "Linear warm-up, then the schedule of the recipe.", True),
    Quantity("Weight decay", "train", "weight_decay", "Of matrices; biases and norms are never decayed.", True),
    Quantity("Target momentum", "train", "momentum", "How much of itself the target encoder keeps in a step."),
    Quantity("Gradient norm", "train", "grad_norm", "Before clipping, if there is any.", True),
    Quantity("Throughput", "train", "images_per_second", "Images per second, training only.", True),
    Quantity("Context size", "train", "context_tokens", "Patches that the context encoder sees.", True),
    Quantity("Visible patches", "train", "visible_tokens", "Patches of a masked view that are not masked, on average.", True),
)
LOSS_PARTS = (
    Series("probe batch", (), 1),
    Series("mean target", (), 7, dashed=True),
    Series("mean of the position", (), 3, dashed=True),
)
TERM = "loss/"
"""Starts the names of the terms of a loss in the log."""
_LOSS_NAMES = ("loss", "loss_mean_target", "loss_position_mean")


def learning_charts(runs: Sequence[RunFolder]) -> list[Chart]:
    """Loss and the signs of collapse."""
    loss = [*_loss(runs[0]), *_terms(runs[0])] if len(runs) == 1 else _loss_of_several(runs)
    return _aligned(runs, [*loss, *_charts(runs, LEARNING)])


def machinery_charts(runs: Sequence[RunFolder]) -> list[Chart]:
    """Schedules, gradient norm, throughput."""
    return _aligned(runs, _charts(runs, MACHINERY))


def _aligned(runs: Sequence[RunFolder], charts: Sequence[Chart]) -> list[Chart]:
    """The same charts with one horizontal axis for all."""
    ends = [point[0] for run in runs for point in run.log.points("train", "loss", _x_axis(runs)[0])[-1:]]
    return [replace(chart, x_end=max(ends, default=1.0)) for chart in charts]


def _x_axis(runs: Sequence[RunFolder]) -> tuple[str, str]:
    # Runs with different batches are only comparable by the images they have seen.
    return ("step", "step") if len(runs) == 1 else ("images", "images")


def _charts(runs: Sequence[RunFolder], quantities: Sequence[Quantity]) -> list[Chart]:
    axis, label = _x_axis(runs)
    charts = []
    for quantity in quantities:
        lines = [Series(run.name, run.log.points(quantity.kind, quantity.name, axis), index) for index, run in enumerate(runs)]
        lines = [line for line in lines if line.points]
        if lines:
            charts.append(Chart(quantity.title, quantity.note, lines, label, quantity.from_zero))
    return charts


def _loss(run: RunFolder) -> list[Chart]:
    lines = [Series("training", run.log.points("train", "loss"), 0)]
    lines += [
        Series(part.label, run.log.points("monitor", name), part.color, part.dashed)
        for part, name in zip(LOSS_PARTS, _LOSS_NAMES, strict=True)
    ]
    lines = [line for line in lines if line.points]
    note = "The targets change while the encoder learns, so the loss may rise."
    if any(line.dashed for line in lines):
        note = f"Dashed: two predictors that see no image. {note}"
    return [Chart("Loss", note, lines, from_zero=True)] if lines else []


def _terms(run: RunFolder) -> list[Chart]:
    """The terms of a loss that has several."""
    names = [name for name in run.log.series.get("train", {}) if name.startswith(TERM)][:NUM_COLORS]
    lines = [
        Series(text(name.removeprefix(TERM), 20), run.log.points("train", name), color) for color, name in enumerate(names)
    ]
    return [Chart("Terms of the loss", "What the loss adds up, some with a weight.", lines)] if len(lines) > 1 else []


def _loss_of_several(runs: Sequence[RunFolder]) -> list[Chart]:
    lines = [Series(run.name, run.log.points("train", "loss", "images"), index) for index, run in enumerate(runs)]
    lines += [
        Series("", run.log.points("monitor", "loss_position_mean", "images"), index, dashed=True)
        for index, run in enumerate(runs)
    ]
    lines = [line for line in lines if line.points]
    note = "Losses of runs with different targets do not compare."
    if any(line.dashed for line in lines):
        note = f"Dashed: the loss of predicting each position's mean. {note}"
    return [Chart("Loss", note, lines, "images", from_zero=True)] if lines else []
