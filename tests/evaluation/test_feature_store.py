"""Features on disk: continued where a killed program stopped, never taken for whole too early, mapped where they are many."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from openjepa.data.source import ListSource
from openjepa.evaluation import feature_store
from openjepa.evaluation.feature_store import (
    EncoderFeatures,
    FeatureLayout,
    PixelFeatures,
    RowWriter,
    SplitView,
    extract_features,
    read_rows,
)
from openjepa.models.vit import build_encoder
from openjepa.settings.models import EncoderConfig
from openjepa.system.shared_files import WITHOUT_LOCKS

TYPES = [torch.float32, torch.bfloat16, torch.uint8]


def values(rows: int, dtype: torch.dtype, columns: int = 5) -> Tensor:
    return torch.randint(0, 200, (rows, columns), generator=torch.Generator().manual_seed(0)).to(dtype)


ALL = torch.arange(100)
GAPS = torch.tensor([0, 2, 3, 6, 7, 8, 9])
"""Records of seven rows; of ten records three cannot be read."""


def layout(records: int, dtype: torch.dtype = torch.float32) -> FeatureLayout:
    return FeatureLayout(records, 5, dtype)


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("most_in_memory", [0, 2**26])
@pytest.mark.parametrize(("records", "indices"), [(7, ALL[:7]), (10, GAPS), (8, ALL[:7])])
def test_rows_come_back_as_they_were_written(
    tmp_path: Path,
    dtype: torch.dtype,
    most_in_memory: int,
    records: int,
    indices: Tensor,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(feature_store, "MAPPED_BYTES", most_in_memory)
    rows, path = values(7, dtype), tmp_path / "a.safetensors"
    with RowWriter(path, layout(records, dtype)) as writer:
        writer.append(rows[:3], indices[:3])
        assert read_rows(path) is None and read_rows(writer.unfinished) is None
        writer.append(rows[3:], indices[3:])
        finished = writer.finish()
    again = read_rows(path)
    for found in (finished, again):
        assert found is not None and torch.equal(found.rows, rows) and found.rows.dtype == dtype
        assert torch.equal(found.indices, indices)
    stored = load_file(path)  # any program that knows the format can read it
    assert torch.equal(stored["rows"], rows)
    assert stored["indices"].tolist() == indices.tolist() + [-1] * (records - 7)
    assert [file.name for file in tmp_path.iterdir()] == ["a.safetensors"]


def test_writing_continues_after_the_rows_that_were_noted(tmp_path: Path) -> None:
    rows, path = values(7, torch.float32), tmp_path / "a"
    with RowWriter(path, layout(10)) as writer:
        assert writer.next_record == 0
        writer.append(rows[:4], GAPS[:4])
    with writer.unfinished.open("ab") as file:
        file.write(b"half a row")
    with RowWriter(path, layout(10)) as again:
        assert (again.num_rows, again.next_record) == (4, 7)
        again.append(rows[4:], GAPS[4:])
        finished = again.finish()
    assert torch.equal(finished.rows, rows) and torch.equal(finished.indices, GAPS)


@pytest.mark.parametrize("content", [b"", b"half", b"\0" * 5000, layout(9).header(9, True), layout(2).header(2, True)])
def test_damaged_and_foreign_files_are_started_anew(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "a"
    (tmp_path / "a.partial").write_bytes(content)
    path.write_bytes(content)
    assert read_rows(path) is None
    with RowWriter(path, layout(2)) as writer:
        assert writer.num_rows == 0
        writer.append(values(2, torch.float32), ALL[:2])
        writer.finish()
    found = read_rows(path)
    assert found is not None and torch.equal(found.rows, values(2, torch.float32))


def test_a_file_that_another_process_writes_is_left_alone(tmp_path: Path) -> None:
    with RowWriter(tmp_path / "a", layout(2)), pytest.raises(BlockingIOError):
        RowWriter(tmp_path / "a", layout(2))
    with RowWriter(tmp_path / "a", layout(2)) as writer:
        writer.append(values(2, torch.float32), ALL[:2])


def test_an_unfinished_file_gets_no_name(tmp_path: Path) -> None:
    with RowWriter(tmp_path / "a", layout(2)) as writer:
        writer.append(values(1, torch.float32), ALL[:1])
    assert not (tmp_path / "a").exists() and read_rows(tmp_path / "a.partial") is None


@pytest.mark.parametrize("code", sorted(set(WITHOUT_LOCKS)))
def test_a_file_system_without_locks_keeps_features_too(tmp_path: Path, code: int, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = extract_features(Pass().view(), {"pixels": PixelFeatures()}, None)["pixels"]

    def refuse(*_: object) -> None:
        raise OSError(code, "No locks available")

    monkeypatch.setattr("openjepa.system.shared_files.fcntl.flock", refuse)
    with pytest.warns(UserWarning, match="cannot lock files: let only one process work there at a time"):
        found = extract_features(Pass().view(), {"pixels": PixelFeatures()}, tmp_path)["pixels"]
    assert torch.equal(found.rows, whole.rows) and len(list(tmp_path.glob("*.safetensors"))) == 1


# -------------------------------------------------------------------------------------------------------------- extraction

CONFIG = EncoderConfig(width=24, depth=2, heads=2, mlp_ratio=2.0, patch_size=8, image_size=(16, 16))
NUM, BATCH = 50, 8


class Numbers(ListSource):
    """Fifty records without bytes."""

    def __len__(self) -> int:
        return NUM

    def read(self, index: int) -> bytes:
        return bytes([index])

    def name(self, index: int) -> str:
        return str(index)


@dataclass
class Batch:
    images: Tensor
    indices: Tensor


@dataclass
class Pass:
    """Images made of their numbers; stops with an error before `stop`, and cannot read those of `broken`."""

    stop: int = NUM
    broken: tuple[int, ...] = ()
    seen: list[int] = field(default_factory=list)

    def view(self) -> SplitView:
        return SplitView(Numbers(), "train", {}, self.batches)

    def batches(self, first: int) -> Iterator[Batch]:
        readable = [index for index in range(first, NUM) if index not in self.broken]
        for start in range(0, len(readable), BATCH):
            indices = torch.tensor(readable[start : start + BATCH])
            if int(indices[-1]) >= self.stop:
                raise KeyboardInterrupt
            self.seen += indices.tolist()
            yield Batch(torch.stack([image(index) for index in indices.tolist()]), indices)


def image(index: int) -> Tensor:
    return torch.randint(0, 256, (3, 16, 16), dtype=torch.uint8, generator=torch.Generator().manual_seed(index))


def encoder_features(seed: int = 1) -> EncoderFeatures:
    torch.manual_seed(seed)
    return EncoderFeatures(build_encoder(CONFIG), CONFIG, torch.device("cpu"), "fp32")


def both() -> dict[str, EncoderFeatures | PixelFeatures]:
    return {"encoder": encoder_features(), "pixels": PixelFeatures()}


def test_an_interrupted_pass_is_continued(tmp_path: Path) -> None:
    whole = extract_features(Pass().view(), both(), None)
    with pytest.raises(KeyboardInterrupt):
        extract_features(Pass(stop=30).view(), both(), tmp_path)
    assert not list(tmp_path.glob("*.safetensors"))
    again = Pass()
    found = extract_features(again.view(), both(), tmp_path)
    assert again.seen == list(range(16, NUM))  # of 24 images seen, the last batch was still being computed
    for name in whole:
        assert torch.equal(found[name].rows, whole[name].rows)
        assert torch.equal(found[name].indices, torch.arange(NUM))
    assert len(list(tmp_path.iterdir())) == 2


def test_what_is_further_ahead_is_not_computed_again(tmp_path: Path) -> None:
    whole = extract_features(Pass().view(), both(), None)
    with pytest.raises(KeyboardInterrupt):
        extract_features(Pass(stop=30).view(), {"encoder": encoder_features()}, tmp_path)
    extractors, widths = both(), []
    original = extractors["encoder"].extract
    extractors["encoder"].extract = lambda images: widths.append(len(images)) or original(images)  # type: ignore[method-assign]
    found = extract_features(Pass().view(), extractors, tmp_path)
    assert sum(widths) == NUM - 16
    assert all(torch.allclose(found[name].rows, whole[name].rows) for name in whole)


@pytest.mark.parametrize("broken", [(19,), (0,), (NUM - 1,), (0, 7, 8, 31, NUM - 1), tuple(range(0, NUM, 2))])
def test_a_pass_that_lacks_images_is_continued_and_kept(tmp_path: Path, broken: tuple[int, ...]) -> None:
    extractors, readable = {"pixels": PixelFeatures()}, [index for index in range(NUM) if index not in broken]
    with pytest.raises(KeyboardInterrupt):
        extract_features(Pass(stop=45, broken=broken).view(), extractors, tmp_path)
    again = Pass(broken=broken)
    found = extract_features(again.view(), extractors, tmp_path)["pixels"]
    assert found.indices.tolist() == readable and 0 < len(again.seen) < len(readable)
    assert torch.equal(found.rows, PixelFeatures().extract(torch.stack([image(index) for index in readable])))
    third = Pass(broken=broken)
    kept = extract_features(third.view(), extractors, tmp_path)["pixels"]
    assert third.seen == [] and torch.equal(kept.rows, found.rows) and torch.equal(kept.indices, found.indices)
    assert len(list(tmp_path.iterdir())) == 1


def test_the_type_of_the_rows_is_part_of_what_is_kept(tmp_path: Path) -> None:
    exact = extract_features(Pass().view(), {"encoder": encoder_features()}, tmp_path)["encoder"].rows
    rounded = extract_features(Pass().view(), {"encoder": encoder_features()}, tmp_path, "bf16")["encoder"].rows
    assert torch.equal(rounded, exact.bfloat16()) and len(list(tmp_path.iterdir())) == 2
    extractor = encoder_features()
    limit = 2**30 // (4 * 48)
    assert [extractor.kept_as(num, "auto") for num in (limit, limit + 1)] == [torch.float32, torch.bfloat16]
    assert PixelFeatures().kept_as(10**9, "bf16") == torch.uint8


def test_nothing_readable_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no image of the train split"):
        extract_features(Pass(broken=tuple(range(NUM))).view(), both(), tmp_path)


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
def test_features_that_are_not_finite_are_an_error_that_names_the_image(tmp_path: Path, dtype: str) -> None:
    extractors = both()
    original = extractors["encoder"].extract

    @torch.inference_mode()
    def broken(images: Tensor) -> Tensor:
        rows = original(images).clone()
        for index, value in ((19, torch.nan), (40, torch.inf)):
            rows[(images == image(index)).flatten(1).all(dim=1), 3] = value
        return rows

    extractors["encoder"].extract = broken  # type: ignore[method-assign]
    words = r"features of 2 of 49 images of the train split, of 'encoder' are not finite \(the first is of 19\).*fp32"
    for _ in range(2):  # also where they come from the folder
        with pytest.raises(ValueError, match=words):
            extract_features(Pass(broken=(2,)).view(), extractors, tmp_path, dtype)
    extract_features(Pass().view(), {"encoder": encoder_features()}, tmp_path / "other", dtype)


def test_a_killed_program_is_continued(tmp_path: Path) -> None:
    """SIGKILL, so that nothing can be tidied up; every row was noted at once."""
    code = (
        "import os, signal; from pathlib import Path; from tests.evaluation import test_feature_store as test\n"
        f"test.feature_store.SECONDS_BETWEEN_NOTES = 0\nbatches = test.Pass().batches\n"
        "def stopping(first):\n"
        "    for batch in batches(first):\n"
        "        if int(batch.indices[-1]) > 30: os.kill(os.getpid(), signal.SIGKILL)\n"
        "        yield batch\n"
        "view = test.SplitView(test.Numbers(), 'train', {}, stopping)\n"
        f"test.extract_features(view, test.both(), Path({str(tmp_path)!r}))"
    )
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, "-c", code], env=environment, cwd=Path(__file__).parents[2], check=False)
    assert done.returncode == -signal.SIGKILL
    again = Pass()
    found = extract_features(again.view(), both(), tmp_path)
    assert again.seen[0] == 16
    whole = extract_features(Pass().view(), both(), None)
    assert all(torch.allclose(found[name].rows.float(), whole[name].rows.float(), atol=1e-5) for name in whole)


def test_a_batch_in_parts_gives_the_same_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    images, extractor = torch.stack([image(index) for index in range(10)]), encoder_features()
    whole = extractor.extract(images)
    monkeypatch.setattr("openjepa.engine.device.CPU_PATCHES", 14)  # three images of four patches
    torch.testing.assert_close(extractor.extract(images), whole)
