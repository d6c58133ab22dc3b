"""Checked matrices from unknown files, and cameras from them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from eavatar.arrays import Float64
from eavatar.cameras import Camera
from eavatar.errors import UserError

RIGID_TOLERANCE = 1e-3  # of the entries of RᵀR; published calibrations are rounded to float32
# Of the principal point from the image's centre, fraction of its size. Lenses are off by a few
# hundredths, crops by more; intrinsics of an image of half the size by 0.25.
MAX_OFFSET = 0.2
MAX_FIT = 0.03  # the same, where another size of the image explains it
MIN_OFFSET = 0.08  # below it no other size is looked for
FOCAL_LENGTHS = 0.2, 100.0  # of the image's longer side: views of 136° and 0.6°
MAX_ASPECT = 1.5  # of a pixel
SIZES = 0.25, 0.375, 0.5, 2 / 3, 0.75, 1.25, 4 / 3, 1.5, 2.0, 3.0, 4.0  # of an image reduced or not


def finite_matrix(rows: Any, shape: tuple[int, ...], where: str) -> Float64:
    """Nested lists or an array as a finite matrix.

    Args:
        rows: of a file.
        shape: expected.
        where: the file and the part of it, for the message.

    Raises:
        UserError: it is anything else.
    """
    text = "×".join(map(str, shape))
    try:
        matrix = np.array(rows, dtype=np.float64)
    except (TypeError, ValueError, OverflowError) as error:
        raise UserError(f"{where}: not a {text} matrix of numbers; restore the file.") from error
    if matrix.shape != shape or not np.isfinite(matrix).all():
        raise UserError(f"{where}: not a {text} matrix of finite numbers; restore the file.")
    return matrix


def read_intrinsics(rows: Any, width: int, height: int, where: str) -> Float64:
    """(3, 3) intrinsics for an image of width × height pixels.

    A principal point far from the centre is refused: intrinsics in the pixels of another image
    size would go unnoticed otherwise (see `check_sizes`, too).

    Args:
        rows: of a file.
        width: of the image, pixels.
        height: of the image, pixels.
        where: the file and the part of it, for the message.

    Raises:
        UserError: not the matrix of a pinhole camera, or not of such an image.
    """
    intrinsics = finite_matrix(rows, (3, 3), f"{where}: intrinsics")
    focal, lower = np.diag(intrinsics)[:2], [*intrinsics[2], intrinsics[1, 0]]
    if focal.min() <= 0 or lower != [0, 0, 1, 0] or abs(intrinsics[0, 1]) > 0.1 * focal.min():
        raise UserError(
            f"{where}: intrinsics need positive focal lengths, next to no skew and the last row "
            "0, 0, 1; restore the file."
        )
    centre = intrinsics[:2, 2] / (width, height)
    if np.abs(centre - 0.5).max() > MAX_OFFSET:
        raise UserError(
            f"{where}: the principal point ({intrinsics[0, 2]:.0f}, {intrinsics[1, 2]:.0f}) is far "
            f"from the centre of {width}×{height} pixels{_other_size(intrinsics, width, height)}; "
            "give intrinsics for that size."
        )
    longer = focal / max(width, height)
    if longer.min() < FOCAL_LENGTHS[0] or longer.max() > FOCAL_LENGTHS[1]:
        raise UserError(
            f"{where}: focal lengths of {focal[0]:g} and {focal[1]:g} pixels do not suit an image "
            f"of {width}×{height}; give them in pixels, not in millimetres or normalised."
        )
    if focal.max() > MAX_ASPECT * focal.min():
        raise UserError(
            f"{where}: focal lengths of {focal[0]:.0f} and {focal[1]:.0f} pixels differ as if the "
            f"image had been stretched; give intrinsics for {width}×{height} pixels."
        )
    return intrinsics


def check_sizes(cameras: Mapping[str, Camera], where: str) -> None:
    """Check that the principal points of all cameras are not those of images of another size.

    One lens or crop may be off its centre. But where another size of the image puts all of them
    into its centre, the intrinsics are that size's.

    Args:
        cameras: by serial number.
        where: the capture, for the message.

    Raises:
        UserError: they are; the sentence says of which size.
    """
    size = np.array([[camera.width, camera.height] for camera in cameras.values()])
    points = np.stack([camera.intrinsics[:2, 2] for camera in cameras.values()])
    if (np.abs(points / size - 0.5).max(axis=1) < MIN_OFFSET).any():
        return
    scales = (2 * points / size).mean(axis=1)
    for other in (size * np.median(scales), size[:, ::-1]):
        if np.abs(points / other - 0.5).max() < MAX_FIT:
            raise UserError(
                f"{where}: the principal points of all cameras are off the centre of "
                f"{size[0, 0]}×{size[0, 1]} pixels as in intrinsics of an image of about "
                f"{other[0, 0]:.0f}×{other[0, 1]:.0f}; give intrinsics for "
                f"{size[0, 0]}×{size[0, 1]} pixels."
            )


def _other_size(intrinsics: Float64, width: int, height: int) -> str:
    """The size of the image in whose centre a principal point lies, as part of a sentence."""
    if np.abs(intrinsics[:2, 2] - 0.5).max() < MAX_FIT:
        return ", as normalised intrinsics have it"
    size = np.array([width, height])
    for other in (*(factor * size for factor in SIZES), size[::-1]):
        if np.abs(intrinsics[:2, 2] / other - 0.5).max() < MAX_FIT:
            return f", as in intrinsics of an image of {other[0]:.0f}×{other[1]:.0f}"
    return ""


def refuse_unknown(names: Iterable[str], known: Iterable[str], path: Path) -> None:
    """Raise `UserError` if a calibration holds what is not read: it may change what cameras see."""
    unknown = sorted(set(names) - set(known))
    if unknown:
        raise UserError(
            f"{path} holds {', '.join(map(repr, unknown))}, which is not read; lens distortion by "
            "OpenCV's coefficients must be named 'distortion': rename it, or remove it if it "
            "changes nothing."
        )


def read_camera(intrinsics: Float64, rows: Any, width: int, height: int, where: str) -> Camera:
    """The camera of checked intrinsics and an unchecked world-to-camera matrix.

    Args:
        intrinsics: (3, 3) of `read_intrinsics`.
        rows: 4×4 matrix of a file.
        width: of the image, pixels.
        height: of the image, pixels.
        where: the file and the part of it, for the message.

    Raises:
        UserError: the matrix is no rotation and translation.
    """
    world_to_camera = finite_matrix(rows, (4, 4), where)
    fault = _find_pose_fault(world_to_camera)
    if fault:
        raise UserError(
            f"{where}: its world-to-camera matrix is no rotation and translation{fault}"
        )
    return Camera(intrinsics, world_to_camera, width, height)


def _find_pose_fault(matrix: Float64) -> str:
    """The rest of a sentence on a (4, 4) matrix that is not rigid; empty if it is."""
    rotation = matrix[:3, :3]
    if matrix[3].tolist() != [0, 0, 0, 1]:
        if matrix[:, 3].tolist() == [0, 0, 0, 1]:
            return ", but seems transposed, for row vectors; transpose it."
        return ": its last row is not 0, 0, 0, 1; restore the file."
    if np.abs(rotation).max() >= 1e6:  # larger entries would overflow in the product
        return "; restore the file."
    squared, determinant = rotation.T @ rotation, float(np.linalg.det(rotation))
    scale = float(np.trace(squared)) / 3
    even = np.allclose(squared, scale * np.eye(3), rtol=0, atol=RIGID_TOLERANCE * max(scale, 1))
    if not even or scale < RIGID_TOLERANCE:
        return "; restore the file."
    if determinant < 0:
        return (
            " but mirrors, as left-handed axes do; convert it to right-handed ones (OpenCV: x "
            "right, y down, z forward)."
        )
    if abs(scale - 1) > RIGID_TOLERANCE:
        return (
            f" but scales by {np.sqrt(scale):.4g}; divide its first three rows by that, so that "
            "lengths are those of the world, in metres."
        )
    return ""
