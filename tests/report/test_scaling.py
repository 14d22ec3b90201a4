"""Accuracy against what training used: which numbers, where they are drawn, and what is said of those that cannot be."""

import json
import math
import re
import shutil
import subprocess
import sys
from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import yaml

from openjepa.cli import main
from openjepa.report import write_scaling
from openjepa.report.numbers import log_ticks, power
from openjepa.report.reading import read_run
from openjepa.report.scaling import scaling, training
from openjepa.report.scatter import LEFT, Dot, Frame, ProbeGroup, Scatter, charts, constants, draw_scatter, frame_of
from openjepa.report.svg import HEIGHT, WIDTH, Scale
from tests.helpers.example_run import write_evaluations, write_run, write_variant
from tests.helpers.report_page import HOSTILE, Page, poisoned

OLD = sorted((Path(__file__).parents[2] / "docs" / "results").glob("cifar10-*"))
ROUND = (1, 1.2, 1.5, 2, 2.5, 3, 4, 5, 6, 7, 8, 10)


def run_of(folder: Path, seed: int = 0, steps: int = 1000, size: str = "small", shift: float = 0.0, **summary: object) -> Path:
    """A finished and evaluated run of a model size, with some of its summary changed (None: removed)."""
    write_run(folder, seed=seed, steps=steps)
    config = yaml.safe_load((folder / "config.yaml").read_text())
    config["model"]["size"] = size
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    change(folder, **summary)
    write_evaluations(folder, shift=shift)
    return folder


def change(folder: Path, **summary: object) -> None:
    content = json.loads((folder / "summary.json").read_text()) | summary
    (folder / "summary.json").write_text(json.dumps({name: value for name, value in content.items() if value is not None}))


def group_of(*folders: Path, probe: str = "linear") -> tuple[ProbeGroup, list[str]]:
    found = scaling([read_run(folder) for folder in folders])
    return next(group for group in found.groups if group.probe == probe), list(found.series)


def test_what_a_run_has_used(tmp_path: Path) -> None:
    used = training(read_run(run_of(tmp_path / "run", steps=1000, train_images=5000, processes=4)))
    assert used.values == pytest.approx(
        {"flops": 3.1e9 * 128_000, "hours": 4 * 260 / 3600, "images": 128_000, "data": 5000, "parameters": 21_600_000}
    )
    assert used.series == "I-JEPA ijepa-vits16 (paper), small/8" and used.device == "4 x AMD EPYC 9R14, 2 cores"
    half = training(read_run(tmp_path / "run"), step=500).values
    assert half["flops"] == used.values["flops"] / 2 and half["images"] == 64_000 and half["data"] == 5000


@pytest.mark.parametrize(
    "line", ["cifar10: 50,000 images to train", "5 training walks: 9,344 training images", "a stream", None]
)
def test_older_summaries_without_a_number_have_that_of_images_seen_per_epoch(tmp_path: Path, line: str | None) -> None:
    """What they say in words is not read: words of names of folders are among them."""
    folder = run_of(tmp_path / "run", steps=730, data=line, train_images=None)
    assert training(read_run(folder)).values["data"] == 128 * 73


@pytest.mark.parametrize("high", [1.05, 2.5, 7, 40, 1000, 1e9])
@pytest.mark.parametrize("low", [3e-3, 0.7, 1.0, 240_000, 8e13])
def test_ticks_of_a_logarithmic_axis_are_round_and_inside(low: float, high: float) -> None:
    ticks = log_ticks(low, low * high)
    assert 1 <= len(ticks) <= 7 and ticks == sorted(ticks)
    assert low * (1 - 1e-9) <= ticks[0] and ticks[-1] <= low * high * (1 + 1e-9)
    if high >= 2.5:
        assert len(ticks) >= 2
        mantissas = [float(f"{tick:e}".split("e")[0]) for tick in ticks]
        assert all(any(abs(mantissa - nice) < 1e-6 for nice in ROUND) for mantissa in mantissas)


def test_equal_factors_are_equal_distances() -> None:
    frame = Frame(Scale(10.0, 1e5, LEFT, WIDTH, is_log=True), Scale(40.0, 60.0, HEIGHT, 0))
    places = [frame.x(value) for value in (10, 100, 1000, 1e4, 1e5)]
    steps = [b - a for a, b in pairwise(places)]
    assert places[0] == LEFT and steps == pytest.approx([steps[0]] * 4)
    assert frame.y(50) == pytest.approx((frame.y(40) + frame.y(60)) / 2) and frame.y(60) < frame.y(40)


