"""Renders laid-out scenes with mitsuba (extra `scenes`) into a folder like the one that CLEVR v1.0 unpacks to.

Every scene is a pure function of (seed, split, index), in whichever process it is rendered. Finished scenes are not rendered
again.
"""

import json
import multiprocessing
from collections.abc import Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from openjepa.config import read_object
from openjepa.data.scenes.layout import COLORS, LAYOUT_VERSION, SPLITS, SceneLayout, SceneObject, Split, lay_out_scene
from openjepa.refusals import Refusal, needed_for
from openjepa.system.console import progress
from openjepa.system.machine import available_cores
from openjepa.system.shared_files import whole_file

GROUND = 0.5
"""Reflectance of the ground."""
SKY = 0.25
"""Radiance of the sky, which fills the shadows."""
LAMPS = {"key": (2.2, 38.0), "fill": (3.0, 3.5), "back": (3.0, 4.5)}
"""Side and radiance of each square lamp. Their size makes the shadows soft."""
METAL_MIRROR = 0.6
"""Share of the light that metal mirrors in its own color. It scatters the rest, so that its color is seen from all sides."""
PASS_SAMPLES, WHITE = 4, 1.25
"""Number of light paths per pixel that are averaged before their radiance is clamped to WHITE. Without the clamp, lamps that
metal mirrors onto the ground would leave bright dots."""
MAX_PATH = 4
"""Longest light path, in segments."""


def load_mitsuba() -> Any:
    """The mitsuba module in its scalar variant, which needs neither a GPU nor LLVM. One thread: processes share the cores.

    Raises Refusal if the extra `scenes` is not installed.
    """
    with needed_for("rendering scenes"):
        import drjit
        import mitsuba
    mitsuba.set_variant("scalar_rgb")
    drjit.set_thread_count(1)
    return mitsuba


def render_picture(layout: SceneLayout, image_size: int, samples: int) -> NDArray[np.uint8]:
    """The picture [image_size, image_size, 3] of a scene in sRGB, with `samples` light paths per pixel."""
    mitsuba = load_mitsuba()
    # optimize=True would merge shapes and leave the lamps in a varying order, which changes what the random numbers sample.
    scene = mitsuba.load_dict(describe_scene(mitsuba, layout, image_size), parallel=False, optimize=False)
    passes = samples // PASS_SAMPLES
    seeds = range(layout.render_seed, layout.render_seed + passes)
    rendered = [np.minimum(mitsuba.render(scene, spp=PASS_SAMPLES, seed=seed), WHITE) for seed in seeds]
    linear = mitsuba.Bitmap(np.mean(rendered, axis=0, dtype=np.float32))
    return np.array(linear.convert(mitsuba.Bitmap.PixelFormat.RGB, mitsuba.Struct.Type.UInt8, srgb_gamma=True))


def describe_scene(mitsuba: Any, layout: SceneLayout, image_size: int) -> dict[str, Any]:
    """The scene as a nested dictionary for mitsuba."""
    transform, camera = mitsuba.ScalarTransform4f, layout.camera
    film = {"type": "hdrfilm", "width": image_size, "height": image_size, "pixel_format": "rgb", "rfilter": {"type": "box"}}
    scene: dict[str, Any] = {
        "type": "scene",
        "integrator": {"type": "path", "max_depth": MAX_PATH},
        "sensor": {
            "type": "perspective",
            "fov": camera.field_of_view_degrees,
            "to_world": transform().look_at(origin=camera.position, target=(0, 0, 0), up=(0, 0, 1)),
            "film": film,
            "sampler": {"type": "multijitter"},
        },
        "sky": {"type": "constant", "radiance": _gray(SKY)},
        "ground": {"type": "rectangle", "to_world": transform().scale(100), "bsdf": _diffuse(GROUND, GROUND, GROUND)},
    }
    for name, position in layout.lamps.items():
        side, radiance = LAMPS[name]
        scene[name] = {
            "type": "rectangle",
            "to_world": transform().look_at(origin=position, target=(0, 0, 0), up=(0, 0, 1)).scale(side / 2),
            "emitter": {"type": "area", "radiance": _gray(radiance)},
        }
    for number, item in enumerate(layout.objects):
        scene |= {f"object_{number}_{part}": shape for part, shape in enumerate(_shapes(mitsuba, item))}
    return scene


def _shapes(mitsuba: Any, item: SceneObject) -> list[dict[str, Any]]:
    """The surfaces of one object. A cylinder in mitsuba is open; two disks close it."""
    transform, solid, material = mitsuba.ScalarTransform4f, item.solid, {"bsdf": _material(item)}
    if solid.shape == "sphere":
        return [{"type": "sphere", "center": solid.center, "radius": solid.half} | material]
    upright = transform().translate(solid.center).rotate((0, 0, 1), solid.rotation_degrees).scale(solid.half)
    if solid.shape == "cube":
        return [{"type": "cube", "to_world": upright} | material]
    bottom, top = (0, 0, -1), (0, 0, 1)
    return [
        {"type": "cylinder", "p0": bottom, "p1": top, "radius": 1.0, "to_world": upright} | material,
        {"type": "disk", "to_world": upright @ transform().translate(top)} | material,
        {"type": "disk", "to_world": upright @ transform().translate(bottom).rotate((1, 0, 0), 180)} | material,
    ]


