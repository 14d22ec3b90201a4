"""What a run that is started again finds: its own settings, data and machine, or an error that says what has changed."""

import json
import shutil
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from openjepa.engine import checkpoint
from openjepa.engine.checkpoint_files import write_manifest
from openjepa.engine.run_folder import RunFolder
from openjepa.experiments.energies import bench_energy
from openjepa.methods import mae
from openjepa.methods.ijepa import IJepa
from openjepa.refusals import Refusal
from openjepa.settings.experiments import EnergyBench
from openjepa.settings.masks import RandomPatchesSettings
from openjepa.settings.methods import MaeSettings
from openjepa.settings.run import RunConfig
from openjepa.system.interrupts import Interrupted, Interrupts
from openjepa.training import loop
from openjepa.training.loop import train
from tests.helpers.images import shape_image, write_folder
from tests.helpers.small_runs import lines, small_config, weights


@pytest.fixture
def images(tmp_path: Path) -> Path:
    return write_folder(tmp_path / "images", 40)


@pytest.fixture
def interrupted(images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> RunConfig:
    """The settings of a run that was stopped after its first step."""
    config = small_config(images, tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(Interrupts, "__init__", lambda self: self.__dict__.update(requested="SIGTERM", _before={}))
        with pytest.raises(Interrupted):
            train(config)
    return config


def summary(run: Path) -> dict[str, object]:
    return dict(json.loads((run / "summary.json").read_text()))


def fail(*arguments: object, **named: object) -> None:
    raise MemoryError


@pytest.mark.parametrize("place", ["loader", "first step"])
def test_a_run_that_fails_before_its_first_step_takes_its_remedy(
    images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    config = small_config(images, tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(*((loop, "TrainingLoader") if place == "loader" else (IJepa, "forward")), fail)
        with pytest.raises(ValueError, match=r"--optim\.microbatch-size 4"):
            train(config)
    failed = summary(tmp_path / "run")
    assert failed["status"] == "failed" and failed["step"] == 0 and str(failed["error"]).startswith("out of memory")
    remedied = replace(config, optim=replace(config.optim, microbatch_size=4), data=replace(config.data, cache="none"))
    remedied = replace(remedied, model=replace(remedied.model, depth=1))
    run = train(remedied)
    assert run == tmp_path / "run" and summary(run)["status"] == "finished"
    initial = json.loads((run / "encoder_initial" / "config.json").read_text())
    assert initial["depth"] == 1, "not the untrained encoder of the settings that failed"


def test_the_folder_is_free_after_any_failure(images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = small_config(images, tmp_path)
    for name in ("build_optimizer", "run_identity", "RunLog", "Monitor"):
        with monkeypatch.context() as patch:
            patch.setattr(loop, name, fail)
            with pytest.raises((MemoryError, ValueError)) as error:  # its traceback would hold the lock's frame
                train(config)
        assert "another process" not in str(error.value)
    assert train(config) is not None


def add_image(images: Path) -> None:
    shape_image(99).save(images / "disk" / "new.png")


def rename_image(images: Path) -> None:
    first = sorted((images / "disk").iterdir())[0]
    first.rename(first.with_name("other.png"))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (add_image, r"32 training images when the run began, 33 now.*--fresh"),
        (rename_image, r"as many training images \(32\) .* other names.*Restore"),
    ],
)
def test_other_images_are_noticed(interrupted: RunConfig, images: Path, change: Callable[[Path], None], message: str) -> None:
    change(images)
    with pytest.raises(ValueError, match=message):
        train(interrupted)


def test_a_checkpoint_of_an_older_version_is_continued(interrupted: RunConfig, tmp_path: Path, images: Path) -> None:
    (saved,) = (tmp_path / "run" / "checkpoints").iterdir()
    state = json.loads((saved / "trainer.json").read_text())
    assert state.pop("identity")["total_steps"] == 4
    (saved / "trainer.json").write_text(json.dumps(state))
    write_manifest(saved, {})
    run = train(interrupted)
    reference = train(small_config(images, tmp_path / "reference"))
    assert run is not None and reference is not None
    assert all(torch.equal(weights(run)[name], value) for name, value in weights(reference).items())
    assert checkpoint.read_state(sorted((run / "checkpoints").iterdir())[-1]).identity is not None


def test_another_precision_is_refused_and_other_threads_are_noted(
    interrupted: RunConfig, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = (tmp_path / "run" / "config.yaml").read_bytes()
    with pytest.raises(ValueError, match=r"cpu in fp32.*cpu in bf16.*--run\.precision fp32"):
        train(replace(interrupted, run=replace(interrupted.run, precision="bf16")))
    assert (tmp_path / "run" / "config.yaml").read_bytes() == before
    file = tmp_path / "run" / "environment.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "torch": "1.0"}))
    assert train(interrupted) is not None
    assert "note: torch was 1.0 and is now" in capsys.readouterr().out


def test_lost_checkpoints_do_not_cost_the_encoder(interrupted: RunConfig, tmp_path: Path) -> None:
    run = tmp_path / "run"
    (saved,) = (run / "checkpoints").iterdir()
    (saved / "trainer.json").write_text("{}")
    files = [run / "metrics.jsonl", run / "encoder" / "model.safetensors", run / "summary.json"]
    before = [file.read_bytes() for file in files]
    for _ in range(2):
        with pytest.raises(ValueError, match=r"no checkpoint that can be used.*--fresh"):
            train(interrupted)
        assert [file.read_bytes() for file in files] == before and saved.is_dir(), "nothing was changed"
    assert train(interrupted, fresh=True) == tmp_path / "run-2"


def test_a_run_killed_before_its_first_checkpoint_starts_again(
    interrupted: RunConfig, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.rmtree(tmp_path / "run" / "checkpoints")
    shutil.rmtree(tmp_path / "run" / "encoder")
    run = train(interrupted)
    assert run is not None and "was stopped after step 1, before its first checkpoint" in capsys.readouterr().out
    assert [line["step"] for line in lines(run, "train")] == [1, 2, 3, 4]


def test_a_repeated_finished_run_stays_as_it_is(images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = small_config(images, tmp_path)
    run = train(config)
    assert run is not None
    environment = (run / "environment.json").read_bytes()
    written: list[object] = []
    write = RunFolder.write_json

    def recorded(self: RunFolder, name: str, content: dict[str, object]) -> None:
        written.append((name, content.get("status")))
        write(self, name, content)

    monkeypatch.setattr(RunFolder, "write_json", recorded)
    assert train(config) == run
    assert written == [("summary.json", "finished")] and (run / "environment.json").read_bytes() == environment
    monkeypatch.setattr(loop, "Monitor", fail)
    with pytest.raises(ValueError, match="out of memory"):
        train(config)
    assert summary(run)["status"] == "finished"


def test_a_rank_that_was_not_finite_does_not_stop_a_continued_run(interrupted: RunConfig, tmp_path: Path) -> None:
    log = tmp_path / "run" / "metrics.jsonl"
    found = [json.loads(line) for line in log.read_text().splitlines()]
    log.write_text("".join(json.dumps(line | ({"rankme": None} if "rankme" in line else {})) + "\n" for line in found))
    run = train(replace(interrupted, monitor=replace(interrupted.monitor, every=0)))
    assert run is not None
    monitor = summary(run)["monitor"]
    assert isinstance(monitor, dict) and monitor["rankme"] is None and monitor["cosine"] is not None


def test_a_missing_tensorboard_is_found_before_the_data_is_read(
    images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = small_config(images, tmp_path)
    monkeypatch.setattr(loop, "open_splits", fail)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"system\.tensorboard=True needs the package tensorboard"):
        train(replace(config, system=replace(config.system, tensorboard=True)))


@pytest.mark.parametrize("part", ["decoder of another shape", "weights that are missing"])
@pytest.mark.parametrize("is_finished", [True, False])
def test_networks_of_another_version_are_refused_and_nothing_is_changed(
    images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, part: str, is_finished: bool
) -> None:
    """MAE's decoder had a ratio of 4 whatever the encoder's was; another version may lack weights."""
    config = small_config(images, tmp_path)
    method, masks = MaeSettings(decoder_width=24, decoder_depth=1, decoder_heads=3), RandomPatchesSettings()
    config = replace(config, model=replace(config.model, mlp_ratio=2.0), method=method, masks=masks)
    with monkeypatch.context() as patch:
        if part == "decoder of another shape":
            now = mae._decoder_config
            patch.setattr(mae, "_decoder_config", lambda *given: replace(now(*given), mlp_ratio=4.0))
        if not is_finished:
            patch.setattr(Interrupts, "__init__", lambda self: self.__dict__.update(requested="SIGTERM", _before={}))
        with suppress(Interrupted):
            train(config)
    if part == "weights that are missing":
        add = torch.nn.Module.register_parameter
        build = mae.Decoder.__init__

        def built(self: mae.Decoder, *given: Any) -> None:
            build(self, *given)
            add(self, "more", torch.nn.Parameter(torch.zeros(3)))

        monkeypatch.setattr(mae.Decoder, "__init__", built)
    expected = {
        "decoder of another shape": r"decoder\.blocks\.0\.mlp\.fc1\.weight of its checkpoint step_0000000\d has the shape "
        r"\[96, 24\], and the settings give \[48, 24\]",
        "weights that are missing": r"decoder\.more of its checkpoint step_0000000\d is missing",
    }
    before = summary(tmp_path / "run")
    with pytest.raises(Refusal, match=rf"{tmp_path / 'run'} cannot be continued: {expected[part]}.* --fresh or --run\.name"):
        train(config)
    assert summary(tmp_path / "run") == before
    with pytest.raises(Refusal, match=expected[part]):
        bench_energy(EnergyBench(run=tmp_path / "run", images=8, batch_size=4))
    assert train(config, fresh=True) == tmp_path / "run-2"
