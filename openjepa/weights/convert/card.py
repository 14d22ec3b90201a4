"""The model card README.md of a converted folder, from what the run's files say. Free of torch.

How a converted folder is loaded, as code to copy. Free of torch.
"""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import yaml

from openjepa.records import Metric, Result
from openjepa.report.facts import facts, lede, method_name
from openjepa.report.reading import Run, text
from openjepa.system.shell import hub_name

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


LIBRARIES = {"safetensors": "openjepa", "official": "openjepa", "transformers": "transformers", "timm": "timm", "onnx": "onnx"}
"""`library_name` of the Hub."""
HUB_WORDS = {
    "accuracy": ("accuracy", "image-classification", "accuracy"),
    "miou": ("mean_iou", "image-segmentation", "mean IoU"),
}
"""By what a number is: metric and task as the Hub names them, and words for it."""
POSITION_WORDS = {"sincos": "fixed sin-cos"}
SETTINGS_SENTENCE = (
    "every setting of the training stands in `training.yaml` (of folders only the last part); "
    "`openjepa train --config training.yaml --data.path ...` repeats it."
)
RECIPE_FACTS = (
    *("Recipe", "Began from", "Model", "Parameters", "Images seen", "Masks", "Optimizer", "Compute"),
    *("Time", "Hardware", "Software", "Seed", "Commit", "Started", "Status"),
)
"""Rows of the report's facts that say how an encoder was trained; its data has a chapter of its own."""
SUBJECTS = {"encoder": "this encoder", "start": "before", "untrained": "untrained", "pixels": "raw pixels"}
"""Columns of the results; `start` is what a continued training began with."""


@dataclass(frozen=True)
class CardFacts:
    """All that a card says."""

    name: str
    """Of the folder."""
    to: str
    """The format, as `--to` names it."""
    what: str
    """What was read, in a few words."""
    source: str
    """Name of what it was made from."""
    config: Mapping[str, Any]
    """The encoder's settings."""
    model: str
    """Its class in transformers."""
    dtype: str
    has_predictor: bool
    license: str | None
    is_ours: bool
    """Whether openjepa trained it; else the weights come from a foreign file."""
    which: str = "target"
    """target or context: the encoder that was taken."""
    has_settings: bool = False
    """Whether the run's settings lie beside the card."""
    run: Run | None = None
    """The run, or the results of an evaluated encoder."""
    results: Sequence[Result] = ()
    """Evaluations of just these weights."""
    checks: Sequence[str] = field(default_factory=tuple)
    remarks: Sequence[str] = field(default_factory=tuple)


