"""Which views agree, and faces found again where neighbouring timesteps and other views say."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from eavatar.arrays import Float64, Int64
from eavatar.face.views import (
    AGREEMENT,
    INTERPOLATED_CONFIDENCE,
    Faces,
    complete_faces,
    find_agreeing,
    interpolate_boxes,
    landmark_boxes,
    usable_boxes,
)

TIMESTEPS, SIZE = 6, 1000
AZIMUTHS = np.radians([-55, -35, -15, 0, 15, 35, 55])
CAMERAS = len(AZIMUTHS)
EVERYWHERE = np.ones((TIMESTEPS, CAMERAS), dtype=bool)
NOISE = 5.0  # pixels of a face of 400: what a heat-map detector does


def rig() -> Float64:
    """(C, 3, 4) cameras on an arc of 1 m that look at the origin; a head fills 400 pixels."""
    projections = []
    for azimuth in AZIMUTHS:
        away = np.array([np.sin(azimuth), 0, np.cos(azimuth)])
        rotation = np.stack([np.cross(away, [0, 1, 0]) * -1, [0, -1, 0], -away])
        extrinsics = np.c_[rotation, -rotation @ away]
        projections.append(np.array([[2500, 0, 500], [0, 2500, 500], [0, 0, 1]]) @ extrinsics)
    return np.stack(projections)


def project(projections: Float64, world: Float64) -> Float64:
    """The slow loop: (T, C, 68, 2) pixels of (T, 68, 3), one camera after the other."""
    views = []
    for matrix in projections:
        homogeneous = world @ matrix[:, :3].T + matrix[:, 3]
        views.append(homogeneous[..., :2] / homogeneous[..., 2:])
    return np.stack(views, axis=1)


def heads(offset: tuple[float, float, float] = (0, 0, 0)) -> Float64:
    """(T, 68, 3) landmarks on the front of an ellipsoid that moves by 5 mm a timestep, metres."""
    random = np.random.default_rng(1)
    directions = random.normal(size=(68, 3)) * (1, 1, 0.5) + (0, 0, 0.7)
    points = directions / np.linalg.norm(directions, axis=1, keepdims=True) * (0.07, 0.09, 0.07)
    motion = np.arange(TIMESTEPS)[:, None] * (0.005, 0, 0)
    return points + motion[:, None] + np.array(offset)


@dataclass
class Detector:
    """Answers as a landmark network does: the face that its box holds, or nonsense in the box."""

    pixels: Float64
    asked: list[tuple[int, int]]

    def locate(self, keys: Int64, boxes: Float64) -> tuple[Float64, Float64]:
        random = np.random.default_rng(2)
        self.asked += [(int(timestep), int(camera)) for timestep, camera in keys]
        truth = self.pixels[tuple(keys.T)]
        points = random.uniform(boxes[:, None, :2], boxes[:, None, 2:], truth.shape)
        middle = (boxes[:, :2] + boxes[:, 2:]) / 2
        near = np.linalg.norm(middle - truth.mean(axis=1), axis=1) < 100
        points[near] = truth[near] + random.normal(0, NOISE, truth[near].shape)
        return points, np.full(truth.shape[:2], 0.8)


def detected(*views: Float64) -> Faces:
    """Candidates (T, C, K) of noisy detections of the faces with landmarks (T, C, 68, 2)."""
    random = np.random.default_rng(3)
    points = np.stack(views, axis=2)
    seen = np.ones(points.shape[:-1], dtype=bool)
    boxes = np.stack([landmark_boxes(view, np.ones(view.shape[:3], bool)) for view in views], 2)
    noisy = points + random.normal(0, NOISE, points.shape)
    return Faces(boxes, noisy, seen * 0.8)


def without(faces: Faces, timestep: slice | int, cameras: list[int]) -> Faces:
    confidence = faces.confidence.copy()
    confidence[timestep, cameras] = 0
    return Faces(faces.boxes, faces.points, confidence)


def assert_true(faces: Faces, pixels: Float64, mask: object = ...) -> None:
    # normal noise of 5 px per axis has a mean distance of 6.3 px
    errors = np.linalg.norm(faces.points - pixels, axis=-1).mean(axis=-1)
    assert faces.found[mask].all() and errors[mask].max() < 9


def test_whole_detections_are_left_alone() -> None:
    pixels = project(rig(), heads())
    candidates, detector = detected(pixels), Detector(pixels, [])
    faces = complete_faces(candidates, rig(), EVERYWHERE, SIZE, detector.locate)
    assert detector.asked == []
    np.testing.assert_array_equal(faces.points, candidates.points[:, :, 0])
    np.testing.assert_array_equal(faces.confidence, candidates.confidence[:, :, 0])


def test_interpolated_boxes_by_hand() -> None:
    boxes = np.zeros((12, 1, 4))
    boxes[0], boxes[4], boxes[10] = (0, 0, 10, 20), (8, 4, 18, 40), (1, 1, 2, 2)
    found = np.zeros((12, 1), dtype=bool)
    found[[0, 4, 10]] = True
    result, filled = interpolate_boxes(boxes, found)
    # between 4 and 10 lie more than REACH timesteps, and nothing follows 10
    assert list(np.flatnonzero(filled)) == [1, 2, 3]
    np.testing.assert_allclose(result[1:4, 0], [[2, 1, 12, 25], [4, 2, 14, 30], [6, 3, 16, 35]])
    np.testing.assert_array_equal(result[found], boxes[found])


def test_a_lone_camera_is_bridged_in_time_with_less_confidence() -> None:
    pixels = project(rig(), heads())[:, :1]
    candidates, detector = without(detected(pixels), 2, [0]), Detector(pixels, [])
    faces = complete_faces(candidates, rig()[:1], EVERYWHERE[:, :1], SIZE, detector.locate)
    assert detector.asked == [(2, 0)]
    assert_true(faces, pixels)
    np.testing.assert_allclose(faces.confidence[2, 0], 0.8 * INTERPOLATED_CONFIDENCE)
    np.testing.assert_allclose(faces.confidence[3, 0], 0.8)


@pytest.mark.parametrize("seeing", [[2, 4], [3, 4], [0, 6]])
def test_two_views_tell_all_others_where_the_face_is(seeing: list[int]) -> None:
    pixels = project(rig(), heads())
    blind = [camera for camera in range(CAMERAS) if camera not in seeing]
    candidates, detector = without(detected(pixels), slice(None), blind), Detector(pixels, [])
    faces = complete_faces(candidates, rig(), EVERYWHERE, SIZE, detector.locate)
    assert len(detector.asked) == TIMESTEPS * len(blind)
    assert_true(faces, pixels)


def test_frames_that_do_not_exist_are_not_asked_for() -> None:
    pixels = project(rig(), heads())
    candidates, detector = without(detected(pixels), slice(None), [0, 5]), Detector(pixels, [])
    used = EVERYWHERE.copy()
    used[:, 0] = False
    faces = complete_faces(candidates, rig(), used, SIZE, detector.locate)
    assert {camera for _, camera in detector.asked} == {5}
    assert not faces.found[:, 0].any()
    assert_true(faces, pixels, np.s_[:, 1:])


def test_a_face_that_disagrees_is_looked_for_again() -> None:
    pixels = project(rig(), heads())
    wrong = pixels.copy()
    wrong[:, [1, 6]] += (-250, 200)
    detector = Detector(pixels, [])
    faces = complete_faces(detected(wrong), rig(), EVERYWHERE, SIZE, detector.locate)
    assert sorted({camera for _, camera in detector.asked}) == [1, 6]
    assert_true(faces, pixels)


def test_a_face_that_stays_wrong_has_no_confidence() -> None:
    pixels = project(rig(), heads())
    wrong, elsewhere = pixels.copy(), pixels.copy()
    wrong[:, 6] += (-250, 200)
    elsewhere[:, 6] += 400  # the network finds nothing in the projected box
    detector = Detector(elsewhere, [])
    faces = complete_faces(detected(wrong), rig(), EVERYWHERE, SIZE, detector.locate)
    assert len(detector.asked) == TIMESTEPS and not faces.found[:, 6].any()
    assert_true(faces, pixels, np.s_[:, :6])


def test_the_face_that_others_confirm_beats_a_more_certain_one() -> None:
    pixels, poster = project(rig(), heads()), project(rig(), heads((-0.25, 0.05, -0.2)))
    # the same poster, but each view sees it elsewhere: no point in space explains it
    poster += np.random.default_rng(4).uniform(-200, 200, (1, CAMERAS, 1, 2))
    candidates = detected(poster, pixels)
    candidates.confidence[:, :, 0] = 0.95
    detector = Detector(pixels, [])
    faces = complete_faces(candidates, rig(), EVERYWHERE, SIZE, detector.locate)
    assert detector.asked == []
    assert_true(faces, pixels)


def test_of_two_people_the_one_in_more_views_is_kept() -> None:
    first, second = project(rig(), heads()), project(rig(), heads((0.3, 0, -0.1)))
    candidates = detected(second, first)
    candidates.confidence[:, [0, 1, 5, 6], 0] = 0
    assert (find_agreeing(candidates, rig()) == 1).all()


def test_no_agreement_leaves_the_most_certain_face() -> None:
    pixels = project(rig(), heads())
    scattered = pixels + np.random.default_rng(5).uniform(-300, 300, (TIMESTEPS, CAMERAS, 1, 2))
    lone = without(detected(pixels), slice(None), list(range(1, CAMERAS)))
    assert (find_agreeing(lone, rig()) == -1).all()
    candidates = detected(scattered, pixels + np.array([0, 1e4]))  # the second is in no frame
    found = find_agreeing(without(candidates, slice(None), [2, 3, 4]), rig())
    assert (found[:, 2:5] == -1).all()


def test_mirrored_views_behind_the_cameras_do_not_agree() -> None:
    """Cameras that look away from the head see the same pixels of points behind them."""
    projections = rig()
    pixels = project(projections, heads())
    turned = projections * -1  # the same pixels, depths negative
    assert (find_agreeing(detected(pixels), turned) == -1).all()


@given(share=st.floats(0, 0.1), seed=st.integers(0, 2**16))
@settings(max_examples=15)
def test_agreement_survives_outlying_landmarks_and_views(share: float, seed: int) -> None:
    """10 % stray landmarks and 3 of 7 views with a false face: the others still agree."""
    random = np.random.default_rng(seed)
    pixels = project(rig(), heads())
    candidates = detected(pixels)
    strays = random.uniform(size=candidates.confidence.shape) < share
    candidates.points[strays] = random.uniform(0, SIZE, (int(strays.sum()), 2))
    false = random.permutation(CAMERAS)[:3]
    candidates.points[:, false] = random.uniform(0, SIZE, (TIMESTEPS, 3, 1, 68, 2))
    found = find_agreeing(candidates, rig()) >= 0
    true = np.setdiff1d(np.arange(CAMERAS), false)
    # 0.9³ = 73 % of 17 landmarks are right in a pair and a third view; half are needed
    assert not found[:, false].any() and found[:, true].mean() > 0.8


def test_boxes_that_hold_no_face() -> None:
    boxes = np.array(
        [[10, 10, 60, 60], [-500, 10, -100, 400], [10, 10, 20, 400], [np.inf, 0, -np.inf, 9]]
    )
    assert usable_boxes(boxes, 100).tolist() == [True, False, False, False]
    assert AGREEMENT < 0.5  # a face beside the true one is one side away
