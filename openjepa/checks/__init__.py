"""Finds impossible settings before anything is loaded. Every error names the setting, its value and what would fit."""

from openjepa.checks.methods import never_reached
from openjepa.checks.pretraining import check, remarks, value_problems
from openjepa.settings.models import check_patch_divides, nearest_multiple

__all__ = ["check", "check_patch_divides", "nearest_multiple", "never_reached", "remarks", "value_problems"]