def card(facts_of: CardFacts) -> str:
    """The whole README.md."""
    parts = [
        _front_matter(facts_of),
        f"# {facts_of.name}",
        _about(facts_of),
        *_loading(facts_of),
        *_training(facts_of),
        *_results(facts_of),
        *_checks(facts_of),
        *_limits(facts_of),
        *_license(facts_of),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


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
    return f"---\n{yaml.safe_dump(entries, sort_keys=False, allow_unicode=True).strip()}\n---"


def _tags(known: CardFacts) -> list[str]:
    method = text(known.run.setting("method", "name", default=""), 30) if known.run else ""
    return list(dict.fromkeys(filter(None, ["openjepa", "self-supervised", "vision-transformer", method, known.to])))


def _start(run: Run | None) -> str:
    """The weights that the training began from, by name; empty where they were random."""
    return text(run.setting("run", "init", default="") or "", 160) if run else ""


def _datasets(run: Run | None) -> list[str]:
    """The data set's name on the Hub, where it is one."""
    path = text(run.setting("data", "path", default="") or "", 160) if run else ""
    name = hub_name(path) if run and run.setting("data", "source") == "huggingface" else None
    return [] if name is None else [name]


def _index(known: CardFacts) -> Iterator[dict[str, Any]]:
    """One entry per number of this encoder, as the Hub shows them."""
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


def _about(known: CardFacts) -> str:
    config = known.config
    height, width = config["image_size"]
    sentence = f"{text(known.what, 200)}. "
    if known.is_ours and known.run is not None and not known.run.is_encoder:
        sentence = f"{lede(known.run)} This is the run's {known.which} encoder. "
    positions = POSITION_WORDS.get(config["positions"], config["positions"])
    shape = (
        f"A Vision Transformer of width {config['width']} with {config['depth']} blocks and {config['heads']} heads, patches "
        f"of {config['patch_size']} pixels, {positions} positions, made for images of {height} x {width} pixels"
    )
    pooled = "its class token" if config["pooling"] == "class_token" else "the average of its patches' features"
    own = "" if known.to == "onnx" else " The I-JEPA predictor it was trained with is included." * known.has_predictor
    stored = "" if known.dtype == "float32" else f" Weights are stored in {known.dtype}."
    return f"{sentence}{shape}. One vector per image is {pooled}.{own}{stored} Written by `openjepa convert` of openjepa."


def _loading(known: CardFacts) -> Iterator[str]:
    yield "## How to load it"
    for library, code in loading(known.to, known.name, known.config, known.model):
        yield f"With {library}:"
        yield f"```python\n{code}\n```"
    yield _hub_sentence(known)
    if known.to == "onnx":
        yield (
            "Evaluations resize so that the short side is 256/224 of the size above and take the center. "
            f"Any number of images of any size whose sides {known.config['patch_size']} divides will do."
        )
    if known.to == "official":
        yield "`encoder` is the context encoder where it is there, `target_encoder` the one that the paper evaluates."


def _hub_sentence(known: CardFacts) -> str:
    """What stands in place of the folder for who finds it on the Hub."""
    if known.to in ("transformers", "safetensors"):
        return f"`{known.name}` is this folder; on the Hub put `owner/{known.name}` there."
    if known.to == "timm":
        return f"`{known.name}` is this folder; on the Hub put `owner/{known.name}` there, and `hf-hub:` for `local-dir:`."
    return f"`{known.name}` is this folder."


def _training(known: CardFacts) -> Iterator[str]:
    run = known.run
    yield "## Training data"
    if run is None or run.is_encoder:
        where = f"the weights were read from `{text(known.source, 120)}`"
        yield f"{where[:1].upper()}{where[1:]}; {SETTINGS_SENTENCE if known.has_settings else 'its data is not known here.'}"
        return
    data = next((row.values[0] for row in facts([run]) if row.label == "Data"), "")
    yield f"{data or 'Not recorded.'}{'.' if data else ''} No labels were used."
    yield "## Recipe"
    rows = {row.label: row.values[0] for row in facts([run])}
    method = method_name(run)
    lines = [("Method", method)] * bool(method) + [(label, rows[label]) for label in RECIPE_FACTS if rows.get(label)]
    yield _table(("", ""), lines)
    if known.has_settings:
        yield f"{SETTINGS_SENTENCE[:1].upper()}{SETTINGS_SENTENCE[1:]}"


def _results(known: CardFacts) -> Iterator[str]:
    subjects = [name for name in SUBJECTS if any(name in result.subjects for result in known.results)]
    lines = [line for result in known.results for line in _lines(result, subjects)]
    yield "## Results"
    if not lines:
        yield "None recorded for these weights. `openjepa evaluate` writes them."
        return
    yield "In percent, with the standard error over the test images."
    yield _table(("task", "probe", *(SUBJECTS[name] for name in subjects), "test images"), lines)
    if known.dtype != "float32":
        yield f"Measured with weights in float32, before they were stored in {known.dtype}."


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


def _checks(known: CardFacts) -> Iterator[str]:
    if known.checks:
        yield "## Checks"
        yield "When this folder was written:"
        yield "\n".join(f"- {item}" for item in known.checks)


def _limits(known: CardFacts) -> Iterator[str]:
    config = known.config
    lines = [text(item[:1].upper() + item[1:], 400) + "." for item in known.remarks]
    if known.to in ("transformers", "timm", "official") and config["positions"] == "sincos":
        lines.append(
            "At image sizes other than the one above, other programs stretch the fixed sin-cos positions and openjepa "
            "continues them: features differ there. `openjepa convert --image-size` writes the positions of another size."
        )
    if known.to == "timm" and config["positions"] == "learned":
        lines.append("At other image sizes timm smooths learned positions when it makes them fewer, which openjepa does not.")
    lines.append("Features carry the biases of the images they were learned from; nothing was done about them.")
    lines.append(f"It was not tried for anything {'but the results above' if known.results else 'here'}.")
    yield "## Limits"
    yield "\n".join(f"- {line}" for line in lines)


def _license(known: CardFacts) -> Iterator[str]:
    yield "## License"
    if not known.is_ours:
        yield (
            f"The weights were converted from `{text(known.source, 120)}` ({text(known.what, 160)}), and the license of that "
            "file applies to them: converting does not change it. The released weights of I-JEPA, MAE and MSN are CC BY-NC 4.0 "
            "(not for commercial use), those of DINO and iBOT Apache-2.0."
        )
    if known.is_ours and (start := _start(known.run)):
        yield f"Training began from the weights `{start}`; their license may bind these too."
    yield (
        f"License given by who converted the weights: {known.license}."
        if known.license
        else "The license of these weights is not stated; ask whoever gave you this folder before you use them."
    )
