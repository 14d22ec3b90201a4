"""Watches a run on a fixed probe batch: collapse, quality without labels, and optionally the accuracy of k-NN."""

import itertools
from collections.abc import Callable
from dataclasses import asdict, fields, replace
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from openjepa.data.loading.chunks import draw_masks
from openjepa.data.loading.loader import TrainingLoader
from openjepa.data.loading.order import BatchPlan
from openjepa.data.passes import evaluation_batches
from openjepa.data.selection import for_probes
from openjepa.data.source import ListSource, Splits
from openjepa.engine.device import autocast, pooled_features
from openjepa.engine.run_folder import RunLog
from openjepa.masks.sampler import MaskSampler
from openjepa.measures.features import alpha_req, collapse_statistics, knn_accuracy, lidar
from openjepa.measures.positions import position_statistics, trivial_losses
from openjepa.measures.verdicts import CollapseStatistics, Look, PositionLook, PositionStatistics, judged, judged_positions
from openjepa.methods.base import Method, ProbeOutput
from openjepa.models.vit import VisionTransformer
from openjepa.schedules import Progress
from openjepa.seeds import derive
from openjepa.settings.derived import resolved
from openjepa.settings.models import EncoderConfig
from openjepa.settings.run import RunConfig
from openjepa.types import Batch, InputSpec, LoaderPosition

_NEIGHBORS = 20
_LOGGED = tuple(item.name for item in fields(CollapseStatistics))
_LOGGED_POSITIONS = tuple(item.name for item in fields(PositionStatistics))


