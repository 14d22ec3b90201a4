"""The table of probes and the headline: which evaluation a number is of, and whether it is a gain."""

from pathlib import Path

from openjepa.report.headline import headline
from openjepa.report.probes import table
from openjepa.report.reading import read_run
from tests.example_run import TOTAL_STEPS, write_evaluations, write_run, write_variant
from tests.report_page import page_of


def test_a_gain_within_the_noise_is_not_colored(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run", steps=100)
    write_evaluations(folder, shift=-0.155)
    page = page_of(folder)
    classes = [attrs.get("class") for tag, attrs in page.elements if tag == "span"]
    assert "unclear" in classes and "down" not in classes, "+0.6 points at standard errors of 0.8"


def test_a_headline_within_the_noise_is_no_flat_gain(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run", steps=100)
    write_evaluations(folder, shift=-0.155)
    text = page_of(folder).text
    assert "within the error of the better baseline (+0.6 points)" in text and "points against the better" not in text


def test_rows_say_what_sets_them_apart(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run")
    write_evaluations(folder)
    write_variant(
        folder, "classification-context-paper", shift=0.2, encoder="context", selection="paper", variant="context-paper"
    )
    write_variant(folder, "classification-flowers", shift=0.3, data="flowers: 100 images", num_train=80, num_test=20, step=4400)
    rows = table([read_run(folder)])
    linear = [(row.variant, row.what) for row in rows if row.probe == "linear-cached"]
    assert linear == [
        ("", "9,025 train and 3,929 test images"),
        ("context-paper", "context encoder; 9,025 train and 3,929 test images"),
        ("flowers", "data: flowers: 100 images; 80 train and 20 test images; step 4,400"),
    ], "the file's name tells the variant of results that do not"
    page = page_of(folder)
    assert page.text.count("context-paper context encoder; 9,025 train") == 2 and "held_out flowers data: flowers" in page.text
    assert "linear-cached 61.2 % vs untrained 45.1 vs pixels 41.0" in [attrs.get("aria-label") for _, attrs in page.elements]
    assert "evaluated at step" not in page.text


def test_the_task_with_the_clearest_gain_heads_the_page(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run")
    write_evaluations(folder, shift=-0.1)
    write_variant(folder, "clevr_count", task="clevr_count", title="Clevr/Count", shift=0.02)
    write_variant(folder, "clevr_dist", task="clevr_dist", title="Clevr/Dist", shift=0.01)
    write_variant(folder, "clevr_dist-paper", task="clevr_dist", title="Clevr/Dist", shift=0.3, selection="paper")
    assert "Clevr/Count, linear-cached held_out 53.2 %" in page_of(folder).text
    other = write_run(tmp_path / "other")
    write_evaluations(other, shift=0.3)
    write_variant(other, "clevr_count", task="clevr_count", title="Clevr/Count", shift=-0.7)
    heads = [headline(table([read_run(folder), read_run(other)]), run) for run in (0, 1)]
    assert [head.title for head in heads if head is not None] == 2 * ["Clevr/Count, linear-cached"], "so that they compare"


def test_results_of_an_earlier_step_are_remarked(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run")
    write_evaluations(folder)
    write_variant(folder, "classification", step=2000)
    again = f"Classification evaluated at step 2,000, the run is at step 4,400. To evaluate again: openjepa evaluate {folder}"
    assert again in page_of(folder).text
    write_variant(folder, "classification-paper", selection="paper")
    assert "Classification, Classification (paper) evaluated at step 2,000" in page_of(folder).text
    assert "with the same options where any were given" in page_of(folder).text
    for name in ("classification", "classification-paper"):
        write_variant(folder, name, step=TOTAL_STEPS)
    assert "evaluated at step" not in page_of(folder).text
