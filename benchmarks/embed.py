"""Features of images by openjepa and by plain `transformers`: `python -m benchmarks.embed [--output FILE]`.

Both read the same random weights of a ViT-S/16 at 224 px, written by transformers (`IJepaModel.save_pretrained`), and run on a
CPU with the same number of threads. There are two comparisons by wall clock, which take turns within each round:

forward     openjepa: pooled features from uint8 pixels, as `openjepa embed` calls its encoder. transformers: IJepaModel from
            finished `pixel_values`, in evaluation mode without gradients, with its fused attention (sdpa), averaged over the
            patches. It runs in batches of 32 and of 64, and the faster one counts.
with files  openjepa: all of `openjepa embed` except loading the encoder. Generated 500x375 JPEGs are decoded, resized to a
            short side of 256 (bicubic), cropped, encoded, and written as a table. They are decoded by the encoder's own
            threads in turns with it, which is the default, and by one and two processes beside it. transformers: Pillow, the
            ViTImageProcessor of its Pillow backend (resizes to 224x224, bilinear, fewer pixels than ours), and the model.
            Its features stay in memory.

Rates are medians over the rounds. Ratios are computed within each round; their median, smallest and largest are reported. A
4096-cubed product in bf16 and in fp32 is also timed in every round, because the gain from bf16 depends on the processor at that
time. If the features disagree, there is no result.
"""

import os
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import tyro
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from benchmarks.records import keep, origin
from openjepa.experiments.generated_photos import write_photos
from openjepa.experiments.step_times import matmul_rate
from openjepa.inference.embedding.compute import can_pack, pack
from openjepa.inference.embedding.embedding_run import embed_dataset
from openjepa.inference.encoder import Encoder
from openjepa.settings.inference import EmbedSettings
from openjepa.settings.sources import FolderSettings
from openjepa.weights.formats import load_any

SHAPE = {"hidden_size": 384, "num_hidden_layers": 12, "num_attention_heads": 6, "intermediate_size": 1536}
SIZE, PATCH = 224, 16
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
Rounds = dict[str, list[float]]
LARGEST_DISTANCE = {"fp32": 1e-5, "bf16": 1e-3}
"""1 - cosine between features of both programs."""


@dataclass(frozen=True)
class Options:
    """What is compared."""

    images: int = 64
    """Prepared images of a forward."""
    files: int = 128
    """JPEG files."""
    rounds: int = 7
    """After one that warms up."""
    threads: int | None = None
    """None: all cores."""
    output: Path | None = None
    """JSON file."""


def main() -> None:
    """Runs and prints."""
    options = tyro.cli(Options)
    os.environ["HF_HUB_OFFLINE"] = "1"
    if options.threads is not None:
        torch.set_num_threads(options.threads)
    with tempfile.TemporaryDirectory(prefix="openjepa-embed-") as folder:
        result = compare(options, Path(folder))
    keep(result, options.output)


def compare(options: Options, folder: Path) -> dict[str, object]:
    """Images per second of every version, and how ours compare."""
    weights = write_weights(folder / "weights")
    (folder / "photos").mkdir()
    write_photos(folder / "photos", options.files)
    forward = forward_versions(weights, options.images)
    files = file_versions(weights, folder / "photos", folder / "features.npy")
    started = os.getloadavg()[0]
    rates, products = zip(measure(forward, options.images, options), measure(files, options.files, options), strict=True)
    import transformers

    return {
        **origin(),
        "load_before": round(started, 2),
        "transformers": transformers.__version__,
        "rounds": options.rounds,
        "model": f"ViT-S/{PATCH} at {SIZE}, random weights",
        "distance_of_features": distances(forward),
        "forward": summary(rates[0], products[0]),
        "with files": summary(rates[1], products[1]),
    }


def write_weights(folder: Path) -> Path:
    """A folder as transformers writes it."""
    from transformers import IJepaConfig, IJepaModel

    torch.manual_seed(0)
    config = IJepaConfig(**SHAPE, image_size=SIZE, patch_size=PATCH, layer_norm_eps=1e-6)
    IJepaModel(config).save_pretrained(folder)
    return folder


def their_model(weights: Path, dtype: torch.dtype) -> Any:
    """transformers' model."""
    from transformers import IJepaModel

    model = IJepaModel.from_pretrained(weights, dtype=dtype, attn_implementation="sdpa").eval()
    assert model.dtype == dtype and model.config._attn_implementation == "sdpa"
    return model


def our_encoder(weights: Path, precision: str) -> Encoder:
    """The encoder as `openjepa embed` has it."""
    encoder = Encoder(load_any(weights))
    if can_pack(encoder.device, precision):
        pack(encoder.network)
    return encoder


def forward_versions(weights: Path, number: int) -> dict[str, Callable[[], Tensor]]:
    """What gives features of prepared images."""
    pixels = torch.randint(0, 256, (number, 3, SIZE, SIZE), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (MEAN, STD))
    values = (pixels / 255 - mean) / std

    def ours(precision: str) -> Callable[[], Tensor]:
        encoder = our_encoder(weights, precision)
        return lambda: encoder.encode_pixels(pixels, precision).pooled("average")  # type: ignore[arg-type]

    versions = {f"openjepa {precision}": ours(precision) for precision in ("bf16", "fp32")}
    for name, dtype in (("fp32", torch.float32), ("bf16", torch.bfloat16)):
        model, typed = their_model(weights, dtype), values.to(dtype)
        for batch in (32, 64):
            versions[f"transformers {name}, batches of {batch}"] = _forward(model, typed, batch)
    return versions


