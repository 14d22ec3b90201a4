"""Sizes that must divide one another: images and patches, widths and heads."""

from openjepa.refusals import Refusal

PATCH_SIZES = range(4, 17)


def check_patch_divides(
    patch: int, size: tuple[int, int], patch_name: str = "model.patch_size", size_name: str = "data.image_size"
) -> None:
    """Raises Refusal, with the values that fit, unless an image of `size` (height, width) is a whole number of patches."""
    height, width = size
    if patch < 1:
        raise Refusal(f"{patch_name}={patch} must be at least 1")
    if min(size) < patch:
        raise Refusal(f"{size_name}={height}x{width} is smaller than a patch ({patch_name}={patch})")
    if height % patch or width % patch:
        fitting = [side for side in PATCH_SIZES if height % side == 0 and width % side == 0]
        patches = f"{patch_name} one of {', '.join(map(str, fitting))}" if fitting else "no patch size fits this image"
        nearest = " ".join(str(nearest_multiple(side, patch)) for side in dict.fromkeys(size))
        raise Refusal(f"{patch_name}={patch} does not divide {size_name}={height}x{width}: {patches}, or {size_name}={nearest}")


def nearest_multiple(side: int, patch: int) -> int:
    """The whole number of patches nearest to `side`, in pixels; at least one patch."""
    return max(patch, round(side / patch) * patch)


def check_heads(name: str, heads: int, width_name: str, width: int) -> None:
    """Raises Refusal, with the numbers that fit, unless the heads divide the width."""
    if width % heads:
        fitting = [number for number in range(1, 33) if width % number == 0]
        raise Refusal(f"{name}={heads} does not divide {width_name} ({width}); heads that do: {', '.join(map(str, fitting))}")


def check_positions(name: str, width: int) -> None:
    """Raises Refusal unless fixed positions can be made for this width."""
    if width % 4:
        low = max(4, width // 4 * 4)
        raise Refusal(f"{name}={width} must be a multiple of 4 for sine-cosine positions, e.g. {low} or {low + 4}")
