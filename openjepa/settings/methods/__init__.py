"""Settings of the pretraining methods, one file each, and METHODS, in which one line registers a method."""

from openjepa.settings.fields import Entry
from openjepa.settings.methods.data2vec import Data2VecSettings
from openjepa.settings.methods.dino import DinoSettings
from openjepa.settings.methods.ibot import IBotSettings
from openjepa.settings.methods.ijepa import IJepaSettings
from openjepa.settings.methods.mae import MaeSettings
from openjepa.settings.methods.msn import MsnSettings
from openjepa.settings.methods.shared import About, Heads, MethodSettings, Paper, TeacherSettings

__all__ = [
    "METHODS",
    "About",
    "Data2VecSettings",
    "DinoSettings",
    "Heads",
    "IBotSettings",
    "IJepaSettings",
    "MaeSettings",
    "MethodSettings",
    "MsnSettings",
    "Paper",
    "TeacherSettings",
]

METHODS: dict[str, Entry[MethodSettings]] = {
    "ijepa": Entry(IJepaSettings, "openjepa.methods.ijepa:IJepa"),
    "mae": Entry(MaeSettings, "openjepa.methods.mae:Mae"),
    "data2vec": Entry(Data2VecSettings, "openjepa.methods.data2vec:Data2Vec"),
    "dino": Entry(DinoSettings, "openjepa.methods.dino:Dino"),
    "ibot": Entry(IBotSettings, "openjepa.methods.ibot:IBot"),
    "msn": Entry(MsnSettings, "openjepa.methods.msn:Msn"),
}
"""Settings and code of each method by `method.name`. Choices, help, titles and words are derived from it."""
