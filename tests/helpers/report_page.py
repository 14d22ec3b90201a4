"""A report as its reader sees it."""

from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

from openjepa.evaluation.tasks import PUBLISHED, SUITES
from openjepa.records import PAPER_SUFFIX, Metric, Result, SubjectResult
from openjepa.report import write_report
from openjepa.settings.protocols import PROTOCOLS

HOSTILE = "<script>alert('x')</script>\"'><img src=http://evil.example/x onerror=alert(1)>{{ 7 * 7 }}"


class Page(HTMLParser):
    """Collects the elements and attributes of a page, and the texts a reader sees."""

    def __init__(self, source: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self._hidden = 0
        self.feed(source)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        self._hidden += tag == "style"

    def handle_endtag(self, tag: str) -> None:
        self._hidden -= tag == "style"

    def handle_data(self, data: str) -> None:
        if not self._hidden:
            self.words.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())

    def count(self, tag: str) -> int:
        return sum(name == tag for name, _ in self.elements)


def page_of(*runs: Path, output: Path | None = None) -> Page:
    return Page(write_report(runs, output).read_text())


def write_suite(folder: Path, suite: str = "paper", shift: float = 0.0, seeds: int = 1) -> None:
    """eval/*.json of a suite as the evaluation writes them: every number 0.4 + `shift`, two rows skipped, both selections."""
    for row in SUITES[suite]:
        blank = Result(row.task, row.title, "run", "target", "both", data=f"{row.benchmark}: 100 images", variant="both")
        blank = replace(blank, row=row.name, published=PUBLISHED.get(row.name, ()))
        if row.benchmark in ("places205", "inat18"):
            reason = f"{row.benchmark} is not in the folder of the benchmarks: see `openjepa data`"
            replace(blank, skipped=reason, variant="").write(folder / "eval")
            continue
        names = [PROTOCOLS[name].metric for name in row.protocols]
        names += [f"{name} (paper)" for name in names]
        encoder = {name: metric_of(name, 0.4 + shift, seeds) for name in names}
        subjects = {"encoder": SubjectResult(encoder), "untrained": SubjectResult({names[0]: metric_of(names[0], 0.2)})}
        measures = {"encoder": {"RankMe": 123.4, "alpha-ReQ": 1.07}, "untrained": {"RankMe": 20.5}}
        replace(blank, subjects=subjects, measures=measures, num_train=900, num_test=100, num_classes=10, chance=0.1).write(
            folder / "eval"
        )


def metric_of(name: str, value: float, seeds: int = 1) -> Metric:
    """A number with a standard error of 0.01 and, for several seeds, a spread of 0.02."""
    selection = "paper" if name.endswith("(paper)") else "held_out"
    spread, probe = 0.02 if seeds > 1 else None, name.removesuffix(PAPER_SUFFIX)
    return Metric(value, 0.01, "higher", selection, "a head", spread, seeds, probe=probe)


def poisoned(tree: object) -> object:
    """The same tree with every string made hostile, but for file names."""
    if isinstance(tree, dict):
        return {key: value if key == "file" else poisoned(value) for key, value in tree.items()}
    if isinstance(tree, list):
        return [poisoned(value) for value in tree]
    return HOSTILE if isinstance(tree, str) else tree
