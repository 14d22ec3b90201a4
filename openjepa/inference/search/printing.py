"""Prints answers: tables for people, lines of JSON for programs."""

import json
from collections.abc import Iterable, Sequence

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

from openjepa.inference.embedding.table import FeatureTable, Row
from openjepa.inference.search.cleaning import Cleaning, group_rows, outlier_rows
from openjepa.inference.search.gallery import label_name
from openjepa.inference.search.search_run import Answer, Answers
from openjepa.system.console import plain_console
from openjepa.visualization.sheet import printable

PRINTED = 10
"""Most groups and outliers that the terminal shows. The CSV files hold all of them."""


def print_answers(answers: Answers, console: Console | None = None) -> None:
    """Prints one table per query: rank, cosine, path, and label if there are labels."""
    console = console or _console()
    for answer in answers.answers:
        console.print(Text(f"nearest to {printable(answer.query.name)}", "bold"))
        console.print(_neighbors(answers, answer))
    console.print(Text(answers.how, "dim"))


def _console() -> Console:
    """A console as wide as the terminal. In a file or a pipe lines may be 200 wide, so that they are not broken."""
    console = plain_console()
    return console if console.is_terminal else plain_console(width=200)


def _neighbors(answers: Answers, answer: Answer) -> Table:
    labeled = any(row.label is not None for row in answer.rows)
    table = _table("#", "cosine", *(("label",) if labeled else ()), "row", "path", right=("#", "cosine", "row"))
    values = zip(answer.neighbors.cosines.tolist(), answer.neighbors.rows.tolist(), answer.rows, strict=True)
    for rank, (cosine, number, row) in enumerate(values, start=1):
        label = (label_name(answers.opened.table.manifest, row),) if labeled else ()
        table.add_row(
            *(Text(cell) for cell in (str(rank), f"{cosine:.4f}", *label, str(number), _name(answers.opened.table, row)))
        )
    return table


def _name(table: FeatureTable, row: Row) -> str:
    """The path on one line. If the table has several splits, the split is added, because each may hold the same path."""
    return printable(row.path) + (f" ({row.split})" if len(table.manifest.splits) > 1 else "")


def _table(*columns: str, right: Sequence[str] = ()) -> Table:
    table = Table(box=SIMPLE_HEAD, pad_edge=False)
    for name in columns:
        table.add_column(name, justify="right" if name in right else "left", overflow="fold", no_wrap=name in right)
    return table


def answer_lines(answers: Answers) -> Iterable[str]:
    """Yields one line of JSON per neighbor."""
    for answer in answers.answers:
        places, window = answer.neighbors.places, answer.query.window
        for number, row in enumerate(answer.rows):
            entries: dict[str, object] = {
                "query": answer.query.name,
                "rank": number + 1,
                "cosine": round(float(answer.neighbors.cosines[number]), 6),
                "path": row.path,
                "split": row.split,
                "index": row.index,
                "row": int(answer.neighbors.rows[number]),
                "label": row.label,
                "label_name": label_name(answers.opened.table.manifest, row) or None,
            }
            if places is not None and window is not None:
                entries["patches"] = [*places[number].tolist(), *window]  # first row and column, rows, columns
            yield json.dumps(entries, ensure_ascii=True)


def print_cleaning(found: Cleaning, console: Console | None = None) -> None:
    """Prints what was found: a few lines, and the first entries of each list."""
    console = console or _console()
    if found.groups is not None:
        _print_groups(found, console)
    if found.outliers is not None:
        _print_outliers(found, console)
    if found.typical is not None:
        median, high = found.typical
        centered = "centered" if found.opened.centered else "not centered"
        drawn = f"cosines of two images drawn at random: median {median:.2f}, one of 100 above {high:.2f} ({centered})"
        console.print(Text(drawn, "dim"))


def _print_groups(found: Cleaning, console: Console) -> None:
    groups = found.groups or ()
    if not groups:
        console.print(f"no near-duplicates: no two of {len(found.table):,} images have a cosine of {found.threshold:g} or more")
        return
    members = [member for group in groups for member in group.members]
    superfluous = sum(not member.keep for member in members)
    identical = [member.identical for member in members if member.identical is not None]
    same = f", {sum(identical):,} of them the same file as the one to keep" if identical else ""
    count = Text.assemble(
        (f"{_groups(len(groups))} of near-duplicates", "bold"), f", {len(members):,} of {len(found.table):,} images"
    )
    console.print(Text.assemble(count, f": {superfluous:,} could go{same}"))
    table = _table("group", "cosine", "keep", "could go", right=("group", "cosine"))
    for number, group in enumerate(groups[:PRINTED], start=1):
        names = [_name(found.table, found.table.rows[member.row]) for member in group.members]
        kept = [name for name, member in zip(names, group.members, strict=True) if member.keep]
        gone = [name for name, member in zip(names, group.members, strict=True) if not member.keep]
        table.add_row(*(Text(cell) for cell in (str(number), f"{group.highest:.4f}", _few(kept), _few(gone))))
    console.print(table)
    for line in _warnings(found):
        console.print(Text(line, "yellow"))


def _few(names: Sequence[str], shown: int = 3) -> str:
    more = f"\nand {len(names) - shown} more" if len(names) > shown else ""
    return "\n".join(names[:shown]) + more


def _groups(number: int) -> str:
    return f"{number:,} group{'' if number == 1 else 's'}"


def _warnings(found: Cleaning) -> Iterable[str]:
    if len(found.groups or ()) > PRINTED:
        yield f"and {_groups(len(found.groups or ()) - PRINTED)} more, in duplicates.csv"
    if crossing := found.crossing():
        yield f"{_groups(crossing)} with images of more than one split: an encoder is tested on what it was trained on"
    if contradicting := found.contradicting():
        yield f"{_groups(contradicting)} with more than one label: one of the labels may be wrong"
    if not found.complete:
        yield (
            "more pairs than --max-pairs are alike enough, and the most alike of them were taken: "
            f"raise --max-pairs, or --threshold above {found.threshold:g}, or search again when those found are removed"
        )


def _print_outliers(found: Cleaning, console: Console) -> None:
    outliers = found.outliers or ()
    console.print(Text(f"{len(outliers):,} images farthest from their nearest ones", "bold"))
    table = _table("#", "distance", "row", "path", right=("#", "distance", "row"))
    for rank, outlier in enumerate(outliers[:PRINTED], start=1):
        name = _name(found.table, found.table.rows[outlier.row])
        cells = (str(rank), f"{outlier.distance:.4f}", str(outlier.row), name)
        table.add_row(*(Text(cell) for cell in cells))
    console.print(table)


def cleaning_lines(found: Cleaning) -> Iterable[str]:
    """Yields one line of JSON per row of the CSV files. `list` names the file."""
    for entry in group_rows(found):
        yield json.dumps({"list": "duplicates", **entry})
    for entry in outlier_rows(found):
        yield json.dumps({"list": "outliers", **entry})
