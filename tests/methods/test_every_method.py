"""What every pretraining method must keep, whichever it is; each of METHODS is run through it, and the toy as a new one."""

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from openjepa.checks import check
from openjepa.engine.checkpoint import latest_checkpoint, load_weights
from openjepa.engine.optimizer import build_optimizer, clip_gradients, gradient_norm
from openjepa.masks.sampler import TokenShape
from openjepa.methods import METHODS
from openjepa.methods.base import Method
from openjepa.methods.teachers import EmaTeacher
from openjepa.models.vit import VisionTransformer
from openjepa.schedules import Progress
from openjepa.settings.models import EncoderConfig
from openjepa.settings.run import MonitorSettings, RunConfig
from openjepa.system.interrupts import Interrupted, Interrupts
from openjepa.training.loop import train
from openjepa.training.startup import default_view, step_costs
from openjepa.types import Batch, BlockMasks
from openjepa.weights.formats import load_any
from openjepa.weights.native import save_network
from tests.helpers.costs import counted, kept_bytes
from tests.helpers.images import write_folder
from tests.helpers.method_steps import batch_of, parts, rows
from tests.helpers.small_runs import lines, method_config

PROGRESS = Progress(step=5, total_steps=100, steps_per_epoch=4)
pytestmark = [pytest.mark.parametrize("name", [*METHODS, "mean_color"]), pytest.mark.usefixtures("toy_is_a_method")]


@dataclass(frozen=True)
class Case:
    """A method as a small run has it, with one normalized batch of eight images."""

    config: RunConfig
    method: Method
    batch: Batch


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_folder(tmp_path_factory.mktemp("images"), 40)


@pytest.fixture
def case(name: str, images: Path, tmp_path: Path) -> Case:
    config = method_config(name, images, tmp_path)
    check(config)
    sampler, method = parts(config)
    return Case(config, method, batch_of(config, method, sampler))


def state(method: Method) -> dict[str, Tensor]:
    return {key: value.clone() for key, value in method.state_dict().items()}


def same(first: dict[str, Tensor], second: dict[str, Tensor]) -> bool:
    return first.keys() == second.keys() and all(torch.equal(value, second[key]) for key, value in first.items())


def teachers(method: Method) -> list[EmaTeacher]:
    return [module for module in method.modules() if isinstance(module, EmaTeacher)]


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_the_loss_falls(case: Case, precision: str) -> None:
    """On one batch that is seen again and again, towards targets of a teacher that stands still."""
    method = case.method
    optim = replace(case.config.optim, lr=1e-3)
    optimizer = build_optimizer(method.named_parameters(), method.parameter_rules(), optim)
    losses = []
    for _ in range(24):
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
            loss = method(case.batch, PROGRESS).total
        assert loss.dtype == torch.float32 and loss.shape == ()
        optimizer.zero_grad()
        loss.backward()
        method.before_step(PROGRESS)
        optimizer.step()
        losses.append(loss.item())
    assert sum(losses[-4:]) < 0.95 * sum(losses[:4])


def test_teachers_have_no_gradient_and_all_else_has(case: Case) -> None:
    method = case.method
    method(case.batch, PROGRESS).total.backward()
    frozen = {id(value) for teacher in teachers(method) for value in teacher.parameters()}
    for key, value in method.named_parameters():
        if id(value) in frozen:
            assert not value.requires_grad and value.grad is None, key
        elif value.requires_grad:
            assert value.grad is not None and value.grad.isfinite().all(), key


def test_teachers_follow_after_the_step_and_only_then(case: Case) -> None:
    """Each parameter that the student trains becomes m times itself plus 1 - m times the student's; others stay."""
    method = case.method
    if not teachers(method):
        assert "momentum" not in method.after_step(PROGRESS)
        return
    trained = [(key, value) for key, value in method.named_parameters() if value.requires_grad]
    with torch.no_grad():
        for _, value in trained:
            value.add_(0.1)
    method(case.batch, PROGRESS)
    before = state(method)
    momentum = method.after_step(PROGRESS)["momentum"]
    assert 0 < momentum < 1
    moved = {key: value for key, value in method.state_dict().items() if ".network." in key}
    assert moved
    for key, value in moved.items():
        last = key.partition(".network.")[2]
        follows = any(name == last or name.endswith(f".{last}") for name, _ in trained)
        expected = before[key] + (0.1 * (1 - momentum) if follows else 0.0)
        torch.testing.assert_close(value, expected, rtol=0, atol=1e-6)


