"""The layout of scenes in CLEVR's format: the objects, the camera, and what each pixel shows. Pure numpy.

Sizes, colors, materials, shapes, positions, camera and fields follow the CLEVR paper (arXiv 1612.06890) and its published scene
files. We differ in four ways. The picture is square. Objects lie entirely inside its middle 90 %, because evaluation crops the
border. The distance of the camera varies more, so that each bin of Clevr/Dist is filled. Left/right relations have no minimum
margin.

World: z is up, the ground is z = 0, and one unit is CLEVR's. Depth is the distance along the axis of the camera. Rays are
scaled so that their parameter is the depth. A ray is inside a convex solid during one interval. The interval of a composed
solid is the intersection of simpler ones: a box is three slabs, a capped cylinder is an infinite cylinder and a slab.
"""

from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from openjepa.seeds import derive

Array = NDArray[np.float64]
Split = Literal["train", "val"]
SPLITS: tuple[Split, ...] = ("train", "val")
LAYOUT_VERSION = 1
"""Must be raised whenever the same seed gives different scenes than before."""

SIZES = {"large": 0.7, "small": 0.35}
"""Radius of a sphere or cylinder, or half the diagonal of a cube's base."""
COLORS = {
    "gray": (87, 87, 87),
    "red": (173, 35, 35),
    "blue": (42, 75, 215),
    "green": (29, 105, 20),
    "brown": (129, 74, 25),
    "purple": (129, 38, 192),
    "cyan": (41, 208, 208),
    "yellow": (255, 238, 51),
}
"""Colors in sRGB, 0 to 255."""
MATERIALS = ("rubber", "metal")
SHAPES: tuple[Literal["cube", "sphere", "cylinder"], ...] = ("cube", "sphere", "cylinder")
MIN_OBJECTS, MAX_OBJECTS = 3, 10

AREA = 3.0
"""Centers are uniform in [-AREA, AREA] in x and y, restricted to the part that the picture shows."""
MIN_GAP = 0.25
"""Smallest distance on the ground between the circles around two objects."""
FIELD_OF_VIEW_DEGREES = 40.0
FRAME = 0.9
"""Share of the picture's width and height that objects must lie in."""
CAMERA_AXIS = np.array([7.48, -6.51, 5.34]) / np.linalg.norm([7.48, -6.51, 5.34])
"""Unit vector from the center of the scene to the camera, before the jitter."""
CAMERA_DISTANCE = (10.4, 12.8)
CAMERA_JITTER = 0.5
LIGHT_JITTER = 1.0
LIGHTS = {"key": (-2.4, -5.8, 7.0), "fill": (7.0, 0.5, 5.0), "back": (-3.0, 6.0, 6.5)}
"""Positions of the three lamps, before the jitter."""
VISIBILITY_SIZE = 64
"""Side of the picture in which visible pixels are counted, in pixels. It is fixed, so that scenes do not depend on the rendered
size."""
MIN_VISIBLE_PIXELS = 9
"""Pixels of VISIBILITY_SIZE squared that each object must show: 0.22 % of the picture (CLEVR: 200 of 480 x 320, 0.13 %)."""


# --------------------------------------------------------------------------------------------------------------------- geometry


