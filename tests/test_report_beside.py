"""Our numbers beside the paper's, quality without labels, and results of suites on the page."""

import json
import re
import shutil
from pathlib import Path

import pytest

from openjepa.evaluation.published import PUBLISHED
from openjepa.report.comparison import Comparison, Number, compares, comparisons
from openjepa.report.probes import measured, table
from openjepa.report.quality import qualities
from openjepa.report.reading import read_run
from openjepa.report.strips import LEFT, RIGHT, WIDTH, draw_strip, place
from tests.example_run import write_evaluations, write_run, write_variant
from tests.report_page import HOSTILE, Page, page_of, poisoned, write_suite

OLD = Path(__file__).parents[1] / "docs" / "results"


@pytest.fixture(scope="module")
def suite_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = write_run(tmp_path_factory.mktemp("runs") / "woof", steps=200)
    write_suite(folder, seeds=3)
    return folder


@pytest.fixture(scope="module")
def suite_page(suite_run: Path) -> Page:
    return page_of(suite_run)


def test_the_axis_is_linear_from_0_to_100() -> None:
    assert [place(value) for value in (0, 50, 100)] == [LEFT, LEFT + (WIDTH - LEFT - RIGHT) / 2, WIDTH - RIGHT]
    assert place(-3) == place(0) and place(250) == place(100)


def test_the_picture_has_every_number_at_its_place_highest_on_top() -> None:
    numbers = [
        Number(79.3, "", 0.0, "linear", "Table 1", None, "I-JEPA", "H/14", "300"),
        Number(70.0, "1.0", 1.0, "linear", "paper", run=2, compares=True),
        Number(61.0, "5.0", 5.0, "linear-cached", "held_out", run=0, compares=False),
    ]
    drawn = draw_strip(Comparison("ImageNet-1K", numbers))
    dots = re.findall(r'<circle class="(dot|ring) c(\d)" cx="([\d.]+)" cy="([\d.]+)"', drawn)
    assert [(kind, int(color)) for kind, color, *_ in dots] == [("dot", 7), ("dot", 2), ("ring", 0)]
    assert [float(x) for _, _, x, _ in dots] == [round(place(value), 1) for value in (79.3, 70.0, 61.0)]
    heights = [float(y) for *_, y in dots]
    assert heights == sorted(heights) and len(set(heights)) == 3
    bars = re.findall(r'<path class="whisker c\d" d="M([\d.]+) [\d.]+H([\d.]+)"', drawn)
    assert [(float(low), float(high)) for low, high in bars] == [
        (round(place(low), 1), round(place(high), 1)) for low, high in ((69, 71), (56, 66))
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
        (probe, rule) for probe in ("linear", "linear-cached", "k-NN") for rule in ("held_out", "paper")
    }
    assert {item.protocol for item in imagenet.ours if item.compares} == {"linear"}
    values = [item.value for item in imagenet.numbers]
    assert values == sorted(values, reverse=True)
    assert {item.protocol for item in found["ImageNet-1%"].ours if item.compares} == {"fine-tuned"}


@pytest.mark.parametrize(
    ("probe", "protocol", "same"),
    [
        ("linear", "linear", True),
        ("linear-cached", "linear", False),
        ("linear", "fine-tuned", False),
        ("linear", "any", True),
        ("fine-tuned", "any", True),
        ("logistic", "any", False),
        ("linear-cached", "any", False),
    ],
)
def test_only_the_papers_protocol_compares(probe: str, protocol: str, same: bool) -> None:
    assert compares(probe, {protocol}) is same


@pytest.mark.parametrize("words", ["linear_full.epochs-1", "max1000", "5shot-seed1", "10pct"])
def test_a_shortened_protocol_is_not_the_papers(words: str, suite_run: Path, tmp_path: Path) -> None:
    shutil.copytree(suite_run, tmp_path / "run")
    path = tmp_path / "run" / "eval" / "clevr_dist-both.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"variant": words}))
    before, after = (
        next(item for item in comparisons([read_run(folder)]) if item.task == "Clevr/Dist")
        for folder in (suite_run, tmp_path / "run")
    )
    assert any(item.compares for item in before.ours) and not any(item.compares for item in after.ours)


