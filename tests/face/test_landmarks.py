"""Provided detections in the pixels of the ingested frames, and refusals before any work."""

from __future__ import annotations

import csv
import os
import subprocess
import sys
from pathlib import Path
from urllib.parse import urlparse

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from eavatar.cameras import Camera
from eavatar.errors import UserError
from eavatar.face.backends.face_alignment import (
    DETECTORS,
    LANDMARK_WEIGHT,
    detect_boxes,
    load_network,
    locate_landmarks,
    read_heat_maps,
)
from eavatar.face.landmarks import detect_landmarks, read_frame
from eavatar.face.views import usable_boxes
from eavatar.io import Landmarks, read_arrays, read_cameras, write_cameras
from eavatar.settings import IngestSettings, LandmarkSettings
from eavatar.weights import checkpoints_folder

SERIALS = ("222200037", "222200042", "222200049")
PROVIDED = LandmarkSettings(backend="provided")
BY_NETWORK = LandmarkSettings.model_validate(
    {
        "backend": "face_alignment",
        "face_alignment": {"detector": "blazeface", "image_size": 256, "batch_size": 3},
    }
)
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


def write_capture(
    folder: Path, sources: list[int], crop: tuple[int, int, int] = (-200, 304, 2600)
) -> Path:
    """A capture of three cameras whose timesteps come from the given video frames."""
    intrinsics = np.array([[8000.0, 0, 1100], [0, 8000, 1604], [0, 0, 1]])
    poses = [np.eye(4) + np.eye(4, k=3) * side for side in (-0.3, 0, 0.3)]
    full = {s: Camera(intrinsics, pose, 2200, 3208) for s, pose in zip(SERIALS, poses, strict=True)}
    left, top, side = crop
    frames = {s: c.crop(left, top, side, side).resize(260, 260) for s, c in full.items()}
    write_cameras(folder / "full_cameras.json", full)
    write_cameras(folder / "cameras.json", frames)
    with (folder / "FREE.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["timestep", "camera", "source_frame", "sharpness"])
        for timestep, source in enumerate(sources):
            writer.writerows([timestep, serial, source, 1.0] for serial in SERIALS)
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
    detect_landmarks(PROVIDED, INGEST, capture, "FREE", provided, output)
    found = read_arrays(Landmarks, output)
    assert tuple(found.cameras) == SERIALS and found.points.shape == (4, 3, 68, 2)
    assert (found.confidence[:, 1] == 0).all() and (found.confidence[1, 2] == 0).all()
    np.testing.assert_allclose(found.confidence[2, 2], confidence[6, 0], atol=1e-6)
    # crop at (-200, 304), then 2600 pixels become 260
    expected = (points[6, 1] - np.array([-200, 304])) / 10
    np.testing.assert_allclose(found.points[2, 0], expected, atol=1e-4)


def test_points_of_a_capture_that_came_cropped_are_not_cropped_again(tmp_path: Path) -> None:
    """Its frames are whole images of 2080 pixels; here ingested at 260."""
    points = np.random.default_rng(0).uniform(0, 2080, (2, 2, 68, 2))
    capture = write_capture(tmp_path, [0, 1])
    cameras = read_cameras(capture / "cameras.json")
    full = {serial: camera.resize(2080, 2080) for serial, camera in cameras.items()}
    write_cameras(capture / "full_cameras.json", full)
    provided = write_provided(tmp_path / "given", points, np.ones((2, 2, 68)))
    detect_landmarks(PROVIDED, INGEST, capture, "FREE", provided, tmp_path / "out.npz")
    found = read_arrays(Landmarks, tmp_path / "out.npz").points
    np.testing.assert_allclose(found[:, 2], points[:, 0] / 8, atol=1e-4)  # float32 storage


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
    capture = write_capture(folder, [0], (x, y, size))
    full = read_cameras(capture / "full_cameras.json")[SERIALS[1]]
    pixel, _ = full.project(np.array(point))
    points, confidence = np.tile(pixel, (1, 2, 68, 1)), np.ones((1, 2, 68))
    provided = write_provided(folder / "given", points, confidence)
    detect_landmarks(PROVIDED, INGEST, capture, "FREE", provided, folder / "out.npz")
    expected, _ = full.crop(x, y, size, size).resize(260, 260).project(np.array(point))
    found = read_arrays(Landmarks, folder / "out.npz").points[0, 0, 0]
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-3)  # float32 storage


