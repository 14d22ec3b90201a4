"""State dicts of any program: wrappers' prefixes are removed from names, several networks are separated, the rest is not read.

torch.compile adds `_orig_mod.` before every name, and DistributedDataParallel adds `module.`. A Lightning module adds the name
of its attribute, such as `model.` or `student_backbone.vit.`. Every encoder has a patch embedding, whose name shows how much of
the names is a prefix.

Programs store plain data beside weights: NumPy numbers, arguments, paths, dates. torch's safe reader knows none of these types.
Here each type name is replaced by a harmless stand-in, so that neither the named class nor any NumPy code handles the file's
content. NumPy numbers become Python numbers. Most of the rest is not needed and becomes `Unread`.
"""

import argparse
import pickle
import re
import types
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from torch import Tensor

from openjepa.refusals import Refusal, few

Groups = dict[str, dict[str, Tensor]]
"""Dictionaries of tensors by their name in the file. Tensors directly in the file have the name ''."""

TRANSPARENT = frozenset({"module", "_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"})
"""Parts of names that torch's own wrappers insert at any depth: DistributedDataParallel and AveragedModel, compile, FSDP,
checkpoint_wrapper. No network that can be read has a part with such a name."""
ENCODER_MARKS = ("patch_embed.proj.weight", "embeddings.patch_embeddings.projection.weight")
"""The patch embedding's weight under the names that programs share, and under those of Hugging Face."""
PREDICTOR_MARK = "predictor_embed.weight"
"""The weight of the first layer of I-JEPA's predictor in the released code."""
CLASS_TOKENS = ("cls_token", "embeddings.cls_token")
AVERAGED = frozenset({"teacher", "target", "momentum", "ema", "swa", "average", "averaged"})
"""Words in names that mark the moving average, as opposed to the network trained by gradients."""
PLACES = ("", "model", "state_dict")
"""Preferred places of the weights of a file's only network: directly in the file, or in a dictionary of this name."""
OF_SEVERAL = ("teacher", "student", "target_encoder", "encoder", "predictor")
"""Names of dictionaries in files with several networks."""
MOST_SHOWN = 6
"""Largest number of names that a note lists. If there are more, it lists only the first parts of the names."""


@dataclass(frozen=True)
class Network:
    """The tensors of one network under names without prefixes."""

    tensors: dict[str, Tensor]
    prefix: str = ""
    """Prefix of all names in the file."""
    inner: tuple[str, ...] = ()
    """Parts that torch's wrappers inserted further inside the names."""
    beside: tuple[str, ...] = ()
    """Names, without wrappers' parts, of tensors that do not belong to the network and are not read."""
    others: tuple[str, ...] = ()
    """Names of dictionaries with other encoders, which are not read either."""

    @property
    def is_encoder(self) -> bool:
        """True if it embeds patches of images."""
        return any(mark in self.tensors for mark in ENCODER_MARKS)

    @property
    def has_token(self) -> bool:
        """True if it has a class token."""
        return any(token in self.tensors for token in CLASS_TOKENS)

    def without(self, starts: tuple[str, ...]) -> "Network":
        """The network without the tensors whose names begin with one of `starts`. Their names move to `beside`."""
        left = tuple(name for name in self.tensors if name.startswith(starts))
        kept = {name: value for name, value in self.tensors.items() if not name.startswith(starts)}
        return replace(self, tensors=kept, beside=(*self.beside, *left))

    def notes(self, usual: Collection[str] = ()) -> tuple[str, ...]:
        """Notes for the user: the prefix removed from names, unless it is one of `usual`, and the tensors not read."""
        notes = []
        if self.prefix and self.prefix not in usual:
            notes.append(f"the names in the file begin with {self.prefix!r}, which was cut")
        if self.inner:
            notes.append(f"{' and '.join(map(repr, self.inner))} inside names was cut")
        if self.beside:
            names = sorted(self.beside)
            shown = names if len(names) <= MOST_SHOWN else list(dict.fromkeys(name.split(".")[0] for name in names))
            count = f"{len(self.beside)} tensor{'s' if len(self.beside) > 1 else ''}"
            notes.append(f"not read: {few(shown, MOST_SHOWN)} ({count} beside the encoder)")
        if self.others:
            places = [repr(name) if name else "the tensors without a dictionary" for name in self.others]
            notes.append(f"not read: {', '.join(places)}, with another encoder")
        return tuple(notes)


def networks_in(groups: Groups, where: object) -> dict[str, Network]:
    """The networks in a file's dictionaries, by the names of the dictionaries.

    If the file has two encoders and one's name says that it is the average of the other, they are called `teacher` and
    `student` (`target_encoder` and `encoder` if they have no class token). Raises Refusal if the file has several encoders and
    their names do not tell which one is meant.
    """
    found: dict[str, Network] = {}
    for name, group in groups.items():
        for key, network in _split(name, group, where).items():
            if key in found:
                raise Refusal(f"{where} holds {key!r} twice; save the encoder that you mean by itself")
            found[key] = network
    found = _pair(found, where)
    encoders = [name for name, network in found.items() if network.is_encoder]
    return {
        name: replace(network, others=tuple(other for other in encoders if other not in (name, *OF_SEVERAL)))
        for name, network in found.items()
    }


