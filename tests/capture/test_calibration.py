"""Matrices of unknown files: good ones pass unchanged, bad ones are one sentence."""

from __future__ import annotations

import numpy as np
import pytest

from eavatar.cameras import Camera
from eavatar.capture.calibration import (
    check_sizes,
    finite_matrix,
    read_camera,
    read_intrinsics,
)
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


def half_of(matrix: np.ndarray) -> np.ndarray:
    """For an image of half the size, with the principal point in its exact centre."""
    halved = matrix * [[0.5], [0.5], [1]]
    halved[:2, 2] = WIDTH / 4, HEIGHT / 4
    return halved


@pytest.mark.parametrize(
    ("rows", "told"),
    [
        (turned(INTRINSICS, (0, 0), -800), "positive focal lengths"),
        (turned(INTRINSICS, (0, 1), 100), "next to no skew"),
        (turned(INTRINSICS, (2, 2), 2), "the last row 0, 0, 1"),
        (turned(INTRINSICS, (0, 2), 1100), "give intrinsics for that size"),
        (half_of(INTRINSICS), r"as in intrinsics of an image of 320×240"),
        (INTRINSICS / [[640], [480], [1]], "as normalised intrinsics have it"),
        (turned(turned(INTRINSICS, (0, 0), 50), (1, 1), 50), "not in millimetres"),
        (turned(INTRINSICS, (1, 1), 405), "as if the image had been stretched"),
        (turned(INTRINSICS, (1, 1), np.nan), "finite numbers"),
        (np.eye(4), "not a 3×3 matrix"),
    ],
)
def test_what_is_no_pinhole_camera_of_the_image_is_told(rows: np.ndarray, told: str) -> None:
    with pytest.raises(UserError, match=f"^file.*{told}"):
        read_intrinsics(rows, WIDTH, HEIGHT, "file")


def cameras_with(*centres: tuple[float, float]) -> dict[str, Camera]:
    """Cameras whose principal points are at these fractions of the image."""
    matrices = [
        np.array([[800.0, 0, x * WIDTH], [0, 800, y * HEIGHT], [0, 0, 1]]) for x, y in centres
    ]
    return {str(n): Camera(m, np.eye(4), WIDTH, HEIGHT) for n, m in enumerate(matrices)}


@pytest.mark.parametrize(
    ("centres", "size"),
    [
        ([(0.335, 0.33), (0.33, 0.34), (0.328, 0.333)], r"42\d×3[12]\d"),  # two thirds
        ([(0.375, 0.667), (0.38, 0.66)], "480×640"),  # the sides exchanged
    ],
)
def test_principal_points_of_another_image_size_are_told(
    centres: list[tuple[float, float]], size: str
) -> None:
    with pytest.raises(UserError, match=f"intrinsics of an image of about {size}"):
        check_sizes(cameras_with(*centres), "capture")


@pytest.mark.parametrize(
    "centres",
    [
        [(0.53, 0.54), (0.47, 0.52)],  # lenses
        [(0.4, 0.62), (0.41, 0.6)],  # crops of one place
        [(0.35, 0.36), (0.62, 0.61), (0.4, 0.55)],  # crops around a head
        [(0.35, 0.36), (0.5, 0.51)],
    ],
)
def test_principal_points_of_lenses_and_crops_pass(centres: list[tuple[float, float]]) -> None:
    check_sizes(cameras_with(*centres), "capture")


@pytest.mark.parametrize(
    ("matrix", "told"),
    [
        (np.diag([1.0, 1, -1, 1]), "mirrors, as left-handed axes do"),
        (np.diag([1.1, 1.1, 1.1, 1]), "scales by 1.1"),
        (np.diag([1.1, 1.0, 1.0, 1]), "restore the file"),
        (np.diag([0.0, 0, 0, 1]), "restore the file"),
        (turned(np.eye(4), (3, 3), 2), "last row"),
        (turned(np.eye(4), (3, 0), 2), "transposed"),
        (turned(np.eye(4), (0, 0), 1e200), "restore the file"),  # overflows in a product
    ],
)
def test_what_is_no_rigid_motion_is_told(matrix: np.ndarray, told: str) -> None:
    with pytest.raises(UserError, match=f"no rotation and translation.*{told}"):
        read_camera(INTRINSICS, matrix, WIDTH, HEIGHT, "file")


@pytest.mark.parametrize("rows", [None, "text", [[1, 2], [3]], [["a", "b"]], [[10**400, 1]]])
def test_what_is_no_matrix_of_numbers_is_told(rows: object) -> None:
    with pytest.raises(UserError, match="file: not a 1×2 matrix"):
        finite_matrix(rows, (1, 2), "file")
