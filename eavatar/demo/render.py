"""Ray casting and shading of the demo head.

Each sample's ray is tested against the triangles whose projected bounds cover it and the nearest
hit is kept: exact primary visibility, without an acceleration structure. Four samples a pixel.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numba
import numpy as np

from eavatar.arrays import Bool, Float32, Int32, Uint8
from eavatar.cameras import Camera
from eavatar.demo.look import COLUMNS, KEY_LIGHT

Optics = tuple[Any, ...]  # float32 fx, fy, cx, cy of the intrinsics, in samples

SAMPLES = 2  # along each side of a pixel
SAME_SURFACE = 0.004  # metres: samples of a pixel that differ less in depth are shaded together
NOISE_SIZE = 64
STRAND_ROWS, STRAND_COLUMNS = 64, 1024
FILL_LIGHT = np.array([-0.75, 0.12, 0.65]) / np.linalg.norm([-0.75, 0.12, 0.65])
RIM_LIGHT = np.array([-0.55, 0.55, -0.63]) / np.linalg.norm([-0.55, 0.55, -0.63])
LIGHTS = np.stack([KEY_LIGHT, FILL_LIGHT, RIM_LIGHT]).astype(np.float32)


@dataclass(frozen=True)
class NoiseTables:
    """Detail finer than the mesh, periodic, values in about [-1, 1].

    Attributes:
        volume: (64, 64, 64) mottling.
        strands: (64, 1024) strands: along, across.
    """

    volume: Float32
    strands: Float32


def noise_tables(generator: np.random.Generator) -> NoiseTables:
    """Smoothed white noise, normalised."""
    from scipy.ndimage import gaussian_filter

    volume = gaussian_filter(generator.normal(size=(NOISE_SIZE,) * 3), 1.0, mode="wrap")
    strands = sum(
        gaussian_filter(generator.normal(size=(STRAND_ROWS, STRAND_COLUMNS)), blur, mode="wrap")
        * (weight * np.sqrt(blur[0] * blur[1]))
        for blur, weight in (((5.0, 0.7), 1.0), ((8.0, 2.5), 0.5))
    )
    tables = [table / (2.5 * table.std()) for table in (volume, strands)]
    return NoiseTables(*(table.clip(-1, 1).astype(np.float32) for table in tables))


@dataclass(frozen=True)
class Geometry:
    """The posed head of one timestep.

    Attributes:
        vertices: (V, 3) world, metres.
        normals: (V, 3) unit.
    """

    vertices: Float32
    normals: Float32


@numba.njit(cache=True, nogil=True)
def smooth_normals(vertices: Float32, faces: Int32) -> Float32:
    """(V, 3) unit vertex normals, weighted by area.

    Compiled and in float32, unlike `eavatar.meshes.vertex_normals`, as each timestep needs them.
    """
    normals = np.zeros_like(vertices)
    for f in range(len(faces)):
        a, b, c = faces[f]
        ux, uy, uz = (
            vertices[b, 0] - vertices[a, 0],
            vertices[b, 1] - vertices[a, 1],
            vertices[b, 2] - vertices[a, 2],
        )
        vx, vy, vz = (
            vertices[c, 0] - vertices[a, 0],
            vertices[c, 1] - vertices[a, 1],
            vertices[c, 2] - vertices[a, 2],
        )
        for vertex in (a, b, c):
            normals[vertex, 0] += uy * vz - uz * vy
            normals[vertex, 1] += uz * vx - ux * vz
            normals[vertex, 2] += ux * vy - uy * vx
    for v in range(len(normals)):
        length = math.sqrt(normals[v, 0] ** 2 + normals[v, 1] ** 2 + normals[v, 2] ** 2)
        for i in range(3):
            normals[v, i] /= max(length, 1e-12)
    return normals


@numba.njit(cache=True, nogil=True)
def cast(
    points: Float32, faces: Int32, optics: Optics, width: int, height: int
) -> tuple[Int32, Float32]:
    """Nearest front-facing triangle and its depth at the centre of every sample.

    Args:
        points: (V, 3) vertices in camera space, metres.
        optics: fx, fy, cx, cy of the intrinsics, in samples.

    Returns:
        ids (height, width), -1 for none, and depths (height, width) along the optical axis.
    """
    fx, fy, cx, cy = optics
    ids = np.full((height, width), -1, np.int32)
    depths = np.full((height, width), np.float32(1e9))
    u = np.empty(len(points), np.float32)
    v = np.empty(len(points), np.float32)
    for i in range(len(points)):
        u[i] = fx * points[i, 0] / points[i, 2] + cx
        v[i] = fy * points[i, 1] / points[i, 2] + cy
    for f in range(len(faces)):
        a, b, c = faces[f]
        area = (u[b] - u[a]) * (v[c] - v[a]) - (u[c] - u[a]) * (v[b] - v[a])
        if area >= 0:  # seen from behind: image y points down
            continue
        left = max(math.ceil(min(u[a], u[b], u[c]) - 0.5), 0)
        right = min(math.floor(max(u[a], u[b], u[c]) - 0.5), width - 1)
        top = max(math.ceil(min(v[a], v[b], v[c]) - 0.5), 0)
        bottom = min(math.floor(max(v[a], v[b], v[c]) - 0.5), height - 1)
        if left > right or top > bottom:
            continue
        za, zb, zc = 1 / points[a, 2], 1 / points[b, 2], 1 / points[c, 2]
        for y in range(top, bottom + 1):
            for x in range(left, right + 1):
                px, py = x + np.float32(0.5), y + np.float32(0.5)
                wa = (u[c] - u[b]) * (py - v[b]) - (v[c] - v[b]) * (px - u[b])
                wb = (u[a] - u[c]) * (py - v[c]) - (v[a] - v[c]) * (px - u[c])
                wc = area - wa - wb
                if wa <= 0 and wb <= 0 and wc <= 0:
                    depth = area / (wa * za + wb * zb + wc * zc)
                    if depth < depths[y, x]:
                        depths[y, x] = depth
                        ids[y, x] = f
    return ids, depths


@numba.njit(cache=True, nogil=True)
def _look_up_volume(volume: Float32, x: float, y: float, z: float) -> float:
    """Trilinear, periodic."""
    i, j, k = math.floor(x), math.floor(y), math.floor(z)
    tx, ty, tz = x - i, y - j, z - k
    total = 0.0
    for di in range(2):
        for dj in range(2):
            for dk in range(2):
                weight = (tx if di else 1 - tx) * (ty if dj else 1 - ty) * (tz if dk else 1 - tz)
                total += weight * volume[(i + di) & 63, (j + dj) & 63, (k + dk) & 63]
    return total


@numba.njit(cache=True, nogil=True)
def _look_up_strands(strands: Float32, along: float, across: float) -> float:
    """Bilinear, periodic."""
    i, j = math.floor(along), math.floor(across)
    ti, tj = along - i, across - j
    low = (1 - tj) * strands[i & 63, j & 1023] + tj * strands[i & 63, (j + 1) & 1023]
    high = (1 - tj) * strands[(i + 1) & 63, j & 1023] + tj * strands[(i + 1) & 63, (j + 1) & 1023]
    value: float = (1 - ti) * low + ti * high
    return value


@numba.njit(cache=True, nogil=True)
def _shade(
    look: Float32,
    normal: Float32,
    view: Float32,
    lights: Float32,
    volume: Float32,
    strands: Float32,
    colour: Float32,
) -> None:
    """Write the outgoing linear colour of one hit to ``colour``."""
    x, y, z = look[11], look[12], look[13]
    factor = 1.0
    freckle = 0.0
    if look[3] > 0.01:
        fine = _look_up_volume(volume, 34.0 * x + 7.0, 34.0 * y, 34.0 * z)
        factor += 0.07 * look[3] * fine
        freckle = 0.8 * look[3] * max(fine - 0.42, 0.0)
    gloss = look[7]
    if look[4] > 0.01:
        strand = _look_up_strands(strands, 60.0 * look[6], STRAND_COLUMNS * look[5])
        factor *= math.exp(0.75 * look[4] * strand)
        gloss *= 1.0 + 0.8 * look[4] * strand
    key = normal[0] * lights[0, 0] + normal[1] * lights[0, 1] + normal[2] * lights[0, 2]
    fill = normal[0] * lights[1, 0] + normal[1] * lights[1, 1] + normal[2] * lights[1, 2]
    rim = normal[0] * lights[2, 0] + normal[1] * lights[2, 1] + normal[2] * lights[2, 2]
    facing = max(normal[0] * view[0] + normal[1] * view[1] + normal[2] * view[2], 0.0)
    openness, lit = look[8], look[9]
    spread = (0.30, 0.16, 0.10)
    tint = (1.04, 1.0, 0.95)
    for channel in range(3):
        wrap = spread[channel] * look[10]
        direct = max((key + wrap) / (1 + wrap), 0.0) * (lit + 0.12 * wrap)
        around = 0.27 * max((fill + 0.4) / 1.4, 0.0) + 0.12 * max(rim, 0.0)
        ambient = 0.23 + 0.08 * normal[1]
        # Light that bounces within a crease keeps the colour of what it bounced off.
        bounced = openness * (1.0 + 0.4 * look[channel] * (1.0 - openness))
        light = 0.86 * tint[channel] * direct + (around + ambient) * bounced
        albedo = look[channel] * factor * (1.0 - freckle * (0.35, 0.62, 0.75)[channel])
        colour[channel] = albedo * light
    half = (view[0] + lights[0, 0], view[1] + lights[0, 1], view[2] + lights[0, 2])
    length = math.sqrt(half[0] ** 2 + half[1] ** 2 + half[2] ** 2)
    aligned = normal[0] * half[0] + normal[1] * half[1] + normal[2] * half[2]
    aligned = max(aligned / max(length, 1e-6), 0.0)
    shine = 0.16 * aligned**18 if gloss < 0.9 else 0.12 * aligned**18 + 0.9 * aligned**220
    shine = shine * lit + 0.05 * (1 - facing) ** 4 * openness
    for channel in range(3):
        colour[channel] += gloss * shine


@numba.njit(cache=True, nogil=True, inline="always")
def _ray_volume(dx: float, dy: float, points: Float32, b: int, c: int) -> float:
    """Triple product of the ray (dx, dy, 1) with two vertices in camera space."""
    volume: float = (
        dx * (points[b, 1] * points[c, 2] - points[b, 2] * points[c, 1])
        + dy * (points[b, 2] * points[c, 0] - points[b, 0] * points[c, 2])
        + (points[b, 0] * points[c, 1] - points[b, 1] * points[c, 0])
    )
    return volume


@numba.njit(cache=True, nogil=True)
def _interpolate(
    dx: float,
    dy: float,
    points: Float32,
    corners: Int32,
    vertices: Float32,
    normals: Float32,
    looks: Float32,
    eye: Float32,
    look: Float32,
    normal: Float32,
    view: Float32,
) -> None:
    """Write the attributes where the ray (dx, dy, 1) meets a triangle to the last three arrays."""
    a, b, c = corners
    wa = _ray_volume(dx, dy, points, b, c)
    wb = _ray_volume(dx, dy, points, c, a)
    wc = _ray_volume(dx, dy, points, a, b)
    # The mean of several samples may lie outside the first one's triangle: stay on it.
    sign = 1.0 if wa + wb + wc > 0 else -1.0
    wa, wb, wc = max(sign * wa, 0.0), max(sign * wb, 0.0), max(sign * wc, 0.0)
    total = max(wa + wb + wc, 1e-20)
    wa, wb, wc = wa / total, wb / total, wc / total
    for i in range(COLUMNS):
        look[i] = wa * looks[a, i] + wb * looks[b, i] + wc * looks[c, i]
    n_length, v_length = 0.0, 0.0
    for i in range(3):
        normal[i] = wa * normals[a, i] + wb * normals[b, i] + wc * normals[c, i]
        view[i] = eye[i] - (wa * vertices[a, i] + wb * vertices[b, i] + wc * vertices[c, i])
        n_length += normal[i] ** 2
        v_length += view[i] ** 2
    n_length, v_length = math.sqrt(max(n_length, 1e-12)), math.sqrt(v_length)
    for i in range(3):
        normal[i] /= n_length
        view[i] /= v_length


@numba.njit(cache=True, nogil=True)
def _gather(
    ids: Int32, depths: Float32, y: int, x: int, taken: Bool
) -> tuple[int, int, float, float]:
    """Group the samples of a pixel that see the same surface as its first ungrouped one.

    Args:
        ids: of `cast`.
        depths: of `cast`.
        y: row of the pixel.
        x: column of the pixel.
        taken: (S²,) samples grouped so far, updated.

    Returns:
        the triangle of the first sample (-1 if none is left), the number of samples grouped,
        and their mean column and row.
    """
    face, count, column, row, depth = -1, 0, 0.0, 0.0, np.float32(0)
    for s in range(SAMPLES * SAMPLES):
        sy, sx = y * SAMPLES + s // SAMPLES, x * SAMPLES + s % SAMPLES
        if taken[s] or ids[sy, sx] < 0:
            continue
        if face < 0:
            face, depth = ids[sy, sx], depths[sy, sx]
        if abs(depths[sy, sx] - depth) < SAME_SURFACE:
            taken[s] = True
            count += 1
            column += sx + 0.5
            row += sy + 0.5
    return face, count, column / max(count, 1), row / max(count, 1)


@numba.njit(cache=True, nogil=True)
def _resolve(
    ids: Int32,
    depths: Float32,
    points: Float32,
    faces: Int32,
    vertices: Float32,
    normals: Float32,
    looks: Float32,
    optics: Optics,
    eye: Float32,
    lights: Float32,
    volume: Float32,
    strands: Float32,
) -> tuple[Float32, Float32]:
    """Shade each pixel once for every surface that its samples see, and average.

    Returns:
        colour (H, W, 3) linear, premultiplied by coverage, and coverage (H, W).
    """
    fx, fy, cx, cy = optics
    height, width = ids.shape[0] // SAMPLES, ids.shape[1] // SAMPLES
    image = np.zeros((height, width, 3), np.float32)
    coverage = np.zeros((height, width), np.float32)
    look, normal = np.empty(COLUMNS, np.float32), np.empty(3, np.float32)
    view, colour = np.empty(3, np.float32), np.empty(3, np.float32)
    taken = np.empty(SAMPLES * SAMPLES, np.bool_)
    for y in range(height):
        for x in range(width):
            taken[:] = False
            while True:
                face, count, column, row = _gather(ids, depths, y, x, taken)
                if face < 0:
                    break
                dx, dy = (column - cx) / fx, (row - cy) / fy
                _interpolate(
                    dx, dy, points, faces[face], vertices, normals, looks, eye, look, normal, view
                )
                _shade(look, normal, view, lights, volume, strands, colour)
                weight = np.float32(count / SAMPLES**2)
                coverage[y, x] += weight
                for i in range(3):
                    image[y, x, i] += weight * colour[i]
    return image, coverage


@numba.njit(cache=True, nogil=True)
def apply_sensor(
    image: Float32,
    coverage: Float32,
    plate: Float32,
    camera_colour: Float32,
    curve: Float32,
    noise: Float32,
) -> Uint8:
    """The 8-bit image of a camera's sensor: (H, W, 3).

    Args:
        image: (H, W, 3) of `_resolve`.
        coverage: (H, W) of `_resolve`.
        plate: (H, W, 3) linear background.
        camera_colour: (3, 3) linear scene colour to linear camera colour.
        curve: (4096,) sRGB encoding of linear [0, 1], in 8-bit steps.
        noise: (H, W, 3) of the sensor, in 8-bit steps.
    """
    height, width = coverage.shape
    result = np.empty((height, width, 3), np.uint8)
    for y in range(height):
        for x in range(width):
            away = 1 - coverage[y, x]
            r = image[y, x, 0] + away * plate[y, x, 0]
            g = image[y, x, 1] + away * plate[y, x, 1]
            b = image[y, x, 2] + away * plate[y, x, 2]
            for i in range(3):
                linear = camera_colour[i, 0] * r + camera_colour[i, 1] * g + camera_colour[i, 2] * b
                step = int(min(max(linear, 0.0), 1.0) * (len(curve) - 1) + 0.5)
                value = curve[step] + noise[y, x, i]
                result[y, x, i] = np.uint8(min(max(value + 0.5, 0.0), 255.0))
    return result


@dataclass(frozen=True)
class View:
    """What one camera sees, before its sensor.

    Attributes:
        image: (H, W, 3) linear colour, premultiplied.
        coverage: (H, W) in [0, 1].
        depth: (2H, 2W) metres along the optical axis at the samples, 1e9 where nothing is hit.
    """

    image: Float32
    coverage: Float32
    depth: Float32


def render_view(
    geometry: Geometry, faces: Int32, looks: Float32, camera: Camera, noise: NoiseTables
) -> View:
    """Cast and shade one image.

    Args:
        geometry: the posed head.
        faces: (F, 3).
        looks: (V, A) columns of `eavatar.demo.look`.
        camera: at the size of the image.
        noise: detail finer than the mesh.
    """
    transform = camera.world_to_camera.astype(np.float32)
    points = geometry.vertices @ transform[:3, :3].T + transform[:3, 3]
    k = camera.intrinsics * SAMPLES
    optics = tuple(np.float32(value) for value in (k[0, 0], k[1, 1], k[0, 2], k[1, 2]))
    ids, depth = cast(points, faces, optics, camera.width * SAMPLES, camera.height * SAMPLES)
    image, coverage = _resolve(
        ids, depth, points, faces, geometry.vertices, geometry.normals, looks, optics,
        camera.centre.astype(np.float32), LIGHTS, noise.volume, noise.strands,
    )  # fmt: skip
    return View(image, coverage, depth)


def encoding_curve() -> Float32:
    """(4096,) sRGB encoding of linear [0, 1] in 8-bit steps."""
    linear = np.linspace(0, 1, 4096)
    encoded = np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055)
    return (255 * encoded).astype(np.float32)
