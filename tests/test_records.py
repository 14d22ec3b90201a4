"""Records of a run folder: what is written is read back equal, what cannot be read is dropped, older files are understood."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import pytest

from openjepa.config import lenient
from openjepa.records import (
    RESULT_VERSION,
    DataFacts,
    Environment,
    Metric,
    Published,
    Result,
    SubjectResult,
    Summary,
    read_energy,
    read_environment,
    read_evaluation,
    read_result,
    read_summary,
    seconds_of_steps,
)
from openjepa.settings.methods import IJepaSettings

OLD = Path(__file__).parents[1] / "docs" / "results"
METRIC = Metric(0.6, 0.01, "higher", "held_out", "last, knn, k 20", probe="k-NN", extra={"top5": 0.9})
RESULT = Result(
    "classification",
    "Classification",
    "run",
    "target",
    "both",
    {"encoder": SubjectResult({"k-NN": METRIC, "k-NN (paper)": replace(METRIC, selection="paper")})},
    heads=({"subject": "encoder", "chosen": True},),
    image_size=(64, 48),
    data_name="woof",
    published=(Published(method="MAE", value=67.8),),
    data_facts=DataFacts("woof", "64 x 64 pixels", train_images=10, classes=2),
    settings={"protocols": ["knn"]},
)


def through_json(record: Any) -> Any:
    return json.loads(json.dumps(record))


def test_what_is_written_is_read_back(tmp_path: Path) -> None:
    path = RESULT.write(tmp_path)
    assert through_json(asdict(read_result(path))) == through_json(asdict(RESULT))
    assert read_evaluation(json.loads(path.read_text()), path.stem) == read_result(path)
    summary = Summary(status="finished", step=3, about=IJepaSettings.about, data_facts=DataFacts("x"), monitor={"rank": None})
    assert read_summary(through_json(summary.content())) == summary
    environment = Environment(torch="2", threads=2)
    assert read_environment(through_json(asdict(environment))) == environment


def test_a_result_that_lost_something_is_no_result_of_this_version(tmp_path: Path) -> None:
    path = RESULT.write(tmp_path)
    whole = json.loads(path.read_text())
    for change in (
        {"version": RESULT_VERSION + 1},
        {"step": "many"},
        {"subjects": {"encoder": {"metrics": {"k-NN": {"value": None}}}}},
    ):
        path.write_text(json.dumps(whole | change))
        assert read_result(path) is None
    path.write_text(json.dumps({name: value for name, value in whole.items() if name not in ("data_facts", "failed")}))
    assert read_result(path) == replace(RESULT, data_facts=None), "entries that older results lack have their defaults"


@dataclass(frozen=True)
class Inner:
    value: float
    words: str = ""


@dataclass(frozen=True)
class Outer:
    whole: int | None = None
    number: float = 0.0
    flag: bool | None = None
    kind: Literal["a", "b"] = "a"
    pair: tuple[int, int] | None = None
    numbers: Sequence[float] = ()
    words: Sequence[str] = ()
    inner: Mapping[str, Inner] = field(default_factory=dict)


@pytest.mark.parametrize(
    ("content", "read"),
    [
        ({"whole": 3.0, "number": 2, "flag": True, "kind": "b", "pair": [1, 2]}, Outer(3, 2, True, "b", (1, 2))),
        ({"whole": 3.5, "number": float("nan"), "flag": 1, "kind": "c", "pair": [1, 2, 3]}, Outer()),
        ({"whole": True, "number": "2", "flag": "yes", "kind": None, "pair": [1, None], "unknown": 1}, Outer()),
        ({"number": 10**400, "numbers": [1, "2"], "words": ["a", 2, "b"]}, Outer(words=("a", "b"))),
        ({"inner": {"a": {"value": 1}, "b": {"words": "x"}}, "words": "ab"}, Outer(inner={"a": Inner(1)})),
    ],
)
def test_entries_of_another_type_are_dropped(content: dict[str, Any], read: Outer) -> None:
    assert lenient(Outer, content) == read


def test_a_record_without_a_needed_entry_is_dropped_whole() -> None:
    assert lenient(Inner, {"words": "x"}) is None and lenient(Inner, []) is None and lenient(Inner, {"value": "x"}) is None
    assert lenient(Inner, {"words": "x"}, Inner(2.0)) == Inner(2.0, "x")


def test_a_list_of_numbers_is_whole_or_not_there() -> None:
    content = {"histograms": {"trained": {"edges": [0, 1, None], "compatible": [1, 0], "incompatible": [0, 1]}}}
    assert read_energy(content).histograms == {}
    content["histograms"]["trained"]["edges"] = [0, 1, 2]
    assert read_energy(content).histograms["trained"].edges == (0, 1, 2)


def test_names_and_words_of_older_results_become_facts() -> None:
    metric = {"value": 0.5}
    metrics = {"dense k-NN mIoU (paper)": metric, "linear": metric | {"selection": "held_out"}}
    data = "cifar10, small: 5 images to train in 3 of its 10 classes"
    content = {"task": "classification", "data": data, "selection": "both"}
    found = read_evaluation(content | {"subjects": {"encoder": {"metrics": metrics}}}, "classification-max5")
    first, second = found.subjects["encoder"].metrics.values()
    assert (first.probe, first.selection, first.measure) == ("dense k-NN mIoU", "paper", "miou")
    assert (second.probe, second.selection, second.measure) == ("linear-full", "held_out", "accuracy"), "the name of version 1"
    assert (found.title, found.variant, found.data_name) == ("classification", "max5", "cifar10")
    assert found.departures == (data,)
    assert read_evaluation(content | {"departures": []}, "classification").departures == ()


def test_the_line_about_the_data_of_an_older_run_becomes_facts() -> None:
    line = "Packaged rendered scenes, 64 x 64 pixels: 3,000 training and 1,000 test images"
    facts = read_summary({"data": line}).data_facts
    assert facts == DataFacts("Packaged rendered scenes", "64 x 64 pixels", "3,000 training and 1,000 test images")
    assert facts.words() == line.replace(", 64 x 64 pixels", "")
    assert (
        DataFacts("x", train_images=1000, test_images=10, classes=3).words()
        == "x: 1,000 images to train in 3 classes, 10 to test"
    )


def test_every_published_file_is_read_whole() -> None:
    """Nothing of the results in docs/ has to be dropped."""
    files = sorted(OLD.rglob("eval/*.json"))
    assert len(files) > 80
    for path in files:
        assert read_result(path) is not None, path
    for path in OLD.rglob("summary.json"):
        written, read = json.loads(path.read_text()), asdict(read_summary(json.loads(path.read_text())))
        assert written == {name: read[name] if name != "views" else written[name] for name in written}, path


def test_seconds_of_steps_come_from_speeds() -> None:
    assert seconds_of_steps([(100, 50.0), (300, 100.0)]) == 2 + 2
