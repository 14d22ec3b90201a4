"""Settings of the data sources: one dataclass each, all derived from DataSettings."""

from dataclasses import dataclass
from typing import Annotated, Literal

from openjepa.settings.fields import (
    AT_LEAST_1,
    FINITE,
    NOT_NEGATIVE,
    POSITIVE,
    SHARE,
    SHARE_ABOVE_0,
    SHARE_BELOW_1,
    SMALLEST_FIRST,
    Entry,
)
from openjepa.settings.models import height_and_width


@dataclass(frozen=True, kw_only=True)
class DataSettings:
    """Common to every data source. Abstract: use the dataclass of a source."""

    source: str
    """Kind of data source."""
    image_size: Annotated[int | tuple[int, int], AT_LEAST_1] = 224
    """Side, or height and width, of the training crops in pixels; the patch size must divide it."""
    crop_scale: Annotated[tuple[float, float], SHARE_ABOVE_0, SMALLEST_FIRST] = (0.3, 1.0)
    """Smallest and largest area of a random crop, as a fraction of the image (released configurations: 0.3 to 1)."""
    crop_aspect: Annotated[tuple[float, float], POSITIVE, SMALLEST_FIRST] = (3 / 4, 4 / 3)
    """Smallest and largest width / height of a random crop."""
    interpolation: Literal["bilinear", "bicubic"] = "bilinear"
    """Antialiased filter of the random crops (released code: bilinear)."""
    horizontal_flip: bool = False
    """Mirror half of the training images (released code: no)."""
    pixel_mean: Annotated[tuple[float, float, float], FINITE] = (0.485, 0.456, 0.406)
    """Mean of the RGB channels in [0, 1] (ImageNet's)."""
    pixel_std: Annotated[tuple[float, float, float], POSITIVE] = (0.229, 0.224, 0.225)
    """Standard deviation of the RGB channels (ImageNet's)."""
    cache: Literal["none", "memory", "device"] = "none"
    """Decode every image once and keep it in memory (workers crop it) or on the device (which crops it)."""
    cache_size: Annotated[int | None, AT_LEAST_1] = None
    """Short side, in pixels, to which cached images are reduced. None: as much as the smallest crop needs, which is
    `image_size` / sqrt(smallest `crop_scale`), or the same for a method's small crops if that is more."""
    max_skipped: Annotated[float, SHARE] = 0.05
    """Share of unreadable images above which the run stops."""
    max_images: Annotated[int | None, AT_LEAST_1] = None
    """Use only this many training images, drawn with the seed. None: all."""

    def height_width(self) -> tuple[int, int]:
        """The training crop as (height, width) in pixels."""
        return height_and_width(self.image_size)


@dataclass(frozen=True, kw_only=True)
class FolderSettings(DataSettings):
    """A folder of images at any depth: flat, in class folders, with or without train/ and val/ (or test/)."""

    source: Literal["folder"] = "folder"
    path: str = ""
    """Folder of images."""
    test_fraction: Annotated[float, SHARE_BELOW_1] = 0.2
    """Share of each class held out for the probes, if the folder has no test split."""


@dataclass(frozen=True, kw_only=True)
class HuggingFaceSettings(DataSettings):
    """Tables and tars: local Parquet files, WebDataset tars, data sets on the Hub, streams of shards."""

    source: Literal["huggingface"] = "huggingface"
    path: str = ""
    """A file, folder or glob of Parquet files or tars, also in an object store (s3://bucket/shards), or a name on the Hub:
    owner/name, or hf:owner/name."""
    subset: str | None = None
    """Configuration of a data set on the Hub, if it has several."""
    train_split: str = "train"
    """Split used for pretraining and for training the probes."""
    test_split: str | None = None
    """Split on which the probes are tested. None: the first of test, validation, val that has labels."""
    test_fraction: Annotated[float, SHARE_BELOW_1] = 0.2
    """Share of each class held out for the probes, if there is no labeled test split (lists only)."""
    image_column: str | None = None
    """Column with images, or with paths of image files beside the table; for tars a suffix. None: the only such column."""
    label_column: str | None = None
    """Column with labels; for tars a suffix or json.KEY. None: the only class-label column, else `label`, `labels` or `cls` if
    it holds numbers or categories, else no labels."""
    streaming: bool = False
    """Read shards in order without an index (needs `optim.total_steps`). On the command line, turns `cache` off."""
    window: Annotated[int, AT_LEAST_1] = 4096
    """Streaming: samples that are shuffled together."""


def is_without_path(data: DataSettings) -> bool:
    """True if the settings of a source that needs a path have none."""
    return isinstance(data, FolderSettings | HuggingFaceSettings) and not data.path


@dataclass(frozen=True, kw_only=True)
class ScenesSettings(DataSettings):
    """Scenes in CLEVR's format with the labels count (3 to 10 objects) and distance (six bins of the nearest object)."""

    source: Literal["scenes"] = "scenes"
    path: str | None = None
    """A folder of CLEVR v1.0, or one that `openjepa data scenes` rendered. None: the small packaged set."""
    label: Literal["count", "distance"] = "count"
    """Label to use: `count` for Clevr/Count, `distance` for Clevr/Dist."""


@dataclass(frozen=True, kw_only=True)
class PackSettings:
    """How `openjepa data pack` writes a folder of images as shards."""

    format: Literal["tar", "parquet"] = "tar"
    """Kind of the shards: WebDataset tars, or Parquet files."""
    shard_mb: Annotated[float, POSITIVE] = 256.0
    """Size of a shard in megabytes (10^6 bytes). The shards of a split all have about the same size, at most about this one."""
    shard_images: Annotated[int | None, AT_LEAST_1] = None
    """Largest number of images in a shard, instead of a size."""
    shuffle: bool = True
    """Mix the images of each split over its shards. Off: keep the order of the folder, class by class."""
    seed: Annotated[int, NOT_NEGATIVE] = 0
    """Seed of the mixing."""
    decode: bool = True
    """Decode every image, to leave out those that training cannot use. Off: faster, and leaves out only unreadable files."""
    max_skipped: Annotated[float, SHARE] = 0.05
    """Share of a shard's images that may be left out. More of them stop the command, if they are more than 10."""


ONLY_TRAINING = {
    "image_size",
    "crop_scale",
    "crop_aspect",
    "interpolation",
    "horizontal_flip",
    "pixel_mean",
    "pixel_std",
    "cache",
    "cache_size",
    "max_skipped",
    "window",
}
"""Settings of a data source that affect only training."""


SOURCES: dict[str, Entry[DataSettings]] = {
    "folder": Entry(FolderSettings, "openjepa.data.folders.folder:open_folder"),
    "huggingface": Entry(HuggingFaceSettings, "openjepa.data.tables.huggingface:open_huggingface"),
    "scenes": Entry(ScenesSettings, "openjepa.data.scenes.scenes:open_scenes"),
}
"""Settings of each source and the function that opens it, by `data.source`."""
