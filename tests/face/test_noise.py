"""The noise model on residuals whose noise is known."""

from __future__ import annotations

import numpy as np
import pytest

from eavatar.face.noise import Residuals, calibrate_noise, collect_residuals


def residuals(random: np.random.Generator, count: int) -> tuple[Residuals, np.ndarray]:
    """Gaussian residuals of eight cameras, and the deviation of each."""
    landmark, camera = random.integers(0, 68, count), random.integers(0, 8, count)
    confidence = random.uniform(0, 1, count)
    deviation = 1.5 * np.where(confidence < 0.5, 3.0, 1.0)
    deviation = deviation * np.where(landmark < 17, 2.0, 1.0) * np.where(camera == 5, 2.5, 1.0)
    distance = np.linalg.norm(random.normal(0, deviation, (2, count)), axis=0)
    return Residuals(distance, confidence, landmark, camera), deviation


def test_noise_of_confidence_landmark_and_camera_is_found() -> None:
    random = np.random.default_rng(0)
    found, deviation = residuals(random, 60_000)
    model = calibrate_noise([found], expected=1.0, cameras=8)
    predicted = (
        model.typical
        * model.by_confidence[np.searchsorted(model.edges, found.confidence, side="right")]
        * model.by_landmark[found.landmark]
        * model.by_camera[found.camera]
    )
    # a landmark has 900 detections, whose median is good to 4 %; 100 more count for the prior;
    # the bin that holds the step at 0.5 is a mixture
    apart = np.abs(found.confidence - 0.5) > 0.1
    np.testing.assert_allclose((predicted / deviation)[apart], 1.0, atol=0.2)


def test_few_residuals_leave_the_expected_noise() -> None:
    found, _ = residuals(np.random.default_rng(1), 3)
    model = calibrate_noise([found], expected=1.2, cameras=8)
    noise = model(np.full((2, 8, 68), 0.7), np.arange(8))
    assert noise.shape == (2, 8, 68)
    # three of 103 detections speak
    np.testing.assert_allclose(noise, 1.2, rtol=0.2)
    empty = Residuals(*(array[:0] for array in vars(found).values()))
    model = calibrate_noise([empty], expected=1.2, cameras=8)
    np.testing.assert_allclose(model(np.ones((1, 8, 68)), np.arange(8)), 1.2)


def test_exact_detections_keep_a_least_noise() -> None:
    found, _ = residuals(np.random.default_rng(2), 5000)
    exact = Residuals(0 * found.distance, found.confidence, found.landmark, found.camera)
    model = calibrate_noise([exact], expected=1.0, cameras=8)
    noise = model(np.ones((1, 8, 68)), np.arange(8))
    assert np.isfinite(1 / noise**2).all()
    assert model.typical == pytest.approx(0.1)


def test_only_views_that_three_bear_out_are_collected() -> None:
    distance = np.full((1, 4, 3), 2.0)
    confidence = np.ones((1, 4, 3))
    confidence[0, :2, 0] = 0  # landmark 0 is seen by two cameras
    distance[0, 3, 1] = 50.0  # an outlier
    found = collect_residuals(distance, confidence, np.array([4, 5, 6, 7]), gate=10.0)
    assert found.landmark.tolist() == [1, 2, 1, 2, 1, 2, 2]
    assert found.camera.tolist() == [4, 4, 5, 5, 6, 6, 7]
    # three views: 6 residuals less 3 unknowns; four views: 8 less 3
    expected = np.where(found.landmark == 1, 2 * np.sqrt(2), 2 * np.sqrt(8 / 5))
    np.testing.assert_allclose(found.distance, expected)
