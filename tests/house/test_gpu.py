"""What only a CUDA device can show: the same numbers as on the CPU, exact bookkeeping, no weight moved by a bad batch."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

from openjepa.engine.failures import FiniteGuard, NotFinite
from openjepa.engine.optimizer import build_optimizer, gradient_norm
from openjepa.methods.base import DEFAULT_RULES
from openjepa.models.vit import build_encoder
from openjepa.settings.models import EncoderConfig
from openjepa.settings.run import OptimizationSettings
from openjepa.training.loop import train
from tests.helpers.images import write_folder
from tests.helpers.small_runs import lines, small_config

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]


@pytest.mark.parametrize("subset", [False, True])
def test_the_encoder_gives_the_numbers_of_the_cpu(subset: bool) -> None:
    torch.backends.cuda.matmul.allow_tf32 = False
    torch.manual_seed(0)
    encoder = build_encoder(EncoderConfig(width=48, depth=2, heads=3, mlp_ratio=4.0, patch_size=8, image_size=(32, 48))).eval()
    images = torch.randn(4, 3, 32, 48)
    keep = torch.stack([torch.randperm(24)[:9] for _ in range(4)]) if subset else None
    valid = torch.arange(9)[None] < torch.tensor([[9], [5], [9], [1]]) if subset else None
    with torch.no_grad():
        expected = encoder(images, keep, valid).patches
        moved = (None if item is None else item.cuda() for item in (images, keep, valid))
        found = encoder.cuda()(*moved).patches.cpu()
    seen = slice(None) if valid is None else valid
    torch.testing.assert_close(found[seen], expected[seen], atol=2e-5, rtol=1e-4)


def test_the_fused_optimizer_skips_every_step_from_the_bad_one_on() -> None:
    model = nn.Linear(4, 4).cuda()
    optimizer = build_optimizer(model.named_parameters(), DEFAULT_RULES, OptimizationSettings())
    guard = FiniteGuard(optimizer, torch.device("cuda"), history=5)
    for step in range(4):
        before = model.weight.detach().clone()
        for value in model.parameters():
            value.grad = torch.full_like(value, float("nan") if step == 1 else 1.0)
        guard.watch(step, torch.tensor(0.1, device="cuda"), gradient_norm(optimizer), [torch.tensor([step])])
        optimizer.step()
        assert torch.equal(before, model.weight) == (step >= 1)
    with pytest.raises(NotFinite) as error:
        guard.raise_if_bad()
    assert error.value.sample_ids == [1]


@pytest.mark.parametrize("cache", ["none", "memory", "device"])
def test_training_on_the_gpu_follows_the_cpu(tmp_path: Path, cache: str) -> None:
    torch.backends.cuda.matmul.allow_tf32 = False
    images = write_folder(tmp_path / "images", 40)
    losses = {}
    for device in ("cpu", "cuda"):
        config = small_config(images, tmp_path / device)
        data = replace(config.data, cache=cache)  # type: ignore[type-var]
        run = train(replace(config, data=data, run=replace(config.run, device=device)))
        assert run is not None
        losses[device] = [line["loss"] for line in lines(run, "train")]
    assert losses["cuda"] == pytest.approx(losses["cpu"], rel=2e-3)


@pytest.mark.parametrize("compiled", [False, True])
def test_bf16_training_runs_and_resumes(tmp_path: Path, compiled: bool) -> None:
    config = small_config(write_folder(tmp_path / "images", 40), tmp_path)
    run = replace(config.run, device="cuda", precision="bf16", compile=compiled)
    first = train(replace(config, run=run, optim=replace(config.optim, total_steps=6)))
    assert first is not None
    values = [line["loss"] for line in lines(first, "train")]
    assert len(values) == 6 and all(0 < value < 10 for value in values)
