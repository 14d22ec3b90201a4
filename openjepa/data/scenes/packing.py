"""Many small rendered scenes in one file: making and reading the packaged set.

The file is in numpy's npz format. For each split it holds the JPEG files of the pictures one after another (`pictures`) with
their ends (`ends`), the instance masks (`masks`), and CLEVR's annotations as JSON (`scenes`). The JPEG headers have much in
common. Compressing the file removes this redundancy.
"""

import json
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import simplejpeg
from numpy.typing import NDArray
from PIL import Image

from openjepa.data.scenes.layout import SPLITS
from openjepa.data.source import JoinedBytes, ListSource
from openjepa.system.json_files import read_object, value_in

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
