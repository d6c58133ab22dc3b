"""The embedded subject: its files, its geometry and its camera model."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import h5py
import numpy as np
import pytest

from eavatar import io
from eavatar.cameras import Camera
from eavatar.demo import controls, render, rig
from eavatar.demo.capture import demo_capture
from eavatar.demo.head import build_head
from eavatar.demo.motion import HELD_OUT, REST, SEQUENCES, act
from eavatar.errors import UserError
from eavatar.settings import DemoSettings

SETTINGS = DemoSettings(timesteps=2, held_out_timesteps=2, image_scale=0.04)


@pytest.fixture(scope="module")
def capture(tiny_demo: Path) -> tuple[Path, Path]:
    return tiny_demo / "raw", tiny_demo / "truth"


@pytest.fixture(scope="module")
def head():
    return build_head(5)


def decode(path: Path, pixel_format: str) -> np.ndarray:
    import av

    with av.open(str(path)) as container:
        assert container.streams.video[0].average_rate == 73
        return np.stack([f.to_ndarray(format=pixel_format) for f in container.decode(video=0)])


def test_layout(capture):
    raw, truth = capture
    cameras = json.loads((raw / "calibration" / "camera_params.json").read_text())
    assert sorted(cameras["world_2_cam"]) == list(rig.SERIALS)
    assert len(rig.SERIALS) == 16
    for sequence in SEQUENCES:
        frames = decode(raw / "sequences" / sequence / "images" / "cam_222200037.mp4", "rgb24")
        masks = decode(truth / f"{sequence}_mask" / "cam_222200037.mp4", "gray")
        assert frames.shape == (2, 128, 88, 3)
        assert masks.shape == (2, 128, 88)
        landmarks = io.read_arrays(io.Landmarks, raw / "landmarks" / f"{sequence}.npz")
        assert landmarks.points.shape == (2, 16, 68, 2)
    assert not list(raw.parent.glob(".*")), "temporary folders must be gone"


def test_the_same_seed_gives_the_same_bytes_with_one_thread_and_with_two(tmp_path):
    for threads in ("1", "2"):
        folder = tmp_path / threads
        words = ["demo-capture", "--settings", SETTINGS.model_dump_json(), "--seed", "5"]
        words += ["--raw", folder / "raw", "--truth", folder / "truth"]
        environment = {**os.environ, "OMP_NUM_THREADS": threads}
        subprocess.run([sys.executable, "-m", "eavatar", *words], env=environment, check=True)
    names = [path.relative_to(folder) for path in folder.rglob("*") if path.is_file()]
    # 16 cameras: a video and a mask of each of six sequences, a plate; landmarks and truth of each
    # sequence; two files of calibration, the model, the neutral head.
    assert len(names) == 16 * (2 * 6 + 1) + 2 * 6 + 4
    for name in names:
        assert (folder / name).read_bytes() == (tmp_path / "1" / name).read_bytes(), name


@pytest.mark.parametrize("role", ["raw", "truth"])
def test_a_folder_with_something_else_is_not_replaced(role, tmp_path):
    places = {name: tmp_path / name for name in ("raw", "truth")}
    places[role].mkdir()
    (places[role] / "thesis.txt").touch()
    with pytest.raises(UserError, match=rf"/{role} would be replaced, and holds something else"):
        demo_capture(SETTINGS, 5, **places)
    assert (places[role] / "thesis.txt").exists()


@pytest.mark.parametrize(("raw", "truth"), [("a", "a"), ("a", "a/b"), ("a/b", "a")])
def test_capture_and_truth_lie_apart(raw, truth, tmp_path):
    with pytest.raises(UserError, match="must lie apart"):
        demo_capture(SETTINGS, 5, tmp_path / raw, tmp_path / truth)
    assert not any(tmp_path.iterdir())


def test_detections_agree_with_truth(capture):
    """Visible detections: noise of 4.5-12 px, a bias of 1 mm = 8 px, 0.8 % outliers."""
    raw, truth = capture
    params = json.loads((raw / "calibration" / "camera_params.json").read_text())
    found = io.read_arrays(io.Landmarks, raw / "landmarks" / "EXP-1-head.npz")
    points = np.load(truth / "EXP-1-head.npz")["landmarks68"]
    errors = []
    for index, serial in enumerate(found.cameras):
        camera = Camera(
            np.array(params["intrinsics"]), np.array(params["world_2_cam"][serial]), 2200, 3208
        )
        error = np.linalg.norm(found.points[:, index] - camera.project(points)[0], axis=-1)
        errors.append(error[found.confidence[:, index] > 0])
    assert 5 < np.median(np.concatenate(errors)) < 14
    share_seen = (found.confidence > 0).mean()
    assert 0.6 < share_seen < 0.97, "the far side of the jaw must be hidden from the side cameras"


def test_subject_is_near_but_not_in_the_models_span(capture, head):
    with h5py.File(capture[0] / "morphable_model.h5") as file:
        mean = file["shape/model/mean"][:].reshape(-1, 3)
        basis = file["shape/model/pcaBasis"][:]
        indices = file["landmarks68/vertex_index"][:]
        expression = file["expression/model/pcaBasis"][:]
    assert len(set(indices)) == 68
    np.testing.assert_allclose(basis.T @ basis, np.eye(basis.shape[1]), atol=1e-4)
    np.testing.assert_allclose(expression.T @ expression, np.eye(expression.shape[1]), atol=1e-4)
    rows = basis.reshape(-1, 3, basis.shape[1])[indices].reshape(204, -1)
    target = (1000 * head.neutral[head.landmarks] - mean[indices]).ravel()
    residual = target - rows @ np.linalg.lstsq(rows, target, rcond=None)[0]
    distance = np.linalg.norm(residual.reshape(68, 3), axis=1)
    assert np.linalg.norm(target.reshape(68, 3), axis=1).mean() > 2, "millimetres from the mean"
    assert 0.01 < distance.mean() < 2.5


def test_jaw_opens_the_lips_and_nothing_above(head):
    opened = head.displacements[controls.CONTROLS.index("jaw_open")][head.landmarks]
    gap = opened[62, 1] - opened[66, 1]
    assert 0.02 < gap < 0.05, "metres between the inner lips"
    assert np.abs(opened[17:48]).max() < 0.001, "brows, nose and eyes stay"


def test_blink_closes_the_eye_over_the_ball(head):
    """The upper lid's landmark meets the lower one; no lid vertex ends inside the eyeball."""
    strength = np.zeros(len(controls.CONTROLS), np.float32)
    strength[controls.CONTROLS.index("blink_left")] = 1
    closed, neutral = head.vertices(strength, (0, 0)), head.neutral
    upper, lower = head.landmarks[[43, 44]], head.landmarks[[47, 46]]
    before = (neutral[upper, 1] - neutral[lower, 1]).mean()
    after = (closed[upper, 1] - closed[lower, 1]).mean()
    assert before > 0.007
    assert after < 0.35 * before
    moved = np.linalg.norm(closed - neutral, axis=1) > 1e-3
    radius = np.linalg.norm(closed[moved] - head.eye_centres[0], axis=1)
    assert radius.min() > 0.0118


