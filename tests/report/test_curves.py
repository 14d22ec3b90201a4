"""Curves: what is drawn of a series, round ticks, readable numbers."""

import json
import re
from pathlib import Path

import numpy as np
import pytest

from openjepa.report.curves import Chart, Series, downsample, draw_chart, learning_charts
from openjepa.report.numbers import format_number, nice_ticks
from openjepa.report.reading import read_run


def test_downsampling_keeps_mean_range_and_order() -> None:
    generator = np.random.default_rng(0)
    values = generator.standard_normal(1000)
    points = list(zip(range(1000), values.tolist(), strict=True))
    generator.shuffle(points)
    buckets = downsample([(int(x), y) for x, y in points], 100)
    assert len(buckets) == 100
    np.testing.assert_allclose([bucket.y for bucket in buckets], values.reshape(100, 10).mean(axis=1))
    assert [bucket.low for bucket in buckets] == values.reshape(100, 10).min(axis=1).tolist()
    assert [bucket.high for bucket in buckets] == values.reshape(100, 10).max(axis=1).tolist()
    assert [bucket.x for bucket in buckets] == [4.5 + 10 * index for index in range(100)]


@pytest.mark.parametrize(("low", "high"), [(0, 1), (0.996, 1.0), (1e-6, 1e-3), (-3, 250), (17, 17.001), (0, 3e9)])
def test_ticks_are_round_numbers_inside_the_range(low: float, high: float) -> None:
    ticks = nice_ticks(low, high)
    assert 2 <= len(ticks) <= 9
    assert low - 1e-9 * high <= ticks[0] and ticks[-1] <= high * (1 + 1e-9)
    step = (ticks[-1] - ticks[0]) / (len(ticks) - 1)
    mantissa = float(f"{step:e}".split("e")[0])
    assert min(abs(mantissa - nice) for nice in (1, 2, 5, 10)) < 1e-6


@pytest.mark.parametrize(
    ("value", "shown"),
    [(0, "0"), (0.05, "0.05"), (61.234, "61.2"), (1234.5, "1,234"), (123456, "123k"), (2.16e7, "21.6M"), (6.37e-9, "6.37e-9")],
)
def test_numbers_have_three_digits(value: float, shown: str) -> None:
    assert format_number(value) == shown


@pytest.mark.parametrize("points", [[(5, 1.0)], [(0, 2.0), (10, 2.0)], [(0, 0.0), (1, 0.0)], [(1, -5.0), (2, 1e9)]])
def test_odd_series_are_drawn_inside_the_frame(points: list[tuple[float, float]]) -> None:
    drawn = draw_chart(Chart("Title", "", [Series("line", points)]), "id")
    numbers = [float(number) for number in re.findall(r'(?:cx|cy|x|y)="(-?[\d.]+)"', drawn)]
    assert numbers and all(-1 <= number <= 401 for number in numbers)


def test_terms_of_a_loss_are_drawn_where_there_are_several_and_trivial_losses_only_where_known(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text("recipe: x")
    rows = [
        {"kind": "train", "step": n, "images": 8 * n, "loss": 3.0, "loss/class": 2.0, "target_entropy": 1.5} for n in (1, 2)
    ]
    lines = [json.dumps(row) for row in rows]
    (tmp_path / "metrics.jsonl").write_text("\n".join(lines))
    charts = {chart.title: chart for chart in learning_charts([read_run(tmp_path)])}
    assert set(charts) == {"Loss", "Entropy of the targets"} and "Dashed" not in charts["Loss"].note
    (tmp_path / "metrics.jsonl").write_text("\n".join(json.dumps({**row, "loss/patch": 1.0}) for row in rows))
    charts = {chart.title: chart for chart in learning_charts([read_run(tmp_path)])}
    terms = {line.label: line.points for line in charts["Terms of the loss"].series}
    assert terms == {"class": [(1, 2.0), (2, 2.0)], "patch": [(1, 1.0), (2, 1.0)]}
