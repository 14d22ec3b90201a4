"""Converts weights: reads them, writes them in another format, checks the result and adds a model card.

The check reads the written weights back and compares their outputs with those of the original networks on the same random
images. The folder appears only when it is complete.
"""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from jaxtyping import UInt8
from safetensors import SafetensorError
from torch import Tensor, nn

import openjepa
from openjepa.engine.run_folder import without_ending
from openjepa.models.vit import VisionTransformer, build_encoder
from openjepa.records import Result
from openjepa.refusals import Refusal, require_package
from openjepa.settings.inference import CONVERTED_MARK, ConvertSettings
from openjepa.settings.models import EncoderConfig, height_and_width
from openjepa.system.console import Say, silent
from openjepa.system.shared_files import is_writable, whole_folder
from openjepa.types import EncoderOutput, normalize
from openjepa.weights import OUTPUTS
from openjepa.weights.contents import weights_hash
from openjepa.weights.convert.card import CardFacts, card
from openjepa.weights.convert.origin import TRAINING, Mark, Origin, find_origin
from openjepa.weights.formats import DTYPES, Loaded, Networks, WeightsChoice, Write, check_holds, load_any
from openjepa.weights.onnx import FILE as ONNX_FILE
from openjepa.weights.onnx import check_packages
from openjepa.weights.transformers import model_class

SLOW = {"onnx": ": torch traces the network, about a second per block"}
CARD, RESULTS = "README.md", "eval"


@dataclass(frozen=True)
class Check:
    """One successful comparison."""

    what: str
    difference: float
    """The largest difference between any two compared numbers."""

    def words(self) -> str:
        """The comparison and its difference in words."""
        return f"{self.what} {f'differ by at most {self.difference:.2g}' if self.difference else 'are equal'}"


@dataclass(frozen=True)
class Conversion:
    """The result of a conversion."""

    folder: Path
    to: str
    what: str
    """A few words that say what was read."""
    checks: Sequence[Check]
    remarks: Sequence[str]
    """Remarks for the user: omitted parts, and anything else worth knowing."""
    config: Mapping[str, Any]
    """The encoder's settings."""
    model: str
    """The encoder's class in transformers."""


def output_folder(settings: ConvertSettings) -> Path:
    """The folder to write. Raises Refusal if something in its place must not be replaced."""
    subject = settings.subject.expanduser().resolve()
    folder = (
        settings.output.expanduser() if settings.output else Path(f"{without_ending(subject.name)}-{settings.to}")
    ).resolve()
    existing = next(item for item in (folder, *folder.parents) if item.exists())
    if not existing.is_dir():
        raise Refusal(f"output={str(folder)!r}: {existing} is a file, but a folder is needed; name another one")
    if subject == folder or folder in subject.parents:
        raise Refusal(f"output={str(folder)!r} holds what is converted; name another folder")
    if not is_writable(folder.parent):
        raise Refusal(f"output={str(folder)!r}: nothing may be written into {folder.parent}; name another --output")
    if not folder.exists():
        return folder
    if not settings.overwrite:
        raise Refusal(f"output={str(folder)!r} exists; name another folder, or replace it with --overwrite")
    if not (folder / CONVERTED_MARK).is_file() and any(folder.iterdir()):
        raise Refusal(
            f"output={str(folder)!r} was not written by `openjepa convert` (it holds no {CONVERTED_MARK}) and is not replaced; "
            "remove it yourself, or name another folder"
        )
    if (folder / RESULTS).is_dir():
        raise Refusal(
            f"output={str(folder)!r} holds {RESULTS}/, results of `openjepa evaluate` that would be lost; move them, or name "
            "another folder"
        )
    return folder


