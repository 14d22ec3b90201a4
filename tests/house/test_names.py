"""A name exists once: a class, a function, and a constant that leaves its file have one home in the package."""

import ast
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

PACKAGE = Path(__file__).parents[2] / "openjepa"
FACADES = ("__init__.py", "commands/", "report/__init__.py")
"""The public functions and the commands are called like what they call."""
SHARED = {
    "read": "every format of weights has these four",
    "recognize": "",
    "write": "",
    "READER": "",
    "RECIPES": "the recipes of a method, joined in recipes/__init__.py",
}
"""Names of several homes, and why."""


def definitions(tree: ast.Module) -> Iterator[tuple[str, str]]:
    """Public names at the top of a module: `class` and `function` first, else `constant` (a type alias, too)."""
    for node in tree.body:
        if isinstance(node, ast.ClassDef | ast.FunctionDef):
            yield node.name, "class" if isinstance(node, ast.ClassDef) else "function"
        elif isinstance(node, ast.Assign | ast.AnnAssign) and not ast.unparse(node.value or node).startswith("TypeVar("):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            yield from ((target.id, "constant") for target in targets if isinstance(target, ast.Name))


def homes() -> tuple[dict[str, dict[str, str]], set[tuple[str, str]]]:
    """The files of each public name with its kind there, and the names with the files that others import them from."""
    found: dict[str, dict[str, str]] = defaultdict(dict)
    imported = set()
    for path in sorted(PACKAGE.rglob("*.py")):
        name, tree = path.relative_to(PACKAGE).as_posix(), ast.parse(path.read_text(encoding="utf-8"))
        for node in ast.walk(tree):
            if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("openjepa."):
                file = node.module.removeprefix("openjepa.").replace(".", "/")
                imported |= {(alias.name, f"{file}{end}") for alias in node.names for end in (".py", "/__init__.py")}
        for word, kind in definitions(tree):
            if not word.startswith("_") and not name.startswith(FACADES):
                found[word][name] = kind
    return found, imported


def test_a_name_exists_once() -> None:
    found, imported = homes()
    assert len(found) > 1500
    wrong = [
        f"{word}: {', '.join(files)}"
        for word, files in sorted(found.items())
        if len(files) > 1
        and word not in SHARED
        and (set(files.values()) != {"constant"} or any((word, file) in imported for file in files))
    ]
    assert not wrong, "\n".join(["give each meaning its own name, or the thing one home:", *wrong])
    assert all(len(found[word]) > 1 for word in SHARED)
