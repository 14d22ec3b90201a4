"""Registries: every line names code that is there."""

from openjepa.data import SOURCES
from openjepa.data.datasets.benchmarks import BENCHMARKS
from openjepa.masks import MASKS
from openjepa.methods import METHODS
from openjepa.settings.protocols import PROTOCOLS
from openjepa.weights import FORMATS, OUTPUTS
from openjepa.weights.formats import Reader

REGISTRIES = (METHODS, MASKS, SOURCES, BENCHMARKS, PROTOCOLS, FORMATS, OUTPUTS)


def test_every_line_names_code_that_is_there() -> None:
    entries = [entry for registry in REGISTRIES for entry in registry.values()]  # type: ignore[attr-defined]
    assert len(entries) > 30
    for entry in entries:
        assert callable(entry.load()) or isinstance(entry.load(), Reader), entry.home
