"""Pinhole cameras: projection, cropping and resizing.

Convention, stated here once for the whole package: OpenCV camera axes (x right, y down,
z forward), ``world_to_camera`` 4×4 in metres, intrinsics in pixels, and pixel ``i`` covers
``[i, i + 1)``, so that the centre of the first pixel is at 0.5.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from eavatar.arrays import Float64


@dataclass(frozen=True)
class Camera:
    """One calibrated pinhole camera.

    Attributes:
        intrinsics: (3, 3) pixels.
        world_to_camera: (4, 4) rigid, metres.
        width: of the image, pixels.
        height: of the image, pixels.
    """

    intrinsics: Float64
    world_to_camera: Float64
    width: int
    height: int

    @property
    def centre(self) -> Float64:
        """(3,) position of the camera in world space, metres."""
        rotation, translation = self.world_to_camera[:3, :3], self.world_to_camera[:3, 3]
        return -rotation.T @ translation

    def project(self, points: Float64) -> tuple[Float64, Float64]:
        """World points (..., 3) to pixels (..., 2) and depths (...,) along the axis, metres."""
        in_camera = points @ self.world_to_camera[:3, :3].T + self.world_to_camera[:3, 3]
        in_image = in_camera @ self.intrinsics.T
        depth = in_camera[..., 2]
        return in_image[..., :2] / depth[..., None], depth

    def crop(self, x: float, y: float, width: int, height: int) -> Camera:
        """The camera of a window of the image, which it may exceed.

        Args:
            x: of the window's upper left corner, pixels.
            y: of the window's upper left corner, pixels.
            width: of the window, pixels.
            height: of the window, pixels.
        """
        intrinsics = self.intrinsics.copy()
        intrinsics[0, 2] -= x
        intrinsics[1, 2] -= y
        return replace(self, intrinsics=intrinsics, width=width, height=height)

    def map_pixels(self, points: Float64, other: Camera) -> Float64:
        """Pixels (..., 2) of this image to those of another crop or size of it."""
        change = other.intrinsics @ np.linalg.inv(self.intrinsics)
        return np.asarray(points @ change[:2, :2].T + change[:2, 2], dtype=np.float64)

    def resize(self, width: int, height: int) -> Camera:
        """The camera of the same view sampled with another number of pixels."""
        factor = np.diag([width / self.width, height / self.height, 1.0])
        return replace(self, intrinsics=factor @ self.intrinsics, width=width, height=height)
