"""Decoded frames: the colours that their luma and chroma stand for, to the nearest level."""

from __future__ import annotations

from fractions import Fraction
from itertools import pairwise, product
from pathlib import Path

import av
import numpy as np
import pytest
from numpy.typing import NDArray

from eavatar.capture.video import CameraFrames
from eavatar.capture.yuv import to_bgr

BT_709, UNSPECIFIED, BT_601, BT_2020 = 1, 2, 6, 9  # numbers of ITU-T H.273
LIMITED, FULL = 1, 2  # FFmpeg's
PATCH = 32  # pixels; of the patches' inside, chroma is constant
CUBE = np.array(list(product(range(0, 256, 51), repeat=3)), np.uint8)  # RGB

# R, G and B of luma and chroma, without the range: as the standards print them.
MATRICES = {
    BT_601: [[1, 0, 1.402], [1, -0.344136, -0.714136], [1, 1.772, 0]],
    BT_709: [[1, 0, 1.5748], [1, -0.187324, -0.468124], [1, 1.8556, 0]],
    BT_2020: [[1, 0, 1.4746], [1, -0.164553, -0.571353], [1, 1.8814, 0]],
}
MATRICES[UNSPECIFIED] = MATRICES[BT_601]

Planes = list[NDArray[np.uint8]]


