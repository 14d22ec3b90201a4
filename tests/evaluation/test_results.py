"""Results of an evaluation as files and as a table of the terminal."""

import json
from collections.abc import Sequence
from dataclasses import asdict, replace
from io import StringIO
from pathlib import Path

import pytest
from rich.console import Console

from openjepa.commands.evaluate import follows_published, percent_with_error, print_results
from openjepa.evaluation.tasks import PUBLISHED, SUITES
from openjepa.records import PAPER_SUFFIX, Metric, Result, SubjectResult, read_evaluation, read_result
from openjepa.settings.protocols import PROTOCOLS, current_result
from tests.helpers.report_page import page_of


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
    metric = Metric(0.614, 0.0049, "higher", "held_out", "last, linear, weight decay 0.01", probe="linear")
    subjects = {name: SubjectResult({"linear": metric}) for name in ("encoder", "untrained", "pixels")}
    done = Result("classification", "Classification", "run", "target", "held_out", subjects, num_test=10000, chance=0.1)
    skipped = Result("clevr_count", "Clevr/Count", "run", "target", "held_out", skipped="the data has no labels")
    output = StringIO()
    print_results([done, skipped], Console(file=output, width=80))
    for text in (
        "held_out",
        "Classification",
        "61.4 ± 0.5",
        "10,000",
        "linear",
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
        entries = {PROTOCOLS[name].metric: PROTOCOLS[name] for name in row.protocols}
        subjects: dict[str, SubjectResult] = {}
        for subject in ("encoder", "untrained", "pixels"):
            metrics = {}
            for name in (*entries, *(f"{name} (paper)" for name in entries)):
                probe = name.removesuffix(PAPER_SUFFIX)
                selection, measure = "held_out" if name == probe else "paper", entries[probe].measure
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
            shown = [percent_with_error(numbers.metrics[name]) for numbers in result.subjects.values()]
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
    assert len(ours) == 6 and ours[0] == "ours: linear-full 88.2 ± 10.5 held_out, the paper's protocol"
    assert ours[3] == "ours: linear-full 87.9 ± 10.5 paper, the paper's protocol", "the error and the selection, always"
    assert all(words.endswith("not the paper's protocol") for words in (*ours[1:3], *ours[4:]))


def test_what_departs_from_the_published_protocol_is_said() -> None:
    whole = next(result for result in suite_results(None, 1, 0.9) if result.row == "cifar100")
    part = replace(whole, departures=("10 of its 100 classes", "58 unreadable images"))
    number = whole.subjects["encoder"].metrics["linear-full (paper)"]
    assert follows_published(whole, number) and not follows_published(part, number)
    lines = printed([part], 80)
    assert "not the published protocol: 10 of its 100 classes, 58 unreadable images" in lines
    assert not any(line.rstrip().endswith(", the paper's protocol") for line in lines)


# ------------------------------------------------------------------------------------------------------ results of before


def version_1(tmp_path: Path, names: Sequence[str], **more: object) -> Path:
    """A file as version 1 wrote it, with these numbers of the encoder; the first is 0.5, the next 0.51, ..."""
    metrics = {
        name: asdict(Metric(0.5 + place / 100, 0.01, "higher", "held_out", "a head")) for place, name in enumerate(names)
    }
    for metric in metrics.values():
        del metric["probe"], metric["measure"]
    heads = [{"subject": "encoder", "metric": name, "features": "last", "chosen": True} for name in names]
    blank = asdict(Result("classification", "Classification", "run", "target", "both", heads=heads))
    content = {"format": "openjepa-evaluation", "version": 1, **blank, "subjects": {"encoder": {"metrics": metrics}}, **more}
    path = tmp_path / "classification.json"
    path.write_text(json.dumps(content))
    return path


def test_linear_of_version_1_is_the_published_probe_and_never_the_cached_one(tmp_path: Path) -> None:
    names = ("linear", "linear (paper)", "linear-cached", "linear-cached (paper)", "k-NN", "dense linear mIoU")
    published = [{"method": "MAE", "value": 70.0, "protocol": "linear"}, {"method": "MSN", "value": 75.7, "protocol": "any"}]
    settings = {"protocols": ["linear_full", "linear", "knn", "dense_linear"], "seed": 0}
    result = read_result(version_1(tmp_path, names, published=published, settings=settings))
    assert result is not None
    metrics = result.subjects["encoder"].metrics
    expected = {"linear-full": 0.5, "linear-full (paper)": 0.51, "linear": 0.52, "linear (paper)": 0.53, "k-NN": 0.54}
    assert {name: metric.value for name, metric in metrics.items()} == expected | {"dense linear mIoU": 0.55}
    probes = [metric.probe for metric in metrics.values()]
    assert probes == ["linear-full", "linear-full", "linear", "linear", "k-NN", "dense linear mIoU"]
    assert [name for name, metric in metrics.items() if metric.measure == "miou"] == ["dense linear mIoU"]
    assert [head["metric"] for head in result.heads] == list(metrics)
    assert [item.protocol for item in result.published] == ["linear-full", "any"]
    assert result.settings == {"protocols": ["linear-full", "linear", "knn", "dense-linear"], "seed": 0}
    assert [follows_published(result, metric) for metric in list(metrics.values())[:4]] == [True, True, False, False]
    written = result.write(tmp_path / "new")
    assert read_result(written) == result, "a file of today is read as it is"


def test_numbers_of_version_1_have_the_probe_and_the_measure_of_their_entry() -> None:
    old = {"linear": "linear-cached", "linear-full": "linear"}
    for name, entry in PROTOCOLS.items():
        metrics = {old.get(name, entry.metric): {"value": 0.5}}
        read = read_evaluation({"version": 1, "subjects": {"encoder": {"metrics": metrics}}}, "classification")
        (found,) = read.subjects["encoder"].metrics.values()
        assert (found.probe, found.measure) == (entry.metric, entry.measure)


def test_results_kept_in_the_documents_are_read_with_the_names_of_today(tmp_path: Path) -> None:
    folder = Path(__file__).parents[2] / "docs" / "results" / "cifar10-default-seed0"
    files = ("suite-cifar10-linear_full-only-linear_full.epochs-5.json", "suite-cifar10-both-linear-knn.json")
    full, cached = (
        current_result(json.loads((folder / "eval" / name).read_text()))["subjects"]["encoder"]["metrics"] for name in files
    )
    assert list(full) == ["linear-full"] and list(cached)[:2] == ["linear", "linear (paper)"]
    text = page_of(folder, output=tmp_path / "report.html").text
    assert "CIFAR10 linear-full held_out linear-full only" in text and "CIFAR10 linear held_out linear-knn" in text
    assert f"{100 * full['linear-full']['value']:.1f} ±" in text and "linear-cached" not in text


@pytest.mark.parametrize(
    "content",
    [
        {},
        {"subjects": 3},
        {"subjects": {"encoder": [1], "pixels": {"metrics": {"linear": None}}}},
        {"heads": [1, {"metric": 2}]},
    ],
)
def test_broken_content_is_left_to_the_reader(content: dict[str, object]) -> None:
    renamed = json.loads(json.dumps(current_result(content)).replace("linear-full", "linear"))
    assert renamed == content | {"version": 2}
