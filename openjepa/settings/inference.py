"""Settings of the commands that use a trained encoder: `embed`, `search` and `convert`."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro

from openjepa.refusals import Refusal
from openjepa.settings.ranges import AT_LEAST_1, FINITE, NOT_NEGATIVE, SHARE, Range


@dataclass(frozen=True, kw_only=True)
class EmbedSettings:
    """Which features of which images, and how they are computed."""

    features: Literal["pooled", "patches"] = "pooled"
    """One vector per image, or one for every patch of its grid."""
    dtype: Literal["float16", "float32"] = "float16"
    """How features are stored."""
    splits: Literal["all", "train", "test"] = "all"
    """Which images. `all`: every image there is; nothing is held out of a folder without train/ and test/."""
    pooling: Literal["own", "average", "class_token"] = "own"
    """What one vector per image is: what the encoder's method evaluates (`own`), the average of its patches, or its class
    token."""
    view: Literal["crop", "squash"] = "crop"
    """`crop`: short side to 256/224 of the size, center crop, as in the evaluations; `squash`: the whole image, resized."""
    image_size: Annotated[int | tuple[int, int] | None, AT_LEAST_1] = None
    """Size at which images are embedded, in pixels. None: the encoder's training size."""
    encoder: Literal["target", "context"] = "target"
    """Which encoder of a run, or of a file that holds both (paper: the target encoder)."""
    heads: Annotated[int | None, AT_LEAST_1] = None
    """Attention heads of published weights, if neither the file nor the width tells them."""
    part_images: Annotated[int, AT_LEAST_1] = 1024
    """Images of one part: what a process takes at a time, and what is lost at most when it is killed. Streams: a shard."""
    batch_size: Annotated[int, AT_LEAST_1] = 256
    """Images handed to the device at a time."""
    max_skipped: Annotated[float, SHARE] = 0.05
    """Share of unreadable images above which the command fails in the end; they are listed, and have no row."""
    device: str = "auto"
    """`auto`, `cpu`, `cuda`, `cuda:N` or `mps`; `auto` under torchrun: the GPU of the process's LOCAL_RANK."""
    precision: Literal["auto", "bf16", "fp32"] = "auto"
    """Precision of the encoder's forward. `auto`: bf16 if the hardware has it."""
    threads: Annotated[int | None, AT_LEAST_1] = None
    """Threads on the CPU. None: all cores; under torchrun the process's share of them."""
    workers: Annotated[int | None, NOT_NEGATIVE] = None
    """Processes that decode images beside this one. 0: its threads do, in turns with the encoder. None: 0 on a CPU, where the
    encoder leaves no core idle, else one per core but one. Give some on a CPU if images come slowly, from a network."""
    seed: Annotated[int | None, NOT_NEGATIVE] = None
    """Seed of the held-out images and of those that `data.max_images` draws. None: the run's, else 0."""


CENTERED_FROM = 100
"""Images of a table from which on `center=auto` means yes: the mean of a few is mostly their own."""
PLACES_CENTERED_FROM = 5
"""The same for regions in a table of patches. Uncentered patches are found by their place instead of by what they show."""
LISTED_OUTLIERS = 100
"""Images that `--outliers` without a number lists."""
COSINE = Range(-1, 1, "a cosine, from -1 to 1")


