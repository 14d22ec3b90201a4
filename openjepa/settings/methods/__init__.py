"""Settings of the pretraining methods: one dataclass and one file each, all derived from MethodSettings."""

from openjepa.settings.methods.data2vec import Data2VecSettings
from openjepa.settings.methods.dino import DinoSettings
from openjepa.settings.methods.ibot import IBotSettings
from openjepa.settings.methods.ijepa import IJepaSettings
from openjepa.settings.methods.mae import MaeSettings
from openjepa.settings.methods.msn import MsnSettings
from openjepa.settings.methods.shared import About, Heads, MethodSettings, TeacherSettings

__all__ = [
    "About",
    "Data2VecSettings",
    "DinoSettings",
    "Heads",
    "IBotSettings",
    "IJepaSettings",
    "MaeSettings",
    "MethodSettings",
    "MsnSettings",
    "TeacherSettings",
]
