from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from numpy.testing import assert_allclose
from scipy.spatial.transform import Rotation

from eavatar.cameras import Camera


def numbers(low: float, high: float) -> st.SearchStrategy[float]:
    return st.floats(low, high, allow_nan=False)


@st.composite
def cameras(draw: st.DrawFn) -> Camera:
    """Cameras 0.5 to 2 m from the origin, any rotation, skewless, square pixels or not."""
    intrinsics = np.array(
        [
            [draw(numbers(300, 9000)), 0, draw(numbers(0, 2000))],
            [0, draw(numbers(300, 9000)), draw(numbers(0, 3000))],
            [0, 0, 1],
        ]
    )
    world_to_camera = np.eye(4)
    angles = [draw(numbers(-3, 3)) for _ in range(3)]
    world_to_camera[:3, :3] = Rotation.from_rotvec(angles).as_matrix()
    world_to_camera[:3, 3] = [draw(numbers(-0.1, 0.1)), draw(numbers(-0.1, 0.1)), 0]
    world_to_camera[2, 3] = draw(numbers(0.5, 2))
    return Camera(intrinsics, world_to_camera, 2200, 3208)


points = st.lists(
    st.tuples(numbers(-0.2, 0.2), numbers(-0.2, 0.2), numbers(-0.2, 0.2)), min_size=1, max_size=5
).map(np.array)
sizes = st.integers(1, 4000)


@given(cameras(), points, numbers(-500, 2500), numbers(-500, 2500), sizes, sizes, sizes, sizes)
def test_crop_resize_project(
    camera: Camera,
    world: np.ndarray,
    x: float,
    y: float,
    crop_width: int,
    crop_height: int,
    width: int,
    height: int,
) -> None:
    """Cropping and resizing the image moves a projection exactly as it moves the pixels."""
    before, depth = camera.project(world)
    after_camera = camera.crop(x, y, crop_width, crop_height).resize(width, height)
    after, same_depth = after_camera.project(world)
    expected = (before - (x, y)) * (width / crop_width, height / crop_height)
    assert (after_camera.width, after_camera.height) == (width, height)
    # Relative to the largest intermediate value: only float64 rounding may differ.
    scale = max(width / crop_width, height / crop_height) * (np.abs(before).max() + 3000)
    assert_allclose(after, expected, atol=1e-11 * scale)
    assert_allclose(same_depth, depth, rtol=1e-12)


@given(cameras())
def test_the_centre_is_at_the_camera_s_origin(camera: Camera) -> None:
    homogeneous = np.append(camera.centre, 1)
    assert_allclose(camera.world_to_camera @ homogeneous, [0, 0, 0, 1], atol=1e-12)


@given(cameras(), points)
def test_resizing_back_and_forth_is_the_identity(camera: Camera, world: np.ndarray) -> None:
    there = camera.resize(275, 401)
    back, _ = there.resize(camera.width, camera.height).project(world)
    assert_allclose(back, camera.project(world)[0], rtol=1e-9, atol=1e-9)


def test_projection_by_hand() -> None:
    """A point 0.1 m right of and 0.2 m below the axis, 2 m ahead, focal length 1000 pixels."""
    intrinsics = np.array([[1000.0, 0, 320], [0, 1000, 240], [0, 0, 1]])
    camera = Camera(intrinsics, np.eye(4), 640, 480)
    pixels, depth = camera.project(np.array([0.1, 0.2, 2.0]))
    assert_allclose(pixels, [370, 340])
    assert depth == 2.0


def test_a_crop_of_the_corner_keeps_the_pixel_grid() -> None:
    """Pixel i covers [i, i + 1): halving maps the centre of a 2×2 block to a pixel's centre."""
    intrinsics = np.array([[1000.0, 0, 320], [0, 1000, 240], [0, 0, 1]])
    camera = Camera(intrinsics, np.eye(4), 640, 480)
    world = np.array([[(11.0 - 320) * 1.5 / 1000, (21.0 - 240) * 1.5 / 1000, 1.5]])
    assert_allclose(camera.project(world)[0], [[11, 21]])
    pixels, _ = camera.crop(10, 20, 100, 100).resize(50, 50).project(world)
    assert_allclose(pixels, [[0.5, 0.5]], atol=1e-12)