def test_looking_changes_nothing(case: Case) -> None:
    """Forward, probe, energies and predicted features: no weight, no buffer, no mode; the last three draw no numbers either."""
    method, batch = case.method, case.batch
    before = state(method)
    method(batch, PROGRESS)
    assert same(before, state(method))
    generator = torch.random.get_rng_state()
    looks: tuple[Callable[[Batch, Progress], object], ...] = (method.probe, method.energies, method.predicted_features)
    for look in looks:
        look(batch, PROGRESS)
        assert same(before, state(method)) and torch.equal(generator, torch.random.get_rng_state())
        assert method.training and all(not teacher.network.training for teacher in teachers(method))


def test_a_step_reads_no_number_from_the_device(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    """Tensors without values stand for those of a device: what would wait for one fails."""
    monkeypatch.setattr(torch, "autocast", lambda *_, **__: nullcontext())  # it does not know of such tensors
    nowhere = torch.device("meta")
    method, optim = case.method.to(nowhere), case.config.optim
    optimizer = build_optimizer(method.named_parameters(), method.parameter_rules(), optim)
    method(case.batch.to(nowhere), PROGRESS).total.backward()
    method.before_step(PROGRESS)
    for mode in ("global", "per_tensor"):
        clip_gradients(optimizer, gradient_norm(optimizer), 3.0, mode)
    assert all(isinstance(value, float) for value in method.after_step(PROGRESS).values())
    assert all(value.is_meta for value in method.state_dict().values())


def test_the_probe_shows_the_loss_and_the_features_of_the_export(case: Case) -> None:
    method, batch = case.method, case.batch
    probe = method.probe(batch, PROGRESS)
    assert probe.loss.item() == pytest.approx(method(batch, PROGRESS).total.item(), rel=1e-5), "there is no drop path here"
    export = method.exports()["encoder"]
    assert isinstance(export.config, EncoderConfig) and isinstance(export.module, VisionTransformer)
    shown = [view for view in batch.views.values() if view.shape[-1] == case.config.data.image_size]
    found = [export.module(crops).pooled(export.config.pooling) for view in shown for crops in view]
    assert any(torch.allclose(probe.features, features, atol=1e-5) for features in found)
    assert not probe.features.requires_grad and not probe.loss.requires_grad


def test_other_targets_are_those_of_the_next_image_at_the_same_places(case: Case) -> None:
    """The same masks over the images moved by one give them as the targets."""
    method, batch = case.method, case.batch
    probe = method.probe(batch, PROGRESS)
    assert (probe.other_targets is None) == (probe.predictions is None)
    if probe.other_targets is None or probe.targets is None or probe.predictions is None or probe.distance is None:
        return
    moved = replace(batch, views={name: view.roll(-1, 1) for name, view in batch.views.items()})
    torch.testing.assert_close(probe.other_targets, method.probe(moved, PROGRESS).targets, rtol=0, atol=1e-5)
    assert (probe.other_targets - probe.targets).abs().max() > 1e-3
    assert probe.predictions.shape == probe.targets.shape
    assert probe.distance(probe.predictions, probe.targets).item() == pytest.approx(probe.loss.item(), rel=1e-5)


def test_energies_belong_to_pairs(case: Case) -> None:
    """Images in another order give the same table in that order, and a part of the batch gives that part of it."""
    method, batch = case.method, case.batch
    energies = method.energies(batch, PROGRESS)
    if type(method).energies is Method.energies:
        assert energies is None
        return
    assert energies.shape == (8, 8) and energies.isfinite().all() and not energies.requires_grad
    order = [3, 1, 7, 0, 6, 2, 5, 4]
    torch.testing.assert_close(method.energies(rows(batch, order), PROGRESS), energies[order][:, order], rtol=1e-4, atol=1e-5)
    if not method.coupled_terms():
        some = [6, 2, 5]
        torch.testing.assert_close(method.energies(rows(batch, some), PROGRESS), energies[some][:, some], rtol=1e-4, atol=1e-5)


def test_exports_load_and_give_one_vector_an_image(case: Case, tmp_path: Path) -> None:
    exports = case.method.exports()
    for key, export in exports.items():
        save_network(tmp_path / key, export)
    loaded = load_any(tmp_path / "encoder")
    assert loaded.config == exports["encoder"].config
    pixels = torch.randn(3, 3, *loaded.config.image_size)
    with torch.no_grad():
        output, expected = loaded.encoder(pixels), exports["encoder"].module.eval()(pixels)
    assert torch.equal(output.patches, expected.patches)
    for pooling in ("average", "class_token") if loaded.config.class_token else ("average",):
        assert output.pooled(pooling).shape == (3, loaded.config.width)
    assert output.pooled(loaded.config.pooling).shape == (3, loaded.config.width)


def test_costs_are_those_that_torch_counts(case: Case) -> None:
    """FLOPs of the forward exactly, with the backward to two hundredths: nobody needs the gradient of the pixels.

    What the forward keeps to a fifth, in fp32 and, beside copies of weights, in bf16.
    """
    method, batch = case.method, case.batch
    sampler, _ = parts(case.config)
    masks = next(iter(batch.masks.values()), None)
    is_blocks = isinstance(masks, BlockMasks)
    shapes = (TokenShape(masks.context.shape[1], masks.targets.shape[2], 1.0, masks.targets.shape[1]),) if is_blocks else None
    costs = step_costs(case.config, default_view(case.config.data), sampler, shapes)
    assert set(costs.flops) <= {part for part, _ in method.named_children()}
    assert counted(lambda: method(batch, PROGRESS)) == 8 * sum(costs.flops.values())
    assert counted(lambda: method(batch, PROGRESS).total.backward()) == pytest.approx(8 * costs.step_flops, rel=0.02)
    copies = sum(2 * value.numel() for value in method.parameters() if value.requires_grad and value.ndim > 1)
    for precision, aside in (("fp32", 0), ("bf16", copies)):
        found = kept_bytes(method, batch, PROGRESS, precision) - aside
        assert costs.kept(torch.device("cpu"), precision) == pytest.approx(found, rel=0.2)


def test_a_long_run_is_no_cause_for_remarks(case: Case) -> None:
    assert case.method.remarks(10**7) == []
    short = case.method.remarks(20)
    assert all("method.ema_start" in remark for remark in short)


def test_a_run_stopped_and_continued_ends_in_the_same_weights(
    name: str, images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Bitwise: every weight and buffer of the last checkpoint, stopped after each of the first steps in turn."""
    config = replace(method_config(name, images, tmp_path / "whole", total_steps=3), monitor=MonitorSettings(every=0))
    assert train(config) is not None
    expected = final_state(config)
    stopped = replace(config, run=replace(config.run, output=str(tmp_path / "stopped")))
    for step in (1, 2):
        with monkeypatch.context() as patch:
            patch.setattr(Interrupts, "__init__", lambda self: self.__dict__.update(requested="SIGTERM", _before={}))
            with pytest.raises(Interrupted, match=f"after step {step}"):
                train(stopped)
    assert train(stopped) is not None
    assert same(expected, final_state(stopped))


def final_state(config: RunConfig) -> dict[str, Tensor]:
    """All that the last checkpoint of a run says of its method."""
    checkpoint = latest_checkpoint(Path(config.run.output) / "run" / "checkpoints")
    assert checkpoint is not None
    _, method = parts(config)
    assert load_weights(checkpoint, method).step == 3
    return method.state_dict()


def dropping(config: RunConfig) -> RunConfig:
    """The run with drop path, whose draws belong to the images and not to the microbatches, and without looks."""
    return replace(config, model=replace(config.model, drop_path=0.3), monitor=MonitorSettings(every=0))


def test_microbatches_change_nothing_but_what_is_said(
    name: str, images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Losses, norms, draws and statistics of the whole batch, however it is split; terms that see a part of it are named."""
    whole, split = (
        dropping(method_config(name, images, tmp_path / folder, **options))
        for folder, options in (("whole", {}), ("split", {"microbatch_size": 4}))
    )
    train(whole)
    assert "only these are seen at a time by" not in capsys.readouterr().out
    train(split)
    _, method = parts(split)
    said = capsys.readouterr().out
    if method.coupled_terms():
        assert (
            f"optim.microbatch_size=4 of 8 images: only these are seen at a time by {method.coupled_terms()[0].words}" in said
        )
        return
    assert "only these are seen at a time by" not in said
    pairs = zip(lines(tmp_path / "whole" / "run", "train"), lines(tmp_path / "split" / "run", "train"), strict=True)
    for first, second in pairs:
        assert first["loss"] == pytest.approx(second["loss"], rel=1e-3, abs=1e-4)
        assert first["grad_norm"] == pytest.approx(second["grad_norm"], rel=1e-2, abs=1e-4)
