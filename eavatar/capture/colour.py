"""NeRSemble's colour corrections: v2's sRGB → linear → polynomial · matrix → sRGB, v1's affine.

The polynomials are those of Cheung, Westland, Connah and Ripamonti (2004), "A comparative study
of the characterisation of colour cameras by means of neural networks and polynomial transforms",
in the order of the colour-science package, which made the published matrices.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numba import njit
from numpy.typing import NDArray

from eavatar.capture.video import Image

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


@dataclass(frozen=True)
class Polynomial:
    """NeRSemble v2: a (3, terms) matrix on monomials of linear RGB."""

    matrix: NDArray[np.float64]


@dataclass(frozen=True)
class Affine:
    """NeRSemble v1: encoded RGB in [0, 1] as a row times A[:, :3], plus A[:, 3]; A is (3, 4)."""

    matrix: NDArray[np.float64]


Colour = Polynomial | Affine


class ColourTable:
    """The colour correction of one camera.

    An 8-bit colour is corrected when it is first seen and looked up from then on: a frame has
    some 100,000 colours but millions of pixels, and the result is exact whatever the polynomial.
    The table takes up to 64 MB. Not for several threads at once.
    """

    def __init__(self, colour: Colour) -> None:
        encoded = np.arange(256) / 255
        if isinstance(colour, Affine):
            terms = TERMS[4]
            self._matrix = np.column_stack([colour.matrix[:, :3].T, colour.matrix[:, 3]])
            self._decode = encoded
        else:
            terms = TERMS[colour.matrix.shape[1]]
            self._matrix = np.ascontiguousarray(colour.matrix)
            self._decode = np.where(
                encoded <= 0.04045, encoded / 12.92, ((encoded + 0.055) / 1.055) ** 2.4
            )
        self._is_linear = isinstance(colour, Polynomial)
        self._exponents = exponents(terms)
        self._seen = np.zeros(1 << 24, np.uint32)  # memory comes with the colours

    def apply(self, image: Image) -> Image:
        """Correct an (H, W, 3) sRGB image in OpenCV's BGR order."""
        result = np.empty_like(image, order="C")
        _look_up(
            image, self._seen, self._decode, self._exponents, self._matrix, self._is_linear, result
        )
        return result


def exponents(terms: tuple[str, ...]) -> NDArray[np.int64]:
    """(terms, 3) powers of R, G and B in each monomial."""
    return np.array([[term.count(letter) for letter in "RGB"] for term in terms])


@njit(nogil=True, cache=True)
def _look_up(
    image: Image,
    seen: Any,
    decode: Any,
    exponents: Any,
    matrix: Any,
    is_linear: bool,
    result: Image,
) -> None:
    """Fill ``result`` from ``seen``, (2^24,) packed colours with a flag where they are known.

    The high halves of the three channels come before the low ones in an index: similar colours
    lie near one another, in the processor's cache.
    """
    known = np.uint32(1 << 24)
    for y in range(image.shape[0]):
        for x in range(image.shape[1]):
            blue, green, red = image[y, x, 0], image[y, x, 1], image[y, x, 2]
            high = (np.uint32(red >> 4) << 8) | (np.uint32(green >> 4) << 4) | (blue >> 4)
            low = (np.uint32(red & 15) << 8) | (np.uint32(green & 15) << 4) | (blue & 15)
            index = (high << 12) | low
            colour = seen[index]
            if colour == 0:
                linear = (decode[red], decode[green], decode[blue])
                colour = known
                for channel in range(3):
                    value = _polynomial(linear, exponents, matrix[channel])
                    level = np.uint32(_encode(value, is_linear) * 255 + 0.5)
                    colour |= level << np.uint32(16 - 8 * channel)
                seen[index] = colour
            result[y, x, 0] = colour & 255
            result[y, x, 1] = (colour >> 8) & 255
            result[y, x, 2] = (colour >> 16) & 255


@njit(nogil=True, cache=True)
def _polynomial(linear: Any, exponents: Any, weights: Any) -> float:
    total = 0.0
    for term in range(len(weights)):
        product = weights[term]
        for channel in range(3):
            for _ in range(exponents[term, channel]):
                product *= linear[channel]
        total += product
    return total


@njit(nogil=True, cache=True)
def _encode(value: float, is_linear: bool) -> float:
    """A corrected value as sRGB in [0, 1]."""
    clipped = min(max(value, 0.0), 1.0)
    if not is_linear:
        return clipped
    return 12.92 * clipped if clipped <= 0.0031308 else 1.055 * clipped ** (1 / 2.4) - 0.055
