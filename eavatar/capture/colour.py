"""The colour correction of NeRSemble v2: sRGB → linear → polynomial · matrix → sRGB.

The polynomials are those of Cheung, Westland, Connah and Ripamonti (2004), "A comparative study
of the characterisation of colour cameras by means of neural networks and polynomial transforms",
in the order of the colour-science package, which made the published matrices.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache, reduce
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from eavatar.capture.video import Image

Float = NDArray[Any]  # float32; OpenCV annotates no narrower type

_SQUARES = "R G B RG RB GB RR GG BB"
_CUBES = f"{_SQUARES} RGB RRG GGB BBR RRB GGR BBG RRR GGG BBB"
TERMS: dict[int, tuple[str, ...]] = {
    len(terms.split()): tuple(terms.split())
    for terms in (
        "R G B",
        "R G B 1",
        "R G B RGB 1",
        "R G B RG RB GB 1",
        "R G B RG RB GB RGB 1",
        f"{_SQUARES} 1",
        f"{_SQUARES} RGB 1",
        f"{_SQUARES} RGB RRR GGG BBB 1",
        f"{_SQUARES} RGB RRG GGB BBR RRR GGG BBB",
        f"{_SQUARES} RGB RRG GGB BBR RRR GGG BBB 1",
        _CUBES,
        f"{_CUBES} 1",
        f"{_CUBES} RRGB RGGB RGBB",
    )
}
"""Number of terms to the monomials, each written as the product of its channels."""

CHUNK = 16384  # pixels at a time: all monomials of a chunk stay in the processor's cache
LEVELS = 65535  # of the encoding table: a step is less than 0.06 of an 8-bit level


@dataclass(frozen=True)
class Polynomial:
    """NeRSemble v2: a (3, terms) matrix on monomials of linear RGB."""

    matrix: NDArray[np.float64]


@dataclass(frozen=True)
class Affine:
    """NeRSemble v1: encoded RGB in [0, 1] as a row times A[:, :3], plus A[:, 3]; A is (3, 4)."""

    matrix: NDArray[np.float64]


Colour = Polynomial | Affine


@lru_cache(maxsize=1)
def _tables() -> tuple[Float, Image]:
    """(256,) 8-bit sRGB to linear light, and (LEVELS + 1,) linear light to 8-bit sRGB."""
    encoded = np.arange(256) / 255
    decode = np.where(encoded <= 0.04045, encoded / 12.92, ((encoded + 0.055) / 1.055) ** 2.4)
    linear = np.arange(LEVELS + 1) / LEVELS
    encode = np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055)
    return decode.astype(np.float32), (encode * 255).round().astype(np.uint8)


def polynomial(linear: Float, matrix: NDArray[np.float64]) -> Float:
    """Linear RGB (..., 3) through a (3, terms) colour matrix to linear RGB (..., 3)."""
    weights, pixels = matrix.astype(np.float32), linear.reshape(-1, 3)
    result = np.empty_like(pixels)
    for start in range(0, len(pixels), CHUNK):
        chunk = pixels[start : start + CHUNK]
        channels = dict(zip("RGB", np.ascontiguousarray(chunk.T), strict=True))
        channels["1"] = np.ones(len(chunk), dtype=np.float32)
        monomials = [
            reduce(np.multiply, [channels[letter] for letter in term])
            for term in TERMS[matrix.shape[1]]
        ]
        # Not a matrix product: BLAS would start threads of its own in every worker thread.
        result[start : start + CHUNK] = np.einsum("ct,tn->nc", weights, np.stack(monomials))
    return result.reshape(linear.shape)


def correct_colour(image: Image, colour: Colour) -> Image:
    """Correct an (H, W, 3) sRGB image in OpenCV's BGR order."""
    if isinstance(colour, Affine):
        # cv2.transform multiplies columns; BGR order turns both axes of the matrix around.
        rows = np.column_stack([colour.matrix[::-1, 2::-1].T, 255 * colour.matrix[::-1, 3]])
        return cv2.transform(image, rows)
    decode, encode = _tables()
    linear = cv2.LUT(image, decode)
    matrix = colour.matrix
    if matrix.shape[1] == 3:
        corrected = cv2.transform(linear, matrix[::-1, ::-1])
    else:
        corrected = polynomial(linear[..., ::-1], matrix)[..., ::-1]
    levels = np.clip(corrected, 0, 1) * LEVELS + 0.5
    return encode[levels.astype(np.uint16)]
