"""Helpers of the parity tests: recorded training steps of the published programs, taken by our methods and optimizer."""

from collections.abc import Callable, Mapping
from typing import Any

import pytest
from torch import Tensor

from openjepa.engine.optimizer import build_optimizer, clip_gradients, gradient_norm, set_rates
from openjepa.methods.base import Method
from openjepa.schedules import Progress, learning_rate, weight_decay
from openjepa.settings.models import ModelSettings
from openjepa.settings.run import OptimizationSettings
from openjepa.types import Batch
from tests.helpers.parity import LOSS, SCHEDULE


def class_token_model(header: dict[str, Any], resampling_offset: float = 0.0) -> ModelSettings:
    """The encoder of DINO, iBOT and MSN: a class token and learned positions."""
    vit = header["vit"]
    return ModelSettings(
        size="test",
        patch_size=vit["patch_size"],
        width=vit["embed_dim"],
        depth=vit["depth"],
        heads=vit["num_heads"],
        class_token=True,
        positions="learned",
        resampling_offset=resampling_offset,
    )


def self_distillation_optimization(header: dict[str, Any]) -> OptimizationSettings:
    """Rates and clipping of the recorded steps of DINO and iBOT."""
    return OptimizationSettings(
        lr=header["lr"],
        start_lr=0.0,
        final_lr=header["min_lr"],
        warmup_epochs=header["warmup_epochs"],
        weight_decay=header["wd"],
        final_weight_decay=header["wd_end"],
        weight_decay_schedule="cosine",
        schedule_steps="inclusive",
        clip_grad=header["clip"],
        clip_mode="per_tensor",
    )


def assert_steps(
    method: Method,
    optim: OptimizationSettings,
    golden: dict[str, Tensor],
    header: dict[str, Any],
    batch_of: Callable[[int], Batch],
    parts: Mapping[str, str],
    committed: Mapping[str, str],
) -> None:
    """Takes all recorded steps in the loop's order and compares rates, losses and what `after_step` returns.

    `parts` and `committed`: our name of a term or of a returned value -> the recorded one's.
    """
    optimizer = build_optimizer(method.named_parameters(), method.parameter_rules(), optim)
    total = header["epochs"] * header["ipe"]
    for step in range(total):
        recorded = {
            name: golden[f"rec/{name}"][step].item() for name in ("loss", "lr", "wd", *parts.values(), *committed.values())
        }
        progress = Progress(step, total, header["ipe"], stretch=optim.schedule_stretch)
        rate, decay = learning_rate(optim, progress), weight_decay(optim, progress)
        assert (rate, decay) == pytest.approx((recorded["lr"], recorded["wd"]), rel=0, abs=SCHEDULE)
        set_rates(optimizer, rate, decay)
        optimizer.zero_grad()
        output = method(batch_of(step), progress)
        assert output.total.item() == pytest.approx(recorded["loss"], abs=LOSS)
        for ours, theirs in parts.items():
            assert output.parts[ours].item() == pytest.approx(recorded[theirs], abs=LOSS)
        output.total.backward()
        method.before_step(progress)
        clip_gradients(optimizer, gradient_norm(optimizer), header["clip"], optim.clip_mode)
        optimizer.step()
        values = method.after_step(progress)
        for ours, theirs in committed.items():
            assert values[ours] == pytest.approx(recorded[theirs], abs=SCHEDULE)
