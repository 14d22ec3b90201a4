"""Nothing in a file is executed, damaged and foreign files give clear errors, and large files cost little memory."""

import json
import pickle
import re
import sys
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from openjepa.weights import formats
from openjepa.weights.formats import WeightsChoice, load_any
from tests.helpers.foreign_weights import HEADS, Malicious, official, prefixed, transformers_folder, weights, written
from tests.helpers.processes import in_clean_process

# --------------------------------------------------------------------------------------------------------- foreign code


@pytest.mark.parametrize("kind", ["torch", "old torch", "beside weights", "pickle", "pytorch_model.bin"])
def test_code_in_a_file_is_not_executed(kind: str, tmp_path: Path) -> None:
    mark, path = tmp_path / "executed", tmp_path / "weights.pth.tar"
    evil = Malicious(mark)
    subject = path
    if kind == "pickle":
        path.write_bytes(pickle.dumps({"encoder": evil}))
    elif kind == "pytorch_model.bin":
        subject = transformers_folder(tmp_path / "hf")
        torch.save({"x": evil}, subject / "pytorch_model.bin")
    else:
        content = official() | {"opt": evil} if kind == "beside weights" else {"encoder": evil}
        torch.save(content, path, _use_new_zipfile_serialization=kind != "old torch")
    with pytest.raises(ValueError, match="openjepa executes nothing") as caught:
        load_any(subject, HEADS)
    assert not mark.exists()
    assert "weights_only" not in str(caught.value)  # torch's advice to switch the protection off
    assert kind == "pickle" or re.search(r"(posix|os|nt)\.system", str(caught.value))
    pickle.loads(pickle.dumps(evil))  # the test's own proof that it would have been
    assert mark.exists()


def test_a_whole_pickled_network_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "model.pth"
    torch.save(torch.nn.Linear(2, 2), path)
    with pytest.raises(ValueError, match=r"refused: it holds the Python object torch\.nn\.modules\.linear\.Linear"):
        load_any(path)


def test_objects_of_other_packages_are_refused(tmp_path: Path) -> None:
    path = written(tmp_path / "a.pth", {"model": weights(), "random": np.random.default_rng(0)})
    with pytest.raises(ValueError, match=r"refused: it holds the Python object numpy\.random"):
        load_any(path, HEADS)


# -------------------------------------------------------------------------------------------------------- damaged files


@pytest.mark.parametrize("name", ["a.pth.tar", "a.safetensors", "old.pth"])
@pytest.mark.parametrize("share", [0.02, 0.5, 0.97])
def test_a_truncated_file(name: str, share: float, tmp_path: Path) -> None:
    path = tmp_path / name
    if path.suffix == ".safetensors":
        save_file(weights(), path)
    else:
        torch.save(official(), path, _use_new_zipfile_serialization=name != "old.pth")
    data = path.read_bytes()
    path.write_bytes(data[: int(share * len(data))])
    with pytest.raises(ValueError, match=rf"{re.escape(str(path))} is damaged"):
        load_any(path, HEADS)


def test_what_is_no_file_of_weights(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "docs.zip", "w") as archive:
        archive.writestr("a.txt", "text")
    for name, content, message in (
        ("empty.pth", b"", "is empty"),
        ("page.pth", b"<!DOCTYPE html><html>", "is no file of weights"),
        ("pointer.pth", b"version https://git-lfs.github.com/spec/v1\noid sha256:0", "git lfs pull"),
        ("docs.zip", (tmp_path / "docs.zip").read_bytes(), "docs.zip is damaged"),
        (
            "plain.pkl",
            pickle.dumps([1, 2]),
            "was refused: it is written in a protocol of pickle that torch's safe reader does not know",
        ),
    ):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(ValueError, match=message):
            load_any(tmp_path / name)
    with pytest.raises(ValueError, match="holds a list, not a dictionary of weights"):
        load_any(written(tmp_path / "list.pth", [torch.ones(2)]))
    with pytest.raises(ValueError, match=r"absent\.pth does not exist"):
        load_any(tmp_path / "absent.pth")


# ---------------------------------------------------------------------------------------------------- what does not fit


def test_missing_and_left_over_keys_are_listed(tmp_path: Path) -> None:
    state = weights()
    state["tail.weight"] = state.pop("norm.weight")
    with pytest.raises(ValueError, match=r"a\.pth: missing norm\.weight; left over tail\.weight$"):
        load_any(written(tmp_path / "a.pth", state), HEADS)
    short = {name: value for name, value in weights().items() if not name.startswith("blocks.0.attn.qkv")}
    short["blocks.1.ls1.gamma"] = torch.ones(24)
    with pytest.raises(
        ValueError, match=r"missing blocks\.0\.attn\.qkv\.bias, blocks\.0\.attn\.qkv\.weight; left over blocks\.1\.ls1"
    ):
        load_any(written(tmp_path / "b.pth", {"model": short}), HEADS)


