from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

import av
import numpy as np
import pytest

from eavatar.capture.captures import open_capture
from eavatar.capture.recording import check_videos
from eavatar.capture.video import decode_video, read_video_header
from eavatar.errors import UserError
from tests.scenes.small_capture import (
    HEIGHT,
    INTRINSICS,
    SERIALS,
    WIDTH,
    grey_frames,
    write_capture,
    write_video,
)


@pytest.fixture
def capture(tmp_path: Path) -> Path:
    return write_capture(tmp_path / "901", grey_frames())


def edit(path: Path, change: Callable[[dict], object]) -> None:
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


def test_a_sound_capture_opens(capture: Path) -> None:
    raw = open_capture(capture)
    assert list(raw.cameras) == sorted(SERIALS)
    assert list(raw.frames) == ["EXP-1-head", "FREE"]
    assert raw.plates == {}
    camera = raw.cameras[SERIALS[0]]
    assert (camera.width, camera.height) == (2200, 3208)
    np.testing.assert_array_equal(camera.intrinsics, INTRINSICS)
    header = check_videos(raw, ["FREE"])["FREE"][SERIALS[0]]
    assert (header.width, header.height, header.frames) == (WIDTH, HEIGHT, 4)


def test_a_missing_video_is_named(capture: Path) -> None:
    video = capture / "sequences" / "FREE" / "images" / f"cam_{SERIALS[1]}.mp4"
    video.unlink()
    with pytest.raises(UserError, match=f"video of camera {SERIALS[1]} is missing.*FREE"):
        check_videos(open_capture(capture), ["FREE"])


def test_an_incomplete_sequence_that_is_not_used_does_no_harm(capture: Path) -> None:
    folder = capture / "sequences" / "HAIR" / "images"
    folder.mkdir(parents=True)
    (folder / f"cam_{SERIALS[0]}.mp4").touch()
    check_videos(open_capture(capture), ["FREE"])


def test_a_calibration_without_a_serial_is_named(capture: Path) -> None:
    params = capture / "calibration" / "camera_params.json"
    edit(params, lambda content: content["world_2_cam"].pop(SERIALS[2]))
    with pytest.raises(UserError, match=f"calibration lacks camera {SERIALS[2]}"):
        check_videos(open_capture(capture), ["FREE"])


def test_a_colour_calibration_without_a_serial_is_named(capture: Path) -> None:
    edit(capture / "calibration" / "color_calibration.json", lambda c: c.pop(SERIALS[0]))
    with pytest.raises(UserError, match=rf"color_calibration\.json lacks camera {SERIALS[0]}"):
        open_capture(capture)


@pytest.mark.parametrize("row, column, value", [(0, 0, 1.5), (1, 3, float("nan")), (3, 3, 2.0)])
def test_a_camera_that_is_not_rigid_is_refused(
    capture: Path, row: int, column: int, value: float
) -> None:
    def change(content: dict) -> None:
        content["world_2_cam"][SERIALS[0]][row][column] = value

    edit(capture / "calibration" / "camera_params.json", change)
    with pytest.raises(UserError, match=SERIALS[0]):
        open_capture(capture)


def test_a_mirrored_camera_is_refused(capture: Path) -> None:
    def mirror(content: dict) -> None:
        rows = content["world_2_cam"][SERIALS[0]]
        rows[0] = [-value for value in rows[0]]

    edit(capture / "calibration" / "camera_params.json", mirror)
    with pytest.raises(UserError, match="no rotation"):
        open_capture(capture)


def test_a_colour_matrix_of_no_known_polynomial_is_refused(capture: Path) -> None:
    def widen(content: dict) -> None:
        content[SERIALS[0]] = np.ones((3, 6)).tolist()

    edit(capture / "calibration" / "color_calibration.json", widen)
    with pytest.raises(UserError, match="6 columns"):
        open_capture(capture)


def test_a_folder_of_another_layout_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no capture of a known layout"):
        open_capture(tmp_path)


@pytest.mark.parametrize("header_first", [False, True])
@pytest.mark.parametrize("share", [0.3, 0.95])
def test_a_truncated_video_is_found(capture: Path, header_first: bool, share: float) -> None:
    video = capture / "sequences" / "FREE" / "images" / f"cam_{SERIALS[1]}.mp4"
    noise = np.random.default_rng(0).integers(0, 255, (6, HEIGHT, WIDTH, 3), dtype=np.uint8)
    write_video(video, list(noise), header_first)
    content = video.read_bytes()
    video.write_bytes(content[: int(share * len(content))])
    with pytest.raises(UserError, match=rf"cam_{SERIALS[1]}\.mp4 is (truncated|not a complete)"):
        check_videos(open_capture(capture), ["FREE"])


def test_an_empty_video_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "cam_1.mp4"
    path.touch()
    with pytest.raises(UserError, match="not a complete video"):
        read_video_header(path)


def test_a_lost_packet_stops_the_decoding(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 255, (6, HEIGHT, WIDTH, 3), dtype=np.uint8)
    path = write_video(tmp_path / "cam_1.mp4", list(noise))
    with av.open(str(path)) as container:
        packet = container.streams.video[0].index_entries[3]
    content = bytearray(path.read_bytes())
    content[packet.pos : packet.pos + packet.size] = bytes(packet.size)
    path.write_bytes(content)
    with pytest.raises(UserError, match="copy it again"):
        list(decode_video(path))


def test_videos_of_different_lengths_are_refused(capture: Path) -> None:
    folder = capture / "sequences" / "FREE" / "images"
    write_video(folder / f"cam_{SERIALS[0]}.mp4", grey_frames(3))
    with pytest.raises(UserError, match="must be synchronised"):
        check_videos(open_capture(capture), ["FREE"])


def test_videos_of_different_sizes_are_refused(capture: Path) -> None:
    folder = capture / "sequences" / "FREE" / "images"
    write_video(folder / f"cam_{SERIALS[0]}.mp4", [np.zeros((160, 110, 3), np.uint8)] * 4)
    with pytest.raises(UserError, match="store all at one size"):
        check_videos(open_capture(capture), ["FREE"])


def test_a_cropped_video_is_refused(capture: Path) -> None:
    folder = capture / "sequences" / "FREE" / "images"
    write_video(folder / f"cam_{sorted(SERIALS)[0]}.mp4", [np.zeros((220, 220, 3), np.uint8)] * 4)
    with pytest.raises(UserError, match="uncropped"):
        check_videos(open_capture(capture), ["FREE"])


def test_decode_keeps_every_nth_frame(tmp_path: Path) -> None:
    path = write_video(tmp_path / "cam_1.mp4", grey_frames(5))
    indices, images = zip(*decode_video(path, 2), strict=True)
    assert indices == (0, 2, 4)
    # One level for the YUV rounding; neighbouring frames are 20 levels apart.
    np.testing.assert_allclose([image.mean() for image in images], [60, 100, 140], atol=1)


@pytest.mark.skipif("EAVATAR_SHARED" not in os.environ, reason="EAVATAR_SHARED is not set")
def test_subject_901_opens() -> None:
    raw = open_capture(Path(os.environ["EAVATAR_SHARED"]) / "captures" / "901")
    assert len(raw.cameras) == 16
    assert len(raw.plates) == 16
    headers = check_videos(raw, list(raw.frames))
    frames = sorted(own[min(own)].frames for own in headers.values())
    assert frames == [16, 24, 24, 24, 24, 24, 24]
