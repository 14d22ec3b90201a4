"""The picture of an ablation, and the tables of runs on scenes: what they show is what the results hold."""

import re
from xml.etree import ElementTree

from openjepa.experiments.ablations.ablation_picture import picture
from openjepa.experiments.ablations.ablation_tables import RunResult, compared, markdown, tables
from openjepa.recipes.ablations import ABLATIONS
from tests.helpers.example_run import finished

ABLATION = ABLATIONS["masks"]
SVG = "{http://www.w3.org/2000/svg}"
VALUES = {"base": 0.6, "block": 0.5, "rasterized": 0.4, "inverse-block": 0.7}


def results(tasks: tuple[str, ...] = ("classification",)) -> list[RunResult]:
    """Two seeds of four rows; the second seed is two points better in every row."""
    made = []
    for row, value in VALUES.items():
        for seed in (0, 1):
            numbers = {f"{task}/{probe}": value + 0.02 * seed for task in tasks for probe in ("linear", "knn")}
            references = {"untrained": dict.fromkeys(numbers, 0.3)} if row == "base" else {}
            made.append(finished(row, seed, 0.0, numbers=numbers, references=references))
    return made


def test_the_picture_has_every_seed_and_the_best_published_row_first() -> None:
    found = ElementTree.fromstring(picture(ABLATION, results(), "images"))
    kinds = [item.get("class") for item in found.iter(f"{SVG}circle")]
    assert (kinds.count("published"), kinds.count("ours"), kinds.count("seed")) == (3, 2 * 4, 2 * 8)
    assert [item.text for item in found.iter(f"{SVG}text") if item.get("class") == "row"] == [
        "multi-block",
        "block",
        "rasterized",
        "inverse block",
    ]
    ours = [float(item.get("cx", 0)) for item in found.iter(f"{SVG}circle") if item.get("class") == "ours"]
    assert ours[3] > ours[0] > ours[1] > ours[2], "0.7, 0.6, 0.5 and 0.4 on the first axis"
    _, _, width, height = map(float, (found.get("viewBox") or "").split())
    assert all(float(item.get("y", 0)) < height and float(item.get("x", 0)) < width for item in found.iter(f"{SVG}text"))
    assert sum(item.get("class") == "untrained" for item in found.iter(f"{SVG}path")) == 2


def test_what_all_seeds_share_is_no_noise_and_the_published_order_appears() -> None:
    text = markdown(ABLATION, tables(results(), ABLATION.rows), results())
    assert "| block | 20.2 | -34.0 | 51.0 | -10.0 ± 0.0 | 51.0 | -10.0 ± 0.0 | 1.00 | 1.00 |" in text
    assert "The published ordering appears by linear (3 of 3 pairs of rows agree" in text
    assert "Count" not in text.split("## ")[1], "columns without a number are left out"


def test_on_scenes_the_rows_are_compared_by_the_probes_on_scenes() -> None:
    found = results(("clevr_count", "clevr_dist"))
    names = ["Count linear", "Count k-NN", "Dist linear", "Dist k-NN"]
    assert list(compared(ABLATION, found, "images")) == names
    titles = re.findall(r'<text class="column"[^>]*>([^<]*)', picture(ABLATION, found, "images"))
    assert titles == ["published", *names]
    both = results(("classification", "clevr_count"))
    assert list(compared(ABLATION, both, "images")) == ["linear", "k-NN"]
