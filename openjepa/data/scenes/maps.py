"""Label maps of scenes: the shape or color of the object that each pixel shows; and the packaged set, which holds such masks.

The maps are made of instance masks and annotations. The masks come from the packaged set, or from a folder that `openjepa data
scenes` rendered. Their values are 0 for the ground and i + 1 if object i is seen. CLEVR v1.0 itself has no masks.

The packaged set holds many small rendered scenes in one file, in numpy's npz format. For each split it holds the JPEG files of
the pictures one after another (`pictures`) with their ends (`ends`), the instance masks (`masks`), and CLEVR's annotations as
JSON (`scenes`). The JPEG headers have much in common. Compressing the file removes this redundancy.
"""

import io
import json
import os
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from functools import lru_cache
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import simplejpeg
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from openjepa.config import read_object, value_in
from openjepa.data.decode import image_size
from openjepa.data.folders.folder import FolderSource
from openjepa.data.scenes.layout import COLORS, SHAPES, SPLITS
from openjepa.data.source import JoinedBytes, LabelMaps, ListSource
from openjepa.refusals import Refusal, examples

MAP_CLASSES: dict[str, tuple[str, ...]] = {"shape": ("ground", *SHAPES), "color": ("ground", *COLORS)}
"""Classes of each map. The key is the property of the annotated objects that the map shows."""


class InstanceMasks(ABC):
    """The object that each pixel of a scene shows. Picklable."""

    @abstractmethod
    def read(self, index: int) -> NDArray[np.uint8]:
        """The mask of a scene [height, width]. Raises Refusal if no usable mask exists."""


class PackedMasks(InstanceMasks):
    """Masks of a packed file. The file is read when the first mask is needed, once per process."""

    def __init__(self, packed: Path, split: str) -> None:
        """`split` is train or val."""
        self._packed = packed
        self._split = split

    def read(self, index: int) -> NDArray[np.uint8]:
        """The mask of a scene."""
        return np.asarray(_unpacked(self._packed, self._split)[index])


@lru_cache(maxsize=4)
def _unpacked(packed: Path, split: str) -> NDArray[np.uint8]:
    return read_masks(packed, split)


class FolderMasks(InstanceMasks):
    """Masks as image files of one channel, which are read one by one."""

    def __init__(self, root: Path, files: list[str]) -> None:
        """`files` are paths below `root`, one per scene."""
        self._root = root
        self._files = FolderSource(root, files)

    def read(self, index: int) -> NDArray[np.uint8]:
        """The mask of a scene [height, width]. Raises Refusal if it cannot be read or has not one channel of 8 bits."""
        where = f"the mask {self._root / self._files.name(index)}"
        try:
            with Image.open(io.BytesIO(self._files.read(index))) as image:
                mask = np.array(image)
        except (UnidentifiedImageError, OSError) as error:
            raise Refusal(f"{where} cannot be read ({error}): delete it and run `openjepa data scenes` again") from error
        if mask.ndim != 2 or mask.dtype != np.uint8:
            raise Refusal(f"{where} has the shape {mask.shape} of {mask.dtype}; expected: one channel of 8 bits")
        return mask


class SceneMaps(LabelMaps):
    """The class of the object that each pixel shows. Class 0 is the ground."""

    def __init__(
        self,
        source: ListSource,
        masks: InstanceMasks,
        table: NDArray[np.uint8],
        class_names: tuple[str, ...],
        rows: NDArray[np.int64] | None = None,
    ) -> None:
        """`source` and `masks` hold the pictures and masks of all scenes of a split. `rows` selects scenes; None selects all.

        `table` [scenes, values] is the class of each value of a mask. It is IGNORED beyond the number of objects.
        """
        self._source = source
        self._masks = masks
        self._table = table
        self._rows = np.arange(len(table)) if rows is None else rows
        self.class_names = class_names

    def read(self, index: int) -> NDArray[np.uint8]:
        """Classes of the pixels of a picture [height, width].

        Raises Refusal if the mask cannot be read, has another size than the picture, or shows an object that the annotations
        lack.
        """
        row = int(self._rows[index])
        mask, size = self._masks.read(row), image_size(self._source.read(row))
        if mask.shape != size:
            raise Refusal(
                f"{self._source.name(row)}: its mask has {mask.shape[0]} x {mask.shape[1]} pixels, the picture "
                f"{size[0]} x {size[1]} (height x width); masks must be rendered at the size of the pictures"
            )
        table = self._table[row]
        num_objects = int((table != self.IGNORED).sum()) - 1
        if mask.max() > num_objects:
            raise Refusal(
                f"{self._source.name(row)}: its mask shows object number {mask.max()}, the annotations have {num_objects}; "
                "masks and annotations are not of the same rendering"
            )
        return np.asarray(table[mask])

    def select(self, indices: NDArray[np.int64]) -> "SceneMaps":
        """The maps of the pictures `indices`, in that order."""
        return SceneMaps(self._source, self._masks, self._table, self.class_names, self._rows[indices])


