"""Appearance coefficients: what they follow, what they do not, and whom they know."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest

from eavatar.errors import UserError
from eavatar.face.appearance import (
    LIMIT,
    RADIUS,
    REGIONS,
    AppearanceBasis,
    Textures,
    choose_points,
    learn_basis,
    measure_appearance,
    measure_tracks,
    project,
)
from eavatar.face.refine import SharedFace
from eavatar.io import (
    ExpressionBasis,
    Identity,
    Mesh,
    Tracking,
    read_arrays,
    write_arrays,
    write_mesh,
)
from eavatar.landmark_indices import LEFT_EYE, RIGHT_EYE
from eavatar.settings import AppearanceSettings
from tests.scenes.bump import SCALE, SIDE, bump, random_poses, track_of, write_capture

SETTINGS = AppearanceSettings(enabled=True, components=2, image_size=SIDE)
HIDDEN = {"EXP-2-eyes": [-1.5, -0.9, -0.3, 0.3, 0.9, 1.5], "FREE": [-1.2, 0.6]}


@pytest.fixture(scope="module")
def subject(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A face whose eyes darken by a hidden number, under a light that changes with every timestep.

    It holds ``capture`` and ``refine``.
    """
    root = tmp_path_factory.mktemp("subject")
    model, _ = bump()
    face = SharedFace(np.array([0.8, -0.6]), SCALE, np.zeros((68, 3)))
    poses = {name: random_poses(len(numbers), len(numbers)) for name, numbers in HIDDEN.items()}
    eyes = model.mean[model.landmark_vertices[[*RIGHT_EYE, *LEFT_EYE]]]
    distance = np.linalg.norm(model.mean[:, None] - eyes, axis=-1).min(axis=1)
    iris = np.exp(-((distance / 0.06) ** 2))[:, None]
    light = np.random.default_rng(3)
    paint = {
        name: [
            (light.uniform(0.7, 1.1) * (model.colours + 0.1 * number * iris)).clip(0, 1)
            for number in numbers
        ]
        for name, numbers in HIDDEN.items()
    }
    (root / "capture").mkdir()
    write_capture(root / "capture", model, face, poses, paint)
    vertices = model.vertices(face.identity.astype(np.float32))
    write_mesh(root / "refine" / "neutral.ply", Mesh(vertices, model.faces, model.colours))
    write_arrays(
        root / "refine" / "identity.npz",
        Identity(
            face.identity.astype(np.float32),
            np.array(SCALE, np.float32),
            vertices[model.landmark_vertices],
        ),
    )
    write_arrays(root / "refine" / "expression_basis.npz", ExpressionBasis(model.expression_basis))
    for name, each in poses.items():
        write_arrays(root / "refine" / "tracking" / f"{name}.npz", track_of(model, face, each))
    return root


def measure(root: Path, settings: AppearanceSettings = SETTINGS) -> dict[str, np.ndarray]:
    """The coefficients by sequence."""
    folder = root / "refine" / "tracking"
    tracks = {name: read_arrays(Tracking, folder / f"{name}.npz") for name in HIDDEN}
    found = measure_tracks(settings, bump()[0], root / "capture", root / "refine", tracks)
    return {name: track.appearance for name, track in found.items()}


def test_coefficients_tell_what_landmarks_do_not_also_of_the_held_out(subject: Path) -> None:
    found = measure(subject)
    hidden = np.concatenate(list(HIDDEN.values()))
    coefficients = np.concatenate(list(found.values()))
    inputs = np.column_stack([coefficients[:6], np.ones(6)])
    solved, *_ = np.linalg.lstsq(inputs, hidden[:6], rcond=None)
    told = np.column_stack([coefficients, np.ones(8)]) @ solved
    # Of a range of 3, under lights that change by a half; 0.04 in training, 0.09 held out.
    assert np.abs(told - hidden).max() < 0.2


