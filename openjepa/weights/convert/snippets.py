"""How a converted folder is loaded, as code to copy. Free of torch."""

import json
from collections.abc import Mapping
from typing import Any

OPENJEPA = """import openjepa

encoder = openjepa.load({folder}{heads})
features = encoder.embed(["cat.jpg", "dog.jpg"])  # one vector of {width} numbers per image
grids = encoder.embed_patches(["cat.jpg", "dog.jpg"])  # features of the patches [B, H, W, {width}]"""

TRANSFORMERS = """import torch
from PIL import Image
from transformers import AutoImageProcessor, {model}

processor = AutoImageProcessor.from_pretrained({folder})
model = {model}.from_pretrained({folder}{no_pooler}).eval()
inputs = processor(Image.open("cat.jpg").convert("RGB"), return_tensors="pt")
with torch.no_grad():
    tokens = model(**inputs).last_hidden_state
features = {pooled}"""

TIMM = """import timm
import torch
from PIL import Image

model = timm.create_model({folder}, pretrained=True).eval()
config = timm.data.resolve_model_data_config(model)
transform = timm.data.create_transform(**config, is_training=False)
with torch.no_grad():
    features = model(transform(Image.open("cat.jpg").convert("RGB"))[None])"""

ONNX = """import numpy as np
import onnxruntime
from PIL import Image

session = onnxruntime.InferenceSession({folder})
image = Image.open("cat.jpg").convert("RGB").resize(({width_px}, {height_px}), Image.Resampling.BICUBIC)
images = np.asarray(image).transpose(2, 0, 1)[None]  # uint8 [batch, 3, height, width]; normalization is in the graph
patches, pooled = session.run(["patches", "pooled"], {{"images": images}})"""

OFFICIAL = """import torch

checkpoint = torch.load({folder}, map_location="cpu", weights_only=True)
target_encoder = {{name.removeprefix("module."): value for name, value in checkpoint["target_encoder"].items()}}"""


def loading(to: str, folder: str, config: Mapping[str, Any], model: str) -> list[tuple[str, str]]:
    """(name of the library, code) for each way to load a folder of format `to`.

    `config`: the encoder's settings; `model`: class of transformers.
    """
    height, width = config["image_size"]
    inside = {"timm": f"local-dir:{folder}", "onnx": f"{folder}/model.onnx", "official": f"{folder}/checkpoint.pth.tar"}
    own = _literal(inside["official"] if to == "official" else folder)
    values = {
        "folder": _literal(inside.get(to, folder)),
        "model": model,
        "no_pooler": ", add_pooling_layer=False" if model == "ViTModel" else "",
        "pooled": _pooled(config),
        "width_px": width,
        "height_px": height,
    }
    others = {"transformers": TRANSFORMERS, "timm": TIMM, "onnx": ONNX, "official": OFFICIAL}
    titles = {"onnx": "onnxruntime", "official": "torch"}
    found = [(titles.get(to, to), others[to].format(**values))] if to in others else []
    if to != "onnx":
        heads = f", heads={config['heads']}" if to == "official" else ""
        found.insert(0, ("openjepa", OPENJEPA.format(folder=own, heads=heads, width=config["width"])))
    return found


def _literal(text: str) -> str:
    """A string of Python, in double quotes, whatever is in it."""
    return json.dumps(text, ensure_ascii=False)


def _pooled(config: Mapping[str, Any]) -> str:
    if config["pooling"] == "class_token":
        return "tokens[:, 0]"
    return "tokens[:, 1:].mean(dim=1)" if config["class_token"] else "tokens.mean(dim=1)"
