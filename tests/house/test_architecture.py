"""Who imports whom, what stays free of torch, how large rooms may be. Each check is one loop that lists all offenders at once.

See docs/architecture.md.
"""

import ast
import re
import subprocess
from collections import Counter
from collections.abc import Iterator
from functools import cache
from pathlib import Path

from docs.layers import LAYERS

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "openjepa"

IMPORTERS_OF_METHODS = {"methods", "training", "experiments"}
TORCH_FREE = {
    "refusals",
    "records",
    "settings",
    "seeds",
    "config",
    "system",
    "schedules",
    "checks",
    "recipes",
    "report",
    "commands",
    "cli",
}
TORCH_FREE_FILES = {
    f"{name}/__init__.py" for name in ("methods", "masks", "data", "evaluation", "engine", "training", "weights")
}
TORCH_FREE_FILES |= {"__init__.py", "measures/__init__.py", "measures/verdicts.py", "weights/convert/card.py"}
TORCH_FREE_FILES |= {"data/source.py", "data/datasets/benchmarks.py", "evaluation/tasks.py", "engine/run_states.py"}

MAX_FILE_LINES, MAX_FUNCTION_LINES, MAX_NESTING = 450, 60, 3
LONGER_FUNCTIONS = {"openjepa/training/loop.py:_train": 200}
MAX_TOP_FOLDERS, MAX_TOP_FILES, MAX_ENTRIES = 18, 10, 14
ROOMS_OF_A_METHOD = ("methods/", "settings/methods/", "recipes/")

MODULES = sorted(PACKAGE.rglob("*.py"))
OUR_CODE = [*MODULES, *sorted((ROOT / "tests").rglob("*.py")), *sorted((ROOT / "benchmarks").rglob("*.py"))]
PARTS = sorted((name for layer in LAYERS for name in layer), key=len, reverse=True)


@cache
def parsed(path: Path) -> ast.Module:
    return ast.parse(path.read_text())


def part(name: str) -> str:
    """The part that a path below the package (`inference/search/exact`) belongs to."""
    found = next((part for part in PARTS if name == part or name.startswith(f"{part}/")), None)
    assert found is not None, f"openjepa/{name} stands in no layer of docs/layers.py"
    return found


def layer(name: str) -> int:
    return next(number for number, parts in enumerate(LAYERS) if name in parts)


def below_package(path: Path) -> str:
    return path.relative_to(PACKAGE).as_posix()


