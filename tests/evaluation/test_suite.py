"""Suites: rows of benchmarks below one folder, beside published numbers; what is missing is skipped with the reason."""

import json
import os
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from openjepa.data.datasets.benchmarks import BENCHMARKS
from openjepa.evaluation.suite_run import evaluate_suite
from openjepa.evaluation.tasks import PUBLISHED, SUITES, TASKS
from openjepa.records import Result
from openjepa.settings.evaluation import FullLinearSettings, LowShotSettings
from openjepa.settings.protocols import PROTOCOLS
from openjepa.types import Export
from openjepa.weights.native import save_network
from tests.helpers.evaluated_run import CONFIG, SETTINGS, encoder
from tests.helpers.images import write_folder


@pytest.fixture
def subject(tmp_path: Path) -> Path:
    """An encoder folder that lies in no run."""
    save_network(tmp_path / "mine", Export(CONFIG, encoder(1)))
    return tmp_path / "mine"


@pytest.fixture
def data_root(tmp_path: Path) -> Path:
    """ImageNet in miniature, and nothing else."""
    root = tmp_path / "data"
    write_folder(root / "imagenet" / "train", 48)
    write_folder(root / "imagenet" / "val", 16)
    return root


def test_rows_name_what_exists() -> None:
    for rows in SUITES.values():
        assert len({row.name for row in rows}) == len(rows)
        for row in rows:
            assert row.benchmark in BENCHMARKS and row.task in TASKS and set(row.protocols) <= set(PROTOCOLS)
    assert set(PUBLISHED) <= {row.name for row in SUITES["paper"]}


def test_published_numbers_are_those_of_the_tables() -> None:
    """Two numbers of each table, read again in the paper's text."""
    found = {(name, item.method, item.architecture): item.value for name, items in PUBLISHED.items() for item in items}
    for key, value in {
        ("imagenet1k", "I-JEPA", "H/14"): 79.3,
        ("imagenet1k", "iBOT", "L/16"): 81.0,
        ("imagenet1k-1pct", "I-JEPA", "H/16-448"): 77.3,
        ("imagenet1k-1pct", "MSN", "B/4"): 75.7,
        ("imagenet1k-finetune", "I-JEPA", "H/16-448"): 87.1,
        ("cifar100", "I-JEPA", "G/16"): 89.5,
        ("places205", "iBOT", "L/16"): 60.4,
        ("inat18", "DINO", "B/8"): 55.9,
        ("clevr_count", "MAE", "H/14"): 90.5,
        ("clevr_dist", "DINO", "B/8"): 53.4,
    }.items():
        assert found[key] == value


def test_what_is_there_is_evaluated_and_the_rest_is_skipped_with_the_reason(subject: Path, data_root: Path) -> None:
    settings = replace(SETTINGS, protocols=("linear", "knn"))
    results = {result.row: result for result in evaluate_suite(subject, "cached", data_root, settings)}
    assert list(results) == [row.name for row in SUITES["cached"]]
    whole = json.loads((subject / "eval" / "suite-imagenet1k-linear-knn.json").read_text())
    assert (whole["num_train"], whole["num_test"], whole["row"], whole["title"]) == (48, 16, "imagenet1k", "ImageNet-1K")
    assert {item["value"] for item in whole["published"] if item["method"] == "I-JEPA"} == {72.9, 77.5, 79.3, 81.1}
    assert "failed: evaluation.selection='held_out'" in str(results["imagenet1k-1pct"].skipped)  # one image per class
    for name in ("cifar100", "places205", "inat18", "clevr_count"):
        assert "no folder" in str(results[name].skipped)
        assert json.loads((subject / "eval" / f"suite-{name}.json").read_text())["skipped"] == results[name].skipped


def test_the_low_shot_row_uses_one_percent_or_what_is_asked_for(subject: Path, data_root: Path) -> None:
    settings = replace(SETTINGS, protocols=("knn",), tasks=("imagenet1k-1pct",), selection="paper", baselines=())
    (one_percent,) = evaluate_suite(subject, "paper", data_root, settings)
    assert one_percent.num_train == 2  # at least one of each class
    (shots,) = evaluate_suite(subject, "paper", data_root, replace(settings, low_shot=LowShotSettings(images_per_class=5)))
    assert shots.num_train == 10
    assert one_percent.file_name != shots.file_name and "5shot" in shots.file_name


