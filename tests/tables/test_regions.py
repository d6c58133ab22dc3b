"""Regions on a head that is drawn by hand: a sphere whose landmarks look out of its front."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.spatial.transform import Rotation

from eavatar.cameras import Camera
from eavatar.tables.regions import (
    LABELLED,
    OUTLINE,
    REGIONS,
    Head,
    Regions,
    find_regions,
    measure_regions,
)

SIZE = 200


def face() -> np.ndarray:
    """(68, 3) landmarks, metres, of a face 0.14 m wide: x to its left, y up, z out of it."""
    points = np.zeros((68, 3))
    angles = np.linspace(np.pi, 2 * np.pi, 17)
    points[:17] = np.stack([0.07 * np.cos(angles), 0.08 * np.sin(angles), 0 * angles], axis=1)
    points[17:22] = np.stack([np.linspace(-0.05, -0.015, 5), [0.035] * 5, [0.05] * 5], axis=1)
    points[22:27] = points[21:16:-1] * [-1, 1, 1]
    points[27:36] = [0, -0.02, 0.07]
    turns = np.pi - np.arange(6) * np.pi / 3
    ring = np.stack([np.cos(turns), 0.4 * np.sin(turns), 0 * turns], axis=1)
    points[36:42] = 0.015 * ring + [-0.03, 0.015, 0.05]
    points[42:48] = 0.015 * ring + [0.03, 0.015, 0.05]
    turns = np.pi - np.arange(12) * np.pi / 6
    points[48:60] = np.stack(
        [0.025 * np.cos(turns), -0.05 + 0.01 * np.sin(turns), 0 * turns + 0.05], axis=1
    )
    points[60:] = [0, -0.05, 0.05]
    return points


def camera(azimuth: float) -> Camera:
    """At 1 m; 0 sees the face, 90 its left side, degrees."""
    look = Rotation.from_euler("y", azimuth, degrees=True).as_matrix()
    matrix = np.eye(4)
    matrix[:3, :3], matrix[2, 3] = np.diag([1.0, -1.0, -1.0]) @ look.T, 1.0
    return Camera(np.array([[600.0, 0, 100], [0, 600, 100], [0, 0, 1]]), matrix, SIZE, SIZE)


def find(azimuth: float = 0, roll: float = 0, padded: int = 0) -> Regions:
    """Of a person who is a disc of 90 pixels around the middle of the image.

    Args:
        azimuth: of the camera, degrees.
        roll: of the head, degrees, to its left.
        padded: columns at the left that the sensor did not see.
    """
    turn = Rotation.from_euler("z", roll, degrees=True)
    rows, columns = np.indices((SIZE, SIZE)) + 0.5
    mask = np.hypot(rows - 100, columns - 100) < 90
    visible = np.ones((SIZE, SIZE), bool)
    visible[:, :padded] = False
    head = Head(turn.apply(face()), turn.as_matrix())
    return find_regions(head, camera(azimuth), mask, visible)


def at(regions: Regions, x: int, y: int) -> str | None:
    label = regions.labels[y, x]
    return LABELLED[label - 1] if label else None


def test_each_part_is_where_a_face_has_it() -> None:
    regions = find()
    # Pixels: 600 per metre, a little more for what is nearer.
    assert at(regions, 81, 90) == at(regions, 119, 90) == "eyes"
    assert at(regions, 81, 78) == at(regions, 119, 78) == "brows"
    assert at(regions, 100, 131) == "mouth"
    assert at(regions, 100, 110) == at(regions, 100, 60) == "face"  # nose and forehead
    assert at(regions, 100, 20) == at(regions, 30, 100) == "hair"
    assert at(regions, 100, 170) == at(regions, 40, 150) == "torso"
    assert at(regions, 2, 2) is None
    assert set(np.unique(regions.labels)) == set(range(len(LABELLED) + 1))


def test_the_outline_is_a_band_around_the_masks_edge() -> None:
    rows, columns = np.indices((SIZE, SIZE)) + 0.5
    distance = np.abs(np.hypot(rows - 100, columns - 100) - 90)
    outline, radius = find().outline, OUTLINE * 0.14 * 600
    assert outline[distance < radius - 1].all()
    assert not outline[distance > radius + 2].any()  # nearer landmarks make it a little wider


def test_from_behind_there_is_no_face() -> None:
    regions = find(azimuth=180)
    assert {at(regions, x, 90) for x in range(20, 180)} == {"hair"}
    assert at(regions, 100, 170) == "torso"


def test_from_the_side_the_far_eye_is_not_seen() -> None:
    front, side = find(), find(azimuth=100)
    eyes = 1 + LABELLED.index("eyes")
    assert (front.labels == eyes).any() and not (side.labels == eyes).any()


def test_neck_and_torso_follow_the_head_as_it_rolls() -> None:
    upright, rolled = find(), find(roll=90)  # the top of the head to the image's left
    torso = 1 + LABELLED.index("torso")
    turned = np.rot90(upright.labels == torso)
    assert ((rolled.labels == torso) == turned).mean() > 0.99  # but for pixels on the borders


def test_nothing_outside_the_sensor_belongs_to_a_region() -> None:
    regions, whole = find(padded=60), find()
    assert not regions.labels[:, :60].any() and not regions.outline[:, :60].any()
    np.testing.assert_array_equal(regions.labels[:, 60:], whole.labels[:, 60:])
    assert not regions.outline[90:110, 60:70].any()  # where the sensor ends is no outline


def test_an_error_in_a_part_is_measured_there_alone() -> None:
    regions = find()
    error = torch.full((SIZE, SIZE), 0.01, dtype=torch.float64)
    error[torch.from_numpy(regions.labels) == 1 + LABELLED.index("mouth")] = 0.1
    measured = measure_regions(error, regions)
    assert tuple(measured) == REGIONS
    assert measured.pop("mouth") == pytest.approx(10.0)
    assert list(measured.values()) == pytest.approx([20.0] * len(measured))


def test_what_is_not_seen_is_not_measured() -> None:
    measured = measure_regions(torch.full((SIZE, SIZE), 0.01), find(azimuth=180))
    missing = {name for name, value in measured.items() if value.isnan()}
    assert missing == {"eyes", "brows", "mouth", "face"}
