"""Our numbers beside the paper's, quality without labels, and results of suites on the page."""

import json
import re
import shutil
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from openjepa.commands.evaluate import follows_published
from openjepa.evaluation.tasks import PUBLISHED, SUITES
from openjepa.records import Result, SubjectResult, compares, read_evaluation
from openjepa.report.beside import LEFT, PLACE, RIGHT, WIDTH, Comparison, Number, comparisons, draw_strip
from openjepa.report.headline import qualities, skipped_tasks
from openjepa.report.probes import measured, probe_table
from openjepa.report.reading import read_run
from openjepa.settings.protocols import PROTOCOLS
from tests.helpers.example_run import write_evaluations, write_run, write_variant
from tests.helpers.report_page import HOSTILE, Page, metric_of, page_of, poisoned, write_suite

OLD = Path(__file__).parents[2] / "docs" / "results"


@pytest.fixture(scope="module")
def suite_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = write_run(tmp_path_factory.mktemp("runs") / "woof", steps=200)
    write_suite(folder, seeds=3)
    return folder


@pytest.fixture(scope="module")
def suite_page(suite_run: Path) -> Page:
    return page_of(suite_run)


def test_the_axis_is_linear_from_0_to_100() -> None:
    assert [PLACE(value) for value in (0, 50, 100)] == [LEFT, LEFT + (WIDTH - LEFT - RIGHT) / 2, WIDTH - RIGHT]
    assert PLACE(-3) == PLACE(0) and PLACE(250) == PLACE(100)


def test_the_picture_has_every_number_at_its_place_highest_on_top() -> None:
    numbers = [
        Number(79.3, "", 0.0, "linear-full", "Table 1", None, "I-JEPA", "H/14", "300"),
        Number(70.0, "1.0", 1.0, "linear-full", "paper", run=2),
        Number(61.0, "5.0", 5.0, "linear", "held_out", run=0, departures=("another probe",)),
    ]
    drawn = draw_strip(Comparison("ImageNet-1K", numbers))
    dots = re.findall(r'<circle class="(dot|ring) c(\d)" cx="([\d.]+)" cy="([\d.]+)"', drawn)
    assert [(kind, int(color)) for kind, color, *_ in dots] == [("dot", 7), ("dot", 2), ("ring", 0)]
    assert [float(x) for _, _, x, _ in dots] == [round(PLACE(value), 1) for value in (79.3, 70.0, 61.0)]
    heights = [float(y) for *_, y in dots]
    assert heights == sorted(heights) and len(set(heights)) == 3
    bars = re.findall(r'<path class="whisker c\d" d="M([\d.]+) [\d.]+H([\d.]+)"', drawn)
    assert [(float(low), float(high)) for low, high in bars] == [
        (round(PLACE(low), 1), round(PLACE(high), 1)) for low, high in ((69, 71), (56, 66))
    ]


def test_a_row_of_a_suite_stands_among_its_published_numbers(suite_run: Path) -> None:
    found = {item.task: item for item in comparisons([read_run(suite_run)])}
    assert set(found) == {"ImageNet-1K", "CIFAR100", "Clevr/Count", "Clevr/Dist", "ImageNet-1%", "ImageNet-1K fine-tuned"}, (
        "CIFAR10 has no published number, Places205 and iNat18 were skipped"
    )
    imagenet = found["ImageNet-1K"]
    assert sorted(item.value for item in imagenet.published) == sorted(item.value for item in PUBLISHED["imagenet1k"])
    assert [item.value for item in imagenet.same_method] == [81.1, 79.3, 77.5, 72.9]
    assert {(item.protocol, item.source) for item in imagenet.ours} == {
        (probe, rule) for probe in ("linear-full", "linear", "k-NN") for rule in ("held_out", "paper")
    }
    assert {item.protocol for item in imagenet.ours if item.compares} == {"linear-full"}
    values = [item.value for item in imagenet.numbers]
    assert values == sorted(values, reverse=True)
    assert {item.protocol for item in found["ImageNet-1%"].ours if item.compares} == {"fine-tuned"}


