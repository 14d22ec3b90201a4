"""Files that a person names and that are damaged give one message with the file's name, never a traceback."""

from pathlib import Path

import numpy as np
import pytest

from openjepa.cli import main
from openjepa.config import load_run_config, load_yaml
from openjepa.refusals import Refusal
from tests.helpers.feature_tables import write_table

YAML_FILES = {
    "no date": b"optim: {lr: 2020-13-45}\n",
    "no time": b"optim: {lr: !!timestamp x}\n",
    "no number": b"optim: {lr: !!int x}\n",
    "other encoding": b"recipe: caf\xe9\n",
    "zeros": b"\0\0\0",
    "too deep": b"a: " + b"[" * 3000,
    "an object": b"a: !!python/object:os.system x\n",
    "no anchor": b"a: *x\n",
    "no mapping to merge": b"<<: 3\n",
    "keys of lists": b"? [a, b]\n: 3\n",
    "empty": b"",
    "a list": b"- 1\n",
    "a list as a name": b"method: {name: [1]}\n",
    "a mapping as a name": b"data: {source: {a: 1}}\n",
    "null as a group": b"data: null\n",
    "a group twice": b"model: {size: test}\nrecipe: x\nmodel: {size: nano}\n",
    "a setting twice": b"model: {size: test, size: nano}\n",
    "a setting twice, once quoted": b"optim:\n  lr: 1\n  'lr': 2\n",
    "numbers as keys": b"optim: {1: 2}\n",
    "a number beyond floats": b"optim: {lr: 1" + b"0" * 400 + b"}\n",
    "no whole number": b"run: {seed: .inf}\n",
}


@pytest.mark.parametrize("content", YAML_FILES.values(), ids=YAML_FILES)
def test_a_damaged_configuration(content: bytes, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "config.yaml"
    file.write_bytes(content)
    with pytest.raises(Refusal, match=r"config\.yaml"):
        load_run_config(tmp_path)
    for command in (["train", "--config", str(file), "--dry-run"], ["evaluate", str(tmp_path)]):
        with pytest.raises(SystemExit) as stopped:
            main(command)
        assert stopped.value.code == 2 and str(file) in capsys.readouterr().err


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("model: {size: test, size: nano}\n", "'size' stands twice in the same group, in line 1"),
        ("recipe: a\noptim:\n  lr: 1\n  clip_grad: 1\n  lr: 2\n", "'lr' stands twice in the same group, in lines 3 and 5"),
    ],
)
def test_a_setting_that_is_there_twice(content: str, words: str, tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text(content)
    with pytest.raises(Refusal, match=rf"a\.yaml: {words}: leave out one"):
        load_yaml(tmp_path / "a.yaml")


def test_the_same_name_in_two_groups_and_what_is_merged_are_no_doubles(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text("a: &a {x: 1, y: 2}\nb: &b {<<: *a, x: 3}\nc: {<<: *b, y: 4}\n")
    assert load_yaml(tmp_path / "a.yaml") == {"a": {"x": 1, "y": 2}, "b": {"x": 3, "y": 2}, "c": {"x": 3, "y": 4}}


@pytest.mark.parametrize("content", [b"", b"nothing", np.lib.format.magic(1, 0), b"\x80\x04K\x03.", "cut", "objects"])
def test_a_damaged_array(content: bytes | str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    table = write_table(tmp_path / "x.npy", np.eye(4, 8, dtype=np.float32))
    if content == "objects":
        np.save(table, np.array([{}, []], dtype=object), allow_pickle=True)
    else:
        table.write_bytes(table.read_bytes()[:150] if isinstance(content, str) else content)
    with pytest.raises(SystemExit) as stopped:
        main(["search", str(table), "--row", "0"])
    message = capsys.readouterr().err
    assert stopped.value.code == 2 and "pickle" not in message
    assert f"{table} is damaged or cut off: it is no array of numbers in NumPy's format; embed the images again" in message


def test_a_manifest_of_features_nested_without_end(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    table = write_table(tmp_path / "x.npy", np.eye(4, 8, dtype=np.float32))
    table.with_suffix(".json").write_text("[" * 100_000)
    with pytest.raises(SystemExit) as stopped:
        main(["search", str(table), "--row", "0"])
    assert stopped.value.code == 2 and f"{table.with_suffix('.json')} is not valid JSON" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["data", "masks", "--patch-size", "0"], "--patch-size 0 must be at least 1"),
        (["data", "masks", "--image-size", "0"], "--image-size 0 must be at least 1"),
        (["data", "scenes", "--seed", "-1"], "--seed -1 must be at least 0"),
    ],
)
def test_numbers_that_nothing_can_be_made_of(
    argv: list[str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as stopped:
        main(argv)
    assert stopped.value.code == 2 and message in capsys.readouterr().err
    assert not list(tmp_path.iterdir())
