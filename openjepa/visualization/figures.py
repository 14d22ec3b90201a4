"""Draws the pictures of a run: masks, feature maps, similarity of patches, nearest neighbors before and after training."""

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, UInt8

from openjepa.config import load_run_config
from openjepa.engine.device import resolve_device
from openjepa.masks import MASKS
from openjepa.models.vit import VisionTransformer
from openjepa.refusals import Refusal
from openjepa.settings.models import EncoderConfig
from openjepa.settings.run import RunConfig
from openjepa.system.console import command
from openjepa.system.shared_files import whole_file
from openjepa.visualization.mask_pictures import mask_figure
from openjepa.visualization.neighbors import (
    Pictured,
    choose_images,
    dense_features,
    neighbor_sheet,
    purity,
    similarity_map,
    unit_features,
)
from openjepa.visualization.sheet import SheetLayout, draw_table, enlarge, heat, pca_colors, undrawn_words
from openjepa.visualization.view_pictures import changes_views, read_views, view_sheet
from openjepa.weights.native import load_encoder

CELL = 208
NUM_QUERIES = 6
GALLERY_IMAGES = 2000
MASK_CAPTIONS = {
    "blocks": "What the method sees and predicts. Below each image the context in full color and the target blocks outlined; "
    "the context encoder sees nothing else. Right: how often each patch is context, and how often it lies in a target.",
    "tokens": "Which patches are masked. Below each image the visible patches in full color and the masked ones outlined. "
    "Right: how often each patch is visible, and how often it is masked.",
}
BEFORE, AFTER = "untrained", "trained"
START = "start"
"""Name of the encoder before training if the run started from weights; it replaces `untrained`."""


@dataclass(frozen=True)
class FigureEntry:
    """One entry of figures.json."""

    title: str
    caption: str
    file: str
    alt: str


@dataclass(frozen=True)
class FigureSubject:
    """The inputs of the pictures: the run's encoders and the images."""

    config: RunConfig
    encoders: dict[str, tuple[VisionTransformer, EncoderConfig]]
    """Encoders by name: `trained`, and `untrained` or, if the run started from weights and kept them, `start`."""
    shown: Pictured
    gallery: Pictured
    device: torch.device
    seed: int

    @property
    def cell(self) -> tuple[int, int]:
        """Height and width of an image in a picture, in pixels."""
        height, width = self.shown.images.shape[-2:]
        return max(1, round(CELL * min(1.0, height / width))), max(1, round(CELL * min(1.0, width / height)))


def visualize_run(run: Path, num_images: int = 8, seed: int = 0, device: str = "auto") -> list[Path]:
    """Writes `<run>/figures/*.png` and their list `figures.json`. Returns the paths of the pictures.

    Raises Refusal if the folder has no trained encoder, if the data is gone, or if matplotlib is missing.
    """
    if not 1 <= num_images <= 24:
        raise Refusal(f"num_images={num_images} is not between 1 and 24")
    run = Path(run)
    if not (run / "encoder" / "config.json").exists():
        training = command("openjepa", "train", "--config", run / "config.yaml")
        raise Refusal(f"run={str(run)!r} has no encoder/ yet: train it first ({training})")
    subject = _open(run, num_images, seed, resolve_device(device))
    folder = run / "figures"
    folder.mkdir(exist_ok=True)
    makers: tuple[Callable[[FigureSubject, Path], FigureEntry | None], ...] = (
        _views,
        _masks,
        _components,
        _similarity,
        _neighbors,
    )
    entries = [entry for make in makers if (entry := make(subject, folder)) is not None]
    listed = {"figures": [asdict(entry) for entry in entries]}
    with whole_file(folder / "figures.json") as file:
        file.write_text(json.dumps(listed, indent=2) + "\n", encoding="utf-8")
    return [folder / entry.file for entry in entries]


def _open(run: Path, num_images: int, seed: int, device: torch.device) -> FigureSubject:
    config = load_run_config(run)
    encoders = {}
    before = BEFORE if config.run.init is None else START
    for name, folder in ((before, run / "encoder_initial"), (AFTER, run / "encoder")):
        if (folder / "config.json").exists():
            encoder, settings = load_encoder(folder)
            encoders[name] = (encoder.to(device), settings)
    size = encoders[AFTER][1].image_size
    shown, gallery = choose_images(config, size, num_images, GALLERY_IMAGES, seed)
    return FigureSubject(config, encoders, shown, gallery, device, seed)


def _views(subject: FigureSubject, folder: Path) -> FigureEntry | None:
    views = read_views(folder.parent)
    if not changes_views(views):
        return None
    view_sheet(subject.config, views, subject.shown.images.shape[0], subject.seed).save(folder / "views.png")
    count = sum(view.count for view in views.values())
    caption = (
        f"What the method sees of each training image: {count} crop{'s' if count > 1 else ''} as the loader makes them"
        f"{', their colors changed' if any(view.colors for view in views.values()) else ''}. On top the whole image."
    )
    return FigureEntry("Views", caption, "views.png", "Images above their crops as training sees them")


