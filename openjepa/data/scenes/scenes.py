"""Scenes in CLEVR's format: CLEVR v1.0 itself, a folder that `openjepa data scenes` rendered, or the small packaged set.

There are two labelings, as in the VISSL and VTAB benchmarks that I-JEPA's tables follow. `count` is Clevr/Count: 3 to 10
objects, eight classes. `distance` is Clevr/Dist: depth of the object nearest to the camera, six bins. The official test split
has no annotations, so probes are tested on the validation split. If instance masks lie beside the pictures, the pixels are
labeled too, with the `shape` and `color` of the object they show (maps.py).
"""

from bisect import bisect_left
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from openjepa.config import readable_object
from openjepa.data.folders.folder import FolderSource
from openjepa.data.folders.image_lists import check_listed
from openjepa.data.scenes.maps import PACKAGED_SCENES, PackedMasks, folder_masks, read_annotations, read_pictures, scene_maps
from openjepa.data.source import LabelMaps, ListSource, Splits
from openjepa.refusals import Refusal, few
from openjepa.settings.sources import ScenesSettings

Scene = Mapping[str, Any]
MIN_OBJECTS, MAX_OBJECTS = 3, 10
DISTANCE_THRESHOLDS = (8.0, 8.5, 9.0, 9.5, 10.0, 100.0)
"""Upper ends of the bins of Clevr/Dist. Each end belongs to its bin."""
CLASS_NAMES = {
    "count": tuple(f"{count} objects" for count in range(MIN_OBJECTS, MAX_OBJECTS + 1)),
    "distance": ("up to 8", "8 to 8.5", "8.5 to 9", "9 to 9.5", "9.5 to 10", "over 10"),
}
LAYOUT = "images/{train,val}/*.png and scenes/CLEVR_{train,val}_scenes.json"


def count_label(scene: Scene) -> int:
    """Clevr/Count: the number of objects minus 3. Raises Refusal if there are not 3 to 10 objects."""
    count = len(scene["objects"])
    if not MIN_OBJECTS <= count <= MAX_OBJECTS:
        raise Refusal(f"{count} objects, not {MIN_OBJECTS} to {MAX_OBJECTS}")
    return count - MIN_OBJECTS


def distance_label(scene: Scene) -> int:
    """Clevr/Dist: index of the first threshold that is at least the smallest depth (`pixel_coords[2]`) of an object.

    Raises Refusal if that depth is beyond the last threshold.
    """
    nearest = min(item["pixel_coords"][2] for item in scene["objects"])
    label = bisect_left(DISTANCE_THRESHOLDS, nearest)
    if label == len(DISTANCE_THRESHOLDS):
        raise Refusal(f"the nearest object is at depth {nearest}, beyond {DISTANCE_THRESHOLDS[-1]}")
    return label


LABELS: dict[str, Callable[[Scene], int]] = {"count": count_label, "distance": distance_label}


def open_scenes(settings: ScenesSettings, seed: int) -> Splits:
    """The scenes below `settings.path`, or the packaged ones if it is None. `settings.label` chooses the labels of the sources.

    Nothing is random, so `seed` is not used. Raises Refusal if a file or all pictures are missing, or an annotation is
    unusable.
    """
    del seed
    if settings.label not in LABELS:
        raise Refusal(f"data.label={settings.label!r} is unknown: use one of {', '.join(LABELS)}")
    if settings.path is None:
        return _open_packaged(settings.label)
    root = Path(settings.path).expanduser()
    files = {split: _annotation_file(root, split) for split in ("train", "val")}
    train, val = (_open_split(root, file, split, settings.label) for split, file in files.items())
    return _splits(train, val, f"Scenes of {root.resolve().name}")


def open_scenes_below(root: Path) -> Splits:
    """The scenes in the folder `root`, labeled by their number of objects."""
    return open_scenes(ScenesSettings(path=str(root)), 0)