@dataclass(frozen=True)
class Camera:
    """A pinhole camera that looks at the center of the scene. The picture is square, and z is up."""

    position: tuple[float, float, float]
    field_of_view_degrees: float

    @cached_property
    def forward(self) -> Array:
        """Unit vector along the axis."""
        position = np.array(self.position)
        return np.asarray(-position / np.linalg.norm(position))

    @cached_property
    def axes(self) -> Array:
        """Right, up and forward, as the rows of a rotation matrix."""
        right = np.cross(self.forward, [0.0, 0.0, 1.0])
        right = right / np.linalg.norm(right)
        return np.stack([right, np.cross(right, self.forward), self.forward])

    @cached_property
    def tangent(self) -> float:
        """Half the side of the picture at depth 1."""
        return float(np.tan(np.radians(self.field_of_view_degrees) / 2))

    def project(self, point: Array) -> Array:
        """Column and row of a point as fractions of the picture (row 0 on top), and its depth."""
        right, up, depth = self.axes @ (np.asarray(point) - self.position)
        scale = 0.5 / (depth * self.tangent)
        return np.array([0.5 + right * scale, 0.5 - up * scale, depth])

    def frames(self, center: tuple[float, float, float], radius: float, share: float) -> bool:
        """True if a ball lies within the middle `share` of the picture, as if all of it had the depth of its center."""
        column, row, depth = self.project(np.array(center))
        extent = 0.5 * radius / (depth * self.tangent)
        return bool(max(abs(column - 0.5), abs(row - 0.5)) + extent <= share / 2)

    def rays(self, rows: slice, columns: slice, image_size: int) -> Array:
        """Directions [3, rows, columns] through the centers of pixels, each with depth 1."""
        offsets = ((np.arange(image_size) + 0.5) / image_size * 2 - 1) * self.tangent
        right, up, forward = self.axes
        across = right[:, None, None] * offsets[columns][None, None, :]
        upward = up[:, None, None] * -offsets[rows][None, :, None]
        return np.asarray(forward[:, None, None] + across + upward)


@dataclass(frozen=True)
class Solid:
    """A cube, a sphere or an upright capped cylinder."""

    shape: Literal["cube", "sphere", "cylinder"]
    center: tuple[float, float, float]
    half: float
    """Half of the height. For a sphere or cylinder also the radius, for a cube half the edge."""
    rotation_degrees: float = 0.0
    """Rotation about the vertical axis, counterclockwise."""

    @property
    def bounding_radius(self) -> float:
        """Radius of the smallest ball that contains the solid."""
        return self.half * {"cube": 3**0.5, "sphere": 1.0, "cylinder": 2**0.5}[self.shape]

    def depth(self, camera: Camera, rays: Array) -> Array:
        """Depth at which each ray [3, ...] enters the solid. Infinite if the ray misses it."""
        angle = np.radians(self.rotation_degrees)
        cosine, sine = np.cos(angle), np.sin(angle)
        to_local = np.array([[cosine, sine, 0.0], [-sine, cosine, 0.0], [0.0, 0.0, 1.0]])
        origin = to_local @ (np.array(camera.position) - self.center)
        directions = np.tensordot(to_local, rays, 1)
        if self.shape == "cube":
            intervals = [_slab(origin[axis], directions[axis], self.half) for axis in range(3)]
        elif self.shape == "sphere":
            intervals = [_round(origin, directions, self.half)]
        else:
            intervals = [_round(origin[:2], directions[:2], self.half), _slab(origin[2], directions[2], self.half)]
        enter = np.maximum.reduce([interval[0] for interval in intervals])
        leave = np.minimum.reduce([interval[1] for interval in intervals])
        return np.where(enter < leave, enter, np.inf)


def _slab(origin: float, directions: Array, half: float) -> tuple[Array, Array]:
    """Interval of t in which |origin + t * direction| <= half. Parallel rays divide to infinities of the right signs."""
    with np.errstate(divide="ignore"):
        first, second = (-half - origin) / directions, (half - origin) / directions
    return np.minimum(first, second), np.maximum(first, second)


def _round(origin: Array, directions: Array, radius: float) -> tuple[Array, Array]:
    """Interval in which the ray is within `radius` of the origin (in 2-D: of an infinite cylinder). Empty if it misses."""
    square = np.maximum((directions**2).sum(0), 1e-30)  # a ray along an infinite cylinder is either always or never inside it
    middle = -np.tensordot(origin, directions, 1) / square
    reach = middle**2 - (origin @ origin - radius**2) / square
    root = np.sqrt(np.maximum(reach, 0))
    return np.where(reach > 0, middle - root, np.inf), np.where(reach > 0, middle + root, -np.inf)


