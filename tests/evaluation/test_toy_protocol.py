"""A protocol is one file, its settings and one entry: nothing else of the package knows of this one."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console

import openjepa
from openjepa.cli import main
from openjepa.commands.evaluate import parse_evaluate, print_results
from openjepa.commands.parsing.arguments import explanations
from openjepa.evaluation.evaluation_run import evaluate_run
from openjepa.evaluation.tasks import with_current_names
from openjepa.records import read_result
from openjepa.refusals import Refusal
from openjepa.settings.evaluation import EvaluationSettings
from openjepa.settings.protocols import PROTOCOLS, ProtocolEntry, check_evaluation, evaluation_settings
from tests.evaluation.toy_protocol import ClassMeansSettings
from tests.helpers.dense import evaluated, scenes
from tests.helpers.evaluated_run import SETTINGS
from tests.helpers.report_page import page_of

TOY = replace(SETTINGS, protocols=("class-means",), selection="both")


@pytest.fixture(autouse=True)
def registered(monkeypatch: pytest.MonkeyPatch) -> None:
    entry = ProtocolEntry(
        home="tests.evaluation.toy_protocol:evaluate_class_means",
        works_on="features",
        metric="class means",
        summary="the nearest class mean; seconds",
        groups={"class_means": ClassMeansSettings},
        words="the mean of each class votes",
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
    page = page_of(run).text
    assert f"class means held_out {percent} %" in page and "class means the mean of each class votes." in page


def test_its_settings_are_in_names_of_results(run: Path) -> None:
    settings = evaluation_settings()(**vars(TOY), class_means=ClassMeansSettings(kind="last_four"))
    (result,) = evaluate_run(run, replace(settings, baselines=("untrained",)))
    assert result.variant == "both-class_means-only-class_means.kind-last_four-no-pixels"
    written = json.loads((run / "eval" / result.file_name).read_text())["settings"]
    assert written["class_means"] == {
        "kind": "last_four",
        "norms": [2.0],
    }
    assert {head["features"] for head in result.heads} == {"last_four"}


def test_the_command_line_offers_it(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["evaluate", "--help"])
    shown = " ".join(capsys.readouterr().out.split())
    assert "class-means the nearest class mean; seconds" in shown and "dense-knn|class-means" in shown.replace("| ", "|")
    for argv in (["--protocols", "knn", "class-means", str(run)], [str(run), "--protocols", "knn", "class-means"]):
        options, _ = parse_evaluate(argv, "openjepa evaluate", "")
        assert options.subject == run and options.evaluation.protocols == ("knn", "class-means")


def test_the_command_line_runs_it(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    common = ["evaluate", str(run), "--protocols", "class-means", "--device", "cpu", "--workers", "0"]
    main(common)
    assert "class means" in capsys.readouterr().out
    plain, other = "classification-class_means-only", "classification-class_means-only-class_means.norms-1.0-2.0"
    main(["evaluate", "--class-means.norms", "1", "2", *common[1:]])
    assert {file.stem for file in (run / "eval").glob("*.json")} == {plain, other}
    with pytest.raises(SystemExit):
        main(["evaluate", "--help-all"])
    shown = " ".join(capsys.readouterr().out.split())
    assert "--class-means.kind last|last_four Layers whose features are averaged; of raw pixels these. (default: last)" in shown
    assert f"--neighbors N ... {explanations(EvaluationSettings)['neighbors']}" in shown
    with pytest.raises(SystemExit) as ended:
        main([*common, "--class-means.norms", "0.5"])
    assert ended.value.code == 2 and "evaluation.class_means.norms=0.5 must be at least 1" in capsys.readouterr().err
    main(["evaluate", str(run), "--protocols", "knn", *common[4:], "--class-means.norms", "1"])
    assert "class_means.* has no effect: the protocol class-means is not run (--protocols)" in capsys.readouterr().err


def test_the_public_evaluate_knows_it(run: Path) -> None:
    (result,) = openjepa.evaluate(run, replace(TOY, baselines=()))
    assert list(result.subjects["encoder"].metrics) == ["class means", "class means (paper)"]


def test_its_settings_can_be_checked_with_one_another() -> None:
    toy = evaluation_settings()(**vars(TOY), class_means=ClassMeansSettings(kind="last_four", norms=(1.0, 2.0)))
    with pytest.raises(Refusal, match=r"class_means.norms has one value too many for last_four"):
        check_evaluation(toy)


def test_a_protocol_of_label_maps_need_not_know_the_chance_level(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    entry = ProtocolEntry("tests.evaluation.toy_protocol:evaluate_no_patch", "maps", "no patch", "nothing", measure="miou")
    monkeypatch.setitem(PROTOCOLS, "no-patch", entry)
    alone, known = (evaluated(scenes(8), tmp_path, protocols=names) for names in (("no-patch",), ("no-patch", "dense-knn")))
    metrics = known.subjects["encoder"].metrics
    assert (metrics["no patch"].value, metrics["no patch"].measure) == (0.25, "miou")
    assert (alone.chance, known.chance) == (0.0, metrics["dense k-NN mIoU"].extra["majority"])


def test_names_are_checked_and_older_ones_are_said(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ValueError, match=r"protocols='clas-means' does not exist: did you mean 'class-means'\?"):
        with_current_names(replace(SETTINGS, protocols=("clas-means",)), print)
    old = replace(SETTINGS, protocols=("linear_full", "knn", "dense_linear", "linear-full"))
    assert with_current_names(old, print).protocols == ("linear-full", "knn", "dense-linear")
    assert capsys.readouterr().out.splitlines() == [
        "note: the protocol linear_full is called linear-full now",
        "note: the protocol dense_linear is called dense-linear now",
    ]
