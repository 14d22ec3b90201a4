"""Pretraining methods, one file each. A method is registered in `settings.methods`, with the settings of all methods."""

from openjepa.settings.methods import METHODS

__all__ = ["METHODS"]
