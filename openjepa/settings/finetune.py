"""Settings of end-to-end fine-tuning."""

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class FinetuneSettings:
    """The whole encoder and a linear head are trained with labels (I-JEPA, appendices C and D; MAE's recipe)."""

    epochs: int = 50
    """Passes over the training split (I-JEPA: 50)."""
    batch_size: int = 512
    """Images per step (I-JEPA: 512 at 1 % of the labels, 528 at all)."""
