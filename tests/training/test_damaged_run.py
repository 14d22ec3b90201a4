"""Files of a run folder that are damaged: a Refusal that names the file, or what is left of a log. Never another error."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from openjepa.config import number, read_object, readable, typed
from openjepa.engine import checkpoint
from openjepa.engine.checkpoint_files import write_manifest
from openjepa.engine.run_folder import RunLog, logged_step_seconds, logged_steps, open_run_folder
from openjepa.refusals import Refusal
from openjepa.settings.models import PredictorConfig
from openjepa.settings.run import RunConfig
from openjepa.training.loop import train
from openjepa.visualization.view_pictures import read_views
from tests.helpers.images import write_folder
from tests.helpers.small_runs import lines, small_config

DAMAGES = {
    "cut": b'{"device": "cpu", "precis',
    "other encoding": b"\xff\xfe\x00",
    "a list": b"[]",
    "null": b"null",
    "too deep": b"[" * 100_000,
    "a number too long": b'{"device": ' + b"9" * 5000 + b"}",
    "a folder": None,
}


def damage(file: Path, content: bytes | None) -> None:
    if content is None:
        file.unlink()
        file.mkdir()
    else:
        file.write_bytes(content)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> RunConfig:
    folder = tmp_path_factory.mktemp("finished")
    config = small_config(write_folder(folder / "images", 16), folder, total_steps=2)
    train(config)
    return config


@pytest.fixture
def run(finished: RunConfig, tmp_path: Path) -> Path:
    """A copy of the finished run, to be damaged; its settings go to `again`."""
    return Path(shutil.copytree(Path(finished.run.output) / "run", tmp_path / "run"))


def again(config: RunConfig, run: Path) -> None:
    train(replace(config, run=replace(config.run, output=str(run.parent))))


@pytest.mark.parametrize("name", ["environment.json", "summary.json"])
@pytest.mark.parametrize("content", DAMAGES.values(), ids=DAMAGES)
def test_what_a_continued_run_reads(name: str, content: bytes | None, finished: RunConfig, run: Path) -> None:
    damage(run / name, content)
    with pytest.raises(Refusal, match=rf"run/{name} (is not valid JSON|is no JSON object|cannot be read).*delete it$"):
        again(finished, run)
    if content is not None:  # the remedy holds, and the lock was given back
        (run / name).unlink()
        again(finished, run)


@pytest.mark.parametrize("content", DAMAGES.values(), ids=DAMAGES)
def test_a_manifest_that_is_none(content: bytes | None, run: Path, caplog: pytest.LogCaptureFixture) -> None:
    damage(run / "checkpoints" / "step_00000002" / "manifest.json", content)
    assert checkpoint.latest_checkpoint(run / "checkpoints") is None and "no readable manifest" in caplog.text


@pytest.mark.parametrize("value", [3, None, "x", {"b": [None]}, [1], [1, 2], ["a", "b"], [True, "x"], [1, "x", 2]])
def test_a_manifest_of_anything_but_sizes_and_checksums(value: object, run: Path, caplog: pytest.LogCaptureFixture) -> None:
    (run / "checkpoints" / "step_00000002" / "manifest.json").write_text(json.dumps({"trainer.json": value}))
    assert checkpoint.latest_checkpoint(run / "checkpoints") is None and "no readable manifest" in caplog.text


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"[]", "is no JSON object, but a list"),
        (b"{}", "lacks step, position"),
        (b'{"step": "2", "position": {}}', "step='2' must be a whole number"),
        (b'{"step": 2, "position": [1]}', r"position must be a mapping of settings"),
        (b'{"step": 2, "position": {}, "identity": 3}', "identity must be a mapping"),
    ],
)
def test_the_state_of_the_trainer(content: bytes, message: str, finished: RunConfig, run: Path) -> None:
    folder = run / "checkpoints" / "step_00000002"
    (folder / "trainer.json").write_bytes(content)
    write_manifest(folder, {})  # of the damaged file, so that its checksum is right
    with pytest.raises(Refusal, match=rf"trainer\.json {message}|trainer\.json is damaged: {message}"):
        again(finished, run)


def test_damaged_lines_of_the_logs_are_dropped(finished: RunConfig, run: Path) -> None:
    log, skipped = run / "metrics.jsonl", run / "skipped.jsonl"
    before = lines(run, "train")
    seconds = logged_step_seconds(run, 2)
    damaged = b'\xff\xfe\n[]\n3\n{"step": 1, "kind": "train", "ima\n{"kind": "train"}\n' + b"[" * 100_000 + b"\n"
    log.write_bytes(damaged + log.read_bytes() + damaged)
    skipped.write_bytes(b'{"name": "a.jpg", "step": 1, "reason": "x"}\n\xff\n{"step": 1}\n[]\n')
    assert logged_steps(run) == 2 and logged_step_seconds(run, 2) == seconds > 0
    kept = RunLog(run, 2, tensorboard=False)
    assert kept.read("train") == before and kept.skipped_names() == ["a.jpg"]
    kept.close()
    assert lines(run, "train") == before  # and every line of the file can be read
    again(finished, run)


@pytest.mark.parametrize("views", [3, [1], {"global": 3}, {"global": {"colors": 3}}, {"global": {}}])
def test_views_that_no_training_writes(views: object, run: Path) -> None:
    (run / "summary.json").write_text(json.dumps({"views": views}))
    with pytest.raises(Refusal, match=r"summary\.json has views that no training writes"):
        read_views(run)


def test_numbers_of_a_summary_that_are_none(finished: RunConfig, run: Path) -> None:
    found = json.loads((run / "summary.json").read_text())
    (run / "summary.json").write_text(json.dumps(found | {"seconds": "x", "peak_memory_bytes": [1]}))
    again(finished, run)


def test_another_device_in_words_of_another_type(finished: RunConfig, run: Path) -> None:
    (run / "environment.json").write_text('{"device": 3, "precision": [1]}')
    config = replace(finished, run=replace(finished.run, output=str(run.parent)))
    with pytest.raises(Refusal, match=r"holds a run on 3 in \[1\]"):
        open_run_folder(config, False, torch.device("cpu"), "fp32")


def test_what_the_reader_gives(tmp_path: Path) -> None:
    file = tmp_path / "x.json"
    assert read_object(file) is None and read_object(file / "below") is None
    file.write_text('{"name": "häß"}', encoding="utf-8")
    assert read_object(file) == {"name": "häß"} and read_object(file / "below") is None
    assert readable('{"a": 1}') == {"a": 1} and readable("[1]") is None and readable("") is None
    assert [number(value) for value in (1, 2.5, True, "3", None, float("nan"), float("inf"), 10**400)] == [
        1.0,
        2.5,
        *[None] * 6,
    ]
    sizes = {"encoder_width": 8, "width": 4, "depth": 1, "heads": 1, "grid": [2, 3], "mask_mode": "x"}
    made = typed(PredictorConfig, sizes, file)
    assert made == PredictorConfig(encoder_width=8, width=4, depth=1, heads=1, grid=(2, 3))
    with pytest.raises(Refusal, match=r"x\.json is damaged: grid=\[2\] must have 2 values; export it again"):
        typed(PredictorConfig, sizes | {"grid": [2]}, file, "export it again")