def folder_masks(root: Path, split: str, names: Sequence[str]) -> FolderMasks | None:
    """The masks of a split below `root`. None if the folder has no masks at all, like CLEVR v1.0.

    `names` are the names of the pictures. Raises Refusal if the masks of some pictures are missing.
    """
    if not (root / "masks").is_dir():
        return None
    folder = root / "masks" / split
    present = {entry.name for entry in os.scandir(folder)} if folder.is_dir() else set()
    files = [f"{Path(name).stem}.png" for name in names]
    if absent := [file for file in files if file not in present]:
        raise Refusal(
            f"{folder} lacks the masks of {len(absent):,} of {len(files):,} pictures, for example {examples(absent)}: "
            f"run `openjepa data scenes` into the folder again, or remove {root / 'masks'} to do without label maps"
        )
    return FolderMasks(root, [f"masks/{split}/{file}" for file in files])


def scene_maps(source: ListSource, masks: InstanceMasks, scenes: Sequence[Mapping[str, Any]]) -> dict[str, LabelMaps]:
    """The maps of a split by name. Raises Refusal if an annotated object lacks a property or has an unknown one."""
    return {name: SceneMaps(source, masks, _table(scenes, name), classes) for name, classes in MAP_CLASSES.items()}


def _table(scenes: Sequence[Mapping[str, Any]], name: str) -> NDArray[np.uint8]:
    """Class of each value of a mask [scenes, values]. It is IGNORED beyond the objects of a scene."""
    numbers = {word: number for number, word in enumerate(MAP_CLASSES[name])}
    width = 1 + max(len(scene["objects"]) for scene in scenes)
    # a mask of 8 bits may hold any value; `read` checks for values beyond the table
    table = np.full((len(scenes), width), LabelMaps.IGNORED, np.uint8)
    table[:, 0] = 0
    for row, scene in enumerate(scenes):
        words = [item.get(name) for item in scene["objects"]]
        if unknown := [word for word in words if word not in numbers or word == "ground"]:
            raise Refusal(
                f"scene {scene.get('image_filename')!r} has an object whose {name} is {unknown[0]!r}; known: "
                + ", ".join(MAP_CLASSES[name][1:])
            )
        table[row, 1 : 1 + len(words)] = [numbers[word] for word in words]
    return table


# ------------------------------------------------------------------------------------------------------------- the packaged set


PACKAGED_SCENES = Path(__file__).parent / "packaged" / "scenes_64.npz"


class PackedPictures(ListSource):
    """JPEG files that lie one after another in memory."""

    def __init__(
        self,
        pictures: NDArray[np.uint8],
        ends: NDArray[np.int64],
        names: list[str],
        labels: NDArray[np.int64] | None = None,
        class_names: tuple[str, ...] | None = None,
    ) -> None:
        """`ends` [n] is the position in `pictures` where each file ends."""
        self._pictures = JoinedBytes(pictures, ends)
        self._names = np.array(names)
        self.labels = labels
        self.class_names = class_names

    def __len__(self) -> int:
        """Number of pictures."""
        return len(self._pictures)

    def read(self, index: int) -> bytes:
        """The JPEG file of a picture."""
        return self._pictures[index]

    def name(self, index: int) -> str:
        """CLEVR's name of a picture."""
        return str(self._names[index])


def read_annotations(packed: Path, split: str) -> list[dict[str, Any]]:
    """CLEVR's annotations of a split: one dictionary per scene, in order."""
    scenes: list[dict[str, Any]] = value_in(_member(packed, f"{split}_scenes").tobytes().decode(), packed)
    return scenes


def read_masks(packed: Path, split: str) -> NDArray[np.uint8]:
    """Instance masks [scenes, height, width] of a split: 0 for the ground, i + 1 if object i is seen."""
    return np.asarray(_member(packed, f"{split}_masks"))


def read_pictures(
    packed: Path, split: str, names: list[str], labels: NDArray[np.int64], class_names: tuple[str, ...]
) -> PackedPictures:
    """The pictures of a split as a source, with the given names and labels."""
    return PackedPictures(_member(packed, f"{split}_pictures"), _member(packed, f"{split}_ends"), names, labels, class_names)


def _member(packed: Path, name: str) -> NDArray[Any]:
    with np.load(packed, allow_pickle=False) as archive:
        return np.asarray(archive[name])


def pack_scenes(rendered: Path, packed: Path, quality: int = 92) -> None:
    """Packs a folder that `render_scenes` filled into one file. Pictures become JPEGs with full color resolution."""
    members: dict[str, NDArray[Any]] = {}
    for split in SPLITS:
        scenes = (read_object(rendered / "scenes" / f"CLEVR_{split}_scenes.json") or {})["scenes"]
        files, masks = [], []
        for scene in scenes:
            picture = Image.open(rendered / "images" / split / scene["image_filename"]).convert("RGB")
            files.append(simplejpeg.encode_jpeg(np.array(picture), quality=quality, colorsubsampling="444"))
            masks.append(np.array(Image.open(rendered / "masks" / split / scene["image_filename"])))
            scene["image_filename"] = str(Path(scene["image_filename"]).with_suffix(".jpg"))
        annotations = json.dumps(scenes, separators=(",", ":")).encode()
        members |= {
            f"{split}_pictures": np.frombuffer(b"".join(files), np.uint8),
            f"{split}_ends": np.cumsum([len(file) for file in files], dtype=np.int64),
            f"{split}_masks": np.stack(masks),
            f"{split}_scenes": np.frombuffer(annotations, np.uint8),
        }
    buffer = BytesIO()
    np.savez_compressed(buffer, **members)  # type: ignore[arg-type]  # the stub takes all keywords for allow_pickle
    packed.write_bytes(buffer.getvalue())
