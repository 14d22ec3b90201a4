"""Results of an evaluation as files and as a table of the terminal."""

import json
from dataclasses import replace
from io import StringIO
from pathlib import Path

import pytest
from rich.console import Console

from openjepa.evaluation.results import Metric, Result, SubjectResult
from openjepa.evaluation.tables import print_results


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
    metric = Metric(0.614, 0.0049, "higher", "held_out", "last, linear, weight decay 0.01")
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


@pytest.mark.parametrize("value", [0.614, 1.0])
def test_words_of_the_table_are_whole_at_80_columns(value: float) -> None:
    metric = Metric(value, 0.0049, "higher", "held_out", "last, linear, weight decay 0.01")
    subjects = {name: SubjectResult({"linear-cached": metric, "k-NN": metric}) for name in ("encoder", "untrained", "pixels")}
    output = StringIO()
    done = Result("classification", "Classification", "run", "target", "held_out", subjects, num_test=10000, chance=0.1)
    print_results([done], Console(file=output, width=80))
    assert "…" not in output.getvalue() and "Classification" in output.getvalue().splitlines()[3]
    assert all(len(line) <= 80 for line in output.getvalue().splitlines())
