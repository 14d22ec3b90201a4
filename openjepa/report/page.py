"""Assembles the report: one HTML file without scripts or requests. Pictures are included as data URIs."""

import base64
import io
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from PIL import Image

from openjepa import __version__
from openjepa.records import SUBJECT_NAMES
from openjepa.refusals import Refusal
from openjepa.report import beside, curves, facts, headline, landscape, probes
from openjepa.report.beside import draw_strip
from openjepa.report.curves import Chart, draw_chart
from openjepa.report.numbers import percent
from openjepa.report.reading import Figure, Run, distinct, read_run
from openjepa.report.svg import NUM_COLORS
from openjepa.system import console
from openjepa.system.shared_files import whole_file

FOLDER = Path(__file__).parent / "templates"
MAX_BYTES = 10_000_000
PICTURE_BYTES = 7_500_000
MAX_RUNS = 12
STATUS_SENTENCES = {
    "running": "This run is still running.",
    "interrupted": "This run is interrupted: the same command continues it.",
    facts.UNFINISHED_RUN: "This run is unfinished, and no process trains it: the same command continues it.",
}

MAX_COMMAND = 5000
"""Largest number of characters of a recorded command that are shown."""
KEEP_BYTES = 250_000
"""Files up to this many bytes are embedded unchanged."""
MAX_WIDTH = 2200
MAX_SOURCE_PIXELS = 60_000_000


@dataclass(frozen=True)
class ReportPicture:
    """A figure ready to be shown."""

    title: str
    caption: str
    alt: str
    uri: str
    width: int
    height: int


@dataclass(frozen=True)
class RunView:
    """One run as the template shows it."""

    name: str
    color: int
    status: str
    error: str
    """The error that ended a failed run; else empty."""
    command: str
    verdict: facts.Verdict
    pictures: list[ReportPicture]
    failed_pictures: list[str]
    folder: Run
    settings: list[tuple[str, list[tuple[str, str]]]]
    missing: list[tuple[str, str, str]]
    """Missing parts, each as (what is missing, "it" or "them", the command that produces it)."""


def write_report(runs: Sequence[Path], output: Path | None = None) -> Path:
    """Writes an HTML page about one run, or about several side by side, and returns its path.

    `output` defaults to `report.html` in the run's folder, or for several runs in the folder that holds the first. If a run is
    unfinished or has no evaluations or pictures, the page names the commands for what is missing. Raises Refusal if `runs` is
    empty or too long, if a folder is not a run folder or is named twice, or if the page would be larger than 10 MB.
    """
    if not runs:
        raise Refusal("runs is empty: name at least one run folder, e.g. `openjepa report runs/<name>`")
    if len(runs) > MAX_RUNS:
        raise Refusal(f"runs has {len(runs)} folders: at most {MAX_RUNS} fit on one page")
    folders = distinct([read_run(Path(path)) for path in runs])
    if output is None:
        output = Path(runs[0]) / "report.html" if len(runs) == 1 else Path(runs[0]).parent / "report.html"
    page = render(folders).encode("utf-8", errors="backslashreplace")
    if len(page) > MAX_BYTES:
        raise Refusal(f"the page would have {len(page):,} bytes, more than {MAX_BYTES:,}: report on fewer runs at once")
    with whole_file(output) as file:
        file.write_bytes(page)
    return output


