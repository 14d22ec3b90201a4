"""Settings of the evaluations of a frozen encoder."""

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, kw_only=True)
class EvaluationSettings:
    """k-NN and linear probes on frozen features, always beside the untrained encoder and raw pixels."""

    tasks: tuple[str, ...] = ()
    """Rows of the task table (classification, clevr_count, clevr_dist). Empty: all that the data set has labels for."""
    protocols: tuple[Literal["knn", "linear"], ...] = ("linear", "knn")
    """Which probes are run; at least one."""
    selection: Literal["held_out", "paper"] = "held_out"
    """`held_out`: the probe's settings are chosen on 10 % of the training split; `paper`: best on the test split."""
    image_size: int | tuple[int, int] | None = None
    """Size at which features are taken, in pixels. None: the encoder's training size."""
    weight_decays: tuple[float, ...] = (1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 0.1, 1.0, 10.0)
    """Swept for the linear heads, which are all solved at once (features have unit variance, the loss is a mean)."""
    iterations: int = 100
    """Most iterations of the solver of the linear heads; it ends earlier where nothing changes any more."""
    neighbors: tuple[int, ...] = (10, 20, 100)
    """k of the k-nearest-neighbor classifier."""
    neighbor_temperature: float = 0.07
    """Neighbors vote with weight exp(cosine / temperature) (DINO)."""
    feature_batch_size: int = 256
    """Images per forward while features are extracted."""
    max_train_images: int | None = None
    """Use at most this many training images, as many of each class as possible. None: all."""
    baselines: tuple[Literal["untrained", "pixels"], ...] = ("untrained", "pixels")
    """What is evaluated beside the encoder with the same probes."""
    encoder: Literal["target", "context"] = "target"
    """Which encoder of a run is evaluated (paper: the target encoder)."""
    seed: int = 0
    """Seed of the held-out part, of a subset, and of the untrained encoder where the run has not kept it."""
    device: str = "auto"
    """`auto`, `cpu`, `cuda` or `mps`."""
    precision: Literal["auto", "bf16", "fp32"] = "auto"
    """Precision of the encoder's forward; the heads are fp32."""
    workers: int | None = None
    """Processes that decode images. None: chosen from the cores."""
