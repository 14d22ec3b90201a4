"""Quality of features without labels, for a table beside the probes: necessary, not sufficient, signs.

alpha-ReQ near 1 is best. RankMe and LiDAR (`openjepa.evaluation.label_free`) only compare runs of one method.

LiDAR of an encoder: of its features of random crops, and of what a run's predictor makes of different masks.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, Shaped, UInt8
from numpy.typing import NDArray
from torch import Tensor

from openjepa.config import load_run_config
from openjepa.data.decode import decode_image
from openjepa.data.loading.workers import choose_workers, parallel_map
from openjepa.data.source import ListSource
from openjepa.data.views import NUMBERS_PER_VIEW, crop_and_resize, crop_box, evaluation_view
from openjepa.engine.device import autocast, pooled_features, resolve_device
from openjepa.masks import MASKS
from openjepa.measures.rank import alpha_req, lidar, rankme
from openjepa.models.vit import VisionTransformer
from openjepa.seeds import derive, derive_samples, uniforms
from openjepa.settings.evaluation import EvaluationSettings
from openjepa.settings.models import EncoderConfig
from openjepa.types import BlockMasks, ViewSpec, normalize
from openjepa.weights.native import load_encoder, load_predictor

MAX_IMAGES = 25_600
"""Images that the measures look at (RankMe's paper: 25,600). At width 1280 either takes 6 s on one core."""


def feature_measures(kinds: Mapping[str, Shaped[Tensor, "n D"]]) -> dict[str, float]:
    """Measures of the first kind of features (the last layer), on at most `MAX_IMAGES` rows, evenly spread.

    Those that are not defined (alpha-ReQ of fewer than five directions, numbers that are not finite) are left out. Features
    kept in bf16 have a RankMe up to 1.3 % higher (generated spectra of width 768), and an alpha-ReQ that is the same to 0.001.
    """
    rows = next(iter(kinds.values()))
    if len(rows) > MAX_IMAGES:  # not the first ones: images in class folders come class by class
        rows = rows[torch.arange(MAX_IMAGES, device=rows.device) * len(rows) // MAX_IMAGES]
    rows = rows if rows.is_floating_point() else rows.float()  # pixels; no measure depends on their scale
    measures = {"RankMe": rankme(rows), "alpha-ReQ": alpha_req(rows)}
    return {name: value for name, value in measures.items() if math.isfinite(value)}


CROPS = "LiDAR (crops)"
MASKED = "LiDAR (masks)"
CHUNK = 16
"""Images read and encoded at a time, each with all its crops."""

Predict = Callable[[UInt8[Tensor, "B 3 h w"], NDArray[np.int64]], Float[Tensor, "B q D"]]


def lidar_measures(
    source: ListSource,
    fit: str,
    encoders: Mapping[str, VisionTransformer],
    config: EncoderConfig,
    size: tuple[int, int],
    predictor: Path | None,
    settings: EvaluationSettings,
) -> dict[str, dict[str, float]]:
    """LiDAR of each encoder by its name in tables, on `lidar_images` images of `source`; empty where the setting is None.

    `LiDAR (crops)`: an image's views are random crops of 30 to 100 % of its area (what I-JEPA trains on), encoded and pooled.
    `LiDAR (masks)`: of `encoder` alone and only where its run left a `predictor`: its outputs for different masks of the test
    view, drawn as in training, averaged over blocks and patches. Costs `lidar_images` x `lidar_views` more passes of every
    encoder, and as many of context encoder and predictor. Unreadable images are left out; empty where fewer than two remain.
    """
    if settings.lidar_images is None:
        return {}
    device = resolve_device(settings.device)
    for network in encoders.values():
        network.eval().requires_grad_(False).to(device)
    predict = None if predictor is None else _masked_predictions(predictor, encoders["encoder"], config, size, settings)
    reader = _ViewReader(source, fit, ViewSpec(size), settings.lidar_views, settings.seed)
    ids = _some_images(len(source), settings.lidar_images, settings.seed)
    chunks = (ids[start : start + CHUNK] for start in range(0, len(ids), CHUNK))
    groups: dict[tuple[str, str], list[Tensor]] = {}
    for views, used in parallel_map(reader, chunks, choose_workers(settings.workers)):
        if not len(used):
            continue
        for name, network in encoders.items():
            crops = pooled_features(network, config, views[:, 1:].flatten(0, 1), device, settings.precision)
            groups.setdefault((name, CROPS), []).append(crops.view(len(used), -1, config.width))
        if predict is not None:
            groups.setdefault(("encoder", MASKED), []).append(predict(views[:, 0], used))
    return _measured(groups)


def _measured(groups: Mapping[tuple[str, str], list[Float[Tensor, "B q D"]]]) -> dict[str, dict[str, float]]:
    measures: dict[str, dict[str, float]] = {}
    for (name, title), parts in groups.items():
        joined = torch.cat(parts)
        if len(joined) > 1:
            measures.setdefault(name, {})[title] = lidar(joined)
    return measures


def _some_images(total: int, number: int, seed: int) -> NDArray[np.int64]:
    """`number` images drawn with the seed, in their order; all where there are not more."""
    keys = derive_samples("subset", seed, np.array([3]), np.arange(total))
    chosen: NDArray[np.int64] = np.sort(np.argsort(keys, kind="stable")[:number])
    return chosen


@dataclass(frozen=True)
class _ViewReader:
    """Decodes some images; the worker's part. Of each the test view, then crops that depend on seed and image alone."""

    source: ListSource
    fit: str
    view: ViewSpec
    num_crops: int
    seed: int

    def __call__(self, indices: NDArray[np.int64]) -> tuple[UInt8[Tensor, "n views 3 h w"], NDArray[np.int64]]:
        """The views, and the images that could be read."""
        views = torch.empty((len(indices), 1 + self.num_crops, 3, *self.view.size), dtype=torch.uint8)
        used: list[int] = []
        for index in indices.tolist():
            try:
                pixels = torch.from_numpy(decode_image(self.source.read(index)))
            except (ValueError, OSError):
                continue
            self._fill(views[len(used)], pixels, index)
            used.append(index)
        return views[: len(used)], np.array(used, dtype=np.int64)

    def _fill(self, views: UInt8[Tensor, "views 3 h w"], pixels: UInt8[Tensor, "H W 3"], index: int) -> None:
        views[0] = evaluation_view(pixels, self.view.size, self.fit)
        seeds = derive_samples("crop", self.seed, np.arange(self.num_crops), np.array([index]))
        for place, numbers in enumerate(uniforms(seeds, NUMBERS_PER_VIEW).tolist()):
            box = crop_box(numbers, pixels.shape[0], pixels.shape[1], self.view)
            views[1 + place] = crop_and_resize(pixels, box, self.view.size, self.view.interpolation)


def _masked_predictions(
    folder: Path, encoder: VisionTransformer, config: EncoderConfig, size: tuple[int, int], settings: EvaluationSettings
) -> Predict | None:
    """Images and their numbers -> pooled predictions under `lidar_views` masks; None where no run says how they are drawn.

    The context is encoded by the run's context encoder where it was exported, as the predictor is used to, else by `encoder`,
    its moving average.
    """
    run, device = folder.parent, resolve_device(settings.device)
    if not (run / "config.yaml").is_file():
        return None
    masks = load_run_config(run).masks
    sampler = MASKS[masks.strategy].load()(masks, config.grid(size))
    predictor = load_predictor(folder)[0].to(device)
    context_folder = run / "context_encoder"
    context_encoder = load_encoder(context_folder)[0].to(device) if context_folder.is_dir() else encoder

    @torch.inference_mode()
    def predict(images: UInt8[Tensor, "B 3 h w"], ids: NDArray[np.int64]) -> Float[Tensor, "B q D"]:
        pixels = normalize(images.to(device), config.pixel_mean, config.pixel_std)
        predicted = []
        for draw in range(settings.lidar_views):
            seeds = derive_samples("mask", settings.seed, np.array([draw]), ids)
            drawn = sampler(seeds, derive("group", settings.seed, draw, 0), draw).to(device)
            assert isinstance(drawn, BlockMasks), "only blocks have a predictor"
            with autocast(device, settings.precision):
                context = context_encoder(pixels, drawn.context, drawn.context_valid).patches
                outputs = predictor(context, drawn.context, drawn.targets, drawn.grid, drawn.context_valid)  # [B, M, T, D]
            predicted.append(outputs.mean(dim=(1, 2)).cpu())
        return torch.stack(predicted, dim=1)

    return predict
