"""The target switches of I-JEPA: each against a slow restatement, one golden step each, what they refuse, exact resume."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from openjepa.checks import check
from openjepa.checks.methods import without_effect
from openjepa.masks.sampler import TokenShape
from openjepa.methods.base import Surroundings
from openjepa.methods.ijepa import IJepa
from openjepa.models.vit import build_encoder
from openjepa.schedules import Progress
from openjepa.settings.methods import IJepaSettings
from openjepa.settings.models import EncoderConfig, ModelSettings
from openjepa.training.init import settled
from openjepa.training.loop import train
from openjepa.types import Batch, BlockMasks, Export, ViewSpec
from openjepa.weights.native import save_network
from tests.helpers.continued import final_state, stop_after_a_step
from tests.helpers.images import write_folder
from tests.helpers.small_runs import small_config

SETTINGS = IJepaSettings(predictor_width=24, predictor_depth=1)
SWITCHES: dict[str, dict[str, Any]] = {
    "l1": {"loss": "l1"},
    "pixels": {"target_space": "pixels"},
    "pixels_then_features": {"target_space": "pixels_then_features"},
    "input": {"target_masking": "input"},
    "layers": {"target_layers": (1, 2)},
    "averaged": {"target_layers": (1, 2), "target_layers_join": "averaged"},
    "one_layer": {"target_layers": (1,)},
    "position": {"target_norm": "position", "position_momentum": 0.5},
    "dyntanh": {"target_norm": "dyntanh"},
    "teacher": {"teacher": "another run", "target_layers": (1, 3)},
}
"""One value of each switch."""
TOGETHER: dict[str, dict[str, Any]] = {
    "pixels": SWITCHES["pixels"],
    "crossing": {"target_space": "pixels_then_features", "pixels_until": (0.3, 1), "features_from": (0.0, 0.6)},
    "layers": {"target_layers": (1, 2), "target_norm": "position"},
    "input": {"target_masking": "input", "target_norm": "dyntanh"},
    "teacher": {"teacher": "TEACHER", "target_layers": (1, 3)},
}
"""Switches that can stand together, for a test that trains."""
HALFWAY = Progress(step=35, total_steps=100, steps_per_epoch=10)


PIXELS: dict[str, Any] = {"pixel_mean": (0.5, 0.5, 0.5), "pixel_std": (0.2, 0.2, 0.2)}
TEACHER = EncoderConfig(width=32, depth=3, heads=2, mlp_ratio=4, patch_size=4, image_size=(16, 20), **PIXELS)


def build(teacher_config: EncoderConfig = TEACHER, **changes: Any) -> IJepa:
    torch.manual_seed(1)
    teacher = build_encoder(teacher_config) if changes.get("teacher") else None
    torch.manual_seed(0)
    shape = TokenShape(5, 4, 1.0, 3)
    model = ModelSettings(size="test", patch_size=4)
    surroundings = Surroundings(model, ViewSpec(size=(16, 20)), *PIXELS.values(), (shape,), teacher)
    return IJepa(replace(SETTINGS, **changes), surroundings)


def make_batch(size: int = 4, seed: int = 0) -> Batch:
    generator = torch.Generator().manual_seed(seed)
    images = torch.randn(1, size, 3, 16, 20, generator=generator)
    order = torch.stack([torch.randperm(20, generator=generator) for _ in range(size)])
    masks = BlockMasks(order[:, :5], order[:, 5:17].view(size, 3, 4), (4, 5))
    return Batch(torch.arange(size), {"image": images}, {"image": masks})


def parts_of(method: IJepa, batch: Batch) -> tuple[Tensor, BlockMasks, Tensor]:
    """Images, masks and predictions of a batch."""
    images, masks = batch.views["image"][0], batch.masks["image"]
    assert isinstance(masks, BlockMasks)
    return images, masks, method._predictions(images, masks).blocks


def pixels_of(images: Tensor, masks: BlockMasks) -> Tensor:
    """Normalized pixels of the target patches, one patch at a time."""
    rows = []
    for image, blocks in zip(images, masks.targets, strict=True):
        for patch in blocks.flatten().tolist():
            row, column = 4 * (patch // 5), 4 * (patch % 5)
            values = image[:, row : row + 4, column : column + 4].permute(1, 2, 0).flatten()
            rows.append((values - values.mean()) / (values.var(unbiased=True) + 1e-6).sqrt())
    return torch.stack(rows).view(*masks.targets.shape, 48)


def test_pixels_are_those_of_the_target_patches() -> None:
    method, batch = build(target_space="pixels", loss="l2"), make_batch()
    images, masks, predictions = parts_of(method, batch)
    expected = (predictions - pixels_of(images, masks)).square().mean()
    assert method(batch, HALFWAY).total.item() == pytest.approx(expected.item(), rel=1e-5)
    assert method.target_encoder is None and method.after_step(HALFWAY) == {} and method.remarks(20) == []
    export = method.exports()["encoder"]
    assert export.module is method.context_encoder and export.extra == {"role": "trained"}  # no moving average
    assert method.exports()["predictor"].extra["target_space"] == "pixels"
    assert method.encoders().averaged is None


@pytest.mark.parametrize(
    ("step", "weights"), [(0, (0.0, 1.0)), (25, (0.0, 1.0)), (35, (0.5, 0.5)), (45, (1.0, 0.0)), (99, (1.0, 0.0))]
)
def test_the_weights_of_pixels_and_features_cross_over(step: int, weights: tuple[float, float]) -> None:
    method, batch, progress = build(target_space="pixels_then_features"), make_batch(), Progress(step, 100, 10)
    images, masks, predictions = parts_of(method, batch)
    targets = (build().probe(batch, progress).targets, pixels_of(images, masks))
    losses = [torch.nn.functional.smooth_l1_loss(*pair) for pair in zip(predictions.split([48, 48], -1), targets, strict=True)]
    expected = sum(weight * loss.item() for weight, loss in zip(weights, losses, strict=True))
    assert method(batch, progress).total.item() == pytest.approx(expected, rel=1e-5)
    probe = method.probe(batch, progress)
    assert probe.loss.item() == pytest.approx(expected, rel=1e-5)
    assert method.target_encoder is not None and method.exports()["encoder"].module is method.target_encoder.network


def test_features_without_weight_are_not_computed(monkeypatch: pytest.MonkeyPatch) -> None:
    method, batch, calls = build(target_space="pixels_then_features"), make_batch(), []
    assert method.target_encoder is not None
    method.target_encoder.register_forward_hook(lambda *_: calls.append(1))
    method(batch, Progress(10, 100, 10))
    assert not calls
    method(batch, HALFWAY)
    assert calls == [1]


def test_predictions_in_a_space_without_weight_are_not_seen() -> None:
    """By the looks, LiDAR and regularizers, for which targets are zeros there."""
    crossing = {"target_space": "pixels_then_features", "regularizer": "vicreg"}
    method, batch, early = build(**crossing), make_batch(), Progress(0, 100, 10)
    width = method.encoder_config.width
    look = method.probe(batch, early)
    assert look.predictions is not None and not look.predictions[..., :width].any() and look.predictions[..., width:].all()
    assert not method.predicted_features(batch, early)[:, :width].any()
    method(batch, early).total.backward()
    gradient = method.predictor.proj.weight.grad
    assert gradient is not None and not gradient[:width].any() and gradient[width:].any()
    late = method.probe(batch, Progress(30, 100, 10)).predictions
    assert late is not None and late.all()


def test_ramps_may_be_jumps() -> None:
    method = build(target_space="pixels_then_features", pixels_until=(0.3, 0.3), features_from=(0.2, 0.4))
    found = [[weight for _, weight in method.spaces._weighted(Progress(step, 100, 10))] for step in (20, 29, 30, 40)]
    assert found == [[0.0, 1.0], [pytest.approx(0.45), 1.0], [pytest.approx(0.5), 0.0], [1.0, 0.0]]


def features_of(method: IJepa, images: Tensor, layers: tuple[int, ...]) -> list[Tensor]:
    """Outputs of blocks of the target encoder, one block at a time. 0: the encoder's output."""
    network = method.target_encoder.network  # type: ignore[union-attr]
    found = {0: network(images).patches}
    x = network._tokens(images, None)
    for number, block in enumerate(network.blocks, start=1):
        x = found[number] = block(x)
    return [found[layer] for layer in layers]


