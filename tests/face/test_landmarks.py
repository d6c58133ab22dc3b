"""Provided detections in the pixels of the ingested frames, and refusals before any work."""

from __future__ import annotations

import csv
import os
from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from eavatar.cameras import Camera
from eavatar.errors import UserError
from eavatar.face.landmarks import detect_face, detect_landmarks, load_network
from eavatar.io import Landmarks, read_arrays, write_cameras
from eavatar.settings import IngestSettings, LandmarkSettings

SERIALS = ("222200037", "222200042", "222200049")
SETTINGS = LandmarkSettings(backend="provided", detector="sfd", image_size=256)
INGEST = IngestSettings(
    sequences=("*",),
    exclude=(),
    held_out=("FREE",),
    cameras=("*",),
    every=3,
    crop_origin=(-200, 304),
    crop_size=2600,
    image_size=260,
    jpeg_quality=95,
    colour_correction=True,
)


def write_capture(folder: Path, sources: list[int]) -> Path:
    """A capture of three cameras whose timesteps come from the given video frames."""
    camera = Camera(np.diag([800.0, 800.0, 1.0]), np.eye(4), 260, 260)
    write_cameras(folder / "cameras.json", dict.fromkeys(SERIALS, camera))
    with (folder / "FREE.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["timestep", "camera", "source_frame", "split", "sharpness"])
        for timestep, source in enumerate(sources):
            writer.writerows([timestep, serial, source, "test", 1.0] for serial in SERIALS)
    return folder


def write_provided(folder: Path, points: np.ndarray, confidence: np.ndarray) -> Path:
    folder.mkdir(exist_ok=True)
    serials = np.array([SERIALS[2], SERIALS[0]])  # another order, and one camera less
    np.savez(folder / "FREE.npz", cameras=serials, points=points, confidence=confidence)
    return folder


def test_provided_rows_cameras_and_pixels(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    points = random.uniform(0, 2200, (10, 2, 68, 2))
    confidence = random.uniform(0.1, 1, (10, 2, 68))
    confidence[3, 0] = 0
    capture = write_capture(tmp_path, [0, 3, 6, 9])
    provided = write_provided(tmp_path / "given", points, confidence)
    output = tmp_path / "face" / "FREE.npz"
    detect_landmarks(SETTINGS, INGEST, capture, "FREE", provided, output)
    found = read_arrays(Landmarks, output)
    assert tuple(found.cameras) == SERIALS and found.points.shape == (4, 3, 68, 2)
    assert (found.confidence[:, 1] == 0).all() and (found.confidence[1, 2] == 0).all()
    np.testing.assert_allclose(found.confidence[2, 2], confidence[6, 0], atol=1e-6)
    # crop at (-200, 304), then 2600 pixels become 260
    expected = (points[6, 1] - np.array([-200, 304])) / 10
    np.testing.assert_allclose(found.points[2, 0], expected, atol=1e-4)


@given(
    x=st.integers(-500, 500),
    y=st.integers(-500, 500),
    size=st.integers(1000, 3000),
    point=st.tuples(st.floats(-0.2, 0.2), st.floats(-0.2, 0.2), st.floats(0.7, 2)),
)
def test_points_move_as_the_cropped_camera_projects(
    tmp_path_factory: pytest.TempPathFactory,
    x: int,
    y: int,
    size: int,
    point: tuple[float, float, float],
) -> None:
    folder = tmp_path_factory.mktemp("capture")
    capture = write_capture(folder, [0])
    intrinsics = np.array([[8000.0, 0, 1100], [0, 8000, 1604], [0, 0, 1]])
    full = Camera(intrinsics, np.eye(4), 2200, 3208)
    pixel, _ = full.project(np.array(point))
    points, confidence = np.tile(pixel, (1, 2, 68, 1)), np.ones((1, 2, 68))
    provided = write_provided(folder / "given", points, confidence)
    ingest = INGEST.model_copy(update={"crop_origin": (x, y), "crop_size": size})
    detect_landmarks(SETTINGS, ingest, capture, "FREE", provided, folder / "out.npz")
    expected, _ = full.crop(x, y, size, size).resize(260, 260).project(np.array(point))
    found = read_arrays(Landmarks, folder / "out.npz").points[0, 0, 0]
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-3)  # float32 storage


def test_faulty_provided_files(tmp_path: Path) -> None:
    capture = write_capture(tmp_path, [0, 3])
    output = tmp_path / "out.npz"
    good = np.ones((10, 2, 68, 2)), np.ones((10, 2, 68))

    def refused(match: str, folder: Path | None) -> None:
        with pytest.raises(UserError, match=match) as caught:
            detect_landmarks(SETTINGS, INGEST, capture, "FREE", folder, output)
        assert "\n" not in str(caught.value) and not output.exists()

    refused("sample sheet", None)
    refused("does not exist", tmp_path / "nowhere")
    given_folder = tmp_path / "given"
    refused("points have shape", write_provided(given_folder, good[0][:, :, :66], good[1]))
    refused("points have shape", write_provided(given_folder, good[0], good[1][:, :1]))
    refused("points have shape", write_provided(given_folder, np.array(1.0), good[1]))
    refused("covers 2 video frames", write_provided(given_folder, good[0][:2], good[1][:2]))
    refused("not finite", write_provided(given_folder, good[0] * np.nan, good[1]))
    (given_folder / "FREE.npz").write_bytes((given_folder / "FREE.npz").read_bytes()[:500])
    refused("not an .npz file", given_folder)
    np.savez(given_folder / "FREE.npz", points=good[0])
    refused("not an .npz file", given_folder)


def test_missing_weights_are_named_before_any_download(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    checkpoints = tmp_path / "hub" / "checkpoints"
    checkpoints.mkdir(parents=True)
    with pytest.raises(UserError, match=r"3DFAN4.*hub/checkpoints.*backend: provided"):
        load_network("sfd")
    (checkpoints / "3DFAN4-7835d9f11d.pth.tar").touch()
    with pytest.raises(UserError, match=r"s3fd-619a316812\.pth is missing"):
        load_network("sfd")
    with pytest.raises(UserError, match=r"blazeface\.pth is missing"):
        load_network("blazeface")


@pytest.mark.filterwarnings("ignore:No faces were detected")
@pytest.mark.skipif("EAVATAR_SHARED" not in os.environ, reason="EAVATAR_SHARED is not set")
def test_face_alignment_runs_with_its_weights(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The real detector with an untrained landmark network: the way through the package works."""
    import torch
    from face_alignment.models import FAN

    shared = Path(os.environ["EAVATAR_SHARED"])
    checkpoints = tmp_path / "hub" / "checkpoints"
    checkpoints.mkdir(parents=True)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    for name in ("blazeface.pth", "anchors.npy"):
        (checkpoints / name).symlink_to(shared / "models" / name)
    torch.manual_seed(0)
    torch.save(FAN(4).state_dict(), checkpoints / "3DFAN4-7835d9f11d.pth.tar")
    network = load_network("blazeface")

    empty = tmp_path / "empty.jpg"
    cv2.imwrite(str(empty), np.full((300, 300, 3), 128, np.uint8))
    assert detect_face(network, empty, 256) is None

    video = shared / "captures/901/sequences/FREE/images/cam_222200037.mp4"
    found, image = cv2.VideoCapture(str(video)).read()
    assert found
    face = tmp_path / "face.jpg"
    cv2.imwrite(str(face), cv2.copyMakeBorder(image[76:726], 0, 0, 50, 50, cv2.BORDER_CONSTANT))
    result = detect_face(network, face, 512)
    assert result is not None
    points, confidence = result
    assert points.shape == (68, 2) and confidence.shape == (68,)
    assert (confidence >= 0).all() and (confidence <= 1).all()
    # an untrained network answers anywhere in the crop around the face, here about (325, 325)
    assert np.abs(np.median(points, axis=0) - 325).max() < 150
