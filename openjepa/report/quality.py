"""What the features of the test images say without labels (RankMe, LiDAR, alpha-ReQ), by task, run and subject."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from openjepa.report.curves import format_number
from openjepa.report.probes import full_title
from openjepa.report.reading import RunFolder, text
from openjepa.report.wording import SUBJECT_WORDS
from openjepa.system.json_files import number

MEANING = (
    "RankMe and LiDAR count the dimensions that features use: more is better, but only among runs of one method. "
    "alpha-ReQ is the slope of their spectrum: near 1 is best."
)
MAX_MEASURES = 8


@dataclass(frozen=True)
class Quality:
    """The measures of one subject."""

    run: int
    task: str
    subject: str
    shown: Mapping[str, str]
    """By the measure's name; empty where it is not known."""


def qualities(runs: Sequence[RunFolder]) -> list[Quality]:
    """One row per task, run and subject that has measures."""
    rows = [
        (index, full_title(result), SUBJECT_WORDS.get(str(subject), text(subject, 40)), numbers)
        for index, run in enumerate(runs)
        for result in run.evaluations
        if isinstance(measures := result.get("measures"), Mapping)
        for subject, numbers in measures.items()
        if isinstance(numbers, Mapping) and numbers
    ]
    names = list(dict.fromkeys(name for *_, numbers in rows for name in numbers))[:MAX_MEASURES]
    return [
        Quality(index, task, subject, {text(name, 40): _shown(numbers.get(name)) for name in names})
        for index, task, subject, numbers in rows
    ]


def _shown(value: object) -> str:
    finite = number(value)
    return "" if finite is None else format_number(finite)
