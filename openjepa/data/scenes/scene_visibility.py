"""The geometry of a scene: a pinhole camera, three convex solids, and which of them each pixel's ray meets first.

Rays are scaled so that their parameter is the depth along the axis of the camera. A convex solid meets a ray in one interval,
an intersection of simpler ones: a box is three slabs, a capped cylinder is an infinite cylinder and a slab.
"""

from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Camera:
    """A pinhole camera that looks at the center of the scene; square picture, z up."""

    position: tuple[float, float, float]
    field_of_view_degrees: float

    @cached_property
    def forward(self) -> Array:
        """Unit vector of the axis."""
        position = np.array(self.position)
        return np.asarray(-position / np.linalg.norm(position))

    @cached_property
    def axes(self) -> Array:
        """Right, up and forward as rows of a rotation."""
        right = np.cross(self.forward, [0.0, 0.0, 1.0])
        right = right / np.linalg.norm(right)
        return np.stack([right, np.cross(right, self.forward), self.forward])

    @cached_property
    def tangent(self) -> float:
        """Half the side of the picture at depth 1."""
        return float(np.tan(np.radians(self.field_of_view_degrees) / 2))

    def project(self, point: Array) -> Array:
        """Column and row as fractions of the picture (row 0 on top), and depth."""
        right, up, depth = self.axes @ (np.asarray(point) - self.position)
        scale = 0.5 / (depth * self.tangent)
        return np.array([0.5 + right * scale, 0.5 - up * scale, depth])

    def frames(self, center: tuple[float, float, float], radius: float, share: float) -> bool:
        """Whether a ball lies within the middle `share` of the picture (its depth taken as its center's)."""
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
    """Half of the height; of a sphere or cylinder also the radius, of a cube half the edge."""
    rotation_degrees: float = 0.0
    """Counterclockwise about the vertical axis."""

    @property
    def bounding_radius(self) -> float:
        """Radius of the smallest ball around it."""
        return self.half * {"cube": 3**0.5, "sphere": 1.0, "cylinder": 2**0.5}[self.shape]

    def depth(self, camera: Camera, rays: Array) -> Array:
        """Depth at which each ray [3, ...] enters the solid, infinite where it misses."""
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
    """Interval in which |origin + t * direction| <= half. Parallel rays divide to infinities of the right signs."""
    with np.errstate(divide="ignore"):
        first, second = (-half - origin) / directions, (half - origin) / directions
    return np.minimum(first, second), np.maximum(first, second)


def _round(origin: Array, directions: Array, radius: float) -> tuple[Array, Array]:
    """Interval in which the ray is within `radius` of the origin (an infinite cylinder where 2-D); empty where it misses."""
    square = np.maximum((directions**2).sum(0), 1e-30)  # a ray along an infinite cylinder is inside it always or never
    middle = -np.tensordot(origin, directions, 1) / square
    reach = middle**2 - (origin @ origin - radius**2) / square
    root = np.sqrt(np.maximum(reach, 0))
    return np.where(reach > 0, middle - root, np.inf), np.where(reach > 0, middle + root, -np.inf)


def instance_mask(camera: Camera, solids: list[Solid], image_size: int) -> NDArray[np.uint8]:
    """Which solid is seen at the center of each pixel [image_size, image_size]: 0 for none, i + 1 for `solids[i]`."""
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
    """Rows and columns of pixels that can see the solid. 1.5 covers the stretching of balls away from the axis."""
    column, row, depth = camera.project(np.array(solid.center))
    extent = 1.5 * 0.5 * solid.bounding_radius / ((depth - solid.bounding_radius) * camera.tangent)

    def span(middle: float) -> slice:
        low, high = np.floor((middle - extent) * image_size), np.ceil((middle + extent) * image_size)
        return slice(max(0, int(low)), max(0, min(image_size, int(high))))

    return span(row), span(column)