@pytest.mark.parametrize(
    ("probe", "protocol", "same"),
    [
        ("linear-full", "linear-full", True),
        ("linear", "linear-full", False),
        ("linear-full", "fine-tuned", False),
        ("linear-full", "any", True),
        ("fine-tuned", "any", True),
        ("logistic", "any", False),
        ("linear", "any", False),
    ],
)
def test_only_the_papers_protocol_compares(probe: str, protocol: str, same: bool) -> None:
    assert compares(probe, {protocol}) is same


def changed(suite_run: Path, folder: Path, row: str, **changes: object) -> Comparison:
    """The row of a copied run whose result has other fields (None: removed), beside the published numbers."""
    shutil.copytree(suite_run, folder)
    path = folder / "eval" / f"suite-{row}-both.json"
    result = json.loads(path.read_text()) | changes
    path.write_text(json.dumps({name: value for name, value in result.items() if value is not None}))
    return next(item for item in comparisons([read_run(folder)]) if item.task == result["title"])


@pytest.mark.parametrize("words", ["linear_full.epochs-1", "max1000", "5shot-seed1", "10pct"])
def test_a_result_of_before_departs_by_the_words_of_its_variant(words: str, suite_run: Path, tmp_path: Path) -> None:
    before = changed(suite_run, tmp_path / "before", "clevr_dist", departures=None)
    after = changed(suite_run, tmp_path / "after", "clevr_dist", departures=None, variant=words)
    assert any(item.compares for item in before.ours) and not any(item.compares for item in after.ours)
    assert f"other settings: {words}" in after.departures
    said = changed(suite_run, tmp_path / "said", "clevr_dist", departures=[], variant=words)
    assert any(item.compares for item in said.ours), "a result that says its departures is believed"


def test_departures_make_rings_and_stand_in_words(suite_run: Path, tmp_path: Path) -> None:
    reasons = ["10 of its 100 classes", "58 unreadable images", HOSTILE]
    found = changed(suite_run, tmp_path / "run", "cifar100", departures=reasons)
    assert not any(item.compares for item in found.ours)
    assert {item.departures for item in found.ours} == {tuple(reasons), ("another probe", *reasons)}
    drawn = draw_strip(found)
    assert drawn.count('class="ring ') == len(found.ours) == 6 and drawn.count('class="dot c0"') == 0
    assert "not the paper&#39;s protocol: another probe, 10 of its 100 classes, 58 unreadable images" in drawn
    page = page_of(tmp_path / "run")
    assert "No number of ours follows the paper's protocol. Rings: 10 of its 100 classes, 58 unreadable images" in page.text
    assert "not the paper's: 10 of its 100 classes, 58 unreadable images" in page.text and not page.count("script")
    (ring,) = [item for item in comparisons([read_run(suite_run)]) if item.task == "CIFAR100"]
    assert draw_strip(ring).count('class="dot c0"') == 2, "linear by both selection rules"


@pytest.mark.parametrize("suite", ["paper", "cached"])
@pytest.mark.parametrize("departures", [(), ("58 unreadable images",)])
def test_the_terminal_and_the_page_call_the_same_numbers_the_papers(suite: str, departures: tuple[str, ...]) -> None:
    for row in SUITES[suite]:
        names = [PROTOCOLS[name].metric for name in row.protocols]
        metrics = {name: metric_of(name, 0.5) for name in (*names, *(f"{name} (paper)" for name in names))}
        published = PUBLISHED.get(row.name, ())
        result = Result(row.task, row.title, "run", "target", "both", {"encoder": SubjectResult(metrics)}, row=row.name)
        result = replace(result, published=published, departures=departures)
        written = json.loads(json.dumps(asdict(result)))
        run = replace(read_run(OLD / "quickstart-seed0"), evaluations=[read_evaluation(written, "suite")])
        for item in (number for found in comparisons([run]) for number in found.ours):
            named = item.protocol + (" (paper)" if item.source == "paper" else "")
            assert item.compares is follows_published(result, metrics[named])


