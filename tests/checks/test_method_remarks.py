"""What is allowed in a method's settings but surely not meant, and is said before the first step."""

from dataclasses import replace
from pathlib import Path

import pytest

from openjepa.checks import never_reached, remarks
from openjepa.recipes import load_recipe
from openjepa.settings.methods import Data2VecSettings, DinoSettings, IBotSettings, MethodSettings, MsnSettings
from openjepa.training.loop import train
from tests.helpers.images import write_folder
from tests.helpers.small_runs import method_config


@pytest.mark.parametrize(
    ("method", "remark"),
    [
        (MsnSettings(sinkhorn=False, sinkhorn_iterations=5), "method.sinkhorn_iterations=5 has no effect"),
        (MsnSettings(sinkhorn=True, sinkhorn_iterations=5), None),
        (IBotSettings(patch_outputs=100), "method.patch_outputs=100 has no effect"),
        (IBotSettings(outputs=100, patch_outputs=100), None),
        (IBotSettings(patch_outputs=100, shared_head=False), None),
        (Data2VecSettings(ema_ramp=0.3), "method.ema_ramp=0.3 has no effect"),
        (Data2VecSettings(ema_ramp=0.3, ema_start=0.99), None),
    ],
)
def test_values_that_another_setting_switches_off(method: MethodSettings, remark: str | None) -> None:
    found = remarks(replace(load_recipe("cpu-32"), method=method))
    assert [text[: len(remark or "")] for text in found] == ([remark] if remark else [])


def test_epochs_that_a_run_does_not_have() -> None:
    frozen, temperature = never_reached(DinoSettings(), total_steps=50, steps_per_epoch=100)
    assert frozen.startswith("method.freeze_last_layer_epochs=1 of a run of 0.5 epochs: the last layer never learns")
    assert temperature.startswith("method.teacher_temperature=0.07 is never reached: its 30 epochs are more than the 0.5")
    assert len(never_reached(DinoSettings(), total_steps=29 * 100, steps_per_epoch=100)) == 1
    assert never_reached(DinoSettings(), total_steps=29 * 100 + 1, steps_per_epoch=100) == [], "the 30th epoch has begun"
    assert never_reached(DinoSettings(teacher_temperature=0.04), 200, 100) == []
    assert len(never_reached(IBotSettings(patch_start_epoch=5), total_steps=3000, steps_per_epoch=100)) == 1
    assert never_reached(MsnSettings(), 1, 100) == []


def test_a_run_says_that_its_last_layer_stands_still(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_folder(tmp_path / "images", 40, 32)
    config = method_config("dino", tmp_path / "images", tmp_path / "runs")
    assert isinstance(config.method, DinoSettings)
    train(replace(config, method=replace(config.method, freeze_last_layer_epochs=1000.0)), dry_run=True)
    assert "note: method.freeze_last_layer_epochs=1000 of a run of" in capsys.readouterr().out
