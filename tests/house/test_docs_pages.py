"""The pages: links and anchors lead somewhere, generated pages are current, the site builds, the glossary is kept."""

import ast
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from docs.generate import CODE, GENERATED, LINK, pages, site_text, write_site

ROOT = Path(__file__).parents[2]
ENTRY = re.compile(r"^\| \*\*(.+?)\*\* \| (.*?) \| (.*?) \|$", re.MULTILINE)

EVERYDAY = {
    "cell",
    "chunk",
    "element",
    "embedding",
    "example",
    "item",
    "iteration",
    "objective",
    "reference",
    "representation",
    "trial",
}
"""Words that the glossary replaces in one sense and that are right in others: the verb, <svg> elements, a patch embedding."""
PAPERS = ("__init__.py", "methods/", "recipes/", "settings/methods/", "weights/")
QUOTED = {
    "moving average": ("evaluation/lidar.py", "experiments/", "inference/encoder.py", "settings/run.py", "training/", *PAPERS),
    "cls": ("commands/parsing/", "config.py", "data/tables/", "settings/sources.py", "weights/"),  # a class, a file in a tar
    "backbone": ("weights/",),  # names in checkpoints
    "job": (
        "commands/experiments/launch.py",
        "system/slurm.py",
        "settings/clusters.py",
        "system/interrupts.py",
    ),  # what a scheduler runs
    "linear-cached": ("settings/protocols.py",),  # the name in older results
}
"""Replaced words that still stand for what they mean elsewhere: word -> where."""


def text_of(page: str) -> str:
    return (ROOT / page).read_text(encoding="utf-8")


def links(page: str) -> Iterator[tuple[str, str]]:
    """Target and anchor of every link of a page that is no address of the web; code is left out."""
    for link in LINK.finditer(CODE.sub("", text_of(page))):
        if "://" not in link["target"]:
            target, _, anchor = link["target"].partition("#")
            yield target, anchor


def anchors(path: Path) -> set[str]:
    """The anchors of a page's headings, as code hosts make them: letters, digits and hyphens for spaces."""
    headings = re.findall(r"^#+ (.*)$", CODE.sub("", path.read_text(encoding="utf-8")), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", pages())
def test_every_link_leads_somewhere(page: str) -> None:
    broken = []
    for target, anchor in links(page):
        path = (ROOT / page).parent / target if target else ROOT / page
        if not path.exists() or (anchor and anchor not in anchors(path)):
            broken.append(f"{target}#{anchor}")
    assert not broken


def test_links_are_found_and_rewritten_for_the_site() -> None:
    assert {target for target, _ in links("README.md")} >= {"docs/python.md", "docs/recipes.md", "docs/results/README.md"}
    assert "](python.md)" in site_text("README.md") and "](results.md)" in site_text("README.md")
    assert "](timings.md)" in site_text("docs/search.md")
    assert "(`docs/results/quickstart-seed0`)" in site_text("docs/results/README.md")


@pytest.mark.parametrize("name", GENERATED)
def test_generated_pages_are_current(name: str) -> None:
    assert text_of(f"docs/{name}") == GENERATED[name](), "run `make docs`"


def test_the_site_shows_every_page_once() -> None:
    def shown(entry: object) -> Iterator[str]:
        if isinstance(entry, str):
            yield entry
        else:
            for part in entry.values() if isinstance(entry, dict) else entry:  # type: ignore[attr-defined]
                yield from shown(part)

    assert sorted(shown(yaml.safe_load(text_of("mkdocs.yml"))["nav"])) == sorted(pages().values())


def test_the_site_builds_without_a_warning(tmp_path: Path) -> None:
    """In strict mode a link to a page or an anchor that is not there is an error."""
    pytest.importorskip("zensical", reason="needs the extra docs")
    write_site(tmp_path / "build" / "pages")
    shutil.copy(ROOT / "mkdocs.yml", tmp_path)
    command = [sys.executable, "-m", "zensical", "build", "--strict"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, re.sub(r"\x1b\[[\d;]*m", "", done.stdout)
    front = (tmp_path / "site" / "index.html").read_text(encoding="utf-8")
    assert "images/openjepa.png" in front and 'href="python.html"' in front


def test_the_readme_is_short() -> None:
    assert len(text_of("README.md").splitlines()) <= 120


def test_the_glossary_is_short_and_sorted() -> None:
    entries = ENTRY.findall(text_of("docs/glossary.md"))
    words = [word for word, _, _ in entries]
    assert 20 <= len(words) <= 40
    assert words == sorted(words, key=str.lower)
    assert not set(replaced_words()) & set(words)
    assert not EVERYDAY - set(replaced_words()) and not set(QUOTED) - set(replaced_words())


def replaced_words() -> list[str]:
    """What the glossary's third column says that its words replace."""
    return [old for _, _, replaces in ENTRY.findall(text_of("docs/glossary.md")) for old in re.findall(r"`(.*?)`", replaces)]


def docstrings(path: Path) -> str:
    """The docstrings of a file, one a line: of its modules, classes, functions and fields. Those of options are their help."""
    nodes = [node.value for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))) if isinstance(node, ast.Expr)]
    texts = [node.value for node in nodes if isinstance(node, ast.Constant) and isinstance(node.value, str)]
    return "\n".join(" ".join(text.split()) for text in texts)


def test_no_docstring_has_a_word_that_the_glossary_replaces() -> None:
    words = {old: re.compile(rf"(?<![\w-]){re.escape(old)}s?(?![\w-])", re.IGNORECASE) for old in replaced_words()}
    wrong = []
    for path in sorted((ROOT / "openjepa").rglob("*.py")):
        text, name = docstrings(path), path.relative_to(ROOT / "openjepa").as_posix()
        wrong += [
            f"{name}: {old}"
            for old, pattern in words.items()
            if old not in EVERYDAY and not name.startswith(QUOTED.get(old, ())) and pattern.search(text)
        ]
    assert len(words) > 40
    assert not wrong, "use the glossary's word, or say in QUOTED where a paper's own word or an older file's name is quoted"


def test_the_walks_of_the_architecture_page_name_what_is_there() -> None:
    text = text_of("docs/architecture.md")
    named = re.findall(r"`([a-z_0-9/]+\.py)(?::(\w+))?`", text)
    files = {file: (ROOT / "openjepa" / file) for file, _ in named if not file.startswith("docs/")}
    missing = [file for file, path in files.items() if not path.is_file() and "mine" not in file]
    missing += [
        f"{file}:{name}"
        for file, name in named
        if name and file not in missing and not re.search(rf"^(def|class) {name}\b", files[file].read_text(), re.MULTILINE)
    ]
    assert not missing
    assert len(named) > 30
    walks = text.partition("## Three walks")[2].partition("\n## ")[0]
    assert max(int(number) for number in re.findall(r"^(\d+)\. ", walks, re.MULTILINE)) <= 15
    assert len(text.splitlines()) <= 130, "two screens"


def test_the_worked_method_of_the_contributing_page_is_the_one_that_is_tested() -> None:
    blocks = re.findall(r"```python\n(.*?)```", text_of("docs/contributing.md"), re.DOTALL)
    in_the_package = '    "mean_color": Entry(MeanColorSettings, "openjepa.methods.mean_color:MeanColor"),'
    code = text_of("tests/methods/toy_method.py") + in_the_package
    lines = [line for block in blocks for line in block.splitlines() if line.strip()]
    assert not [line for line in lines if line not in code]
    assert len(blocks) >= 5