def test_other_shapes_are_listed(tmp_path: Path) -> None:
    state = weights() | {"blocks.1.norm1.weight": torch.ones(23), "norm.bias": torch.ones(24, dtype=torch.int64)}
    with pytest.raises(
        ValueError, match=r"of another shape blocks\.1\.norm1\.weight \[23\] float32 instead of \[24\]"
    ) as caught:
        load_any(written(tmp_path / "a.pth", state), HEADS)
    assert "norm.bias [24] int64" in str(caught.value)


def test_another_architecture(tmp_path: Path) -> None:
    resnet = {"conv1.weight": torch.ones(64, 3, 7, 7), "fc.bias": torch.ones(10)}
    with pytest.raises(ValueError, match=r"is of no known format. It holds conv1\.weight, fc\.bias.*official:.*dino:"):
        load_any(written(tmp_path / "a.pth", resnet))
    with pytest.raises(ValueError, match="It holds no tensors"):
        load_any(written(tmp_path / "b.pth", {"epoch": 3}))
    audio = weights() | {"patch_embed.proj.weight": torch.ones(24, 1, 4, 4)}
    with pytest.raises(ValueError, match="does not embed square patches of 3 channels"):
        load_any(written(tmp_path / "c.pth", audio), HEADS)
    odd = weights() | {"pos_embed": torch.ones(1, 15, 24)}
    with pytest.raises(ValueError, match=r"pos_embed \[1, 15, 24\] is no table of positions for a square"):
        load_any(written(tmp_path / "d.pth", odd), HEADS)


def test_half_a_released_checkpoint(tmp_path: Path) -> None:
    whole = official()
    path = written(tmp_path / "a.pth.tar", {name: part for name, part in whole.items() if name != "target_encoder"})
    with pytest.raises(ValueError, match=r"encoder='target': .*a\.pth\.tar has no target_encoder, only encoder, predictor"):
        load_any(path, HEADS)
    assert "context" in load_any(path, WeightsChoice(encoder="context", heads=3)).what
    whole["predictor"].pop("module.mask_token")
    whole["predictor"]["module.extra"] = torch.ones(1)
    with pytest.raises(ValueError, match=r"predictor: missing mask_token; left over extra"):
        load_any(written(tmp_path / "b.pth.tar", whole), HEADS)
    whole = official()
    whole["predictor"]["module.predictor_pos_embed"] = whole["predictor"]["module.predictor_pos_embed"] + 0.01
    with pytest.raises(ValueError, match="is not the fixed sin-cos table of the encoder's grid of 4x4"):
        load_any(written(tmp_path / "c.pth.tar", whole), HEADS)


def test_a_teacher_or_student_that_is_not_there(tmp_path: Path) -> None:
    path = written(tmp_path / "a.pth", {"teacher": prefixed(weights(True, "learned"), "backbone.")})
    with pytest.raises(ValueError, match=r"encoder='context': .* has no student or encoder, only teacher"):
        load_any(path, WeightsChoice(encoder="context", heads=3))
    for name, alone in (("dino", weights(True, "learned")), ("mae", weights(True)), ("timm", weights())):
        with pytest.raises(ValueError, match="holds one encoder only"):
            load_any(written(tmp_path / name, alone), WeightsChoice(encoder="context", heads=3))


# ------------------------------------------------------------------------------------------------------ half of a folder


def test_half_a_hugging_face_folder(tmp_path: Path) -> None:
    folder = transformers_folder(tmp_path / "no-weights")
    with pytest.raises(ValueError, match=r"lacks its weights: neither model\.safetensors.* only config\.json"):
        load_any(folder)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": "model-1.safetensors", "b": "../2"}}))
    with pytest.raises(ValueError, match=r"lacks files that .* lists: 2, model-1\.safetensors"):
        load_any(folder)
    bare = tmp_path / "no-config"
    bare.mkdir()
    save_file(weights(), bare / "model.safetensors")
    with pytest.raises(ValueError, match=r"has no config\.json"):
        load_any(bare)
    few = transformers_folder(tmp_path / "few")
    save_file({"layernorm.weight": torch.ones(24), "pooler.dense.weight": torch.ones(24, 24)}, few / "model.safetensors")
    with pytest.raises(ValueError, match=r"missing embeddings\.patch_embeddings\.projection\.bias, .*and 16 more$"):
        load_any(few)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"patch_size": None, "hidden_size": None}, "lacks hidden_size, patch_size"),
        ({"model_type": "swin"}, "says model_type 'swin'; of Hugging Face's models only 'ijepa', 'vit', 'dinov2' can be read"),
        ({"model_type": "dinov2_with_registers"}, "openjepa's encoder has no place for register tokens"),
        ({"model_type": "dinov2", "mlp_ratio": 4, "use_swiglu_ffn": True}, "says use_swiglu_ffn True; only False"),
        ({"model_type": "dinov2", "mlp_ratio": None}, "lacks mlp_ratio"),
        ({"hidden_act": "gelu_new"}, "says hidden_act 'gelu_new'; only 'gelu'"),
        ({"qkv_bias": False}, "says qkv_bias False; only True"),
        ({"num_hidden_layers": "12"}, "num_hidden_layers='12' must be a whole number"),
        ({"image_size": 18}, "the patch size 4 of the encoder does not divide image_size=18x18: use image_size=16"),
    ],
)
def test_settings_of_hugging_face_that_do_not_fit(changed: dict[str, Any], message: str, tmp_path: Path) -> None:
    folder = transformers_folder(tmp_path / "hf", **changed)
    save_file({"layernorm.weight": torch.ones(24)}, folder / "model.safetensors")
    with pytest.raises(ValueError, match=re.escape(message)):
        load_any(folder)


