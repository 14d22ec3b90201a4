"""Energies of pairs: their numbers against a slow restatement, a method that has collapsed, and the command on a run."""

import json
import re
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch

from openjepa.cli import main
from openjepa.config import save_yaml
from openjepa.data.source import open_splits
from openjepa.engine.checkpoint import latest_checkpoint, load_checkpoint, load_weights, read_state
from openjepa.engine.optimizer import build_optimizer
from openjepa.experiments.energies import (
    bench_energy,
    compared_energies,
    energies_of,
    energy_statistics,
    incompatible,
    is_flat,
    measure_energy,
)
from openjepa.masks import MASKS
from openjepa.methods.ijepa import IJepa
from openjepa.schedules import Progress
from openjepa.settings.experiments import EnergyBench
from openjepa.settings.methods import IJepaSettings
from openjepa.settings.run import RunConfig
from openjepa.training.loop import train
from openjepa.training.monitor import draw_batches
from openjepa.training.startup import build_method, default_view
from openjepa.types import Batch
from tests.helpers.example_run import write_run
from tests.helpers.images import write_folder
from tests.helpers.report_page import page_of
from tests.helpers.small_runs import small_config

CPU = torch.device("cpu")


def written(untrained: torch.Tensor, trained: torch.Tensor) -> dict[str, Any]:
    """What energy.json says of these energies."""
    content: dict[str, Any] = json.loads(json.dumps(asdict(compared_energies(untrained, trained))))
    return content


def test_numbers_of_a_known_matrix() -> None:
    found = energy_statistics(torch.tensor([[[1.0, 3.0], [2.0, 2.0]]]))
    assert (found.compatible, found.incompatible) == (1.5, 2.5)
    assert found.gap == pytest.approx(0.4)
    assert found.auc == 0.75, "1 < 3 counts, 2 = 2 counts half"
    assert found.top1 == 0.75 and found.chance == 0.5
    assert found.std == pytest.approx(0.5**0.5) and found.relative_std == pytest.approx(0.5**0.5 / 2)


def test_numbers_against_a_slow_restatement() -> None:
    energies = torch.randint(0, 5, (3, 6, 6), generator=torch.Generator().manual_seed(0)).double() / 4 + 0.25
    wins, tops, others = [], [], []
    for group in energies.tolist():
        for i, row in enumerate(group):
            rest = [value for j, value in enumerate(row) if j != i]
            wins += [1.0 if row[i] < value else 0.5 if row[i] == value else 0.0 for value in rest]
            tops.append(0.0 if row[i] > min(row) else 1 / row.count(min(row)))
            others += rest
    found = energy_statistics(energies)
    assert found.auc == pytest.approx(sum(wins) / len(wins)) and found.top1 == pytest.approx(sum(tops) / len(tops))
    assert found.incompatible == pytest.approx(sum(others) / len(others))
    assert incompatible(energies).tolist() == others
    every = energies.flatten()
    assert found.std == pytest.approx(float(((every - every.mean()) ** 2).mean().sqrt()))


def test_a_perfect_and_a_reversed_energy() -> None:
    perfect = energy_statistics(1 - torch.eye(4)[None])
    assert (perfect.auc, perfect.top1, perfect.gap) == (1.0, 1.0, 1.0)
    assert energy_statistics(torch.eye(4)[None]).auc == 0.0


def test_impossible_energies_are_refused() -> None:
    with pytest.raises(ValueError, match="at least 2 images"):
        energy_statistics(torch.zeros(1, 1, 1))
    with pytest.raises(ValueError, match="not finite"):
        energy_statistics(torch.full((1, 2, 2), float("nan")))


def test_what_is_flat() -> None:
    healthy = energy_statistics(1 - 0.5 * torch.eye(8)[None])
    assert not is_flat(healthy, healthy)
    assert is_flat(energy_statistics(torch.full((1, 8, 8), 4.1)), healthy)
    noise = torch.rand((1, 8, 8), generator=torch.Generator().manual_seed(0))
    assert energy_statistics(1e-4 * noise).relative_std > 0.5
    assert is_flat(energy_statistics(1e-4 * noise), healthy), "all energies fell to nearly 0, what is left varies"
    said = written(1 - 0.5 * torch.eye(8)[None], 1 + 0.2 * noise)
    assert not said["flat"] and "no lower energy" in said["verdict"]


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_folder(tmp_path_factory.mktemp("images"), 40)


