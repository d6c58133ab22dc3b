"""A capture whose lenses distort: everything that comes out of it is a pinhole camera's."""

from __future__ import annotations

import json
from pathlib import Path

import cv2
import numpy as np
import pytest

from eavatar.cameras import Camera
from eavatar.capture.captures import open_capture
from eavatar.capture.ingest import calibrate, ingest
from eavatar.capture.matting import matte
from eavatar.errors import UserError
from eavatar.face.landmarks import detect_landmarks
from eavatar.io import Landmarks, read_arrays, read_cameras, read_lenses
from eavatar.lenses import Lens
from eavatar.settings import LandmarkSettings
from tests.scenes.small_capture import (
    INTRINSICS,
    SERIALS,
    ingest_settings,
    matte_settings,
    world_to_camera,
    write_capture,
    write_video,
)

# Strong at this long focal length: points near the border of the crop move by 1 % of the image.
COEFFICIENTS = [-1.2, 0.4, 0.003, -0.002, 0.0]
SIZE, SERIAL = 256, SERIALS[0]
WIDTH, HEIGHT = 550, 802  # a quarter, in which the crop is of whole pixels
POINTS = np.array([[0.0, 0.0, 0.0], [0.09, 0.12, 0.02], [-0.1, -0.1, 0.05]])


@pytest.fixture(scope="module")
def lens() -> Lens:
    return Lens(Camera(INTRINSICS, world_to_camera(-0.5), 2200, 3208), tuple(COEFFICIENTS))


@pytest.fixture(scope="module")
def seen(lens: Lens) -> np.ndarray:
    """Where the points are in the distorted full-size image of the first camera."""
    return lens.distort_points(lens.camera.project(POINTS)[0])