def convert(settings: ConvertSettings, say: Say = silent) -> Conversion:
    """Converts weights, and checks the written folder.

    Steps are reported to `say`. Raises Refusal if settings do not fit or if the written weights are not equal, and OSError if
    the folder cannot be written. Nothing is left behind then.
    """
    to = _checked(settings)
    folder = output_folder(settings)
    say(f"reading {settings.subject}")
    loaded = load_any(settings.subject, WeightsChoice(encoder=settings.encoder, heads=settings.heads))
    for note in loaded.notes:
        say(f"note: {note}")
    loaded = _resized(loaded, settings.image_size)
    origin = find_origin(settings.subject, loaded)
    check_holds(to, loaded.config, tuple(OUTPUTS))
    networks, notes = _networks(settings, loaded, origin)
    results, of_others = origin.results_of(settings.encoder, settings.image_size is None)
    with whole_folder(folder) as unfinished:
        say(f"writing {to}{SLOW.get(to, '')}")
        notes += _written(unfinished, to, networks, settings.dtype)
        say("checking what was written")
        checks = verify(unfinished, to, networks)
        if not checks:
            notes.append("nothing was checked, since onnxruntime is missing: pip install 'openjepa[onnx]'")
        notes += of_others
        done = Conversion(folder, to, loaded.what, checks, notes, asdict(loaded.config), model_class(loaded.config))
        _write_notes(unfinished, settings, done, networks, origin, results)
    return done


def _checked(settings: ConvertSettings) -> str:
    """The output format. Raises Refusal if the settings cannot work, before anything is read."""
    if settings.to is None:
        raise Refusal(f"to=None: say the format with --to ({', '.join(OUTPUTS)})")
    if settings.license is not None and not re.fullmatch(r"[a-z0-9][a-z0-9.-]*", settings.license):
        raise Refusal(
            f"license={settings.license!r} is no identifier of the Hugging Face Hub; give one like apache-2.0 or cc-by-nc-4.0"
        )
    require_package("jinja2", "the model card")
    if settings.to == "onnx":
        check_packages()
    return settings.to


def _resized(loaded: Loaded, size: int | tuple[int, int] | None) -> Loaded:
    """The weights with positions for images of `size`; unchanged if it is None."""
    if size is None:
        return loaded
    config = replace(loaded.config, image_size=height_and_width(size))
    encoder = _built(config, loaded.encoder.weights_for(config.grid()))
    return replace(loaded, encoder=encoder, config=config)


def _built(config: Any, weights: Mapping[str, torch.Tensor]) -> VisionTransformer:
    with torch.random.fork_rng(devices=[]):
        encoder = build_encoder(config)
    encoder.load_state_dict(weights)
    return encoder.eval()


def _networks(settings: ConvertSettings, loaded: Loaded, origin: Origin) -> tuple[Networks, list[str]]:
    """The networks to write, with weights rounded to the stored type, and remarks."""
    context = None
    steps = {"encoder": loaded.training.get("step"), "predictor": loaded.predictor_extra.get("step")}
    if settings.to == "official":
        if settings.encoder == "context":
            raise Refusal("encoder='context' has no effect with --to official, which holds both encoders; leave it out")
        if "context" in loaded.encoders:
            other = load_any(settings.subject, WeightsChoice(encoder="context", heads=settings.heads, predictor=False))
            context = _resized(other, settings.image_size).encoder
            steps["context encoder"] = other.training.get("step")
    networks = Networks(
        loaded.encoder,
        loaded.config,
        loaded.predictor,
        loaded.predictor_config,
        loaded.predictor_extra,
        context,
        {**origin.training, **loaded.training},
        origin.source,
    )
    notes = [] if settings.dtype == "float32" else [_rounded(networks, settings.dtype)]
    known = {name: step for name, step in steps.items() if step is not None}
    if len(set(known.values())) > 1:
        said = ", ".join(f"the {name} is of step {step}" for name, step in known.items())
        notes.append(f"{said}: the training was just writing them, so convert again")
    return networks, notes


