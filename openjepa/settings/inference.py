"""Settings of `openjepa embed`."""

from dataclasses import dataclass
from typing import Literal


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
    image_size: int | tuple[int, int] | None = None
    """Size at which images are embedded, in pixels. None: the encoder's training size."""
    encoder: Literal["target", "context"] = "target"
    """Which encoder of a run, or of a file that holds both (paper: the target encoder)."""
    heads: int | None = None
    """Attention heads of published weights, where neither the file nor the width tells them."""
    part_images: int = 1024
    """Images of one part: what a process takes at a time, and what is lost at most when it is killed. Streams: a shard."""
    batch_size: int = 256
    """Images handed to the device at a time."""
    max_skipped: float = 0.05
    """Share of unreadable images above which the command fails in the end; they are listed, and have no row."""
    device: str = "auto"
    """`auto`, `cpu`, `cuda`, `cuda:N` or `mps`; `auto` under torchrun: the GPU of the process's LOCAL_RANK."""
    precision: Literal["auto", "bf16", "fp32"] = "auto"
    """Of the encoder's forward; `auto` is bf16 where the hardware has it."""
    threads: int | None = None
    """Threads on the CPU. None: all cores; under torchrun the process's share of them."""
    workers: int | None = None
    """Processes that decode images beside this one; 0: its threads do, in turns with the encoder. None: 0 on a CPU, where the
    encoder leaves no core idle, else one per core but one. Give some on a CPU where images come slowly, from a network."""
    seed: int | None = None
    """With which the data source is opened (its held-out images, and which `data.max_images`). None: the run's, else 0."""
