"""MSN's loss, Sinkhorn, encoder with dropped patches, small crops and four training steps against the released code."""

from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor

from openjepa.masks.sampler import TokenShape
from openjepa.methods.assignment import assignments
from openjepa.methods.base import Surroundings
from openjepa.methods.msn import Msn, assignment_terms, sinkhorn, smoothed_logits
from openjepa.models.heads import Prototypes
from openjepa.models.transformer import resampled_positions
from openjepa.models.vit import VisionTransformer, build_encoder
from openjepa.schedules import Progress, momentum, sharpening
from openjepa.settings.methods import MsnSettings
from openjepa.settings.run import OptimizationSettings
from openjepa.types import Batch, TokenMask, ViewSpec
from tests.helpers.parity import LOSS, SCHEDULE, assert_close, assert_gradient, assert_trained, part, read_golden
from tests.helpers.parity_steps import assert_steps, class_token_model

STRETCH = 1.25
VARIANTS: dict[str, dict[str, Any]] = {
    "plain": {},
    "sinkhorn": {"sinkhorn": True},
    "no_memax": {"counts_memax": False},
    "weights": {"sinkhorn": True},
    "label_smoothing": {"smoothing": 0.1},
}
HEAD_NAMES = {"fc1": "mlp.0", "bn1": "mlp.1", "fc2": "mlp.3", "bn2": "mlp.4", "fc3": "mlp.6"}
RUNNING = ("running_mean", "running_var", "num_batches_tracked")


def encoder_weights(theirs: dict[str, Tensor]) -> dict[str, Tensor]:
    return {key: value for key, value in theirs.items() if not key.startswith("fc.")}


def head_name(theirs: str) -> str:
    layer, _, last = theirs.partition(".")
    return f"{HEAD_NAMES[layer]}.{last}"


def head_weights(theirs: dict[str, Tensor]) -> dict[str, Tensor]:
    """Without the running statistics, which nothing reads."""
    return {head_name(key): value for key, value in part(theirs, "fc.").items() if not key.endswith(RUNNING)}


@pytest.mark.parametrize("name", VARIANTS)
def test_losses_and_gradients(name: str) -> None:
    golden, header = read_golden("msn")
    case, weights, variant = part(golden, f"{name}/"), header["variants"][name], VARIANTS[name]
    prototypes = Prototypes(*golden["prototypes"].shape)
    prototypes.load_state_dict({"weight": golden["prototypes"]})
    anchors = golden["anchors"].clone().requires_grad_()

    def logits(points: Tensor) -> Tensor:
        return smoothed_logits(prototypes(points) / header["tau"], variant.get("smoothing", 0.0))

    with torch.no_grad():
        targets = assignments(logits(golden["targets"]), header["T"])
        if variant.get("sinkhorn"):
            targets = sinkhorn(targets, header["sinkhorn_iterations"])
    assert_close(targets.repeat(header["V"], 1), case["target_probs"])
    terms = assignment_terms(targets, logits(anchors.unflatten(0, (header["V"], -1))))
    memax_weight = weights["memax_weight"] if variant.get("counts_memax", True) else 0.0
    total = terms.ce + memax_weight * terms.me_max + weights["ent_weight"] * terms.entropy
    total.backward()
    assert_close(terms.ce.detach(), case["ce"], LOSS)
    assert_close(total.detach(), case["total"], LOSS)
    if variant.get("counts_memax", True):  # recorded as 0 where it is off
        assert_close(terms.me_max.detach(), case["me_max"], LOSS)
    if weights["ent_weight"]:
        assert_close(terms.entropy.detach(), case["entropy"], LOSS)
    assert_gradient(anchors.grad, case["grad_anchors"])
    assert_gradient(prototypes.weight.grad, case["grad_prototypes"])


@torch.no_grad()
def test_assignments_and_their_balance() -> None:
    golden, header = read_golden("msn")
    prototypes = Prototypes(*golden["prototypes"].shape)
    prototypes.load_state_dict({"weight": golden["prototypes"]})
    assert_close((prototypes(golden["anchors"]) / header["tau"]).softmax(dim=-1), golden["anchor_probs"])
    assert_close((prototypes(golden["targets"]) / header["tau"]).softmax(dim=-1), golden["target_probs_unsharpened"])
    assert_close(sinkhorn(golden["bare_sinkhorn/in"], header["sinkhorn_iterations"]), golden["bare_sinkhorn/out"])


@torch.no_grad()
def test_encoder_with_dropped_patches_and_of_a_small_crop() -> None:
    golden, header = read_golden("msn")
    encoder: VisionTransformer = build_encoder(class_token_model(header).encoder((48, 48), (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)))
    encoder.load_state_dict(part(golden, "vit/params/"))
    images, permutation = golden["vit/images"], golden["vit/perm"]
    kept = permutation[: int(36 * 0.7)]
    for order in (kept, kept.sort().values):  # theirs, and ours
        dropped = encoder(images, order.expand(len(images), -1)).class_token
        assert_close(dropped, golden["vit/cls_drop0.3"])
    assert_close(encoder(images).class_token, golden["vit/cls"])
    assert_close(encoder(golden["vit/images_focal"]).class_token, golden["vit/cls_focal"])
    assert encoder.pos_embed is not None
    small = resampled_positions(encoder.pos_embed[0, 1:], (6, 6), (3, 3), 0.0)
    assert_close(small, golden["vit/pos_focal"][0, 1:])


