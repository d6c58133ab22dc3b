from __future__ import annotations

import numpy as np
import pytest

from eavatar.capture.colour import TERMS, Polynomial, correct_colour, polynomial

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
    linear = np.array([[2.0, 3.0, 5.0]], dtype=np.float32)
    values = [
        polynomial(linear, np.eye(terms)[[index] * 3])[0, 0]  # the matrix that selects one term
        for index in range(terms)
    ]
    assert values == REFERENCE[terms]


def test_the_identity_changes_nothing() -> None:
    image = np.random.default_rng(0).integers(0, 256, (40, 30, 3), dtype=np.uint8)
    image[0] = np.arange(30)[:, None]  # the dark end, where the encoding is steepest
    np.testing.assert_array_equal(correct_colour(image, Polynomial(np.eye(3))), image)


@pytest.mark.parametrize("terms", [3, 11, 22])
def test_correction_agrees_with_the_formula(terms: int) -> None:
    rng = np.random.default_rng(terms)
    image = rng.integers(0, 256, (20, 30, 3), dtype=np.uint8)
    matrix = rng.normal(0, 0.1, (3, terms))
    matrix[:, :3] += np.eye(3)
    encoded = image[..., ::-1] / 255.0
    linear = np.where(encoded <= 0.04045, encoded / 12.92, ((encoded + 0.055) / 1.055) ** 2.4)
    corrected = np.clip(polynomial(linear, matrix), 0, 1)
    expected = np.where(
        corrected <= 0.0031308, corrected * 12.92, 1.055 * corrected ** (1 / 2.4) - 0.055
    )
    difference = correct_colour(image, Polynomial(matrix))[..., ::-1] - expected * 255
    assert np.abs(difference).max() < 0.6  # half a level for the rounding, and the table's step