def _masks(subject: FigureSubject, folder: Path) -> FigureEntry | None:
    config = subject.config
    if config.masks.kind == "none":
        return None
    grid = subject.encoders[AFTER][1].grid()
    sampler = MASKS[config.masks.strategy].load()(config.masks, grid)
    mask_figure(sampler, folder / "masks.png", _pixels(subject)[:8], subject.seed)
    caption = f"{MASK_CAPTIONS[config.masks.kind]} {sampler.name}, {grid[0]} x {grid[1]} patches."
    return FigureEntry("Masks", caption, "masks.png", "Images, the same images with their masks, and two coverage maps")


def _components(subject: FigureSubject, folder: Path) -> FigureEntry | None:
    rows = {"image": [enlarge(image, subject.cell) for image in _pixels(subject)]}
    for name, features in _dense(subject).items():
        rows[name] = [enlarge(colors, subject.cell, smooth=False) for colors in pca_colors(features)]
    draw_table(rows, subject.cell).save(folder / "pca.png")
    caption = (
        "The first three principal components of all patch features shown, as red, green and blue, each encoder with its own. "
        "Once an encoder has learned, like content has like colors; an untrained one mostly shows brightness and position. "
        f"{_about_start(subject)}Twice as fine as the patch grid, by shifting the images."
    )
    return FigureEntry("Patch features", caption, "pca.png", "Images above maps of patch features before and after training")


def _about_start(subject: FigureSubject) -> str:
    return "Start: the weights that the run began from. " if START in subject.encoders else ""


def _similarity(subject: FigureSubject, folder: Path) -> FigureEntry | None:
    dense = _dense(subject)
    cell = subject.cell
    points = [_most_distinct(features) for features in dense[AFTER]]
    rows = {"image": [enlarge(image, cell) for image in _pixels(subject)]}
    for name, features in dense.items():
        maps = [similarity_map(image, *point) for image, point in zip(features, points, strict=True)]
        rows[name] = [enlarge(heat((similarity + 0.2) / 1.2), cell, smooth=False) for similarity in maps]
    sheet = draw_table(rows, cell)
    layout = SheetLayout(cell)
    height, width = cell[0] / dense[AFTER].shape[1], cell[1] / dense[AFTER].shape[2]
    for row in range(len(rows)):
        for column, (down, right) in enumerate(points):
            place = layout.x(column) + (right - 0.5) * width, layout.y(row) + (down - 0.5) * height
            sheet.frame(*place, 2 * width, 2 * height, "white", 4)
    sheet.save(folder / "similarity.png")
    caption = (
        "Cosine similarity of the patch in the white frame to all patches of its image, after the image's mean is taken out: "
        "light 1, dark -0.2 or less. The patch is the one that is farthest from the mean in the trained encoder."
    )
    return FigureEntry("Similarity to one patch", caption, "similarity.png", "Heat maps of the similarity to a marked patch")


def _most_distinct(features: Float[np.ndarray, "H W D"]) -> tuple[int, int]:
    """Row and column of the patch farthest from the mean. Patches at the border are left out."""
    distance = np.linalg.norm(features - features.mean(axis=(0, 1)), axis=-1)
    inner = distance[1:-1, 1:-1] if min(distance.shape) > 2 else distance
    row, column = np.unravel_index(int(inner.argmax()), inner.shape)
    edge = int(inner.shape != distance.shape)
    return int(row) + edge, int(column) + edge


def _neighbors(subject: FigureSubject, folder: Path) -> FigureEntry | None:
    if len(subject.gallery.images) < 8:
        return None
    queries = subject.shown.images[:NUM_QUERIES]
    features = {
        name: (
            unit_features(encoder, settings, queries, subject.device),
            unit_features(encoder, settings, subject.gallery.images, subject.device),
        )
        for name, (encoder, settings) in subject.encoders.items()
    }
    sheet, found = neighbor_sheet(subject.shown, subject.gallery, features, subject.cell)
    sheet.save(folder / "neighbors.png")
    number, split = len(subject.gallery.images), subject.gallery.split
    caption = f"The most similar of {number:,} {split} images, by the cosine of pooled features."
    shares = purity(subject.shown, subject.gallery, found)
    if shares:
        words = ", ".join(f"{name} {share:.0%}" for name, share in shares.items())
        caption += f" Green: the query's class, red: another. Right among those shown: {words}."
    if sheet.undrawn:
        caption += f" Boxes: {undrawn_words(sheet.undrawn)}."
    return FigureEntry(
        "Nearest neighbors", caption, "neighbors.png", "Query images with their nearest neighbors before and after training"
    )


def _pixels(subject: FigureSubject) -> UInt8[np.ndarray, "n h w 3"]:
    return subject.shown.images.permute(0, 2, 3, 1).contiguous().numpy()


def _dense(subject: FigureSubject) -> dict[str, Float[np.ndarray, "n H W D"]]:
    return {
        name: dense_features(encoder, settings, subject.shown.images, subject.device)
        for name, (encoder, settings) in subject.encoders.items()
    }