def random_planes(width: int, height: int, seed: int = 0) -> Planes:
    """Luma and two planes of half its size, rounded up, of any level."""
    rng = np.random.default_rng(seed)
    sizes = [(height, width), *[(-(-height // 2), -(-width // 2))] * 2]
    return [rng.integers(0, 256, size, np.uint8) for size in sizes]


def frame_of(planes: Planes, pixel_format: str = "yuv420p", matrix: int = BT_709) -> av.VideoFrame:
    height, width = planes[0].shape
    frame = av.VideoFrame(width, height, pixel_format)
    for plane, values in zip(frame.planes, planes, strict=True):
        padded = np.zeros((plane.height, plane.line_size), np.uint8)
        padded[:, : plane.width] = values
        plane.update(padded)
    frame.colorspace, frame.color_range = matrix, LIMITED
    return frame


def upsample(
    chroma: NDArray[np.uint8], width: int, height: int, shift: float
) -> NDArray[np.float64]:
    """Linear interpolation of samples between rows and on even columns, held at the edges.

    Args:
        shift: of the samples to the right of the even columns, pixels.
    """
    x, y = (np.arange(width) - shift) / 2, (np.arange(height) - 0.5) / 2
    rows = np.array([np.interp(x, np.arange(chroma.shape[1]), row) for row in chroma])
    return np.array([np.interp(y, np.arange(len(rows)), column) for column in rows.T]).T


def exact_bgr(planes: Planes, matrix: int, full: bool, shift: float = 0) -> NDArray[np.float64]:
    """(H, W, 3) not rounded, in [0, 255]."""
    height, width = planes[0].shape
    chroma = [upsample(plane, width, height, shift) - 128 for plane in planes[1:]]
    if full:
        signal = np.stack([planes[0].astype(float), *chroma], axis=-1)
    else:
        luma = (planes[0].astype(float) - 16) * 255 / 219
        signal = np.stack([luma, *(plane * 255 / 224 for plane in chroma)], axis=-1)
    return np.clip(signal @ np.array(MATRICES[matrix]).T, 0, 255)[..., ::-1]


@pytest.mark.parametrize("matrix", MATRICES)
@pytest.mark.parametrize("full", [False, True])
@pytest.mark.parametrize("size", [(64, 48), (63, 47), (1, 1), (2, 5)])
def test_every_pixel_is_the_nearest_level(matrix: int, full: bool, size: tuple[int, int]) -> None:
    planes = random_planes(*size)
    frame = frame_of(planes, matrix=matrix)
    frame.color_range = FULL if full else LIMITED
    # Half a level of rounding; the coefficients are rounded by the standards and as integers.
    error = np.abs(to_bgr(frame, "h264") - exact_bgr(planes, matrix, full))
    assert error.max() < 0.505


def test_a_pixel_format_of_full_range_needs_no_mark() -> None:
    planes = random_planes(32, 32)
    found = to_bgr(frame_of(planes, "yuvj420p"), "h264")
    assert np.abs(found - exact_bgr(planes, BT_709, full=True)).max() < 0.505


@pytest.mark.parametrize("corner", product((0, 1, 6), (0, 1, 9)))
@pytest.mark.parametrize("end", [(47, 63), (46, 62), (33, 30), (10, 11)])
def test_a_part_is_that_of_the_whole(corner: tuple[int, int], end: tuple[int, int]) -> None:
    frame = frame_of(random_planes(63, 47))
    part = slice(corner[0], end[0]), slice(corner[1], end[1])
    np.testing.assert_array_equal(to_bgr(frame, "h264", part), to_bgr(frame, "h264")[part])


def test_greys_have_no_colour_and_masks_their_ends() -> None:
    luma = np.arange(256, dtype=np.uint8).reshape(16, 16)
    neutral = np.full((8, 8), 128, np.uint8)
    image = to_bgr(frame_of([luma, neutral, neutral]), "h264")
    expected = np.clip(np.rint((luma.astype(float) - 16) * 255 / 219), 0, 255)
    np.testing.assert_array_equal(image, np.stack([expected] * 3, axis=-1))


# --- through a file -----------------------------------------------------------------------------


# --- through a file -----------------------------------------------------------------------------


def write(path: Path, frame: av.VideoFrame, codec: str, **options: str) -> Path:
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=24, options=options)
        stream.width, stream.height, stream.pix_fmt = frame.width, frame.height, frame.format.name
        stream.codec_context.colorspace = frame.colorspace
        stream.codec_context.color_range = frame.color_range
        container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


def decode(path: Path) -> NDArray[np.float64]:
    """The only frame (H, W, 3) of a video, RGB."""
    [(_, image)] = CameraFrames((path,)).decode()
    return image[..., ::-1].astype(float)


def patches() -> NDArray[np.uint8]:
    """Patches of the colours of the RGB cube."""
    return np.kron(CUBE.reshape(12, 18, 3), np.ones((PATCH, PATCH, 1), np.uint8))


def middles(image: NDArray) -> NDArray:
    """(216, 3) colours of the patches' middles, where no neighbour's chroma reaches."""
    return image[PATCH // 2 :: PATCH, PATCH // 2 :: PATCH].reshape(-1, 3)


def encode_colours(matrix: int) -> Planes:
    """The patches' luma and chroma of limited range, to the nearest level."""
    signal = patches() @ np.linalg.inv(MATRICES[matrix]).T / 255
    luma = np.rint(signal[..., 0] * 219 + 16)
    chroma = np.rint(signal[::2, ::2, 1:] * 224 + 128)
    return [plane.astype(np.uint8) for plane in (luma, chroma[..., 0], chroma[..., 1])]


@pytest.mark.parametrize("matrix", [UNSPECIFIED, BT_601, BT_709])
@pytest.mark.parametrize("suffix", [".mp4", ".mkv"])
def test_colours_come_back_from_a_video_without_a_bias(
    matrix: int, suffix: str, tmp_path: Path
) -> None:
    frame = frame_of(encode_colours(matrix), matrix=matrix)
    found = middles(decode(write(tmp_path / f"cam_1{suffix}", frame, "libx264", crf="0")))
    # What luma and chroma were rounded to is off by up to 1.5 levels of a colour, but evenly.
    assert np.abs(found - CUBE).max() <= 2
    assert np.abs((found - CUBE).mean(axis=0)).max() < 0.1


@pytest.mark.parametrize(
    ("codec", "pixel_format", "most"),
    [
        ("libx264", "yuv422p", 1.0),
        ("libx264", "yuv444p", 1.0),
        ("libx264", "yuv420p10le", 1.0),
        ("libx264rgb", "rgb24", 0.0),
        ("ffv1", "bgr0", 0.0),
    ],
)
def test_other_pixel_formats_have_no_bias_either(
    codec: str, pixel_format: str, most: float, tmp_path: Path
) -> None:
    accurate = {"interpolation": 0x42002}  # as the conversion back
    frame = av.VideoFrame.from_ndarray(patches(), format="rgb24")
    frame = frame.reformat(format=pixel_format, **accurate)
    options = {} if codec == "ffv1" else {"crf": "0"}
    found = middles(decode(write(tmp_path / "cam_1.mkv", frame, codec, **options)))
    assert np.abs(found - CUBE).max() <= most + 1
    assert np.abs((found - CUBE).mean(axis=0)).max() < 0.1


def test_chroma_between_two_columns_is_taken_from_there(tmp_path: Path) -> None:
    """MJPEG's samples lie half a column further right than those of H.264."""
    waves = 128 + 60 * np.sin(np.arange(48) / 4)
    planes = [np.full((64, 96), 128), *[np.tile(waves, (32, 1))] * 2]
    frame = frame_of([plane.astype(np.uint8) for plane in planes], "yuvj420p", UNSPECIFIED)
    frame.color_range = FULL
    path = write(tmp_path / "cam_1.avi", frame, "mjpeg", qmin="1", qmax="1")
    with av.open(str(path)) as container:
        frame = next(container.decode(video=0))
    coded = [
        np.frombuffer(plane, np.uint8).reshape(plane.height, -1)[:, : plane.width]
        for plane in frame.planes
    ]
    expected = exact_bgr(coded, UNSPECIFIED, full=True, shift=0.5)[..., ::-1]
    # Rounding; half a column is up to 10 levels here.
    assert np.abs(decode(path) - expected).max() < 1


def test_a_frame_that_is_stored_bottom_up_is_shown_upright() -> None:
    y, x = np.mgrid[:48, :64]
    planes = [(50 + 2 * y + x).astype(np.uint8)]  # smooth: swscale repeats chroma down a column
    planes += [(90 + y[::2, ::2] + x[::2, ::2]).astype(np.uint8), np.full((24, 32), 140, np.uint8)]
    frame = frame_of(planes)
    frame.time_base = Fraction(1, 25)
    graph = av.filter.Graph()
    source = graph.add_buffer(width=64, height=48, format="yuv420p", time_base=frame.time_base)
    nodes = [source, graph.add("vflip"), graph.add("buffersink")]
    for one, other in pairwise(nodes):
        one.link_to(other)
    graph.configure()
    graph.push(frame)
    flipped = graph.pull()
    flipped.colorspace = BT_709
    assert flipped.planes[0].line_size < 0
    difference = to_bgr(frame, "h264")[::-1].astype(int) - to_bgr(flipped, "rawvideo")
    assert np.abs(difference).max() <= 3  # half a step of chroma between rows, times 1.86
