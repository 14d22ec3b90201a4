"""docs/methods.md says of each method what its settings say, shows its family, and names its published recipes."""

import re
from pathlib import Path

import pytest

from openjepa.methods import METHODS
from openjepa.recipes import RECIPES, load_recipe
from openjepa.report.facts import ABOUT_LABELS
from openjepa.settings.methods import About

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "methods.md").read_text()
ABOUT: dict[str, About] = {name: entry.settings.about for name, entry in METHODS.items()}
NAMES = {name: entry.settings.paper.name for name, entry in METHODS.items()}
FAMILIES = {
    "joint-embedding": "family_joint_embedding.svg",
    "generative": "family_generative.svg",
    "joint-embedding predictive": "family_predictive.svg",
}


def tables(text: str) -> list[dict[str, list[str]]]:
    """Every Markdown table as its rows by their first cell."""
    found: list[dict[str, list[str]]] = []
    inside = False
    for line in text.splitlines():
        if not line.startswith("|"):
            inside = False
            continue
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if not inside:
            found.append({})
        inside = True
        if not set("".join(cells)) <= set("-: "):
            found[-1][cells[0]] = cells[1:]
    return found


def section(family: str) -> str:
    """What stands under the heading of a family."""
    heading = f"## {family.capitalize()}\n"
    assert heading in PAGE, f"no section {heading!r}"
    return PAGE.split(heading)[1].split("\n## ")[0]


def test_every_method_belongs_to_a_family_of_the_page() -> None:
    assert {about.family for about in ABOUT.values()} == set(FAMILIES)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_table_of_a_family_is_what_the_settings_say(family: str) -> None:
    members = {name: about for name, about in ABOUT.items() if about.family == family}
    (table,) = tables(section(family))
    columns = {word: index for index, word in enumerate(table.pop(""))}
    expected = {NAMES[name] for name in members}
    assert set(columns) == expected, f"docs/methods.md, section {family!r}: one column a method, as its `about` says it"
    assert list(table) == [label for name, label in ABOUT_LABELS.items() if name != "family"]
    for name, about in members.items():
        shown = {label: cells[columns[NAMES[name]]] for label, cells in table.items()}
        assert shown == {label: getattr(about, field) for field, label in ABOUT_LABELS.items() if field != "family"}, name


@pytest.mark.parametrize(("family", "drawing"), FAMILIES.items())
def test_a_family_has_a_drawing_that_names_its_methods(family: str, drawing: str) -> None:
    assert f"images/{drawing}" in section(family)
    source = (ROOT / "docs" / "images" / drawing).read_text()
    words = re.search(r"<desc>(.*)</desc>", source)
    members = {NAMES[name] for name, about in ABOUT.items() if about.family == family}
    assert words is not None and set(words[1].split(", ")) == members, f"name them in <desc> of docs/images/{drawing}"
    assert "prefers-color-scheme: dark" in source and "http" not in source.replace("http://www.w3.org/2000/svg", "")


def test_every_published_recipe_stands_under_its_method() -> None:
    (table,) = tables(PAGE.split("## Recipes\n")[1].split("\n## ")[0])
    for name, recipe in RECIPES.items():
        method = load_recipe(name).method.name
        if name.startswith(f"{method}-vit"):
            assert f"`{name}`" in table[NAMES[method]][0], f"{name} ({', '.join(recipe.presets)})"
    named = set(re.findall(r"`([a-z0-9-]+-vit[a-z0-9-]+)`", PAGE))
    assert named <= set(RECIPES), f"not recipes: {named - set(RECIPES)}"
