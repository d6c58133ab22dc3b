"""Each of the four values of the confidence can doubt alone."""

from __future__ import annotations

import numpy as np
import pytest

from eavatar.prior.confidence import COVERAGE, MARGIN, PROTRUSION, RESIDUAL, confidence
from eavatar.prior.registration import Candidate, Target
from eavatar.prior.silhouettes import Silhouettes
from eavatar.transforms import Similarity

NO_MASKS = Silhouettes((), 0.0)
UNMOVED = Similarity(1.0, np.eye(3), np.zeros(3))
FACE = np.random.default_rng(0).uniform(0, 10, (100, 3))
TARGET = Target(FACE, np.zeros((100, 3)), np.ones(100, bool), np.ones(100, bool), NO_MASKS)


def of(*residuals: float, covered: int = 100) -> float:
    found = [Candidate(UNMOVED, residual) for residual in residuals]
    return confidence(found, FACE[:covered], TARGET)


def test_a_good_fit_that_is_alone_is_certain() -> None:
    assert of(0.02) == of(0.02, 0.05) == 1


def test_a_large_residual_doubts() -> None:
    assert of(sum(RESIDUAL) / 2) == pytest.approx(0.5)
    assert of(RESIDUAL[0] + 0.01) == 0


def test_a_second_orientation_that_fits_as_well_doubts() -> None:
    assert of(0.04, 0.04) == 0
    assert of(0.04, 0.04 * (1 + sum(MARGIN) / 2), 0.1) == pytest.approx(0.5)


def test_a_piece_of_a_face_doubts() -> None:
    # the points are far apart: each is covered by itself alone
    assert of(0.02, covered=35) == pytest.approx((0.35 - COVERAGE[0]) / np.ptp(COVERAGE), abs=0.01)


def test_what_sticks_out_of_the_masks_doubts() -> None:
    found = [Candidate(UNMOVED, 0.02, protrusion=sum(PROTRUSION) / 2)]
    assert confidence(found, FACE, TARGET) == pytest.approx(0.5)


def test_the_margin_counts_the_distance_from_the_outlines() -> None:
    # the other fits the face as well, but not the masks
    found = [Candidate(UNMOVED, 0.03), Candidate(UNMOVED, 0.03, gap=0.03)]
    assert confidence(found, FACE, TARGET) == 1