def _forward(model: Any, values: Tensor, batch: int) -> Callable[[], Tensor]:
    @torch.no_grad()
    def run() -> Tensor:
        return torch.cat([model(pixel_values=part).last_hidden_state.mean(dim=1).float() for part in values.split(batch)])

    return run


def file_versions(weights: Path, photos: Path, table: Path) -> dict[str, Callable[[], float]]:
    """What gives features of files; each returns the seconds that count."""
    from transformers import ViTImageProcessorPil

    processor = ViTImageProcessorPil(size={"height": SIZE, "width": SIZE}, image_mean=MEAN, image_std=STD)
    files = sorted(photos.iterdir())

    def ours(precision: str, workers: int = 0) -> Callable[[], float]:
        settings = EmbedSettings(
            device="cpu",
            precision=precision,  # type: ignore[arg-type]
            dtype="float32",
            threads=torch.get_num_threads(),
            workers=workers,
        )
        return lambda: embed_dataset(weights, FolderSettings(path=str(photos)), settings, table, again=True).seconds

    def theirs(dtype: torch.dtype, batch: int) -> Callable[[], float]:
        model = their_model(weights, dtype)

        @torch.no_grad()
        def run() -> float:
            start = time.perf_counter()
            features = []
            for first in range(0, len(files), batch):
                images = [Image.open(file).convert("RGB") for file in files[first : first + batch]]
                values = processor(images=images, return_tensors="pt")["pixel_values"].to(dtype)
                features.append(model(pixel_values=values).last_hidden_state.mean(dim=1).float())
            assert torch.cat(features).isfinite().all()
            return time.perf_counter() - start

        return run

    versions = {f"openjepa {precision}": ours(precision) for precision in ("bf16", "fp32")}
    versions |= {f"openjepa bf16, {workers} processes decode": ours("bf16", workers) for workers in (1, 2)}
    for name, dtype in (("fp32", torch.float32), ("bf16", torch.bfloat16)):
        for batch in (32, 64):
            versions[f"transformers {name}, batches of {batch}"] = theirs(dtype, batch)
    return versions


def distances(versions: dict[str, Callable[[], Tensor]]) -> dict[str, float]:
    """Largest 1 - cosine to the features of transformers in fp32. Raises ValueError where they are not the same features."""
    exact = versions["transformers fp32, batches of 32"]().double()
    found = {name: float((1 - F.cosine_similarity(run().double(), exact)).max()) for name, run in versions.items()}
    for name, distance in found.items():
        if distance > LARGEST_DISTANCE["bf16" if "bf16" in name else "fp32"]:
            raise ValueError(f"features of {name} are others: 1 - cosine is {distance:.2g}")
    return found


def measure(versions: dict[str, Callable[[], Any]], number: int, options: Options) -> tuple[Rounds, Rounds]:
    """By round, images/s of each version and GFLOP/s of a matrix product in bf16 and fp32; the first round warms up."""
    rates: Rounds = {name: [] for name in versions}
    products: Rounds = {"bf16": [], "fp32": []}
    for turn in range(options.rounds + 1):
        for precision, found in products.items():
            rate = matmul_rate(torch.device("cpu"), precision, seconds=0.3) / 1e9
            if turn:
                found.append(rate)
        for name, run in versions.items():
            start = time.perf_counter()
            seconds = run()
            if not isinstance(seconds, float):
                seconds = time.perf_counter() - start
            if turn:
                rates[name].append(number / seconds)
    return rates, products


def summary(rates: Rounds, products: Rounds) -> dict[str, object]:
    """How many times as fast ours is as theirs at its faster batch size, and the product in bf16 as in fp32."""
    medians = {name: statistics.median(values) for name, values in rates.items()}
    ratios = {"product bf16 / product fp32": _spread(products["bf16"], products["fp32"])}
    for ours in ("bf16", "fp32"):
        for theirs in ("fp32", "bf16"):
            name = max((item for item in medians if item.startswith(f"transformers {theirs}")), key=lambda item: medians[item])
            ratios[f"openjepa {ours} / {name}"] = _spread(rates[f"openjepa {ours}"], rates[name])
    return {
        "product_gflops_per_second": {name: round(statistics.median(values)) for name, values in products.items()},
        "images_per_second": {name: round(value, 1) for name, value in medians.items()},
        "ratios": ratios,
    }


def _spread(ours: list[float], theirs: list[float]) -> dict[str, float]:
    """Of the rounds' ratios."""
    ratios = [a / b for a, b in zip(ours, theirs, strict=True)]
    return {"median": round(statistics.median(ratios), 2), "smallest": round(min(ratios), 2), "largest": round(max(ratios), 2)}


if __name__ == "__main__":
    main()
