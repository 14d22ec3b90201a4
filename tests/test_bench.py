"""The benchmark of a step: its plain reference computes the same loss, parts add up, FLOPs are those of the drawn tokens."""

import io

import pytest
import torch
from PIL import Image
from torch import nn

from benchmarks.plain_step import PlainStep
from openjepa import commands
from openjepa.bench import TimedStep, bench_step, print_step, step_config, time_step
from openjepa.data.generated import PHOTO, GeneratedPhotos
from openjepa.methods.ijepa import IJepa
from openjepa.recipes import RECIPES, load_recipe
from openjepa.settings.bench import StepBench
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
        commands.bench_step(["cpu-64", option], "openjepa bench step")


@pytest.mark.parametrize(("recipe", "preset"), [(name, preset) for name in RECIPES for preset in RECIPES[name].presets])
def test_every_recipe_can_be_timed_without_data(recipe: str, preset: str) -> None:
    config = step_config(StepBench(recipe=recipe, preset=preset, device="cpu"))
    assert config.data == load_recipe(recipe, preset).data


def test_generated_photos_are_jpegs() -> None:
    photos = GeneratedPhotos(5, different=2)
    assert len(photos) == 5 and photos.read(0) == photos.read(2) != photos.read(1)
    image = Image.open(io.BytesIO(photos.read(4)))
    assert image.format == "JPEG" and image.size == PHOTO[::-1]
