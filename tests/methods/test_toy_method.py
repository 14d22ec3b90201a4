"""A method that the package does not have is one file, its settings and one line: nothing else has to know it."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from openjepa.checks import check
from openjepa.cli import main
from openjepa.config import load_run_config
from openjepa.evaluation.evaluation_run import evaluate_run
from openjepa.experiments.data_times import views_config
from openjepa.experiments.step_times import step_config
from openjepa.methods.base import CoupledTerm
from openjepa.recipes import load_recipe
from openjepa.recipes.ablations import ABLATIONS, ablation_rows
from openjepa.refusals import Refusal
from openjepa.report import write_report
from openjepa.settings.evaluation import EvaluationSettings
from openjepa.settings.experiments import DataBench, StepBench
from openjepa.settings.masks import BlockwiseSettings
from openjepa.settings.run import MonitorSettings, RunConfig
from openjepa.system.interrupts import Interrupted, Interrupts
from openjepa.training.loop import train
from openjepa.training.startup import refuse_unsynchronized
from tests.helpers.images import write_folder
from tests.helpers.method_steps import parts
from tests.helpers.report_page import Page
from tests.helpers.small_runs import lines, small_config, weights
from tests.methods.toy_method import MeanColorSettings, mean_colors

pytestmark = pytest.mark.usefixtures("toy_is_a_method")


def toy_config(images: Path, output: Path, total_steps: int) -> RunConfig:
    config = small_config(images, output, total_steps=total_steps, lr=1e-2)
    return replace(config, method=MeanColorSettings(), masks=BlockwiseSettings(), monitor=MonitorSettings(every=0))


def test_its_targets_are_the_mean_colors_of_the_patches() -> None:
    images = torch.rand(2, 3, 8, 12)
    colors = mean_colors(images, 4)
    assert colors.shape == (2, 6, 3)
    torch.testing.assert_close(colors[1, 4], images[1, :, 4:8, 4:8].mean(dim=(1, 2)))  # second row, second column


def test_a_run_is_evaluated_and_reported(tmp_path: Path) -> None:
    """From its folder alone: config.yaml brings the method back."""
    config = toy_config(write_folder(tmp_path / "images", 40), tmp_path, total_steps=40)
    run = train(config)
    assert run is not None
    losses = [line["loss"] for line in lines(run, "train")]
    assert sum(losses[-10:]) < 0.8 * sum(losses[:10])
    assert load_run_config(run).method == config.method
    summary = json.loads((run / "summary.json").read_text())
    assert set(summary["flops"]) == {"encoder", "head"} and summary["about"]["title"] == MeanColorSettings.about.title
    evaluate_run(run, EvaluationSettings(protocols=("knn",), baselines=(), workers=0, device="cpu"), None)
    (result,) = [json.loads(path.read_text()) for path in (run / "eval").glob("*knn*.json")]
    assert result["step"] == 40
    assert "trained by Mean color on" in Page(write_report([run]).read_text()).text


def test_it_goes_on_exactly_where_it_was_stopped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    images = write_folder(tmp_path / "images", 40)
    whole, stopped = (toy_config(images, tmp_path / name, total_steps=3) for name in ("whole", "stopped"))
    with monkeypatch.context() as patch:
        patch.setattr(Interrupts, "__init__", lambda self: self.__dict__.update(requested="SIGTERM", _before={}))
        with pytest.raises(Interrupted, match="after step 1"):
            train(stopped)
    runs = [train(whole), train(stopped)]
    expected, found = (weights(run) for run in runs if run is not None)
    assert expected.keys() == found.keys() and all(torch.equal(found[name], value) for name, value in expected.items())


def test_the_command_line_lists_it_and_takes_its_settings(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="0"):
        main(["train", "--help-all", "--method.name", "mean_color"])
    text = " ".join(capsys.readouterr().out.split())
    assert "--method.name ijepa | mae | data2vec | dino | ibot | msn | mean_color" in text
    assert "--method.beta" in text and "Difference of a color up to which the loss is quadratic" in text
    options = ["--method.name", "mean_color", "--method.beta", "0.2", "--masks.strategy", "random_patches"]
    place = ["--data.path", str(write_folder(tmp_path / "images", 40)), "--run.output", str(tmp_path), "--run.name", "run"]
    main(
        ["train", "cpu-32", *options, *place, "--optim.total-steps", "1", "--system.workers", "0", "--system.progress", "none"]
    )
    assert load_run_config(tmp_path / "run").method == MeanColorSettings(beta=0.2)
    assert "method mean_color" in capsys.readouterr().out


def test_the_benches_and_the_ablation_know_it_without_a_row_of_matched() -> None:
    """It has its own defaults then, masks that suit it, and the rates of the base."""
    base = load_recipe("cpu-32")
    for config in (
        step_config(StepBench(recipe="cpu-32", method="mean_color")),
        views_config(DataBench(method="mean_color"), Path("images")),
        ablation_rows("methods", base, ("mean_color",))["mean_color"],
    ):
        assert (config.method, config.masks.strategy) == (MeanColorSettings(), "random_patches")
    assert config.optim == base.optim and config.model == base.model
    assert "mean_color" in ABLATIONS["methods"].rows


def test_what_does_not_suit_it_is_refused_by_what_its_settings_say(tmp_path: Path) -> None:
    config = toy_config(tmp_path, tmp_path, total_steps=1)
    with pytest.raises(Refusal, match=r"masks.strategy=multiblock does not fit method.name=mean_color, which masks single pat"):
        check(replace(config, masks=small_config(tmp_path, tmp_path).masks))
    with pytest.raises(Refusal, match=r"method.beta=0.0 must be above 0"):
        check(replace(config, method=MeanColorSettings(beta=0.0)))


def test_several_processes_are_refused_until_it_says_what_it_couples(tmp_path: Path) -> None:
    _, method = parts(toy_config(tmp_path, tmp_path, total_steps=1))
    assert method.coupled_terms() is None
    with pytest.raises(Refusal, match=r"method.name=mean_color is not ready for 2 processes: its `coupled_terms` say nothing"):
        refuse_unsynchronized("mean_color", method.coupled_terms(), 2)
    apart = (CoupledTerm("the mean over masked patches"), CoupledTerm("another", synchronized=True))
    with pytest.raises(Refusal, match=r"4 processes: the mean over masked patches would see only its share of a batch. Train"):
        refuse_unsynchronized("mean_color", apart, 4)
    refuse_unsynchronized("mean_color", apart[1:], 2)
    refuse_unsynchronized("mean_color", (), 2)
