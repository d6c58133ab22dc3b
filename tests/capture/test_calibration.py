"""Matrices of unknown files: good ones pass unchanged, bad ones are one sentence."""

from __future__ import annotations

import numpy as np
import pytest

from eavatar.capture.calibration import finite_matrix, read_camera, read_intrinsics
from eavatar.errors import UserError

INTRINSICS = np.array([[800.0, 0, 310], [0, 810, 250], [0, 0, 1]])
WIDTH, HEIGHT = 640, 480


def turned(matrix: np.ndarray, place: tuple[int, int], value: float) -> np.ndarray:
    changed = matrix.copy()
    changed[place] = value
    return changed


def test_a_pinhole_camera_passes_unchanged() -> None:
    intrinsics = read_intrinsics(INTRINSICS.tolist(), WIDTH, HEIGHT, "file")
    camera = read_camera(intrinsics, np.eye(4).tolist(), WIDTH, HEIGHT, "file")
    np.testing.assert_array_equal(camera.intrinsics, INTRINSICS)
    np.testing.assert_array_equal(camera.world_to_camera, np.eye(4))


@pytest.mark.parametrize(
    ("rows", "told"),
    [
        (turned(INTRINSICS, (0, 0), -800), "positive focal lengths"),
        (turned(INTRINSICS, (0, 1), 100), "next to no skew"),
        (turned(INTRINSICS, (2, 2), 2), "the last row 0, 0, 1"),
        (turned(INTRINSICS, (0, 2), 1100), "give intrinsics for that size"),
        (turned(INTRINSICS, (1, 1), np.nan), "finite numbers"),
        (np.eye(4), "not a 3×3 matrix"),
    ],
)
def test_what_is_no_pinhole_camera_of_the_image_is_told(rows: np.ndarray, told: str) -> None:
    with pytest.raises(UserError, match=f"^file.*{told}"):
        read_intrinsics(rows, WIDTH, HEIGHT, "file")


@pytest.mark.parametrize(
    "matrix",
    [
        np.diag([1.0, 1, -1, 1]),  # a mirror
        np.diag([1.1, 1.1, 1.1, 1]),  # a scale
        turned(np.eye(4), (3, 3), 2),
        turned(np.eye(4), (0, 0), 1e200),  # overflows in a product
    ],
)
def test_what_is_no_rigid_motion_is_told(matrix: np.ndarray) -> None:
    with pytest.raises(UserError, match="no rotation and translation"):
        read_camera(INTRINSICS, matrix, WIDTH, HEIGHT, "file")


@pytest.mark.parametrize("rows", [None, "text", [[1, 2], [3]], [["a", "b"]], [[10**400, 1]]])
def test_what_is_no_matrix_of_numbers_is_told(rows: object) -> None:
    with pytest.raises(UserError, match="file: not a 1×2 matrix"):
        finite_matrix(rows, (1, 2), "file")
