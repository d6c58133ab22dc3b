"""Ordinary videos as frames: small ones, as telephones and cameras write them."""

from __future__ import annotations

import csv
import struct
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path

import av
import cv2
import numpy as np
import pytest

from eavatar.capture.own_video import CAMERA, ingest_video
from eavatar.errors import UserError
from eavatar.io import read_cameras, read_sequences

WIDTH, HEIGHT, RATE = 96, 64, 24.0
LOSSY = 8  # 8-bit levels, of video and JPEG compression together


def image(index: int) -> np.ndarray:
    """Grey that tells the index, and a red patch in the upper left corner."""
    picture = np.full((HEIGHT, WIDTH, 3), 40 + 6 * index, np.uint8)
    picture[:16, :24] = 200, 30, 30
    return picture


def encode(
    path: Path,
    times: Sequence[float],
    codec: str = "libx264",
    pixels: str = "yuv420p",
    transfer: int = 2,
) -> Path:
    """A video whose frames are shown from these seconds on; it names a transfer function."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=30)
        stream.width, stream.height, stream.pix_fmt = WIDTH, HEIGHT, pixels
        stream.options = {"crf": "4", "x265-params": "log-level=none"}
        stream.codec_context.time_base = Fraction(1, 1000)
        stream.codec_context.color_trc = transfer
        for index, time in enumerate(times):
            frame = av.VideoFrame.from_ndarray(image(index), format="rgb24")
            frame.pts, frame.time_base = round(1000 * time), Fraction(1, 1000)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


def ingest(video: Path, output: Path, image_size: int = 256) -> list[int]:
    """The frames of the video that the timesteps show."""
    ingest_video(video, RATE, image_size, None, output)
    with (output / f"{video.stem}.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [int(row["timestep"]) for row in rows] == list(range(len(rows)))
    return [int(row["source_frame"]) for row in rows]


def read(output: Path, timestep: int) -> np.ndarray:
    """An ingested frame, RGB."""
    path = output / "clip" / CAMERA / f"{timestep:05d}.jpg"
    return cv2.imread(str(path))[..., ::-1].astype(int)


def test_a_constant_rate_is_kept_and_the_frame_is_padded_to_a_square(tmp_path: Path) -> None:
    video = encode(tmp_path / "clip.mp4", np.arange(12) / RATE)
    assert ingest(video, tmp_path / "capture") == list(range(12))
    frame = read(tmp_path / "capture", 5)
    assert frame.shape == (WIDTH, WIDTH, 3)
    assert (frame[:12] < LOSSY).all() and (frame[-12:] < LOSSY).all()
    assert abs(frame[40, 60] - image(5)[30, 60]).max() < LOSSY
    assert read_sequences(tmp_path / "capture" / "sequences.json").names == ("clip",)


def test_large_frames_shrink_and_their_camera_with_them(tmp_path: Path) -> None:
    video = encode(tmp_path / "clip.mp4", [0, 1 / RATE])
    ingest_video(video, RATE, 48, 120.0, tmp_path)
    camera = read_cameras(tmp_path / "cameras.json")[CAMERA]
    assert (camera.width, camera.height) == (48, 48)
    assert np.allclose(camera.intrinsics, [[60, 0, 24], [0, 60, 24], [0, 0, 1]])


def test_timesteps_are_evenly_spaced_whatever_the_frame_rate(tmp_path: Path) -> None:
    """Each has the frame nearest in time, and the last frame comes last."""
    times = [0, 0.02, 0.04, 0.1, 0.3, 0.33, 0.5]
    video = encode(tmp_path / "clip.mp4", times)
    found = ingest(video, tmp_path / "capture")
    nearest = [int(np.abs(np.array(times) - k / RATE).argmin()) for k in range(len(found) - 1)]
    assert found == [*nearest, len(times) - 1]
    assert len(found) == times[-1] * RATE + 1


def turn(path: Path, matrix: tuple[int, int, int, int]) -> Path:
    """Write a display matrix into the track header of a video."""
    content = path.read_bytes()
    at = content.index(b"tkhd") + 4 + 40  # after version, flags, times, number and volume
    a, b, c, d = (65536 * part for part in matrix)
    packed = struct.pack(">iiiiiiiii", a, b, 0, c, d, 0, 0, 0, 1 << 30)
    path.write_bytes(content[:at] + packed + content[at + len(packed) :])
    return path


@pytest.mark.parametrize(
    ("matrix", "quarters"),
    [((0, 1, -1, 0), -1), ((-1, 0, 0, -1), 2), ((0, -1, 1, 0), 1)],
    ids=["clockwise", "upside down", "counter-clockwise"],
)
def test_a_telephone_held_upright_gives_upright_frames(
    tmp_path: Path, matrix: tuple[int, int, int, int], quarters: int
) -> None:
    video = turn(encode(tmp_path / "clip.mp4", np.arange(3) / RATE), matrix)
    ingest(video, tmp_path)
    padding = (WIDTH - HEIGHT) // 2
    padded = np.pad(image(1), [(padding, padding), (0, 0), (0, 0)])
    upright = np.rot90(padded, quarters).astype(int)
    assert abs(read(tmp_path, 1) - upright).mean() < LOSSY


@pytest.mark.skipif("libx265" not in av.codecs_available, reason="this PyAV encodes no HEVC")
def test_ten_bits_in_hevc_keep_their_colours(tmp_path: Path) -> None:
    video = encode(tmp_path / "clip.mp4", np.arange(3) / RATE, "libx265", "yuv420p10le")
    assert ingest(video, tmp_path) == [0, 1, 2]
    frame = read(tmp_path, 2)
    assert abs(frame[40, 60] - image(2)[30, 60]).max() < LOSSY
    assert abs(frame[24, 8] - image(2)[8, 8]).max() < LOSSY


@pytest.mark.parametrize(("transfer", "told"), [(1, False), (16, True), (18, True)])
def test_a_high_dynamic_range_is_told(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, transfer: int, told: bool
) -> None:
    ingest(encode(tmp_path / "clip.mp4", np.arange(3) / RATE, transfer=transfer), tmp_path)
    assert ("high dynamic range" in caplog.text) == told


def test_files_that_are_no_videos_are_told(tmp_path: Path) -> None:
    whole = encode(tmp_path / "clip.mp4", np.arange(12) / RATE).read_bytes()
    (tmp_path / "text.mp4").write_text("no video")
    (tmp_path / "cut.mp4").write_bytes(whole[: len(whole) // 2])
    with av.open(str(tmp_path / "sound.wav"), "w") as container:
        stream = container.add_stream("pcm_s16le", rate=8000)
        sound = av.AudioFrame.from_ndarray(np.zeros((1, 800), np.int16), layout="mono")
        sound.sample_rate = 8000
        container.mux(stream.encode(sound))
    for name, match in (
        ("text", "not a readable"),
        ("cut", "not a readable"),
        ("sound", "no video"),
    ):
        path = next(tmp_path.glob(f"{name}.*"))
        with pytest.raises(UserError, match=match) as caught:
            ingest(path, tmp_path / "capture")
        assert path.name in str(caught.value) and "\n" not in str(caught.value)
