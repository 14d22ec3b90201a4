"""Nearest neighbors of a few images as a picture: the choice of images, their features, and the sheet.

Patch features have twice the resolution of the encoder's grid.
"""

import warnings
from dataclasses import dataclass
from itertools import islice, product

import numpy as np
import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor
from torch.nn import functional as F

from openjepa.data.passes import EvalBatch, evaluation_batches
from openjepa.data.source import ListSource, ShardRecord, ShardSource, open_splits
from openjepa.engine.device import encode, pooled_features
from openjepa.models.vit import VisionTransformer
from openjepa.refusals import Refusal
from openjepa.seeds import derive_samples
from openjepa.settings.models import EncoderConfig
from openjepa.settings.run import RunConfig
from openjepa.types import Skipped
from openjepa.visualization.sheet import BAD, GOOD, GRAY, Sheet, enlarge, printable


@dataclass(frozen=True)
class Pictured:
    """Images in their test view. Scenes are shown whole, so that all objects counted by the label are visible."""

    images: UInt8[Tensor, "n 3 h w"]
    labels: Int[np.ndarray, " n"] | None
    class_names: tuple[str, ...] | None
    indices: Int[np.ndarray, " n"]
    """Indices of the images in their split."""
    split: str
    """training or test"""


class _Records(ListSource):
    """The first records of a stream."""

    def __init__(self, records: list[ShardRecord], class_names: tuple[str, ...] | None) -> None:
        self._records = records
        self.class_names = class_names
        labels = [record.label for record in records if record.label is not None]
        self.labels = np.array(labels, dtype=np.int64) if records and len(labels) == len(records) else None

    def __len__(self) -> int:
        return len(self._records)

    def read(self, index: int) -> bytes:
        return self._records[index].read()

    def name(self, index: int) -> str:
        return self._records[index].name


def choose_images(
    config: RunConfig, size: tuple[int, int], num_shown: int, num_gallery: int, seed: int
) -> tuple[Pictured, Pictured]:
    """`num_shown` images of the test split, and a gallery of training images.

    If there is no test split, both are training images. Raises Refusal if none of the images to show can be read.
    """
    splits = open_splits(config.data, config.run.seed)
    for what in splits.not_used:
        warnings.warn(what, UserWarning, stacklevel=2)
    train = splits.train if isinstance(splits.train, ListSource) else _head(splits.train, num_gallery)
    fit = "squash" if splits.extra_labels else "crop"  # as in the tasks of `openjepa evaluate`
    gallery = _read(train, size, num_gallery, seed, "training", fit)
    source, split = (splits.test, "test") if splits.test is not None and len(splits.test) > 0 else (train, "training")
    several = _read(source, size, 8 * num_shown, seed + 1, split, fit)
    if len(several.images) == 0:
        raise Refusal(f"none of the {split} images that were drawn can be read: check data.path")
    return _varied(several, num_shown, seed), gallery


def _head(source: ShardSource, num_records: int) -> _Records:
    records = (record.to_send() for shard in range(len(source)) for record in source.read_shard(shard))
    return _Records(list(islice(records, num_records)), source.class_names)


def _read(source: ListSource, size: tuple[int, int], number: int, seed: int, split: str, fit: str) -> Pictured:
    unreadable: list[Skipped] = []
    batches: list[EvalBatch] = list(
        evaluation_batches(source, size, 256, 0, fit=fit, max_images=number, seed=seed, unreadable=unreadable)
    )
    images = torch.cat([batch.images for batch in batches]) if batches else torch.empty((0, 3, *size), dtype=torch.uint8)
    labels = [batch.labels for batch in batches if batch.labels is not None]
    return Pictured(
        images=images,
        labels=torch.cat(labels).numpy() if batches and len(labels) == len(batches) else None,
        class_names=source.class_names,
        indices=torch.cat([batch.indices for batch in batches]).numpy() if batches else np.empty(0, np.int64),
        split=split,
    )


def _varied(several: Pictured, number: int, seed: int) -> Pictured:
    """`number` of the images in random order, with one image of each class before a second of any class."""
    order = np.argsort(derive_samples("subset", seed, np.array([3]), several.indices), kind="stable")
    if several.labels is not None:
        seen: dict[int, int] = {}
        rounds = []
        for index in order:
            label = int(several.labels[index])
            rounds.append(seen.get(label, 0))
            seen[label] = rounds[-1] + 1
        order = order[np.argsort(rounds, kind="stable")]
    order = order[:number]
    labels = None if several.labels is None else several.labels[order]
    return Pictured(several.images[torch.from_numpy(order)], labels, several.class_names, several.indices[order], several.split)


def unit_features(
    encoder: VisionTransformer, config: EncoderConfig, images: UInt8[torch.Tensor, "B 3 h w"], device: torch.device
) -> Float[np.ndarray, "B D"]:
    """One unit vector per image."""
    return F.normalize(pooled_features(encoder, config, images, device, "auto"), dim=1).numpy()