@pytest.fixture(scope="module")
def run(images: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = train(small_config(images, tmp_path_factory.mktemp("runs")))
    assert folder is not None
    return folder


def method_and_batches(config: RunConfig, size: int) -> tuple[IJepa, list[Batch]]:
    view = default_view(config.data)
    sampler = MASKS[config.masks.strategy].load()(config.masks, config.model.grid(view.size))
    method = build_method(config, view, sampler)
    assert isinstance(method, IJepa)
    splits = open_splits(config.data, config.run.seed)
    return method, draw_batches(config, method.inputs(), sampler, splits, 2 * size, size, seed=5)


def test_a_method_with_constant_features_is_flat(images: Path, tmp_path: Path) -> None:
    config = small_config(images, tmp_path)
    method, batches = method_and_batches(config, 8)
    progress = Progress(0, 4, 4)
    before = energies_of(method, batches, progress, config, CPU, "fp32")
    with torch.no_grad():
        for network in (method.target_encoder, method.predictor):
            for parameter in network.parameters():
                parameter.zero_()
        for bias in (value for name, value in method.predictor.named_parameters() if name.endswith("bias")):
            bias.fill_(0.5)
    after = energies_of(method, batches, progress, config, CPU, "fp32")
    said = written(before, after)
    assert said["trained"]["relative_std"] == 0.0 and said["trained"]["auc"] == 0.5 and said["trained"]["gap"] == 0.0
    assert said["trained"]["compatible"] > 0, "the predictions are constant, but not the targets"
    assert said["trained"]["top1"] == said["trained"]["chance"] == 1 / 8
    assert said["flat"] and "flat: collapsed" in said["verdict"]
    assert said["untrained"]["relative_std"] > 0


def test_the_command_measures_a_run(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(["bench", "energy", str(run), "--images", "8", "--batch-size", "4", "--device", "cpu"])
    said = " ".join(capsys.readouterr().out.split())
    found = json.loads((run / "energy.json").read_text())
    assert found["verdict"] in said
    assert (found["step"], found["images"], found["group"], found["split"]) == (4, 8, 4, "test")
    assert set(found["histograms"]) == {"untrained", "trained"}
    for drawn in found["histograms"].values():
        assert len(drawn["edges"]) == len(drawn["compatible"]) + 1
        assert sum(drawn["compatible"]) == pytest.approx(1, abs=1e-4) == sum(drawn["incompatible"])
    assert found["trained"]["compatible"] != found["untrained"]["compatible"]
    again = asdict(bench_energy(EnergyBench(run, images=8, batch_size=4, device="cpu")))
    assert again["trained"] == found["trained"] and again["untrained"] == found["untrained"], "always the same images and masks"


def test_weights_without_an_optimizer_are_those_of_the_checkpoint(run: Path, images: Path) -> None:
    config = small_config(images, run.parent)
    found = latest_checkpoint(run / "checkpoints")
    assert found is not None
    alone, _ = method_and_batches(config, 8)
    beside, _ = method_and_batches(config, 8)
    assert load_weights(found, alone) == read_state(found)
    load_checkpoint(found, beside, build_optimizer(beside.named_parameters(), beside.parameter_rules(), config.optim))
    pairs = zip(alone.state_dict().items(), beside.state_dict().items(), strict=True)
    assert all(name == other and torch.equal(first, second) for (name, first), (other, second) in pairs)


def test_a_run_without_checkpoints_says_so(images: Path, tmp_path: Path) -> None:
    config = small_config(images, tmp_path)
    (tmp_path / "run").mkdir()
    save_yaml(config, tmp_path / "run" / "config.yaml")
    (tmp_path / "run" / "summary.json").write_text(json.dumps({"status": "failed", "step": 0}))
    with pytest.raises(ValueError, match=r"run has no checkpoint that can be used.*openjepa train --config"):
        measure_energy(EnergyBench(tmp_path / "run"))
    assert not (tmp_path / "run" / "energy.json").exists()


def test_impossible_options_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="--batch-size 1 must be at least 2"):
        bench_energy(EnergyBench(tmp_path, batch_size=1))


def test_the_report_shows_energies_and_what_a_method_learns_from(run: Path, tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run")
    pairs = torch.eye(8).expand(2, 8, 8)
    noise = torch.rand((2, 8, 8), generator=torch.Generator().manual_seed(0))
    content = {**written(1 - 0.1 * noise, 2 - pairs + noise), "step": 4400, "images": 16, "group": 8, "split": "test"}
    (folder / "energy.json").write_text(json.dumps(content))
    (folder / "summary.json").write_text(json.dumps({**json.loads((run / "summary.json").read_text()), "step": 4400}))
    page = page_of(folder)
    assert "16 test images in groups of 8, after step 4,400" in page.text and content["verdict"] in page.text
    shown = f"The compatible pair is lower in {100 * content['trained']['auc']:.1f} % of the comparisons"
    assert shown in page.text
    labels = [str(attrs.get("aria-label")) for tag, attrs in page.elements if tag == "svg"]
    means = [content["trained"][kind] for kind in ("compatible", "incompatible")]
    assert f"Energies, trained: mean of compatible pairs {means[0]:.2f}, incompatible pairs {means[1]:.2f}" in labels
    about = IJepaSettings.about
    for words in ("What it learns from", f"Given (x) {about.x}", f"Energy {about.energy}", about.against_collapse):
        assert words in page.text


@pytest.mark.parametrize(("level", "noise_level"), [(6.9, 0.001), (0.0, 0.01)])
def test_a_collapsed_landscape_is_one_spike_and_said(level: float, noise_level: float, tmp_path: Path) -> None:
    """Whether all energies are alike at their old height, or all fell to nearly nothing."""
    folder = write_run(tmp_path / "run")
    noise = torch.rand((2, 8, 8), generator=torch.Generator().manual_seed(0))
    content = {**written(6 - 3 * noise, level + noise_level * noise), "step": 100, "images": 16, "group": 8, "split": "test"}
    (folder / "energy.json").write_text(json.dumps(content))
    page = page_of(folder)
    assert "flat: collapsed" in page.text and "after step 100; the run is now at step 4,400" in page.text
    assert any("note bad" in (attrs.get("class") or "") for _, attrs in page.elements)
    assert "no sign of collapse" in page.text, "the energies are older than what the run says of itself"
    (folder / "energy.json").write_text(json.dumps(content | {"step": 4400}))
    assert "its energy is the same for all pairs, though its features still differ" in page_of(folder).text
    paths = [str(attrs["d"]) for _, attrs in page.elements if (attrs.get("class") or "").startswith("area")]
    widths = [max(xs) - min(xs) for xs in ([float(x) for x in re.findall(r"H([\d.]+)", path)] for path in paths)]
    assert len(widths) == 4 and min(widths[:2]) > 300 and max(widths[2:]) < 5


@pytest.mark.parametrize("change", [{"edges": [1, 1, 2]}, {"edges": "x"}, {"compatible": [1.0]}, {"incompatible": [None] * 40}])
def test_a_histogram_that_cannot_be_drawn_is_left_out(tmp_path: Path, change: dict[str, object]) -> None:
    folder = write_run(tmp_path / "run")
    noise = torch.rand((2, 8, 8), generator=torch.Generator().manual_seed(0))
    content = {**written(noise, noise), "step": 100}
    content["histograms"]["trained"] |= change
    (folder / "energy.json").write_text(json.dumps(content))
    labels = [str(attrs.get("aria-label")) for tag, attrs in page_of(folder).elements if tag == "svg"]
    assert sum("Energies, untrained" in label for label in labels) == 1
    assert not any("Energies, trained" in label for label in labels)


def test_the_published_table_is_what_was_measured() -> None:
    results = Path(__file__).parents[2] / "docs" / "results"
    rows = re.findall(r"^\| \[[\w-]+\]\((energy/[\w-]+)\) \|(.*)\|$", (results / "README.md").read_text(), re.M)
    assert sorted(name for name, _ in rows) == sorted(f"energy/{path.name}" for path in (results / "energy").iterdir())
    for name, row in rows:
        found = json.loads((results / name / "energy.json").read_text())
        before, after = found["untrained"], found["trained"]
        shown = [
            *(f"{item['compatible']:.3g}, {item['incompatible']:.3g}" for item in (before, after)),
            *(f"{100 * before['auc']:.1f}", f"{100 * after['auc']:.1f} ± {100 * after['auc_error']:.1f}"),
            *(f"{100 * after['top1']:.1f}", f"{100 * after['relative_std']:.3g}", "**yes**" if found["flat"] else "no"),
        ]
        assert sorted(shown) == sorted(cell.strip() for cell in row.split("|"))
