"""A face is told from other points whatever its size, pose and convention of the jaw line."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.spatial.transform import Rotation

from eavatar.face.layout import AVERAGE_FACE, find_asymmetry, find_layout_fault
from eavatar.landmark_indices import MIRROR
from eavatar.prior.template import generic_head

JAW = slice(17)


def test_mirror_images_of_mirror_images_are_the_landmarks_themselves() -> None:
    order = np.array(MIRROR)
    np.testing.assert_array_equal(order[order], np.arange(68))
    np.testing.assert_array_equal(AVERAGE_FACE[order] * (-1, 1, 1), AVERAGE_FACE)


@given(
    turn=st.tuples(*[st.floats(-np.pi, np.pi)] * 3),
    size=st.floats(1e-4, 1e3),
    widths=st.tuples(*[st.floats(0.85, 1.15)] * 3),
)
def test_any_face_in_any_pose_and_unit_passes(
    turn: tuple[float, ...], size: float, widths: tuple[float, ...]
) -> None:
    """People's heads differ by 15 % in each direction at most, and detections by millimetres."""
    noise = np.random.default_rng(0).normal(0, 1.0, AVERAGE_FACE.shape)
    posed = Rotation.from_rotvec(turn).apply(AVERAGE_FACE * widths + noise) * size + 3
    assert find_layout_fault(posed) is None


def test_other_heads_and_conventions_of_the_jaw_line_pass() -> None:
    """A sculpted head, and a jaw line 25 mm further in front, as outlines in images are."""
    assert find_layout_fault(generic_head().landmarks) is None
    outline = AVERAGE_FACE.copy()
    outline[JAW, 2] += 25 * np.abs(np.linspace(-1, 1, 17))
    assert find_layout_fault(outline) is None


@pytest.mark.parametrize("seed", range(5))
def test_an_order_by_chance_is_refused(seed: int) -> None:
    order = np.random.default_rng(seed).permutation(68)
    assert "wrong side of others" in str(find_layout_fault(AVERAGE_FACE[order]))


def test_one_landmark_far_away_is_named() -> None:
    points = AVERAGE_FACE.copy()
    points[8, 1] -= 60
    assert find_layout_fault(points) == "landmark 9 lies 57 mm from its place in an average face"


def test_one_side_that_hangs_is_refused() -> None:
    points = AVERAGE_FACE.copy()
    points[48, 1] -= 20
    assert "landmarks 49 and 55 are 20 mm from mirror images" in str(find_layout_fault(points))


def test_asymmetry_is_the_distance_of_mirror_images() -> None:
    """4 mm across one eye's pair, little elsewhere: the alignment spreads it a little."""
    points = AVERAGE_FACE.copy()
    points[36, 1] += 4
    found = find_asymmetry(points)
    assert found[36] == pytest.approx(4, abs=0.3) and np.median(found) < 0.3