def _material(item: SceneObject) -> dict[str, Any]:
    """Material of an object. Rubber scatters light; metal mostly mirrors it.

    All materials are smooth, because rough ones take longer to load than to render.
    """
    srgb = np.array(COLORS[item.color]) / 255
    red, green, blue = np.where(srgb <= 0.04045, srgb / 12.92, ((srgb + 0.055) / 1.055) ** 2.4).tolist()
    if item.material == "rubber":
        return _diffuse(red, green, blue)
    tint = {"type": "rgb", "value": [float(value) ** 0.5 for value in (red, green, blue)]}
    mirror = {"type": "conductor", "material": "none", "specular_reflectance": tint}
    return {"type": "blendbsdf", "weight": METAL_MIRROR, "matte": _diffuse(red, green, blue), "mirror": mirror}


def _diffuse(red: float, green: float, blue: float) -> dict[str, Any]:
    return {"type": "twosided", "bsdf": {"type": "diffuse", "reflectance": {"type": "rgb", "value": [red, green, blue]}}}


def _gray(value: float) -> dict[str, Any]:
    return {"type": "rgb", "value": [value, value, value]}


@dataclass(frozen=True)
class RenderSettings:
    """Settings that all pictures of a folder share. They are kept in the folder's render.json."""

    seed: int
    image_size: int
    samples: int
    layout_version: int = LAYOUT_VERSION

    def check(self) -> None:
        """Raises Refusal if the settings would give no usable pictures."""
        if self.samples < PASS_SAMPLES or self.samples % PASS_SAMPLES:
            raise Refusal(f"samples={self.samples} must be a multiple of {PASS_SAMPLES} (32 to 64 leave little noise).")
        if self.image_size < 16:
            raise Refusal(f"image_size={self.image_size} is too small to see objects in: use at least 16 pixels.")


def render_scenes(
    output: Path, train: int, test: int, image_size: int, seed: int, samples: int, workers: int | None = None
) -> None:
    """Renders `train` training and `test` validation scenes into `output`, in the layout that CLEVR v1.0 unpacks to.

    Writes `images/{train,val}/*.png`, `scenes/CLEVR_{train,val}_scenes.json` and `masks/{train,val}/*.png` (value i + 1 if
    object i is seen). Finished scenes are kept, so that an interrupted command continues and a larger number adds scenes.
    `workers` is the number of processes; None means one per core. Raises Refusal if a number is out of range, or `output` holds
    pictures made with other settings.
    """
    settings = RenderSettings(seed, image_size, samples)
    settings.check()
    workers = available_cores() if workers is None else workers
    if min(train, test) < 1 or workers < 1:
        raise Refusal(f"train={train}, test={test} and workers={workers} must be at least 1.")
    if seed < 0:
        raise Refusal(f"seed={seed} must not be negative")
    load_mitsuba()
    _claim(output, settings)
    numbers: dict[Split, int] = {"train": train, "val": test}
    with _mapper(workers) as mapper:
        for split in SPLITS:
            _render_split(mapper, [_Job(output, split, index, settings) for index in range(numbers[split])])


@dataclass(frozen=True)
class _Job:
    output: Path
    split: Split
    index: int
    settings: RenderSettings


def _render_split(mapper: Any, jobs: list[_Job]) -> None:
    """Renders the missing scenes of a split and writes its annotations."""
    output, split = jobs[0].output, jobs[0].split
    annotations = []
    with progress(f"scenes: {split}", len(jobs), unit="scenes") as advance:
        for annotation in mapper(_finish_scene, jobs):
            annotations.append(annotation)
            advance(1)
    _write_annotations(output, split, annotations)


def _finish_scene(job: _Job) -> dict[str, Any]:
    """Renders a scene unless its files exist. Returns its annotation."""
    layout, size = lay_out_scene(job.settings.seed, job.split, job.index), job.settings.image_size
    picture = job.output / "images" / job.split / f"{layout.name}.png"
    mask = job.output / "masks" / job.split / f"{layout.name}.png"
    if not mask.exists():
        _save_png(mask, layout.mask(size))
    if not picture.exists():
        _save_png(picture, render_picture(layout, size, job.settings.samples))
    return layout.annotation(size)


def _save_png(path: Path, pixels: NDArray[np.uint8]) -> None:
    """Writes to a temporary name first, so that a file with its final name is complete."""
    with whole_file(path) as file:
        Image.fromarray(pixels).save(file, format="png")


def _write_annotations(output: Path, split: Split, annotations: list[dict[str, Any]]) -> None:
    path = output / "scenes" / f"CLEVR_{split}_scenes.json"
    info = {"split": split, "version": "1.0", "license": "Apache-2.0", "generator": "openjepa data scenes"}
    with whole_file(path) as file:
        file.write_text(json.dumps({"info": info, "scenes": annotations}, separators=(",", ":")))


def _claim(output: Path, settings: RenderSettings) -> None:
    """Writes the settings into a new folder. Raises Refusal if an existing folder has other settings."""
    path, wanted = output / "render.json", asdict(settings)
    if (found := read_object(path)) is not None:
        changed = [f"{name} {found.get(name)} (now {value})" for name, value in wanted.items() if found.get(name) != value]
        if changed:
            raise Refusal(f"{output} holds scenes rendered with {', '.join(changed)}. Use the same or another folder.")
        return
    if (output / "images").exists():
        raise Refusal(f"{output} holds images that were not rendered here (no render.json). Use another folder.")
    output.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(wanted) + "\n")


@contextmanager
def _mapper(workers: int) -> Iterator[Any]:
    """An ordered map over `workers` processes. They are spawned: a fork would copy mitsuba's threads in an unknown state."""
    if workers == 1:
        yield map
        return
    pool = ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context("spawn"))

    def ordered(function: Any, jobs: Iterable[_Job]) -> Iterator[Any]:
        return pool.map(function, jobs, chunksize=4)

    try:
        yield ordered
    finally:
        pool.shutdown(cancel_futures=True)
