"""The model card README.md of a converted folder: fills the template card.md.j2 with facts from the run's files.

Does not import torch.
"""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from openjepa.records import SUBJECT_NAMES, Metric, Result
from openjepa.report.facts import facts, lede, method_name
from openjepa.report.reading import Run, text
from openjepa.system.console import hub_name

TEMPLATE = Path(__file__).with_name("card.md.j2")

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
LIBRARIES = {"safetensors": "openjepa", "official": "openjepa", "transformers": "transformers", "timm": "timm", "onnx": "onnx"}
"""The Hub's `library_name` by format."""
HUB_WORDS = {
    "accuracy": ("accuracy", "image-classification", "accuracy"),
    "miou": ("mean_iou", "image-segmentation", "mean IoU"),
}
"""For each measure: metric and task under the Hub's names, and words for the metric."""
RECIPE_FACTS = (
    *("Recipe", "Began from", "Model", "Parameters", "Images seen", "Masks", "Optimizer", "Compute"),
    *("Time", "Hardware", "Software", "Seed", "Commit", "Started", "Status"),
)
"""Rows of the report's facts about the training of an encoder. Its data has a section of its own."""


@dataclass(frozen=True)
class CardFacts:
    """The content of a card."""

    name: str
    """Name of the folder."""
    to: str
    """The format, as `--to` names it."""
    what: str
    """A few words that say what was read."""
    source: str
    """Name of the original weights."""
    config: Mapping[str, Any]
    """The encoder's settings."""
    model: str
    """The encoder's class in transformers."""
    dtype: str
    has_predictor: bool
    license: str | None
    is_ours: bool
    """True if openjepa trained the weights; False if they come from a foreign file."""
    which: str = "target"
    """The encoder that was converted: target, context, or trained if there is no target encoder."""
    has_settings: bool = False
    """True if the folder also holds the run's settings."""
    run: Run | None = None
    """The run, or the folder of results of an evaluated encoder."""
    results: Sequence[Result] = ()
    """Evaluations of exactly these weights."""
    checks: Sequence[str] = field(default_factory=tuple)
    remarks: Sequence[str] = field(default_factory=tuple)


def card(known: CardFacts) -> str:
    """The text of README.md."""
    from jinja2 import Environment, StrictUndefined

    environment = Environment(undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=True)
    environment.filters["one_line"] = lambda lines: " ".join(lines.split())
    return environment.from_string(TEMPLATE.read_text(encoding="utf-8")).render(
        card=known,
        config=known.config,
        front_matter=_front_matter(known),
        what=text(known.what, 200),
        license_of=text(known.what, 160),
        source=text(known.source, 120),
        start=_start(known.run),
        loading=loading(known.to, known.name, known.config, known.model),
        remarks=[text(item[:1].upper() + item[1:], 400) for item in known.remarks],
        table=_table,
        **_training(known.run),
        **_results(known.results),
    )


def loading(to: str, folder: str, config: Mapping[str, Any], model: str) -> list[tuple[str, str]]:
    """The ways to load a folder of format `to`, each as (name of the library, code).

    `config` holds the encoder's settings. `model` is its class in transformers.
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
    """`text` as a Python string literal in double quotes, with any content."""
    return json.dumps(text, ensure_ascii=False)


def _pooled(config: Mapping[str, Any]) -> str:
    if config["pooling"] == "class_token":
        return "tokens[:, 0]"
    return "tokens[:, 1:].mean(dim=1)" if config["class_token"] else "tokens.mean(dim=1)"


def _front_matter(known: CardFacts) -> str:
    entries: dict[str, Any] = {
        "license": known.license or "unknown",
        "library_name": LIBRARIES[known.to],
        "pipeline_tag": "image-feature-extraction",
        "tags": _tags(known),
    }
    if start := hub_name(_start(known.run)):
        entries["base_model"] = start
    if datasets := _datasets(known.run):
        entries["datasets"] = datasets
    if results := list(_index(known)):
        entries["model-index"] = [{"name": known.name, "results": results}]
    return yaml.safe_dump(entries, sort_keys=False, allow_unicode=True).strip()


def _tags(known: CardFacts) -> list[str]:
    method = text(known.run.setting("method", "name", default=""), 30) if known.run else ""
    return list(dict.fromkeys(filter(None, ["openjepa", "self-supervised", "vision-transformer", method, known.to])))


def _start(run: Run | None) -> str:
    """The name of the weights that the training started from; empty if they were random."""
    return text(run.setting("run", "init", default="") or "", 160) if run else ""


def _datasets(run: Run | None) -> list[str]:
    """The data set's name on the Hub, if it is from the Hub."""
    path = text(run.setting("data", "path", default="") or "", 160) if run else ""
    name = hub_name(path) if run and run.setting("data", "source") == "huggingface" else None
    return [] if name is None else [name]


def _index(known: CardFacts) -> Iterator[dict[str, Any]]:
    """Yields one entry of the Hub's model index for each number of this encoder."""
    for result in known.results:
        data, title = text(result.data_name, 80) or "unknown", text(result.title, 80)
        for name, metric in _metrics(result, "encoder").items():
            kind, task, words = HUB_WORDS[metric.measure]
            yield {
                "task": {"type": task, "name": title},
                "dataset": {"name": data, "type": _slug(data)},
                "metrics": [{"type": kind, "name": f"{text(name, 60)} ({words}, %)", "value": round(100 * metric.value, 2)}],
            }


def _metrics(result: Result, subject: str) -> Mapping[str, Metric]:
    return result.subjects[subject].metrics if subject in result.subjects else {}


def _slug(words: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", words.lower()).strip("-")[:60] or "unknown"


def _training(run: Run | None) -> dict[str, Any]:
    """The card's values about the run; empty if the training of the encoder is unknown."""
    if run is None or run.is_encoder:
        return {"is_run": False, "lede": "", "data": "", "recipe": []}
    rows = {row.label: row.values[0] for row in facts([run])}
    recipe = [("Method", method_name(run)), *((label, rows.get(label, "")) for label in RECIPE_FACTS)]
    return {
        "is_run": True,
        "lede": lede(run),
        "data": rows.get("Data", ""),
        "recipe": [(label, value) for label, value in recipe if value],
    }


def _results(results: Sequence[Result]) -> dict[str, Any]:
    subjects = [name for name in SUBJECT_NAMES if any(name in result.subjects for result in results)]
    return {
        "columns": ("task", "probe", *(SUBJECT_NAMES[name] for name in subjects), "test images"),
        "results": [line for result in results for line in _lines(result, subjects)],
    }


def _lines(result: Result, subjects: Sequence[str]) -> Iterator[tuple[str, ...]]:
    task = f"{text(result.title, 80)}, {text(result.data_name, 80) or 'unknown'}"
    for name in _metrics(result, "encoder"):
        cells = [_cell(_metrics(result, subject).get(name)) for subject in subjects]
        yield (task, text(name, 60), *cells, str(result.num_test or ""))


def _cell(metric: Metric | None) -> str:
    if metric is None:
        return "-"
    return f"{100 * metric.value:.1f}" + ("" if metric.standard_error is None else f" ± {100 * metric.standard_error:.1f}")


def _table(head: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    rows = [head, ["---"] * len(head), *lines]
    return "\n".join(f"| {' | '.join(cell.replace('|', '/') for cell in row)} |" for row in rows)
