"""DINO's loss, centers, head, encoder at other sizes and four training steps against the released code."""

from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor

from openjepa.methods.assignment import Center, assignments, other_views_loss, teacher_temperature
from openjepa.methods.base import Surroundings
from openjepa.methods.dino import Dino
from openjepa.models.heads import ProjectionHead
from openjepa.models.transformer import resampled_positions
from openjepa.models.vit import VisionTransformer, build_encoder
from openjepa.schedules import Progress
from openjepa.settings.methods import DinoSettings
from openjepa.types import Batch, ViewSpec
from tests.helpers.parity import LOSS, SCHEDULE, assert_close, assert_gradient, assert_trained, part, read_golden
from tests.helpers.parity_steps import assert_steps, class_token_model, self_distillation_optimization

HEADS = {
    "plain": {},
    "bn": {"batch_norm": True, "norm_last_layer": False},
    "one_layer": {"layers": 1},
    "two_layers": {"layers": 2},
}


def test_teacher_temperature() -> None:
    golden, header = read_golden("dino")
    for epoch, expected in enumerate(golden["loss/teacher_temp_schedule"].tolist()):
        for step in (7 * epoch, 7 * epoch + 6):
            found = teacher_temperature(header["wtt"], header["tt"], header["wte"], Progress(step, 42, 7))
            assert found == pytest.approx(expected, abs=SCHEDULE)


def test_loss_gradients_and_centers() -> None:
    """Four steps in a row: each uses the center that the one before left."""
    golden, header = read_golden("dino")
    center = Center(header["K"], header["cm"])
    for step, epoch in enumerate(header["ep"]):
        case = part(golden, f"loss/step{step}/")
        assert_close(center.value, case["center_before"], 1e-6)
        student = case["student"].view(2 + header["nlocal"], header["B"], -1).requires_grad_()
        teacher = case["teacher"].view(2, header["B"], -1)
        temperature = teacher_temperature(header["wtt"], header["tt"], header["wte"], Progress(epoch, 6, 1))
        center.collect(teacher)
        loss = other_views_loss(assignments(teacher, temperature, center.value), student / header["st"])
        (gradient,) = torch.autograd.grad(loss, student)
        center.commit()
        assert_close(loss.detach(), case["loss"], LOSS)
        assert_gradient(gradient.flatten(0, 1), case["grad_student"])
        assert_close(center.value, case["center_after"], 1e-6)


@pytest.mark.parametrize("name", HEADS)
def test_heads(name: str) -> None:
    """Outputs and gradients; with batch normalization those of the batch, of which nothing is kept."""
    golden, header = read_golden("dino")
    case, sizes = part(golden, f"head/{name}/"), header["head"]
    options: dict[str, Any] = {"hidden": sizes["hidden_dim"], "bottleneck": sizes["bottleneck_dim"], **HEADS[name]}
    head = ProjectionHead(sizes["in_dim"], sizes["out_dim"], **options)
    running = ("running_mean", "running_var", "num_batches_tracked")
    weights = {key: value for key, value in part(case, "params/").items() if not key.endswith(running)}
    if name == "one_layer":  # theirs is then no sequence
        weights = {key.replace("mlp.", "mlp.0."): value for key, value in weights.items()}
    head.load_state_dict(weights)
    x = case["x"].requires_grad_()
    outputs = head(x)
    (outputs * case["w"]).sum().backward()
    assert_close(outputs.detach(), case["y"])
    assert_gradient(x.grad, case["grad_x"])
    assert_gradient(head.last_layer.weight_v.grad, case["grad_weight_v"])
    trains_lengths = name == "bn"
    assert head.last_layer.weight_g.requires_grad == trains_lengths


@torch.no_grad()
@pytest.mark.parametrize("size", [(48, 48), (24, 24), (40, 24)])
def test_encoder_at_every_size(size: tuple[int, int]) -> None:
    golden, header = read_golden("dino")
    encoder: VisionTransformer = build_encoder(
        class_token_model(header, resampling_offset=0.1).encoder((48, 48), (0.0, 0.0, 0.0), (1.0, 1.0, 1.0))
    )
    encoder.load_state_dict(part(golden, "vit/params/"))
    case = part(golden, f"vit/{size[0]}x{size[1]}/")
    output = encoder(case["images"])
    assert output.class_token is not None
    assert_close(output.class_token, case["cls"])
    assert_close(output.patches, case["tokens"][:, 1:])
    grid = (size[0] // 8, size[1] // 8)
    assert encoder.pos_embed is not None
    table = encoder.pos_embed[0, 1:] if grid == (6, 6) else resampled_positions(encoder.pos_embed[0, 1:], (6, 6), grid, 0.1)
    assert_close(table, case["pos"][0, 1:])
    if size == (24, 24):  # the numbers tell the released resampling from the exact one
        assert (resampled_positions(encoder.pos_embed[0, 1:], (6, 6), grid, 0.0) - case["pos"][0, 1:]).abs().max() > 1e-3


def build_method(header: dict[str, Any]) -> Dino:
    head, temperatures = header["head"], header["teacher_temp_schedule"]
    settings = DinoSettings(
        local_crops=header["nl"],
        local_size=24,
        outputs=head["out_dim"],
        head_hidden=head["hidden_dim"],
        bottleneck=head["bottleneck_dim"],
        freeze_last_layer_epochs=header["freeze"],
        teacher_temperature_start=temperatures[0],
        teacher_temperature=temperatures[1],
        teacher_temperature_warmup_epochs=len(temperatures),
        ema_start=header["mt"],
    )
    view = ViewSpec(size=(48, 48))
    return Dino(
        settings, Surroundings(class_token_model(header, resampling_offset=0.1), view, (0.0, 0.0, 0.0), (1.0, 1.0, 1.0), ())
    )


def fill(method: Dino, weights: dict[str, Tensor]) -> None:
    """The same weights for student and teacher."""
    for encoder in (method.student, method.teacher.network):
        encoder.load_state_dict(part(weights, "backbone."))
    for head in (method.student_head, method.teacher_head.network):
        head.load_state_dict(part(weights, "head."))


def batch_of(golden: dict[str, Tensor], step: int, num_local: int) -> Batch:
    crops = [golden[f"step{step}/crop{number}"] for number in range(2 + num_local)]
    views = {"global": torch.stack(crops[:2]), "local": torch.stack(crops[2:])}
    return Batch(torch.arange(len(crops[0])), views)


def test_four_training_steps() -> None:
    """Losses, rates, momentum, center and all weights after two epochs, the last layer frozen in the first."""
    golden, header = read_golden("dino_train")
    method = build_method(header)
    fill(method, part(golden, "init/"))
    batches = partial(batch_of, golden, num_local=header["nl"])
    optim = self_distillation_optimization(header)
    assert_steps(method, optim, golden, header, batches, parts={}, committed={"momentum": "momentum"})
    assert_close(method.center.value, golden["rec/center"])
    noise = header["final_student_fp32_vs_fp64_max_abs"]
    pairs = {
        "student": (method.student, method.student_head),
        "teacher": (method.teacher.network, method.teacher_head.network),
    }
    for name, (encoder, head) in pairs.items():
        ours = {f"backbone.{key}": value for key, value in encoder.state_dict().items()}
        ours |= {f"head.{key}": value for key, value in head.state_dict().items()}
        assert_trained(ours, part(golden, f"final/{name}/"), noise, golden["rec/lr"])