def test_landmarks_are_mirrored(head):
    """iBUG order: jaw from the subject's right (-x) to the left, outer eye corners 36 and 45."""
    x = head.neutral[head.landmarks, 0]
    assert x[0] < -0.05 and x[16] > 0.05 and abs(x[8]) < 0.01
    assert x[36] < x[39] < x[42] < x[45]
    assert x[48] < x[51] < x[54] and x[60] < x[62] < x[64]


def test_held_out_poses_lie_inside_the_training_range():
    training = [act(name, 16) for name in SEQUENCES if name != HELD_OUT]
    largest = np.concatenate([take.expression for take in training]).max(axis=0)
    held_out = act(HELD_OUT, 12)
    assert (held_out.expression <= largest + 0.05).all()
    assert np.linalg.norm(held_out.translation - REST, axis=1).max() < 0.05
    cosine = (np.trace(held_out.rotation, axis1=1, axis2=2) - 1) / 2
    assert np.degrees(np.arccos(cosine)).max() < 20


def test_cast_finds_the_exact_intersection():
    """Depth of a slanted triangle against the closed form of ray and plane."""
    triangle = np.array([[-1, -1, 4], [0.2, 1, 5], [1, -1, 3]], np.float32)
    behind = triangle + np.array([0, 0, 1], np.float32)
    points = np.concatenate([triangle, behind])
    faces = np.array([[3, 4, 5], [0, 1, 2]], np.int32)
    ids, depths = render.cast(points, faces, tuple(np.float32(v) for v in (40, 40, 20, 20)), 40, 40)
    normal = np.cross(triangle[1] - triangle[0], triangle[2] - triangle[0])
    rows, columns = np.nonzero(ids >= 0)
    rays = np.stack([(columns + 0.5 - 20) / 40, (rows + 0.5 - 20) / 40, np.ones(len(rows))], 1)
    front = ids[rows, columns] == 1
    exact = (normal @ triangle[0]) / (rays @ normal)
    assert front.sum() > 100
    np.testing.assert_allclose(depths[rows, columns][front], exact[front], rtol=1e-5)


def test_calibration_inverts_the_cameras_colour(capture):
    """A corrected plate is a wall, nearly grey; before, the cameras disagree by their gains."""
    from PIL import Image

    raw, _ = capture
    correction = json.loads((raw / "calibration" / "color_calibration.json").read_text())
    before, after = [], []
    for serial in rig.SERIALS:
        image = Image.open(raw / "sequences" / "BACKGROUND" / f"image_{serial}.jpg")
        encoded = np.asarray(image, dtype=np.float64) / 255
        linear = np.where(encoded <= 0.04045, encoded / 12.92, ((encoded + 0.055) / 1.055) ** 2.4)
        colour = linear.reshape(-1, 3).mean(0)
        corrected = np.array(correction[serial]) @ colour
        before.append(colour / colour.sum())
        after.append(corrected / corrected.sum())
    # The walls' own tint varies by 1.5 % per channel; the cameras' gains by more.
    assert np.std(after, axis=0).mean() < np.std(before, axis=0).mean()
    np.testing.assert_allclose(
        np.mean(after, axis=0) / np.mean(after), [0.93, 1.0, 1.07], atol=0.02
    )