@pytest.fixture(scope="module")
def raw(seen: np.ndarray, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Dots of every camera, in frames and on the plate, where the first camera sees them."""
    root = tmp_path_factory.mktemp("distorted") / "raw"
    frame = np.zeros((HEIGHT, WIDTH, 3), np.uint8)
    x, y = np.arange(WIDTH) + 0.5, np.arange(HEIGHT) + 0.5
    for across, down in seen * [WIDTH / 2200, HEIGHT / 3208]:
        dot = np.exp(-((x - across) ** 2 + (y[:, None] - down) ** 2) / 50)
        frame = np.maximum(frame, (240 * dot[..., None]).astype(np.uint8))
    write_capture(root, [frame] * 2, sequences=("FREE",), plate=frame)
    path = root / "calibration" / "camera_params.json"
    content = json.loads(path.read_text())
    content["distortion"] = dict.fromkeys(SERIALS, COEFFICIENTS)
    path.write_text(json.dumps(content))
    for serial in SERIALS:
        write_video(root.parent / "mattes" / "FREE" / f"cam_{serial}.mp4", [frame] * 2)
    points = np.zeros((2, 1, 68, 2))
    points[:] = np.resize(seen, (68, 2))
    arrays = {"cameras": [SERIAL], "points": points, "confidence": np.ones((2, 1, 68))}
    (root.parent / "landmarks").mkdir()
    np.savez(root.parent / "landmarks" / "FREE.npz", **arrays)
    return root


@pytest.fixture(scope="module")
def capture(raw: Path) -> Path:
    """Ingested."""
    output, settings = raw.parent / "capture", ingest_settings(image_size=SIZE)
    calibrate(settings, raw, output)
    ingest(settings, raw, "FREE", output)
    return output


def expected(capture: Path) -> np.ndarray:
    """Where the pinhole camera of the frames sees the points."""
    return read_cameras(capture / "cameras.json")[SERIAL].project(POINTS)[0]


def assert_dots(path: Path, places: np.ndarray) -> None:
    image = cv2.imread(str(path), cv2.IMREAD_GRAYSCALE).astype(float)
    for across, down in places:
        left, top = int(across) - 12, int(down) - 12
        part = image[top : top + 25, left : left + 25]
        part = np.where(part > 30, part, 0)  # what compression leaves around a dot
        rows, columns = np.mgrid[top : top + 25, left : left + 25] + 0.5
        found = np.array([(part * columns).sum(), (part * rows).sum()]) / part.sum()
        # compression moves a dot by 0.1
        np.testing.assert_allclose(found, [across, down], atol=0.25)


def test_frames_plates_and_mattes_show_what_a_pinhole_camera_sees(
    raw: Path, capture: Path, seen: np.ndarray
) -> None:
    places = expected(capture)
    bent = (seen - [-200, 304]) * SIZE / 2600
    assert np.abs(bent - places).max() > 2  # what is lost if the distortion is dropped
    assert_dots(capture / "FREE" / SERIAL / "00001.jpg", places)
    assert_dots(capture / "plates" / f"{SERIAL}.png", places)
    settings = ingest_settings(image_size=SIZE)
    masks = capture / "masks"
    matte(matte_settings("provided"), settings, capture, "FREE", raw.parent / "mattes", masks)
    assert_dots(masks / "FREE" / SERIAL / "00001.png", places)


def test_provided_landmarks_are_moved_like_the_frames(raw: Path, capture: Path) -> None:
    output, settings = capture.parent / "face" / "FREE.npz", ingest_settings(image_size=SIZE)
    backend = LandmarkSettings.model_validate({"backend": "provided"})
    detect_landmarks(backend, settings, capture, "FREE", raw.parent / "landmarks", output)
    found = read_arrays(Landmarks, output)
    points = found.points[0, found.cameras.tolist().index(SERIAL)]
    np.testing.assert_allclose(points, np.resize(expected(capture), (68, 2)), atol=1e-3)


def test_what_no_pixel_of_the_sensor_shows_is_padding(raw: Path, capture: Path) -> None:
    """Pincushion distortion pulls the image's edges inwards: the frame's edge shows nothing."""
    path = raw.parent / "pincushion" / "calibration" / "camera_params.json"
    path.parent.mkdir(parents=True)
    content = json.loads((raw / "calibration" / "camera_params.json").read_text())
    path.write_text(json.dumps(content | {"distortion": [1.5, 0, 0, 0]}))  # shared by all cameras
    (path.parent / "color_calibration.json").write_bytes(
        (raw / "calibration" / "color_calibration.json").read_bytes()
    )
    (path.parents[1] / "sequences").symlink_to(raw / "sequences")
    output = raw.parent / "pincushion_capture"
    calibrate(ingest_settings(image_size=SIZE), path.parents[1], output)
    barrel, cushion = (
        cv2.imread(str(folder / "visible" / f"{SERIAL}.png"), cv2.IMREAD_GRAYSCALE) > 0
        for folder in (capture, output)
    )
    assert barrel[SIZE // 2].sum() > cushion[SIZE // 2].sum() + 4
    assert not cushion[:, 20].any()  # the crop itself leaves out the first 19 columns
    assert cushion[SIZE // 2, SIZE // 2]


def test_lenses_are_kept_for_what_is_provided_beside_the_frames(
    raw: Path, capture: Path, lens: Lens
) -> None:
    lenses = read_lenses(capture / "full_cameras.json")
    assert set(lenses) == set(SERIALS)
    assert lenses[SERIAL].coefficients == lens.coefficients
    assert read_lenses(capture / "cameras.json") == {}


def with_calibration(raw: Path, tmp_path: Path, **changes: object) -> Path:
    content = json.loads((raw / "calibration" / "camera_params.json").read_text()) | changes
    (tmp_path / "calibration").mkdir()
    (tmp_path / "calibration" / "camera_params.json").write_text(json.dumps(content))
    (tmp_path / "sequences").symlink_to(raw / "sequences")
    return tmp_path


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"dist_coeffs": COEFFICIENTS}, "holds 'dist_coeffs', which is not read"),
        ({"rotation": 90}, "holds 'rotation', which is not read"),
        ({"distortion": {SERIAL: COEFFICIENTS}}, "the table 'distortion' lacks it"),
        ({"intrinsics": {SERIAL: INTRINSICS.tolist()}}, "the table 'intrinsics' lacks it"),
        ({"distortion": [0.1, 0.2, 0.3]}, "not 3"),
    ],
)
def test_what_a_calibration_holds_beside_is_told(
    raw: Path, tmp_path: Path, changes: dict[str, object], told: str
) -> None:
    with pytest.raises(UserError, match=told):
        open_capture(with_calibration(raw, tmp_path, **changes))