def test_several_seeds_give_mean_and_spread(subject: Path, data_root: Path) -> None:
    shot = LowShotSettings(images_per_class=6)
    settings = replace(SETTINGS, protocols=("knn",), tasks=("imagenet1k-1pct",), low_shot=shot, selection="paper")
    (result,) = evaluate_suite(subject, "paper", data_root, replace(settings, seeds=3))
    singles = []
    for seed in range(3):
        (single,) = evaluate_suite(subject, "paper", data_root, replace(settings, seed=seed, low_shot=replace(shot, seed=seed)))
        singles.append(single.subjects["encoder"].metrics["k-NN"].value)
    metric = result.subjects["encoder"].metrics["k-NN"]
    mean = sum(singles) / 3
    assert metric.value == pytest.approx(mean)
    assert metric.spread == pytest.approx((sum((value - mean) ** 2 for value in singles) / 2) ** 0.5)
    assert metric.seeds == 3


def test_both_selections_stand_side_by_side(subject: Path, data_root: Path) -> None:
    settings = replace(SETTINGS, protocols=("linear", "knn"), tasks=("imagenet1k",), selection="both", baselines=())
    (result,) = evaluate_suite(subject, "cached", data_root, settings)
    metrics = result.subjects["encoder"].metrics
    assert {name: metric.selection for name, metric in metrics.items()} == {
        "linear": "held_out",
        "linear (paper)": "paper",
        "k-NN": "held_out",
        "k-NN (paper)": "paper",
    }
    assert metrics["k-NN (paper)"].value >= metrics["k-NN"].value


def test_a_broken_benchmark_stops_before_anything_is_computed(subject: Path, data_root: Path) -> None:
    (data_root / "CLEVR_v1.0" / "images").mkdir(parents=True)
    with pytest.raises(ValueError, match=r"CLEVR_train_scenes\.json"):
        evaluate_suite(subject, "cached", data_root, SETTINGS)
    assert not (subject / "eval").exists()


@pytest.mark.parametrize(
    ("suite", "root", "tasks", "message"),
    [
        ("papers", "data", (), "suite='papers' does not exist: did you mean 'paper'"),
        ("paper", "nowhere", (), "is no folder; it must hold one folder per data set: imagenet"),
        ("paper", "mine", (), "holds none of the data sets of the rows asked for: imagenet"),
        ("paper", "data", ("cifar",), "tasks='cifar' is no row of the suite 'paper': did you mean"),
    ],
)
def test_mistakes_are_named(
    suite: str, root: str, tasks: tuple[str, ...], message: str, subject: Path, data_root: Path
) -> None:
    with pytest.raises(ValueError, match=message.replace("(", r"\(")):
        evaluate_suite(subject, suite, data_root.parent / root, replace(SETTINGS, tasks=tasks))


def test_low_shot_settings_are_for_low_shot_rows_and_for_rows_that_are_named(subject: Path, data_root: Path) -> None:
    settings = replace(SETTINGS, protocols=("knn",), low_shot=LowShotSettings(images_per_class=5), baselines=())
    unnamed = {result.row: result.num_train for result in evaluate_suite(subject, "cached", data_root, settings)}
    assert (unnamed["imagenet1k"], unnamed["imagenet1k-1pct"]) == (48, 10)
    (named,) = evaluate_suite(subject, "cached", data_root, replace(settings, tasks=("imagenet1k",)))
    assert named.num_train == 10 and "5shot" in named.file_name