def render(folders: Sequence[Run]) -> str:
    """The HTML of the page."""
    views = [_view(folder, index, PICTURE_BYTES // len(folders)) for index, folder in enumerate(folders)]
    several = len(folders) > 1
    values = {
        "title": views[0].name if not several else f"{len(views)} runs compared",
        "runs": views,
        "several": several,
        "facts": [] if all(folder.is_encoder for folder in folders) else facts.facts(folders),
        "learned_from": facts.learned_from(folders),
        "landscapes": landscape.landscapes(folders),
        "differences": facts.differences(folders) if several else [],
        "learning": _drawn(curves.learning_charts(folders), "learning"),
        "machinery": _drawn(curves.machinery_charts(folders), "machinery"),
        "small_print": [view for view in views if not view.folder.is_encoder],
        "lede": facts.lede(folders[0]),
        "status_sentences": STATUS_SENTENCES,
        "version": __version__,
        "written": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
    }
    return fill_template("page.html", values | _results(folders) | _beside(folders))


def _results(folders: Sequence[Run]) -> dict[str, Any]:
    """Values for the template about the probes."""
    rows = probes.probe_table(folders)
    shown, folded = probes.unfolded(rows)
    names = dict.fromkeys(row.probe for row in rows)
    measures = {row.measure for row in rows}
    return {
        "rows": shown,
        "folded": folded,
        "quantity": probes.quantity(measures),
        "headline": None if len(folders) > 1 else headline.headline(rows),
        "headlines": [headline.headline(rows, index) for index in range(len(folders))],
        "heads": probes.heads(folders),
        "stale": headline.stale(folders),
        "skipped_tasks": headline.skipped_tasks(folders),
        "has_seeds": any(score.seeds > 1 for row in rows for score in row.scores.values()),
        "has_finetuned": probes.has_finetuned(names),
        "probe_words": probes.probe_words(names),
        "subjects": [name for name in SUBJECT_NAMES if any(name in row.scores for row in rows)],
        "subject_words": SUBJECT_NAMES,
        "selections": {row.selection: probes.SELECTION_WORDS.get(row.selection, "") for row in rows if row.selection},
    }


def _beside(folders: Sequence[Run]) -> dict[str, Any]:
    """Values for the template about published numbers, and about quality without labels."""
    found, compared = headline.qualities(folders), beside.comparisons(folders)
    return {
        "comparisons": [(item, draw_strip(item)) for item in compared],
        "num_folded": sum(number.is_folded for item in compared for number in item.ours),
        "qualities": found,
        "measure_names": list(found[0].shown) if found else [],
        "measure_meaning": headline.MEANING,
    }


def _view(folder: Run, index: int, budget: int) -> RunView:
    shown, failed = embed_figures(folder.figures, budget)
    missing: list[tuple[str, str, str]] = []
    if folder.is_encoder:
        shown, failed = [], []
    elif not folder.log.series:
        missing.append(
            ("No training log yet", "it", console.command("openjepa", "train", "--config", folder.path / "config.yaml"))
        )
    if not probes.probe_table([folder]) and not headline.skipped_tasks([folder]):
        missing.append(("No probes yet", "them", facts.openjepa_command(folder, "evaluate")))
    if not shown and not failed and not folder.is_encoder:
        missing.append(("No pictures yet", "them", facts.openjepa_command(folder, "visualize")))
    return RunView(
        name=folder.name,
        color=index % NUM_COLORS,
        status=facts.status(folder),
        error=facts.error(folder),
        command=folder.environment.command[:MAX_COMMAND],
        verdict=facts.collapse(folder),
        pictures=shown,
        failed_pictures=failed,
        folder=folder,
        settings=facts.settings_groups(folder),
        missing=missing,
    )


def _drawn(listed: Sequence[Chart], prefix: str) -> list[tuple[Chart, Any]]:
    return [(chart, draw_chart(chart, f"{prefix}{index}")) for index, chart in enumerate(listed)]


def fill_template(template: str, values: Mapping[str, Any]) -> str:
    """The template filled with `values`, which are escaped, and with the style sheet as `style`."""
    from jinja2 import DictLoader, Environment, StrictUndefined

    sources = {path.name: path.read_text(encoding="utf-8") for path in sorted(FOLDER.glob("*.html"))}
    environment = Environment(
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True, loader=DictLoader(sources)
    )
    environment.filters["percent"] = percent
    style = (FOLDER / "style.css").read_text(encoding="utf-8")
    return environment.get_template(template).render({**values, "style": style})


def embed_figures(figures: Sequence[Figure], budget: int) -> tuple[list[ReportPicture], list[str]]:
    """The figures as data URIs of at most `budget` bytes in total, and the titles of figures that could not be read."""
    pictures, failed = [], []
    for index, figure in enumerate(figures):
        share = budget // (len(figures) - index)
        encoded = _encode(figure.file, share)
        if encoded is None:
            failed.append(figure.title)
            continue
        uri, width, height = encoded
        budget -= len(uri)
        pictures.append(ReportPicture(figure.title, figure.caption, figure.alt, uri, width, height))
    return pictures, failed


def _encode(path: Path, limit: int) -> tuple[str, int, int] | None:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            image = Image.open(path, formats=("PNG", "JPEG", "WEBP"))
            if image.width * image.height > MAX_SOURCE_PIXELS:
                return None
            kind = {"PNG": "png", "JPEG": "jpeg", "WEBP": "webp"}[str(image.format)]
            image.load()
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):
        return None
    size = path.stat().st_size
    if size <= min(KEEP_BYTES, limit * 3 // 4 - 40):
        return _uri(kind, path.read_bytes()), image.width, image.height
    return _recompress(image, limit)


def _recompress(image: Image.Image, limit: int) -> tuple[str, int, int] | None:
    pixels = image.convert("RGBA" if "A" in image.getbands() or "transparency" in image.info else "RGB")
    width = min(pixels.width, MAX_WIDTH)
    while width >= 200:
        height = max(1, round(pixels.height * width / pixels.width))
        stream = io.BytesIO()
        pixels.resize((width, height), Image.Resampling.LANCZOS).save(stream, "WEBP", quality=86, method=4)
        uri = _uri("webp", stream.getvalue())
        if len(uri) <= limit:
            return uri, width, height
        width = width * 3 // 4
    return None


def _uri(kind: str, data: bytes) -> str:
    return f"data:image/{kind};base64,{base64.b64encode(data).decode()}"
