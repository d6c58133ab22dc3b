"""Gaussians as files that splat viewers open: 3DGS ``.ply``, ``.spz``, and ``.glb``.

The ``.glb`` follows KHR_gaussian_splatting as the Khronos Group ratified it in 2026, the ``.spz``
version 3 of the format. Colours do not depend on the direction of view: spherical harmonics of
degree 0. Letter: N Gaussians.
"""

from __future__ import annotations

import gzip
import struct
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from torch.nn.functional import normalize

from eavatar.arrays import Float32, Uint8
from eavatar.interop.glb import POINTS, VERTICES, Glb
from eavatar.io import atomic
from eavatar.rendering.splatting import Gaussians

HARMONIC = 0.28209479177387814  # the harmonic of degree 0, 1 / (2 √π)
MIN_OPACITY = 1e-6  # and at most one minus it: logits are finite
PLY_COLUMNS = (
    *("x", "y", "z", "nx", "ny", "nz", "f_dc_0", "f_dc_1", "f_dc_2", "opacity"),
    *("scale_0", "scale_1", "scale_2", "rot_0", "rot_1", "rot_2", "rot_3"),
)
SPLATTING = "KHR_gaussian_splatting"
COLOUR_SPACE = "srgb_rec709_display"  # the numbers are those of the frames' pixels
SPZ_MAGIC, SPZ_VERSION = 0x5053474E, 3
SPZ_FRACTION = 16  # bits: 1/65,536 of a unit, up to 128 units from the origin
SPZ_COLOUR = 0.15  # factor of a coefficient of degree 0
SPZ_QUATERNION = 511  # largest magnitude of a component, in 9 bits


@dataclass(frozen=True)
class SplatValues:
    """What all formats make their numbers of.

    Attributes:
        means: (N, 3).
        quaternions: (N, 4) wxyz, of length one.
        scales: (N, 3) standard deviations.
        opacities: (N,) in (0, 1).
        colours: (N, 3) coefficients of degree 0.
    """

    means: Float32
    quaternions: Float32
    scales: Float32
    opacities: Float32
    colours: Float32

    @classmethod
    def of(cls, gaussians: Gaussians) -> SplatValues:
        opacities = gaussians.opacities.clamp(MIN_OPACITY, 1 - MIN_OPACITY)
        colours = (gaussians.features - 0.5) / HARMONIC
        quaternions = normalize(gaussians.quaternions, dim=1)
        values = (gaussians.means, quaternions, gaussians.scales, opacities, colours)
        return cls(*(value.detach().cpu().numpy() for value in values))


def write_ply(path: Path, gaussians: Gaussians) -> Path:
    """Write Gaussians as the original code of 3D Gaussian splatting does.

    Args:
        path: the file.
        gaussians: with RGB in [0, 1] as features.
    """
    values = SplatValues.of(gaussians)
    columns = [
        values.means,
        np.zeros_like(values.means),
        values.colours,
        np.log(values.opacities / (1 - values.opacities))[:, None],
        np.log(values.scales),
        values.quaternions,
    ]
    header = ["ply", "format binary_little_endian 1.0", f"element vertex {len(values.means)}"]
    header += [f"property float {name}" for name in PLY_COLUMNS]
    with atomic(path) as temporary, temporary.open("wb") as file:
        file.write("\n".join([*header, "end_header", ""]).encode())
        file.write(np.concatenate(columns, axis=1).astype("<f4").tobytes())
    return path


def write_spz(path: Path, gaussians: Gaussians) -> Path:
    """Write Gaussians compressed to 20 bytes each and less; arguments as of `write_ply`."""
    values = SplatValues.of(gaussians)
    fixed = np.rint(values.means.astype(np.float64) * 2**SPZ_FRACTION).astype("<i4")
    parts = [
        fixed.view(np.uint8).reshape(-1, 3, 4)[:, :, :3],
        _to_bytes(255 * values.opacities),
        _to_bytes(255 * (SPZ_COLOUR * values.colours + 0.5)),
        _to_bytes(16 * (np.log(values.scales) + 10)),
        _pack_quaternions(values.quaternions),
    ]
    degree = flags = reserved = 0
    header = struct.pack(
        "<3I4B", SPZ_MAGIC, SPZ_VERSION, len(fixed), degree, SPZ_FRACTION, flags, reserved
    )
    content = header + b"".join(part.tobytes() for part in parts)
    with atomic(path) as temporary:
        temporary.write_bytes(gzip.compress(content, mtime=0))
    return path


def write_glb(path: Path, gaussians: Gaussians) -> Path:
    """Write Gaussians as glTF; arguments as of `write_ply`, but lengths should be metres.

    Viewers that know nothing of splats show points of the same colours.
    """
    values, glb = SplatValues.of(gaussians), Glb()
    rgb = (HARMONIC * values.colours + 0.5).clip(0, 1)  # as glTF wants it; shading goes beyond 1
    fallback = np.concatenate([to_linear(rgb), values.opacities[:, None]], axis=1)
    attributes = {
        "POSITION": glb.add(values.means, VERTICES, bounds=True),
        "COLOR_0": glb.add(fallback, VERTICES),
        f"{SPLATTING}:ROTATION": glb.add(np.roll(values.quaternions, -1, axis=1), VERTICES),
        f"{SPLATTING}:SCALE": glb.add(values.scales, VERTICES),
        f"{SPLATTING}:OPACITY": glb.add(values.opacities, VERTICES),
        f"{SPLATTING}:SH_DEGREE_0_COEF_0": glb.add(values.colours, VERTICES),
    }
    extension = {SPLATTING: {"kernel": "ellipse", "colorSpace": COLOUR_SPACE}}
    primitive = {"mode": POINTS, "attributes": attributes, "extensions": extension}
    content = {
        "extensionsUsed": [SPLATTING],
        "scenes": [{"nodes": [0]}],
        "nodes": [{"mesh": 0}],
        "meshes": [{"primitives": [primitive]}],
    }
    return glb.write(path, content)


def to_linear(colours: Float32) -> Float32:
    """Colours in [0, 1] as glTF's ``COLOR_0`` has them: freed of sRGB's transfer function."""
    bright = ((np.maximum(colours, 0.04045) + 0.055) / 1.055) ** 2.4
    return np.where(colours > 0.04045, bright, colours / 12.92).astype(np.float32)


def _to_bytes(values: Float32) -> Uint8:
    return np.rint(values).clip(0, 255).astype(np.uint8)


def _pack_quaternions(quaternions: Float32) -> Uint8:
    """The three smallest of the components xyzw, 10 bits each, and the number of the largest."""
    components = np.roll(quaternions, -1, axis=1)
    rows, largest = np.arange(len(components)), np.abs(components).argmax(axis=1)
    components = components * np.where(components[rows, largest] < 0, -1, 1)[:, None]
    magnitudes = np.rint(SPZ_QUATERNION * np.sqrt(2) * np.abs(components)).astype(np.uint32)
    packed = largest.astype(np.uint32)
    for axis in range(4):
        code = (components[:, axis] < 0).astype(np.uint32) << 9 | magnitudes[:, axis]
        packed = np.where(largest == axis, packed, packed << 10 | code)
    pieces: Uint8 = packed.astype("<u4").view(np.uint8)
    return pieces


WRITERS: dict[str, Callable[[Path, Gaussians], Path]] = {
    ".ply": write_ply,
    ".spz": write_spz,
    ".glb": write_glb,
}
