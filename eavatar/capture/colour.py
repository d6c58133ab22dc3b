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

from eavatar.arrays import Float64, Image, Int64

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


SEARCH_STARTS = 4096  # quantisation steps of a value, each with a start of the search for its level


@dataclass(frozen=True)
class Polynomial:
    """NeRSemble v2: a (3, terms) matrix on monomials of linear RGB."""

    matrix: Float64


@dataclass(frozen=True)
class Affine:
    """NeRSemble v1: encoded RGB in [0, 1] as a row times A[:, :3], plus A[:, 3]; A is (3, 4)."""

    matrix: Float64


Colour = Polynomial | Affine


class ColourTable:
    """The colour correction of one camera.

    An 8-bit colour is corrected at its first occurrence and cached: a frame has some 100,000
    colours but millions of pixels, and the result is exact whatever the polynomial. The table takes
    up to 64 MB. Not thread-safe.
    """

    def __init__(self, colour: Colour) -> None:
        levels, edges = np.arange(256) / 255, np.arange(-0.5, 256) / 255
        if isinstance(colour, Affine):
            terms = TERMS[4]
            self._matrix = np.column_stack([colour.matrix[:, :3].T, colour.matrix[:, 3]])
            self._decoded, self._edges = levels, edges
        else:
            terms = TERMS[colour.matrix.shape[1]]
            self._matrix = np.ascontiguousarray(colour.matrix)
            self._decoded, self._edges = _linear_light(levels), _linear_light(edges)
        self._edges[[0, -1]] = -np.inf, np.inf  # values beyond black and white are clipped
        self._starts = np.searchsorted(self._edges, np.arange(SEARCH_STARTS) / SEARCH_STARTS) - 1
        self._exponents = exponents(terms)
        self._seen = np.zeros(1 << 24, np.uint32)  # pages are allocated as colours occur

    def apply(self, image: Image) -> Image:
        """Correct an (H, W, 3) sRGB image in OpenCV's BGR order."""
        result = np.empty_like(image, order="C")
        self.correct(image, result)
        return result

    def correct(self, image: Image, target: Image) -> None:
        """The same, written to ``target`` (H, W, 3)."""
        formula = (self._decoded, self._exponents, self._matrix, self._edges, self._starts)
        _look_up(image, self._seen, _keys(), *formula, target)


def _linear_light(encoded: Float64) -> Float64:
    """sRGB values, 0 black and 1 white, to linear light."""
    power = ((np.maximum(encoded, 0) + 0.055) / 1.055) ** 2.4
    return np.where(encoded <= 0.04045, encoded / 12.92, power)


def exponents(terms: tuple[str, ...]) -> Int64:
    """(terms, 3) powers of R, G and B in each monomial."""
    return np.array([[term.count(letter) for letter in "RGB"] for term in terms])


def _keys() -> NDArray[np.uint32]:
    """(3, 256) what an 8-bit B, G or R adds to a colour's index in the table.

    The high halves of the three channels come before the low ones: similar colours lie near one
    another, in the processor's cache.
    """
    level = np.arange(256)
    keys = [(level >> 4 << shift + 12) | ((level & 15) << shift) for shift in (8, 4, 0)]
    return np.array(keys, np.uint32)


@njit(nogil=True, cache=True)
def _look_up(
    image: Image,
    seen: Any,
    keys: Any,
    decoded: Any,
    exponents: Any,
    matrix: Any,
    edges: Any,
    starts: Any,
    result: Image,
) -> None:
    """Fill ``result`` from ``seen``: (2^24,) packed colours, 0 where one is not known yet."""
    blues, greens, reds = keys[0], keys[1], keys[2]
    for y in range(image.shape[0]):
        source, target = image[y], result[y]
        for x in range(len(source)):
            blue, green, red = source[x, 0], source[x, 1], source[x, 2]
            index = blues[blue] | greens[green] | reds[red]
            colour = seen[index]
            if colour == 0:
                rgb = (decoded[red], decoded[green], decoded[blue])
                colour = _correct(rgb, exponents, matrix, edges, starts)
                seen[index] = colour
            target[x, 0] = colour & 255
            target[x, 1] = (colour >> 8) & 255
            target[x, 2] = (colour >> 16) & 255


@njit(nogil=True, cache=True)
def _correct(rgb: Any, exponents: Any, matrix: Any, edges: Any, starts: Any) -> Any:
    """The corrected colour as R, G, B from high to low bytes, with a bit that marks it known.

    A value's level is the one between whose edges it lies: (257,) edges, searched from the level
    at which a table for equal steps of the value starts.
    """
    colour = np.uint32(1 << 24)
    for channel in range(3):
        value = 0.0
        for term in range(len(exponents)):
            product = matrix[channel, term]
            for factor in range(3):
                for _ in range(exponents[term, factor]):
                    product *= rgb[factor]
            value += product
        level = starts[int(min(max(value, 0.0), 1.0) * (len(starts) - 1))]
        while value >= edges[level + 1]:
            level += 1
        while value < edges[level]:
            level -= 1
        colour |= np.uint32(level) << np.uint32(16 - 8 * channel)
    return np.uint32(colour)
