"""Mask strategies, one file each. The line that registers one stands below its settings, in `settings.masks`."""

from openjepa.settings.masks import MASKS

__all__ = ["MASKS"]