def at(features: Tensor, masks: BlockMasks) -> Tensor:
    return torch.stack([rows[places] for rows, places in zip(features, masks.targets, strict=True)])


def layer_normed(rows: Tensor) -> Tensor:
    return (rows - rows.mean(-1, keepdim=True)) / (rows.var(-1, unbiased=False, keepdim=True) + 1e-5).sqrt()


@pytest.mark.parametrize("layers", [(2,), (1, 2), (2, 1)])
@pytest.mark.parametrize("join", ["concatenated", "averaged"])
def test_layers_are_normalized_one_by_one_and_joined(layers: tuple[int, ...], join: str) -> None:
    method, batch = build(target_layers=layers, target_layers_join=join), make_batch()
    images, masks, predictions = parts_of(method, batch)
    normed = [layer_normed(at(layer, masks)) for layer in features_of(method, images, layers)]
    expected = torch.cat(normed, -1) if join == "concatenated" else torch.stack(normed).mean(0)
    assert predictions.shape[-1] == (48 * len(layers) if join == "concatenated" else 48)
    torch.testing.assert_close(method.probe(batch, HALFWAY).targets, expected, rtol=1e-5, atol=1e-5)


def test_the_input_of_the_target_encoder_may_be_one_block() -> None:
    """Nothing outside of a block changes its targets, and one pass for each block gives them."""
    method, batch = build(target_masking="input"), make_batch()
    images, masks, _ = parts_of(method, batch)
    targets = method.probe(batch, HALFWAY).targets
    assert targets is not None
    for image, blocks, found in zip(images, masks.targets, targets, strict=True):
        for block, rows in zip(blocks, found, strict=True):
            alone = method.target_encoder(image[None], block[None]).patches[0]  # type: ignore[misc]
            torch.testing.assert_close(rows, layer_normed(alone), rtol=1e-5, atol=1e-5)
    assert (targets - build().probe(batch, HALFWAY).targets).abs().max() > 1e-3  # type: ignore[operator]


