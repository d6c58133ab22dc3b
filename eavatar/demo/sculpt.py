"""The demo head as a sculpture: signed distances joined smoothly, and their meshes.

Sculpt frame: decimetres, y up, the face looks along +z, +x is the subject's left; the origin lies
between the ears at the height of the nose tip. Distances are positive outside and approximate
(ellipsoids are not exact), which marching cubes and ambient occlusion tolerate. The sculpture has
its lips a little apart, so that they are two surfaces of the mesh; `eavatar.demo.controls`
closes them.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import pairwise

import numba
import numpy as np
from numpy.typing import NDArray

from eavatar.arrays import Float32, Float64, Int32

EYE = (0.312, 0.315, 0.785)  # centre of the left eyeball
EYE_RADIUS = 0.125
EYE_WIDTH = 0.142  # of the opening between the lids, half
MOUTH_Y = -0.36  # height of the line between the lips
MOUTH_WIDTH = 0.265  # half
LIPS_APART = 0.028  # half of the gap in the sculpture


@dataclass(frozen=True)
class SculptSurface:
    """A triangle mesh in the sculpt frame, counter-clockwise seen from outside.

    Attributes:
        vertices: (V, 3) decimetres.
        faces: (F, 3) int32.
    """

    vertices: Float32
    faces: Int32


@numba.njit(cache=True)
def _ellipsoid(
    x: float, y: float, z: float, cx: float, cy: float, cz: float, rx: float, ry: float, rz: float
) -> float:
    """Approximate distance to an axis-aligned ellipsoid; exact on its surface."""
    x, y, z = x - cx, y - cy, z - cz
    k0 = math.sqrt((x / rx) ** 2 + (y / ry) ** 2 + (z / rz) ** 2)
    k1 = math.sqrt((x / rx**2) ** 2 + (y / ry**2) ** 2 + (z / rz**2) ** 2)
    return k0 * (k0 - 1.0) / max(k1, 1e-6)


@numba.njit(cache=True)
def _capsule(
    x: float,
    y: float,
    z: float,
    ax: float,
    ay: float,
    az: float,
    bx: float,
    by: float,
    bz: float,
    ra: float,
    rb: float,
) -> float:
    """Distance to a segment from a to b whose radius goes from ra to rb."""
    ux, uy, uz = bx - ax, by - ay, bz - az
    t = ((x - ax) * ux + (y - ay) * uy + (z - az) * uz) / (ux * ux + uy * uy + uz * uz)
    t = min(max(t, 0.0), 1.0)
    dx, dy, dz = x - ax - t * ux, y - ay - t * uy, z - az - t * uz
    return math.sqrt(dx * dx + dy * dy + dz * dz) - (ra + t * (rb - ra))


@numba.njit(cache=True)
def _join(a: float, b: float, k: float) -> float:
    """Smooth minimum: union with a fillet of width k."""
    h = max(k - abs(a - b), 0.0) / k
    return min(a, b) - h * h * k * 0.25


@numba.njit(cache=True)
def _carve(a: float, b: float, k: float) -> float:
    """Smooth difference: a without b."""
    return -_join(-a, b, k)


@numba.njit(cache=True)
def _smooth_step(low: float, high: float, x: float) -> float:
    """Smooth step from 0 at low to 1 at high."""
    t = min(max((x - low) / (high - low), 0.0), 1.0)
    return t * t * (3.0 - 2.0 * t)


@numba.njit(cache=True)
def _eye_opening(x: float) -> tuple[float, float]:
    """Upper and lower edge of the eye's opening relative to the eye centre, at |x|."""
    u = (x - EYE[0]) / EYE_WIDTH
    arch = max(1.0 - u * u, 0.0)
    tilt = 0.012 * u - 0.004
    return tilt + 0.063 * arch**0.75, tilt - 0.048 * arch**0.9


@numba.njit(cache=True)
def _skull_distance(x: float, y: float, z: float) -> float:
    """Cranium, face block, jaw and neck, without features; x is |x|."""
    d = _ellipsoid(x, y, z, 0.0, 0.60, -0.05, 0.765, 0.86, 0.97)
    d = _join(d, _ellipsoid(x, y, z, 0.0, 0.62, 0.28, 0.63, 0.50, 0.655), 0.25)
    d = _join(d, _ellipsoid(x, y, z, 0.0, 0.05, 0.28, 0.635, 0.62, 0.60), 0.25)
    d = _join(d, _ellipsoid(x, y, z, 0.0, -0.34, 0.38, 0.54, 0.44, 0.53), 0.24)
    d = _join(d, _capsule(x, y, z, 0.485, -0.40, 0.14, 0.12, -0.68, 0.80, 0.10, 0.14), 0.28)
    d = _join(d, _ellipsoid(x, y, z, 0.0, -0.685, 0.865, 0.17, 0.13, 0.135), 0.16)
    d = _join(d, _ellipsoid(x, y, z, 0.43, 0.07, 0.60, 0.21, 0.15, 0.19), 0.20)
    d = _join(d, _ellipsoid(x, y, z, 0.33, -0.20, 0.52, 0.21, 0.24, 0.24), 0.25)
    neck = _capsule(x, y, z, 0.0, -0.2, -0.20, 0.0, -1.7, -0.26, 0.50, 0.55)
    muscle = _capsule(x, y, z, 0.56, -0.1, -0.18, 0.16, -1.22, 0.18, 0.10, 0.09)
    return _join(d, _join(neck, muscle, 0.15), 0.20)


