from __future__ import annotations

import csv
import os
from pathlib import Path

import cv2
import numpy as np
import pytest

from eavatar.cameras import Camera
from eavatar.capture.ingest import Window, calibrate, ingest
from eavatar.capture.nersemble import FULL_SIZE
from eavatar.capture.video import decode_video
from eavatar.data.images import read_colour
from eavatar.errors import UserError
from eavatar.io import read_cameras
from tests.scenes.small_capture import (
    HEIGHT,
    INTRINSICS,
    SERIALS,
    WIDTH,
    grey_frames,
    ingest_settings,
    world_to_camera,
    write_capture,
)


def draw_dots(points: np.ndarray, width: int, height: int, sigma: float) -> np.ndarray:
    """Grey image of Gaussian dots at pixel positions (N, 2), pixel i covering [i, i + 1)."""
    x, y = np.arange(width) + 0.5, np.arange(height) + 0.5
    image = np.zeros((height, width))
    for point in points:
        across = np.exp(-0.5 * ((x - point[0]) / sigma) ** 2)
        down = np.exp(-0.5 * ((y - point[1]) / sigma) ** 2)
        image += 250 * down[:, None] * across
    return image.round().astype(np.uint8)


def centroid(image: np.ndarray, near: np.ndarray, radius: int) -> np.ndarray:
    """Intensity-weighted mean position around a pixel position."""
    column, row = np.floor(near).astype(int)
    y, x = np.mgrid[row - radius : row + radius + 1, column - radius : column + radius + 1]
    weight = image[y, x].astype(float)
    return np.array([(weight * (x + 0.5)).sum(), (weight * (y + 0.5)).sum()]) / weight.sum()


@pytest.mark.parametrize("stored", [(2200, 3208), (550, 802), (220, 320), (733, 1069)])
@pytest.mark.parametrize("image_size, crop_origin", [(256, (-200, 304)), (700, (-203, 311))])
def test_frames_and_cameras_agree(
    stored: tuple[int, int], image_size: int, crop_origin: tuple[int, int]
) -> None:
    settings = ingest_settings(image_size=image_size, crop_origin=list(crop_origin))
    window = Window.of(settings, *stored)
    full = Camera(INTRINSICS, world_to_camera(0.3), 2200, 3208)
    points = np.array([[0.0, 0.0, 0.0], [0.08, 0.1, 0.02], [-0.09, -0.06, 0.05]])
    in_stored, _ = full.resize(*stored).project(points)
    expected, _ = window.camera(full).project(points)
    step = window.width / image_size
    sigma = 1.5 * max(step, 1)
    frame = window.apply(draw_dots(in_stored, *stored, sigma))
    radius = int(np.ceil(4.5 * sigma / step)) + 1
    measured = np.array([centroid(frame, point, radius) for point in expected])
    assert np.abs(measured - expected).max() < 0.05  # pixels; a half-pixel slip would be 0.5