def relative(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def imported_by(node: ast.AST) -> list[str]:
    """Modules that one statement imports; `from a import b` gives `a.b`."""
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    if isinstance(node, ast.ImportFrom):
        assert node.level == 0, "relative imports hide where an arrow points"
        return [f"{node.module}.{alias.name}" for alias in node.names]
    return []


@cache
def runtime_imports(path: Path) -> list[str]:
    """What a file imports when it runs: not what stands in `if TYPE_CHECKING:`."""
    blocks = [node for node in ast.walk(parsed(path)) if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"]
    only_typing = {id(node) for block in blocks for node in ast.walk(block)}
    nodes = [node for node in ast.walk(parsed(path)) if id(node) not in only_typing]
    return [name for node in nodes for name in imported_by(node)]


def imported_parts(path: Path) -> set[str]:
    """Parts of openjepa that a file imports. `import openjepa` alone (for its version) is no arrow."""
    names = {name.removeprefix("openjepa.") for name in runtime_imports(path) if name.startswith("openjepa.")}
    return {part(name.replace(".", "/")) for name in names - {"__version__"}}


def test_arrows_point_down() -> None:
    wrong = []
    for path in MODULES:
        own, imported = part(below_package(path).removesuffix(".py")), imported_parts(path)
        wrong += [
            f"{relative(path)} imports {name}, which is not below {own}"
            for name in imported - {own}
            if layer(name) <= layer(own)
        ]
        if "methods" in imported and own not in IMPORTERS_OF_METHODS:
            wrong.append(f"{relative(path)} knows methods; only {sorted(IMPORTERS_OF_METHODS)} may")
    assert not wrong
    assert len(MODULES) > 200


def test_tests_import_helpers_and_not_each_other() -> None:
    tests = [path for path in OUR_CODE if relative(path).startswith("tests/")]
    found = [(path, re.findall(r"^\s*from (tests\.\S*\.test_\w+) import", path.read_text(), re.MULTILINE)) for path in tests]
    assert not [f"{relative(path)} imports {name}" for path, names in found for name in names]
    assert len(tests) > 150


def test_what_must_not_be_imported_is_not() -> None:
    wrong = []
    for path in MODULES:
        roots = {name.split(".")[0] for name in runtime_imports(path)}
        if part(below_package(path).removesuffix(".py")) in TORCH_FREE or below_package(path) in TORCH_FREE_FILES:
            wrong += [f"{relative(path)} imports {name}" for name in roots & {"torch", "safetensors"}]
        if "torchvision" in roots:
            wrong.append(f"{relative(path)} imports torchvision")
    wrong += [f"{name} is in the table and not there" for name in TORCH_FREE_FILES if not (PACKAGE / name).exists()]
    assert not wrong


def nesting(node: ast.AST) -> int:
    """Deepest level of loops, conditions, `with` and `try` in a body; an `elif` is no level of its own."""
    compound = (ast.For, ast.While, ast.If, ast.With, ast.Try)
    deepest = 0
    for name, value in ast.iter_fields(node):
        for child in value if isinstance(value, list) else [value]:
            if not isinstance(child, ast.AST) or isinstance(child, ast.FunctionDef | ast.ClassDef):
                continue
            is_elif = name == "orelse" and isinstance(node, ast.If) and isinstance(child, ast.If) and len(value) == 1
            deepest = max(deepest, nesting(child) + (isinstance(child, compound) and not is_elif))
    return deepest


def test_files_and_functions_are_short_and_flat() -> None:
    wrong = []
    for path in OUR_CODE:
        if (lines := len(path.read_text().splitlines())) > MAX_FILE_LINES:
            wrong.append(f"{relative(path)}: {lines} lines")
    functions = [(path, node) for path in MODULES for node in ast.walk(parsed(path)) if isinstance(node, ast.FunctionDef)]
    for path, node in functions:
        lines = (node.end_lineno or 0) - node.lineno + 1
        if lines > LONGER_FUNCTIONS.get(f"{relative(path)}:{node.name}", MAX_FUNCTION_LINES):
            wrong.append(f"{relative(path)}: {node.name} has {lines} lines")
        if nesting(node) > MAX_NESTING:
            wrong.append(f"{relative(path)}: {node.name} has {nesting(node)} levels of nesting")
    assert not wrong


def test_nesting_is_counted_as_meant() -> None:
    text = "def f():\n for a in b:\n  if c:\n   pass\n  elif d:\n   with e:\n    pass\n  else:\n   if g:\n    pass"
    assert nesting(ast.parse(text).body[0]) == 3


def entries(folder: Path) -> list[Path]:
    return [entry for entry in folder.iterdir() if entry.name not in ("__pycache__", "py.typed")]


def test_rooms_are_few_and_named_once() -> None:
    wrong = []
    folders = [PACKAGE, *(path for path in PACKAGE.rglob("*") if path.is_dir() and path.name != "__pycache__")]
    for folder in folders[1:]:
        if len(entries(folder)) > MAX_ENTRIES:
            wrong.append(f"{relative(folder)} has {len(entries(folder))} entries")
    top_folders = sum(entry.is_dir() for entry in entries(PACKAGE))
    top_files = len(entries(PACKAGE)) - top_folders
    if top_folders > MAX_TOP_FOLDERS or top_files > MAX_TOP_FILES:
        wrong.append(f"openjepa/ has {top_folders} folders and {top_files} files")
    elsewhere = [path for path in MODULES if not below_package(path).startswith(ROOMS_OF_A_METHOD) and path.stem != "__init__"]
    counts = Counter(path.stem for path in elsewhere)
    wrong += [f"{relative(path)}: this name exists twice" for path in elsewhere if counts[path.stem] > 1]
    assert not wrong


def committed_text() -> Iterator[tuple[str, str]]:
    """Name and text of every tracked text file; outside a git checkout, of every Python and Markdown file."""
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=False)
    names = listed.stdout.split("\n") if listed.returncode == 0 else [relative(path) for path in OUR_CODE]
    for name in filter(None, names):
        path = ROOT / name
        data = path.read_bytes() if path.is_file() else b""
        if b"\0" not in data[:4096]:
            yield name, data.decode("utf-8", errors="replace")


def test_no_file_names_a_machine() -> None:
    absolute = re.compile(r"(?<![\w.~}])/(?:work|root|home|Users|opt)/\w")
    found = [f"{name}: {match.group()}" for name, text in committed_text() if (match := absolute.search(text))]
    assert not found


def test_no_committed_file_is_large() -> None:
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=False)
    sizes = {name: (ROOT / name).stat().st_size for name in listed.stdout.split("\0") if name and (ROOT / name).is_file()}
    assert not {name: size for name, size in sizes.items() if size > 10_000_000}
