"""What a calibration may hold in place of OpenCV's world-to-camera matrices in metres.

Nothing is converted by guess: sentences name the reading that would make a faulty calibration
plausible. Poses are (..., 4, 4).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from eavatar.arrays import Float64

HEAD_SCALE = 0.1  # metres of a canonical unit for the mean adult of a morphable model
UNITS = {  # in a metre
    "millimetres": 1000.0,
    "centimetres": 100.0,
    "inches": 39.37,
    "decimetres": 10.0,
    "feet": 3.281,
}
UNIT_TOLERANCE = 1.35  # factor; inches and centimetres differ by 2.5, heads by less than 1.2


@dataclass(frozen=True)
class Reading:
    """Another meaning of the matrices of a calibration.

    Attributes:
        cause: what they are, for a sentence.
        to_opencv: gives OpenCV's world-to-camera matrices (..., 4, 4) of them.
    """

    cause: str
    to_opencv: Callable[[Float64], Float64]


def _invert(poses: Float64) -> Float64:
    return np.asarray(np.linalg.inv(poses), dtype=np.float64)


def _translate_by_centre(poses: Float64) -> Float64:
    """World-to-camera matrices from those that hold the camera's centre as translation."""
    result = poses.copy()
    result[..., :3, 3] = -np.einsum("...ij,...j->...i", poses[..., :3, :3], poses[..., :3, 3])
    return result


def _turn(*rows: tuple[int, int, int]) -> Float64:
    result = np.eye(4)
    result[:3, :3] = rows
    return result


_OPENGL = np.diag([1.0, -1.0, -1.0, 1.0])
_UP = np.diag([1.0, -1.0, 1.0, 1.0])
_LEFT_UP = np.diag([-1.0, -1.0, 1.0, 1.0])
_QUARTER = _turn((0, -1, 0), (1, 0, 0), (0, 0, 1))

READINGS = (  # of several that fit, the first is named
    Reading("camera-to-world matrices, in place of world-to-camera", _invert),
    Reading("of OpenGL axes (y up, z backward), in place of OpenCV's", lambda p: _OPENGL @ p),
    Reading(
        "camera-to-world matrices of OpenGL axes (Blender, NeRF), in place of OpenCV's "
        "world-to-camera",
        lambda p: _OPENGL @ _invert(p),
    ),
    Reading(
        "rotations with the camera's position beside them, in place of its world-to-camera "
        "translation",
        _translate_by_centre,
    ),
    Reading("of left-handed axes (y up, Unity)", lambda p: _UP @ p @ _UP),
    Reading(
        "camera-to-world matrices of left-handed axes (y up, Unity)",
        lambda p: _UP @ _invert(p) @ _UP,
    ),
    Reading("of axes x left, y up (PyTorch3D), or of images upside down", lambda p: _LEFT_UP @ p),
    Reading("of images before they were turned by 90°", lambda p: _QUARTER @ p),
    Reading("of images before they were turned by 90°", lambda p: _QUARTER.T @ p),
)


def in_unit(poses: Float64, per_metre: float) -> Float64:
    """Poses whose translations are in a unit of which a metre has some, in metres."""
    result = poses.copy()
    result[..., :3, 3] /= per_metre
    return result


def find_unit(factor: float) -> str | None:
    """The unit that makes lengths this many times too large, if there is one."""
    for name, per_metre in UNITS.items():
        if 1 / UNIT_TOLERANCE < factor / per_metre < UNIT_TOLERANCE:
            return name
    return None
