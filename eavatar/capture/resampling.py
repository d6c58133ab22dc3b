"""Area resampling of an image that is larger than its target.

OpenCV's takes four times as long at factors that are no whole numbers, such as GHA's 2600 to 2048
pixels, and is then the largest part of ingesting a frame.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from numba import njit
from numpy.typing import NDArray

from eavatar.capture.video import Image

GROUP = 3  # taps of one pass along a row: what GHA's crop needs


@dataclass(frozen=True)
class Taps:
    """Which source values make each of N target values along one axis.

    Attributes:
        first: (N,) index of the first tap, counted from ``margin`` values before the source.
        weights: (taps, N) float32, of values ``channels`` apart; values beyond the source are 0.
        channels: values of a pixel; 1 along the columns.
    """

    first: NDArray[np.uint64]
    weights: NDArray[Any]
    channels: int

    @property
    def margin(self) -> int:
        return len(self.weights) * self.channels


@lru_cache(maxsize=64)
def area_taps(start: int, length: int, source: int, target: int, channels: int = 1) -> Taps:
    """Means over ``target`` equal parts of ``length`` pixels, which begin at pixel ``start``."""
    step = length / target
    left = np.arange(target) * step
    count = GROUP * math.ceil((math.ceil(step) + 1) / GROUP)
    first = np.floor(left + 1e-9)
    pixels = first + np.arange(count)[:, None]
    overlap = np.minimum(left + step, pixels + 1) - np.maximum(left, pixels)
    weights = np.repeat(np.clip(overlap, 0, None) / step, channels, axis=1)
    inside = np.clip(first + start, -count, source) + count  # all taps of the ends are beyond it
    values = inside[:, None] * channels + np.arange(channels)
    return Taps(values.ravel().astype(np.uint64), weights.astype(np.float32), channels)


def resample(image: Image, rows: Taps, columns: Taps) -> Image:
    """(H, W[, C]) 8-bit image to the (rows, columns[, C]) of the taps, rounded."""
    flat = np.ascontiguousarray(image).reshape(len(image), -1)
    result = np.zeros((len(rows.first), len(columns.first)), np.uint8)
    inside = slice(
        *np.searchsorted(columns.first, (columns.channels, flat.shape[1] + columns.margin))
    )
    _resample(
        flat,
        rows.first,
        rows.weights,
        columns.first[inside],
        np.ascontiguousarray(columns.weights[:, inside]),
        columns.channels,
        result[:, inside],
    )
    return result.reshape(len(result), -1, *image.shape[2:])


@njit(nogil=True, cache=True)
def _resample(
    image: Image,
    first_row: Any,
    row_weights: Any,
    first_column: Any,
    column_weights: Any,
    channels: int,
    result: Image,
) -> None:
    """Down the columns, then along the rows, one target row at a time.

    The innermost loops are ones that the compiler can vectorise; unsigned indices spare it a test
    for negative ones. Columns beyond the source are zeros at both ends of the sums.
    """
    margin, stride = len(column_weights) * channels, np.uint64(channels)
    column_sums = np.zeros(image.shape[1] + 2 * margin, np.float32)
    values = np.empty(result.shape[1], np.float32)
    for y in range(len(result)):
        sums = column_sums[margin : margin + image.shape[1]]
        sums[:] = 0
        for k in range(len(row_weights)):
            row = np.int64(first_row[y]) + k - len(row_weights)
            weight = row_weights[k, y]
            if weight != 0 and 0 <= row < len(image):
                source = image[row]
                for x in range(len(source)):
                    sums[x] += weight * np.float32(source[x])
        values[:] = np.float32(0.5)  # the conversion to integers cuts off
        for k in range(0, len(column_weights), GROUP):
            shifted = column_sums[k * channels :]
            one, two, three = column_weights[k], column_weights[k + 1], column_weights[k + 2]
            for x in range(len(values)):
                column = first_column[x]
                values[x] += (
                    one[x] * shifted[column]
                    + two[x] * shifted[column + stride]
                    + three[x] * shifted[column + stride + stride]
                )
        target = result[y]
        for x in range(len(values)):
            target[x] = np.uint8(np.int32(values[x]))
