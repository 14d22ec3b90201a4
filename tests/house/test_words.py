"""Docstrings of the package begin with the thing that they are about, and name what they count."""

import ast
from collections.abc import Iterator
from pathlib import Path

PACKAGE = Path(__file__).parents[2] / "openjepa"


def docstrings(path: Path) -> Iterator[tuple[int, str]]:
    """Line and text of every string that stands alone: of modules, classes and functions, and below fields and constants."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str):
            yield node.lineno, " ".join(node.value.value.split())


def test_no_docstring_begins_with_of_or_says_so_many() -> None:
    found = {path: list(docstrings(path)) for path in sorted(PACKAGE.rglob("*.py"))}
    assert sum(map(len, found.values())) > 1500
    wrong = [
        f"{path.relative_to(PACKAGE.parent)}:{line}: {text[:80]}"
        for path, texts in found.items()
        for line, text in texts
        if text.startswith("Of ") or "so many" in text.lower()
    ]
    assert not wrong, "\n".join(wrong)