@dataclass(frozen=True)
class _OpenSplit:
    """One split with all of its labels and label maps."""

    source: ListSource
    labels: dict[str, NDArray[np.int64]]
    maps: dict[str, LabelMaps]


def _open_packaged(label: str) -> Splits:
    opened = []
    for split in ("train", "val"):
        scenes = read_annotations(PACKAGED_SCENES, split)
        labels = _labels(scenes, PACKAGED_SCENES)
        names = [scene["image_filename"] for scene in scenes]
        source = read_pictures(PACKAGED_SCENES, split, names, labels[label], CLASS_NAMES[label])
        opened.append(_OpenSplit(source, labels, scene_maps(source, PackedMasks(PACKAGED_SCENES, split), scenes)))
    return _splits(opened[0], opened[1], "Packaged rendered scenes", "64 x 64 pixels")


def _open_split(root: Path, file: Path, split: str, label: str) -> _OpenSplit:
    """Opens one split of a folder."""
    scenes, names = _read_annotations(root, file, split)
    labels = _labels(scenes, file)
    source = FolderSource(root, [f"images/{split}/{name}" for name in names], labels[label], CLASS_NAMES[label])
    masks = folder_masks(root, split, names)
    return _OpenSplit(source, labels, {} if masks is None else scene_maps(source, masks, scenes))


def _splits(train: _OpenSplit, test: _OpenSplit, name: str, pixels: str = "") -> Splits:
    extra = {name: (train.labels[name], test.labels[name]) for name in LABELS}
    maps = {name: (train.maps[name], test.maps[name]) for name in train.maps}
    what = ", ".join(filter(None, (name, pixels)))
    what = f"{what}: {len(train.source):,} training and {len(test.source):,} test images"
    return Splits(train.source, test.source, what, name, pixels, extra_labels=extra, label_maps=maps)


def _annotation_file(root: Path, split: str) -> Path:
    """The annotation file of a split. Raises Refusal if it or the pictures are missing, and says what is there instead."""
    file = root / "scenes" / f"CLEVR_{split}_scenes.json"
    if file.is_file() and (root / "images" / split).is_dir():
        return file
    missing = file if not file.is_file() else root / "images" / split
    if not root.is_dir():
        found = "the folder does not exist"
    elif (root / "CLEVR_v1.0").is_dir():
        found = f"did you mean {root / 'CLEVR_v1.0'}?"
    else:
        found = f"it holds: {few(sorted(entry.name for entry in root.iterdir())) or 'nothing'}"
    raise Refusal(
        f"data.path={str(root)!r} has no {missing.relative_to(root)} ({found}). Expected: {LAYOUT}, as CLEVR v1.0 unpacks "
        "and as `openjepa data scenes` renders; leave data.path out for the packaged scenes."
    )


def _read_annotations(root: Path, file: Path, split: str) -> tuple[list[dict[str, Any]], list[str]]:
    """The scenes of a split, and the names of their pictures. Some of the pictures may be absent."""
    try:
        scenes = (readable_object(file) or {})["scenes"]
        names = [str(scene["image_filename"]) for scene in scenes]
    except (KeyError, TypeError) as error:
        raise Refusal(f'{file} is no CLEVR file: expected {{"scenes": [{{"image_filename", "objects"}}, ...]}}') from error
    check_listed(root / "images" / split, names, file)
    return scenes, names


def _labels(scenes: list[dict[str, Any]], file: Path) -> dict[str, NDArray[np.int64]]:
    return {name: np.array([_label(rule, scene, file) for scene in scenes], np.int64) for name, rule in LABELS.items()}


def _label(rule: Callable[[Scene], int], scene: Scene, file: Path) -> int:
    try:
        return rule(scene)
    except (ValueError, KeyError, IndexError, TypeError) as error:
        name = scene.get("image_filename")
        raise Refusal(f"{file}: scene {name!r} cannot be labeled ({type(error).__name__}: {error})") from error
