"""Settings of the probes on single patches."""

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class DenseSettings:
    """k-NN and linear probe on patch features, without a decoder; labels are those of the pixels that a patch covers."""

    max_patches: int = 100_000
    """Training patches that are kept, drawn with the seed."""
