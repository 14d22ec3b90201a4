"""The benchmark of the data path reports what it measured."""

from pathlib import Path

import pytest

from openjepa.experiments.data_times import bench_data, bench_views, print_views, time_data, views_config
from openjepa.experiments.generated_photos import write_photos
from openjepa.methods import METHODS
from openjepa.settings.experiments import DataBench


def test_ratios_are_those_of_the_rates(tmp_path: Path) -> None:
    write_photos(tmp_path, 3, (60, 80))
    result = bench_data(tmp_path, repeats=1, image_size=32)
    assert result["images"] == 3
    rates = result["images_per_second"]
    assert all(rate > 0 for rate in rates.values())
    for name, ratio in result["ratios"].items():
        ours, reference = name.split(" / ")
        assert ratio == pytest.approx(rates[ours] / rates[reference])


def test_the_command_prints_rates_and_ratios(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_photos(tmp_path, 2, (60, 80))
    time_data(DataBench(path=tmp_path, repeats=1, image_size=32))
    printed = capsys.readouterr().out
    assert "openjepa bicubic / Pillow bicubic" in printed and "loader, 1 worker / openjepa bilinear" in printed


@pytest.mark.parametrize("method", METHODS)
def test_views_of_every_method_are_timed(tmp_path: Path, method: str, capsys: pytest.CaptureFixture[str]) -> None:
    write_photos(tmp_path, 3, (60, 80))
    options = DataBench(path=tmp_path, recipe="cpu-32", method=method)  # type: ignore[arg-type]
    result = bench_views(views_config(options, tmp_path), repeats=1)
    assert result["method"] == method and result["images"] == 3
    rates = result["images_per_second"]
    assert all(rate > 0 for rate in rates.values())
    colored = [name for name in rates if "colors" in name]
    assert bool(colored) == (method not in ("ijepa", "mae")), "these change no colors"
    if colored:
        added = 1000 / rates["crops and colors from kept pixels"] - 1000 / rates["crops from kept pixels"]
        assert result["milliseconds_of_the_colors"] == pytest.approx(added)
    print_views(result)
    assert "images/s of one core" in capsys.readouterr().out


def test_the_command_times_views_of_generated_photos(capsys: pytest.CaptureFixture[str]) -> None:
    time_data(DataBench(recipe="cpu-32", method="msn", repeats=1, images=2))
    printed = " ".join(capsys.readouterr().out.split())
    assert "msn: target 1 x 32x32" in printed and "10 x 12x12" in printed and "colors alone" in printed


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (DataBench(preset="official"), "--preset official has no effect without a recipe"),
        (DataBench(method="dino", image_size=100), "does not divide data.image_size=100x100"),
        (DataBench(repeats=0), "--repeats 0 must be at least 1"),
        (DataBench(images=0), "--images 0 must be at least 1"),
        (DataBench(image_size=16), "--image-size 16 must be at least 32"),
    ],
)
def test_options_out_of_range_are_named(options: DataBench, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        time_data(options)