def test_faulty_provided_files(tmp_path: Path) -> None:
    capture = write_capture(tmp_path, [0, 3])
    output = tmp_path / "out.npz"
    good = np.ones((10, 2, 68, 2)), np.ones((10, 2, 68))

    def refused(match: str, folder: Path | None) -> None:
        with pytest.raises(UserError, match=match) as caught:
            detect_landmarks(PROVIDED, INGEST, capture, "FREE", folder, output)
        assert "\n" not in str(caught.value) and not output.exists()

    refused("sample sheet", None)
    refused("does not exist", tmp_path / "nowhere")
    given_folder = tmp_path / "given"
    refused("points have shape", write_provided(given_folder, good[0][:, :, :66], good[1]))
    refused("points have shape", write_provided(given_folder, good[0], good[1][:, :1]))
    refused("points have shape", write_provided(given_folder, np.array(1.0), good[1]))
    refused("covers 2 video frames", write_provided(given_folder, good[0][:2], good[1][:2]))
    refused("covers 10 .* but the videos have 4 to 6;", write_provided(given_folder, *good))
    good = good[0][:5], good[1][:5]
    refused("confidences from 7 to 7", write_provided(given_folder, good[0], 7 * good[1]))
    refused("not finite", write_provided(given_folder, good[0] * np.nan, good[1]))
    (given_folder / "FREE.npz").write_bytes((given_folder / "FREE.npz").read_bytes()[:500])
    refused("not an .npz file", given_folder)
    np.savez(given_folder / "FREE.npz", points=good[0])
    refused("not an .npz file", given_folder)


# --- face_alignment -----------------------------------------------------------------------------


