"""8-bit 4:2:0 frames of a video to BGR, rounded to the nearest level.

FFmpeg's usual conversion truncates, so that images come out about a level too dark, and gives four
pixels one chroma. Its accurate conversion, which is right for every pixel format, takes many times
as long; what cameras record most is therefore converted here, and only the part that is wanted.

Matrices and ranges are those of ITU-T H.273. Chroma samples lie on the even columns, between two
rows, as H.264, HEVC and MPEG-4 mean if they do not say otherwise; PyAV does not tell if they do.
"""

from __future__ import annotations

from typing import Any

import av
import numpy as np
from av.video.plane import VideoPlane
from av.video.reformatter import ColorRange
from numba import njit

from eavatar.arrays import Image, Int32, Uint8

Part = tuple[slice, slice]
"""Rows and columns of an image, from a start to a stop inside of it."""

_BT_601 = (0.299, 0.114)
# Number of the matrix to the weights of red and blue in luma. 2 is unspecified: FFmpeg's choice.
_WEIGHTS = {1: (0.2126, 0.0722), 2: _BT_601, 5: _BT_601, 6: _BT_601, 9: (0.2627, 0.0593)}
_HDR = {16: "PQ", 18: "HLG"}  # transfer functions by their numbers
HDR_DOUBT = "colours are read as those of common video and look dull; convert to BT.709 if it shows"
_CENTRED = {"mjpeg"}  # codecs whose chroma samples lie between two columns
_ACCURATE = 0x2 | 0x2000 | 0x40000  # swscale's BILINEAR, FULL_CHR_H_INT, ACCURATE_RND
_FRACTION = 20  # bits; the largest sum, 550 levels, leaves one of 31 unused
# numba widens what is not cast back to 64 bits, which would halve the width of the vectors.
_SHIFT, _BLACK, _WHITE = np.int32(_FRACTION), np.int32(0), np.int32(255)


def to_bgr(frame: av.VideoFrame, codec: str, part: Part | None = None) -> Image:
    """A decoded frame, or a part of it, as (H, W, 3) BGR uint8.

    Args:
        frame: of any pixel format.
        codec: FFmpeg's name of the decoder.
        part: what is wanted; all if None.
    """
    rows, columns = part or (slice(0, frame.height), slice(0, frame.width))
    planar = frame.format.name in ("yuv420p", "yuvj420p") and codec not in _CENTRED
    upright = all(plane.line_size > 0 for plane in frame.planes)  # some files hold frames bottom up
    if not (planar and upright) or frame.colorspace not in _WEIGHTS:
        # One thread: cameras are worked on side by side.
        return frame.to_ndarray(format="bgr24", interpolation=_ACCURATE, threads=1)[rows, columns]
    full = frame.format.name == "yuvj420p" or frame.color_range == ColorRange.JPEG
    luma, blue_chroma, red_chroma = map(_rows, frame.planes)
    samples = frame.planes[1].width
    factors = _factors(*_WEIGHTS[frame.colorspace], full)
    image = np.empty((rows.stop - rows.start, columns.stop - columns.start, 3), np.uint8)
    flat = image.reshape(len(image), -1)
    _convert(luma, blue_chroma, red_chroma, samples, rows.start, columns.start, factors, flat)
    return image


def read_hdr(stream: av.VideoStream) -> str:
    """The transfer function of a video of high dynamic range, PQ or HLG; else an empty string."""
    return _HDR.get(int(stream.codec_context.color_trc), "")


def _rows(plane: VideoPlane) -> Uint8:
    """(H, padded W) view of a plane's memory, which lives as long as the view."""
    return np.frombuffer(memoryview(plane), np.uint8).reshape(plane.height, plane.line_size)


def _factors(red: float, blue: float, full: bool) -> Int32:
    """The conversion's factors as integers, `_FRACTION` bits of them after the point.

    Args:
        red: its weight in luma.
        blue: likewise.
        full: luma and chroma are 0 to 255, not 16 to 235 and 16 to 240.

    Returns:
        (6,) luma's factor, an addend that also rounds, and the factors of eight times the chroma:
        Cb for blue, Cb and Cr for green, Cr for red.
    """
    luma, chroma, black = (1.0, 1.0, 0) if full else (255 / 219, 255 / 224, 16)
    from_blue, from_red = 2 * (1 - blue) * chroma, 2 * (1 - red) * chroma
    to_green = np.array([from_blue * blue, from_red * red]) / (red + blue - 1)
    eighths = np.array([from_blue, *to_green, from_red]) / 8
    factors = np.array([luma, 0.5 - black * luma, *eighths]) * 2**_FRACTION
    rounded: Int32 = np.rint(factors).astype(np.int32)
    return rounded


@njit(nogil=True, cache=True)
def _convert(
    luma: Uint8,
    blue_chroma: Uint8,
    red_chroma: Uint8,
    samples: int,
    top: int,
    left: int,
    factors: Int32,
    result: Uint8,
) -> None:
    """Fill ``result`` (H, 3 W) from a frame's planes.

    Args:
        luma: rows of the frame, padded.
        blue_chroma: likewise, of half the height.
        red_chroma: likewise.
        samples: chroma samples in a row without its padding.
        top: the part's first row in the frame.
        left: its first column.
        factors: (6,) as `_factors` gives them.
        result: blue, green and red in turn; a third axis would not become SIMD.
    """
    scale, offset, blue_cb, green_cb, green_cr, red_cr = factors
    width = result.shape[1] // 3
    half = (left + width + 1) // 2 - left // 2  # chroma samples on the part's columns
    sums = np.empty(half + 1, np.int16)
    cbs, crs = np.empty(2 * half, np.int16), np.empty(2 * half, np.int16)
    for y in range(len(result)):
        _interpolate(blue_chroma, samples, top + y, left // 2, sums, cbs)
        _interpolate(red_chroma, samples, top + y, left // 2, sums, crs)
        row, row_cb, row_cr = luma[top + y, left:], cbs[left % 2 :], crs[left % 2 :]
        levels = result[y]
        for x in range(width):
            grey = np.int32(np.int32(row[x]) * scale + offset)
            cb, cr = np.int32(row_cb[x]), np.int32(row_cr[x])
            levels[3 * x] = _level(np.int32(grey + cb * blue_cb))
            levels[3 * x + 1] = _level(np.int32(grey + cb * green_cb + cr * green_cr))
            levels[3 * x + 2] = _level(np.int32(grey + cr * red_cr))


@njit(nogil=True, cache=True)
def _interpolate(plane: Uint8, samples: int, row: int, first: int, sums: Any, result: Any) -> None:
    """Write eight times a row's chroma, less its zero of 128, to ``result`` (2 K,).

    Args:
        plane: rows of samples, padded.
        samples: in a row without its padding.
        row: of the frame.
        first: sample, the one on the result's first column.
        sums: (K + 1,) for use in here.
    """
    other = row // 2 + (1 if row % 2 else -1)
    near, far = plane[row // 2, first:], plane[min(max(other, 0), len(plane) - 1), first:]
    inside = min(len(sums), samples - first)
    for i in range(inside):
        sums[i] = 3 * np.int16(near[i]) + np.int16(far[i]) - 4 * 128
    sums[inside:] = sums[inside - 1]
    for i in range(len(result) // 2):
        result[2 * i] = 2 * sums[i]
        result[2 * i + 1] = sums[i] + sums[i + 1]


@njit(nogil=True, cache=True)
def _level(value: Any) -> Any:
    """The level in [0, 255] of a value with `_FRACTION` bits after the point."""
    return np.uint8(min(max(np.int32(value >> _SHIFT), _BLACK), _WHITE))
