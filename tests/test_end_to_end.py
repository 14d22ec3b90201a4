"""The whole path on generated images: train -> evaluate -> visualize -> report, through the run folder alone."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from openjepa.commands.quickstart import quickstart_config, run_through
from openjepa.config import load_run_config
from openjepa.experiments.energies import measure_energy
from openjepa.methods import METHODS
from openjepa.recipes import load_recipe
from openjepa.report import write_report
from openjepa.settings.derived import resolve
from openjepa.settings.evaluation import EvaluationSettings
from openjepa.settings.experiments import EnergyBench
from openjepa.settings.run import RunConfig
from openjepa.settings.sources import FolderSettings
from tests.helpers.images import write_folder
from tests.helpers.report_page import Page
from tests.helpers.small_runs import method_config

EVALUATION = EvaluationSettings(baselines=("untrained",), workers=0, device="cpu", neighbors=(5,))


def tiny(config: RunConfig, data: Path, output: Path) -> RunConfig:
    """`config` with a test encoder, eight steps of eight images, in fp32."""
    return replace(
        config,
        model=replace(config.model, size="test", patch_size=8),
        method=replace(config.method, predictor_width=24, predictor_depth=1),  # type: ignore[call-arg]
        data=FolderSettings(path=str(data), image_size=32),
        optim=replace(config.optim, batch_size=8, total_steps=8, warmup_steps=1),
        run=replace(config.run, name="tiny", output=str(output), device="cpu", precision="fp32"),
        monitor=replace(config.monitor, every=4, images=16),
        system=replace(config.system, workers=0, log_every=2, progress="none"),
    )


PICTURES = {
    "ijepa": {"masks", "pca", "similarity", "neighbors"},
    "mae": {"masks", "pca", "similarity", "neighbors"},
    "data2vec": {"views", "masks", "pca", "similarity", "neighbors"},
    "dino": {"views", "pca", "similarity", "neighbors"},
    "ibot": {"views", "masks", "pca", "similarity", "neighbors"},
    "msn": {"views", "masks", "pca", "similarity", "neighbors"},
}


def config_of(method: str, data: Path, output: Path) -> RunConfig:
    """Eight small steps of one method, looked at twice."""
    if method == "ijepa":
        return tiny(load_recipe("cpu-32"), data, output)
    config = method_config(method, data, output, total_steps=8)
    system, monitor = replace(config.system, log_every=2), replace(config.monitor, every=4)
    return replace(config, run=replace(config.run, name="tiny"), system=system, monitor=monitor)


@pytest.mark.parametrize("method", METHODS)
def test_train_evaluate_visualize_report(method: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = config_of(method, write_folder(tmp_path / "images", 60, size=40), tmp_path / "runs")
    assert config.method.name == method
    report = run_through(config, EVALUATION)
    folder = tmp_path / "runs" / "tiny"
    assert report == folder / "report.html"
    assert f"open {report}" in capsys.readouterr().out
    assert load_run_config(folder) == resolve(config)
    for name in ("environment.json", "summary.json", "metrics.jsonl", "encoder", "encoder_initial", "checkpoints"):
        assert (folder / name).exists(), name
    assert (folder / "predictor").exists() == (method == "ijepa")

    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if line["kind"] == "train"] == [2, 4, 6, 8]
    assert [line["step"] for line in lines if line["kind"] == "monitor"][-1] == 8

    results = [json.loads(path.read_text()) for path in (folder / "eval").glob("*.json")]
    assert results and all(result["step"] == 8 for result in results)
    source = report.read_text()
    assert {path.stem for path in (folder / "figures").glob("*.png")} == PICTURES[method]
    assert source.count("data:image/") == len(PICTURES[method])
    page, about = Page(source), config.method.about
    assert f"trained by {config.method.paper.name} on" in page.text
    for words in (about.title, about.family, about.x, about.y, about.z, about.energy, about.against_collapse):
        assert words in page.text
    assert "http://" not in source.replace("http://www.w3.org", "") and "<script src" not in source
    shown = [(tag, attrs.get("aria-label") or "") for tag, attrs in page.elements]
    is_masked = any(label.startswith(("Visible patches by step", "Context size by step")) for _, label in shown)
    assert is_masked == ("masks" in PICTURES[method]), "counts of patches are shown where patches are masked"

    found = measure_energy(EnergyBench(folder, images=12, batch_size=6, device="cpu"))
    assert found.method == method and found.images == 12
    assert found.verdict in Page(write_report([folder]).read_text()).text


def test_a_finished_run_is_not_trained_again(tmp_path: Path) -> None:
    from openjepa.training.loop import train

    config = tiny(load_recipe("cpu-32"), write_folder(tmp_path / "images", 24, size=32), tmp_path / "runs")
    folder = train(config)
    assert folder is not None
    weights = (folder / "encoder" / "model.safetensors").read_bytes()
    metrics = [line for line in (folder / "metrics.jsonl").read_text().splitlines() if '"train"' in line]
    assert train(config) == folder
    assert (folder / "encoder" / "model.safetensors").read_bytes() == weights
    assert [line for line in (folder / "metrics.jsonl").read_text().splitlines() if '"train"' in line] == metrics


def test_quickstart_can_be_shortened_and_keeps_the_share_of_warmup(tmp_path: Path) -> None:
    full = resolve(load_recipe("quickstart")).optim
    short = resolve(quickstart_config(tmp_path, total_steps=200))
    assert full.total_steps is not None and full.warmup_steps is not None and short.optim.warmup_steps is not None
    assert short.optim.total_steps == 200
    assert short.optim.warmup_steps / 200 == pytest.approx(full.warmup_steps / full.total_steps, abs=0.01)
    assert resolve(quickstart_config(tmp_path, None)).optim == full
