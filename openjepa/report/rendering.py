"""Fills the templates of `templates/`."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from openjepa.report import wording

FOLDER = Path(__file__).parent / "templates"


def render(template: str, values: Mapping[str, Any]) -> str:
    """A template with these values, every one of them escaped. The style sheet stands in the page as `style`."""
    from jinja2 import DictLoader, Environment, StrictUndefined

    sources = {path.name: path.read_text(encoding="utf-8") for path in sorted(FOLDER.glob("*.html"))}
    environment = Environment(
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True, loader=DictLoader(sources)
    )
    environment.filters["percent"] = wording.percent
    style = "".join((FOLDER / name).read_text(encoding="utf-8") for name in ("style.css", "style_charts.css"))
    return environment.get_template(template).render({**values, "style": style})
