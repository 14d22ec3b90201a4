"""Every method starts from weights: its encoders are the file's, bit for bit, and a run goes on without the file."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from openjepa.config import load_run_config
from openjepa.data.source import open_splits
from openjepa.engine.checkpoint import latest_checkpoint, load_weights
from openjepa.methods import METHODS
from openjepa.methods.base import Method
from openjepa.models.vit import VisionTransformer
from openjepa.schedules import Progress
from openjepa.settings.run import MonitorSettings, RunConfig
from openjepa.system.interrupts import Interrupted, Interrupts
from openjepa.training.init import Start, settled, start_method
from openjepa.training.loop import train
from openjepa.training.monitor import draw_batches
from openjepa.training.startup import build_method, default_view
from openjepa.weights.contents import weights_hash
from openjepa.weights.formats import WeightsChoice, load_any
from tests.helpers.foreign_weights import official, prefixed, weights, written
from tests.helpers.images import write_folder
from tests.helpers.small_runs import method_config, sampler

pytestmark = pytest.mark.parametrize("name", METHODS)
PROGRESS = Progress(step=5, total_steps=100, steps_per_epoch=4)
TOKENS = ("cls_token", "mask_token")
LEARNED = {
    "teacher": prefixed(weights(True, "learned", seed=4), "backbone."),
    "student": prefixed(weights(True, "learned", seed=5), "module.backbone."),
}
FILES = {
    "released": official(),
    "teacher and student": LEARNED,
    "one encoder": {"model": weights(True, seed=6)},
    "learned, without class token": {"state_dict": weights(positions="learned", seed=7)},
}
"""Contents by what is special about them; encoders of width 24 for 4x4 patches of 4 pixels."""


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_folder(tmp_path_factory.mktemp("images"), 24)


def started_config(name: str, images: Path, folder: Path, file: str) -> RunConfig:
    """A small run of a method at 32 pixels, thus 8x8 patches, that starts from a file."""
    config = method_config(name, images, folder, total_steps=2)
    path = written(folder / "weights.pth.tar", FILES[file])
    # what the recipe says of the model gives way
    return replace(config, run=replace(config.run, init=str(path), init_heads=3), monitor=MonitorSettings(every=0))


def built(config: RunConfig) -> Method:
    return build_method(config, default_view(config.data), sampler(config))


def started(config: RunConfig) -> tuple[RunConfig, Method, Start]:
    config, found = settled(config, (), fresh=False)
    method = built(config)
    start = start_method(method, config, found)
    assert start is not None
    return config, method, start


def check_equal(network: VisionTransformer, source: VisionTransformer) -> None:
    """All weights of the source, in bits; the network's own are only tokens and the position of a class token."""
    theirs = source.weights_for((8, 8))
    own = network.state_dict()
    assert set(own) - set(theirs) <= set(TOKENS) and set(theirs) <= set(own)
    for key, value in theirs.items():
        is_longer = key == "pos_embed" and network.config.class_token and not source.config.class_token
        assert torch.equal(own[key][:, 1:] if is_longer else own[key], value), key


@pytest.mark.parametrize("file", FILES)
def test_encoders_are_those_of_the_file(name: str, file: str, images: Path, tmp_path: Path) -> None:
    config, method, start = started(started_config(name, images, tmp_path, file))
    path = tmp_path / "weights.pth.tar"
    has_both = file in ("released", "teacher and student")
    target = load_any(path, WeightsChoice(heads=3)).encoder
    context = load_any(path, WeightsChoice("context", heads=3)).encoder if has_both else target
    encoders = method.encoders()
    if encoders.averaged is None:
        check_equal(encoders.trained, target)
    else:
        check_equal(encoders.trained, context)
        check_equal(encoders.averaged, target)
        assert all(not value.requires_grad for value in encoders.averaged.parameters())
    assert all(value.requires_grad for value in encoders.trained.parameters())
    assert start.hashes["encoder"] == weights_hash(target)
    assert (start.context is not None) == (has_both and encoders.averaged is not None)
    assert config.model.shape().width == 24 and config.model.shape().mlp_ratio == 2.0 and config.model.patch_size == 4
    assert config.model.class_token == (file in ("teacher and student", "one encoder") or config.method.needs_class_token)
    assert encoders.trained.config.image_size == (32, 32), "the images are the run's own"

    batches = draw_batches(config, method.inputs(), sampler(config), open_splits(config.data, 0), number=8, micro=8, seed=3)
    batch = batches[0].normalized(config.data.pixel_mean, config.data.pixel_std)
    loss = method(batch, PROGRESS).total
    loss.backward()
    assert loss.isfinite() and all(value.grad is not None for value in encoders.trained.blocks.parameters())


def test_what_the_weights_lack_is_new_and_said(name: str, images: Path, tmp_path: Path) -> None:
    """Tokens, heads and decoders are what they would be without weights."""
    config = started_config(name, images, tmp_path, "learned, without class token")
    config, method, start = started(config)
    plain = built(config).state_dict()
    own = method.state_dict()
    for part in start.new:
        mine = {key: value for key, value in own.items() if key.split(".")[0] == part}
        assert mine and all(torch.equal(value, plain[key]) for key, value in mine.items()), part
    filled = {key.split(".")[0] for key in own} - set(start.new)
    assert filled <= {"context_encoder", "target_encoder", "anchor_encoder", "encoder", "student", "teacher"}
    needed = [token for token in TOKENS if token in method.encoders().trained.state_dict()]
    said = " ".join(start.notes)
    for token, words in (("cls_token", "the class token and its position"), ("mask_token", "the mask token")):
        assert (words.split(" and ")[0] in said) == (token in needed)
        if token in needed:
            assert torch.equal(method.encoders().trained.state_dict()[token], plain_encoder(config, token))


def plain_encoder(config: RunConfig, token: str) -> Tensor:
    value: Tensor = built(config).encoders().trained.state_dict()[token]
    return value


def test_a_stopped_run_goes_on_bitwise_without_the_file(
    name: str, images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = "released" if name in ("ijepa", "mae") else "teacher and student"
    config = started_config(name, images, tmp_path, file)
    whole = train(replace(config, run=replace(config.run, name="whole")))
    with monkeypatch.context() as patch:
        patch.setattr(Interrupts, "__init__", lambda self: self.__dict__.update(requested="SIGTERM", _before={}))
        with pytest.raises(Interrupted, match="after step 1"):
            train(config)
    before = json.loads((tmp_path / "run" / "summary.json").read_text())["init"]
    (tmp_path / "weights.pth.tar").unlink()
    continued = train(config)
    assert whole is not None and continued is not None
    first, second = final_state(whole), final_state(continued)
    assert first.keys() == second.keys() and all(torch.equal(value, second[key]) for key, value in first.items())
    for record in ("summary.json", "environment.json"):
        assert json.loads((continued / record).read_text())["init"] == before
    assert train(config) == continued, "nor does a finished one need it"
    assert json.loads((continued / "summary.json").read_text())["init"] == before


def final_state(run: Path) -> dict[str, Tensor]:
    checkpoint = latest_checkpoint(run / "checkpoints")
    assert checkpoint is not None
    method = built(load_run_config(run))
    assert load_weights(checkpoint, method).step == 2
    return method.state_dict()
