"""Plain data beside weights is read or passed over, whatever program wrote it; nothing else is, and nothing is executed."""

import argparse
import collections
import datetime
import decimal
import functools
import operator
import os
import pathlib
import pickle
import subprocess
import types
import uuid
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy._core.multiarray import scalar

from openjepa.weights.contents import open_contents
from openjepa.weights.formats import load_any
from openjepa.weights.state_dicts import Unread
from tests.helpers.foreign_weights import HEADS, official, weights

SCALARS = {
    "float64": (np.float64(0.5), 0.5),
    "float32": (np.float32(0.25), 0.25),
    "float16": (np.float16(2.0), 2.0),
    "int64": (np.int64(-3), -3),
    "uint8": (np.uint8(200), 200),
    "bool": (np.bool_(True), True),
    "complex": (np.complex64(1 + 2j), 1 + 2j),
    "words": (np.str_("año"), "año"),
    "no words": (np.str_(""), ""),
    "bytes": (np.bytes_(b"xy"), b"xy"),
    "big endian": (np.array([1.5], ">f8")[0], 1.5),
}
OTHERS = {
    "path": pathlib.Path("/a/b"),
    "path of Windows": pathlib.PureWindowsPath("c:/a"),
    "date": datetime.datetime(2026, 1, 2, tzinfo=datetime.UTC),
    "duration": datetime.timedelta(seconds=3),
    "array": np.arange(5),
    "empty array": np.zeros(0),
    "array of words": np.array(["a", "b"]),
    "date of NumPy": np.datetime64("2026-01-02"),
    "random state": np.random.RandomState(0).get_state()[1],
    "decimal": decimal.Decimal("1.5"),
    "set": frozenset({1}),
    "range": range(3),
    "identifier": uuid.UUID(int=3),
}
CLASSES = [np.float32, np.float64, np.float16, np.int64, np.uint8, np.bool_, np.str_, np.complex64]
HELD: dict[str, Any] = {
    "default": collections.defaultdict(list, {"a": [1]}),
    "ordered": collections.OrderedDict(a=1),
    "counter": collections.Counter("aab"),
    "arguments": argparse.Namespace(lr=0.5, betas=(0.9, 0.95)),
    "namespace": types.SimpleNamespace(lr=0.5),
    "no bytes": b"",
    "bytes": b"abc",
    "version": torch.__version__,
    "complex": 1 + 2j,
}


def beside_weights(folder: Path, value: object, is_new: bool = True) -> object:
    """The value as it is read from a file in which it stands beside an encoder, which must be read too."""
    path = folder / "a.pth"
    torch.save({"model": weights(), "best": value}, path, _use_new_zipfile_serialization=is_new)
    assert torch.equal(load_any(path, HEADS).encoder.norm.weight, weights()["norm.weight"])
    return open_contents(path).tree["best"]


@pytest.mark.parametrize("is_new", [True, False])
@pytest.mark.parametrize("name", SCALARS)
def test_scalars_of_numpy_are_numbers(name: str, is_new: bool, tmp_path: Path) -> None:
    value, expected = SCALARS[name]
    found = beside_weights(tmp_path, value, is_new)
    assert found == expected and type(found) is type(expected)


@pytest.mark.parametrize("name", OTHERS)
def test_what_is_never_looked_at_is_passed_over(name: str, tmp_path: Path) -> None:
    assert isinstance(beside_weights(tmp_path, OTHERS[name]), Unread)


@pytest.mark.parametrize("kind", CLASSES)
def test_a_type_of_numpy_as_an_argument(kind: type[Any], tmp_path: Path) -> None:
    """As in saved arguments: dtype=np.float32."""
    found = beside_weights(tmp_path, argparse.Namespace(dtype=kind))
    assert isinstance(found, argparse.Namespace) and found.dtype is Unread


@pytest.mark.parametrize("longest", [None, 2])
def test_a_queue_is_a_list(longest: int | None, tmp_path: Path) -> None:
    assert beside_weights(tmp_path, collections.deque([1, 2], longest)) == [1, 2]