@numba.njit(cache=True)
def _nose_distance(x: float, y: float, z: float, d: float) -> float:
    """The face ``d`` with nose, wings and nostrils."""
    d = _join(d, _capsule(x, y, z, 0.0, 0.40, 0.875, 0.0, 0.03, 1.085, 0.068, 0.088), 0.13)
    d = _join(d, _capsule(x, y, z, 0.0, 0.0, 1.10, 0.03, -0.005, 1.125, 0.088, 0.080), 0.05)
    d = _join(d, _ellipsoid(x, y, z, 0.122, -0.04, 1.005, 0.066, 0.075, 0.10), 0.06)
    d = _join(d, _capsule(x, y, z, 0.0, -0.06, 1.12, 0.0, -0.115, 1.01, 0.035, 0.04), 0.06)
    nostril = _capsule(x, y, z, 0.062, -0.115, 1.085, 0.07, 0.0, 1.02, 0.034, 0.026)
    return _carve(d, nostril, 0.03)


@numba.njit(cache=True)
def _eye_distance(x: float, y: float, z: float, d: float) -> float:
    """The face ``d`` with brow ridge, socket, lids and their opening."""
    d = _join(d, _capsule(x, y, z, 0.10, 0.475, 0.865, 0.46, 0.525, 0.70, 0.075, 0.085), 0.15)
    d = _carve(d, _ellipsoid(x, y, z, 0.30, 0.33, 1.04, 0.20, 0.13, 0.19), 0.16)
    dx, dy, dz = x - EYE[0], y - EYE[1], z - EYE[2]
    radius = math.sqrt(dx * dx + dy * dy + dz * dz)
    d = _join(d, math.sqrt((0.93 * dx) ** 2 + dy * dy + dz * dz) - 0.147, 0.045)
    upper, lower = _eye_opening(x)
    opening = max(dy - upper, lower - dy) * 0.9
    opening = max(opening, max((abs(dx) - EYE_WIDTH) * 0.9, -dz))
    return min(_carve(d, opening, 0.012), radius - 0.117)


@numba.njit(cache=True)
def _mouth_distance(x: float, y: float, z: float, d: float) -> float:
    """The face ``d`` with muzzle, lips a little apart, and the mouth's cavity."""
    d = _join(d, _ellipsoid(x, y, z, 0.0, -0.33, 0.66, 0.36, 0.27, 0.355), 0.14)
    u = min(x / MOUTH_WIDTH, 1.0)
    taper = math.sqrt(max(1.0 - u * u, 0.0))
    past = max(x - MOUTH_WIDTH, 0.0)
    front = 1.0 - 0.13 * u * u
    gap = LIPS_APART * (1.0 - u**4)
    line = MOUTH_Y + 0.012 * u * u - 0.006 * (1.0 - _smooth_step(0.0, 0.25, u))
    r_upper = (
        0.016
        + 0.036 * taper
        + 0.008 * _smooth_step(0.0, 0.18, u) * (1.0 - _smooth_step(0.25, 0.6, u))
    )
    r_lower = 0.016 + 0.050 * taper
    dy, dz = y - (line + gap + r_upper * 0.85), z - front - 0.012
    d = _join(d, math.sqrt(dy * dy + dz * dz * 0.7 + past * past) - r_upper, 0.03)
    dy, dz = y - (line - gap - r_lower * 0.85), z - front + 0.010
    d = _join(d, math.sqrt(dy * dy + dz * dz * 0.7 + past * past) - r_lower, 0.03)
    slit = max(abs(y - line) - gap, max(0.55 - z, x - MOUTH_WIDTH)) * 0.9
    groove = _capsule(x, y, z, 0.0, -0.17, 1.045, 0.0, -0.27, 1.07, 0.018, 0.026)
    d = _carve(d, groove, 0.035)
    d = _carve(d, _ellipsoid(x, y, z, 0.0, MOUTH_Y, 0.64, 0.27, 0.19, 0.29), 0.03)
    return _carve(d, slit, 0.016)


