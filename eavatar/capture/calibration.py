"""Checked matrices from unknown files, and cameras from them."""

from __future__ import annotations

from typing import Any

import numpy as np

from eavatar.arrays import Float64
from eavatar.cameras import Camera
from eavatar.errors import UserError

RIGID_TOLERANCE = 1e-3  # of the entries of RᵀR; published calibrations are rounded to float32
MAX_OFFSET = 0.25  # of the principal point from the image's centre, fraction of its size


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
    size would go unnoticed otherwise.

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
    offset = np.abs(intrinsics[:2, 2] / (width, height) - 0.5).max()
    if offset > MAX_OFFSET:
        raise UserError(
            f"{where}: the principal point ({intrinsics[0, 2]:.0f}, {intrinsics[1, 2]:.0f}) is far "
            f"from the centre of {width}×{height} pixels; give intrinsics for that size."
        )
    return intrinsics


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
    rotation = world_to_camera[:3, :3]
    # Large entries would overflow in the product.
    rigid = np.abs(rotation).max() < 2 and np.allclose(
        rotation.T @ rotation, np.eye(3), rtol=0, atol=RIGID_TOLERANCE
    )
    if not rigid or np.linalg.det(rotation) < 0 or world_to_camera[3].tolist() != [0, 0, 0, 1]:
        raise UserError(
            f"{where}: its world-to-camera matrix is no rotation and translation; restore the file."
        )
    return Camera(intrinsics, world_to_camera, width, height)
