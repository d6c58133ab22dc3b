"""The demo capture's cameras: NeRSemble's serials on its arc, their colour and background."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from eavatar.arrays import Float32, Float64
from eavatar.cameras import Camera

FULL_WIDTH, FULL_HEIGHT = 2200, 3208
FOCAL_LENGTH = 8200.0  # pixels of the full image, as NeRSemble's
DISTANCE = 1.04  # metres
HIGH, LOW = 8.0, -24.0  # elevation of the two rows, degrees
# Serial number: azimuth in degrees to the subject's left, elevation.
ARC = {
    "222200042": (47, HIGH), "222200044": (46, LOW), "222200046": (34, HIGH),
    "222200040": (33, LOW), "222200036": (20.5, HIGH), "222200048": (21, LOW),
    "220700191": (7, HIGH), "222200041": (7.5, LOW), "222200037": (-7, HIGH),
    "222200038": (-5.5, LOW), "222200047": (-20, HIGH), "222200043": (-20, LOW),
    "222200049": (-33, HIGH), "222200039": (-34, LOW), "222200045": (-46, LOW),
    "221501007": (-46, HIGH),
}  # fmt: skip
SERIALS = tuple(sorted(ARC))


@dataclass(frozen=True)
class RigCamera:
    """A camera of the rig.

    Attributes:
        camera: at full size.
        colour: (3, 3) linear scene colour to the camera's linear colour.
        plate: (H, W, 3) linear background without the subject, before the camera's colour.
    """

    camera: Camera
    colour: Float64
    plate: Float32


def _look_at(centre: Float64, target: Float64, roll: float) -> Float64:
    """(4, 4) world_to_camera of an OpenCV camera at ``centre``; roll in radians."""
    forward = target - centre
    forward /= np.linalg.norm(forward)
    right = np.cross(forward, [0.0, 1.0, 0.0])
    right /= np.linalg.norm(right)
    right, down = (
        np.cos(roll) * right + np.sin(roll) * np.cross(forward, right),
        np.cos(roll) * np.cross(forward, right) - np.sin(roll) * right,
    )
    result = np.eye(4)
    result[:3, :3] = np.stack([right, down, forward])
    result[:3, 3] = -result[:3, :3] @ centre
    return result


def _draw_intrinsics(generator: np.random.Generator) -> Float64:
    """(3, 3) shared by all cameras, as in NeRSemble, in pixels of the full image."""
    focal = FOCAL_LENGTH + generator.normal(0, 10)
    cx, cy = np.array([FULL_WIDTH, FULL_HEIGHT]) / 2 + generator.normal(0, 5, 2)
    return np.array([[focal, 0, cx], [0, focal, cy], [0, 0, 1]])


def _draw_background(
    width: int, height: int, azimuth: float, generator: np.random.Generator
) -> Float32:
    """(H, W, 3) linear: a grey-blue wall, brighter on one side, with blotches and a vignette."""
    from scipy.ndimage import zoom

    y, x = np.mgrid[:height, :width]
    x, y = x / width - 0.5, y / height - 0.5
    coarse = generator.normal(size=(7, 5))
    blotches = zoom(coarse, (height / 7, width / 5), order=3, mode="nearest", grid_mode=True)
    level = 0.42 + 0.07 * x * np.sign(azimuth) - 0.12 * y + 0.02 * blotches[:height, :width]
    level *= 1 - 0.35 * (x * x + y * y)
    tint = np.array([0.93, 1.0, 1.07]) * (1 + 0.015 * generator.normal(size=3))
    image: Float32 = (level[..., None] * tint).astype(np.float32)
    return image


def _draw_colour_matrix(generator: np.random.Generator) -> Float64:
    """(3, 3) gains below one and a little crosstalk, so that white does not clip."""
    return np.diag(generator.uniform(0.84, 0.95, 3)) + generator.normal(0, 0.012, (3, 3))


def build_rig(width: int, height: int, generator: np.random.Generator) -> dict[str, RigCamera]:
    """All cameras by serial number; plates have the stored size width × height."""
    shared = _draw_intrinsics(generator)
    rig = {}
    for serial in SERIALS:
        azimuth, elevation = np.radians(np.array(ARC[serial]) + generator.normal(0, 0.7, 2))
        direction = np.array(
            [
                np.sin(azimuth) * np.cos(elevation),
                np.sin(elevation),
                np.cos(azimuth) * np.cos(elevation),
            ]
        )
        centre = (DISTANCE + generator.normal(0, 0.012)) * direction
        pose = _look_at(centre, generator.normal(0, 0.004, 3), generator.normal(0, 0.012))
        camera = Camera(shared, pose, FULL_WIDTH, FULL_HEIGHT)
        plate = _draw_background(width, height, azimuth, generator)
        rig[serial] = RigCamera(camera, _draw_colour_matrix(generator), plate)
    return rig
