"""LiDAR of an encoder, computed from features of random crops and from a run's predictions under different masks."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, UInt8
from numpy.typing import NDArray
from torch import Tensor

from openjepa.config import load_run_config
from openjepa.data.decode import decode_image
from openjepa.data.loading.workers import parallel_map
from openjepa.data.passes import choose_workers
from openjepa.data.source import ListSource
from openjepa.data.views import NUMBERS_PER_VIEW, crop_and_resize, crop_box, evaluation_view
from openjepa.engine.device import encode, pooled_features, resolve_device
from openjepa.masks import MASKS
from openjepa.measures.features import lidar
from openjepa.models.vit import VisionTransformer
from openjepa.seeds import derive, derive_samples, uniforms
from openjepa.settings.evaluation import EvaluationSettings
from openjepa.settings.models import EncoderConfig
from openjepa.types import BlockMasks, ViewSpec
from openjepa.weights.native import load_encoder, load_predictor

CROPS = "LiDAR (crops)"
MASKED = "LiDAR (masks)"
CHUNK = 16
"""Number of images read and encoded at a time, each with all its crops."""

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
    """LiDAR of each encoder on `lidar_images` images of `source`, by encoder and name of the measure.

    `LiDAR (crops)`: an image's views are random crops of 30 to 100 % of its area (as I-JEPA trains on), encoded and pooled.
    `LiDAR (masks)`: an image's views are the predictor's outputs for different masks of the test view. The masks are drawn as
    in training, and the outputs are averaged over blocks and patches. It exists only for `encoder`, and only if its run kept
    a `predictor`. Each measure costs `lidar_images` x `lidar_views` more forward passes. Unreadable images are left out. The
    result is empty if `lidar_images` is None or if fewer than two images remain.
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
    """Indices of `number` images drawn with `seed`, ascending; all images if `total` is not larger."""
    keys = derive_samples("subset", seed, np.array([3]), np.arange(total))
    chosen: NDArray[np.int64] = np.sort(np.argsort(keys, kind="stable")[:number])
    return chosen


@dataclass(frozen=True)
class _ViewReader:
    """Decodes images in a worker. Makes each image's test view and crops, which depend only on the seed and the image."""

    source: ListSource
    fit: str
    view: ViewSpec
    num_crops: int
    seed: int

    def __call__(self, indices: NDArray[np.int64]) -> tuple[UInt8[Tensor, "n views 3 h w"], NDArray[np.int64]]:
        """The views, and the indices of the images that could be read."""
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
    """Makes the function from images and their indices to pooled predictions under `lidar_views` masks.

    Returns None if no run folder says how masks are drawn. The context is encoded by the run's context encoder, as in training,
    or by `encoder`, its moving average, if the context encoder was not exported.
    """
    run, device = folder.parent, resolve_device(settings.device)
    if not (run / "config.yaml").is_file():
        return None
    masks = load_run_config(run).masks
    sampler = MASKS[masks.strategy].load()(masks, config.grid(size))
    predictor = load_predictor(folder)[0].to(device)
    context_folder = run / "context_encoder"
    context_encoder = load_encoder(context_folder)[0].to(device) if context_folder.is_dir() else encoder

    def predicted_blocks(drawn: BlockMasks, pixels: Float[Tensor, "B 3 h w"]) -> Float[Tensor, "B M T D"]:
        context = context_encoder(pixels, drawn.context, drawn.context_valid).patches
        outputs: Tensor = predictor(context, drawn.context, drawn.targets, drawn.grid, drawn.context_valid)
        return outputs

    @torch.inference_mode()
    def predict(images: UInt8[Tensor, "B 3 h w"], ids: NDArray[np.int64]) -> Float[Tensor, "B q D"]:
        predicted = []
        for draw in range(settings.lidar_views):
            seeds = derive_samples("mask", settings.seed, np.array([draw]), ids)
            drawn = sampler(seeds, derive("group", settings.seed, draw, 0), draw).to(device)
            assert isinstance(drawn, BlockMasks), "only blocks have a predictor"
            outputs = encode(partial(predicted_blocks, drawn), images, config, device, settings.precision)
            predicted.append(outputs.mean(dim=(1, 2)).cpu())
        return torch.stack(predicted, dim=1)

    return predict
