"""Lens distortion by OpenCV's model, and images and points without it.

Only raw images are distorted. They are undistorted on ingest, into the pinhole camera that has the
same intrinsics, so that every later stage has pinhole cameras.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from eavatar.arrays import Float64, Image
from eavatar.cameras import Camera
from eavatar.errors import UserError

TERMS = (4, 5, 8)  # k1 k2 p1 p2, k3, k4 k5 k6
MAX_SHIFT = 0.5  # of the distance from the centre, anywhere in the image: fisheyes have more
STEPS = 200  # radii at which it is looked at
ITERATIONS = 100  # most, to undistort points
PRECISION = 1e-4  # pixels
PIXEL = np.array([0.5, 0.5])  # here the first pixel's centre; OpenCV's is the origin


@dataclass(frozen=True)
class Lens:
    """A camera's lens.

    Attributes:
        camera: the pinhole camera of the undistorted image.
        coefficients: 4, 5 or 8 of OpenCV's, in its order.
    """

    camera: Camera
    coefficients: tuple[float, ...]

    def undistorter(self, width: int, height: int) -> Callable[[Image], Image]:
        """A function of images (H, W[, 3]) of a stored size, black where they show nothing.

        Args:
            width: of the images, pixels.
            height: of the images, pixels.
        """
        import cv2

        matrix = _opencv_matrix(self.camera.resize(width, height))
        first, second = cv2.initUndistortRectifyMap(
            matrix, np.array(self.coefficients), None, matrix, (width, height), cv2.CV_16SC2
        )
        return lambda image: cv2.remap(image, first, second, cv2.INTER_CUBIC)

    def resize(self, width: int, height: int) -> Lens:
        """The lens of the same view sampled with another number of pixels."""
        return replace(self, camera=self.camera.resize(width, height))

    def undistort_points(self, points: NDArray[np.floating]) -> Float64:
        """Pixels (..., 2) of the distorted image to those of the pinhole camera, by iteration.

        What lies so far outside of the image that no pixel is found stays where it is.
        """
        target = np.asarray(points, dtype=np.float64).reshape(-1, 2)
        found, step = target.copy(), np.ones_like(target)
        with np.errstate(all="ignore"):
            for _ in range(ITERATIONS):
                if np.abs(step).max(initial=0) < PRECISION:
                    break
                step = target - self.distort_points(found)
                found += step
        lost = ~(np.abs(step) < 1).all(axis=1)
        found[lost] = target[lost]
        return found.reshape(points.shape)

    def distort_points(self, points: Float64) -> Float64:
        """Pixels (N, 2) of the pinhole camera to those of the distorted image."""
        import cv2

        matrix = _opencv_matrix(self.camera)
        rays = (points - PIXEL - matrix[:2, 2]) / np.diag(matrix)[:2]
        local = np.column_stack([rays, np.ones(len(rays))])
        nothing = np.zeros(3)
        pixels, _ = cv2.projectPoints(local, nothing, nothing, matrix, np.array(self.coefficients))
        return np.asarray(pixels.reshape(-1, 2) + PIXEL, dtype=np.float64)


def straightener(lens: Lens | None, width: int, height: int) -> Callable[[Image], Image]:
    """What undistorts images of a stored size; without a lens, what leaves them as they are."""
    return lens.undistorter(width, height) if lens else lambda image: image


def read_lens(camera: Camera, rows: object, where: str) -> Lens | None:
    """The lens of a camera; None if its coefficients are none or all zero.

    Args:
        camera: of the image without distortion.
        rows: OpenCV's coefficients, nested or not.
        where: the file and the part of it, for the message.

    Raises:
        UserError: they are not 4, 5 or 8 numbers, or distort the image as no such lens does.
    """
    try:
        values = np.array(rows if rows is not None else [], dtype=np.float64).ravel()
    except (TypeError, ValueError, OverflowError) as error:
        raise UserError(f"{where}: distortion is no list of numbers; restore the file.") from error
    if not values.any():
        return None
    if len(values) not in TERMS or not np.isfinite(values).all():
        raise UserError(
            f"{where}: distortion needs 4, 5 or 8 finite numbers, OpenCV's k1 k2 p1 p2 [k3 [k4 k5 "
            f"k6]], not {len(values)}; calibrate with one of these models."
        )
    if camera.intrinsics[0, 1]:
        raise UserError(
            f"{where}: OpenCV's distortion goes with intrinsics without skew; set it 0."
        )
    lens = Lens(camera, tuple(values.tolist()))
    _check_radii(lens, where)
    return lens


def _check_radii(lens: Lens, where: str) -> None:
    """Raise `UserError` if the distortion folds the image or shifts its pixels too far."""
    camera = lens.camera
    centre = camera.intrinsics[:2, 2]
    corner = np.where(centre > np.array([camera.width, camera.height]) / 2, 0.0, 1.0)
    far = corner * [camera.width, camera.height] - centre
    along = np.linspace(0, 1, STEPS + 1)[1:]
    reach = np.linalg.norm(lens.distort_points(centre + along[:, None] * far) - centre, axis=1)
    shift = np.abs(reach / (along * np.linalg.norm(far)) - 1).max()
    if (np.diff(reach) <= 0).any() or shift > MAX_SHIFT:
        raise UserError(
            f"{where}: distortion {list(lens.coefficients)} would fold the image or shift its "
            "corners by more than half; give OpenCV's coefficients k1 k2 p1 p2 k3 … (of no fisheye "
            "model), in this order."
        )


def _opencv_matrix(camera: Camera) -> Float64:
    """(3, 3) intrinsics where the first pixel's centre is the origin."""
    matrix = camera.intrinsics.copy()
    matrix[:2, 2] -= PIXEL
    return matrix
