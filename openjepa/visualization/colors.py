"""Numbers as colors."""

import numpy as np
from jaxtyping import Float, UInt8
from numpy.typing import NDArray

# Five stops of a dark-to-light ramp whose lightness rises evenly (between matplotlib's inferno and a sunset).
_STOPS = np.array([[24, 22, 48], [93, 34, 110], [187, 55, 84], [244, 131, 52], [252, 238, 164]], dtype=np.float64)


def heat(shares: Float[np.ndarray, "H W"]) -> UInt8[np.ndarray, "H W 3"]:
    """0 is dark, 1 is light; values outside are clipped."""
    places = np.clip(shares, 0, 1) * (len(_STOPS) - 1)
    below = np.minimum(places.astype(int), len(_STOPS) - 2)
    part = (places - below)[..., None]
    colors: NDArray[np.float64] = (1 - part) * _STOPS[below] + part * _STOPS[below + 1]
    return colors.round().astype(np.uint8)


def heat_scale(height: int, width: int) -> UInt8[np.ndarray, "h w 3"]:
    """The bar that explains `heat`, 1 at the top."""
    return heat(np.repeat(np.linspace(1, 0, height)[:, None], width, axis=1))


def pca_colors(features: Float[np.ndarray, "n H W D"]) -> UInt8[np.ndarray, "n H W 3"]:
    """The first three principal components of all patches together as red, green and blue.

    Each component is stretched from its 2nd to its 98th percentile; its sign makes the longer tail bright, so that the same
    features always give the same colors.
    """
    flat = features.reshape(-1, features.shape[-1]).astype(np.float64)
    centered = flat - flat.mean(axis=0)
    _, vectors = np.linalg.eigh(centered.T @ centered)
    components = centered @ vectors[:, ::-1][:, :3]
    components *= np.where((components**3).sum(axis=0) < 0, -1.0, 1.0)
    low, high = np.percentile(components, (2, 98), axis=0)
    stretched: NDArray[np.float64] = np.clip((components - low) / np.maximum(high - low, 1e-12), 0, 1)
    if stretched.shape[1] < 3:
        stretched = np.pad(stretched, ((0, 0), (0, 3 - stretched.shape[1])))
    return (255 * stretched).round().astype(np.uint8).reshape(*features.shape[:-1], 3)