@torch.inference_mode()
def dense_features(
    encoder: VisionTransformer, config: EncoderConfig, images: UInt8[torch.Tensor, "B 3 h w"], device: torch.device
) -> Float[np.ndarray, "B H2 W2 D"]:
    """Patch features on a grid twice as fine, from four passes over images shifted by a quarter of a patch in both directions.

    A larger input would not give a finer map, because positions beyond the training grid mean nothing to the encoder.
    """
    quarter = max(1, config.patch_size // 4)
    height, width = images.shape[-2:]
    rows, columns = config.grid((height, width))
    dense = np.empty((len(images), 2 * rows, 2 * columns, config.width), dtype=np.float32)

    def encode_shifted(pixels: Float[torch.Tensor, "B 3 h w"]) -> None:
        padded = F.pad(pixels, (quarter, quarter, quarter, quarter), mode="replicate")
        for down, right in product((0, 1), (0, 1)):
            top, left = 2 * quarter * down, 2 * quarter * right
            patches = encoder(padded[..., top : top + height, left : left + width].contiguous()).patches
            dense[:, down::2, right::2] = patches.float().cpu().numpy().reshape(len(images), rows, columns, -1)

    encode(encode_shifted, images, config, device, "auto")
    return dense


def similarity_map(features: Float[np.ndarray, "H W D"], row: int, column: int) -> Float[np.ndarray, "H W"]:
    """Cosine similarity of one patch to all patches of its image, after the mean of the image's patches is subtracted."""
    centered = features - features.mean(axis=(0, 1))
    units = centered / np.maximum(np.linalg.norm(centered, axis=-1, keepdims=True), 1e-12)
    return units @ units[row, column]  # type: ignore[no-any-return]


def nearest_of_gallery(
    queries: Float[np.ndarray, "Q D"], gallery: Float[np.ndarray, "G D"], num: int, skip: list[int | None]
) -> list[list[int]]:
    """Gallery indices of the `num` nearest neighbors (largest dot product) of each query. Leaves out its index in `skip`."""
    similarities = queries @ gallery.T
    for row, own in enumerate(skip):
        if own is not None:
            similarities[row, own] = -np.inf
    order = np.argsort(-similarities, axis=1, kind="stable")
    return [[int(index) for index in row[:num]] for row in order]


NUM_NEIGHBORS = 5
_HEAD, _LABEL, _GAP, _GROUP_GAP = 44, 30, 6, 34

Features = dict[str, tuple[Float[np.ndarray, "Q D"], Float[np.ndarray, "G D"]]]
"""Unit vectors of the queries and of the gallery, by encoder."""


def neighbor_sheet(
    queries: Pictured, gallery: Pictured, features: Features, cell: tuple[int, int]
) -> tuple[Sheet, dict[str, list[list[int]]]]:
    """A sheet with one row per query: the query, then its neighbors by each encoder. Also returns the gallery indices."""
    num_queries = len(next(iter(features.values()))[0])
    own = _own_places(queries, gallery, num_queries)
    found = {name: nearest_of_gallery(both[0], both[1], NUM_NEIGHBORS, own) for name, both in features.items()}
    height, width = round(cell[0] * 0.78), round(cell[1] * 0.78)
    labeled = _LABEL if queries.labels is not None else 0
    group = NUM_NEIGHBORS * (width + _GAP) - _GAP
    lefts = [width + _GROUP_GAP + index * (group + _GROUP_GAP) for index in range(len(found))]
    sheet = Sheet(lefts[-1] + group, _HEAD + num_queries * (height + labeled + 12) - 12)
    sheet.words("query", 0, 18, size=22, bold=True)
    for left, name in zip(lefts, found, strict=True):
        sheet.words(f"nearest, {name} encoder", left, 18, size=22, bold=True)
    for row in range(num_queries):
        top = _HEAD + row * (height + labeled + 12)
        _thumbnail(sheet, queries, row, (0, top), (height, width), None)
        for left, name in zip(lefts, found, strict=True):
            for place, index in enumerate(found[name][row]):
                corner = (left + place * (width + _GAP), top)
                _thumbnail(sheet, gallery, index, corner, (height, width), _is_right(queries, row, gallery, index))
    return sheet, found


def purity(queries: Pictured, gallery: Pictured, found: dict[str, list[list[int]]]) -> dict[str, float]:
    """Share of the neighbors that have their query's class, by encoder; empty if there are no labels."""
    shares = {}
    for name, rows in found.items():
        right = [_is_right(queries, row, gallery, index) for row, indices in enumerate(rows) for index in indices]
        known = [answer for answer in right if answer is not None]
        if known:
            shares[name] = sum(known) / len(known)
    return shares


def _own_places(queries: Pictured, gallery: Pictured, num_queries: int) -> list[int | None]:
    """The gallery index of each query itself; None if the gallery does not hold it."""
    if queries.split != gallery.split:
        return [None] * num_queries
    places = {int(index): place for place, index in enumerate(gallery.indices)}
    return [places.get(int(index)) for index in queries.indices[:num_queries]]


def _is_right(queries: Pictured, row: int, gallery: Pictured, index: int) -> bool | None:
    if queries.labels is None or gallery.labels is None:
        return None
    return bool(queries.labels[row] == gallery.labels[index])


def _thumbnail(
    sheet: Sheet, pictured: Pictured, index: int, corner: tuple[int, int], size: tuple[int, int], right: bool | None
) -> None:
    pixels: UInt8[np.ndarray, "h w 3"] = pictured.images[index].permute(1, 2, 0).numpy()
    sheet.image(enlarge(pixels, size), *corner)
    if right is not None:
        sheet.frame(*corner, size[1], size[0], GOOD if right else BAD, 5)
    if pictured.labels is not None:
        label = int(pictured.labels[index])
        name = pictured.class_names[label] if pictured.class_names and label < len(pictured.class_names) else str(label)
        words = printable(name)
        words = words if len(words) <= 16 else words[:15] + "…"
        color = GOOD if right else GRAY
        sheet.words(words, corner[0] + size[1] / 2, corner[1] + size[0] + 15, size=16, align="center", color=color)