def test_one_variant_is_drawn_whatever_the_numbers(suite_run: Path, tmp_path: Path) -> None:
    shutil.copytree(suite_run, tmp_path / "run")
    content = json.loads((tmp_path / "run" / "eval" / "suite-cifar100-both.json").read_text())
    for metric in content["subjects"]["encoder"]["metrics"].values():
        metric["value"] = 0.9
    content |= {"variant": "linear_full.epochs-1", "departures": ["linear_full.* is changed"]}
    (tmp_path / "run" / "eval" / "suite-cifar100-linear_full.epochs-1.json").write_text(json.dumps(content))
    (found,) = [item for item in comparisons([read_run(tmp_path / "run")]) if item.task == "CIFAR100"]
    assert {item.value for item in found.ours} == {40.0, 90.0}
    assert {item.value for item in found.drawn if item.run is not None} == {40.0}
    assert "6 of ours with other settings" in page_of(tmp_path / "run").text
    content |= {"variant": "seed-7", "departures": []}
    (tmp_path / "run" / "eval" / "suite-cifar100-linear_full.epochs-1.json").write_text(json.dumps(content))
    (found,) = [item for item in comparisons([read_run(tmp_path / "run")]) if item.task == "CIFAR100"]
    drawn = [(item.protocol, item.value) for item in found.drawn if item.run is not None and item.variant]
    assert drawn == 2 * [("linear-full", 90.0)], "what follows the paper's protocol is always drawn"


def test_the_page_says_which_protocol_a_number_is(suite_page: Page) -> None:
    text = suite_page.text
    assert "Beside the paper" in text
    ours = "held_out 40.0 ± 1.0 \N{GREEK SMALL LETTER SIGMA} 2.0, 3 seeds"
    assert f"CIFAR100 linear-full {ours} 87.5 to 89.5 89.5 I-JEPA H/14 IN22K, 900 the paper's" in text
    assert f"linear {ours} not the paper's: another probe" in text
    strips = [attrs["aria-label"] for tag, attrs in suite_page.elements if tag == "svg" and "strip" in str(attrs["class"])]
    assert len(strips) == 6 and any("Clevr/Dist: ours linear-full 40.0 %" in str(label) for label in strips)


@pytest.mark.parametrize(("spread", "half"), [(0.0, 1.0), (0.03, 3.0)])
def test_a_spread_never_hides_the_error(spread: float, half: float, suite_run: Path, tmp_path: Path) -> None:
    shutil.copytree(suite_run, tmp_path / "run")
    path = tmp_path / "run" / "eval" / "suite-clevr_dist-both.json"
    content = json.loads(path.read_text())
    for metric in content["subjects"]["encoder"]["metrics"].values():
        metric["spread"] = spread
    path.write_text(json.dumps(content))
    (found,) = [item for item in comparisons([read_run(tmp_path / "run")]) if item.task == "Clevr/Dist"]
    assert {(item.error, item.half_width) for item in found.ours} == {("1.0", half)}
    assert {item.spread for item in found.ours} == {f"\N{GREEK SMALL LETTER SIGMA} {100 * spread:.1f}, 3 seeds"}
    assert f"{PLACE(40 - half):.1f} " in draw_strip(found) and "± 1.0</tspan>" in draw_strip(found)


def test_several_runs_stand_in_one_picture(suite_run: Path, tmp_path: Path) -> None:
    other = write_run(tmp_path / "other", steps=200)
    write_suite(other, suite="cached", shift=0.1)
    found = {item.task: item for item in comparisons([read_run(suite_run), read_run(other)])}
    dist = found["Clevr/Dist"]
    assert len(dist.published) == 7, "once, not once per run"
    assert {(item.run, round(item.value)) for item in dist.ours} == {(0, 40), (1, 50)}
    assert not any(item.compares for item in dist.ours if item.run == 1)


def test_both_selection_rules_are_rows_of_one_probe(suite_run: Path) -> None:
    rows = [row for row in probe_table([read_run(suite_run)]) if row.task == "CIFAR100"]
    assert [(row.probe, row.selection) for row in rows] == [
        (probe, rule) for probe in ("linear-full", "linear", "k-NN") for rule in ("held_out", "paper")
    ]
    assert all(row.variant == "" for row in rows), "`both` says nothing that the rows do not"