@torch.no_grad()
def _rounded(networks: Networks, dtype: str) -> str:
    """Rounds the weights in place to what `dtype` can hold. Returns a remark on how much that changes the features."""
    images = random_images(networks.config.image_size)
    before = outputs(networks.encoder, images).patches
    for module in (networks.encoder, networks.predictor, networks.context):
        for name, value in module.named_parameters() if module is not None else ():
            value.copy_(value.to(DTYPES[dtype]).float())
            if not bool(value.isfinite().all()):
                raise Refusal(f"dtype={dtype!r} cannot hold the weights {name}, which are too large; use bfloat16 or float32")
    after = outputs(networks.encoder, images).patches
    moved = float(((after - before).norm(dim=-1) / before.norm(dim=-1)).max())
    return f"rounding to {dtype} moves features on random images by at most {100 * moved:.2g} % of their length"


def _written(folder: Path, to: str, networks: Networks, dtype: str) -> list[str]:
    """Writes the weights and returns remarks. Turns the libraries' errors about a full disk into OSError."""
    try:
        write: Write = OUTPUTS[to].load()
        return write(folder, networks, dtype)
    except (SafetensorError, RuntimeError, OSError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise OSError(f"{to} could not be written to {folder.parent}: {reason}; nothing was left behind") from error


def _write_notes(
    folder: Path,
    settings: ConvertSettings,
    done: Conversion,
    networks: Networks,
    origin: Origin,
    results: Sequence[Result],
) -> None:
    """Writes the card, the run's settings, and the mark by which a later conversion recognizes the folder."""
    facts = CardFacts(
        name=done.folder.name,
        to=done.to,
        what=origin.what or done.what,
        source=origin.source,
        config=done.config,
        model=done.model,
        dtype=settings.dtype,
        has_predictor=networks.predictor is not None,
        license=settings.license or origin.license,
        is_ours=origin.is_ours,
        which=str(networks.training.get("role", settings.encoder)),
        has_settings=origin.settings is not None,
        run=origin.run,
        results=results,
        checks=[check.words() for check in done.checks],
        remarks=done.remarks,
    )
    (folder / CARD).write_text(card(facts), encoding="utf-8")
    if origin.settings is not None:
        (folder / TRAINING).write_text(yaml.safe_dump(dict(origin.settings), sort_keys=False, width=120), encoding="utf-8")
    mark = Mark(
        to=done.to,
        source=origin.source,
        is_ours=origin.is_ours,
        what=facts.what,
        encoder=settings.encoder,
        dtype=settings.dtype,
        license=facts.license,
        weights=weights_hash(networks.encoder),
        training=networks.training,
        checks=[asdict(check) for check in done.checks],
        openjepa=openjepa.__version__,
    )
    (folder / CONVERTED_MARK).write_text(json.dumps(asdict(mark), indent=1) + "\n")


# ---------------------------------------------------------------------------------------------------- checks of written weights


TOLERANCE = 2e-5
"""Largest allowed difference of a feature. Final norms make features of about size 1."""
SEED = 20230119
IMAGES = 2
NOT_NEEDED = "mask_token"
"""The encoder's weight that other programs' formats leave out."""


def verify(folder: Path, to: str, networks: Networks) -> list[Check]:
    """Compares the files in `folder` with the networks that they were written from. Raises Refusal if they differ.

    ONNX files are run by onnxruntime. If that package is missing, nothing is checked, and the list is empty.
    """
    return _verify_graph(folder / ONNX_FILE, networks) if to == "onnx" else _verify_folder(folder, to, networks)


def sizes_of(config: EncoderConfig) -> list[tuple[int, int]]:
    """Sizes (height, width) in pixels at which outputs are compared: the training size, and a smaller one of another shape."""
    rows, columns = config.grid()
    other = (max(1, rows // 2), columns // 2 + 1)
    if other == (rows, columns):
        other = (rows, columns + 1)
    return [config.image_size, (other[0] * config.patch_size, other[1] * config.patch_size)]


def random_images(size: tuple[int, int], number: int = IMAGES) -> UInt8[Tensor, "B 3 h w"]:
    """Images of random pixels, the same in every call."""
    generator = torch.Generator().manual_seed(SEED)
    return torch.randint(0, 256, (number, 3, *size), dtype=torch.uint8, generator=generator)


@torch.no_grad()
def outputs(encoder: VisionTransformer, images: UInt8[Tensor, "B 3 h w"]) -> EncoderOutput:
    """The encoder's outputs for uint8 images, in fp32."""
    config = encoder.config
    result: EncoderOutput = encoder(normalize(images, config.pixel_mean, config.pixel_std))
    return result


def _verify_folder(folder: Path, to: str, networks: Networks) -> list[Check]:
    heads = networks.config.heads
    loaded = load_any(folder, WeightsChoice(heads=heads))
    checks = [_compared(networks.encoder, loaded.encoder, to)]
    if networks.context is not None:
        context = load_any(folder, WeightsChoice(encoder="context", heads=heads, predictor=False)).encoder
        checks.append(_compared(networks.context, context, "its context encoder"))
    if networks.predictor is not None and loaded.predictor is not None:
        _check_weights(networks.predictor, loaded.predictor, "predictor")
        checks.append(Check("the predictor, read back by openjepa: weights", 0.0))
    return checks


def _compared(expected: VisionTransformer, found: VisionTransformer, what: str) -> Check:
    _check_weights(expected, found, what)
    differences = []
    for size in sizes_of(expected.config):
        images = random_images(size)
        ours, theirs = outputs(expected, images), outputs(found, images)
        differences.append(_largest(ours.patches, theirs.patches))
        pooled = expected.config.pooling
        differences.append(_largest(ours.pooled(pooled), theirs.pooled(found.config.pooling)))
    return _check(f"{what}, read back by openjepa: weights, and features at {_words(expected.config)}", max(differences))


def _check_weights(expected: nn.Module, found: nn.Module, what: str) -> None:
    """Raises Refusal if a weight is not bit for bit the same."""
    ours = {name: value for name, value in expected.state_dict().items() if name != NOT_NEEDED or what == "predictor"}
    theirs = found.state_dict()
    wrong = [name for name, value in ours.items() if name not in theirs or not torch.equal(value, theirs[name])]
    if wrong:
        raise Refusal(f"{what}: {len(wrong)} weights came back changed, {wrong[0]} first; nothing was written")


def _verify_graph(path: Path, networks: Networks) -> list[Check]:
    try:
        import onnxruntime
    except ImportError:
        return []
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    differences = []
    for number, size in zip((1, IMAGES + 1), sizes_of(networks.config), strict=True):
        images = random_images(size, number)
        expected = outputs(networks.encoder, images)
        patches, pooled = _run(session, images)
        rows, columns = networks.config.grid(size)
        shape = (number, rows, columns, networks.config.width)
        if patches.shape != shape:
            raise Refusal(f"onnx: patches came out as {list(patches.shape)}, not {list(shape)}; nothing was written")
        differences.append(_largest(expected.patches, torch.from_numpy(patches).flatten(1, 2)))
        differences.append(_largest(expected.pooled(networks.config.pooling), torch.from_numpy(pooled)))
    return [
        _check(f"onnx, run by onnxruntime {onnxruntime.__version__}: features at {_words(networks.config)}", max(differences))
    ]


def _run(session: Any, images: UInt8[Tensor, "B 3 h w"]) -> tuple[np.ndarray, np.ndarray]:
    patches, pooled = session.run(["patches", "pooled"], {"images": images.numpy()})
    return patches, pooled


def _words(config: EncoderConfig) -> str:
    return " and ".join(f"{height}x{width}" for height, width in sizes_of(config))


def _largest(ours: Tensor, theirs: Tensor) -> float:
    return float((ours - theirs).abs().max())


def _check(what: str, difference: float) -> Check:
    if not difference <= TOLERANCE:  # written so that nan is refused, too
        raise Refusal(f"{what} differ by up to {difference:.2g}, more than {TOLERANCE:g}; nothing was written")
    return Check(what, difference)