def instance_mask(camera: Camera, solids: list[Solid], image_size: int) -> NDArray[np.uint8]:
    """The solid seen at the center of each pixel [image_size, image_size]: 0 for none, i + 1 for `solids[i]`."""
    nearest = np.full((image_size, image_size), np.inf)
    mask = np.zeros((image_size, image_size), np.uint8)
    for number, solid in enumerate(solids, start=1):
        rows, columns = _window(camera, solid, image_size)
        depth = solid.depth(camera, camera.rays(rows, columns, image_size))
        closer = depth < nearest[rows, columns]
        nearest[rows, columns][closer] = depth[closer]
        mask[rows, columns][closer] = number
    return mask


def _window(camera: Camera, solid: Solid, image_size: int) -> tuple[slice, slice]:
    """Rows and columns of pixels that can show the solid. The factor 1.5 covers the stretching of balls away from the axis."""
    column, row, depth = camera.project(np.array(solid.center))
    extent = 1.5 * 0.5 * solid.bounding_radius / ((depth - solid.bounding_radius) * camera.tangent)

    def span(middle: float) -> slice:
        low, high = np.floor((middle - extent) * image_size), np.ceil((middle + extent) * image_size)
        return slice(max(0, int(low)), max(0, min(image_size, int(high))))

    return span(row), span(column)


# ----------------------------------------------------------------------------------------------------------------------- scenes


@dataclass(frozen=True)
class SceneObject:
    """One object. Fields have the names of CLEVR's properties."""

    shape: Literal["cube", "sphere", "cylinder"]
    size: str
    color: str
    material: str
    x: float
    y: float
    rotation_degrees: float

    @property
    def solid(self) -> Solid:
        """Geometry of the object, which stands on the ground."""
        half = SIZES[self.size] / (2**0.5 if self.shape == "cube" else 1.0)
        return Solid(self.shape, (self.x, self.y, half), half, self.rotation_degrees)


@dataclass(frozen=True)
class SceneLayout:
    """Everything that determines the picture of a scene, except for the noise of rendering."""

    split: Split
    index: int
    objects: tuple[SceneObject, ...]
    camera: Camera
    lamps: dict[str, tuple[float, float, float]]
    render_seed: int

    @cached_property
    def name(self) -> str:
        """CLEVR's name of the picture, without the file ending."""
        return f"CLEVR_{self.split}_{self.index:06d}"

    def mask(self, image_size: int) -> NDArray[np.uint8]:
        """Instance mask [image_size, image_size]: 0 for the ground, i + 1 if object i is in front."""
        return instance_mask(self.camera, [item.solid for item in self.objects], image_size)

    def annotation(self, image_size: int, suffix: str = ".png") -> dict[str, Any]:
        """The scene as one entry of CLEVR's `scenes` files."""
        directions = self._directions()
        return {
            "image_index": self.index,
            "image_filename": self.name + suffix,
            "split": self.split,
            "objects": [self._object_annotation(item, image_size) for item in self.objects],
            "directions": {name: _rounded(vector) for name, vector in directions.items()},
            "relationships": {name: self._related(directions[name]) for name in ("right", "behind", "front", "left")},
        }

    def _object_annotation(self, item: SceneObject, image_size: int) -> dict[str, Any]:
        center = np.array(item.solid.center)
        column, row, depth = self.camera.project(center)
        return {
            "color": item.color,
            "size": item.size,
            "material": item.material,
            "shape": item.shape,
            "rotation": round(item.rotation_degrees, 4),
            "3d_coords": _rounded(center),
            "pixel_coords": [int(column * image_size), int(row * image_size), round(float(depth), 6)],
        }

    def _directions(self) -> dict[str, NDArray[np.float64]]:
        """Unit vectors of the world that the camera sees as right, behind and above, and their opposites."""
        above = np.array([0.0, 0.0, 1.0])
        behind = self.camera.forward * [1, 1, 0]
        behind = behind / np.linalg.norm(behind)
        right = np.cross(behind, above)
        return {"right": right, "behind": behind, "above": above, "below": -above, "left": -right, "front": -behind}

    def _related(self, direction: NDArray[np.float64], margin: float = 0.2) -> list[list[int]]:
        """For each object, the objects that lie further along `direction` by more than `margin` (CLEVR's 0.2)."""
        along = np.array([item.solid.center for item in self.objects]) @ direction
        return [[int(j) for j in np.flatnonzero(along > value + margin)] for value in along]


