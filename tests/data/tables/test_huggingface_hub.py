"""Names on the Hugging Face Hub, through huggingface_hub and HTTP: a small server answers as the Hub does."""

import hashlib
import json
import re
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import torch

pytest.importorskip("huggingface_hub", reason="needs huggingface_hub")

from safetensors.torch import load_file, save_file

import openjepa
from openjepa.settings.inference import ConvertSettings
from openjepa.weights.convert.conversion import convert
from tests.helpers.feature_tables import save_encoder
from tests.helpers.processes import embed_one, in_clean_process

COMMIT = "0123456789abcdef0123456789abcdef01234567"


class FakeHub(BaseHTTPRequestHandler):
    """What a download asks: which files a model has, and for each of them."""

    folder: Path
    asked: list[str]

    def do_HEAD(self) -> None:
        self._answer(with_body=False)

    def do_GET(self) -> None:
        self._answer(with_body=True)

    def _answer(self, with_body: bool) -> None:
        self.asked.append(f"{self.command} {self.path}")
        if found := re.match(r"/api/models/([^/]+/[^/?]+)(/tree)?", self.path):
            body = json.dumps(self._listing(found[1], is_tree=found[2] is not None)).encode()
            self._send(200 if (self.folder / found[1]).is_dir() else 404, body, {"Content-Type": "application/json"}, with_body)
            return
        file = self.folder / re.sub(r"/resolve/[^/]+/", "/", self.path).lstrip("/")
        if not file.is_file():
            self._send(404, b"", {"X-Error-Code": "EntryNotFound"}, with_body)
            return
        body = file.read_bytes()
        etag = hashlib.sha256(body).hexdigest()
        self._send(200, body, {"ETag": f'"{etag}"', "X-Repo-Commit": COMMIT, "Accept-Ranges": "bytes"}, with_body)

    def _listing(self, name: str, is_tree: bool) -> object:
        files = [path for path in sorted((self.folder / name).rglob("*")) if path.is_file()]
        paths = {str(path.relative_to(self.folder / name)): path for path in files}
        if is_tree:
            return [{"type": "file", "path": key, "oid": key, "size": path.stat().st_size} for key, path in paths.items()]
        return {"id": name, "sha": COMMIT, "siblings": [{"rfilename": key} for key in paths], "tags": []}

    def _send(self, status: int, body: bytes, headers: dict[str, str], with_body: bool) -> None:
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(body))}.items():
            self.send_header(name, value)
        self.end_headers()
        if with_body:
            self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[tuple[str, Path, list[str]]]:
    """Address, folder of the models, and what was asked."""
    handler = type("Handler", (FakeHub,), {"folder": tmp_path / "hub", "asked": []})
    (tmp_path / "hub").mkdir()
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_address[1]}", tmp_path / "hub", handler.asked
        server.shutdown()
        thread.join()


def use(address: str, folder: Path, name: str, **variables: str) -> tuple[int | None, str]:
    """Embeds one image with the model, in a process whose cache is in `folder`; its exit code and what it prints."""
    settings = {"HF_ENDPOINT": address, "HF_HOME": str(folder / "cache"), "HF_HUB_DISABLE_XET": "1", "NO_PROXY": "*"}
    settings |= {"HF_HUB_OFFLINE": "0", "HF_HUB_DISABLE_TELEMETRY": "1", **variables}
    log = folder / "log"
    process = in_clean_process(embed_one, name, folder / "features.pt", log=log, variables=settings)
    process.join(120)
    return process.exitcode, log.read_text()


def publish(tmp_path: Path, folder: Path, layout: str) -> torch.Tensor:
    """Puts a small encoder on the hub, as transformers or timm would; what its features must be."""
    subject = save_encoder(tmp_path) / "encoder"
    folder.parent.mkdir()
    convert(ConvertSettings(subject=subject, to=layout, output=folder))  # type: ignore[arg-type]
    return openjepa.load(subject).embed(torch.zeros(1, 3, 40, 48, dtype=torch.uint8), precision="fp32")


def test_a_model_of_the_hub_is_downloaded_once(hub: tuple[str, Path, list[str]], tmp_path: Path) -> None:
    address, models, asked = hub
    expected = publish(tmp_path, models / "someone" / "ijepa", "transformers")
    (models / "someone" / "ijepa" / "evil.py").write_text("raise SystemExit")
    code, printed = use(address, tmp_path, "someone/ijepa")
    assert code == 0, printed
    torch.testing.assert_close(torch.load(tmp_path / "features.pt"), expected, rtol=0, atol=1e-5)
    fetched = [line for line in asked if line.startswith("GET") and "/resolve/" in line]
    assert any("model.safetensors" in line for line in fetched) and not any("evil.py" in line for line in fetched)
    asked.clear()
    assert use(address, tmp_path, "someone/ijepa")[0] == 0
    assert not [line for line in asked if line.startswith("GET") and "/resolve/" in line]  # it is in the cache
    assert use("http://127.0.0.1:9", tmp_path, "someone/ijepa", HF_HUB_OFFLINE="1")[0] == 0


@pytest.mark.parametrize("layout", ["timm", "safetensors"])
def test_layouts_of_the_hub(layout: str, hub: tuple[str, Path, list[str]], tmp_path: Path) -> None:
    expected = publish(tmp_path, hub[1] / "someone" / "ijepa", layout)
    code, printed = use(hub[0], tmp_path, "someone/ijepa")
    assert code == 0, printed
    torch.testing.assert_close(torch.load(tmp_path / "features.pt"), expected, rtol=0, atol=1e-5)


def test_a_model_without_safetensors_is_read_from_its_pickle(hub: tuple[str, Path, list[str]], tmp_path: Path) -> None:
    address, models, _ = hub
    folder = models / "someone" / "older"
    expected = publish(tmp_path, folder, "transformers")
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    code, printed = use(address, tmp_path, "someone/older")
    assert code == 0, printed
    torch.testing.assert_close(torch.load(tmp_path / "features.pt"), expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("whole", "part"), [("model.safetensors", "model-{}.safetensors"), ("pytorch_model.bin", "pytorch_model-{}.bin")]
)
def test_weights_in_several_files(whole: str, part: str, hub: tuple[str, Path, list[str]], tmp_path: Path) -> None:
    address, models, _ = hub
    folder = models / "someone" / "large"
    expected = publish(tmp_path, folder, "transformers")
    tensors = load_file(folder / "model.safetensors")
    names = sorted(tensors)
    parts = {part.format(f"0000{number + 1}-of-00002"): names[number::2] for number in range(2)}
    for file, own in parts.items():
        (save_file if file.endswith("safetensors") else torch.save)({name: tensors[name] for name in own}, folder / file)
    where = {name: file for file, own in parts.items() for name in own}
    (folder / f"{whole}.index.json").write_text(json.dumps({"metadata": {}, "weight_map": where}))
    (folder / "model.safetensors").unlink()
    code, printed = use(address, tmp_path, "someone/large")
    assert code == 0, printed
    torch.testing.assert_close(torch.load(tmp_path / "features.pt"), expected, rtol=0, atol=1e-5)


def test_a_model_that_is_not_there_is_one_clear_line(hub: tuple[str, Path, list[str]], tmp_path: Path) -> None:
    code, printed = use(hub[0], tmp_path, "someone/else")
    assert code != 0
    assert "someone/else does not exist here, and it could not be had from the Hugging Face Hub" in printed.splitlines()[-1]
