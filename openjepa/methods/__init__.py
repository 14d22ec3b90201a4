"""Pretraining methods. One file and one line of METHODS each."""

from collections.abc import Callable
from typing import Any

from openjepa.registry import Entry
from openjepa.settings.methods import IJepaSettings, MethodSettings


def _ijepa() -> Callable[..., Any]:
    from openjepa.methods.ijepa import IJepa

    return IJepa


METHODS: dict[str, Entry[MethodSettings]] = {
    "ijepa": Entry(IJepaSettings, _ijepa),
}