@dataclass(frozen=True, kw_only=True)
class SearchSettings:
    """What to look for in a table of features, and where to write the answer."""

    table: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="FEATURES")] = Path()
    """The .npy or .parquet file that `openjepa embed` wrote."""
    image: tuple[Path, ...] = ()
    """Image files: the nearest images of each."""
    row: tuple[str, ...] = ()
    """Images of the table itself, by the number of the row or by path, as lists and CSV files name them."""
    region: Annotated[tuple[float, float, float, float] | None, FINITE] = None
    """Only this part of the one image: LEFT TOP WIDTH HEIGHT, as fractions of the image, or in pixels if any is above 1."""
    top: Annotated[int, AT_LEAST_1] = 10
    """Neighbors of each query."""
    keep_self: bool = False
    """With --row: the image itself may be an answer too."""
    duplicates: bool = False
    """Groups of near-duplicates, and which image of each to keep."""
    threshold: Annotated[float, COSINE] = 0.98
    """Cosine from which on two images are near-duplicates (docs/search.md: how to choose it)."""
    max_pairs: Annotated[int, AT_LEAST_1] = 1_000_000
    """Pairs of near-duplicates at most; of more, the most alike are taken."""
    outliers: Annotated[int, NOT_NEGATIVE] = 0
    """List this many images that are farthest from their nearest ones; without a number, 100."""
    neighbors: Annotated[int, AT_LEAST_1] = 10
    """With --outliers: how many nearest images the distance is averaged over."""
    center: Literal["auto", "yes", "no"] = "auto"
    """Subtract the table's mean from all features; `auto`: for neighbors, from 100 images on (regions in patches: from 5)."""
    approximate: bool = False
    """An index, made once beside the table, finds most of the nearest images much sooner. Needs the extra `search`."""
    output: Path | None = None
    """The picture (.png) of the neighbors; of --duplicates and --outliers the folder of their lists and pictures. None:
    neighbors.png, or the working directory."""
    picture: bool = True
    """Draw the images. Needs the data to be where it was, and the extra `report`."""
    json: bool = False
    """Print one line of JSON per answer instead of tables."""
    subject: str | None = None
    """Where the encoder that made the table lies now, if it was moved."""
    data_path: str | None = None
    """Where the images of the table lie now, if they were moved."""
    device: str = "auto"
    """`auto`, `cpu`, `cuda`, `cuda:N` or `mps`: of the encoder, and of the comparison of all pairs."""
    threads: Annotated[int | None, AT_LEAST_1] = None
    """Threads on the CPU. None: all cores."""

    def cleans(self) -> bool:
        """Whether this asks for lists that clean the data, not for neighbors."""
        return self.duplicates or self.outliers != 0

    def centers(self, num_images: int, kind: str = "pooled") -> bool:
        """Whether the mean of a table of `num_images` images is subtracted. `kind`: `pooled` or `patches`."""
        least = PLACES_CENTERED_FROM if kind == "patches" and self.region is not None else CENTERED_FROM
        return self.center == "yes" or (self.center == "auto" and not self.cleans() and num_images >= least)

    def check(self) -> None:
        """Raises Refusal if nothing is looked for, or if a setting has no effect beside the others."""
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


MARK = "conversion.json"
"""File in every converted folder that says what it is and what it was made from. Not all of them have a config.json."""

OutputFormat = Literal["transformers", "timm", "onnx", "official", "safetensors"]


@dataclass(frozen=True, kw_only=True)
class ConvertSettings:
    """What `openjepa convert` converts, and to what."""

    subject: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="RUN|ENCODER")] = Path()
    """Run folder, encoder folder, file of published weights, Hugging Face or timm folder, or name on the Hub."""
    to: OutputFormat | None = None
    """Format to write: `transformers`, `timm`, `onnx`, `official` or `safetensors` (see above)."""
    output: Path | None = None
    """Folder to write. None: `<name>-<format>` in the working directory."""
    overwrite: bool = False
    """Replace the folder if an earlier `convert` wrote it."""
    dtype: Literal["float32", "float16", "bfloat16"] = "float32"
    """How weights are stored; the half-precision ones halve the size and round the weights."""
    encoder: Literal["target", "context"] = "target"
    """Which encoder of a run, or of a file that holds both (paper: the target encoder)."""
    image_size: Annotated[int | tuple[int, int] | None, AT_LEAST_1] = None
    """Size of images, in pixels, that positions are written for: other programs would stretch sin-cos ones. None: the training
    size."""
    heads: Annotated[int | None, AT_LEAST_1] = None
    """Attention heads of published weights, if neither the file nor the width tells them."""
    license: str | None = None
    """License of the weights for the model card, as an identifier of the Hugging Face Hub, e.g. `apache-2.0` or `cc-by-nc-4.0`.
    None: the card says that none is stated."""
