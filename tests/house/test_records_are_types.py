"""No fact travels as a sentence: what the report and the conversion read are records, so that they need no patterns."""

import re
from pathlib import Path

PACKAGE = Path(__file__).parents[2] / "openjepa"
ROOMS = ("report", "weights/convert", "experiments")
ALLOWED = {
    ("conversion.py", "fullmatch"): "an identifier of a license, as a user types it",
    ("origin.py", "search"): "separators and wildcards in a path of a user's settings",
    ("origin.py", "split"): "the parts of such a path",
    ("card.py", "sub"): "a name of a data set as the Hub's identifier",
}


def test_no_pattern_reads_our_own_prose() -> None:
    found = {
        (path.name, name)
        for room in ROOMS
        for path in sorted((PACKAGE / room).rglob("*.py"))
        for name in re.findall(r"\bre\.(\w+)\(", path.read_text())
    }
    assert found == set(ALLOWED), "read the fact from a record of openjepa/records.py, or say here why a pattern is right"


def test_errors_are_told_apart_by_their_type() -> None:
    rooms = ("report", "weights/convert", "experiments", "commands", "evaluation")
    files = [path for room in rooms for path in sorted((PACKAGE / room).rglob("*.py"))]
    assert not [path.name for path in files if re.search(r"""["'] in str\(error\)""", path.read_text())]