def _pair(networks: dict[str, Network], where: object) -> dict[str, Network]:
    """The networks, with an average and its source renamed to the names that formats know."""
    encoders = [name for name, network in networks.items() if network.is_encoder]
    averaged = [name for name in encoders if _is_average(name)]
    if len(encoders) < 2 or not averaged or any(name in OF_SEVERAL for name in encoders):
        return networks
    trained = [name for name in encoders if name not in averaged]
    trained = [name for name in PLACES if name in trained][:1] or trained
    if len(averaged) != 1 or len(trained) != 1:
        raise Refusal(
            f"{where} holds several encoders, in {', '.join(map(repr, encoders))}, and nothing says which of two is the "
            "average of the other; save the one that you mean by itself"
        )
    names = _roles(networks[averaged[0]])
    called = {averaged[0]: names[0], trained[0]: names[1]}
    return {called.get(name, name): network for name, network in networks.items()}


def _is_average(name: str) -> bool:
    return not AVERAGED.isdisjoint(re.split(r"[._ -]", name.lower()))


def _roles(average: Network) -> tuple[str, str]:
    """The names that formats use for the average and for the network that is trained."""
    return ("teacher", "student") if average.has_token else ("target_encoder", "encoder")


def _split(name: str, group: Mapping[str, Tensor], where: object) -> dict[str, Network]:
    plain = _plain_names(group)
    encoders, predictors = _prefixes(plain, ENCODER_MARKS), _prefixes(plain, (PREDICTOR_MARK,))
    prefixes = [*encoders, *predictors]
    if len(encoders) < 2:
        only = next(iter(prefixes), "")
        return {name: _network(group, plain, only, prefixes, [only])}
    averaged = [prefix for prefix in encoders if _is_average(prefix)]
    if len(encoders) > 2 or len(averaged) != 1 or len(predictors) > 1:
        raise Refusal(
            f"{where} holds several encoders, whose names begin with {' and '.join(map(repr, encoders))}, and nothing says "
            "which of two is the average of the other; save the one that you mean by itself"
        )
    trained = next(prefix for prefix in encoders if prefix not in averaged)
    parts = {prefix: _network(group, plain, prefix, prefixes, prefixes) for prefix in prefixes}
    names = _roles(parts[averaged[0]])
    found = {names[0]: parts[averaged[0]], names[1]: parts[trained]}
    return found | ({"predictor": parts[predictors[0]]} if predictors else {})


def _plain_names(group: Mapping[str, Tensor]) -> dict[str, str]:
    """Names without the parts of torch's wrappers, by the names in the file. Unchanged if two names would become equal."""
    names = {name: ".".join(part for part in name.split(".") if part not in TRANSPARENT) for name in group}
    return names if len(set(names.values())) == len(names) else {name: name for name in names}


def _prefixes(plain: Mapping[str, str], marks: tuple[str, ...]) -> list[str]:
    """The prefixes before the marks, in the order of the file."""
    found = [f".{name}".partition(f".{mark}") for name in plain.values() for mark in marks if f".{name}".endswith(f".{mark}")]
    return list(dict.fromkeys(f"{before}.".removeprefix(".") for before, _, _ in found))


def _network(
    group: Mapping[str, Tensor], plain: Mapping[str, str], prefix: str, prefixes: Sequence[str], read: Sequence[str]
) -> Network:
    """The network of the tensors whose plain names begin with `prefix`, but with none of the longer `prefixes` of others.

    Tensors that begin with none of the prefixes in `read` are noted in `beside`, and so are a torch wrapper's own tensors.
    """
    further = tuple(item for item in prefixes if item != prefix and item.startswith(prefix))
    own = {name: full.removeprefix(prefix) for name, full in plain.items() if full.startswith(prefix)}
    own = {name: short for name, short in own.items() if not plain[name].startswith(further)}
    written = next((_before(name, short) for name, short in own.items() if short in (*ENCODER_MARKS, PREDICTOR_MARK)), "")
    if not TRANSPARENT.isdisjoint(written.split(".")):  # AveragedModel has a counter of its own beside the module
        own = {name: short for name, short in own.items() if plain[name] != name}
    others = tuple(item for item in read if item != prefix)
    beside = tuple(full for name, full in plain.items() if name not in own and not full.startswith(others))
    inside = [name.removeprefix(written) for name in own if plain[name] != name]
    inner = sorted(TRANSPARENT & {part for name in inside for part in name.split(".")})
    return Network({short: group[name] for name, short in own.items()}, written, tuple(inner), beside)