@pytest.mark.parametrize("protocol", [3, 4, 5])
def test_protocols_of_pickle(protocol: int, tmp_path: Path) -> None:
    torch.save({"model": weights()}, tmp_path / "a.pth", pickle_protocol=protocol)
    if protocol == 3:
        assert load_any(tmp_path / "a.pth", HEADS).notes == ()
        return
    with pytest.raises(ValueError, match=r"a protocol of pickle that torch's safe reader does not know"):
        load_any(tmp_path / "a.pth", HEADS)


@pytest.mark.parametrize("name", HELD)
def test_what_python_and_torch_have_of_their_own(name: str, tmp_path: Path) -> None:
    assert beside_weights(tmp_path, HELD[name]) == HELD[name]


def test_names_of_numpy_1(tmp_path: Path) -> None:
    """What numpy 1 calls numpy.core is numpy._core since numpy 2."""
    path = tmp_path / "new.pth"
    torch.save({"model": weights(), "loss": np.float64(0.5), "curve": np.arange(3)}, path)
    with zipfile.ZipFile(path) as before, zipfile.ZipFile(tmp_path / "old.pth", "w", zipfile.ZIP_STORED) as after:
        for item in before.infolist():
            data = before.read(item)
            assert item.filename != "new/data.pkl" or data.count(b"numpy._core.multiarray") == 2
            after.writestr(item, data.replace(b"numpy._core.multiarray", b"numpy.core.multiarray"))
    tree = open_contents(tmp_path / "old.pth").tree
    assert tree["loss"] == 0.5 and isinstance(tree["curve"], Unread)


def test_numbers_of_numpy_in_a_released_checkpoint(tmp_path: Path) -> None:
    torch.save(official() | {"loss": np.float32(0.25), "epoch": np.int64(9)}, tmp_path / "a.pth.tar")
    loaded = load_any(tmp_path / "a.pth.tar", HEADS)
    assert loaded.training == {"epoch": 9, "loss": 0.25} and "of epoch 9" in loaded.what


# ------------------------------------------------------------------------------------------------------------- refused


class Call:
    """Calls a function where it is unpickled."""

    def __init__(self, function: Any, *arguments: object) -> None:
        self.function, self.arguments = function, arguments

    def __reduce__(self) -> tuple[Any, ...]:
        return self.function, self.arguments


FOREIGN = {
    "a command": Call(os.system, "touch executed"),
    "a process": Call(subprocess.Popen, ["touch", "executed"]),
    "eval": Call(eval, "open('executed', 'w')"),
    "a file": Call(open, "executed", "w"),
    "an attribute": Call(operator.attrgetter, "system"),
    "a partial function": functools.partial(print, "x"),
    "a method of a path": Call(pathlib.Path.touch, "executed"),
    "an object in a scalar": Call(scalar, np.dtype(object), np.float64(1.0)),
    "a structure in a scalar": np.zeros(1, [("a", "f8")])[0],
    "a scalar of another length": Call(scalar, np.dtype("f8"), b"1234"),
    "a scalar of no type": Call(scalar, "f8", b"12345678"),
    "a generator": np.random.default_rng(0),
    "a memory map": Call(np.memmap, "executed", "u1", "w+", 0, (3,)),
    "a loaded file": Call(np.load, "executed"),
    "a class of ours": Unread,
    "a network": torch.nn.Linear(1, 1),
}


@pytest.mark.parametrize("is_new", [True, False])
@pytest.mark.parametrize("name", FOREIGN)
def test_everything_else_is_refused(name: str, is_new: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save({"model": weights(), "best": FOREIGN[name]}, "a.pth", _use_new_zipfile_serialization=is_new)
    with pytest.raises(ValueError, match=r"was refused: it holds the Python object .*openjepa executes nothing"):
        load_any("./a.pth", HEADS)
    assert [path.name for path in tmp_path.iterdir()] == ["a.pth"]


def test_a_plain_pickle_is_no_way_around(tmp_path: Path) -> None:
    (tmp_path / "a.pth").write_bytes(pickle.dumps({"loss": np.float64(1.0), "x": Call(os.system, f"touch {tmp_path}/b")}, 2))
    with pytest.raises(ValueError, match="openjepa executes nothing"):
        load_any(tmp_path / "a.pth")
    assert not (tmp_path / "b").exists()