def test_dyntanh_keeps_large_features_large() -> None:
    method, batch = build(target_norm="dyntanh", dyntanh_alpha=0.7), make_batch()
    images, masks, _ = parts_of(method, batch)
    (last,) = features_of(method, images, (2,))
    torch.testing.assert_close(method.probe(batch, HALFWAY).targets, torch.tanh(0.7 * at(last, masks)), rtol=1e-5, atol=1e-5)


def test_positions_have_mean_0_and_variance_1_over_the_images_so_far() -> None:
    """Two steps of two microbatches with momentum 0.5: weights 0.25 and 0.5 of the steps, divided by their sum."""
    method, momentum = build(**SWITCHES["position"]), 0.5
    batches = [[make_batch(4, seed) for seed in (0, 1)], [make_batch(4, seed) for seed in (2, 3)]]
    images = [[batch.views["image"][0] for batch in step] for step in batches]
    features = [torch.cat([features_of(method, part, (0,))[0] for part in step]) for step in images]  # [8, N, D]
    masks = make_batch().masks["image"]
    assert isinstance(masks, BlockMasks)
    first = method.probe(batches[0][0], HALFWAY).targets
    torch.testing.assert_close(first, at(features[0][:4], masks), rtol=1e-5, atol=1e-5)  # no statistics yet
    for step in batches:
        for batch in step:
            method(batch, HALFWAY)
        method.spaces.commit()
    weights = torch.tensor([momentum * (1 - momentum), 1 - momentum])
    mean = sum(weight * rows.mean(0) for weight, rows in zip(weights / weights.sum(), features, strict=True))
    square = sum(weight * rows.square().mean(0) for weight, rows in zip(weights / weights.sum(), features, strict=True))
    expected = (features[0][:4] - mean) / (square - mean**2 + 1e-5).sqrt()
    torch.testing.assert_close(method.probe(batches[0][0], HALFWAY).targets, at(expected, masks), rtol=1e-3, atol=1e-3)


