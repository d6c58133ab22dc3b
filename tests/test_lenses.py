"""Lenses by OpenCV's model, against its formula written out."""

from __future__ import annotations

import numpy as np
import pytest

from eavatar.cameras import Camera
from eavatar.errors import UserError
from eavatar.lenses import Lens, read_lens

CAMERA = Camera(np.array([[900.0, 0, 310], [0, 910, 250], [0, 0, 1]]), np.eye(4), 640, 480)
COEFFICIENTS = {
    4: (-0.3, 0.1, 0.002, -0.001),
    5: (-0.3, 0.1, 0.002, -0.001, 0.02),
    8: (0.2, -0.1, 0.002, -0.001, 0.02, 0.5, 0.1, 0.01),
}


def distort(points: np.ndarray, terms: tuple[float, ...]) -> np.ndarray:
    """Pixels (N, 2) without distortion to those with it."""
    k1, k2, p1, p2, k3, k4, k5, k6 = (*terms, 0, 0, 0, 0)[:8]
    x, y = ((points - CAMERA.intrinsics[:2, 2]) / np.diag(CAMERA.intrinsics)[:2]).T
    r = x * x + y * y
    radial = (1 + k1 * r + k2 * r**2 + k3 * r**3) / (1 + k4 * r + k5 * r**2 + k6 * r**3)
    across = x * radial + 2 * p1 * x * y + p2 * (r + 2 * x * x)
    down = y * radial + p1 * (r + 2 * y * y) + 2 * p2 * x * y
    return (
        np.stack([across, down], axis=1) * np.diag(CAMERA.intrinsics)[:2]
        + (CAMERA.intrinsics[:2, 2])
    )


@pytest.mark.parametrize("count", COEFFICIENTS)
def test_points_come_back(count: int) -> None:
    points = np.random.default_rng(0).uniform(0, (640, 480), (2, 50, 2))
    lens = read_lens(CAMERA, [list(COEFFICIENTS[count])], "file")  # nested, as OpenCV writes it
    assert lens is not None
    seen = distort(points.reshape(-1, 2), COEFFICIENTS[count])
    assert np.abs(seen - points.reshape(-1, 2)).max() > 2  # else nothing is tested
    np.testing.assert_allclose(lens.distort_points(points.reshape(-1, 2)), seen, atol=1e-6)
    found = lens.undistort_points(seen.reshape(points.shape))
    np.testing.assert_allclose(found, points, atol=1e-3)


def test_points_far_outside_the_image_stay() -> None:
    """Such are what was not found, or given in pixels of another size."""
    lens = Lens(CAMERA, COEFFICIENTS[5])
    points = np.array([[20000.0, -9000], [310, 250]])
    np.testing.assert_allclose(lens.undistort_points(points), points, atol=1e-3)
    assert lens.undistort_points(np.zeros((0, 68, 2))).shape == (0, 68, 2)


@pytest.mark.parametrize("size", [(640, 480), (320, 240)])
def test_images_agree_with_points(size: tuple[int, int]) -> None:
    """A dot lands where the pinhole camera sees it, at the calibrated and at a smaller size."""
    lens = Lens(CAMERA, COEFFICIENTS[5])
    scale = size[0] / CAMERA.width
    straighten = lens.undistorter(*size)
    for point in np.array([[60.0, 50], [580, 80], [320, 240], [70, 430]]):
        seen = distort(point[None], COEFFICIENTS[5])[0] * scale
        x, y = np.arange(size[0]) + 0.5, np.arange(size[1]) + 0.5
        dot = np.exp(-((x - seen[0]) ** 2 + (y[:, None] - seen[1]) ** 2) / 18)
        image = straighten((255 * dot).round().astype(np.uint8)).astype(float)
        centre = np.array([(image.sum(axis=0) * x).sum(), (image.sum(axis=1) * y).sum()])
        # OpenCV's tables have steps of 1/32 pixel; half a pixel would be the wrong convention.
        np.testing.assert_allclose(centre / image.sum(), point * scale, atol=0.06)


def test_no_distortion_is_no_lens() -> None:
    for rows in (None, [], [0, 0, 0, 0], [[0.0] * 5]):
        assert read_lens(CAMERA, rows, "file") is None


@pytest.mark.parametrize(
    ("rows", "told"),
    [
        ([0.1, 0.2], "4, 5 or 8 finite numbers"),
        ([0.1] * 12, "not 12"),
        ([0.1, np.nan, 0, 0], "finite"),
        ("text", "no list of numbers"),
        ({"k1": 0.1}, "no list of numbers"),
        ([-3.0, 0, 0, 0], "fold the image"),
        ([0, 0, 0, 0, 400.0], "shift its corners"),
    ],
)
def test_what_is_no_lens_is_told(rows: object, told: str) -> None:
    with pytest.raises(UserError, match=f"^file.*{told}"):
        read_lens(CAMERA, rows, "file")