@numba.njit(cache=True)
def _ear_distance(x: float, y: float, z: float, d: float) -> float:
    """The head ``d`` with an ear: a dish with a rim, a bowl and a lobe."""
    x, y, z = x - 0.765, y - 0.17, z + 0.10
    u = -z * 0.88 + x * 0.47  # along the ear, backwards and outwards
    n = x * 0.88 + z * 0.47  # out of the dish
    u, v = u * 0.97 - y * 0.22, y * 0.97 + u * 0.22
    u -= 0.10
    wide = 0.165 if v > 0.0 else 0.165 + 0.20 * v
    wide = max(wide, 0.085)
    plate = _ellipsoid(u, v, n, 0.0, 0.0, 0.0, wide, 0.31, 0.045)
    ring = math.sqrt((u / wide) ** 2 + (v / 0.31) ** 2)
    rim = math.sqrt(((ring - 0.92) * wide) ** 2 + (n - 0.028) ** 2) - 0.026
    ear = _join(plate, rim, 0.03)
    ear = _join(ear, _ellipsoid(u, v, n, -0.035, -0.265, 0.005, 0.065, 0.07, 0.04), 0.04)
    ear = _carve(ear, _ellipsoid(u, v, n, -0.035, -0.05, 0.05, 0.075, 0.12, 0.06), 0.03)
    ear = _carve(ear, _ellipsoid(u, v, n, 0.01, 0.16, 0.05, 0.07, 0.07, 0.035), 0.03)
    ear = _join(ear, _ellipsoid(u, v, n, -0.13, -0.06, 0.03, 0.03, 0.05, 0.03), 0.03)
    return _join(d, ear, 0.05)


@numba.njit(cache=True)
def _skin_distance(x: float, y: float, z: float) -> float:
    """Head and neck."""
    x = abs(x)
    d = _skull_distance(x, y, z)
    if z > 0.3 and y < 0.9:
        d = _eye_distance(x, y, z, _mouth_distance(x, y, z, _nose_distance(x, y, z, d)))
    elif x > 0.5:
        d = _ear_distance(x, y, z, d)
    return d


@numba.njit(cache=True)
def _hairline(angle: float) -> float:
    """Height of the hair's edge at an angle from the front, radians in [0, π]."""
    forehead = 1.03 - 0.09 * _smooth_step(0.25, 0.55, angle) + 0.05 * _smooth_step(0.0, 0.25, angle)
    temple = forehead - 0.45 * _smooth_step(0.62, 0.95, angle)
    sideburn = temple - 0.42 * _smooth_step(1.05, 1.3, angle)
    ear = sideburn + 0.37 * _smooth_step(1.38, 1.55, angle)
    return ear - 0.92 * _smooth_step(1.95, 2.6, angle)


@numba.njit(cache=True)
def _hair_flow(x: float, y: float, z: float) -> tuple[float, float]:
    """Angles around and away from the crown, radians: hair falls from the crown on all sides."""
    y, z = y - 0.55, z + 0.05
    up, forward = 0.92 * y - 0.39 * z, 0.39 * y + 0.92 * z
    away = math.atan2(math.sqrt(x * x + forward * forward), up)
    return math.atan2(x, forward) + 0.30 * away, away


@numba.njit(cache=True)
def _hair_distance(x: float, y: float, z: float) -> float:
    """The cap of hair: the skull thickened above the hairline, with locks."""
    angle = abs(math.atan2(x, z))
    ragged = 0.020 * math.sin(29.0 * angle + 3.0 * x) + 0.014 * math.sin(71.0 * angle + 5.0 * x)
    above = y - _hairline(angle) + ragged
    volume = (
        0.085
        + 0.075 * _smooth_step(0.5, 1.3, y)
        + 0.04 * _smooth_step(0.3, 1.0, z) * _smooth_step(0.8, 1.2, y)
    )
    around, away = _hair_flow(x, y, z)
    locks = math.sin(27.0 * around + 2.5 * math.sin(5.0 * away))
    locks += 0.7 * math.sin(58.0 * around + 2.0 * math.sin(9.0 * away + 1.3))
    thickness = -0.06 + (0.06 + volume) * _smooth_step(-0.05, 0.34, above)
    thickness += 0.011 * locks * _smooth_step(0.0, 0.30, above) * _smooth_step(0.1, 0.5, away)
    # Below its edge the cap ends under the skin; it must not line the whole head.
    return max(_skull_distance(abs(x), y, z) - thickness, -0.12 - above)


