"""Where eyes look: measured from images, whatever the light, and by whom."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest

from eavatar.errors import UserError
from eavatar.face.gaze import (
    IRIS,
    POINTS,
    Eyes,
    between_lids,
    find_gaze,
    learn_eyes,
    measure_gaze,
    measure_tracks,
    to_vectors,
)
from eavatar.io import Tracking, read_arrays
from eavatar.settings import GazeSettings
from tests.scenes.looking import LOOKS, looking_model, write_looking

SETTINGS = GazeSettings(enabled=True, image_size=200)
DEGREE = np.radians(1)


@pytest.fixture(scope="module")
def subject(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two balls behind lids that are only landmarks, and a head that turns."""
    return write_looking(tmp_path_factory.mktemp("subject"))


def read_tracks(face: Path) -> dict[str, Tracking]:
    """The tracking by sequence."""
    return {name: read_arrays(Tracking, face / "tracking" / f"{name}.npz") for name in LOOKS}


def measure(root: Path) -> dict[str, np.ndarray]:
    """The gaze by sequence."""
    capture, face = root / "capture", root / "refine"
    found = measure_tracks(SETTINGS, looking_model(), capture, face, read_tracks(face))
    return {name: track.gaze for name, track in found.items()}


def test_gaze_is_measured_from_images_also_of_the_held_out(subject: Path) -> None:
    found = measure(subject)
    rest = np.median(LOOKS["EXP-2-eyes"], axis=0)
    for name, looks in LOOKS.items():
        # A pixel is 0.9 mm, on a ball of 12 mm 4 degrees; 2.4 at most, rms 1.
        assert np.abs(found[name] - np.radians(looks - rest)).max() < 3 * DEGREE, name


def test_what_is_held_out_does_not_change_what_training_gets(subject: Path, tmp_path: Path) -> None:
    before = measure(subject)
    shutil.copytree(subject, tmp_path / "other")
    random = np.random.default_rng(0)
    for path in (tmp_path / "other" / "capture" / "FREE").rglob("*.jpg"):
        cv2.imwrite(str(path), random.integers(0, 255, (200, 200, 3), np.uint8))
    after = measure(tmp_path / "other")
    assert np.array_equal(after["EXP-2-eyes"], before["EXP-2-eyes"])
    assert not np.array_equal(after["FREE"], before["FREE"])


def test_switched_off_it_takes_the_tracking_over(subject: Path, tmp_path: Path) -> None:
    off = SETTINGS.model_copy(update={"enabled": False})
    measure_gaze(off, tmp_path / "unread", subject / "capture", subject / "refine", tmp_path)
    assert read_tracks(tmp_path)["FREE"].gaze.shape == (len(LOOKS["FREE"]), 0)
    for name in ("identity.npz", "neutral.ply", "expression_basis.npz"):
        assert (tmp_path / name).read_bytes() == (subject / "refine" / name).read_bytes()


def make_eyes(gazes: np.ndarray, iris: float = 0.2, white: float = 0.7) -> Eyes:
    """Eyes with a soft edge of the iris, 60 by 30 degrees open; the left one looks 5 degrees out.

    Args:
        gazes: (T, 2) radians.
        iris: its brightness.
        white: likewise.
    """
    random = np.random.default_rng(len(gazes))
    outwards = np.radians([[0, 0], [5, 0]])
    looks = to_vectors(gazes[:, None] + outwards)
    angles = np.arccos(np.einsum("ted,nd->ten", looks, to_vectors(POINTS)).clip(-1, 1))
    edge = 1 / (1 + np.exp(-(angles - IRIS) / np.radians(2)))
    brightness = iris + (white - iris) * edge + random.normal(0, 0.02, angles.shape)
    seen = (np.abs(POINTS) < np.radians([60, 30]) / 2).all(axis=1)
    return Eyes(brightness, np.broadcast_to(seen, angles.shape).astype(np.float64))


@pytest.fixture(scope="module")
def gazes() -> np.ndarray:
    return np.random.default_rng(0).normal(0, np.radians([8, 4]), (40, 2))


def test_light_does_not_enter(gazes: np.ndarray) -> None:
    eyes = make_eyes(gazes)
    model = learn_eyes([eyes])
    light = np.random.default_rng(1).uniform([0.6, -0.1], [1.3, 0.1], (40, 2, 2))[..., None]
    lit = replace(eyes, brightness=light[:, :, 0] * eyes.brightness + light[:, :, 1])
    # The noise is that of a given brightness: brighter images count for more.
    assert np.abs(find_gaze(model, lit) - find_gaze(model, eyes)).max() < DEGREE


def test_a_pale_iris_and_eyes_that_do_not_look_alike_are_no_obstacle(gazes: np.ndarray) -> None:
    eyes = make_eyes(gazes, iris=0.5)
    found = find_gaze(learn_eyes([eyes]), eyes)
    error = found - (gazes - np.median(gazes, axis=0))
    # Most is the prior: at a contrast of 0.2 it takes a few per cent off.
    assert np.sqrt(np.square(error).mean()) < DEGREE


def test_one_eye_tells_where_the_other_is_closed_and_time_where_both_are(gazes: np.ndarray) -> None:
    eyes = make_eyes(gazes)
    model, open_gaze = learn_eyes([eyes]), find_gaze(learn_eyes([eyes]), eyes)
    wink = eyes.seen.copy()
    wink[10, 1] = 0
    one = find_gaze(model, replace(eyes, seen=wink))
    assert np.abs(one[10] - open_gaze[10]).max() < DEGREE
    closed = eyes.seen.copy()
    closed[10:12] = 0
    both = find_gaze(model, replace(eyes, seen=closed))
    assert np.allclose(both[10], (2 * both[9] + both[12]) / 3)
    assert np.array_equal(find_gaze(model, replace(eyes, seen=0 * closed)), np.zeros((40, 2)))


def test_eyes_that_are_never_open_are_refused(gazes: np.ndarray) -> None:
    eyes = make_eyes(gazes)
    with pytest.raises(UserError, match=r"open in no training timestep.*switch face\.gaze off"):
        learn_eyes([replace(eyes, seen=0 * eyes.seen)])


def test_what_is_between_lids_is_seen_from_the_centre_of_the_ball() -> None:
    turns = np.pi * np.arange(6) / 3
    ring = np.stack([-0.1 * np.cos(turns), 0.05 * np.sin(turns), np.full(6, 0.1)], axis=1)
    inside = np.tan(POINTS[between_lids(ring)])
    # Corners at tan(yaw) = 1 and lids at tan(pitch) = 0.5 · sin(60°), less the margin of 0.1.
    assert 0.8 < inside[:, 0].max() < 0.9 and 0.25 < inside[:, 1].max() < 0.34
    assert np.allclose(inside.mean(axis=0), 0, atol=1e-6)