@pytest.fixture
def checkpoints(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder of weights that the package looks into."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    folder = tmp_path / "torch" / "hub" / "checkpoints"
    folder.mkdir(parents=True)
    return folder


@pytest.fixture
def untrained(checkpoints: Path) -> Path:
    """The real weights of BlazeFace, and an untrained landmark network of the package."""
    if "EAVATAR_SHARED" not in os.environ:
        pytest.skip("EAVATAR_SHARED is not set: it has BlazeFace's weights and subject 901")
    import torch
    from face_alignment.models import FAN

    shared = Path(os.environ["EAVATAR_SHARED"])
    for name in ("blazeface", "blazefaceback"):
        (checkpoints / f"{name}.pth").symlink_to(shared / "models" / f"{name}.pth")
        anchors = f"anchors{name.removeprefix('blazeface')}.npy"
        (checkpoints / anchors).symlink_to(shared / "models" / anchors)
    torch.manual_seed(0)
    torch.save(FAN(4).state_dict(), checkpoints / LANDMARK_WEIGHT.name)
    return checkpoints


def test_missing_weights_are_named_before_any_download(checkpoints: Path) -> None:
    with pytest.raises(UserError) as caught:
        load_network("sfd")
    message = str(caught.value)
    for part in ("3DFAN4-7835d9f11d.pth.tar (https://", "s3fd-619a316812.pth (https://"):
        assert part in message
    assert str(checkpoints) in message
    for part in ("face.landmarks.backend to mediapipe", "--landmarks"):
        assert part in message
    (checkpoints / LANDMARK_WEIGHT.name).touch()
    with pytest.raises(UserError, match=r"blazefaceback\.pth.*anchorsback\.npy") as caught:
        load_network("blazeface_back")
    assert LANDMARK_WEIGHT.name not in str(caught.value)


def test_files_that_are_no_weights_are_named(checkpoints: Path) -> None:
    for content in (b"", b"not found", b"PK\x03\x04 cut short"):
        for name in ("blazeface.pth", "anchors.npy", LANDMARK_WEIGHT.name):
            (checkpoints / name).write_bytes(content)
        with pytest.raises(UserError, match=r"blazeface\.pth.*cannot be loaded") as caught:
            load_network("blazeface")
        assert "\n" not in str(caught.value)


def test_required_weights_lie_where_the_package_looks(
    checkpoints: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = ("3DFAN4-7835d9f11d.pth.tar", "blazeface.pth", "anchors.npy")
    found = BY_NETWORK.chosen.weights(BY_NETWORK.own)
    assert [file.path for file in found] == [checkpoints / name for name in names]

    import torch

    assert checkpoints_folder() == Path(torch.hub.get_dir()) / "checkpoints"
    monkeypatch.delenv("TORCH_HOME")
    assert checkpoints_folder() == Path(torch.hub.get_dir()) / "checkpoints"
    monkeypatch.setenv("XDG_CACHE_HOME", "/somewhere")
    assert checkpoints_folder() == Path(torch.hub.get_dir()) / "checkpoints"


def test_no_torch_is_imported_to_list_weights() -> None:
    code = "import sys, eavatar.face.backends.face_alignment; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_addresses_are_those_of_the_package() -> None:
    from face_alignment import api
    from face_alignment.detection.blazeface import blazeface_detector
    from face_alignment.detection.sfd import sfd_detector

    published = {*api.models_urls.values(), *sfd_detector.models_urls.values()}
    published |= set(blazeface_detector.models_urls.values())
    ours = {LANDMARK_WEIGHT, *(w for one in DETECTORS.values() for w in one.weights)}
    assert {weight.url for weight in ours} <= published
    for weight in ours:
        assert Path(urlparse(weight.url).path).name == weight.name


def landmark_box(points: np.ndarray) -> np.ndarray:
    return np.r_[points.min(axis=0), points.max(axis=0)]


def overlap(first: np.ndarray, second: np.ndarray) -> float:
    """Intersection over union of two boxes."""
    low, high = np.maximum(first[:2], second[:2]), np.minimum(first[2:], second[2:])
    shared = float(np.prod((high - low).clip(0)))
    areas = [float(np.prod(box[2:] - box[:2])) for box in (first, second)]
    return shared / (sum(areas) - shared)


@pytest.mark.parametrize("detector", ["blazeface", "blazeface_back"])
def test_a_photograph(untrained: Path, detector: str) -> None:
    import skimage.data

    network = load_network(detector)
    photograph = skimage.data.astronaut()
    empty = np.full_like(photograph, 128)
    found = detect_boxes(network, [photograph, empty, photograph[:, ::-1].copy()])
    # the face as a person would draw it, brows to chin, ear to ear: (178, 72) to (272, 182)
    assert len(found[0]) == 1 and overlap(found[0][0, :4], np.array([178, 72, 272, 182])) > 0.7
    assert found[1].shape == (0, 5)
    mirrored = found[2][0, [2, 1, 0, 3]] * (-1, 1, -1, 1) + (512, 0, 512, 0)
    assert overlap(mirrored, found[0][0, :4]) > 0.9  # cells of 4 pixels, boxes of 100


def ingested(video: Path, count: int) -> list[np.ndarray]:
    """The first frames, cropped as the default ingest does (2600 pixels at (-200, 304)), RGB."""
    reader = cv2.VideoCapture(str(video))
    images = []
    for _ in range(count):
        read, image = reader.read()
        assert read and image.shape == (802, 550, 3)  # a quarter of the full image
        square = cv2.copyMakeBorder(image[76:726], 0, 0, 50, 50, cv2.BORDER_REPLICATE)
        images.append(square[..., ::-1].copy())
    return images


@pytest.mark.parametrize("detector", ["blazeface", "blazeface_back"])
def test_every_camera_of_a_capture_gets_its_face(untrained: Path, detector: str) -> None:
    shared = Path(os.environ["EAVATAR_SHARED"])
    given_points = np.load(shared / "landmarks/901/FREE.npz")
    network = load_network(detector)
    overlaps, turned = [], []
    for index, serial in enumerate(given_points["cameras"]):
        video = shared / f"captures/901/sequences/FREE/images/cam_{serial}.mp4"
        found = detect_boxes(network, ingested(video, 2))
        for timestep, boxes in enumerate(found):
            seen = given_points["confidence"][timestep, index] > 0
            points = (given_points["points"][timestep, index] + (200, -304)) / 4
            turned.append(len(boxes) > 0)
            if seen.any() and len(boxes):
                overlaps.append(overlap(boxes[0, :4], landmark_box(points[seen])))
    assert len(turned) == 32 and all(turned)
    # a detector's box is 1.1 times as wide and high as that of the landmarks: 0.83 at best
    assert min(overlaps) > 0.5 and np.median(overlaps) > 0.7


def test_peaks_of_heat_maps() -> None:
    heat = np.zeros((1, 3, 8, 8), dtype=np.float32)
    heat[0, 0, 2, 5], heat[0, 0, 2, 6], heat[0, 0, 1, 5] = 0.9, 0.3, 0.1
    heat[0, 1, 7, 3], heat[0, 1, 7, 4] = 0.5, 0.4  # at the border
    heat[0, 2, 4, 4] = 1  # no neighbour is higher
    peaks, heights = read_heat_maps(heat)
    np.testing.assert_allclose(peaks[0] * 8, [[5.75, 2.25], [3.5, 7.5], [4.5, 4.5]])
    np.testing.assert_allclose(heights[0], [0.9, 0.5, 1])


def test_batches_give_what_the_package_gives_one_by_one(
    untrained: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import skimage.data
    from face_alignment import utils

    for name in ("transform_np", "_get_preds_fromhm"):  # as plain Python: compiling takes 15 s
        monkeypatch.setattr(utils, name, getattr(utils, name).py_func)
    network = load_network("blazeface")
    image = skimage.data.astronaut()
    boxes = np.array([[170.0, 75, 275, 180], [-40, 300, 160, 530]])  # the second leaves the image
    points, confidence = locate_landmarks(network, [image] * 2, boxes)
    one_by_one, scores, _ = network.get_landmarks_from_image(
        image, [[*box, 1.0] for box in boxes], return_landmark_score=True
    )
    # the package cuts down to whole pixels
    inside = points >= 0
    difference = (points - one_by_one)[inside]
    assert inside.mean() > 0.8 and difference.min() > -1e-3 and difference.max() < 1 + 1e-3
    np.testing.assert_allclose(confidence, np.clip(scores, 0, 1), atol=1e-5)


@given(
    corner=st.tuples(st.floats(-200, 500), st.floats(-200, 500)),
    sides=st.tuples(st.floats(16, 900), st.floats(16, 900)),
)
def test_any_usable_box_can_be_cropped(
    corner: tuple[float, float], sides: tuple[float, float]
) -> None:
    from face_alignment import utils

    box = np.array([*corner, *np.add(corner, sides)])
    if usable_boxes(box, 512):
        middle = (box[:2] + box[2:]) / 2 - (0, utils.CENTER_Y_OFFSET * sides[1])
        crop = utils.crop(np.zeros((512, 512, 3), np.uint8), middle, sum(sides) / 195)
        assert crop.shape == (256, 256, 3)


def test_the_whole_path_on_a_capture(untrained: Path, tmp_path: Path) -> None:
    """Detection is real, landmarks are an untrained network's: the way from frames to file."""
    shared = Path(os.environ["EAVATAR_SHARED"])
    capture = write_capture(tmp_path, [0, 1, 2])
    for serial in SERIALS:
        video = shared / f"captures/901/sequences/FREE/images/cam_{serial}.mp4"
        folder = tmp_path / "FREE" / serial
        folder.mkdir(parents=True)
        for timestep, image in enumerate(ingested(video, 3)):
            small = cv2.resize(image[..., ::-1], (260, 260), interpolation=cv2.INTER_AREA)
            blank = timestep == 1 and serial == SERIALS[0]
            path = folder / f"{timestep:05d}.jpg"
            cv2.imwrite(str(path), np.full_like(small, 128) if blank else small)
    detect_landmarks(BY_NETWORK, INGEST, capture, "FREE", None, tmp_path / "out.npz")
    found = read_arrays(Landmarks, tmp_path / "out.npz")
    assert found.points.shape == (3, 3, 68, 2) and np.isfinite(found.points).all()
    assert (found.confidence >= 0).all() and (found.confidence <= 1).all()
    # every landmark lies in the crop around a face, here about the middle of the frame
    seen = found.points[found.confidence > 0]
    assert np.abs(np.median(seen, axis=0) - 130).max() < 60


def test_frames_of_another_size_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "00000.jpg"
    cv2.imwrite(str(path), np.zeros((20, 30, 3), np.uint8))
    for size in (20, 30):
        with pytest.raises(UserError, match="not an image of"):
            read_frame(path, size, 128)
    path.write_bytes(b"no image")
    with pytest.raises(UserError, match="is damaged"):
        read_frame(path, 20, 128)
    with pytest.raises(UserError, match="is missing"):
        read_frame(tmp_path / "none.jpg", 20, 128)