def test_rows_never_replace_the_runs_own_results_nor_those_of_another_suite_or_root(
    subject: Path, data_root: Path, tmp_path: Path
) -> None:
    settings = replace(SETTINGS, tasks=("imagenet1k",), baselines=())
    own = subject / "eval" / "imagenet1k.json"
    own.parent.mkdir()
    own.write_text("the run's own")
    write_folder(tmp_path / "other" / "imagenet" / "train", 32)
    write_folder(tmp_path / "other" / "imagenet" / "val", 8)
    evaluate_suite(subject, "cached", data_root, settings)
    evaluate_suite(subject, "cached", tmp_path / "other", settings)
    evaluate_suite(subject, "paper", data_root, replace(settings, linear_full=FullLinearSettings(epochs=1)))
    assert own.read_text() == "the run's own"
    assert sorted(path.name for path in (subject / "eval").glob("suite-imagenet1k-*.json")) == [
        "suite-imagenet1k-linear-knn-no-untrained-no-pixels-2.json",
        "suite-imagenet1k-linear-knn-no-untrained-no-pixels.json",
        "suite-imagenet1k-linear_full.epochs-1-no-untrained-no-pixels.json",
    ]


def test_what_departs_from_the_published_protocol_is_said(subject: Path, data_root: Path) -> None:
    settings = replace(SETTINGS, tasks=("imagenet1k",), baselines=(), protocols=("knn",), image_size=24)
    (result,) = evaluate_suite(subject, "cached", data_root, settings)
    assert result.departures == (
        "images of 24x24 px",
        "2 of its 1,000 classes",
        "48 of its 1,281,167 training images",
        "16 of its 50,000 test images",
    )


def test_another_number_of_labels_has_another_title_and_nothing_to_compare_with(subject: Path, data_root: Path) -> None:
    shot = LowShotSettings(images_per_class=5)
    settings = replace(SETTINGS, tasks=("imagenet1k-1pct",), baselines=(), protocols=("knn",), low_shot=shot)
    (result,) = evaluate_suite(subject, "cached", data_root, settings)
    assert result.title == "ImageNet-1K, 5 per class" and result.published == ()


def test_an_error_in_one_row_does_not_take_the_others_with_it(
    subject: Path, data_root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object, **__: object) -> None:
        raise RuntimeError("out of luck")

    told: list[str] = []
    done: list[str] = []
    monkeypatch.setattr("openjepa.evaluation.probes.logistic.evaluate_logistic", broken)
    settings = replace(SETTINGS, tasks=("imagenet1k", "imagenet1k-1pct"), selection="paper", baselines=())
    first, second = evaluate_suite(subject, "cached", data_root, settings, told.append, lambda result: done.append(result.row))
    assert first.skipped is None and second.skipped == "failed: RuntimeError: out of luck"
    assert done == ["imagenet1k", "imagenet1k-1pct"]
    assert told[0] == "[1/2] ImageNet-1K: features" and "[2/2] ImageNet-1%: linear, logistic" in told


