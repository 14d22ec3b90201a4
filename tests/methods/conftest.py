"""What makes the toy a method of the package."""

import pytest

from openjepa.methods import METHODS
from openjepa.settings.fields import Entry
from tests.methods.toy_method import MeanColorSettings


@pytest.fixture
def toy_is_a_method(monkeypatch: pytest.MonkeyPatch) -> None:
    """Adds the line of a new method to METHODS."""
    monkeypatch.setitem(METHODS, "mean_color", Entry(MeanColorSettings, "tests.methods.toy_method:MeanColor"))