@numba.njit(cache=True)
def _shirt_distance(x: float, y: float, z: float) -> float:
    """Shoulders and chest under a shirt with a round collar."""
    x = abs(x)
    d = _capsule(x, y, z, 0.15, -1.36, -0.30, 1.50, -1.72, -0.32, 0.42, 0.44)
    d = _join(d, _capsule(x, y, z, 0.0, -0.95, -0.36, 1.25, -1.55, -0.36, 0.42, 0.30), 0.4)
    d = _join(d, _ellipsoid(x, y, z, 0.0, -2.4, -0.08, 1.35, 1.12, 0.78), 0.45)
    d = _join(d, _ellipsoid(x, y, z, 0.0, -1.48, 0.10, 0.55, 0.36, 0.35), 0.25)
    slope = y + 1.02 + 0.34 * (z + 0.2)  # the collar's plane, lower in front
    radius = math.sqrt(x * x + (z + 0.19) ** 2)
    d = max(d, slope)
    collar = math.sqrt(((radius - 0.60) * 0.8) ** 2 + (slope * 0.6) ** 2) - 0.05
    d = _join(d, collar, 0.12)
    return d + 0.02 * math.sin(9.0 * x + 4.0 * y + 2.0 * z) * _smooth_step(-1.2, -1.7, y)


SKIN, HAIR, SHIRT = 0, 1, 2


@numba.njit(cache=True)
def _distance(part: int, x: float, y: float, z: float) -> float:
    """Distance to one of the sculpted parts: SKIN, HAIR or SHIRT."""
    if part == SKIN:
        return _skin_distance(x, y, z)
    if part == HAIR:
        return _hair_distance(x, y, z)
    return _shirt_distance(x, y, z)


@numba.njit(cache=True)
def _distances(part: int, points: Float64) -> Float64:
    result = np.empty(len(points))
    for i in range(len(points)):
        result[i] = _distance(part, points[i, 0], points[i, 1], points[i, 2])
    return result


def distances(part: int, points: NDArray[np.floating]) -> Float64:
    """Distances (N,) of points (N, 3) to a part.

    All that looks at the sculpture does so through this one kernel: compiling another one, or this
    one for another precision, takes longer than what it would save.
    """
    return _distances(part, np.ascontiguousarray(points, np.float64))


def _distances_to_head(points: Float64) -> Float64:
    """(N,) to skin or hair."""
    return np.minimum(distances(SKIN, points), distances(HAIR, points))


def ambient_occlusion(part: int, points: Float32, normals: Float32) -> Float64:
    """(N,) fraction of open space over each point, by distances along its normal (Quilez 2008)."""
    blocked, weight = np.zeros(len(points)), 1.0
    for tap in range(1, 7):
        far = 0.0175 * tap * tap + 0.01
        there = points + far * normals.astype(np.float64)
        free = _distances_to_head(there)
        if part != HAIR:
            free = np.minimum(free, distances(SHIRT, there))
        blocked += weight * np.maximum(far - free, 0.0) / far
        weight *= 0.8
    return np.maximum(1.0 - blocked / 3.7, 0.0)


def soft_shadow(points: Float32, normals: Float32, direction: Float64) -> Float64:
    """(N,) fraction of a light from a direction that skin and hair do not block, soft-edged."""
    fraction, far = np.ones(len(points)), np.full(len(points), 0.03)
    marching = np.flatnonzero(normals @ direction > -0.4)
    while len(marching):
        reached = far[marching]
        free = _distances_to_head(points[marching] + reached[:, None] * direction)
        fraction[marching] = np.minimum(fraction[marching], 0.5 + 4.0 * free / reached)
        far[marching] += np.maximum(0.02, 0.6 * free)
        marching = marching[(far[marching] < 1.5) & (fraction[marching] > 0.02)]
    return np.maximum(fraction, 0.0)


@numba.njit(cache=True)
def hair_flows(points: Float32) -> tuple[Float64, Float64]:
    """(N,) `_hair_flow`'s two angles of each point."""
    around, away = np.empty(len(points)), np.empty(len(points))
    for i in range(len(points)):
        around[i], away[i] = _hair_flow(points[i, 0], points[i, 1], points[i, 2])
    return around, away


def axis(*pieces: tuple[float, float]) -> Float32:
    """Grid coordinates: (start, spacing) pieces, the last one's start is the end."""
    parts = [
        np.arange(start, end - 0.5 * spacing, spacing)
        for (start, spacing), (end, _) in pairwise(pieces)
    ]
    return np.concatenate([*parts, [pieces[-1][0]]]).astype(np.float32)


def extract_surface(part: int, axes: tuple[Float32, Float32, Float32]) -> SculptSurface:
    """The zero level of a part on a rectilinear grid; what leaves the grid is cut open."""
    from skimage.measure import marching_cubes

    grid = np.stack(np.meshgrid(*axes, indexing="ij"), axis=-1)
    values = distances(part, grid.reshape(-1, 3)).reshape(grid.shape[:3]).astype(np.float32)
    indices, faces, _, _ = marching_cubes(values, 0.0, allow_degenerate=False)
    vertices = [np.interp(indices[:, i], np.arange(len(axes[i])), axes[i]) for i in range(3)]
    return SculptSurface(np.stack(vertices, axis=1).astype(np.float32), faces.astype(np.int32))
