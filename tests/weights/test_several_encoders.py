"""Several encoders in dictionaries of one file: the average is the target, and what is not read is said."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from openjepa.refusals import Refusal
from openjepa.weights.formats import load_any
from tests.helpers.foreign_weights import HEADS, encoder_of, weights

PAIRS = [
    ("model", "model_ema"),
    ("model", "ema"),
    ("state_dict", "ema_state_dict"),
    ("state_dict", "state_dict_ema"),
    ("net", "net_ema"),
    ("base", "momentum"),
    ("weights", "EMA-weights"),
    ("", "model_ema"),
    ("model.state_dict", "ema.module"),
]


def put(tree: dict[Any, Any], place: str, tensors: dict[str, Tensor]) -> None:
    """Into the dictionary inside dictionaries that `place` names."""
    for name in filter(None, place.split(".")):
        tree = tree.setdefault(name, {})
    tree.update(tensors)


@pytest.mark.parametrize(("trained", "averaged"), PAIRS)
@pytest.mark.parametrize("has_token", [False, True])
@pytest.mark.parametrize("is_first", [False, True])
def test_an_average_in_a_dictionary_of_its_own(
    trained: str, averaged: str, has_token: bool, is_first: bool, tmp_path: Path
) -> None:
    """It is the target, wherever it stands, as in one dictionary; the optimizer's averages of gradients are none."""
    parts = {trained: weights(has_token, "learned", seed=1), averaged: weights(has_token, "learned", seed=2)}
    tree: dict[Any, Any] = {"epoch": 3, "optimizer": {"ema": dict(weights(has_token, seed=5))}}
    for place in reversed(parts) if is_first else parts:
        put(tree, place, parts[place] | {"head.weight": torch.ones(2)})
    torch.save(tree, tmp_path / "a.pth")
    assert torch.equal(
        encoder_of(tmp_path / "a.pth", "target").patch_embed.proj.weight, parts[averaged]["patch_embed.proj.weight"]
    )
    assert torch.equal(
        encoder_of(tmp_path / "a.pth", "context").patch_embed.proj.weight, parts[trained]["patch_embed.proj.weight"]
    )
    loaded = load_any(tmp_path / "a.pth", HEADS)
    assert loaded.encoders == ("target", "context") and "target encoder" in loaded.what
    assert loaded.notes == ("not read: head.weight (1 tensor beside the encoder)",)


def test_the_average_of_a_mae_with_its_decoder(tmp_path: Path) -> None:
    decoder = {"decoder_blocks.0.norm1.weight": torch.ones(8), "mask_token": torch.ones(1, 1, 8)}
    torch.save({"model": weights(True, seed=1) | decoder, "model_ema": weights(True, seed=2) | decoder}, tmp_path / "a.pth")
    found = load_any(tmp_path / "a.pth", HEADS)
    assert torch.equal(found.encoder.patch_embed.proj.weight, weights(True, seed=2)["patch_embed.proj.weight"])
    assert found.config.positions == "sincos"


@pytest.mark.parametrize("names", [("model", "ema", "ema_slow"), ("model_ema", "a", "b"), ("teacher_a", "target_b")])
def test_averages_that_nothing_tells_apart_are_refused(names: tuple[str, ...], tmp_path: Path) -> None:
    torch.save({name: weights(seed=number) for number, name in enumerate(names)}, tmp_path / "a.pth")
    with pytest.raises(Refusal, match=rf"several encoders, in '{names[0]}', '{names[1]}'"):
        load_any(tmp_path / "a.pth", HEADS)


@pytest.mark.parametrize(
    ("names", "read", "said"),
    [
        (("model", "best_model"), "model", "not read: 'best_model', with another encoder"),
        (("first", "state_dict", "second"), "state_dict", "not read: 'first', 'second', with another encoder"),
        (("model", "model_ema", "best"), "model_ema", "not read: 'best', with another encoder"),
        (("teacher", "student", "model"), "teacher", "not read: 'model', with another encoder"),
        (("best", ""), "", "not read: 'best', with another encoder"),
    ],
)
@pytest.mark.parametrize("has_token", [False, True])
def test_other_encoders_of_a_file_are_said(
    names: tuple[str, ...], read: str, said: str, has_token: bool, tmp_path: Path
) -> None:
    if not has_token and "teacher" in names:
        pytest.skip("the names of programs with a class token")
    parts = {name: weights(has_token, "learned", seed=number) for number, name in enumerate(names)}
    tree: dict[Any, Any] = {}
    for name, tensors in parts.items():
        put(tree, name, tensors)
    torch.save(tree, tmp_path / "a.pth")
    found = load_any(tmp_path / "a.pth", HEADS)
    assert torch.equal(found.encoder.patch_embed.proj.weight, parts[read]["patch_embed.proj.weight"]) and found.notes == (said,)


@pytest.mark.parametrize("place", ["", "model"])
def test_names_that_are_numbers_and_values_that_are_no_tensors(place: str, tmp_path: Path) -> None:
    tree: dict[Any, Any] = {}
    put(tree, place, weights() | {0: torch.ones(2), "epoch": 3, 1: "x", "arguments": {"lr": 0.1}})  # type: ignore[dict-item]
    torch.save(tree, tmp_path / "a.pth")
    with pytest.raises(Refusal, match=r"left over 0$"):  # a name that the encoder could have
        load_any(tmp_path / "a.pth", HEADS)
    del (tree[place] if place else tree)[0]
    torch.save(tree, tmp_path / "a.pth")
    found = load_any(tmp_path / "a.pth", HEADS)
    assert torch.equal(found.encoder.patch_embed.proj.weight, weights()["patch_embed.proj.weight"]) and found.notes == ()
