"""Settings of the probes on single patches."""

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class DenseSettings:
    """k-NN and linear probe on patch features, without a decoder; labels are those of the pixels that a patch covers."""

    max_patches: int = 50_000
    """Most training patches, drawn uniformly with the seed over all images. k-NN takes time in proportion: with 50,000
    28 s of one core on the packaged scenes with ViT-nano."""
