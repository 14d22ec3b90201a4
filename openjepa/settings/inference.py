"""Settings of the commands that use a trained encoder: `embed`, `search` and `convert`."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro

from openjepa.refusals import Refusal
from openjepa.settings.fields import AT_LEAST_1, FINITE, NOT_NEGATIVE, SHARE, Range


@dataclass(frozen=True, kw_only=True)
class EmbedSettings:
    """Settings of `openjepa embed`: the features and images, and how features are computed."""

    features: Literal["pooled", "patches"] = "pooled"
    """`pooled`: one vector per image; `patches`: one vector per patch."""
    dtype: Literal["float16", "float32"] = "float16"
    """Type of the stored features."""
    splits: Literal["all", "train", "test"] = "all"
    """Images to embed. `all`: every image; nothing is held out of a folder without train/ and test/."""
    pooling: Literal["own", "average", "class_token"] = "own"
    """How one vector per image is made: as the encoder's method is evaluated (`own`), the average of the patches, or the class
    token."""
    view: Literal["crop", "squash"] = "crop"
    """`crop`: short side to 256/224 of the size, center crop, as in the evaluations; `squash`: the whole image, resized."""
    image_size: Annotated[int | tuple[int, int] | None, AT_LEAST_1] = None
    """Size of the images for the encoder, in pixels. None: the encoder's training size."""
    encoder: Literal["target", "context"] = "target"
    """Which encoder to use, if a run or a file holds both (paper: the target encoder)."""
    heads: Annotated[int | None, AT_LEAST_1] = None
    """Attention heads of published weights. Needed only if neither the file nor the width tells."""
    part_images: Annotated[int, AT_LEAST_1] = 1024
    """Images of one part. A process computes a part at a time, and loses at most one if it is killed. Streams: a shard."""
    batch_size: Annotated[int, AT_LEAST_1] = 256
    """Images passed to the encoder at a time."""
    max_skipped: Annotated[float, SHARE] = 0.05
    """Share of unreadable images above which the command fails at the end. Unreadable images are listed and have no row."""
    device: str = "auto"
    """`auto`, `cpu`, `cuda`, `cuda:N` or `mps`. `auto` and `cuda` under torchrun: the GPU of the process's LOCAL_RANK."""
    precision: Literal["auto", "bf16", "fp32"] = "auto"
    """Precision of the encoder's forward. `auto`: bf16 if the hardware has it."""
    threads: Annotated[int | None, AT_LEAST_1] = None
    """Threads on the CPU. None: all cores; under torchrun the process's share of them."""
    workers: Annotated[int | None, NOT_NEGATIVE] = None
    """Extra processes that decode images. 0: this process decodes, in turn with the encoder. None: 0 on a CPU, where the
    encoder leaves no core idle, else one per core except one. On a CPU, use some if images come slowly, as from a network."""
    seed: Annotated[int | None, NOT_NEGATIVE] = None
    """Seed of the held-out images and of those that `data.max_images` draws. None: the run's, else 0."""


CENTERED_FROM = 100
"""Least number of images for which `center=auto` means yes. The mean of fewer depends too much on each image."""
PLACES_CENTERED_FROM = 5
"""The same for regions in a table of patches. Uncentered patches are found by their place instead of by what they show."""
LISTED_OUTLIERS = 100
"""Number of images that `--outliers` lists if no number is given."""
COSINE = Range(-1, 1, "a cosine, from -1 to 1")


