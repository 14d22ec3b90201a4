"""The benchmark of a step: its plain reference computes the same loss, parts add up, FLOPs are those of the drawn tokens."""

import io
from dataclasses import replace

import pytest
import torch
from PIL import Image
from torch import nn

from benchmarks.plain_step import PlainStep
from openjepa.commands.experiments import bench
from openjepa.experiments.generated_photos import PHOTO, GeneratedPhotos
from openjepa.experiments.step_times import bench_step, print_step, step_config, time_step
from openjepa.methods import METHODS
from openjepa.methods.ijepa import IJepa
from openjepa.recipes import RECIPES, load_recipe
from openjepa.settings.derived import resolve
from openjepa.settings.experiments import StepBench
from openjepa.training.timed_steps import TimedStep
from openjepa.types import BlockMasks

OPTIONS = StepBench(
    size="test",
    image_size=32,
    patch_size=8,
    batch_size=2,
    predictor_width=24,
    predictor_depth=1,
    device="cpu",
    precision="fp32",
)


def plain_names(network: nn.Module) -> dict[str, torch.Tensor]:
    renamed = {"attn.": "", "mlp.fc1": "mlp.0", "mlp.fc2": "mlp.2", "patch_embed.proj": "patch_embed"}
    state = {}
    for name, value in network.state_dict().items():
        for ours, theirs in renamed.items():
            name = name.replace(ours, theirs)
        state[name] = value
    return state


def test_the_plain_step_is_the_same_step() -> None:
    """An independent restatement of networks, targets and loss, with the same weights."""
    step = TimedStep(step_config(OPTIONS))
    method = step.method
    assert isinstance(method, IJepa)
    plain = PlainStep(method.encoder_config, method.predictor_config)
    for ours, theirs in ((method.context_encoder, plain.encoder), (method.predictor, plain.predictor)):
        missing = theirs.load_state_dict(plain_names(ours), strict=False)
        assert missing.missing_keys == ["positions"] and not missing.unexpected_keys
    plain.target_encoder.load_state_dict(plain.encoder.state_dict())
    batch = step.batch.normalized(step.config.data.pixel_mean, step.config.data.pixel_std)
    masks = batch.masks["image"]
    assert isinstance(masks, BlockMasks)
    for _ in range(2):
        expected = plain.loss(batch.views["image"][0], masks.context, masks.targets).item()
        assert method(batch, None).total.item() == pytest.approx(expected, rel=1e-5)  # type: ignore[arg-type]


def test_shares_add_up(capsys: pytest.CaptureFixture[str]) -> None:
    result = bench_step(step_config(OPTIONS), repeats=1, product_size=128)
    assert sum(result["time_share"].values()) == pytest.approx(1.0)
    parts = {"target_encoder", "context_encoder", "predictor"}
    assert set(result["time_share"]) == parts | {"data", "masks", "other", "backward", "optimizer_ema"}
    flops = result["flops_per_image"]
    total = flops["target_encoder"] + 3 * flops["context_encoder"] + 3 * flops["predictor"]
    assert result["flops_per_image_and_step"] == pytest.approx(total)
    share = result["images_per_second"] * total / result["matmul_flops_per_second"]
    assert result["share_of_matmul"] == pytest.approx(share)
    assert {"commit", "date", "torch"} <= set(result) and result["repeats"] == 1, "the result carries its evidence"
    print_step(result)
    assert "peak memory of the process" in " ".join(capsys.readouterr().out.split())


@pytest.mark.parametrize("name", METHODS)
def test_every_method_can_be_timed(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Its batch is what it asks for, every part of its FLOPs takes time, and a step trains what is trained."""
    options = replace(OPTIONS, method=name, patch_size=4)  # type: ignore[arg-type]
    step = TimedStep(step_config(options))
    inputs = step.method.inputs()
    assert {key: (*view.shape[:2], *view.shape[3:]) for key, view in step.batch.views.items()} == {
        key: (view.count, 2, *view.size) for key, view in inputs.views.items()
    }
    for key in inputs.masked_views:
        masks = step.batch.masks[key]
        rows = masks.context if isinstance(masks, BlockMasks) else masks.masked
        assert len(rows) == 2 * inputs.views[key].count
    assert set(step.batch.masks) == set(inputs.masked_views)
    result = bench_step(step_config(options), repeats=1, product_size=128)
    assert set(result["time_share"]) == set(step.costs.flops) | {"data", "masks", "other", "backward", "optimizer_ema"}
    assert all(result["seconds"][part] > 0 for part in step.costs.flops)
    assert sum(result["time_share"].values()) == pytest.approx(1.0)
    assert result["flops_per_image_and_step"] == pytest.approx(step.costs.step_flops)
    print_step(result)
    printed = " ".join(capsys.readouterr().out.split())
    assert printed.startswith(f"{name}, test/4 at 32x32, batch 2") and "one core makes the views of" in printed
    held = result["cores_that_feed_the_step"] > 1
    assert ("the views hold the step back" in printed) == held


def test_a_step_changes_what_is_trained_and_the_averages() -> None:
    step = TimedStep(step_config(replace(OPTIONS, method="dino")))
    before = {name: value.clone() for name, value in step.method.named_parameters()}
    step.run()
    changed = {name.split(".")[0] for name, value in step.method.named_parameters() if not torch.equal(value, before[name])}
    assert changed == {"student", "student_head", "teacher", "teacher_head"}


def test_a_method_can_be_put_into_a_recipe() -> None:
    config = step_config(StepBench(recipe="cpu-32", method="mae"))
    assert config.method.name == "mae" and config.model.size == "nano" and config.masks.strategy == "random_patches"
    own = step_config(StepBench(recipe="cpu-32", method="ijepa"))
    assert own.method == resolve(load_recipe("cpu-32")).method


def test_a_recipe_can_be_timed() -> None:
    config = step_config(StepBench(recipe="ijepa-vitb16"))
    assert config.model.size == "base" and config.optim.batch_size == (config.optim.microbatch_size or 2048)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (StepBench(repeats=0), "--repeats 0 must be at least 1"),
        (StepBench(batch_size=0), "--batch-size 0 must be at least 1"),
        (StepBench(threads=0), "--threads 0 must be at least 1"),
        (StepBench(image_size=100), "does not divide data.image_size=100x100"),
        (StepBench(device="gpu"), "run.device='gpu' must be"),
        (StepBench(preset="official"), "--preset official has no effect without a recipe"),
    ],
)
def test_options_that_cannot_work_are_named(options: StepBench, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        time_step(options)


@pytest.mark.parametrize("option", ["--size=small", "--batch-size=32", "--predictor_width=3"])
def test_sizes_beside_a_recipe_are_refused_even_where_they_are_the_defaults(option: str) -> None:
    name, value = option.replace("_", "-").split("=")
    with pytest.raises(ValueError, match=f"{name} {value} has no effect: the recipe cpu-64 says it"):
        bench.bench_step(["cpu-64", option], "openjepa bench step")


@pytest.mark.parametrize(("recipe", "preset"), [(name, preset) for name in RECIPES for preset in RECIPES[name].presets])
def test_every_recipe_can_be_timed_without_data(recipe: str, preset: str) -> None:
    config = step_config(StepBench(recipe=recipe, preset=preset, device="cpu"))
    assert config.data == load_recipe(recipe, preset).data


def test_generated_photos_are_jpegs() -> None:
    photos = GeneratedPhotos(5, different=2)
    assert len(photos) == 5 and photos.read(0) == photos.read(2) != photos.read(1)
    image = Image.open(io.BytesIO(photos.read(4)))
    assert image.format == "JPEG" and image.size == PHOTO[::-1]