def test_everything_that_is_drawn_lies_inside_the_frame() -> None:
    dots = [Dot(1, "a", 3e12, 61.0, 0.5, 20.0, 0), Dot(2, "b", 9e14, 70.0, 3.0, None, 1), Dot(3, "c", 9e14, 70.1, 0.0, None, 1)]
    frame = frame_of(dots)
    assert frame.x.low < 3e12 and frame.x.high > 9e14 and frame.y.low < 20 and frame.y.high > 73
    drawn = draw_scatter(Scatter("Training compute", "", "FLOPs", dots, [], scientific=True))
    circles = re.findall(r'<circle class="dot c(\d)" cx="([\d.]+)" cy="([\d.]+)"', drawn)
    assert [(int(color), float(x), float(y)) for color, x, y in circles] == [
        (dot.color, round(frame.x(dot.x), 1), round(frame.y(dot.y), 1)) for dot in dots
    ]
    numbers = [(float(x), float(y)) for x, y in re.findall(r'class="number c\d" x="([\d.]+)" y="([\d.]+)"', drawn)]
    assert all(math.dist(a, b) >= 8 for index, a in enumerate(numbers) for b in numbers[:index]), "numbers are told apart"
    assert drawn.count('class="whisker') == 2 and drawn.count('class="base"') == 1
    one = frame_of(dots[:1])
    assert one.x.high / one.x.low >= 2.5, "one value has an axis too"


def test_powers_of_ten_are_short() -> None:
    assert [power(value) for value in (1e14, 2.04e14, 1.28e14, 9.99e9)] == ["1e14", "2e14", "1.3e14", "1e10"]


def test_lines_go_through_the_means_of_seeds(tmp_path: Path) -> None:
    folders = [
        run_of(tmp_path / f"{steps}-{seed}", seed=seed, steps=steps, shift=shift)
        for steps, seed, shift in ((500, 0, 0.0), (500, 1, 0.02), (2000, 0, 0.1))
    ]
    group, series = group_of(*folders)
    drawn = {chart.title: chart for chart in charts(group, series)}
    assert list(drawn) == ["Training compute", "Training time", "Images seen"]
    (line,) = drawn["Images seen"].trends
    assert [x for x, _ in line.points] == [64_000, 256_000] and line.color == 0
    assert [y for _, y in line.points] == pytest.approx([62.2, 71.2])
    assert [dot.number for dot in drawn["Images seen"].dots] == [1, 2, 3]
    assert drawn["Images seen"].dots[0].untrained == pytest.approx(45.1)
    assert drawn["Images seen"].dots[0].error == pytest.approx(100 * math.sqrt(0.612 * 0.388 / 3929))
    assert constants(group) == ["data size: 9,025 training images", "model size: 21.6M parameters of the encoder"]


def test_lines_connect_what_is_comparable(tmp_path: Path) -> None:
    parameters: Mapping[str, Any] = {"tiny": {"encoder": 5.5e6}, "small": {"encoder": 21.6e6}}
    folders = [
        run_of(tmp_path / f"{size}-{data}-{steps}", 0, steps, size, parameters=parameters[size], train_images=data)
        for size, data, steps in (("tiny", 9000, 500), ("small", 9000, 500), ("small", 9000, 2000), ("small", 1000, 500))
    ]
    group, series = group_of(*folders)
    drawn = {chart.title: chart for chart in charts(group, series)}
    ends = {
        title: [(line.points[0][0], line.points[-1][0], line.color) for line in chart.trends] for title, chart in drawn.items()
    }
    assert series == ["I-JEPA ijepa-vits16 (paper), tiny/8", "I-JEPA ijepa-vits16 (paper), small/8"]
    assert ends["Images seen"] == [(64_000, 256_000, 1)], "not from one data size or model to another"
    assert ends["Data size"] == [(1000, 9000, 1)]
    assert ends["Model size"] == [(5.5e6, 21.6e6, None)], "across series, so in gray"


