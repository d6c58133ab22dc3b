"""The neutral timestep and the cameras that a generator is shown."""

from __future__ import annotations

import numpy as np
import pytest

from eavatar.backends import WantedView
from eavatar.prior.views import angles, choose_cameras, choose_timestep, directions

FRONT = WantedView("front", 0, 60)
SIDES = (FRONT, WantedView("left", 90, 60), WantedView("right", -90, 60))


def around(*yaws: float) -> np.ndarray:
    """(C, 3) centres of cameras a metre from the origin; a head there looks along z."""
    turns = np.radians(yaws)
    return np.stack([np.sin(turns), 0 * turns, np.cos(turns)], axis=1)


def test_directions_are_the_heads_own_wherever_it_is_and_looks() -> None:
    rotations, translations = (
        np.radians([[0, 0, 0], [0, 90, 0]]),
        np.array([[0, 0, 0], [0, 0, 0.5]]),
    )
    centres = np.array([[0, 0, 1], [1, 0, 0.5]])
    seen = directions(centres, rotations, translations)
    np.testing.assert_allclose(seen[0, 0], [0, 0, 1], atol=1e-12)
    # turned by 90° about y it looks along x: what is at x is in front, what is at z to its right
    np.testing.assert_allclose(seen[1], [[-1, 0, 0], [0, 0, 1]], atol=1e-12)


def test_the_subjects_left_is_where_x_points() -> None:
    seen = directions(around(0, 40, -40), np.zeros((1, 3)), np.zeros((1, 3)))[0]
    np.testing.assert_allclose(angles(seen, 90), [90, 50, 130], atol=1e-9)


def test_the_least_expression_is_chosen_where_a_camera_is_in_front() -> None:
    expressions = np.array([[0.0, 0.1], [0.5, 0.5], [2.0, 2.0]])
    turns = np.radians([[0, 50, 0], [0, 5, 0], [0, 0, 0]])  # the calmest looks away from all
    seen = directions(around(0, -60), turns, np.zeros((3, 3)))
    usable = np.ones((3, 2), bool)
    assert choose_timestep(expressions, seen, usable) == 1
    usable[1, 0] = False  # the mask of the camera in front has failed
    assert choose_timestep(expressions, seen, usable) == 2


def test_a_head_that_never_looks_at_a_camera_is_taken_at_its_most_frontal() -> None:
    turns = np.radians([[0, 60, 0], [0, 40, 0]])
    seen = directions(around(0), turns, np.zeros((2, 3)))
    assert choose_timestep(np.array([[0.0], [1.0]]), seen, np.ones((2, 1), bool)) == 1


def test_each_view_gets_the_nearest_camera_of_its_own() -> None:
    seen = directions(around(-45, -4, 10, 48), np.zeros((1, 3)), np.zeros((1, 3)))[0]
    chosen = choose_cameras(SIDES, seen, np.ones(4, bool))
    named = {view.name: view.camera for view in chosen}
    assert named == {"front": 1, "left": 3, "right": 0}
    assert [view.off for view in chosen] == pytest.approx([4, 42, 45])


def test_a_view_without_a_usable_camera_within_its_tolerance_is_left_out() -> None:
    seen = directions(around(0, 20, -45), np.zeros((1, 3)), np.zeros((1, 3)))[0]
    usable = np.array([True, True, False])
    assert [view.name for view in choose_cameras(SIDES, seen, usable)] == ["front"]
    assert choose_cameras([WantedView("back", 180, 30)], seen, usable) == []
