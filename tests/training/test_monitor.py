"""What a look measures: LiDAR against a slow restatement, nothing where a method predicts nothing, and no trace in training."""

from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional

from openjepa.checks import check
from openjepa.data.source import open_splits
from openjepa.engine.run_folder import RunLog
from openjepa.masks import MASKS
from openjepa.measures.features import alpha_req, lidar
from openjepa.measures.positions import position_statistics, trivial_losses
from openjepa.methods.base import ProbeOutput
from openjepa.methods.ijepa import IJepa
from openjepa.models.predictor import Predictor
from openjepa.schedules import Progress
from openjepa.seeds import derive, derive_samples
from openjepa.settings.run import MonitorSettings, RunConfig
from openjepa.training.loop import train
from openjepa.training.monitor import Monitor, _position_statistics, _trivial
from openjepa.training.startup import build_method, default_view
from tests.helpers.images import write_folder
from tests.helpers.small_runs import lines, small_config

START = Progress(0, 10, 5)
Build = Callable[..., Monitor]


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_folder(tmp_path_factory.mktemp("images"), 40)


@pytest.fixture
def build(images: Path, tmp_path: Path) -> Iterator[Build]:
    """Makes a monitor of an untrained method, its log in `tmp_path`."""
    logs = []

    def monitor(drop_path: float = 0.0, **settings: object) -> Monitor:
        config = small_config(images, tmp_path)
        config = replace(
            config,
            monitor=MonitorSettings(**{"every": 2, "images": 16, **settings}),  # type: ignore[arg-type]
            model=replace(config.model, drop_path=drop_path),
        )
        view = default_view(config.data)
        sampler = MASKS["multiblock"].load()(config.masks, config.model.grid(view.size))
        method = build_method(config, view, sampler)
        logs.append(RunLog(tmp_path, 100, False))
        splits = open_splits(config.data, 0)
        return Monitor(config, method, sampler, splits, torch.device("cpu"), "fp32", logs[-1], print)

    yield monitor
    for log in logs:
        log.close()


def slow_groups(monitor: Monitor, num_images: int, num_masks: int) -> Tensor:
    """Mean prediction of each image under each draw of its masks, image after image [n, q, D]."""
    method, config = monitor._method, monitor._config
    assert isinstance(method, IJepa)
    seed = derive("order", config.run.seed, -1)
    rows = []
    for batch in monitor._probe_batches():
        pixels = batch.normalized(config.data.pixel_mean, config.data.pixel_std).views["image"][0]
        for image, number in zip(pixels, batch.sample_ids.tolist(), strict=True):
            views = []
            for draw in range(num_masks):
                own = derive_samples("mask", seed, np.array([draw + 1]), np.array([number]))
                masks = monitor._sampler(own, derive("group", seed, draw, 0), draw)
                with torch.no_grad():
                    context = method.context_encoder.eval()(image[None], masks.context).patches  # type: ignore[union-attr]
                    predicted = method.predictor.eval()(context, masks.context, masks.targets)  # type: ignore[union-attr]
                views.append(predicted.flatten(0, 2).mean(dim=0))
            rows.append(torch.stack(views))
    return torch.stack(rows[:num_images])


@pytest.mark.parametrize("num_images", [6, 11, 16])
def test_lidar_is_that_of_predictions_from_different_masks(build: Build, num_images: int) -> None:
    monitor = build(lidar_images=num_images, lidar_masks=3)
    monitor.look(START)
    groups = slow_groups(monitor, num_images, 3)
    assert groups.shape[:2] == (num_images, 3) and (groups[:, 0] - groups[:, 1]).abs().amax(dim=1).min() > 1e-4
    assert monitor.latest["lidar"] == pytest.approx(lidar(groups), rel=1e-3)


def test_alpha_req_is_that_of_the_probe_features(build: Build) -> None:
    monitor = build()
    monitor.look(START)
    features = torch.cat([monitor._output(batch, START).features for batch in monitor._probe_batches()])
    assert monitor.latest["alpha_req"] == alpha_req(features) and len(features) == 16


def test_positions_are_measured_over_the_whole_probe_batch(build: Build) -> None:
    monitor = build()
    monitor.look(START)
    outputs = [monitor._output(batch, START) for batch in monitor._probe_batches()]
    names = ("predictions", "targets", "other_targets", "target_positions")
    expected = position_statistics(*(torch.cat([getattr(output, name) for output in outputs]) for name in names))
    for name, value in asdict(expected).items():
        assert monitor.latest[name] == pytest.approx(value, abs=1e-5)
    assert monitor.latest["cosine_gap"] == pytest.approx(expected.gap, abs=1e-5) and len(outputs) == 2