@pytest.mark.parametrize("stored", [(2200, 3208), (550, 802), (220, 320)])
@pytest.mark.parametrize("image_size", [64, 256, 1000])
def test_visible_marks_the_padding(stored: tuple[int, int], image_size: int) -> None:
    window = Window.of(ingest_settings(image_size=image_size), *stored)
    white = window.apply(np.full(stored[::-1], 255, dtype=np.uint8))
    visible = window.visible() == 255
    assert (white[visible] == 255).all()
    # What is hidden draws on the padding, but for the half pixel that the linear filter needs.
    assert (white == 255).sum() <= visible.sum() + 4 * image_size
    assert visible[:, image_size // 2].all()
    assert not visible[:, 0].any()


def test_a_crop_outside_the_image_is_refused() -> None:
    with pytest.raises(UserError, match="crop_origin"):
        Window.of(ingest_settings(crop_origin=[2300, 0]), 550, 802)


def read_rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_frames_index_and_cameras(tmp_path: Path) -> None:
    plate = np.full((HEIGHT, WIDTH, 3), 200, np.uint8)
    raw = write_capture(tmp_path / "raw", grey_frames(5), plate=plate)
    settings = ingest_settings(every=2)
    calibrate(settings, raw, tmp_path / "capture")
    for sequence in ("EXP-1-head", "FREE"):
        ingest(settings, raw, sequence, tmp_path / "capture")
    rows = read_rows(tmp_path / "capture" / "FREE.csv")
    assert list(rows[0]) == ["timestep", "camera", "source_frame", "sharpness"]
    assert [(row["timestep"], row["source_frame"]) for row in rows[:: len(SERIALS)]] == [
        ("0", "0"), ("1", "2"), ("2", "4"),
    ]  # fmt: skip
    assert {row["camera"] for row in rows} == set(SERIALS)
    frame = read_colour(tmp_path / "capture" / "FREE" / SERIALS[0] / "00001.jpg")
    assert frame.shape == (64, 64, 3)
    assert abs(float(frame[32, 32].mean()) - 100) <= 2  # YUV and JPEG rounding
    assert frame[32, 0].max() <= 3  # padding
    assert abs(float(read_colour(plate_path(tmp_path))[32, 32].mean()) - 200) <= 2
    cameras = read_cameras(tmp_path / "capture" / "cameras.json")
    assert list(cameras) == sorted(SERIALS)
    assert cameras[SERIALS[0]].width == 64
    full = read_cameras(tmp_path / "capture" / "full_cameras.json")
    assert list(full) == sorted(SERIALS)
    assert (full[SERIALS[0]].width, full[SERIALS[0]].height) == FULL_SIZE


def plate_path(folder: Path) -> Path:
    return folder / "capture" / "plates" / f"{SERIALS[0]}.png"


def test_a_capture_without_plates_leaves_an_empty_folder_of_them(tmp_path: Path) -> None:
    """The rule declares it, and fails without."""
    raw = write_capture(tmp_path / "raw", grey_frames(1))
    calibrate(ingest_settings(), raw, tmp_path / "capture")
    assert list((tmp_path / "capture" / "plates").iterdir()) == []


def test_a_rerun_replaces_what_a_kill_left(tmp_path: Path) -> None:
    raw = write_capture(tmp_path / "raw", grey_frames(2), sequences=("FREE",))
    settings, output = ingest_settings(), tmp_path / "capture"
    folder = output / "FREE" / SERIALS[0]
    folder.mkdir(parents=True)
    (folder / "00000.jpg").write_bytes(b"half")
    (folder / "00007.jpg").write_bytes(b"of an earlier setting")
    (output / "FREE.csv").write_text("stale")
    ingest(settings, raw, "FREE", output)
    assert sorted(path.name for path in folder.iterdir()) == ["00000.jpg", "00001.jpg"]
    assert read_colour(folder / "00000.jpg").shape == (64, 64, 3)
    assert len(read_rows(output / "FREE.csv")) == 2 * len(SERIALS)


def test_the_colour_calibration_is_undone(tmp_path: Path) -> None:
    """A camera that halves linear light is corrected by the matrix that doubles it."""
    shown = np.full((HEIGHT, WIDTH, 3), 100, np.uint8)
    raw = write_capture(tmp_path / "raw", [shown], sequences=("FREE",), colour=2 * np.eye(3))
    ingest(ingest_settings(), raw, "FREE", tmp_path / "capture")
    frame = read_colour(tmp_path / "capture" / "FREE" / SERIALS[0] / "00000.jpg")
    linear = 2 * ((100 / 255 + 0.055) / 1.055) ** 2.4
    expected = 255 * (1.055 * linear ** (1 / 2.4) - 0.055)
    assert abs(float(frame[32, 32].mean()) - expected) <= 2.5  # YUV and JPEG rounding


def test_decoding_only_the_crop_changes_nothing(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    noise = cv2.resize(rng.integers(0, 255, (40, 28, 3), dtype=np.uint8), (WIDTH, HEIGHT))
    raw = write_capture(tmp_path / "raw", [noise], sequences=("FREE",))
    # The crop leaves the image at the left and ends inside of it, on odd pixels.
    settings = ingest_settings(
        crop_origin=[-200, 314], crop_size=2110, colour_correction=False, cameras=[SERIALS[0]]
    )
    ingest(settings, raw, "FREE", tmp_path / "capture")
    video = raw / "sequences" / "FREE" / "images" / f"cam_{SERIALS[0]}.mp4"
    [(_, whole)] = decode_video(video)
    expected = Window.of(settings, WIDTH, HEIGHT).apply(whole)
    written = cv2.imencode(".jpg", expected, [cv2.IMWRITE_JPEG_QUALITY, settings.jpeg_quality])[1]
    path = tmp_path / "capture" / "FREE" / SERIALS[0] / "00000.jpg"
    np.testing.assert_array_equal(read_colour(path), cv2.imdecode(written, cv2.IMREAD_COLOR))


def test_sharpness_orders_blur(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 255, (HEIGHT, WIDTH, 1), dtype=np.uint8)
    sharp = np.repeat(noise, 3, axis=2)
    frames = [cv2.GaussianBlur(sharp, (0, 0), 3).astype(np.uint8), sharp]
    raw = write_capture(tmp_path / "raw", frames, sequences=("FREE",))
    ingest(ingest_settings(cameras=[SERIALS[0]]), raw, "FREE", tmp_path / "capture")
    blurred, crisp = (
        float(row["sharpness"]) for row in read_rows(tmp_path / "capture" / "FREE.csv")
    )
    assert crisp > 4 * blurred


def test_missing_colour_calibration_names_the_setting(tmp_path: Path) -> None:
    raw = write_capture(tmp_path / "raw", grey_frames(2), sequences=("FREE",))
    (raw / "calibration" / "color_calibration.json").unlink()
    with pytest.raises(UserError, match="colour_correction: false"):
        ingest(ingest_settings(), raw, "FREE", tmp_path / "capture")
    ingest(ingest_settings(colour_correction=False), raw, "FREE", tmp_path / "capture")


def test_settings_that_choose_nothing_are_refused(tmp_path: Path) -> None:
    raw = write_capture(tmp_path / "raw", grey_frames(2), sequences=("FREE",))
    with pytest.raises(UserError, match=r"'7\*' of capture\.ingest\.cameras .* matches nothing"):
        calibrate(ingest_settings(cameras=["7*"]), raw, tmp_path / "capture")
    with pytest.raises(UserError, match="'sequences' and 'exclude'"):
        calibrate(ingest_settings(sequences=["EMO*"]), raw, tmp_path / "capture")
    with pytest.raises(UserError, match="no sequence 'EMO-1'"):
        ingest(ingest_settings(), raw, "EMO-1", tmp_path / "capture")


@pytest.mark.skipif("EAVATAR_SHARED" not in os.environ, reason="EAVATAR_SHARED is not set")
def test_subject_901_plates_match_the_frames(tmp_path: Path) -> None:
    """Where nobody stands, a frame shows its plate: same crop, same colours."""
    raw = Path(os.environ["EAVATAR_SHARED"]) / "captures" / "901"
    settings = ingest_settings(image_size=256, cameras=["222200037"], sequences=["FREE"])
    calibrate(settings, raw, tmp_path)
    ingest(settings, raw, "FREE", tmp_path)
    frame = read_colour(tmp_path / "FREE" / "222200037" / "00000.jpg").astype(float)
    plate = read_colour(tmp_path / "plates" / "222200037.png").astype(float)
    corner = (slice(0, 20), slice(24, 60))
    assert np.abs(frame[corner] - plate[corner]).mean() < 3  # sensor noise and compression
