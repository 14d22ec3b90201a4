"""Who imports whom, what stays free of torch, and the budgets. See docs/architecture.md."""

import ast
import re
import subprocess
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "openjepa"

# Each part imports only parts of the tiers below its own (and itself).
TIERS = (
    ("refusals",),
    ("settings", "extras", "shell"),
    ("types", "registry", "seeds", "ranges", "config", "derived", "distributed"),
    ("whole_files", "json_files", "memory", "timings", "hub_names"),
    ("schedules", "checks", "evaluation_checks", "recipes", "measures"),
    ("ablations",),
    ("models", "masks", "data"),
    ("engine", "weights"),
    ("methods", "inference"),
    ("training", "evaluation", "visualization", "report", "embedding"),
    ("experiments", "bench", "bench_data", "bench_energy", "search", "conversion"),
    ("ablation",),
    ("commands",),
    ("cli", "__init__"),
    ("__main__",),
)
IMPORTERS_OF_METHODS = {"methods", "training", "bench", "bench_energy"}
TORCH_FREE = {
    "settings",
    "config",
    "derived",
    "checks",
    "evaluation_checks",
    "ablations",
    "recipes",
    "schedules",
    "seeds",
    "registry",
    "refusals",
    "extras",
    "shell",
    "ranges",
    "whole_files",
    "json_files",
    "memory",
    "timings",
    "hub_names",
    "report",
    "commands",
    "cli",
}
TORCH_FREE_FILES = {f"{name}/__init__.py" for name in ("methods", "masks", "data", "evaluation", "engine", "training")}
TORCH_FREE_FILES |= {"data/datasets/benchmarks.py", "data/source.py", "evaluation/suite.py"}
TORCH_FREE_FILES |= {"data/source.py", "evaluation/results.py", "measures/__init__.py", "measures/verdicts.py"}
TORCH_FREE_FILES |= {"__init__.py", "system/interrupts.py", "weights/__init__.py", "weights/formats.py"}
TORCH_FREE_FILES |= {f"conversion/{name}.py" for name in ("__init__", "card", "places", "snippets")}

MAX_FILE_LINES, MAX_FUNCTION_LINES, MAX_NESTING = 450, 60, 3
LONGER_FUNCTIONS = {"openjepa/training/loop.py:train": 200}

MODULES = sorted(PACKAGE.rglob("*.py"))
OUR_CODE = [*MODULES, *sorted((ROOT / "tests").rglob("*.py")), *sorted((ROOT / "benchmarks").rglob("*.py"))]


@cache
def parsed(path: Path) -> ast.Module:
    return ast.parse(path.read_text())


def part(path: Path) -> str:
    first = path.relative_to(PACKAGE).parts[0]
    return first.removesuffix(".py")


def tier(name: str) -> int:
    found = [number for number, parts in enumerate(TIERS) if name in parts]
    assert len(found) == 1, f"openjepa/{name} stands in no tier of the table, or in several"
    return found[0]


def imported_by(node: ast.AST) -> list[str]:
    """Modules that one statement imports; `from a import b` gives `a.b`."""
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    if isinstance(node, ast.ImportFrom):
        assert node.level == 0, "relative imports hide where an arrow points"
        return [f"{node.module}.{alias.name}" for alias in node.names]
    return []


def runtime_imports(path: Path) -> list[str]:
    """What a file imports when it runs: not what stands in `if TYPE_CHECKING:`."""
    blocks = [node for node in ast.walk(parsed(path)) if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"]
    only_typing = {id(node) for block in blocks for node in ast.walk(block)}
    nodes = [node for node in ast.walk(parsed(path)) if id(node) not in only_typing]
    return [name for node in nodes for name in imported_by(node)]


def our_imports(path: Path) -> set[str]:
    """Parts of openjepa that a file imports. `import openjepa` alone (for its version) is no arrow."""
    return {name.split(".")[1] for name in runtime_imports(path) if name.startswith("openjepa.")} - {"__version__"}


def relative(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def test_something_is_checked() -> None:
    assert len(MODULES) > 40


@pytest.mark.parametrize("path", MODULES, ids=relative)
def test_arrows_point_down(path: Path) -> None:
    own = part(path)
    for name in our_imports(path) - {own}:
        assert tier(name) < tier(own), f"{relative(path)} imports {name}, which is not below {own}"


@pytest.mark.parametrize("path", MODULES, ids=relative)
def test_only_the_loop_and_the_benchmark_know_methods(path: Path) -> None:
    assert "methods" not in our_imports(path) or part(path) in IMPORTERS_OF_METHODS


@pytest.mark.parametrize("path", MODULES, ids=relative)
def test_torch_free_parts_never_import_torch(path: Path) -> None:
    if part(path) in TORCH_FREE or path.relative_to(PACKAGE).as_posix() in TORCH_FREE_FILES:
        assert not [name for name in runtime_imports(path) if name.split(".")[0] in ("torch", "safetensors")]


def test_torch_free_parts_exist() -> None:
    assert {part(path) for path in MODULES} >= TORCH_FREE
    assert all((PACKAGE / name).exists() for name in TORCH_FREE_FILES)


@pytest.mark.parametrize("path", MODULES, ids=relative)
def test_torchvision_is_never_used(path: Path) -> None:
    assert not [name for name in runtime_imports(path) if name.split(".")[0] == "torchvision"]


@pytest.mark.parametrize("path", OUR_CODE, ids=relative)
def test_files_are_short(path: Path) -> None:
    lines = len(path.read_text().splitlines())
    assert lines <= MAX_FILE_LINES, f"{lines} lines"


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


@pytest.mark.parametrize("path", MODULES, ids=relative)
def test_functions_are_short_and_flat(path: Path) -> None:
    for node in ast.walk(parsed(path)):
        if isinstance(node, ast.FunctionDef):
            lines = (node.end_lineno or 0) - node.lineno + 1
            limit = LONGER_FUNCTIONS.get(f"{relative(path)}:{node.name}", MAX_FUNCTION_LINES)
            assert lines <= limit, f"{node.name} has {lines} lines"
            assert nesting(node) <= MAX_NESTING, f"{node.name} has {nesting(node)} levels of nesting"


def test_nesting_is_counted_as_meant() -> None:
    text = "def f():\n for a in b:\n  if c:\n   pass\n  elif d:\n   with e:\n    pass\n  else:\n   if g:\n    pass"
    assert nesting(ast.parse(text).body[0]) == 3


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