def test_the_page_says_which_protocol_a_number_is(suite_page: Page) -> None:
    text = suite_page.text
    assert "Beside the paper" in text
    assert "CIFAR100 linear held_out 40.0 ± 2.0 (3 seeds) 87.5 to 89.5 89.5 I-JEPA H/14 IN22K, 900 the paper's" in text
    assert "linear-cached held_out 40.0 ± 2.0 (3 seeds) another" in text
    strips = [attrs["aria-label"] for tag, attrs in suite_page.elements if tag == "svg" and "strip" in str(attrs["class"])]
    assert len(strips) == 6 and any("Clevr/Dist: ours linear 40.0 %" in str(label) for label in strips)


def test_several_runs_stand_in_one_picture(suite_run: Path, tmp_path: Path) -> None:
    other = write_run(tmp_path / "other", steps=200)
    write_suite(other, suite="cached", shift=0.1)
    found = {item.task: item for item in comparisons([read_run(suite_run), read_run(other)])}
    dist = found["Clevr/Dist"]
    assert len(dist.published) == 7, "once, not once per run"
    assert {(item.run, round(item.value)) for item in dist.ours} == {(0, 40), (1, 50)}
    assert not any(item.compares for item in dist.ours if item.run == 1)


def test_both_selection_rules_are_rows_of_one_probe(suite_run: Path) -> None:
    rows = [row for row in table([read_run(suite_run)]) if row.task == "CIFAR100"]
    assert [(row.probe, row.selection) for row in rows] == [
        (probe, rule) for probe in ("linear", "linear-cached", "k-NN") for rule in ("held_out", "paper")
    ]
    assert all(row.variant == "" for row in rows), "`both` says nothing that the rows do not"


def test_seeds_are_a_mean_with_their_spread(suite_page: Page, tmp_path: Path) -> None:
    assert "the mean ± the spread over them" in suite_page.text and "40.0 ± 2.0 (3 seeds)" in suite_page.text
    folder = write_run(tmp_path / "run", steps=100)
    write_evaluations(folder)
    page = page_of(folder)
    assert "(3 seeds)" not in page.text and "the spread over them" not in page.text and "61.2 ± 0.8" in page.text
    result = json.loads((folder / "eval" / "classification.json").read_text())
    for metric in result["subjects"]["encoder"]["metrics"].values():
        metric |= {"spread": 0.2, "seeds": 3}
    (folder / "eval" / "classification.json").write_text(json.dumps(result))
    page = page_of(folder)
    assert "61.2 ± 20.0 (3 seeds)" in page.text
    assert "within the error of the better baseline (+16.1 points)" in page.text, "a spread of 20 points hides a gain of 16"


def test_rows_that_were_skipped_stand_with_their_reasons(suite_page: Page) -> None:
    for words in ("2 tasks were not probed", "Places205 places205 is not in the folder", "iNat18 inat18 is not in the folder"):
        assert words in suite_page.text


def test_quality_without_labels_by_subject(suite_run: Path, suite_page: Page) -> None:
    rows = [row for row in qualities([read_run(suite_run)]) if row.task == "CIFAR100"]
    assert [(row.subject, dict(row.shown)) for row in rows] == [
        ("trained", {"RankMe": "123", "alpha-ReQ": "1.07"}),
        ("untrained", {"RankMe": "20.5", "alpha-ReQ": ""}),
    ]
    assert "only among runs of one method" in suite_page.text and "near 1 is best" in suite_page.text


@pytest.mark.parametrize("name", ["cifar10-default-seed0", "quickstart-seed0"])
def test_results_of_before_are_read(name: str, tmp_path: Path) -> None:
    run = read_run(OLD / name)
    assert table([run]) and not comparisons([run]) and not qualities([run])
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
