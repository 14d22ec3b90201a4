"""Writes a run folder as `openjepa train`, `evaluate` and `visualize` leave it, with plausible numbers and no training."""

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from PIL import Image

from openjepa.experiments.ablations.ablation_tables import RunResult
from openjepa.records import Metric, Result, SubjectResult

CONFIG = {
    "recipe": "ijepa-vits16",
    "preset": "paper",
    "method": {"name": "ijepa", "predictor_width": 192, "predictor_depth": 6, "ema_start": 0.996, "loss": "smooth_l1"},
    "model": {"size": "small", "patch_size": 8, "class_token": False, "drop_path": 0.0},
    "masks": {
        "strategy": "multiblock",
        "mode": "unbiased",
        "num_targets": 4,
        "target_scale": [0.15, 0.2],
        "context_ratio": 0.25,
    },
    "data": {
        "source": "huggingface",
        "path": "dogs/imagewoof128",
        "image_size": 64,
        "crop_scale": [0.3, 1.0],
        "cache": "memory",
    },
    "optim": {"batch_size": 128, "epochs": 60, "lr": 0.001, "warmup_epochs": 5, "final_weight_decay": 0.4},
    "run": {"name": "woof", "seed": 0, "precision": "bf16"},
    "monitor": {"every": 100, "images": 512},
    "system": {"workers": 2, "log_every": 10},
}
TOTAL_STEPS = 4400


def write_run(folder: Path, seed: int = 0, steps: int = TOTAL_STEPS, status: str = "finished") -> Path:
    """A run without evaluations and pictures; `steps` of TOTAL_STEPS are done."""
    folder.mkdir(parents=True)
    config = {**CONFIG, "optim": {**CONFIG["optim"], "lr": 0.001 * (1 + seed)}, "run": {**CONFIG["run"], "seed": seed}}
    (folder / "config.yaml").write_text(yaml.safe_dump(config, sort_keys=False))
    environment = {
        "openjepa": "0.1.0",
        "torch": "2.13.0+cpu",
        "python": "3.11.7",
        "platform": "Linux-6.1-x86_64",
        "cpu": "AMD EPYC 9R14, 2 cores",
        "device": "cpu",
        "precision": "bf16",
        "commit": "9ba2e7b1",
        "command": "openjepa train ijepa-vits16 --data.source huggingface --data.path dogs/imagewoof128 --data.image-size 64",
        "started": "2026-11-23T19:46:26Z",
    }
    _write(folder / "environment.json", environment)
    parameters = {"encoder": 21_600_000, "predictor": 2_900_000}
    summary = {
        "status": status,
        "step": steps,
        "total_steps": TOTAL_STEPS,
        "images_seen": 128 * steps,
        "seconds": 0.29 * steps,
        "step_seconds": 0.26 * steps,
        "parameters": parameters,
        "flops_per_image": 3.1e9,
        "final_loss": 0.081,
        "mask_mode": "multiblock/unbiased/random_subset",
        "data": "imagewoof128: 9,025 training and 3,929 test images of 10 classes",
        "train_images": 9025,
        "collapsed": False,
        "verdict": "The features keep their spread and rank: no sign of collapse.",
    }
    _write(folder / "summary.json", summary)
    _write(folder / "encoder" / "config.json", {"format": "openjepa-encoder", "width": 384, "depth": 12, "heads": 6})
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in _lines(seed, steps)))
    return folder


