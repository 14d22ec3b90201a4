"""A protocol is one file, its settings and one entry: nothing else of the package knows of this one."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console

from openjepa.cli import main
from openjepa.commands.evaluate import parse_evaluate
from openjepa.evaluation import PROTOCOLS, ProtocolEntry, with_current_names
from openjepa.evaluation.evaluation_run import evaluate_run
from openjepa.evaluation.tables import print_results
from openjepa.records import read_result
from tests.evaluation.toy_protocol import ClassMeansSettings, ToySettings
from tests.helpers.evaluated_run import SETTINGS
from tests.helpers.report_page import page_of

TOY = ToySettings(device="cpu", workers=0, feature_batch_size=16, protocols=("class-means",), selection="both")


@pytest.fixture(autouse=True)
def registered(monkeypatch: pytest.MonkeyPatch) -> None:
    entry = ProtocolEntry(
        home="tests.evaluation.toy_protocol:evaluate_class_means",
        works_on="features",
        metric="class means",
        summary="the nearest class mean; seconds",
        settings=("class_means",),
    )
    monkeypatch.setitem(PROTOCOLS, "class-means", entry)


def test_it_is_evaluated_written_read_printed_and_reported(run: Path) -> None:
    (result,) = evaluate_run(run, TOY)
    numbers = {name: subject.metrics for name, subject in result.subjects.items()}
    assert set(numbers) == {"encoder", "untrained", "pixels"}
    for metrics in numbers.values():
        assert list(metrics) == ["class means", "class means (paper)"]
        assert {(metric.probe, metric.measure) for metric in metrics.values()} == {("class means", "accuracy")}
        assert metrics["class means"].value == metrics["class means (paper)"].value
    file = run / "eval" / result.file_name
    assert result.file_name == "classification-both-class_means-only.json"
    again = read_result(file)
    assert again is not None and again.subjects == result.subjects
    console = Console(record=True, width=100)
    print_results([again], console)
    percent = f"{100 * numbers['encoder']['class means'].value:.1f}"
    assert any("class means (paper)" in line and percent in line for line in console.export_text().splitlines())
    assert f"class means held_out {percent} %" in page_of(run).text


def test_its_settings_are_in_names_of_results(run: Path) -> None:
    (result,) = evaluate_run(run, replace(TOY, class_means=ClassMeansSettings(kind="last_four"), baselines=("untrained",)))
    assert result.variant == "both-class_means-only-class_means.kind-last_four-no-pixels"
    assert json.loads((run / "eval" / result.file_name).read_text())["settings"]["class_means"] == {"kind": "last_four"}
    assert {head["features"] for head in result.heads} == {"last_four"}


def test_the_command_line_offers_it(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["evaluate", "--help"])
    shown = " ".join(capsys.readouterr().out.split())
    assert "class-means the nearest class mean; seconds" in shown and "dense-knn|class-means" in shown.replace("| ", "|")
    for argv in (["--protocols", "knn", "class-means", str(run)], [str(run), "--protocols", "knn", "class-means"]):
        options, _ = parse_evaluate(argv, "openjepa evaluate", "")
        assert options.subject == run and options.evaluation.protocols == ("knn", "class-means")


def test_names_are_checked_and_older_ones_are_said(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ValueError, match=r"protocols='clas-means' does not exist: did you mean 'class-means'\?"):
        with_current_names(replace(SETTINGS, protocols=("clas-means",)), print)
    old = replace(SETTINGS, protocols=("linear_full", "knn", "dense_linear", "linear-full"))
    assert with_current_names(old, print).protocols == ("linear-full", "knn", "dense-linear")
    assert capsys.readouterr().out.splitlines() == [
        "note: the protocol linear_full is called linear-full now",
        "note: the protocol dense_linear is called dense-linear now",
    ]