def test_other_devices_do_not_share_a_line_of_hours(tmp_path: Path) -> None:
    folders = [run_of(tmp_path / f"{steps}", steps=steps) for steps in (500, 2000)]
    environment = json.loads((folders[1] / "environment.json").read_text()) | {"device_name": "NVIDIA H100"}
    (folders[1] / "environment.json").write_text(json.dumps(environment))
    drawn = {chart.title: chart for chart in charts(*group_of(*folders))}
    assert len(drawn["Images seen"].trends) == 1 and not drawn["Training time"].trends
    assert "hours of different devices do not compare" in drawn["Training time"].note


def test_runs_that_began_from_weights_are_in_no_mean_and_on_no_line_with_others(tmp_path: Path) -> None:
    """What those weights have cost is in none of the axes."""
    folders = [run_of(tmp_path / name, steps=500, shift=shift) for name, shift in (("random", 0.0), ("started", 0.1))]
    folders.append(run_of(tmp_path / "longer", steps=2000))
    config = yaml.safe_load((folders[1] / "config.yaml").read_text()) | {"run": {"init": "/data/me/runs/first"}}
    (folders[1] / "config.yaml").write_text(yaml.safe_dump(config))
    group, series = group_of(*folders)
    assert series == [f"I-JEPA ijepa-vits16 (paper){origin}, small/8" for origin in ("", " from runs/first")]
    (line,) = next(chart for chart in charts(group, series) if chart.title == "Images seen").trends
    assert line.points[0][1] == pytest.approx(61.2) and line.color == 0


def test_other_test_images_are_another_chart(tmp_path: Path) -> None:
    folders = [run_of(tmp_path / name, steps=500) for name in "abcd"]
    for folder in folders[2:]:
        write_variant(folder, "classification", data="flowers: 100 images", num_test=50)
    assert [
        (group.task, [point.number for point in group.points]) for group in scaling(list(map(read_run, folders))).groups
    ] == [
        ("Classification on imagewoof128", [1, 2]),
        ("Classification on imagewoof128", [1, 2]),
        ("Classification on flowers", [3, 4]),
        ("Classification on flowers", [3, 4]),
    ]


def test_a_probe_of_foreign_data_meets_the_run_trained_on_it(tmp_path: Path) -> None:
    own, foreign = run_of(tmp_path / "own"), run_of(tmp_path / "foreign")
    write_variant(own, "classification", data="flowers: 100 images", num_train=100)
    write_variant(foreign, "classification", data="flowers: 100 images", num_train=900, variant="flowers")
    group, _ = group_of(own, foreign)
    assert [point.number for point in group.points] == [1, 2] and group.variant == "" and group.probe_images == [100, 900]


def test_what_is_not_drawn_is_listed_with_its_reason(tmp_path: Path) -> None:
    whole = [run_of(tmp_path / name, steps=steps) for name, steps in (("one", 500), ("two", 900))]
    lacking = run_of(tmp_path / "lacking", flops_per_image=None, parameters=None)
    bare = write_run(tmp_path / "bare", steps=100)
    alone = run_of(tmp_path / "alone")
    write_variant(alone, "classification", task="other", title="Other", row="other")
    (tmp_path / "notes.txt").write_text("")
    with pytest.warns(UserWarning, match=r"^not on the page: runs='.*notes\.txt' is no folder"):
        output = write_scaling([*whole, lacking, bare, alone, tmp_path / "notes.txt"], tmp_path / "out.html")
    text = Page(output.read_text()).text
    assert "3 of 5 runs" in text
    for words in (
        "lacking no training FLOPs: summary.json lacks flops_per_image or images_seen",
        "lacking no model size: summary.json lacks parameters.encoder",
        f"bare no numbers in eval/*.json; to make them: openjepa evaluate {bare}",
        "alone shares no number with another run; has Other by linear (held_out), Other by k-NN (held_out)",
        "notes.txt runs=",
    ):
        assert words in text
    assert "unfinished" not in text
    change(whole[0], status="interrupted")
    assert "2 cores; interrupted" in Page(write_scaling(whole, output).read_text()).text


def test_an_encoder_of_an_earlier_step_stands_where_it_was(tmp_path: Path) -> None:
    folders = [run_of(tmp_path / name, steps=1000) for name in ("early", "late")]
    write_variant(folders[0], "classification", step=250)
    group, _ = group_of(*folders)
    assert [point.training.values["images"] for point in group.points] == [32_000, 128_000]
    assert group.points[0].remark == "evaluated at step 250 of 1,000" and group.points[1].remark == ""


