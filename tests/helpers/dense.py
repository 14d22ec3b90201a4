"""Images whose patches have one color each, that of their class, for the probes of patches."""

import io
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from openjepa.data.source import LabelMaps, ListSource, Splits
from openjepa.evaluation.probes.dense import evaluate_dense
from openjepa.evaluation.protocol import ImageProbe, LabeledImages, ProtocolResult
from openjepa.evaluation.task_run import Subjects, evaluate_task
from openjepa.models.vit import build_encoder
from openjepa.records import Result
from openjepa.settings.evaluation import EvaluationSettings
from openjepa.settings.models import EncoderConfig

CONFIG = EncoderConfig(width=24, depth=2, heads=2, mlp_ratio=2.0, patch_size=4, image_size=(16, 24), class_token=True)
SETTINGS = EvaluationSettings(
    device="cpu", precision="fp32", workers=0, feature_batch_size=7, neighbors=(1, 3), weight_decays=(1e-4, 1e-2)
)
CPU = torch.device("cpu")
COLORS = np.array([[200, 30, 30], [30, 200, 30], [30, 30, 200]], np.uint8)


def results(name: str, given: ImageProbe, settings: EvaluationSettings) -> tuple[ProtocolResult, ...]:
    """The results of one of the two probes, asked for alone."""
    found = evaluate_dense(given, replace(settings, protocols=(name,)))
    assert all(result.protocol == name for result in found)
    return found


PROBES = {name: partial(results, name) for name in ("dense-linear", "dense-knn")}


class ListOfMaps(LabelMaps):
    class_names = ("first", "second", "third")

    def __init__(self, maps: NDArray[np.uint8]) -> None:
        self.maps = maps

    def read(self, index: int) -> NDArray[np.uint8]:
        return self.maps[index]

    def select(self, indices: NDArray[np.int64]) -> "ListOfMaps":
        return ListOfMaps(self.maps[indices])


class ListOfImages(ListSource):
    def __init__(self, images: NDArray[np.uint8]) -> None:
        self.images = images

    def __len__(self) -> int:
        return len(self.images)

    def read(self, index: int) -> bytes:
        buffer = io.BytesIO()
        Image.fromarray(self.images[index]).save(buffer, format="png")
        return buffer.getvalue()

    def name(self, index: int) -> str:
        return str(index)


def side(number: int, seed: int, informative: bool = True, weights: Sequence[float] = (0.6, 0.2, 0.2)) -> LabeledImages:
    """Images of 16 x 24 whose patches have one color each: that of their class, or a random one."""
    rng = np.random.default_rng(seed)
    classes = rng.choice(3, (number, 4, 6), p=weights)
    colors = classes if informative else rng.integers(0, 3, classes.shape)
    large = np.repeat(np.repeat(colors, 4, axis=1), 4, axis=2)
    pixels = COLORS[large] + rng.integers(0, 20, (*large.shape, 3)).astype(np.uint8)
    maps = np.repeat(np.repeat(classes, 4, axis=1), 4, axis=2).astype(np.uint8)
    return LabeledImages(ListOfImages(pixels), np.zeros(number, np.int64), ListOfMaps(maps))


def probe(train: LabeledImages, test: LabeledImages, raw_pixels: bool = True) -> ImageProbe:
    torch.manual_seed(0)
    encoder = build_encoder(CONFIG).eval().requires_grad_(False)
    return ImageProbe(encoder, CONFIG, train, test, "squash", (16, 24), CPU, "fp32", raw_pixels=raw_pixels)


def scenes(number: int) -> Splits:
    train, test = side(number, 1), side(20, 2)
    assert train.maps is not None and test.maps is not None
    return Splits(train.source, test.source, label_maps={"shape": (train.maps, test.maps)})


def evaluated(splits: Splits, folder: Path, **changed: Any) -> Result:
    encoder = probe(side(2, 1), side(2, 2)).encoder
    subjects = Subjects({"encoder": encoder, "untrained": encoder}, CONFIG, True, (16, 24), folder)
    return evaluate_task(Result("scene_shapes", "", "", "", ""), splits, subjects, replace(SETTINGS, **changed))
