"""Provided landmarks and the calibration: usual detectors pass, other pixels do not."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

from eavatar.cameras import Camera
from eavatar.capture.captures import open_capture
from eavatar.capture.nersemble import FULL_SIZE
from eavatar.errors import UserError
from eavatar.face.backends.provided import read_provided
from eavatar.face.causes import EXCHANGED_GATE, check_exchanged, gather
from eavatar.face.layout import AVERAGE_FACE
from eavatar.landmark_indices import MIRROR
from eavatar.preflight.detections import Sight, find_detection_fault, find_odd_cameras
from tests.scenes.small_capture import INTRINSICS, world_to_camera

TIMESTEPS, CAMERAS = 3, 6
EYELIDS = [37, 38, 40, 41, 43, 44, 46, 47]
OPEN_MOUTH = [*range(4, 13), *range(55, 60), *range(65, 68)]


def sight(cameras: list[Camera]) -> Sight:
    return Sight(cameras, (-200, 304), 2600, 2048, (1100, 1604), (0.08, 0.12))


@pytest.fixture(scope="module")
def ring() -> Sight:
    angles = np.linspace(-1.2, 1.2, CAMERAS)
    return sight([Camera(INTRINSICS, world_to_camera(angle), *FULL_SIZE) for angle in angles])


def detect(cameras: Sight, face: np.ndarray, noise: float = 5.0) -> tuple[np.ndarray, np.ndarray]:
    """Points (T, C, 68, 2) of a face in millimetres with a detector's noise, and confidence."""
    seen = np.stack([camera.project(face / 1000)[0] for camera in cameras.cameras])
    points = seen + np.random.default_rng(0).normal(0, noise, (TIMESTEPS, *seen.shape))
    return points, np.ones(points.shape[:3])


def make_faces() -> dict[str, np.ndarray]:
    closed, mouth, child = (AVERAGE_FACE.copy() for _ in range(3))
    closed[EYELIDS, 1] = 36
    mouth[OPEN_MOUTH, 1] -= 35
    child *= 0.85
    return {"neutral": AVERAGE_FACE, "eyes closed": closed, "mouth open": mouth, "child": child}


FACES = make_faces()


@pytest.mark.parametrize("name", FACES)
@pytest.mark.parametrize("noise", [5.0, 15.0])  # of the 2600 pixels: usual, and coarse heat maps
def test_usual_detections_pass(ring: Sight, name: str, noise: float) -> None:
    points, confidence = detect(ring, FACES[name], noise)
    assert find_detection_fault(ring, points, confidence) is None
    assert find_odd_cameras(ring, points, confidence) == []


def test_missed_faces_and_gross_outliers_pass(ring: Sight) -> None:
    points, confidence = detect(ring, AVERAGE_FACE)
    random = np.random.default_rng(1)
    wrong = random.random(confidence.shape) < 0.02
    points[wrong] += random.normal(0, 400, (wrong.sum(), 2))
    confidence[random.random((TIMESTEPS, CAMERAS)) < 0.3] = 0
    points[confidence == 0] = 0
    assert find_detection_fault(ring, points, confidence) is None


def test_exchanged_cameras_are_named_at_check_already(ring: Sight) -> None:
    points, confidence = detect(ring, AVERAGE_FACE)
    serials = [str(camera) for camera in range(CAMERAS)]
    evidence = gather(points, confidence, np.arange(CAMERAS), EXCHANGED_GATE * ring.side)
    check_exchanged(serials, ring.projections, [evidence])
    points[:, [1, 4]] = points[:, [4, 1]]
    evidence = gather(points, confidence, np.arange(CAMERAS), EXCHANGED_GATE * ring.side)
    with pytest.raises(UserError, match="cameras 1 and 4 are exchanged"):
        check_exchanged(serials, ring.projections, [evidence])


def test_a_camera_that_contradicts_the_others_is_named(ring: Sight) -> None:
    points, confidence = detect(ring, AVERAGE_FACE)
    points[:, 2] += 300
    assert find_odd_cameras(ring, points, confidence) == [2]


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (lambda points: points / 2, "seem to be in pixels of the stored 1100×1604 images"),
        (lambda points: points / FULL_SIZE, "fractions of the image's sides"),
        (lambda points: (points - (-200, 304)) * (2048 / 2600), "the cropped 2048×2048 frames"),
        (lambda points: points[..., ::-1], "seem to be y before x"),
        (lambda points: np.array([2200, 0]) + (-1, 1) * points, "looks away from the cameras"),
        (lambda points: points[:, :, list(MIRROR)], "not in iBUG's order"),
        (lambda points: points[:, :, ::-1], "not in iBUG's order"),
        (lambda points: points + 3000, "outside the crop"),
    ],
)
def test_what_does_not_fit_is_said(ring: Sight, change, sentence: str) -> None:
    points, confidence = detect(ring, AVERAGE_FACE)
    assert sentence in str(find_detection_fault(ring, change(points), confidence))


def test_two_cameras_tell_the_size_of_a_head(ring: Sight) -> None:
    """Their rays nearly meet whatever the pixels, but the head is of half the size."""
    pair = sight(list(ring.cameras[2:4]))
    points, confidence = detect(pair, AVERAGE_FACE / 2)
    assert "a head of 0.0501 m to the unit" in str(find_detection_fault(pair, points, confidence))


@pytest.mark.skipif("EAVATAR_SHARED" not in os.environ, reason="EAVATAR_SHARED is not set")
@pytest.mark.parametrize("factor", [1.0, 0.25, 0.5, 2048 / 2600])
def test_detections_of_a_rendered_capture(factor: float) -> None:
    """Of its 16 cameras; only those of the right size pass, in every sequence."""
    shared = Path(os.environ["EAVATAR_SHARED"])
    capture = open_capture(shared / "captures" / "901")
    origin = np.array([-200, 304]) if factor == 2048 / 2600 else 0
    for path in (shared / "landmarks" / "901").glob("*.npz"):
        serials, points, confidence = read_provided(path)
        of_capture = sight([capture.cameras[serial] for serial in serials])
        fault = find_detection_fault(of_capture, (points - origin) * factor, confidence)
        assert (fault is None) == (factor == 1), (path.stem, fault)