def test_a_teacher_from_elsewhere_gives_the_targets_and_stays() -> None:
    """Its width sets the predictor's output. What is exported and could be started from weights is the context encoder."""
    method, batch = build(teacher="another run"), make_batch()
    images, masks, predictions = parts_of(method, batch)
    torch.manual_seed(1)
    features = build_encoder(TEACHER)(images).patches
    torch.testing.assert_close(method.probe(batch, HALFWAY).targets, layer_normed(at(features, masks)), rtol=1e-5, atol=1e-5)
    assert predictions.shape == (*masks.targets.shape, 32)
    before = {name: value.clone() for name, value in method.target_encoder.state_dict().items()}  # type: ignore[union-attr]
    method(batch, HALFWAY).total.backward()
    assert method.after_step(HALFWAY) == {} and method.remarks(20) == []
    after = method.target_encoder.state_dict()  # type: ignore[union-attr]
    assert all(torch.equal(value, after[name]) for name, value in before.items())
    assert all(value.grad is None for value in method.target_encoder.parameters())  # type: ignore[union-attr]
    assert method.exports()["encoder"].module is method.context_encoder and method.encoders().averaged is None
    assert method.exports()["predictor"].extra["teacher"] == "another run"
    elsewhere = build(teacher="/elsewhere/runs/another/encoder")
    assert elsewhere.exports()["predictor"].extra["teacher"] == "another-encoder"