def _rounded(vector: NDArray[np.float64]) -> list[float]:
    return [round(float(value), 6) for value in vector]


def lay_out_scene(seed: int, split: Split, index: int) -> SceneLayout:
    """Scene number `index` of a split: a pure function of its arguments.

    The number of objects is drawn first and kept, even if a crowded scene must be drawn again. Counts thus stay uniform.
    Raises RuntimeError if 1000 trials fail.
    """
    rng = np.random.default_rng(derive("scene", seed, SPLITS.index(split), index))
    count = int(rng.integers(MIN_OBJECTS, MAX_OBJECTS + 1))
    for _ in range(1000):
        camera = _draw_camera(rng)
        objects = _place_objects(rng, camera, count)
        if objects is None or not _all_visible(camera, objects):
            continue
        lamps = {name: _jittered(rng, position, LIGHT_JITTER) for name, position in LIGHTS.items()}
        return SceneLayout(split, index, objects, camera, lamps, int(rng.integers(2**31)))
    raise RuntimeError(f"No room for {count} objects in scene {index} of {split!r} with seed {seed} after 1000 trials.")


def _jittered(
    rng: np.random.Generator, position: tuple[float, ...] | NDArray[np.float64], jitter: float
) -> tuple[float, float, float]:
    x, y, z = np.asarray(position) + rng.uniform(-jitter, jitter, 3)
    return float(x), float(y), float(z)


def _draw_camera(rng: np.random.Generator) -> Camera:
    """A camera near the axis of CLEVR's camera, at a random distance, jittered, and turned to the center of the scene."""
    position = _jittered(rng, CAMERA_AXIS * rng.uniform(*CAMERA_DISTANCE), CAMERA_JITTER)
    return Camera(position, FIELD_OF_VIEW_DEGREES)


def _place_objects(rng: np.random.Generator, camera: Camera, count: int) -> tuple[SceneObject, ...] | None:
    """`count` objects inside the frame with gaps between them. None if there was no place for one of them."""
    objects: list[SceneObject] = []
    for _ in range(count):
        size = str(rng.choice(tuple(SIZES)))
        place = _find_place(rng, camera, SIZES[size], objects)
        if place is None:
            return None
        shape = SHAPES[rng.integers(len(SHAPES))]
        color, material = tuple(COLORS)[rng.integers(len(COLORS))], MATERIALS[rng.integers(len(MATERIALS))]
        objects.append(SceneObject(shape, size, color, material, *place, float(rng.uniform(0, 360))))
    return tuple(objects)


def _find_place(
    rng: np.random.Generator, camera: Camera, radius: float, others: list[SceneObject]
) -> tuple[float, float] | None:
    """A free center (x, y) on the ground for an object of `radius`. None if none is found."""
    for x, y in rng.uniform(-AREA, AREA, (50, 2)):
        free = all((x - other.x) ** 2 + (y - other.y) ** 2 >= (radius + SIZES[other.size] + MIN_GAP) ** 2 for other in others)
        if free and camera.frames((x, y, radius), radius, FRAME):
            return float(x), float(y)
    return None


def _all_visible(camera: Camera, objects: tuple[SceneObject, ...]) -> bool:
    mask = instance_mask(camera, [item.solid for item in objects], VISIBILITY_SIZE)
    return bool(np.bincount(mask.ravel(), minlength=len(objects) + 1)[1:].min() >= MIN_VISIBLE_PIXELS)
