"""What is embedded by what: encoder, images, and the manifest that says so."""

import os
from pathlib import Path

import torch

from openjepa.config import load_run_config
from openjepa.data.loading.workers import available_cores
from openjepa.engine.device import resolve_device, resolve_precision, set_threads
from openjepa.inference.embedding.images import Images, open_images
from openjepa.inference.embedding.table import Manifest
from openjepa.inference.encoder import Encoder
from openjepa.refusals import Refusal
from openjepa.settings.inference import EmbedSettings
from openjepa.settings.sources import DataSettings, height_and_width
from openjepa.weights.fingerprint import weights_hash
from openjepa.weights.loading import Choice, load_any


def load_encoder(subject: Path | str, settings: EmbedSettings) -> Encoder:
    """The encoder on its device, the threads set. Raises Refusal where there is none, or not the one that is wanted."""
    name, processes = settings.device, local_processes()
    if name == "auto" and torch.cuda.is_available():
        name = f"cuda:{int(os.environ.get('LOCAL_RANK', 0)) % torch.cuda.device_count()}"
    device = resolve_device(name, "--device")
    if settings.threads is not None or processes > 1:
        set_threads(settings.threads or max(1, available_cores() // processes))
    choice = Choice(encoder=settings.encoder, heads=settings.heads, predictor=False)
    encoder = Encoder(load_any(subject, choice))
    if settings.pooling == "class_token" and not encoder.config.class_token:
        raise Refusal("--pooling class_token: this encoder has no class token; leave --pooling out, or use average")
    return encoder.to(device)


def local_processes() -> int:
    """Processes of this command on this machine, as torchrun says."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", "1"))


def find_images(subject: Path, data: DataSettings | None, settings: EmbedSettings) -> tuple[Images, int]:
    """The images and the seed with which they were opened: by default those of the run. Raises Refusal without any."""
    places = (subject, subject.absolute().parent) if subject.is_dir() else ()  # a run, or an encoder in a run
    folder = next((item for item in places if (item / "config.yaml").is_file()), None)
    run = None if folder is None else load_run_config(folder)
    used = data or (None if run is None else run.data)
    if used is None:
        raise Refusal(
            f"{subject} is no run, so the images must be named: give --data.path FOLDER (or --data.source huggingface "
            "--data.path ..., or --data.source scenes)"
        )
    seed = settings.seed if settings.seed is not None else 0 if run is None else run.run.seed
    return open_images(used, settings.splits, seed), seed


def make_manifest(subject: Path | str, encoder: Encoder, images: Images, seed: int, settings: EmbedSettings) -> Manifest:
    """What the table will say of itself. Raises Refusal for an image size that the patch size does not divide."""
    config, place = encoder.config, Path(subject).expanduser()
    size = height_and_width(settings.image_size or config.image_size)
    for side in size:
        if side % config.patch_size:
            below = max(config.patch_size, side - side % config.patch_size)
            raise Refusal(
                f"--image-size {side} is not a multiple of the patch size {config.patch_size}: use {below} or "
                f"{below + config.patch_size}"
            )
    is_pooled = settings.features == "pooled"
    return Manifest(
        subject=str(place.absolute() if place.exists() else subject),
        encoder=settings.encoder,
        heads=settings.heads,
        weights=weights_hash(encoder.network),
        kind=settings.features,
        shape=(config.width,) if is_pooled else (*config.grid(size), config.width),
        dtype=settings.dtype,
        pooling=config.pooling if settings.pooling == "own" else settings.pooling,
        view=settings.view,
        size=size,
        precision=resolve_precision(settings.precision, encoder.device),  # type: ignore[arg-type]
        data=images.entries(),
        splits=tuple(images.sources),
        seed=seed,
        images=images.described(),
        files=images.stamped(),
        class_names=images.class_names or (),
    )
