"""Mask strategies, one file each. A strategy is registered in `settings.masks`, in the line below its settings."""

from openjepa.settings.masks import MASKS

__all__ = ["MASKS"]
