"""Settings of the evaluations of a frozen encoder."""

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, kw_only=True)
class EvaluationSettings:
    """k-NN and linear probes on frozen features, always beside the untrained encoder and raw pixels."""

    tasks: tuple[str, ...] = ()
    """Rows of the task table (see `openjepa evaluate --help`). Empty: all that the run's data set has labels for."""
    selection: Literal["held_out", "paper"] = "held_out"
    """`held_out`: the probe's settings are chosen on 10 % of the training split; `paper`: best on the test split."""
    image_size: int | tuple[int, int] | None = None
    """Size at which features are taken, in pixels. None: the encoder's training size."""
    learning_rates: tuple[float, ...] = (0.3, 0.1, 0.03, 0.01, 0.003)
    """Swept for the linear heads, which are all trained at once."""
    weight_decays: tuple[float, ...] = (5e-4, 0.0)
    """Swept for the linear heads (paper: 5e-4 and 0)."""
    epochs: int = 50
    """Passes of the linear heads over the cached features."""
    batch_size: int = 512
    """Images per step of the linear heads."""
    neighbors: tuple[int, ...] = (10, 20, 100)
    """k of the k-nearest-neighbor classifier."""
    neighbor_temperature: float = 0.07
    """Neighbors vote with weight exp(cosine / temperature) (DINO)."""
    feature_batch_size: int = 256
    """Images per forward while features are extracted."""
    max_train_images: int | None = None
    """Use at most this many training images, the same number of each class. None: all."""
    baselines: tuple[Literal["untrained", "pixels"], ...] = ("untrained", "pixels")
    """What is evaluated beside the encoder with the same probes."""
    encoder: Literal["target", "context"] = "target"
    """Which encoder of a run is evaluated (paper: the target encoder)."""
    seed: int = 0
    """Seed of the heads, their batches and the held-out part."""
    device: str = "auto"
    """`auto`, `cpu`, `cuda` or `mps`."""
    precision: Literal["auto", "bf16", "fp32"] = "auto"
    """Precision of the encoder's forward; the heads are fp32."""
    workers: int | None = None
    """Processes that decode images. None: one per core, at most 8."""
