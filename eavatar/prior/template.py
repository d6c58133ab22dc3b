"""The project's own generic head: a procedural mesh with the 68 iBUG landmarks marked on it.

It is the zero level of a blend of ellipsoids, in the axes of canonical space (x to the subject's
left, y up, z out of the face) and in decimetres, at the measures of an average adult. It is the
prior of a capture without a generative model, and completes the fitted face in `align_prior`.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import numpy as np

from eavatar.arrays import Float64
from eavatar.io import Mesh

CELL = 0.055  # side of the sampling grid's cells, dm: lips and nostrils just show
SMOOTHING = 0.7  # standard deviation of the filter on the distances, cells: softens seams
MIN_CORNER = np.array([-1.25, -1.7, -1.15])  # of the sampling grid, dm
MAX_CORNER = np.array([1.25, 1.65, 1.4])


@dataclass(frozen=True)
class Ellipsoid:
    """One building block; all lengths in dm.

    Attributes:
        centre: x, y, z; a block off the median plane represents its mirror image too.
        radii: along its own x, y, z.
        blend: width of the fillet where it meets the blocks before it.
        pitch: turn about x, degrees; positive tips the upper end backwards.
        yaw: turn about y, degrees; positive turns the outer end of a left block forwards.
        carve: subtract instead of adding.
    """

    centre: tuple[float, float, float]
    radii: tuple[float, float, float]
    blend: float
    pitch: float = 0.0
    yaw: float = 0.0
    carve: bool = False

    def distance(self, points: Float64) -> Float64:
        """(...,) signed distance of points (..., 3), exact to first order near the surface."""
        from scipy.spatial.transform import Rotation

        turn = Rotation.from_euler("yx", [-self.yaw, -self.pitch], degrees=True).as_matrix()
        folded = points.copy()
        if self.centre[0] != 0:
            folded[..., 0] = np.abs(folded[..., 0])
        local = (folded - self.centre) @ turn / self.radii
        length = np.linalg.norm(local, axis=-1)
        slope = np.linalg.norm(local / self.radii, axis=-1)
        distances: Float64 = length * (length - 1) / np.maximum(slope, 1e-9)
        return distances


BLOCKS = (
    Ellipsoid((0, 0.55, -0.02), (0.79, 0.94, 0.98), 0),  # cranium with some hair
    Ellipsoid((0, -0.02, 0.38), (0.66, 0.74, 0.56), 0.3),  # face
    Ellipsoid((0, -0.38, 0.46), (0.57, 0.36, 0.44), 0.2),  # jaw
    Ellipsoid((0, -1.2, -0.12), (0.56, 1.2, 0.56), 0.25, pitch=-10),  # neck
    Ellipsoid((0, -2.2, -0.3), (1.75, 0.75, 0.55), 0.5),  # shoulders
    Ellipsoid((0, -0.3, 0.82), (0.32, 0.3, 0.24), 0.15),  # muzzle
    Ellipsoid((0, -0.64, 0.86), (0.2, 0.13, 0.17), 0.15),  # chin
    Ellipsoid((0.42, 0.1, 0.68), (0.22, 0.18, 0.2), 0.2),  # cheekbones
    Ellipsoid((0.32, 0.54, 0.83), (0.3, 0.1, 0.13), 0.2, yaw=-25),  # brow ridges
    Ellipsoid((0.32, 0.32, 1.04), (0.2, 0.13, 0.15), 0.08, yaw=-20, carve=True),  # eye sockets
    Ellipsoid((0.31, 0.33, 0.8), (0.135, 0.11, 0.14), 0.03),  # eyes, closed
    Ellipsoid((0, 0.19, 1.06), (0.09, 0.3, 0.11), 0.1, pitch=32),  # bridge of the nose
    Ellipsoid((0, -0.01, 1.18), (0.1, 0.09, 0.11), 0.06),  # tip of the nose
    Ellipsoid((0.12, -0.05, 1.07), (0.075, 0.075, 0.1), 0.06),  # wings of the nose
    Ellipsoid((0, -0.28, 1.03), (0.23, 0.05, 0.1), 0.08),  # upper lip
    Ellipsoid((0, -0.41, 1.01), (0.2, 0.055, 0.11), 0.08),  # lower lip
    Ellipsoid((0, -0.345, 1.15), (0.26, 0.02, 0.08), 0.03, carve=True),  # mouth line
    Ellipsoid((0.81, 0.14, -0.06), (0.075, 0.31, 0.19), 0.08, pitch=10, yaw=-25),  # ears
)
# iBUG-68 landmarks of the subject's right side and the median plane, in the scheme's order; they
# are projected to the surface and mirrored to the left side.
JAW = (
    (-0.76, 0.34, 0.2), (-0.74, 0.13, 0.25), (-0.71, -0.06, 0.3), (-0.67, -0.25, 0.37),
    (-0.58, -0.45, 0.5), (-0.45, -0.6, 0.65), (-0.31, -0.7, 0.8), (-0.16, -0.76, 0.92),
    (0, -0.77, 0.96),
)  # fmt: skip
BROW = (
    (-0.62, 0.5, 0.75), (-0.52, 0.59, 0.85), (-0.39, 0.62, 0.93), (-0.25, 0.61, 0.99),
    (-0.12, 0.58, 1.0),
)  # fmt: skip
BRIDGE = ((0, 0.38, 1.0), (0, 0.27, 1.1), (0, 0.14, 1.2), (0, 0.02, 1.29))
NOSTRILS = ((-0.14, -0.11, 1.1), (-0.07, -0.12, 1.14), (0, -0.12, 1.16))
EYE = (
    (-0.45, 0.32, 0.85), (-0.37, 0.38, 0.92), (-0.26, 0.38, 0.93),
    (-0.17, 0.31, 0.91), (-0.26, 0.28, 0.92), (-0.37, 0.28, 0.91),
)  # fmt: skip
UPPER_LIP = ((-0.25, -0.345, 0.98), (-0.16, -0.27, 1.09), (-0.07, -0.24, 1.13), (0, -0.25, 1.14))
LOWER_LIP = ((-0.17, -0.42, 1.06), (-0.09, -0.46, 1.1), (0, -0.47, 1.11))
UPPER_INNER = ((-0.22, -0.345, 0.99), (-0.1, -0.33, 1.08), (0, -0.33, 1.1))
LOWER_INNER = ((-0.1, -0.36, 1.08), (0, -0.36, 1.1))


@dataclass(frozen=True)
class TemplateHead:
    """A complete head with its landmarks.

    Attributes:
        mesh: closed surface.
        landmarks: (68, 3) iBUG landmarks on it, in the frame of the mesh.
    """

    mesh: Mesh
    landmarks: Float64


def head_distance(points: Float64) -> Float64:
    """(...,) signed distance, dm, of points (..., 3) to the generic head, negative inside."""
    result = BLOCKS[0].distance(points)
    for block in BLOCKS[1:]:
        sign = -1.0 if block.carve else 1.0
        other, mine = block.distance(points), sign * result
        # the polynomial smooth minimum; subtraction is union with the complement
        overlap = np.maximum(block.blend - np.abs(mine - other), 0) / block.blend
        result = sign * (np.minimum(mine, other) - overlap**2 * block.blend / 4)
    return result


def _project_to_surface(points: Float64, iterations: int = 10) -> Float64:
    """Points (N, 3) projected to the generic head along its normals (Newton's method)."""
    step = 1e-4 * np.eye(3)
    for _ in range(iterations):
        ahead, behind = head_distance(points[:, None] + step), head_distance(points[:, None] - step)
        gradient = (ahead - behind) / 2e-4
        slope = np.maximum((gradient**2).sum(-1, keepdims=True), 0.1)
        points = points - head_distance(points)[:, None] * gradient / slope
    return points


def _mirror_landmarks(half: tuple[tuple[float, float, float], ...]) -> Float64:
    """Landmarks from the subject's right to the left, given those of the right side and median."""
    right = np.array(half, dtype=np.float64)
    left = right[right[:, 0] < 0][::-1] * (-1, 1, 1)
    return np.concatenate([right, left])


def _place_landmarks() -> Float64:
    """(68, 3) iBUG landmarks on the generic head, dm."""
    right_eye = np.array(EYE)
    left_eye = right_eye[[3, 2, 1, 0, 5, 4]] * (-1, 1, 1)
    parts = [_mirror_landmarks(half) for half in (JAW, BROW, BRIDGE, NOSTRILS)]
    parts += [right_eye, left_eye, _mirror_landmarks(UPPER_LIP), _mirror_landmarks(LOWER_LIP)[::-1]]
    parts += [_mirror_landmarks(UPPER_INNER), _mirror_landmarks(LOWER_INNER)[::-1]]
    return _project_to_surface(np.concatenate(parts))


@cache
def generic_head() -> TemplateHead:
    """The generic head: about 9,000 vertices, closed, cut off flat at the upper chest."""
    from scipy.ndimage import gaussian_filter
    from skimage.measure import marching_cubes

    axes = [np.arange(low, high, CELL) for low, high in zip(MIN_CORNER, MAX_CORNER, strict=True)]
    distance = head_distance(np.stack(np.meshgrid(*axes, indexing="ij"), axis=-1))
    # Positive distances all around close the surface where the grid cuts the shoulders
    closed = np.pad(gaussian_filter(distance, SMOOTHING), 1, constant_values=CELL)
    corners, faces, _, _ = marching_cubes(closed, 0.0)
    vertices = (corners - 1) * CELL + MIN_CORNER
    mesh = Mesh(vertices.astype(np.float32), faces.astype(np.int64))
    return TemplateHead(mesh, _place_landmarks())
