"""Labels of pixels in the view that is evaluated, and what each patch of that view shows. Pure numpy."""

import numpy as np
from jaxtyping import Int, UInt8
from numpy.typing import NDArray

from openjepa.data.source import LabelMaps
from openjepa.data.views import central_crop
from openjepa.refusals import Refusal


def label_view(labels: UInt8[np.ndarray, "h w"], size: tuple[int, int], fit: str) -> UInt8[np.ndarray, "oh ow"]:
    """The labels of the pixels of `evaluation_view` with the same `size` (height, width) and `fit` (`crop` or `squash`).

    Nearest neighbor: each pixel of the view takes the label at its center in the label map.
    """
    height, width = labels.shape
    resized, offset = (size, (0, 0)) if fit == "squash" else central_crop(height, width, size)
    rows, columns = (
        # center (i + 1/2) / resized of the map, in whole numbers
        (2 * np.arange(start, start + length) + 1) * whole // (2 * full)
        for start, length, whole, full in zip(offset, size, (height, width), resized, strict=True)
    )
    return np.asarray(labels[rows[:, None], columns[None, :]])


def patch_histograms(view: UInt8[np.ndarray, "h w"], patch_size: int, num_classes: int) -> Int[np.ndarray, "N classes"]:
    """Pixels of each class in every patch, patches in raster order. IGNORED pixels are not counted.

    Raises Refusal where a label is neither a class nor IGNORED.
    """
    height, width = view.shape
    rows, columns = height // patch_size, width // patch_size
    cut = view.reshape(rows, patch_size, columns, patch_size).transpose(0, 2, 1, 3).reshape(rows * columns, -1)
    counted = cut != LabelMaps.IGNORED
    if counted.any() and cut[counted].max() >= num_classes:
        raise Refusal(f"a label map holds class {cut[counted].max()}; its {num_classes} classes are 0 to {num_classes - 1}")
    # one bin for each pair of patch and class
    bins = (np.arange(len(cut))[:, None] * num_classes + cut)[counted]
    return np.bincount(bins, minlength=len(cut) * num_classes).reshape(len(cut), num_classes)


def patch_labels(histograms: Int[np.ndarray, "*lead classes"]) -> NDArray[np.int64]:
    """The class that covers most of a patch, of equally large ones the first; IGNORED where no pixel counts [*lead].

    IGNORED pixels have no vote: a patch with one labeled pixel has its class.
    """
    return np.where(histograms.any(axis=-1), histograms.argmax(axis=-1), LabelMaps.IGNORED)
