"""Evaluation of encoders. A protocol is one file, its settings, and one entry of PROTOCOLS. Does not import torch.

A protocol is a function `(probe, settings) -> tuple[ProtocolResult, ...]`. It returns one result for each selection rule of
`selections(settings)`. `probe` is a FeatureProbe, or an ImageProbe whose images have label maps if the protocol needs them.
Protocols that share one function are called once, with their names in `settings.protocols`. Each of their results names the
protocol that it belongs to. The types are in `openjepa.evaluation.protocol`, PROTOCOLS is in `openjepa.settings.protocols`.
"""

from collections.abc import Callable
from dataclasses import replace

from openjepa.config import nearest_names
from openjepa.refusals import Refusal
from openjepa.settings.evaluation import EvaluationSettings
from openjepa.settings.protocol_names import ALIASES
from openjepa.settings.protocols import PROTOCOLS, with_all_groups


def with_current_names(settings: EvaluationSettings, say: Callable[[str], object]) -> EvaluationSettings:
    """The settings with older protocol names replaced by today's and duplicates removed. Each old name is reported to `say`.

    Groups of settings that protocols bring and the settings lack are added with their defaults.

    Raises Refusal if a protocol does not exist.
    """
    for name in settings.protocols:
        if name in ALIASES:
            say(f"note: the protocol {name} is called {ALIASES[name]} now")
    names = tuple(dict.fromkeys(ALIASES.get(name, name) for name in settings.protocols))
    if unknown := [name for name in names if name not in PROTOCOLS]:
        raise Refusal(f"evaluation.protocols={unknown[0]!r} does not exist: {nearest_names(unknown[0], PROTOCOLS)}")
    return replace(with_all_groups(settings), protocols=names)