class Monitor:
    """Measures the method on the same images and masks at every look, and logs the values. Changes nothing in the training.

    All processes of a run measure all of the images. Each thus gets the values of a single process, and networks whose weights
    are divided over the processes can be used.
    """

    def __init__(
        self,
        config: RunConfig,
        method: Method,
        sampler: MaskSampler,
        splits: Splits,
        device: torch.device,
        precision: str,
        log: RunLog,
        say: Callable[[str], None],
    ) -> None:
        """Reads no images before the first look. `say`: called with warnings."""
        self._config, self._method, self._sampler, self._splits = config, method, sampler, splits
        self._device, self._precision, self._log = device, precision, log
        self._seed = derive("order", config.run.seed, -1)
        self._probe: list[Batch] | None = None
        self._labeled: _LabeledImages | None = None
        looks = [_values(line) for line in log.read("monitor")]
        self._history = [CollapseStatistics(**{name: look[name] for name in _LOGGED}) for look in looks]
        told = [look for look in looks if set(_LOGGED_POSITIONS) <= set(look)]  # older versions did not measure them
        self._positions = [PositionStatistics(**{name: look[name] for name in _LOGGED_POSITIONS}) for look in told]
        self._warned: set[str] = set()
        self._say = say
        if config.monitor.knn and not splits.can_test:
            say("no online k-NN: this data has no labels or no test split")
        self.latest = looks[-1] if looks else {}
        """Values of the latest look."""

    def is_due(self, step: int) -> bool:
        """True if there is a look after `step` steps."""
        every = resolved(self._config.monitor.every)
        return every > 0 and step % every == 0

    def prepare(self) -> None:
        """Reads the images of all looks, so that the first look takes no longer than the others."""
        if resolved(self._config.monitor.every) > 0:
            self._probe_batches()
            self._labeled_images()

    def looks_left(self, step: int, total_steps: int) -> int:
        """Number of looks after `step`, including the look after the last step."""
        every = resolved(self._config.monitor.every)
        return 0 if every == 0 or step >= total_steps else -(-total_steps // every) - step // every

    def look(self, progress: Progress) -> None:
        """Measures the method, and remembers and logs the values. All processes call it."""
        if self._config.monitor.every == 0:
            return
        outputs = [self._output(batch, progress) for batch in self._probe_batches()]
        features = torch.cat([output.features for output in outputs])
        statistics = collapse_statistics(features)
        self._history.append(statistics)
        self.latest = {
            **asdict(statistics),
            "alpha_req": alpha_req(features),
            **self._lidar(progress),
            "loss": float(torch.stack([output.loss for output in outputs]).mean()),
            **_trivial(outputs),
            **self._at_positions(outputs),
            **self._nearest_neighbors(),
        }
        self._log.write("monitor", progress.step, {"epoch": round(progress.epoch, 4), **self.latest})
        self._warn()

    def judged(self) -> Look:
        """Verdict on the looks so far: do they show signs of collapse?"""
        return judged(self._history)

    def judged_positions(self) -> PositionLook:
        """Verdict on the looks so far: does the run predict positions?"""
        return judged_positions(self._positions)

    def _at_positions(self, outputs: list[ProbeOutput]) -> dict[str, float]:
        """Remembers and returns what positions alone predict; empty if the method does not predict at positions."""
        statistics = _position_statistics(outputs)
        if statistics is None:
            return {}
        self._positions.append(statistics)
        return {**asdict(statistics), "cosine_gap": statistics.gap}

    def _warn(self) -> None:
        """Warns once if the run shows signs of collapse, and once if it predicts positions."""
        look, positions = self.judged(), self.judged_positions()
        found = {
            "collapse": look.words if look.collapsed else None,
            "positions": positions.words if positions.positions else None,
        }
        for sign, words in found.items():
            if words and sign not in self._warned:
                self._warned.add(sign)
                self._say(words)

    def _probe_batches(self) -> list[Batch]:
        """The fixed probe batch, as microbatches of uint8 on the CPU. It is drawn once, from seeds that training never uses."""
        if self._probe is None:
            config, seed = self._config, self._seed
            micro = min(config.optim.microbatch_size or config.optim.batch_size, config.monitor.images)
            number = config.monitor.images // micro * micro
            self._probe = draw_batches(config, self._inputs(), self._sampler, self._splits, number, micro, seed)
        return self._probe

    def _inputs(self) -> InputSpec:
        """The method's inputs with one context per image, so that runs with one and with several are measured alike."""
        return replace(self._method.inputs(), contexts=1)

    def _output(self, batch: Batch, progress: Progress) -> ProbeOutput:
        with autocast(self._device, self._precision):
            return self._method.probe(self._normalized(batch), progress)

    def _normalized(self, batch: Batch) -> Batch:
        return batch.to(self._device).normalized(self._config.data.pixel_mean, self._config.data.pixel_std)

    def _lidar(self, progress: Progress) -> dict[str, float]:
        """LiDAR of the predictions from different masks of the first probe images; empty without a predictor."""
        left = self._config.monitor.lidar_images if self._config.monitor.lidar_masks else 0
        groups: list[Float[Tensor, "B q D"]] = []
        for batch in self._probe_batches():
            predicted = self._predicted(_first(batch, left), progress) if left > 0 else []
            if not predicted:
                break
            groups.append(torch.stack(predicted, dim=1))
            left -= len(groups[-1])
        return {"lidar": lidar(torch.cat(groups))} if groups else {}

    def _predicted(self, batch: Batch, progress: Progress) -> list[Float[Tensor, "B D"]]:
        """Pooled predictions of the same views for each draw of masks. The draws are the same at every look."""
        inputs, ids = self._inputs(), batch.sample_ids.numpy()
        views = self._normalized(replace(batch, masks={}))
        predicted = []
        for draw in range(self._config.monitor.lidar_masks):
            # as in training, block sizes depend on the step; epoch 0 is taken by the masks of the probe batch itself
            masks = draw_masks(self._sampler, inputs, ids, seed=self._seed, epoch=1 + draw, step=draw, group=0)
            on_device = {name: mask.to(self._device) for name, mask in masks.items()}
            with autocast(self._device, self._precision):
                features = self._method.predicted_features(replace(views, masks=on_device), progress)
            if features is None:
                return []
            predicted.append(features)
        return predicted

    def _nearest_neighbors(self) -> dict[str, float]:
        images = self._labeled_images()
        if images is None:
            return {}
        train, test = self._features(images.train), self._features(images.test)
        accuracy = knn_accuracy(train, images.train_labels, test, images.test_labels, (_NEIGHBORS,))
        return {"knn": accuracy[_NEIGHBORS].value}

    def _labeled_images(self) -> "_LabeledImages | None":
        """The labeled images of the online k-NN, which are read once; None without it."""
        if self._labeled is None and self._config.monitor.knn and self._splits.can_test:
            self._labeled = _LabeledImages(self._config, self._splits)
        return self._labeled

    def _features(self, pixels: Tensor) -> Float[Tensor, "n D"]:
        encoder = self._method.exports()["encoder"]
        assert isinstance(encoder.config, EncoderConfig) and isinstance(encoder.module, VisionTransformer)
        return pooled_features(encoder.module, encoder.config, pixels, self._device, self._precision)


def _values(line: dict[str, Any]) -> dict[str, float]:
    """The measured values in a line of the log. Its null stands for a number that was not finite."""
    measured = {name: value for name, value in line.items() if name not in ("kind", "step", "epoch")}
    return {name: float("nan") if value is None else value for name, value in measured.items()}


class _LabeledImages:
    """A few labeled images of both splits, in the view of the evaluation."""

    def __init__(self, config: RunConfig, splits: Splits) -> None:
        splits = for_probes(splits)
        assert isinstance(splits.train, ListSource) and splits.test is not None
        number = config.monitor.knn_images
        self.train, self.train_labels = _take(splits.train, number, config)
        self.test, self.test_labels = _take(splits.test, number // 2, config)


def _take(source: ListSource, number: int, config: RunConfig) -> tuple[Tensor, Int[Tensor, " n"]]:
    batches = evaluation_batches(source, config.data.height_width(), 256, 0, max_images=number, seed=config.run.seed)
    taken = list(batches)
    labels = [batch.labels for batch in taken if batch.labels is not None]
    return torch.cat([batch.images for batch in taken]), torch.cat(labels)


def draw_batches(
    config: RunConfig, inputs: InputSpec, sampler: MaskSampler, splits: Splits, number: int, micro: int, seed: int
) -> list[Batch]:
    """At most `number` training images, in microbatches of `micro` images, with uint8 views on the CPU."""
    if isinstance(splits.train, ListSource):
        number = per_step = min(number, len(splits.train) // micro * micro)
    else:
        per_step = micro  # a stream may end earlier: then there are fewer microbatches
    plan = BatchPlan(batch_size=per_step, microbatch_size=micro)
    uncached = replace(config.data, cache="none")  # caching all images is not worth it for a few
    loader = TrainingLoader(splits.train, uncached, inputs, sampler, plan, seed, 0, torch.device("cpu"))
    batches = itertools.islice(loader.iterate(0, LoaderPosition(), number // per_step), number // micro)
    taken = list(itertools.takewhile(lambda batch: batch.next_position.epoch == 0, batches))
    loader.close()
    return taken


def _first(batch: Batch, number: int) -> Batch:
    """The first images of a batch, without its masks."""
    views = {name: view[:, :number] for name, view in batch.views.items()}
    return replace(batch, sample_ids=batch.sample_ids[:number], views=views, masks={})


def _trivial(outputs: list[ProbeOutput]) -> dict[str, float]:
    """The losses of the two trivial predictors, which ignore the image, if the method has targets at positions."""
    distance = outputs[0].distance
    targets = [output.targets for output in outputs if output.targets is not None]
    positions = [output.target_positions for output in outputs if output.target_positions is not None]
    if distance is None or not targets:
        return {}
    losses = trivial_losses(_one_row(targets), _one_row(positions), distance)
    return {"loss_mean_target": losses.mean_target, "loss_position_mean": losses.position_mean}


def _position_statistics(outputs: list[ProbeOutput]) -> PositionStatistics | None:
    """What positions alone predict, and what predictions say beyond it.

    None if the method does not predict at positions, or if microbatches of one image have no other image to compare with.
    """
    if any(len(output.features) == 1 for output in outputs):
        return None
    names = ("predictions", "targets", "other_targets", "target_positions")
    parts = [[getattr(output, name) for output in outputs] for name in names]
    if any(part is None for found in parts for part in found):
        return None
    return position_statistics(*(_one_row(found) for found in parts))


def _one_row(parts: list[Tensor]) -> Tensor:
    """The rows of all parts as one image with one block.

    The microbatches of a stream belong to several steps, whose blocks have several sizes.
    """
    return torch.cat([part.flatten(0, 2) for part in parts])[None, None]
