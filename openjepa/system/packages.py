"""Packages that only some features need, and the extra of openjepa that brings each."""

import importlib.util
from collections.abc import Iterator
from contextlib import contextmanager

from openjepa.refusals import Refusal

EXTRAS: dict[str, tuple[str, ...]] = {
    "data": ("datasets", "pyarrow"),
    "scenes": ("mitsuba", "drjit"),
    "eval": ("scipy",),
    "report": ("matplotlib", "jinja2", "markupsafe"),
    "tracking": ("tensorboard",),
    "hub": ("huggingface_hub",),
    "transformers": ("transformers",),
    "onnx": ("onnx", "onnxruntime", "onnxscript", "onnx_ir"),
    "search": ("usearch",),
}
"""Extra -> modules that are imported, those of the packages that its packages bring among them."""


def require_package(package: str, what: str, instead: str = "") -> None:
    """Raises Refusal unless `package`, which `what` needs, is installed; imports nothing. `instead`: what would do without."""
    if importlib.util.find_spec(package) is None:
        raise _missing(package, what, instead)


@contextmanager
def needed_for(what: str, instead: str = "") -> Iterator[None]:
    """Turns the error of a missing package of an extra, which `what` needs, into a Refusal; every other error passes."""
    try:
        yield
    except ModuleNotFoundError as error:
        package = (error.name or "").split(".")[0]
        if not any(package in packages for packages in EXTRAS.values()):
            raise
        raise _missing(package, what, instead) from None


def _missing(package: str, what: str, instead: str) -> Refusal:
    extra = next(name for name, packages in EXTRAS.items() if package in packages)
    return Refusal(f"{what} needs the package {package}: pip install 'openjepa[{extra}]'{instead and f', or {instead}'}")
