"""iBOT's losses, centers, heads, masked encoder and four training steps against the released code."""

from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor

from openjepa.masks.sampler import TokenShape
from openjepa.methods.assignment import Center, assignments, other_views_loss, teacher_temperature
from openjepa.methods.base import Surroundings
from openjepa.methods.ibot import IBot, masked_loss
from openjepa.models.heads import ProjectionHead, TokenHead
from openjepa.models.vit import VisionTransformer
from openjepa.schedules import Progress
from openjepa.settings.methods import IBotSettings
from openjepa.types import Batch, TokenMask, ViewSpec
from tests.helpers.parity import LOSS, SCHEDULE, assert_close, assert_gradient, assert_trained, part, read_golden
from tests.helpers.parity_steps import assert_steps, class_token_model, self_distillation_optimization

PIXELS = ((0.0, 0.0, 0.0), (1.0, 1.0, 1.0))


def encoder_weights(theirs: dict[str, Tensor]) -> dict[str, Tensor]:
    """Their token for masked patches is [1, D], ours [1, 1, D]; the teacher has none."""
    renamed = {key: value for key, value in theirs.items() if key != "masked_embed"}
    return renamed | ({"mask_token": theirs["masked_embed"][None]} if "masked_embed" in theirs else {})


def head_weights(theirs: dict[str, Tensor], shared: bool) -> dict[str, Tensor]:
    """Their last layer of patches is a second name of the same one where it is shared."""
    names = {key: key.replace("last_layer2", "last_layer_patches") for key in theirs}
    return {name: theirs[key] for key, name in names.items() if not (shared and key.startswith("last_layer2"))}


def test_teacher_temperatures() -> None:
    golden, header = read_golden("ibot")
    for name, start, end in (("temp", header["wtt"], header["tt"]), ("patch_temp", header["wtp"], header["tp"])):
        for epoch, expected in enumerate(golden[f"loss/teacher_{name}_schedule"].tolist()):
            found = teacher_temperature(start, end, header["wte"], Progress(epoch, 6, 1), header["mse"])
            assert found == pytest.approx(expected, abs=SCHEDULE)


def test_losses_gradients_and_centers() -> None:
    """Four steps in a row: each uses the centers that the one before left."""
    golden, header = read_golden("ibot")
    center, patch_center = Center(header["K"], header["cm"]), Center(header["K2"], header["cm2"])
    for step, epoch in enumerate(header["ep"]):
        case = part(golden, f"loss/step{step}/")
        assert_close(center.value, case["center_before"], 1e-6)
        assert_close(patch_center.value[None], case["center2_before"], 1e-6)
        progress = Progress(epoch, header["epochs"], 1)
        temperature = teacher_temperature(header["wtt"], header["tt"], header["wte"], progress)
        patch_temperature = teacher_temperature(header["wtp"], header["tp"], header["wte"], progress, header["mse"])
        student = {name: case[name].requires_grad_() for name in ("student_cls", "student_patch", "student_local_cls")}
        crops = torch.cat([student["student_cls"], student["student_local_cls"]]).unflatten(0, (-1, header["B"]))
        teacher = case["teacher_cls"].unflatten(0, (-1, header["B"]))
        center.collect(teacher)
        patch_center.collect(case["teacher_patch"])
        of_class = other_views_loss(assignments(teacher, temperature, center.value), crops / header["st"])
        targets = assignments(case["teacher_patch"], patch_temperature, patch_center.value)
        weights = case["masks"].flatten(0, 1).flatten(1).float()  # [V, B, H, W] -> [V B, N]
        of_patches = masked_loss(targets, student["student_patch"] / header["st"], weights)
        loss = header["l1"] * of_class + header["l2"] * of_patches
        loss.backward()
        center.commit()
        patch_center.commit()
        for ours, name in ((of_class, "cls"), (of_patches, "patch"), (loss, "loss")):
            assert_close(ours.detach(), case[name], LOSS)
        for name, value in student.items():
            assert_gradient(value.grad, case[f"grad_{name}"])
        assert_close(center.value, case["center_after"], 1e-6)
        assert_close(patch_center.value[None], case["center2_after"], 1e-6)


@torch.no_grad()
@pytest.mark.parametrize("name", ["shared", "separate"])
def test_heads(name: str) -> None:
    """Of class tokens, of patches, of a batch of class tokens alone; the mean of all patches is that of their outputs."""
    golden, header = read_golden("ibot")
    case, sizes = part(golden, f"head/{name}/"), header["head"]
    head = ProjectionHead(
        sizes["in_dim"],
        sizes["out_dim"],
        hidden=sizes["hidden_dim"],
        bottleneck=sizes["bottleneck_dim"],
        patch_outputs="shared" if name == "shared" else case["patch"].shape[-1],
    )
    head.load_state_dict(head_weights(part(case, "params/"), shared=name == "shared"))
    tokens, patches = case["x"][:, 0], case["x"][:, 1:]
    places = torch.tensor([[8, 0], [1, 1], [2, 5], [7, 3]])
    outputs = TokenHead(head)(tokens[None], patches, places)
    assert_close(outputs.class_tokens[0], case["cls"])
    assert_close(outputs.patches, case["patch"].take_along_dim(places[..., None], dim=1))
    assert_close(outputs.patch_mean[0], case["patch"].mean(dim=(0, 1)))
    assert_close(TokenHead(head)(tokens[None], patches).patches, case["patch"])
    assert_close(head(tokens), case["cls_2d"])