def test_an_interruption_keeps_what_is_done(subject: Path, data_root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("openjepa.evaluation.probes.linear_full.evaluate_linear_full", interrupted)
    settings = replace(SETTINGS, tasks=("imagenet1k",), baselines=(), protocols=("knn", "linear-full"))
    with pytest.raises(KeyboardInterrupt):
        evaluate_suite(subject, "paper", data_root, settings)
    (path,) = (subject / "eval").glob("suite-imagenet1k*.json")
    found = json.loads(path.read_text())
    assert found["partial"] and set(found["subjects"]["encoder"]["metrics"]) == {"k-NN"}


def test_a_split_that_is_mostly_unreadable_has_no_numbers(subject: Path, data_root: Path) -> None:
    for path in sorted((data_root / "imagenet" / "val").rglob("*.png"))[:3]:
        path.write_bytes(b"no image")
    settings = replace(SETTINGS, tasks=("imagenet1k",), baselines=(), protocols=("knn",))
    (result,) = evaluate_suite(subject, "cached", data_root, settings)
    assert "failed: 3 of the 16 images of the test split cannot be read" in str(result.skipped)
    (result,) = evaluate_suite(subject, "cached", data_root, replace(settings, max_skipped=0.2))
    assert result.num_test == 13 and "3 unreadable images" in result.departures


def test_finished_rows_are_read_and_others_are_not(subject: Path, data_root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = replace(SETTINGS, tasks=("imagenet1k",), protocols=("knn",))
    (first,) = evaluate_suite(subject, "cached", data_root, settings)
    calls: list[str] = []

    def computed(blank: Result, *_: object, **__: object) -> Result:
        calls.append(blank.row)
        return replace(blank, skipped="computed")

    monkeypatch.setattr("openjepa.evaluation.suite_run.evaluate_seeds", computed)
    (second,) = evaluate_suite(subject, "cached", data_root, settings)
    assert not calls and json.loads(json.dumps(asdict(second))) == json.loads(json.dumps(asdict(first)))
    changed = replace(settings, neighbor_temperature=0.1)
    (other,) = evaluate_suite(subject, "cached", data_root, changed)
    (anew,) = evaluate_suite(subject, "cached", data_root, settings, again=True)
    save_network(subject, Export(CONFIG, encoder(2)))
    (trained,) = evaluate_suite(subject, "cached", data_root, settings)
    assert calls == ["imagenet1k"] * 3 and {other.skipped, anew.skipped, trained.skipped} == {"computed"}


def test_rows_of_images_or_lists_that_were_overwritten_are_computed_again(
    subject: Path, data_root: Path, tmp_path: Path
) -> None:
    names = [path.name for path in sorted((data_root / "imagenet" / "train").rglob("*.png"))]
    listed = tmp_path / "list.txt"
    listed.write_text("\n".join(names[:20]))
    settings = replace(SETTINGS, tasks=("imagenet1k-1pct",), baselines=(), protocols=("knn",), selection="paper")
    settings = replace(settings, low_shot=LowShotSettings(list=str(listed)))
    told: list[str] = []
    (first,) = evaluate_suite(subject, "cached", data_root, settings, told.append)
    (path,) = (subject / "eval").glob("suite-imagenet1k-1pct*.json")
    stale = json.loads(path.read_text()) | {"seconds": -1.0}  # by which one that was read is known
    path.write_text(json.dumps(stale))
    assert evaluate_suite(subject, "cached", data_root, settings)[0].seconds == -1.0
    for changed in (next((data_root / "imagenet" / "val").rglob("*.png")), listed):
        os.utime(changed, ns=(0, changed.stat().st_mtime_ns + 10**9))
        assert evaluate_suite(subject, "cached", data_root, settings)[0].seconds >= 0.0
    now = {name: value for name, value in stale.items() if name != "images"}
    path.write_text(json.dumps(now))
    told.clear()
    (older,) = evaluate_suite(subject, "cached", data_root, settings, told.append)
    assert older.seconds == -1.0 and "by a version that did not note whether images were overwritten" in told[-1]
    assert first.images != older.images == ""


def test_a_draw_of_labels_that_is_not_the_published_list_is_said(subject: Path, data_root: Path, tmp_path: Path) -> None:
    settings = replace(SETTINGS, tasks=("imagenet1k-1pct",), baselines=(), protocols=("knn",), selection="paper")
    (drawn,) = evaluate_suite(subject, "cached", data_root, settings)
    assert "1 % drawn per class, not the published list" in drawn.departures
    names = [path.name for path in sorted((data_root / "imagenet" / "train").rglob("*.png"))]
    (tmp_path / "list.txt").write_text("\n".join(names[:20]))
    shot = LowShotSettings(list=str(tmp_path / "list.txt"))
    (listed,) = evaluate_suite(subject, "cached", data_root, replace(settings, low_shot=shot))
    assert "a list of 20 labels, not the published 12,811" in listed.departures and listed.num_train == 20


def test_a_list_with_wrong_names_is_an_error_before_the_first_row(subject: Path, data_root: Path, tmp_path: Path) -> None:
    (tmp_path / "list.txt").write_text("n99999999_1.JPEG")
    settings = replace(SETTINGS, low_shot=LowShotSettings(list=str(tmp_path / "list.txt")))
    with pytest.raises(ValueError, match="n99999999_1"):
        evaluate_suite(subject, "cached", data_root, settings)
    assert not (subject / "eval").exists()


def test_choosing_rows_by_name_does_not_compute_them_again(subject: Path, data_root: Path) -> None:
    settings = replace(SETTINGS, baselines=(), selection="paper", protocols=("knn",))
    evaluate_suite(subject, "cached", data_root, settings)
    told: list[str] = []
    evaluate_suite(subject, "cached", data_root, replace(settings, tasks=("imagenet1k",), workers=1), told.append)
    assert len(told) == 1 and "done before" in told[0]