@pytest.mark.parametrize("text", ["{", "[1]", '{"width": 3}'])
def test_config_json_of_no_format(text: str, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(ValueError, match=r"not valid JSON|is no JSON object|config\.json of no known format: it has width"):
        load_any(tmp_path)


# --------------------------------------------------------------------------------------------------------------- the Hub


def test_names_on_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs").mkdir()
    huggingface_hub = pytest.importorskip("huggingface_hub", reason="needs huggingface_hub")
    save_file(weights(), transformers_folder(tmp_path / "cached", model_type="swin") / "model.safetensors")
    asked = []

    def snapshot(name: str, allow_patterns: list[str]) -> str:
        asked.append((name, allow_patterns))
        if name.startswith("nobody"):
            raise OSError("401 Client Error\nmore")
        return str(tmp_path / "cached")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot)
    with pytest.raises(ValueError, match=r"cached.config\.json says model_type 'swin'"):
        load_any("facebook/ijepa_vith14_1k")
    assert asked == [("facebook/ijepa_vith14_1k", formats.FILES)]
    with pytest.raises(ValueError, match=r"could not be had from the Hugging Face Hub: 401 Client Error$"):
        load_any("nobody/nothing")


def test_the_hub_needs_its_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(ValueError, match=r"pip install 'openjepa\[hub\]'"):
        load_any("facebook/ijepa_vith14_1k")


# ---------------------------------------------------------------------------------------------------------------- memory


def kilobytes(name: str) -> int:
    found = re.search(rf"{name}:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert found is not None
    return int(found[1])


def print_growth(small: Path, large: Path) -> None:
    """Bytes by which reading a file makes the peak grow, and bytes of the encoder."""
    load_any(small, WeightsChoice(heads=8))  # whatever is loaded once
    before = kilobytes("VmRSS")
    encoder = load_any(large, WeightsChoice(heads=8)).encoder
    print((kilobytes("VmHWM") - before) * 1024, sum(value.numel() * 4 for value in encoder.parameters()), flush=True)


def wide_weights(width: int, depth: int) -> dict[str, torch.Tensor]:
    """An encoder of `width`, of zeros: what is in it does not matter."""
    state = {
        "patch_embed.proj.weight": (width, 3, 4, 4),
        "patch_embed.proj.bias": (width,),
        "pos_embed": (1, 16, width),
        "norm.weight": (width,),
        "norm.bias": (width,),
    }
    for block in range(depth):
        for name, inputs, outputs in (("attn.qkv", 1, 3), ("attn.proj", 1, 1), ("mlp.fc1", 1, 4), ("mlp.fc2", 4, 1)):
            state[f"blocks.{block}.{name}.weight"] = (outputs * width, inputs * width)
            state[f"blocks.{block}.{name}.bias"] = (outputs * width,)
        for name in ("norm1", "norm2"):
            state |= {f"blocks.{block}.{name}.{kind}": (width,) for kind in ("weight", "bias")}
    return {name: torch.ones(shape) for name, shape in state.items()}


@pytest.mark.skipif(sys.platform != "linux", reason="needs /proc")
@pytest.mark.parametrize("name", ["large.pth", "large.safetensors"])
def test_peak_memory_is_below_1_3_of_the_tensors(name: str, tmp_path: Path) -> None:
    """A file of 75 MB that is nothing but the encoder: the worst case, since nothing in it can be left unread."""
    small, large = written(tmp_path / "small.pth", wide_weights(64, 1)), wide_weights(512, 6)
    save = save_file if name.endswith("safetensors") else torch.save
    save(large, tmp_path / name)
    size = sum(value.numel() * 4 for value in large.values())
    assert size > 70e6
    process = in_clean_process(print_growth, small, tmp_path / name, log=tmp_path / "log")
    process.join(120)
    assert process.exitcode == 0
    growth, loaded = map(int, (tmp_path / "log").read_text().split())
    assert loaded == size
    assert 0.9 * size < growth < 1.3 * size
