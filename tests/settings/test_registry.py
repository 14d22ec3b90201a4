"""Registries: every line names code that is there."""

import pytest

from openjepa.data import SOURCES
from openjepa.data.datasets.benchmarks import BENCHMARKS
from openjepa.evaluation import PROTOCOLS
from openjepa.masks import MASKS
from openjepa.methods import METHODS
from openjepa.settings.registry import imported
from openjepa.weights import FORMATS, OUTPUTS
from openjepa.weights.formats import Reader

REGISTRIES = (METHODS, MASKS, SOURCES, PROTOCOLS, FORMATS, OUTPUTS)
LINES = [entry for registry in REGISTRIES for entry in registry.values()]  # type: ignore[attr-defined]


@pytest.mark.parametrize("entry", LINES, ids=lambda entry: entry.home)
def test_every_line_names_code_that_is_there(entry) -> None:  # type: ignore[no-untyped-def]
    assert callable(entry.load()) or isinstance(entry.load(), Reader)


@pytest.mark.parametrize("name", BENCHMARKS)
def test_every_benchmark_names_its_opener(name: str) -> None:
    assert callable(imported(BENCHMARKS[name].home))