def test_an_image_alone_is_not_compared_with_itself() -> None:
    rows, places = torch.randn(1, 2, 3, 4), torch.arange(6).view(1, 2, 3)
    alone = ProbeOutput(torch.zeros(1, 1), torch.zeros(()), rows, places, functional.mse_loss, rows, rows)
    assert _position_statistics([alone]) is None
    assert _position_statistics([replace(alone, features=torch.zeros(2, 1))]) is not None


def test_a_predictor_that_sees_no_context_is_told_once(
    build: Build, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its predictions are the same for every image, whatever it has learned of the positions."""
    forward = Predictor.forward
    monkeypatch.setattr(Predictor, "forward", lambda self, context, *rest: forward(self, torch.zeros_like(context), *rest))
    monitor = build()
    for _ in range(4):
        monitor.look(START)
    assert abs(monitor.latest["cosine_gap"]) < 0.05 and monitor.judged_positions().positions is True
    assert capsys.readouterr().out.count("The run predicts positions, not images") == 1


def test_a_method_that_predicts_nothing_has_no_lidar(build: Build, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    monkeypatch.setattr(IJepa, "predicted_features", lambda self, batch, progress: calls.append(len(batch.sample_ids)))
    monitor = build()
    monitor.look(START)
    assert "lidar" not in monitor.latest and {"rankme", "alpha_req"} <= set(monitor.latest)
    assert len(calls) == 1, "it is asked once"


def test_no_masks_no_lidar_and_no_cost(build: Build, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(IJepa, "predicted_features", lambda self, batch, progress: pytest.fail("was asked"))
    monitor = build(lidar_masks=0)
    monitor.look(START)
    assert "lidar" not in monitor.latest


def test_a_look_moves_no_generator_no_weight_and_repeats_itself(build: Build) -> None:
    monitor = build(drop_path=0.5)
    method = monitor._method.train()
    before = {name: value.clone() for name, value in method.state_dict().items()}
    torch_state, numpy_state = torch.get_rng_state(), np.random.get_state()[1].tolist()  # type: ignore[index, union-attr]
    monitor.look(START)
    first = monitor.latest
    monitor.look(START)
    assert monitor.latest == first
    assert torch.equal(torch.get_rng_state(), torch_state)
    assert np.random.get_state()[1].tolist() == numpy_state  # type: ignore[index, union-attr]
    assert all(torch.equal(before[name], value) for name, value in method.state_dict().items())
    assert method.training and method.context_encoder.training  # type: ignore[union-attr]


def test_looks_logged_before_these_measures_existed_can_be_continued(build: Build, tmp_path: Path) -> None:
    old = {"feature_std": 0.2, "cosine": 0.9, "rankme": 3.0, "loss": 1.0}
    log = RunLog(tmp_path, -1, False)
    for step in (0, 2):
        log.write("monitor", step, {"epoch": 0.0, **old})
    log.close()
    monitor = build()
    assert monitor.latest == old and monitor.judged().words is None
    monitor.look(START)
    assert monitor.judged().words is not None and monitor.judged_positions().positions is None


def test_a_run_logs_them_beside_rankme(images: Path, tmp_path: Path) -> None:
    config = small_config(images, tmp_path, total_steps=2)
    run = train(config)
    assert run is not None
    assert all({"rankme", "alpha_req", "lidar"} <= set(line) for line in lines(run, "monitor"))
    assert all(1 <= line["lidar"] <= 15 for line in lines(run, "monitor")), "16 images: at most 15 directions"


def test_one_draw_is_refused(images: Path) -> None:
    config: RunConfig = small_config(images, Path("runs"))
    for number in (0, 2):
        check(replace(config, monitor=MonitorSettings(lidar_masks=number)))
    with pytest.raises(ValueError, match=r"monitor.lidar_masks=1 must be at least 2.*or 0"):
        check(replace(config, monitor=MonitorSettings(lidar_masks=1)))
    with pytest.raises(ValueError, match=r"monitor.lidar_images=1 must be at least 2"):
        check(replace(config, monitor=MonitorSettings(lidar_images=1)))


def test_microbatches_of_a_stream_may_have_blocks_of_several_sizes() -> None:
    def output(first: int, blocks: int, tokens: int) -> ProbeOutput:
        rows = torch.arange(first, first + 3 * blocks * tokens, dtype=torch.float32)
        targets = rows.view(3, blocks, tokens, 1).sin()
        positions = (rows.view(3, blocks, tokens) % 5).long()
        return ProbeOutput(torch.zeros(3, 1), torch.zeros(()), targets, positions, functional.mse_loss)

    rows = torch.arange(3 * 4 * 4 + 3 * 4 * 6, dtype=torch.float32)
    expected = trivial_losses(rows.sin()[None, None, :, None], (rows % 5).long()[None, None], functional.mse_loss)
    found = _trivial([output(0, 4, 4), output(48, 4, 6)])
    assert found == {"loss_mean_target": expected.mean_target, "loss_position_mean": expected.position_mean}