def test_strings_of_run_folders_are_never_markup(tmp_path: Path) -> None:
    folders = [run_of(tmp_path / f"<b onclick=x>{name}", steps=steps) for name, steps in (("one", 500), ("two", 900))]
    for folder in folders:
        for name in ("environment.json", "summary.json", "eval/classification.json"):
            (folder / name).write_text(json.dumps(poisoned(json.loads((folder / name).read_text()))))
        (folder / "config.yaml").write_text(yaml.safe_dump(poisoned(yaml.safe_load((folder / "config.yaml").read_text()))))
    source = write_scaling(folders, tmp_path / "out.html").read_text()
    page = Page(source)
    assert page.count("svg") >= 3 and HOSTILE.split("<img")[0].split("</")[0].split(">")[1] in page.text
    assert not page.count("script") and not page.count("img") and not page.count("b") - source.count('<b class="count')
    assert all(not name.startswith("on") for _, attrs in page.elements for name in attrs)
    assert not page.count("link") and "@import" not in source and not re.search(r"url\((?!#)", source)
    assert all("NaN" not in str(attrs.get("d", "")) for tag, attrs in page.elements if tag == "path")


def test_the_published_results_need_no_torch(tmp_path: Path) -> None:
    output = tmp_path / "scaling.html"
    code = "import sys; from openjepa.cli import main; main(sys.argv[1:]); assert 'torch' not in sys.modules"
    arguments = ["report", "--scaling", *map(str, OLD), "--output", str(output)]
    subprocess.run([sys.executable, "-c", code, *arguments], check=True, capture_output=True)
    page = Page(output.read_text())
    assert f"{len(OLD)} of {len(OLD)} runs" in page.text and "Classification on cifar10, linear" in page.text
    titles = [str(attrs["aria-label"]) for tag, attrs in page.elements if tag == "svg"]
    assert any("cifar10-default-seed0: 64.2 % at 384k" in title for title in titles)


def test_an_evaluated_encoder_is_listed_with_the_reason(tmp_path: Path) -> None:
    folders = [run_of(tmp_path / name, steps=steps) for name, steps in (("one", 500), ("two", 900))]
    shutil.copytree(folders[0] / "eval", tmp_path / "encoder" / "eval")
    found = scaling([read_run(folder) for folder in (*folders, tmp_path / "encoder")])
    assert {point.run for group in found.groups for point in group.points} == {"one", "two"}
    assert [(run, reason) for run, reason in found.missing if run == "encoder"] == [
        ("encoder", "an evaluated encoder, no run of `openjepa train`: nothing is known of what its training used")
    ]


def test_bars_are_the_larger_of_error_and_spread(tmp_path: Path) -> None:
    folders = [run_of(tmp_path / name, steps=steps) for name, steps in (("one", 500), ("two", 900))]
    for folder, spread in zip(folders, (0.0, 0.3), strict=True):
        path = folder / "eval" / "classification.json"
        content = json.loads(path.read_text())
        for metric in content["subjects"]["encoder"]["metrics"].values():
            metric |= {"standard_error": 0.01, "spread": spread, "seeds": 3}
        path.write_text(json.dumps(content))
    group, series = group_of(*folders)
    assert {tuple(dot.error for dot in chart.dots) for chart in charts(group, series)} == {(1.0, 30.0)}


def test_the_command_writes_beside_the_first_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folders = [str(run_of(tmp_path / name, steps=steps)) for name, steps in (("one", 500), ("two", 900))]
    main(["report", "--scaling", *folders])
    assert capsys.readouterr().out.strip() == str(tmp_path / "scaling.html") and (tmp_path / "scaling.html").is_file()
    main(["report", *folders, "--scaling"])
    assert capsys.readouterr().out.strip() == str(tmp_path / "scaling.html")
    (tmp_path / "ds").mkdir()
    nothing = ["--scaling", str(tmp_path / "ds"), str(tmp_path / "none")]
    for arguments, words in (
        (["--scaling"], "needs RUN"),
        (nothing, "runs holds no run folder"),
        (nothing, f"runs={str(tmp_path / 'ds')!r} holds neither config.yaml nor metrics.jsonl, and no eval/*.json"),
        (nothing, f"runs={str(tmp_path / 'none')!r} is no folder"),
    ):
        with pytest.raises(SystemExit):
            main(["report", *arguments])
        assert words in capsys.readouterr().err
