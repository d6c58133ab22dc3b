"""Landmark detections of the demo capture, with a detector's faults.

Sizes are pixels of the full 2200×3208 image, where 1 mm at the head is about 8 pixels.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from eavatar.arrays import Bool, Float64
from eavatar.cameras import Camera
from eavatar.demo.render import SAMPLES

BIAS = 0.001  # metres: a detector defines landmarks in another way than the model
NOISE, NOISE_AT_LIMB = 4.5, 12.0  # standard deviation, facing the camera and seen edge-on
OUTLIERS = 0.008  # fraction of the points
OUTLIER_SIZE = 80.0
MISSED_IMAGES = 0.01  # fraction of the images without a detection
SURFACE_TOLERANCE = 0.008  # metres: a landmark this far behind what is seen is hidden


def landmark_bias(generator: np.random.Generator) -> Float64:
    """(68, 3) constant offset of each landmark in the head's frame, metres."""
    return generator.normal(0, BIAS / np.sqrt(3), (68, 3))


def find_visible(points: Float64, camera: Camera, depth: NDArray[np.floating]) -> Bool:
    """(68,) whether each world point lies on the surface nearest to a camera.

    Args:
        points: (68, 3) world, metres.
        camera: of the stored image.
        depth: nearest depths at the samples of the stored image, see `eavatar.demo.render.View`.
    """
    pixels, distance = camera.project(points)
    column, row = np.floor(SAMPLES * pixels).astype(int).T
    inside = (row >= 0) & (column >= 0) & (row < depth.shape[0]) & (column < depth.shape[1])
    nearest = depth[row * inside, column * inside]
    visible: Bool = inside & (distance < nearest + SURFACE_TOLERANCE)
    return visible


def detect(
    points: Float64,
    normals: NDArray[np.floating],
    visible: Bool,
    camera: Camera,
    generator: np.random.Generator,
) -> tuple[Float64, Float64]:
    """Noisy detections of one image: points (68, 2), and confidence (68,), 0 where not seen.

    Args:
        points: (68, 3) true landmarks plus bias, world.
        normals: (68, 3) of the surface.
        visible: (68,) from `find_visible`.
        camera: at full size.
    """
    view = camera.centre - points
    facing = (normals * view).sum(-1) / np.linalg.norm(view, axis=-1)
    facing = np.clip(facing, 0, 1)
    sigma = NOISE + (NOISE_AT_LIMB - NOISE) * (1 - facing) ** 2
    pixels = camera.project(points)[0] + sigma[:, None] * generator.normal(size=(68, 2))
    outlier = generator.random((68, 1)) < OUTLIERS
    pixels += outlier * generator.normal(0, OUTLIER_SIZE, (68, 2))
    confidence = 0.35 + 0.55 * facing + generator.normal(0, 0.04, 68)
    found = visible & (facing > 0.05) & (generator.random() > MISSED_IMAGES)
    return pixels, np.where(found, np.clip(confidence, 0.05, 1), 0)
