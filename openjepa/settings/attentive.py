"""Settings of the attentive probe."""

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class AttentiveSettings:
    """One learned query that attends to the frozen encoder's patches, an MLP and a linear layer (V-JEPA's probe)."""

    epochs: int = 20
    """Passes over the training split (V-JEPA: 20)."""
    batch_size: int = 256
    """Images per step (V-JEPA: 1,024). At most one epoch's images."""
    learning_rates: tuple[float, ...] = (1e-3, 3e-4, 1e-4)
    """Peak rates, falling to 0 along a cosine; a probe is trained with each, all in one pass (V-JEPA: 1e-3)."""
    weight_decay: float = 1e-3
    """AdamW's, of matrices and the query (V-JEPA: 1e-3)."""
