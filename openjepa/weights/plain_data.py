"""Plain data that programs keep beside weights: numbers of NumPy, arguments, paths, dates.

torch's safe reader knows none of these. Here each name stands for something of our own that holds or does nothing: neither the
class of that name nor any code of NumPy sees what a file says. Numbers of NumPy become numbers; most of the rest, which is
never looked at, becomes `Unread`.
"""

import argparse
import pickle
import re
import types
from collections.abc import Callable
from typing import Any

import numpy as np

REBUILT = re.compile(r"b1|[iu][1248]|f[248]|c8|c16|[SU]\d{1,6}")
"""Types of NumPy's scalars that are rebuilt: booleans, whole, real and complex numbers, words."""
NOT_REBUILT = re.compile(r"[Mm]8|f12|f16|c24|c32")
"""Dates, durations, and numbers whose size depends on the machine."""


class Unread:
    """Stands for an array, a date, a path or a class, of which nothing is kept."""

    def __new__(cls, *_: object) -> "Unread":
        """Whatever it is made of."""
        return super().__new__(cls)

    def __init__(self, *_: object) -> None:
        """Whatever it is made of."""

    def __setstate__(self, _: object) -> None:
        """Whatever its state is."""


class ScalarType:
    """Stands for `numpy.dtype`: the type of a scalar, by its short name such as `f8`."""

    def __init__(self, name: object = "", *_: object) -> None:
        """As NumPy writes it; further arguments say how it was aligned and copied."""
        self.name = name if isinstance(name, str) else ""
        self.byte_order = "|"

    def __setstate__(self, state: object) -> None:
        """Takes the byte order; what else NumPy says of a type matters to structures only."""
        if isinstance(state, tuple) and len(state) > 1 and state[1] in ("<", ">", "|", "="):
            self.byte_order = state[1]


def _scalar(kind: object, data: object = b"") -> object:
    """A scalar of NumPy as a number or word of Python. Raises UnpicklingError for one that is neither."""
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
"""NumPy 1 and 2."""
NUMPY_CLASSES = (
    *(
        f"{kind}{bits}"
        for kind, sizes in (("int", (8, 16, 32, 64)), ("uint", (8, 16, 32, 64)), ("float", (16, 32, 64)))
        for bits in sizes
    ),
    *("complex64", "complex128", "bool", "bool_", "str_", "bytes_"),
)
"""Types of numbers that a program was told to compute in, as classes."""
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
"""Hyperparameters of Lightning: a dictionary that also answers to attributes."""

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
"""For `torch.serialization.safe_globals`: what stands for a name in a file, and that name."""