def test_positions_of_a_teacher_follow_the_size_of_the_images() -> None:
    other = replace(TEACHER, image_size=(32, 32), positions="learned")
    method, batch = build(other, teacher="another run", target_norm="position"), make_batch()
    assert method.probe(batch, HALFWAY).targets.shape[-1] == 32  # type: ignore[union-attr]
    method(batch, HALFWAY)
    method.after_step(HALFWAY)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"patch_size": 2}, r"method.teacher=another run does not fit: model.patch_size=4, but the teacher has patch_size=2"),
        ({"pixel_std": (0.1, 0.2, 0.2)}, r"data.pixel_std=0.2 0.2 0.2, but the teacher has pixel_std=0.1 0.2 0.2"),
        ({"depth": 2}, r"method.target_layers=1 3 of a target encoder with 2 blocks"),
    ],
)
def test_teachers_that_cannot_teach(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build(replace(TEACHER, **changes), **SWITCHES["teacher"])


def test_the_mean_of_a_position_explains_nothing_after_standardization() -> None:
    """Targets that are positions and little else: their share of the variance falls from nearly all to nearly nothing."""
    method = build(**SWITCHES["position"])
    features = torch.randn(1, 20, 48) + 0.1 * torch.randn(64, 20, 48)
    (norm,) = method.spaces.spaces[0].statistics  # type: ignore[union-attr]
    norm.collect(features)
    norm.commit()
    places = torch.arange(20).expand(64, 1, 20)
    found = norm(features[:, None], places)[:, 0]

    def share(rows: Tensor) -> float:
        return float(rows.mean(0).var(0, unbiased=False).sum() / rows.flatten(0, 1).var(0, unbiased=False).sum())

    assert share(features) > 0.95 and share(found) < 0.01


GOLDEN = {
    "l1": [0.9156296, 0.8842876],
    "pixels": [0.4242523, 0.4235443],
    "pixels_then_features": [0.4428761, 0.4382986],
    "input": [0.4652061, 0.442578],
    "layers": [0.4661372, 0.4547829],
    "averaged": [0.4651652, 0.4425253],
    "one_layer": [0.4654919, 0.4428676],
    "position": [0.4651835, 0.461393],
    "dyntanh": [0.0648542, 0.0605473],
    "teacher": [0.4692687, 0.452958],
}
"""Losses of each switch on a fixed batch at the first step and after one step of SGD, on a CPU in fp32."""


@pytest.mark.parametrize("name", SWITCHES)
def test_golden_step(name: str) -> None:
    method, batch = build(**SWITCHES[name]), make_batch()
    optimizer = torch.optim.SGD([value for value in method.parameters() if value.requires_grad], lr=0.1)
    losses = []
    for step in (35, 36):
        progress = Progress(step, 100, 10)
        loss = method(batch, progress).total
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        method.after_step(progress)
        losses.append(loss.item())
    assert losses == pytest.approx(GOLDEN[name], rel=1e-4)


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_folder(tmp_path_factory.mktemp("images"), 16)


@pytest.mark.parametrize("name", TOGETHER)
def test_a_stopped_run_ends_in_the_same_weights(name: str, images: Path, tmp_path: Path) -> None:
    """Bitwise, with every statistic of the targets; the monitor looks in between, and the costs of a step are counted."""
    config = small_config(images, tmp_path / "whole", total_steps=3)
    changes = {key: str(tmp_path) if value == "TEACHER" else value for key, value in TOGETHER[name].items()}
    config = replace(config, method=replace(config.method, **changes))
    write_teacher(tmp_path, seed=1)
    assert train(config) is not None
    stopped = replace(config, run=replace(config.run, output=str(tmp_path / "stopped")))
    stop_after_a_step(stopped)
    if "teacher" in changes:
        write_teacher(tmp_path, seed=2)
        with pytest.raises(ValueError, match=r"method.teacher holds other weights than when the run began"):
            train(stopped)
        write_teacher(tmp_path, seed=1)
    assert train(stopped) is not None
    expected, found = (final_state(run) for run in (config, stopped))
    assert expected.keys() == found.keys() and all(torch.equal(value, found[key]) for key, value in expected.items())


def test_the_path_of_a_teacher_becomes_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = small_config(tmp_path, tmp_path)

    def found(teacher: str) -> str | None:
        return settled(replace(config, method=replace(config.method, teacher=teacher)), (), False)[0].method.frozen_teacher()

    monkeypatch.chdir(tmp_path)
    (tmp_path / "owner" / "name").mkdir(parents=True)
    assert found("owner/name") == str(tmp_path / "owner" / "name") and found("./gone") == str(tmp_path / "gone")
    assert found("someone/model") == "someone/model", "a name on the Hub"
    with pytest.raises(ValueError, match=r"method.teacher is empty"):
        found("")


def write_teacher(folder: Path, seed: int) -> None:
    torch.manual_seed(seed)
    config = EncoderConfig(width=32, depth=3, heads=2, mlp_ratio=4, patch_size=4, image_size=(48, 48))
    save_network(folder / "encoder", Export(config, build_encoder(config)))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"target_space": "pixels", "target_norm": "none"}, r"no target encoder, which method.target_norm=none is for"),
        (
            {"target_space": "pixels_then_features", "pixels_until": (0.1, 0.2)},
            r"pixels_until=0.1 0.2 and method.features_from=0.25 0.45 leave steps without .* method.features_from=0.1 0.2",
        ),
        ({"pixels_until": (0.5, 0.2)}, "smallest first"),
        (
            {"target_layers": (1, 3)},
            r"method.target_layers=1 3 of a target encoder with 2 blocks: use numbers from 1 to 2, e.g. 1 2$",
        ),
        ({"target_layers": (0, 1)}, r"method.target_layers=0 must be at least 1"),
        ({"target_layers": (1, 1)}, r"method.target_layers=1 1 repeats a value"),
        ({"target_space": "pixels", "target_layers": (1,)}, r"method.target_layers=1 is for"),
        ({"target_norm": "position", "target_masking": "input"}, r"needs features of every position"),
        ({"target_space": "pixels", "teacher": "a run"}, r"no target encoder, which method.teacher=a run is for"),
        ({"context_loss": 0.5, "target_masking": "input"}, r"method.context_loss=0.5 has no targets"),
        ({"position_momentum": 1.0}, "below 1"),
    ],
)
def test_targets_that_cannot_be(changes: dict[str, Any], message: str) -> None:
    config = small_config(Path("nowhere"), Path("nowhere"))
    with pytest.raises(ValueError, match=message):
        check(replace(config, method=replace(config.method, **changes)))


def test_settings_without_effect_are_told() -> None:
    assert without_effect(replace(SETTINGS, pixels_until=(0.1, 0.2))) == [
        "method.pixels_until=0.1 0.2 has no effect without method.target_space=pixels_then_features"
    ]
    changed = {"position_momentum": 0.5, "dyntanh_alpha": 1.0, "target_layers_join": "averaged"}
    words = ("target_norm=position", "target_norm=dyntanh", "several method.target_layers")
    for found, word in zip(without_effect(replace(SETTINGS, **changed)), words, strict=True):  # type: ignore[arg-type]
        assert found.endswith(f"has no effect without {'' if 'several' in word else 'method.'}{word}")
    (told,) = without_effect(replace(SETTINGS, target_space="pixels", export_context_encoder=True))
    assert "the context encoder is what is exported" in told
