"""The benchmark of the data path reports what it measured."""

from pathlib import Path

import pytest

from openjepa.bench_data import bench_data, time_data
from openjepa.data.generated import write_photos
from openjepa.settings.bench import DataBench


def test_ratios_are_those_of_the_rates(tmp_path: Path) -> None:
    write_photos(tmp_path, 3, (60, 80))
    result = bench_data(tmp_path, repeats=1, image_size=32)
    assert result["images"] == 3
    rates = result["images_per_second"]
    assert all(rate > 0 for rate in rates.values())
    for name, ratio in result["ratios"].items():
        ours, reference = name.split(" / ")
        assert ratio == pytest.approx(rates[ours] / rates[reference])


def test_the_command_prints_goals(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_photos(tmp_path, 2, (60, 80))
    time_data(DataBench(path=tmp_path, repeats=1, image_size=32))
    printed = capsys.readouterr().out
    assert "Pillow bicubic" in printed and "1.60" in printed and "0.85" in printed


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (DataBench(repeats=0), "--repeats 0 must be at least 1"),
        (DataBench(images=0), "--images 0 must be at least 1"),
        (DataBench(image_size=16), "--image-size 16 must be at least 32"),
    ],
)
def test_options_out_of_range_are_named(options: DataBench, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        time_data(options)