def _lines(seed: int, steps: int) -> list[dict[str, object]]:
    generator = np.random.default_rng(seed)
    lines: list[dict[str, object]] = []
    for step in range(10, steps + 1, 10):
        done = step / TOTAL_STEPS
        loss = 0.09 + 0.12 * math.exp(-step / 300) + 0.05 * done + 0.004 * generator.standard_normal()
        rate = 1e-3 * min(1.0, step / 370) * (0.5 + 0.5 * math.cos(math.pi * done))
        train = {"kind": "train", "step": step, "epoch": step / 73, "images": 128 * step, "seconds": 0.26 * step, "loss": loss}
        train |= {"lr": rate, "weight_decay": 0.04 + 0.36 * done, "momentum": 0.996 + 0.004 * done}
        train |= {"grad_norm": 0.6 + 0.3 * math.exp(-step / 200) + 0.05 * generator.standard_normal()}
        train |= {"images_per_second": 490 + 12 * generator.standard_normal(), "context_tokens": 16, "target_tokens": 12}
        lines.append(train | {"mask_redrawn": 2, "mask_padded": 0})
        if step % 100 == 0:
            monitor = {"kind": "monitor", "step": step, "feature_std": 0.2 + 0.6 * done**0.5, "cosine": 0.93 - 0.7 * done**0.4}
            monitor |= {
                "rankme": 22 + 150 * done**0.7 + generator.standard_normal(),
                "loss": loss - 0.003,
                "knn": 0.24 + 0.2 * done**0.5,
            }
            lines.append(monitor | {"loss_mean_target": 0.21 + 0.08 * done, "loss_position_mean": 0.18 + 0.06 * done})
    return lines


def write_evaluations(folder: Path, shift: float = 0.0) -> None:
    """eval/classification.json as the evaluation writes it."""
    linear = Metric(0.0, 0.0, "higher", "held_out", "last_four, batch_norm, lr 0.03, weight decay 0.0005", probe="linear")
    neighbors = Metric(0.0, 0.0, "higher", "held_out", "last, knn, k 20", probe="k-NN")
    values = {"encoder": (0.612 + shift, 0.534 + shift), "untrained": (0.451, 0.302), "pixels": (0.41, 0.281)}
    subjects = {
        name: SubjectResult({"linear": _measured(linear, first), "k-NN": _measured(neighbors, second)})
        for name, (first, second) in values.items()
    }
    head = {"subject": "encoder", "metric": "linear", "features": "last", "head": "linear", "setting": "lr 0.1"}
    head |= {"held_out_accuracy": 0.6, "test_accuracy": 0.59, "chosen": False}
    heads = [head, head | {"features": "last_four", "head": "batch_norm", "chosen": True}]
    result = Result(
        "classification",
        "Classification",
        "run",
        "target",
        "held_out",
        subjects,
        heads,
        num_train=9025,
        num_test=3929,
        chance=0.105,
    )
    result.write(folder / "eval")
    skipped = Result("clevr_count", "Clevr/Count", "run", "target", "held_out", skipped="the data has no `count` labels")
    skipped.write(folder / "eval")


def write_variant(folder: Path, name: str, **changes: object) -> None:
    """Another file of eval/ with some fields changed; numbers of the encoder move by `shift`."""
    result = json.loads((folder / "eval" / "classification.json").read_text())
    shift = changes.pop("shift", 0.0)
    for metric in result["subjects"]["encoder"]["metrics"].values():
        metric["value"] += shift
    _write(folder / "eval" / f"{name}.json", result | changes)


def _measured(metric: Metric, value: float) -> Metric:
    return replace(metric, value=value, standard_error=math.sqrt(value * (1 - value) / 3929))


def write_pictures(folder: Path) -> None:
    """Two plain pictures with their list."""
    (folder / "figures").mkdir()
    for name, size in (("masks", (1600, 420)), ("pca", (1600, 640))):
        Image.effect_noise(size, 60).convert("RGB").save(folder / "figures" / f"{name}.png")
    listed = [
        {"title": "Masks", "caption": "Four target blocks and the context.", "file": "masks.png", "alt": "Images with blocks"},
        {"title": "Features", "caption": "Principal components as colors.", "file": "pca.png", "alt": "Feature maps"},
    ]
    _write(folder / "figures" / "figures.json", {"figures": listed})


def _write(path: Path, content: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content, indent=1))


def finished(row: str, seed: int, value: float, **changes: Any) -> RunResult:
    names = [f"{task}/{probe}" for task in ("classification", "clevr_count", "clevr_dist") for probe in ("linear", "knn")]
    numbers = dict.fromkeys(names, value) | {"rank": 120.4}
    values: dict[str, Any] = {"name": f"{row}-{seed}", "row": row, "seed": seed, "budgets": ("images",), "status": "finished"}
    costs = {"images": 384_000, "seconds": 12_345.6, "total_seconds": 23_456.7, "images_per_second": 12_345.6, "flops": 1.7e9}
    return RunResult(**values | costs | {"numbers": numbers} | changes)
