"""Pretraining methods, one file each. The line that registers one stands with the settings of all, in `settings.methods`."""

from openjepa.settings.methods import METHODS

__all__ = ["METHODS"]
