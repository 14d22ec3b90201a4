"""Results of an evaluation as files and as a table of the terminal."""

import json
from dataclasses import replace
from io import StringIO
from pathlib import Path

import pytest
from rich.console import Console

from openjepa.evaluation import PROTOCOLS
from openjepa.evaluation.suite import PUBLISHED, SUITES
from openjepa.evaluation.tables import follows_published, percent, print_results
from openjepa.records import PAPER_SUFFIX, Metric, Result, SubjectResult


def test_numbers_are_not_replaced_by_a_skipped_task(tmp_path: Path) -> None:
    metric = Metric(0.6, 0.01, "higher", "held_out", "")
    done = Result("classification", "", "run", "target", "held_out", {"encoder": SubjectResult({"k-NN": metric})})
    path = done.write(tmp_path)
    before = path.read_bytes()
    assert replace(done, subjects={}, skipped="no labels").write(tmp_path) == path and path.read_bytes() == before
    path.write_text("half a fi")
    replace(done, subjects={}, skipped="no labels").write(tmp_path)
    assert json.loads(path.read_text())["skipped"] == "no labels"


def test_results_are_printed_with_their_selection() -> None:
    metric = Metric(0.614, 0.0049, "higher", "held_out", "last, linear, weight decay 0.01", probe="linear-cached")
    subjects = {name: SubjectResult({"linear-cached": metric}) for name in ("encoder", "untrained", "pixels")}
    done = Result("classification", "Classification", "run", "target", "held_out", subjects, num_test=10000, chance=0.1)
    skipped = Result("clevr_count", "Clevr/Count", "run", "target", "held_out", skipped="the data has no labels")
    output = StringIO()
    print_results([done, skipped], Console(file=output, width=80))
    for text in (
        "held_out",
        "Classification",
        "61.4 ± 0.5",
        "10,000",
        "linear-cached",
        "untrained",
        "majority",
        "skipped, the data has",
    ):
        assert text in output.getvalue()
    assert "not the run's own" not in output.getvalue()
    print_results([replace(done, variant="paper")], Console(file=output, width=80))
    assert "Classification: not the run's own, kept as eval/classification-paper.json" in output.getvalue()


def printed(results: list[Result], width: int) -> list[str]:
    output = StringIO()
    print_results(results, Console(file=output, width=width))
    return output.getvalue().splitlines()


def suite_results(spread: float | None, seeds: int, value: float) -> list[Result]:
    """Both selections of three probes on every row of the paper's suite and of the dense one, every number another one."""
    results = []
    for row in (*SUITES["paper"], *SUITES["dense"]):
        names = [PROTOCOLS[name].metric for name in row.protocols]
        subjects: dict[str, SubjectResult] = {}
        for subject in ("encoder", "untrained", "pixels"):
            metrics = {}
            for name in (*names, *(f"{name} (paper)" for name in names)):
                probe = name.removesuffix(PAPER_SUFFIX)
                selection, measure = "held_out" if name == probe else "paper", "miou" if "mIoU" in probe else "accuracy"
                head = ("last, knn, k 20", spread, seeds)
                metrics[name] = Metric(value, 0.1049, "higher", selection, *head, probe=probe, measure=measure)
                value -= 0.001
            subjects[subject] = SubjectResult(metrics)
        published = PUBLISHED.get(row.name, ())
        results.append(
            Result(row.task, row.title, "run", "target", "both", subjects, num_test=60, row=row.name, published=published)
        )
    return results


@pytest.mark.parametrize("width", [80, 120])
@pytest.mark.parametrize(("spread", "seeds"), [(None, 1), (0.1234, 3)])
def test_tables_are_whole_at_any_width(width: int, spread: float | None, seeds: int) -> None:
    results = suite_results(spread, seeds, value=1.0)
    lines = printed(results, width)
    assert all(len(line) <= width for line in lines) and not any("…" in line for line in lines)
    tables = lines[: next(number for number, line in enumerate(lines) if line.startswith("Beside published"))]
    for result in results:
        # the task stands on a line of its own, its numbers below it, each probe on one line with all its subjects
        start = tables.index(f"{result.title} (60 images, majority 0.0)")
        for name in result.subjects["encoder"].metrics:
            shown = [percent(numbers.metrics[name]) for numbers in result.subjects.values()]
            (line,) = [line for line in tables[start:] if all(number in line for number in shown)]
            assert line.startswith(name.removesuffix(" (paper)")) and len(shown) == 3
    assert any("over 3 seeds" in " ".join(lines[at : at + 2]) for at in range(3)) is (seeds == 3)
    assert any("best head of the first seed" in line for line in lines) is (seeds == 3)


def test_shares_of_pixels_are_no_accuracy() -> None:
    lines = printed(suite_results(None, 1, 0.9), 80)
    accuracy, overlap = (
        next(at for at, line in enumerate(lines) if line.startswith(words))
        for words in ("Accuracy in %", "Mean intersection over union in %")
    )
    assert lines.index("CIFAR100 (60 images, majority 0.0)") in range(accuracy, overlap)
    assert lines.index("Scenes/shape of patches (60 images, majority 0.0)") > overlap


@pytest.mark.parametrize("width", [80, 120])
def test_published_numbers_are_i_jepas_and_the_best_other(width: int) -> None:
    lines = printed([next(result for result in suite_results(None, 1, 0.9) if result.row == "cifar100")], width)
    start = next(number for number, line in enumerate(lines) if line.startswith("Beside published"))
    beside = [line.split() for line in lines[start + 2 : lines.index("", start)]]
    assert [" ".join(line) for line in beside[-4:]] == [
        "I-JEPA H/14 89.5 Table 5, IN22K, 900 epochs",
        "I-JEPA G/16 89.5 Table 5, IN22K, 600 epochs",
        "I-JEPA H/14 87.5 Table 3, 300 epochs",
        "best other: iBOT L/16 88.3 Table 3",
    ]
    ours = [" ".join(line) for line in beside[:-4]]
    assert len(ours) == 6 and ours[0] == "ours: linear 88.2 ± 10.5 held_out, the paper's protocol"
    assert ours[3] == "ours: linear 87.9 ± 10.5 paper, the paper's protocol", "the error and the selection, always"
    assert all(words.endswith("not the paper's protocol") for words in (*ours[1:3], *ours[4:]))


def test_what_departs_from_the_published_protocol_is_said() -> None:
    whole = next(result for result in suite_results(None, 1, 0.9) if result.row == "cifar100")
    part = replace(whole, departures=("10 of its 100 classes", "58 unreadable images"))
    number = whole.subjects["encoder"].metrics["linear (paper)"]
    assert follows_published(whole, number) and not follows_published(part, number)
    lines = printed([part], 80)
    assert "not the published protocol: 10 of its 100 classes, 58 unreadable images" in lines
    assert not any(line.rstrip().endswith(", the paper's protocol") for line in lines)
