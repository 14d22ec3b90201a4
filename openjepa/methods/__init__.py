"""Pretraining methods. One file and one line of METHODS each."""

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

METHODS: dict[str, Entry[MethodSettings]] = {
    "ijepa": Entry(IJepaSettings, "openjepa.methods.ijepa:IJepa"),
    "mae": Entry(MaeSettings, "openjepa.methods.mae:Mae"),
    "data2vec": Entry(Data2VecSettings, "openjepa.methods.data2vec:Data2Vec"),
    "dino": Entry(DinoSettings, "openjepa.methods.dino:Dino"),
    "ibot": Entry(IBotSettings, "openjepa.methods.ibot:IBot"),
    "msn": Entry(MsnSettings, "openjepa.methods.msn:Msn"),
}
