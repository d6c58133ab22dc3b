from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import trimesh

from eavatar.data.video import write_video
from eavatar.errors import UserError
from eavatar.io import Mesh
from eavatar.view.score import crop_mask, face_points, overlap, score, surface_distances
from tests.scenes.ball import (
    LANDMARK_SHIFT,
    SCALE,
    Subject,
    ball_landmarks,
    ball_mask,
    make_subject,
)


@pytest.fixture(scope="module")
def subject(tmp_path_factory: pytest.TempPathFactory) -> Subject:
    return make_subject(tmp_path_factory.mktemp("ball"))


@pytest.fixture(scope="module")
def metrics(subject: Subject):
    return score(subject.results, subject.truth).set_index("metric")


def test_poses_are_compared_with_the_right_frames(metrics) -> None:
    # The canonical frame is the truth's turned by 2°; float32 storage.
    for column in ("held_out", "all"):
        assert metrics.loc["head rotation error", column] == pytest.approx(2.0, abs=1e-3)
        assert metrics.loc["… less a constant rotation", column] < 1e-3
        assert metrics.loc["landmark error", column] == pytest.approx(1.0, abs=1e-3)


def test_reprojection_is_relative_to_the_face_width(metrics) -> None:
    # 1 mm along x of a face 140 mm wide is 0.71 % seen from the front, less from the side and,
    # near the sides of the ball, a little more or less by depth.
    front = 100 * LANDMARK_SHIFT / 0.14
    assert 0.7 * front < metrics.loc["reprojection error", "all"] < 1.1 * front


def test_masks_overlap(metrics) -> None:
    # The masks are the same disc, 29 pixels wide, sampled at two resolutions.
    assert 0.97 < metrics.loc["mask IoU", "all"] <= 1


def test_surfaces_are_compared_in_the_models_frame(metrics) -> None:
    # Balls of radius 1, 1.05 and 0.98 dm against 1 dm; chin at -0.7 dm to crown at 1 dm.
    # 0.1 %: the ball's facets.
    size = 1.7
    expected = {"fitted face": 0.0, "aligned prior": 0.05, "stage I surface": 0.02}
    for name, distance in expected.items():
        assert metrics.loc[name, "all"] == pytest.approx(100 * distance / size, abs=0.1)


def test_earlier_results_are_told_how_to_get_the_uncropped_cameras(subject: Subject) -> None:
    path = subject.results / "capture" / "full_cameras.json"
    content = path.read_text()
    path.unlink()
    try:
        with pytest.raises(UserError, match=r"full_cameras\.json is missing.*snakemake"):
            score(subject.results, subject.truth)
    finally:
        path.write_text(content)


def test_a_sequence_that_is_no_longer_chosen_is_not_scored(
    subject: Subject, metrics, tmp_path: Path
) -> None:
    results = tmp_path / "results"
    shutil.copytree(subject.results, results)
    (results / "capture/GONE.csv").write_bytes((results / "capture/FREE.csv").read_bytes())
    shutil.copytree(subject.truth, tmp_path / "truth")
    shutil.copyfile(subject.truth / "FREE.npz", tmp_path / "truth/GONE.npz")
    again = score(results, tmp_path / "truth").set_index("metric")
    pd.testing.assert_frame_equal(again, metrics)


def test_a_recorded_subject_has_no_truth(subject: Subject, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no ground truth .*nowhere; name its folder with --truth"):
        score(subject.results, tmp_path / "nowhere")


def test_truth_of_another_subject_is_refused(subject: Subject, tmp_path) -> None:
    with pytest.raises(UserError, match="has no <sequence>"):
        score(subject.results, tmp_path)
    truth = tmp_path / "truth"
    shutil.copytree(subject.truth, truth)
    arrays = dict(np.load(truth / "FREE.npz"))
    for changed in (
        {name: values[:1] for name, values in arrays.items()},  # fewer frames
        {name: values for name, values in arrays.items() if name != "R"},
    ):
        np.savez(truth / "FREE.npz", **changed)
        with pytest.raises(UserError, match=r"FREE\.npz is no ground truth"):
            score(subject.results, truth)
    (truth / "FREE.npz").write_bytes(b"PK")
    with pytest.raises(UserError, match=r"FREE\.npz is no ground truth"):
        score(subject.results, truth)
    np.savez(truth / "FREE.npz", **arrays)
    for path in (truth / "FREE_mask").iterdir():
        write_video(path, [np.zeros((64, 64), np.uint8)], 24, "yuv420p", "0")
    with pytest.raises(UserError, match=r"\.mp4 has 1 frames"):
        score(subject.results, truth)


def test_cropped_mask_is_the_mask_of_the_cropped_camera(subject: Subject) -> None:
    for serial, camera in subject.cameras.items():
        full = subject.full[serial]
        mask = ball_mask(full.resize(550, 802)) > 127
        cropped = crop_mask(mask, full, camera.resize(256, 256))
        # A disc 76 pixels in radius; half a pixel of shift would lose 1 %.
        assert overlap(cropped, ball_mask(camera.resize(256, 256)) > 127) > 0.993


def test_face_points_are_in_front_and_hide_what_is_inside() -> None:
    ball, inner = trimesh.creation.icosphere(4), trimesh.creation.icosphere(3)
    vertices = SCALE * np.concatenate([ball.vertices, 0.5 * inner.vertices])
    faces = np.concatenate([ball.faces, inner.faces + len(ball.vertices)])
    points = face_points(Mesh(vertices.astype(np.float32), faces), SCALE * ball_landmarks())
    assert len(points) > 500
    assert points[:, 2].min() > 0.06
    # All on the outer ball, up to its facets.
    np.testing.assert_allclose(np.linalg.norm(points, axis=1), SCALE, atol=3e-4)


def test_surface_distance_against_a_plane_of_two_large_triangles() -> None:
    corners = np.array([[-1, -1, 0], [1, -1, 0], [1, 1, 0], [-1, 1, 0]], np.float32)
    square = Mesh(corners, np.array([[0, 1, 2], [0, 2, 3]]))
    points = np.array([[0.3, 0.2, 0.5], [0.9, -0.9, -0.001], [2.0, 0.0, 0.0]])
    distances = surface_distances(points, square)
    np.testing.assert_allclose(distances, [0.5, 0.001, 1.0], atol=1e-6)  # float32 corners
