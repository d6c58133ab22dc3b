"""What the masks say of a head: how far it sticks out, what it lacks, and where it should go."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest

from eavatar.errors import UserError
from eavatar.io import Identity, write_arrays
from eavatar.meshes import sample_surface
from eavatar.prior.silhouettes import FRAMES, Silhouettes, choose_frames, read_silhouettes
from tests.scenes.heads import random_head
from tests.scenes.outlines import SCALE, write_outlines

HEAD = random_head(0)
POINTS, _ = sample_surface(HEAD.mesh, 4000, 0)


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("outlines")
    write_outlines(folder / "capture", folder / "face", HEAD.mesh, cameras=6, matte=0, seed=0)
    identity = Identity(np.zeros(1), np.float32(SCALE), HEAD.landmarks)
    write_arrays(folder / "face/identity.npz", identity)
    return folder


@pytest.fixture(scope="module")
def outlines(results: Path) -> Silhouettes:
    return read_silhouettes(results / "capture", results / "face")


def test_the_head_itself_is_within_the_masks_and_fills_them(outlines: Silhouettes) -> None:
    assert outlines.protrusion(POINTS) < 0.001  # 0.1 mm: pixels cover 3 mm, a few at the edge
    assert outlines.gap(POINTS) < 0.02  # half a pixel, and what 4000 samples leave


def test_a_larger_head_sticks_out_and_a_smaller_one_leaves_a_gap(outlines: Silhouettes) -> None:
    assert outlines.protrusion(1.1 * POINTS) > 0.015
    assert outlines.protrusion(0.9 * POINTS) < 0.001
    assert outlines.gap(0.9 * POINTS) > 0.05


def test_what_is_below_the_chin_may_be_anywhere(outlines: Silhouettes) -> None:
    shoulders = np.array([[x, outlines.floor - 0.1, 0.0] for x in np.linspace(-2, 2, 9)])
    assert outlines.protrusion(np.concatenate([POINTS, shoulders])) < 0.001


@pytest.mark.parametrize("axis", [0, 1, 2], ids=["left", "up", "front"])
def test_pulls_lead_back(axis: int, outlines: Silhouettes) -> None:
    shift = 0.1 * np.eye(3)[axis]
    _, offsets = outlines.pulls(POINTS + shift)
    # outlines draw along their normals alone, and some views look along the shift
    assert -0.1 < offsets.mean(axis=0)[axis] < -0.01


def test_nothing_is_known_beyond_the_sensor(results: Path, tmp_path: Path) -> None:
    write_outlines(tmp_path / "capture", tmp_path / "face", HEAD.mesh, 6, 0, 0)
    for path in (tmp_path / "capture/visible").iterdir():
        cv2.imwrite(str(path), np.repeat([[0], [255]], 128, axis=0) * np.ones(256))
    seen = read_silhouettes(tmp_path / "capture", results / "face")
    above = np.array([[0.0, 2.5, 0.0]])  # in the upper half, of which the sensor sees nothing
    assert seen.protrusion(above) == 0
    assert seen.protrusion(np.array([[2.0, -0.5, 0.0]])) > 0


def test_frames_are_calm_usable_and_from_all_sides() -> None:
    angles = np.radians(np.linspace(-90, 90, 19))
    seen = np.tile(np.stack([np.sin(angles), 0 * angles, np.cos(angles)], axis=1), (10, 1, 1))
    usable = np.ones((10, 19), bool)
    usable[3, 0] = False
    strength = np.full(10, 9.0)
    strength[[3, 7]] = 1.0, 2.0
    frames = choose_frames(seen, usable, strength)
    assert len(frames) == FRAMES and frames[0] == (3, 1)
    assert {step for step, _ in frames} <= {3, 7}
    assert {camera for _, camera in frames} >= {1, 18}
    assert np.diff(sorted(camera for _, camera in frames)).max() <= 3  # 30°; 19 cameras, 12 frames


def test_masks_without_a_person_are_one_sentence(results: Path, tmp_path: Path) -> None:
    write_outlines(tmp_path / "capture", tmp_path / "face", HEAD.mesh, 2, 0, 0)
    for path in (tmp_path / "capture/masks").rglob("*.png"):
        cv2.imwrite(str(path), np.zeros((256, 256), np.uint8))
    with pytest.raises(UserError, match=r"no mask in .* shows a person where the head was tracked"):
        read_silhouettes(tmp_path / "capture", results / "face")
