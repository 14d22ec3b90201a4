"""Settings of the evaluations of an encoder."""

from dataclasses import dataclass, field
from typing import Literal

from openjepa.settings.attentive import AttentiveSettings
from openjepa.settings.dense import DenseSettings
from openjepa.settings.finetune import FinetuneSettings
from openjepa.settings.linear_full import FullLinearSettings
from openjepa.settings.logistic import LogisticSettings
from openjepa.settings.low_shot import LowShotSettings

ProtocolName = Literal["linear", "knn", "logistic", "linear_full", "attentive", "finetune", "dense_linear", "dense_knn"]
Selection = Literal["held_out", "paper", "both"]


@dataclass(frozen=True, kw_only=True)
class EvaluationSettings:
    """k-NN and linear probes on frozen features, always beside the untrained encoder and raw pixels."""

    tasks: tuple[str, ...] = ()
    """Rows of the task table (classification, clevr_count, clevr_dist; scene_shapes, scene_colors: of patches). Empty: all
    that the data set has labels for, without those of patches."""
    protocols: tuple[ProtocolName, ...] = ()
    """Which probes are run. Empty: those of the suite's row; without a suite linear and knn, on label maps dense_linear and
    dense_knn."""
    selection: Selection = "held_out"
    """`held_out`: the probe's settings are chosen on 10 % of the training split; `paper`: best on the test split; `both`."""
    seeds: int = 1
    """Repeats everything with so many seeds and reports mean and spread."""
    image_size: int | tuple[int, int] | None = None
    """Size at which features are taken, in pixels. None: the encoder's training size."""
    pooling: Literal["own", "class_token", "average", "both"] = "own"
    """What one vector per image is: what the encoder's method evaluates (`own`), its class token, the average of its patches,
    or both, with a result for each."""
    weight_decays: tuple[float, ...] = (1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 0.1, 1.0, 10.0)
    """Swept for the linear heads, which are all solved at once (features have unit variance, the loss is a mean)."""
    iterations: int = 100
    """Most iterations of the solver of the linear heads; it ends earlier where a step gains little (early stopping)."""
    neighbors: tuple[int, ...] = (10, 20, 100)
    """k of the k-nearest-neighbor classifier."""
    neighbor_temperature: float = 0.07
    """Neighbors vote with weight exp(cosine / temperature) (DINO)."""
    feature_batch_size: int = 256
    """Images per forward while features are extracted."""
    feature_dtype: Literal["auto", "fp32", "bf16"] = "auto"
    """How features are kept on disk. `auto`: fp32, or bf16 where that would take more than 1 GiB for a split."""
    max_train_images: int | None = None
    """Use at most this many training images, as many of each class as possible. None: all."""
    lidar_images: int | None = None
    """Also measure LiDAR on so many test images (more than the encoder's width is best), for `lidar_images` x `lidar_views`
    more passes of every encoder and of a run's predictor. None: not."""
    lidar_views: int = 10
    """Random crops, and draws of masks, of each image for LiDAR (paper: 50, cheap: 10)."""
    max_skipped: float = 0.05
    """Share of unreadable images of a split above which there are no numbers."""
    baselines: tuple[Literal["untrained", "pixels"], ...] = ("untrained", "pixels")
    """What is evaluated beside the encoder with the same probes. `untrained`: with random weights; beside these, of a run that
    began from weights (`run.init`), the encoder with those."""
    encoder: Literal["target", "context"] = "target"
    """Which encoder of a run, or of a file that holds both, is evaluated (paper: the target encoder)."""
    heads: int | None = None
    """Attention heads of published weights, where neither the file nor the width tells them. None: they do."""
    seed: int = 0
    """Seed of the held-out part, of a subset, and of the untrained encoder where the run has not kept it."""
    device: str = "auto"
    """`auto`, `cpu`, `cuda` or `mps`."""
    precision: Literal["auto", "bf16", "fp32"] = "auto"
    """Precision of the encoder's forward; the heads are fp32."""
    workers: int | None = None
    """Processes that decode images. None: chosen from the cores."""
    low_shot: LowShotSettings = field(default_factory=LowShotSettings)
    logistic: LogisticSettings = field(default_factory=LogisticSettings)
    linear_full: FullLinearSettings = field(default_factory=FullLinearSettings)
    attentive: AttentiveSettings = field(default_factory=AttentiveSettings)
    finetune: FinetuneSettings = field(default_factory=FinetuneSettings)
    dense: DenseSettings = field(default_factory=DenseSettings)
