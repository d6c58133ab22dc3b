from __future__ import annotations

import numpy as np
import pytest

from eavatar.capture.colour import TERMS, Affine, ColourTable, Polynomial, exponents

# The terms at (R, G, B) = (2, 3, 5), where every monomial has a value of its own, as computed by
# matrix_augmented_Cheung2004 of colour-science.
SQUARES = [2, 3, 5, 6, 10, 15, 4, 9, 25]
REFERENCE = {
    3: [2, 3, 5],
    4: [2, 3, 5, 1],
    5: [2, 3, 5, 30, 1],
    7: [2, 3, 5, 6, 10, 15, 1],
    8: [2, 3, 5, 6, 10, 15, 30, 1],
    10: [*SQUARES, 1],
    11: [*SQUARES, 30, 1],
    14: [*SQUARES, 30, 8, 27, 125, 1],
    16: [*SQUARES, 30, 12, 45, 50, 8, 27, 125],
    17: [*SQUARES, 30, 12, 45, 50, 8, 27, 125, 1],
    19: [*SQUARES, 30, 12, 45, 50, 20, 18, 75, 8, 27, 125],
    20: [*SQUARES, 30, 12, 45, 50, 20, 18, 75, 8, 27, 125, 1],
    22: [*SQUARES, 30, 12, 45, 50, 20, 18, 75, 8, 27, 125, 60, 90, 150],
}


def test_every_number_of_terms_has_a_reference() -> None:
    assert sorted(TERMS) == sorted(REFERENCE)


@pytest.mark.parametrize("terms", REFERENCE)
def test_the_terms_are_those_of_colour_science(terms: int) -> None:
    values = np.prod(np.array([2, 3, 5]) ** exponents(TERMS[terms]), axis=1)
    assert values.tolist() == REFERENCE[terms]


def noise(shape: tuple[int, ...], seed: int) -> np.ndarray:
    image = np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)
    image[0] = np.arange(shape[1])[:, None]  # the dark end, where the encoding is steepest
    return image


@pytest.mark.parametrize("colour", [Polynomial(np.eye(3)), Affine(np.eye(3, 4))])
def test_the_identity_changes_nothing(colour: Polynomial | Affine) -> None:
    image = noise((40, 30, 3), 0)
    np.testing.assert_array_equal(ColourTable(colour).apply(image), image)


@pytest.mark.parametrize("terms", [3, 11, 22])
def test_a_polynomial_agrees_with_the_formula(terms: int) -> None:
    image, rng = noise((20, 30, 3), terms), np.random.default_rng(terms)
    matrix = rng.normal(0, 0.1, (3, terms))
    matrix[:, :3] += np.eye(3)
    encoded = image[..., ::-1] / 255.0
    linear = np.where(encoded <= 0.04045, encoded / 12.92, ((encoded + 0.055) / 1.055) ** 2.4)
    monomials = np.prod(linear[..., None, :] ** exponents(TERMS[terms]), axis=-1)
    corrected = np.clip(monomials @ matrix.T, 0, 1)
    expected = np.where(
        corrected <= 0.0031308, corrected * 12.92, 1.055 * corrected ** (1 / 2.4) - 0.055
    )
    difference = ColourTable(Polynomial(matrix)).apply(image)[..., ::-1] - expected * 255
    assert np.abs(difference).max() < 0.5 + 1e-6  # the rounding


def test_an_affine_correction_agrees_with_the_formula() -> None:
    """The published one: RGB in [0, 1] as a row vector times the matrix, plus the last column."""
    image = noise((20, 30, 3), 1)
    matrix = np.eye(3, 4) + np.random.default_rng(1).normal(0, 0.1, (3, 4))
    expected = np.clip(image[..., ::-1] / 255 @ matrix[:, :3] + matrix[:, 3], 0, 1)
    difference = ColourTable(Affine(matrix)).apply(image)[..., ::-1] - expected * 255
    assert np.abs(difference).max() < 0.5 + 1e-6


def test_colours_seen_before_come_out_the_same() -> None:
    """Also in an image that is a window of a larger one."""
    image, table = noise((50, 40, 3), 2), ColourTable(Affine(np.eye(3, 4)[[1, 2, 0]]))
    first = table.apply(image)
    np.testing.assert_array_equal(table.apply(image[10:30, 5:20]), first[10:30, 5:20])
