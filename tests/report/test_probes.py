"""The table of probes and the headline: which evaluation a number is of, and whether it is a gain."""

import json
import shutil
from dataclasses import asdict
from pathlib import Path

import pytest

from openjepa.records import DataFacts, Measure
from openjepa.report.headline import headline
from openjepa.report.probes import probe_table, quantity, unfolded
from openjepa.report.reading import read_run
from tests.helpers.example_run import TOTAL_STEPS, write_evaluations, write_run, write_variant
from tests.helpers.report_page import page_of, write_suite


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


def test_facts_and_no_words_decide_whether_the_data_is_the_run_s_own(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run")
    write_evaluations(folder)
    facts = asdict(DataFacts("woof", "64 x 64 pixels", train_images=9025, test_images=3929, classes=10))
    summary = json.loads((folder / "summary.json").read_text())
    (folder / "summary.json").write_text(json.dumps(summary | {"data": "woof", "data_facts": facts}))
    write_variant(folder, "classification", data="in other words", data_facts=facts)
    for name, changes in (("labeled", {"train_images": 10}), ("classes", {"classes": 9}), ("older", {"classes": None})):
        write_variant(folder, f"classification-{name}", data="in other words", data_facts=facts | changes)
    write_variant(folder, "classification-key", data="in other words", data_facts=facts, data_key="0123")
    rows = [row for row in probe_table([read_run(folder)]) if row.probe == "linear" and row.kind == "classification"]
    assert {row.variant: row.what.startswith("data: in other words") for row in rows} == {
        **{"": False, "labeled": False, "older": False},
        **{"classes": True, "key": True},
    }


def test_rows_say_what_sets_them_apart(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run")
    write_evaluations(folder)
    write_variant(
        folder, "classification-context-paper", shift=0.2, encoder="context", selection="paper", variant="context-paper"
    )
    write_variant(folder, "classification-flowers", shift=0.3, data="flowers: 100 images", num_train=80, num_test=20, step=4400)
    rows = probe_table([read_run(folder)])
    linear = [(row.variant, row.what) for row in rows if row.probe == "linear"]
    assert linear == [
        ("", "9,025 train and 3,929 test images"),
        ("context-paper", "context encoder; 9,025 train and 3,929 test images"),
        ("flowers", "data: flowers: 100 images; 80 train and 20 test images; step 4,400"),
    ], "the file's name tells the variant of results that do not"
    page = page_of(folder)
    assert page.text.count("context-paper context encoder; 9,025 train") == 2 and "held_out flowers data: flowers" in page.text
    assert "linear 61.2 % vs untrained 45.1 vs pixels 41.0" in [attrs.get("aria-label") for _, attrs in page.elements]
    assert "evaluated at step" not in page.text


def test_a_fixed_task_heads_the_page_whatever_the_numbers(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run")
    write_evaluations(folder, shift=-0.3)
    write_variant(folder, "clevr_count", task="clevr_count", title="Clevr/Count", shift=0.5)
    write_variant(folder, "clevr_dist", task="clevr_dist", title="Clevr/Dist", shift=0.4)
    assert "Classification, linear held_out 31.2 %" in page_of(folder).text, "though it is below its baselines"
    assert "Its other tasks: Clevr/Count 81.2 ± 0.7, Clevr/Dist 71.2 ± 0.7" in page_of(folder).text
    (folder / "eval" / "classification.json").unlink()
    assert "Clevr/Dist, linear held_out 71.2 %" in page_of(folder).text
    assert "Its other tasks: Clevr/Count 81.2 ± 0.7" in page_of(folder).text
    other = write_run(tmp_path / "other")
    write_evaluations(other, shift=0.3)
    write_variant(other, "clevr_dist", task="clevr_dist", title="Clevr/Dist", shift=-0.7)
    heads = [headline(probe_table([read_run(folder), read_run(other)]), run) for run in (0, 1)]
    assert [head.title for head in heads if head is not None] == 2 * ["Clevr/Dist, linear"], "so that they compare"


def test_rows_of_a_suite_and_variants_never_head_before_an_own_number(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run")
    write_evaluations(folder, shift=-0.4)
    own = "Classification, linear held_out 21.2 %"
    write_variant(folder, "classification-128px", variant="128px", shift=0.5)
    write_variant(folder, "suite-clevr_dist", row="clevr_dist", task="clevr_dist", title="Suite/Dist", shift=0.6)
    write_variant(folder, "suite-cifar100", row="cifar100", title="CIFAR100", shift=0.6)
    write_variant(folder, "suite-imagenet1k", row="imagenet1k", title="ImageNet-1K", shift=0.1)
    assert own in page_of(folder).text and "Its other tasks" not in page_of(folder).text
    (folder / "eval" / "classification.json").unlink()
    (folder / "eval" / "classification-128px.json").unlink()
    assert "ImageNet-1K, linear held_out 31.2 %" in page_of(folder).text, "the order of the paper, not of the numbers"


def test_variants_are_folded_where_their_task_has_a_row(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run")
    write_evaluations(folder)
    write_variant(folder, "classification-128px", variant="128px")
    write_variant(folder, "suite-cifar100-2seeds", row="cifar100", title="CIFAR100", variant="2seeds")
    write_variant(folder, "suite-cifar100-5shot", row="cifar100", title="CIFAR100", variant="5shot")
    shown, folded = unfolded(probe_table([read_run(folder)]))
    assert {(row.task, row.variant) for row in shown} == {("Classification", ""), ("CIFAR100", "2seeds")}
    assert {(row.task, row.variant) for row in folded} == {("Classification", "128px"), ("CIFAR100", "5shot")}
    assert len(shown) + len(folded) == len(probe_table([read_run(folder)])) == 8
    assert "4 numbers with other settings" in page_of(folder).text


@pytest.mark.parametrize("file", [None, "config.json"])
def test_an_evaluated_encoder_has_a_page_without_a_run(tmp_path: Path, file: str | None) -> None:
    folder = write_run(tmp_path / "run", steps=100)
    write_suite(folder, suite="cached")
    encoder = tmp_path / "my-encoder"
    shutil.copytree(folder / "eval", encoder / "eval")
    if file is not None:
        shutil.copy(folder / "encoder" / file, encoder / file)
    text = page_of(encoder).text
    assert "An evaluated encoder" in text and ("width" in text) is (file is not None)
    for words in ("Probes", "Beside the paper", "Quality without labels", "ImageNet-1K, linear"):
        assert words in text
    for words in (
        "Collapse",
        "No training log yet",
        "openjepa train --config",
        "What was run",
        "Small print",
        "Pictures",
        "Learning",
    ):
        assert words not in text
    both = page_of(folder, encoder, output=tmp_path / "both.html").text
    assert "2 runs compared" in both and "my-encoder" in both


@pytest.mark.parametrize(
    ("measures", "words"),
    [
        (["accuracy"], "Accuracy on test images"),
        (["miou"], "Mean intersection over union (mIoU) of the patches of test images"),
        (
            ["accuracy", "miou"],
            "Accuracy on test images, or mean intersection over union (mIoU) of the patches of test images,",
        ),
    ],
)
def test_the_kind_of_number_is_named(measures: list[Measure], words: str) -> None:
    assert quantity(measures) == words


def test_the_encoder_before_training_evaluated_by_itself_is_not_called_trained(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run")
    write_evaluations(folder)
    write_variant(folder, "classification-initial", variant="initial", given="encoder", step=0, shift=0.3)
    write_variant(folder, "classification-no-pixels", variant="no-pixels", shift=0.01)
    (folder / "eval" / "classification.json").unlink()
    shown, folded = unfolded(probe_table([read_run(folder)]))
    assert {row.variant for row in shown if row.task == "Classification"} == {"no-pixels"}
    (initial,) = [row for row in folded if row.variant == "initial" and row.probe == "linear"]
    assert "encoder" not in initial.scores and "untrained" in initial.scores and initial.gain is None
    page = page_of(folder).text
    assert "Classification, linear held_out 62.2 %" in page and "evaluated at step 0" not in page


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
