"""What the encoders of an ablation are worth: probes on the run's own images and on scenes, and the rank of their features."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from openjepa.evaluation import PROTOCOLS
from openjepa.evaluation.dataset_run import evaluate_run
from openjepa.evaluation.results import Result
from openjepa.experiments.results import Numbers
from openjepa.settings.evaluation import EvaluationSettings, ProtocolName
from openjepa.settings.experiments import AblationSettings
from openjepa.settings.run import RunConfig
from openjepa.settings.sources import ScenesSettings

PROBES: tuple[ProtocolName, ...] = ("linear", "knn")
SCENE_TASKS = ("clevr_count", "clevr_dist")
RANK = "RankMe"


@dataclass(frozen=True)
class Found:
    """Of one encoder."""

    numbers: Numbers
    """Shares of 1 by `<task>/<protocol>`, and `rank`."""
    errors: Numbers
    """Their standard errors."""


def evaluate_encoder(folder: Path, config: RunConfig, ablation: AblationSettings) -> Found:
    """The encoder of a run."""
    results = _results(folder, config, ablation.scenes, _settings(config, ablation))
    return _found(results, "encoder")


def evaluate_references(folder: Path, config: RunConfig, ablation: AblationSettings) -> Mapping[str, Numbers]:
    """The run's encoder before training (`untrained`) and raw pixels (`pixels`) with the same probes."""
    settings = replace(_settings(config, ablation), baselines=("pixels",))
    results = _results(folder / "encoder_initial", config, ablation.scenes, settings)
    return {"untrained": _found(results, "encoder").numbers, "pixels": _found(results, "pixels").numbers}


def _settings(config: RunConfig, ablation: AblationSettings) -> EvaluationSettings:
    """Of every run alike, so that their numbers stand in one figure of the report."""
    return EvaluationSettings(
        protocols=PROBES,
        baselines=(),
        max_train_images=ablation.probe_images,
        device=config.run.device,
        precision=config.run.precision,
        workers=config.system.workers,
    )


def _results(subject: Path, config: RunConfig, scenes: str | None, settings: EvaluationSettings) -> list[Result]:
    """On the run's own images, then on the scenes in the folder `scenes`, or on the packaged ones (None)."""
    results = evaluate_run(subject, settings, config.data)
    if isinstance(config.data, ScenesSettings) and config.data.path == scenes:
        return results
    # seen as the run sees its own images; only the place and the labels are others
    data = ScenesSettings(path=scenes, image_size=config.data.image_size)
    return [*results, *evaluate_run(subject, replace(settings, tasks=SCENE_TASKS), data)]


def _found(results: Sequence[Result], subject: str) -> Found:
    """The later of two results of one task counts: that on the scenes that were named."""
    names = {PROTOCOLS[name].metric: name for name in PROBES}
    metrics = {
        f"{result.task}/{names[probe]}": metric
        for result in results
        if subject in result.subjects
        for probe, metric in result.subjects[subject].metrics.items()
    }
    ranks = [result.measures[subject][RANK] for result in results if RANK in result.measures.get(subject, {})]
    values = {name: metric.value for name, metric in metrics.items()}
    errors = {name: metric.standard_error for name, metric in metrics.items()}
    return Found(values | ({"rank": ranks[0]} if ranks else {}), errors)