@torch.no_grad()
def test_encoder_with_and_without_masks() -> None:
    golden, header = read_golden("ibot")
    method = build_method(header, IBotSettings(local_size=24, outputs=8, head_hidden=8, bottleneck=8))
    encoder: VisionTransformer = method.student
    encoder.load_state_dict(encoder_weights(part(golden, "vit/params/")))
    masked = golden["vit/mask"].flatten(1).bool()
    for found, expected in (
        (encoder(golden["vit/images"], replace=masked), golden["vit/tokens_masked"]),
        (encoder(golden["vit/images"]), golden["vit/tokens_plain"]),
    ):
        assert found.class_token is not None
        assert_close(found.class_token, expected[:, 0])
        assert_close(found.patches, expected[:, 1:])


def build_method(header: dict[str, Any], settings: IBotSettings) -> IBot:
    side = header["vit"]["img_size"][0]
    patches = (side // header["vit"]["patch_size"]) ** 2
    model, shape = class_token_model(header, resampling_offset=0.1), TokenShape(0, patches, 1.0, 1)
    return IBot(settings, Surroundings(model, ViewSpec(size=(side, side)), *PIXELS, (shape,)))


def settings_of(header: dict[str, Any]) -> IBotSettings:
    head, temperatures, patch_temperatures = (
        header[name] for name in ("head", "teacher_temp_schedule", "teacher_patch_temp_schedule")
    )
    return IBotSettings(
        local_crops=header["nl"],
        local_size=24,
        outputs=head["out_dim"],
        head_hidden=head["hidden_dim"],
        bottleneck=head["bottleneck_dim"],
        freeze_last_layer_epochs=header["freeze"],
        teacher_temperature_start=temperatures[0],
        teacher_temperature=temperatures[1],
        teacher_temperature_warmup_epochs=len(temperatures),
        patch_temperature_start=patch_temperatures[0],
        patch_temperature=patch_temperatures[1],
        class_weight=header["lambda1"],
        patch_weight=header["lambda2"],
        ema_start=header["mt"],
    )


def batch_of(golden: dict[str, Tensor], step: int, num_local: int) -> Batch:
    crops = [golden[f"step{step}/crop{number}"] for number in range(2 + num_local)]
    masks = torch.cat([golden[f"step{step}/mask{number}"] for number in range(2)]).flatten(1).bool()
    views = {"global": torch.stack(crops[:2]), "local": torch.stack(crops[2:])}
    return Batch(torch.arange(len(crops[0])), views, {"global": TokenMask(masks, (6, 6))})


def test_four_training_steps() -> None:
    """Both losses, rates, momentum, both centers and all weights after two epochs, the last layer frozen in the first."""
    golden, header = read_golden("ibot_train")
    method = build_method(header, settings_of(header))
    weights = part(golden, "init/")
    encoder, head = encoder_weights(part(weights, "backbone.")), head_weights(part(weights, "head."), shared=True)
    method.student.load_state_dict(encoder)
    method.teacher.network.load_state_dict({key: value for key, value in encoder.items() if key != "mask_token"})
    for network in (method.student_head, method.teacher_head.network):
        assert isinstance(network, TokenHead)
        network.head.load_state_dict(head)
    batches = partial(batch_of, golden, num_local=header["nl"])
    optim, parts = self_distillation_optimization(header), {"class": "cls", "patch": "patch"}
    assert_steps(method, optim, golden, header, batches, parts, committed={"momentum": "momentum"})
    assert_close(method.center.value, golden["rec/center"])
    assert_close(method.patch_center.value[None], golden["rec/center2"])
    compare_weights(method, golden, header)


def compare_weights(method: IBot, golden: dict[str, Tensor], header: dict[str, Any]) -> None:
    """Student and teacher, under their names."""
    networks = {
        "student": (method.student, method.student_head),
        "teacher": (method.teacher.network, method.teacher_head.network),
    }
    for name, (encoder, head) in networks.items():
        final = part(golden, f"final/{name}/")
        theirs = {f"backbone.{key}": value for key, value in encoder_weights(part(final, "backbone.")).items()}
        theirs |= {f"head.{key}": value for key, value in head_weights(part(final, "head."), shared=True).items()}
        ours = {f"backbone.{key}": value for key, value in encoder.state_dict().items()}
        ours |= {f"head.{key.removeprefix('head.')}": value for key, value in head.state_dict().items()}
        noise = header["final_student_fp32_vs_fp64_max_abs"]
        noise["backbone.mask_token"] = noise["backbone.masked_embed"]
        assert_trained(ours, theirs, noise, golden["rec/lr"])
