"""Pretraining methods. One file and one line of METHODS each."""

from collections.abc import Callable
from typing import Any

from openjepa.settings.methods import (
    Data2VecSettings,
    DinoSettings,
    IBotSettings,
    IJepaSettings,
    MaeSettings,
    MethodSettings,
    MsnSettings,
)
from openjepa.settings.registry import Entry


def _ijepa() -> Callable[..., Any]:
    from openjepa.methods.ijepa import IJepa

    return IJepa


def _mae() -> Callable[..., Any]:
    from openjepa.methods.mae import Mae

    return Mae


def _data2vec() -> Callable[..., Any]:
    from openjepa.methods.data2vec import Data2Vec

    return Data2Vec


def _dino() -> Callable[..., Any]:
    from openjepa.methods.dino import Dino

    return Dino


def _ibot() -> Callable[..., Any]:
    from openjepa.methods.ibot import IBot

    return IBot


def _msn() -> Callable[..., Any]:
    from openjepa.methods.msn import Msn

    return Msn


METHODS: dict[str, Entry[MethodSettings]] = {
    "ijepa": Entry(IJepaSettings, _ijepa),
    "mae": Entry(MaeSettings, _mae),
    "data2vec": Entry(Data2VecSettings, _data2vec),
    "dino": Entry(DinoSettings, _dino),
    "ibot": Entry(IBotSettings, _ibot),
    "msn": Entry(MsnSettings, _msn),
}