def test_seeds_are_a_mean_with_their_spread(suite_page: Page, tmp_path: Path) -> None:
    sigma = "\N{GREEK SMALL LETTER SIGMA}"
    assert f"below it their standard deviation {sigma}" in suite_page.text and f"± 1.0 {sigma} 2.0, 3 seeds" in suite_page.text
    folder = write_run(tmp_path / "run", steps=100)
    write_evaluations(folder)
    page = page_of(folder)
    assert "3 seeds" not in page.text and sigma not in page.text and "61.2 ± 0.8" in page.text
    result = json.loads((folder / "eval" / "classification.json").read_text())
    for metric in result["subjects"]["encoder"]["metrics"].values():
        metric |= {"spread": 0.2, "seeds": 3}
    (folder / "eval" / "classification.json").write_text(json.dumps(result))
    page = page_of(folder)
    assert f"61.2 ± 0.8 {sigma} 20.0, 3 seeds" in page.text
    assert "within the error of the better baseline (+16.1 points)" in page.text, "a spread of 20 points hides a gain of 16"


def test_rows_that_were_skipped_stand_with_their_reasons(suite_page: Page) -> None:
    for words in ("2 tasks were not probed", "Places205 places205 is not in the folder", "iNat18 inat18 is not in the folder"):
        assert words in suite_page.text


def test_a_row_is_missed_once_and_not_where_a_variant_has_numbers(suite_run: Path, tmp_path: Path) -> None:
    shutil.copytree(suite_run, tmp_path / "run")
    files = tmp_path / "run" / "eval"
    skipped = json.loads((files / "suite-inat18.json").read_text())
    (files / "suite-inat18-2seeds.json").write_text(json.dumps(skipped | {"variant": "2seeds"}))
    (files / "suite-cifar100.json").write_text(json.dumps(skipped | {"row": "cifar100", "title": "CIFAR100"}))
    (files / "clevr_count.json").write_text(json.dumps(skipped | {"row": "", "title": "Clevr/Count"}))
    assert [task for _, task, _ in skipped_tasks([read_run(tmp_path / "run")])] == ["iNat18", "Places205"]


def test_quality_without_labels_by_subject(suite_run: Path, suite_page: Page) -> None:
    rows = [row for row in qualities([read_run(suite_run)]) if row.task == "CIFAR100"]
    assert [(row.subject, dict(row.shown)) for row in rows] == [
        ("trained", {"RankMe": "123", "alpha-ReQ": "1.07"}),
        ("untrained", {"RankMe": "20.5", "alpha-ReQ": ""}),
    ]
    assert "only among runs of one method" in suite_page.text and "near 1 is best" in suite_page.text


@pytest.mark.parametrize("name", ["cifar10-default-seed1", "imagewoof-default-seed0"])
def test_results_of_before_are_read(name: str, tmp_path: Path) -> None:
    run = read_run(OLD / name)
    assert probe_table([run]) and not comparisons([run]) and not qualities([run])
    text = page_of(OLD / name, output=tmp_path / "out.html").text
    assert "Beside the paper" not in text and "Quality without labels" not in text


def test_a_strangers_published_numbers_are_no_markup(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run", steps=100)
    write_suite(folder, suite="cached")
    for path in (folder / "eval").glob("*.json"):
        content = json.loads(path.read_text())
        content["measures"] = {HOSTILE: {HOSTILE: 1.0, "RankMe": HOSTILE}}
        path.write_text(json.dumps(poisoned(content)))
    page = page_of(folder)
    assert not page.count("script") and not page.count("img") and "alert('x')" in page.text
    assert all(not name.startswith("on") for _, attrs in page.elements for name in attrs)


def test_published_numbers_that_are_none_are_left_out(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run", steps=100)
    write_evaluations(folder)
    broken = [3, None, {"value": "80"}, {"value": 400}, {"value": None}, {"method": "MAE", "value": 70.5}]
    write_variant(folder, "classification", published=broken, row="classification", measures=[1, 2])
    (found,) = comparisons([read_run(folder)])
    assert [item.value for item in found.published] == [70.5] and len(found.ours) == 2
    write_variant(folder, "classification", published="many", subjects={"encoder": {"metrics": {"linear": {"value": True}}}})
    run = read_run(folder)
    assert not comparisons([run]) and not measured(run.evaluations[0])


def test_measures_of_the_loop_are_drawn_where_they_are_logged(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run", steps=200)
    before = page_of(folder).count("svg")
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    more = [line | {"alpha_req": 1.5, "lidar": 20.0} if line["kind"] == "monitor" else line for line in lines]
    (folder / "metrics.jsonl").write_text("\n".join(map(json.dumps, more)))
    page = page_of(folder)
    assert page.count("svg") == before + 2
    assert "near 1 is best" in page.text