@dataclass(frozen=True, kw_only=True)
class SearchSettings:
    """Settings of `openjepa search`: the table, the queries, and where to write the answers."""

    table: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="FEATURES")] = Path()
    """The .npy or .parquet file that `openjepa embed` wrote."""
    image: tuple[Path, ...] = ()
    """Image files to search for."""
    row: tuple[str, ...] = ()
    """Images of the table to search for, by row number, or by path as lists and CSV files name them."""
    region: Annotated[tuple[float, float, float, float] | None, FINITE] = None
    """Search only for this part of a single image: LEFT TOP WIDTH HEIGHT, as fractions, or in pixels if any is above 1."""
    top: Annotated[int, AT_LEAST_1] = 10
    """Number of neighbors of each query."""
    keep_self: bool = False
    """With --row: the image itself may be an answer too."""
    duplicates: bool = False
    """Find groups of near-duplicates, and which image of each to keep."""
    threshold: Annotated[float, COSINE] = 0.98
    """Least cosine of near-duplicates (docs/search.md: how to choose it)."""
    max_pairs: Annotated[int, AT_LEAST_1] = 1_000_000
    """Most pairs of near-duplicates. If there are more, the most similar are taken."""
    outliers: Annotated[int, NOT_NEGATIVE] = 0
    """List this number of images that are farthest from their nearest images; without a number, 100."""
    neighbors: Annotated[int, AT_LEAST_1] = 10
    """With --outliers: number of nearest images over which the distance is averaged."""
    center: Literal["auto", "yes", "no"] = "auto"
    """Subtract the table's mean from all features. `auto`: for neighbors, from 100 images on (regions in patches: from 5)."""
    approximate: bool = False
    """Search with an index, made once beside the table: much faster, finds most neighbors. Needs the extra `search`."""
    output: Path | None = None
    """Picture (.png) of the neighbors; with --duplicates or --outliers the folder for lists and pictures. None: neighbors.png,
    or the working directory."""
    picture: bool = True
    """Draw the images. Needs the data to be where it was, and the extra `report`."""
    json: bool = False
    """Print one line of JSON per answer instead of tables."""
    subject: str | None = None
    """Where the encoder that made the table is now, if it was moved."""
    data_path: str | None = None
    """Where the images of the table are now, if they were moved."""
    device: str = "auto"
    """Device of the encoder and of the comparison of all pairs: `auto`, `cpu`, `cuda`, `cuda:N` or `mps`."""
    threads: Annotated[int | None, AT_LEAST_1] = None
    """Threads on the CPU. None: all cores."""

    def cleans(self) -> bool:
        """True if lists for cleaning the data are asked for, not neighbors."""
        return self.duplicates or self.outliers != 0

    def centers(self, num_images: int, kind: str = "pooled") -> bool:
        """True if the mean is subtracted in a table of `num_images` images. `kind`: `pooled` or `patches`."""
        least = PLACES_CENTERED_FROM if kind == "patches" and self.region is not None else CENTERED_FROM
        return self.center == "yes" or (self.center == "auto" and not self.cleans() and num_images >= least)

    def check(self) -> None:
        """Raises Refusal if nothing is searched for, or if a setting has no effect beside the others."""
        asks = bool(self.image or self.row)
        if not asks and not self.cleans():
            raise Refusal("what is looked for? Give --image PATH or --row N, or --duplicates or --outliers")
        if asks and self.cleans():
            raise Refusal(
                "--image and --row ask for neighbors, --duplicates and --outliers go through all images: one at a time"
            )
        if self.region is not None and len(self.image) + len(self.row) != 1:
            raise Refusal("--region is a part of one image: give exactly one --image or --row with it")
        self._check_effects()

    def _check_effects(self) -> None:
        defaults = SearchSettings()
        useless = {
            "top": self.cleans(),
            "keep_self": not self.row,
            "approximate": self.cleans(),
            "subject": not self.image and self.region is None,
            "threshold": not self.duplicates,
            "max_pairs": not self.duplicates,
            "neighbors": not self.outliers,
        }
        needs = {"keep_self": "--row", "subject": "--image or --region", "neighbors": "--outliers"}
        needs |= {"threshold": "--duplicates", "max_pairs": "--duplicates"}
        for name, is_useless in useless.items():
            if is_useless and getattr(self, name) != getattr(defaults, name):
                wanted = needs.get(name, "--image or --row")
                raise Refusal(f"--{name.replace('_', '-')} has no effect without {wanted}")


CONVERTED_MARK = "conversion.json"
"""File in every converted folder that records its format and its origin. Not every format has a config.json."""

OutputFormat = Literal["transformers", "timm", "onnx", "official", "safetensors"]


@dataclass(frozen=True, kw_only=True)
class ConvertSettings:
    """Settings of `openjepa convert`: the weights to convert, and the format to write."""

    subject: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="RUN|ENCODER")] = Path()
    """Run folder, encoder folder, file of published weights, Hugging Face or timm folder, or name on the Hub."""
    to: OutputFormat | None = None
    """Format to write: `transformers`, `timm`, `onnx`, `official` or `safetensors` (see above)."""
    output: Path | None = None
    """Folder to write. None: `<name>-<format>` in the working directory."""
    overwrite: bool = False
    """Replace the folder if an earlier `convert` wrote it."""
    dtype: Literal["float32", "float16", "bfloat16"] = "float32"
    """Type of the stored weights. Half precision halves the size and rounds the weights."""
    encoder: Literal["target", "context"] = "target"
    """Which encoder to convert, if a run or a file holds both (paper: the target encoder)."""
    image_size: Annotated[int | tuple[int, int] | None, AT_LEAST_1] = None
    """Image size, in pixels, for which positions are written, because other programs would stretch sin-cos positions. None: the
    training size."""
    heads: Annotated[int | None, AT_LEAST_1] = None
    """Attention heads of published weights. Needed only if neither the file nor the width tells."""
    license: str | None = None
    """License of the weights for the model card, as an identifier of the Hugging Face Hub, e.g. `apache-2.0` or `cc-by-nc-4.0`.
    None: the card says that no license is stated."""
