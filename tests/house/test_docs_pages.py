"""The pages: links and anchors lead somewhere, generated pages are current, the site builds, the glossary is kept."""

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


def test_the_glossary_is_short_sorted_and_used() -> None:
    entries = ENTRY.findall(text_of("docs/glossary.md"))
    words = [word for word, _, _ in entries]
    assert 20 <= len(words) <= 40
    assert words == sorted(words, key=str.lower)
    others = [ROOT / page for page in pages() if page != "docs/glossary.md"]
    texts = [path.read_text(encoding="utf-8").lower() for path in [*others, *(ROOT / "openjepa").rglob("*.py")]]
    assert [word for word in words if not any(word.lower() in text for text in texts)] == []
    replaced = [old for _, _, replaces in entries for old in re.findall(r"`(.*?)`", replaces)]
    assert not set(replaced) & set(words)


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