def test_schedules() -> None:
    golden, header = read_golden("schedules")
    case, recorded = header["cases"]["msn"], part(golden, "msn/")
    length = case["epochs"] * case["steps_per_epoch"]
    for row, step in enumerate(recorded["index"].tolist()):
        progress = Progress(step, length, case["steps_per_epoch"], stretch=STRETCH)
        assert momentum(0.996, 1.0, progress) == pytest.approx(recorded["momentum"][row].item(), abs=SCHEDULE)
        found = sharpening(case["start_T"], case["final_T"], progress)
        assert found == pytest.approx(recorded["T"][row].item(), abs=SCHEDULE)


def build_method(header: dict[str, Any]) -> Msn:
    settings = MsnSettings(
        masked_views=header["rand_views"],
        local_crops=header["focal_views"],
        local_size=24,
        prototypes=header["K"],
        output_width=header["out"],
        head_hidden=header["hid"],
        temperature=header["tau"],
        sharpening_start=header["start_T"],
        sharpening_end=header["final_T"],
        sinkhorn=header["sinkhorn"],
        mean_entropy_weight=header["memax_weight"],
    )
    shapes = (TokenShape(context=30, target=6, probability=1.0, num_targets=1),)
    return Msn(
        settings, Surroundings(class_token_model(header), ViewSpec(size=(48, 48)), (0.0, 0.0, 0.0), (1.0, 1.0, 1.0), shapes)
    )


def batch_of(golden: dict[str, Tensor], header: dict[str, Any], step: int) -> Batch:
    """View 0 is the target, view 1 loses all but the first patches of the step's permutation, the others are small."""
    crops = [golden[f"step{step}/view{number}"] for number in range(2 + header["focal_views"])]
    masked = torch.ones(len(crops[0]), 36, dtype=torch.bool)
    masked[:, golden[f"step{step}/perm"][:30]] = False
    views = {"target": crops[0][None], "anchor": crops[1][None], "local": torch.stack(crops[2:])}
    return Batch(torch.arange(len(crops[0])), views, {"anchor": TokenMask(masked, (6, 6), num_masked=6)})


def fill(method: Msn, weights: dict[str, Tensor]) -> None:
    """The same weights for both networks."""
    theirs = part(weights, "encoder/")
    for encoder in (method.anchor_encoder, method.target_encoder.network):
        encoder.load_state_dict(encoder_weights(theirs))
    for head in (method.anchor_head, method.target_head.network):
        head.load_state_dict(head_weights(theirs))
    method.prototypes.load_state_dict({"weight": weights["prototypes"]})


def test_four_training_steps() -> None:
    """All terms, rates, momentum, sharpening and all weights; prototypes are neither decayed nor clipped."""
    golden, header = read_golden("msn_train")
    method = build_method(header)
    fill(method, part(golden, "init/"))
    optim = OptimizationSettings(
        lr=header["lr"],
        start_lr=header["start_lr"],
        final_lr=header["final_lr"],
        warmup_epochs=header["warmup"],
        weight_decay=header["wd"],
        final_weight_decay=header["final_wd"],
        weight_decay_schedule="cosine",
        schedule_stretch=STRETCH,
        clip_grad=header["clip"],
    )
    terms, committed = {"ce": "ce", "me_max": "me_max"}, {"momentum": "momentum", "sharpening": "T"}
    assert_steps(method, optim, golden, header, partial(batch_of, golden, header), terms, committed)
    compare_weights(method, golden, header["final_fp32_vs_partly_fp64_max_abs"])


def compare_weights(method: Msn, golden: dict[str, Tensor], noise: dict[str, float]) -> None:
    """Encoder, head and prototypes, and the moving averages, under their names."""
    rates = golden["rec/lr"]
    networks = {
        "encoder": (method.anchor_encoder, method.anchor_head, 5e-5),
        "target_encoder": (method.target_encoder.network, method.target_head.network, 2e-6),
    }
    for name, (encoder, head, allowed) in networks.items():
        theirs = part(golden, f"final/{name}/")
        own_noise = part(noise, f"{name}/")  # type: ignore[arg-type]
        renamed = {f"fc.{key}": f"fc.{head_name(key)}" for key in part(theirs, "fc.") if not key.endswith(RUNNING)}
        expected = encoder_weights(theirs) | {ours: theirs[key] for key, ours in renamed.items()}
        found = encoder.state_dict() | {f"fc.{key}": value for key, value in head.state_dict().items()}
        assert_trained(found, expected, own_noise | {ours: own_noise[key] for key, ours in renamed.items()}, rates, allowed)
    prototypes = method.prototypes.weight.detach()
    assert_trained({"prototypes": prototypes}, {"prototypes": golden["final/prototypes"]}, noise, rates, 5e-5)