def test_what_is_held_out_does_not_change_what_training_gets(subject: Path, tmp_path: Path) -> None:
    before = measure(subject)
    shutil.copytree(subject, tmp_path / "other")
    random = np.random.default_rng(0)
    for path in (tmp_path / "other" / "capture" / "FREE").rglob("*.jpg"):
        cv2.imwrite(str(path), random.integers(0, 255, (SIDE, SIDE, 3), np.uint8))
    after = measure(tmp_path / "other")
    assert np.array_equal(after["EXP-2-eyes"], before["EXP-2-eyes"])
    assert not np.array_equal(after["FREE"], before["FREE"])


def test_more_coefficients_than_the_training_can_give_are_refused(subject: Path) -> None:
    many = SETTINGS.model_copy(update={"components": 6})
    with pytest.raises(UserError, match=r"components is 6, .* only 6 timesteps; lower it"):
        measure(subject, many)


def test_switched_off_it_takes_the_fit_over(subject: Path, tmp_path: Path) -> None:
    off = SETTINGS.model_copy(update={"enabled": False})
    measure_appearance(off, tmp_path / "unread", subject / "capture", subject / "refine", tmp_path)
    for name in ("identity.npz", "neutral.ply", "expression_basis.npz"):
        assert (tmp_path / name).read_bytes() == (subject / "refine" / name).read_bytes()
    track = read_arrays(Tracking, tmp_path / "tracking" / "FREE.npz")
    given = read_arrays(Tracking, subject / "refine" / "tracking" / "FREE.npz")
    assert track.appearance.shape == (2, 0)
    assert np.array_equal(track.driving, given.expression)


def make_textures(count: int, points: int = 40) -> Textures:
    """Two ways to differ from a mean, and noise."""
    random = np.random.default_rng(count)
    ways = np.random.default_rng(0).normal(0, 0.05, (2, points, 3))
    mean = np.random.default_rng(1).uniform(0.2, 0.8, (points, 3))
    colours = mean + np.einsum("tk,kpc->tpc", random.normal(size=(count, 2)), ways)
    return Textures(colours + random.normal(0, 0.002, colours.shape), np.ones((count, points)))


@pytest.fixture(scope="module")
def basis() -> AppearanceBasis:
    return learn_basis([make_textures(60)], np.arange(40) % len(REGIONS), 2)


def test_training_coefficients_have_unit_deviation(basis: AppearanceBasis) -> None:
    found = project(basis, make_textures(60))
    assert np.allclose(found.std(axis=0), 1, atol=0.05)  # the prior shrinks, the limit cuts
    assert np.abs(found).max() <= LIMIT


def test_light_does_not_enter(basis: AppearanceBasis) -> None:
    textures = make_textures(5)
    factors, offsets = np.array([0.8, 1.1, 1.3]), np.array([0.05, -0.1, 0.0])
    lit = replace(textures, colours=factors * textures.colours + offsets)
    assert np.allclose(project(basis, lit), project(basis, textures), atol=1e-9)


def test_points_that_no_camera_sees_are_left_out(basis: AppearanceBasis) -> None:
    textures = make_textures(5)
    seen = textures.seen.copy()
    seen[:, ::4] = 0
    colours = np.where(seen[..., None] > 0, textures.colours, 9.0)
    found = project(basis, Textures(colours, seen))
    # Three quarters tell it, too; the light is that of fewer points, which moves it by 0.16.
    assert np.abs(found - project(basis, textures)).max() < 0.3
    unseen = project(basis, Textures(colours, 0 * seen))
    assert np.array_equal(unseen, np.zeros((5, 2)))


def test_points_lie_around_the_landmarks_and_between_lids_and_lips() -> None:
    model, _ = bump()
    points = choose_points(model, model.mean.astype(np.float64))
    assert np.allclose(points.weights.sum(axis=1), 1)
    places, landmarks = points.of(model.mean), model.mean[model.landmark_vertices]
    between = (points.corners[:, :1] != points.corners).any(axis=1)
    for number, region in enumerate(REGIONS):
        own = places[(points.regions == number) & ~between]
        distance = np.linalg.norm(own[:, None] - landmarks[list(region.landmarks)], axis=-1)
        assert distance.min(axis=1).max() < RADIUS and len(own) > 20
    opened = {index for region in REGIONS for index in (*region.upper, *region.lower)}
    assert set(points.corners[between].ravel()) == set(model.landmark_vertices[sorted(opened)])
