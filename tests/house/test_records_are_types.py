"""No fact travels as a sentence: what the report and the conversion read are records, so that they need no patterns."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

PACKAGE = Path(__file__).parents[2] / "openjepa"
ROOMS = ("report", "weights/convert", "experiments", "commands", "evaluation")
FILES = [path for room in ROOMS for path in sorted((PACKAGE / room).rglob("*.py"))]
MATCHES = {"match", "fullmatch", "search", "findall", "finditer", "split", "sub", "subn"}
ALLOWED = {
    ("commands/parsing/help.py", r"'  +(?!openjepa|torchrun|pip)\\S.*?  +'"): "a table of two columns in a docstring",
    ("commands/parsing/help.py", r"'(?<=\\.)\\s+(?=[A-Z`])'"): "the sentences of an option's docstring",
    ("evaluation/tasks.py", r"'[^\\w.+-]+'"): "what no file name may hold",
    ("weights/convert/conversion.py", "'[a-z0-9][a-z0-9.-]*'"): "an identifier of a license, as a user types it",
    ("weights/convert/origin.py", r"'[/\\\\]'"): "separators in a path of a user's settings",
    ("weights/convert/origin.py", r"'[*?\\[]'"): "wildcards in such a path",
    ("weights/convert/card.py", "'[^a-z0-9]+'"): "a name of a data set as the Hub's identifier",
}


def patterns(tree: ast.Module) -> Iterator[str]:
    """The pattern of each call of `re`, and each constant of a module whose method matches: it is a compiled pattern."""
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module == "re":
            yield f"from re import {', '.join(alias.name for alias in node.names)}"
        if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute)):
            continue
        called = ast.unparse(node.func.value)
        if called == "re":
            yield ast.unparse(node.args[0])
        elif node.func.attr in MATCHES and called.rpartition(".")[2].isupper():
            yield f"{called}.{node.func.attr}"


def test_no_pattern_reads_our_own_prose() -> None:
    found = {(path.relative_to(PACKAGE).as_posix(), one) for path in FILES for one in patterns(ast.parse(path.read_text()))}
    assert found == set(ALLOWED), "read the fact from a record of openjepa/records.py, or say here why a pattern is right"


def test_every_way_to_match_is_seen() -> None:
    code = "import re\nWORD = re.compile('a')\nre.search('b', text)\nWORD.fullmatch(text)\nwords.TEXT.match(text)\ntext.split()"
    assert list(patterns(ast.parse(code))) == ["'a'", "'b'", "WORD.fullmatch", "words.TEXT.match"]
    assert list(patterns(ast.parse("from re import search"))) == ["from re import search"]


def test_errors_are_told_apart_by_their_type() -> None:
    assert not [path.name for path in FILES if re.search(r"""["'] in str\(error\)""", path.read_text())]
