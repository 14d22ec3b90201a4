"""data2vec's teacher, targets in all variants, predictions, losses and gradients against the released vision code."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from openjepa.masks.sampler import TokenShape
from openjepa.methods.base import Surroundings
from openjepa.methods.data2vec import VIEW, Data2Vec
from openjepa.schedules import Progress
from openjepa.settings.methods import Data2VecSettings
from openjepa.settings.models import ModelSettings
from openjepa.types import Batch, TokenMask, ViewSpec
from tests.helpers.parity import LOSS, assert_close, assert_gradient, part, read_golden

VARIANTS: dict[str, dict[str, Any]] = {
    "recipe": {},
    "paper_like": {"target_layer_norm": False},
    "average_only": {"layer_norm": "none", "target_layer_norm": False},
    "instance_norm": {"layer_norm": "instance", "target_layer_norm": False},
    "instance_then_layer": {"layer_norm": "instance_then_layer", "target_layer_norm": False},
    "batch_norm": {"layer_norm": "batch", "target_layer_norm": False},
    "fc": {"target_branch": "mlp"},
    "l2": {"loss": "l2"},
}
START = Progress(0, 1, 1)


def encoder_state(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Our encoder's state: biases of queries and values joined with the zeros that our keys get; the head left out."""
    dropped = ("lm_head", "rel_pos_bias.relative_position_index")
    state = {name: value for name, value in tensors.items() if not name.startswith(dropped)}
    for name in [name for name in state if name.endswith("q_bias")]:
        queries, values = state.pop(name), state.pop(name.replace("q_bias", "v_bias"))
        state[name.replace("q_bias", "qkv.bias")] = torch.cat([queries, torch.zeros_like(queries), values])
    return state


def build(tensors: dict[str, Tensor], header: dict[str, Any], **changes: Any) -> tuple[Data2Vec, Batch]:
    layers = header["layers"]
    assert layers == list(range(header["depth"]))[-len(layers) :]
    settings = replace(Data2VecSettings(average_layers=len(layers), smooth_l1_beta=header["beta"]), **changes)
    model = ModelSettings(
        size="test",
        width=header["dim"],
        depth=header["depth"],
        heads=header["heads"],
        patch_size=header["patch"],
        class_token=True,
        positions="relative",
        layer_scale=header["init_values"],
    )
    view = ViewSpec(size=(header["img"], header["img"]))
    method = Data2Vec(settings, Surroundings(model, view, (0.0, 0.0, 0.0), (1.0, 1.0, 1.0), (TokenShape(1, 1, 1.0, 1),)))
    student, teacher = part(tensors, "student/"), part(tensors, "teacher/")
    method.student.load_state_dict(encoder_state(student))
    method.head.load_state_dict(part(student, "lm_head."))
    method.teacher.encoder.load_state_dict(
        {name: value for name, value in encoder_state(teacher).items() if name != "mask_token"}
    )
    images, rows = tensors["images"], header["img"] // header["patch"]
    mask = TokenMask(tensors["mask"].bool(), (rows, rows))
    return method, Batch(torch.arange(len(images)), {VIEW: images[None]}, {VIEW: mask})


@torch.no_grad()
def test_outputs_of_the_teachers_blocks() -> None:
    tensors, header = read_golden("data2vec")
    method, _ = build(tensors, header)
    for branch, name in (("block", "end"), ("mlp", "fc")):
        outputs = method.teacher.encoder.block_outputs(tensors["images"], header["depth"], branch)  # type: ignore[arg-type]
        assert len(outputs) == header["depth"]
        for layer, output in enumerate(outputs):
            assert_close(output, tensors[f"teacher_out/{name}{layer}"])


@torch.no_grad()
def test_predictions() -> None:
    tensors, header = read_golden("data2vec")
    method, batch = build(tensors, header)
    mask = batch.masks[VIEW]
    assert isinstance(mask, TokenMask)
    predictions = method.head(method.student(tensors["images"], replace=mask.masked).patches)
    assert_close(predictions, tensors["student_out_all"])
    assert_close(predictions[mask.masked], tensors["student_out"])


@pytest.mark.parametrize("variant", VARIANTS)
def test_targets_and_loss(variant: str) -> None:
    tensors, header = read_golden("data2vec")
    assert set(VARIANTS) == set(header["variants"])
    method, batch = build(tensors, header, **VARIANTS[variant])
    probe = method.probe(batch, START)
    assert probe.targets is not None
    assert_close(probe.targets[:, 0, 0], tensors[f"variant/{variant}/targets"])
    assert_close(probe.loss, tensors[f"variant/{variant}/loss"], LOSS)
    assert_close(method(batch, START).total.detach(), tensors[f"variant/{variant}/loss"], LOSS)


def test_gradients() -> None:
    tensors, header = read_golden("data2vec")
    method, batch = build(tensors, header)
    method(batch, START).total.backward()
    expected = part(tensors, "variant/recipe/grad/")
    assert len(expected) == 3
    gradients = {name: value.grad for name, value in method.student.named_parameters()}
    gradients["lm_head.weight"] = method.head.weight.grad
    for name, value in expected.items():
        assert_gradient(gradients[name], value)
    keys = method.student.blocks[0].attn.qkv.bias.grad.chunk(3)[1]  # type: ignore[union-attr,operator]
    assert keys.abs().max() < 1e-7, "biases of keys, which the released code has not, change nothing"


def test_bare_distances() -> None:
    tensors, header = read_golden("data2vec")
    names = [name for name in tensors if name.startswith("bare/smooth_l1_beta")]
    assert len(names) == 5
    for name in names:
        method, _ = build(tensors, header, smooth_l1_beta=float(name.removeprefix("bare/smooth_l1_beta")))
        assert_close(method.distance(tensors["bare/pred"], tensors["bare/target"]), tensors[name], 1e-6)
    squared, _ = build(tensors, header, loss="l2")
    assert_close(
        squared.distance(tensors["bare/pred"], tensors["bare/target"]), F.mse_loss(tensors["bare/pred"], tensors["bare/target"])
    )