def _before(name: str, short: str) -> str:
    """The part of a name in the file before the first part of its short name."""
    parts, first = name.split("."), short.split(".")[0]
    end = len(parts) - parts[::-1].index(first) - 1
    return "".join(f"{part}." for part in parts[:end])


REBUILT = re.compile(r"b1|[iu][1248]|f[248]|c8|c16|[SU]\d{1,6}")
"""Types of NumPy scalars that become Python values: booleans, integers, real and complex numbers, strings."""
NOT_REBUILT = re.compile(r"[Mm]8|f12|f16|c24|c32")
"""Types of NumPy scalars that do not: dates, durations, and numbers whose size depends on the machine."""


class Unread:
    """Stand-in for an array, a date, a path or a class that is not kept."""

    def __new__(cls, *_: object) -> "Unread":
        """Accepts and ignores any arguments."""
        return super().__new__(cls)

    def __init__(self, *_: object) -> None:
        """Accepts and ignores any arguments."""

    def __setstate__(self, _: object) -> None:
        """Ignores the state."""


class ScalarType:
    """Stand-in for `numpy.dtype`: the type of a scalar by its short name, such as `f8`."""

    def __init__(self, name: object = "", *_: object) -> None:
        """Takes the arguments that NumPy writes. Those after `name`, about alignment and copying, are ignored."""
        self.name = name if isinstance(name, str) else ""
        self.byte_order = "|"

    def __setstate__(self, state: object) -> None:
        """Takes the byte order. The rest of NumPy's state matters only for structured types."""
        if isinstance(state, tuple) and len(state) > 1 and state[1] in ("<", ">", "|", "="):
            self.byte_order = state[1]


def _scalar(kind: object, data: object = b"") -> object:
    """Converts a NumPy scalar to a Python number or string. Raises UnpicklingError if it is neither."""
    if not isinstance(kind, ScalarType):
        raise pickle.UnpicklingError("Unsupported global: GLOBAL numpy.generic")
    if NOT_REBUILT.fullmatch(kind.name):
        return Unread()
    if not REBUILT.fullmatch(kind.name) or not isinstance(data, bytes):
        raise pickle.UnpicklingError("Unsupported global: GLOBAL numpy.object_")
    dtype = np.dtype(kind.byte_order + kind.name)
    if len(data) != dtype.itemsize:
        raise pickle.UnpicklingError("Unsupported global: GLOBAL numpy.generic")
    return np.frombuffer(data, dtype)[0].item() if data else dtype.type().item()


def _empty_dictionary(*_: object) -> dict[Any, Any]:
    return {}


def _empty_list(*_: object) -> list[Any]:
    return []


def _empty_bytes() -> bytes:
    return b""


NUMPY_MODULES = ("numpy.core", "numpy._core")
"""NumPy's module in versions 1 and 2."""
NUMPY_CLASSES = (
    *(
        f"{kind}{bits}"
        for kind, sizes in (("int", (8, 16, 32, 64)), ("uint", (8, 16, 32, 64)), ("float", (16, 32, 64)))
        for bits in sizes
    ),
    *("complex64", "complex128", "bool", "bool_", "str_", "bytes_"),
)
"""Classes of NumPy number types, which files hold as settings of precision."""
UNREAD = (
    "numpy.ndarray",
    *(f"{module}.multiarray._reconstruct" for module in NUMPY_MODULES),
    *(f"datetime.{name}" for name in ("date", "time", "datetime", "timedelta", "timezone")),
    *(f"builtins.{name}" for name in ("bool", "dict", "float", "frozenset", "int", "list", "range", "slice", "str", "tuple")),
    *(
        f"{module}.{name}Path"
        for module in ("pathlib", "pathlib._local")
        for name in ("Posix", "Windows", "PurePosix", "PureWindows")
    ),
    *(f"numpy.{name}" for name in NUMPY_CLASSES),
    "uuid.UUID",
    "decimal.Decimal",
    "fractions.Fraction",
)
DICTIONARIES = (
    "lightning_fabric.utilities.data.AttributeDict",
    "lightning.fabric.utilities.data.AttributeDict",
    "pytorch_lightning.utilities.parsing.AttributeDict",
)
"""Lightning's class of hyperparameters, a dictionary with attribute access."""

PLAIN_DATA: list[Callable[..., Any] | tuple[Callable[..., Any], str]] = [
    *((_scalar, f"{module}.multiarray.scalar") for module in NUMPY_MODULES),
    (ScalarType, "numpy.dtype"),
    *((Unread, name) for name in UNREAD),
    *((dict, name) for name in DICTIONARIES),
    (_empty_dictionary, "collections.defaultdict"),
    (_empty_list, "collections.deque"),
    (_empty_bytes, "builtins.bytes"),
    (str, "torch.torch_version.TorchVersion"),
    (argparse.Namespace, "argparse.Namespace"),
    (types.SimpleNamespace, "types.SimpleNamespace"),
]
"""For `torch.serialization.safe_globals`: each stand-in, and the name in a file that it replaces."""
