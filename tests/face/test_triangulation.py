"""Reprojection and triangulation against closed forms, finite differences and outliers."""

from __future__ import annotations

import numpy as np

from eavatar.face.triangulation import geman_mcclure, reproject, triangulate


def arc(cameras: int) -> np.ndarray:
    """(C, 3, 4) projections of cameras on an arc, 1 m from the origin, 256-pixel images."""
    projections = []
    for angle in np.linspace(-1, 1, cameras):
        turn = np.array(
            [[np.cos(angle), 0, -np.sin(angle)], [0, 1, 0], [np.sin(angle), 0, np.cos(angle)]]
        )
        flip = np.diag([1.0, -1.0, -1.0])
        pose = np.column_stack([flip @ turn, [0, 0, 1]])
        projections.append(np.array([[600, 0, 128], [0, 600, 128], [0, 0, 1]]) @ pose)
    return np.stack(projections)


def test_derivative_of_the_projection() -> None:
    projections = arc(5)
    world = np.random.default_rng(0).normal(0, 0.05, (2, 7, 3))
    _, jacobian = reproject(projections, world)
    for axis in range(3):
        step = 1e-6 * np.eye(3)[axis]
        numeric = reproject(projections, world + step)[0] - reproject(projections, world - step)[0]
        # central differences of values of about 100 px: truncation and rounding below 1e-5
        np.testing.assert_allclose(jacobian[..., axis], numeric / 2e-6, rtol=1e-5, atol=1e-4)


def test_weight_is_the_derivative_of_the_robust_cost() -> None:
    squared = np.linspace(0, 50, 11)
    cost, weight = geman_mcclure(squared, 3.0)
    numeric = (geman_mcclure(squared + 1e-6, 3.0)[0] - geman_mcclure(squared - 1e-6, 3.0)[0]) / 2e-6
    np.testing.assert_allclose(weight, numeric, atol=1e-7)
    assert cost.max() < 9.0


def test_exact_views_give_the_exact_point() -> None:
    projections = arc(4)
    world = np.random.default_rng(1).normal(0, 0.05, (3, 10, 3))
    points, _ = reproject(projections, world)
    confidence = np.random.default_rng(2).uniform(0.2, 1, points.shape[:3])
    found, weights = triangulate(projections, points, confidence, 2.0)
    np.testing.assert_allclose(found, world, atol=1e-9)
    np.testing.assert_allclose(weights, confidence.sum(axis=1), rtol=1e-6)


def test_outliers_are_left_out_and_unseen_points_have_no_weight() -> None:
    projections = arc(8)
    random = np.random.default_rng(3)
    world = random.normal(0, 0.05, (20, 10, 3))
    points, _ = reproject(projections, world)
    points += random.normal(0, 0.3, points.shape)
    points[:, 2] += random.uniform(30, 60, points[:, 2].shape)  # one camera is wrong throughout
    confidence = np.ones(points.shape[:3])
    confidence[:, 1:, 0] = 0  # landmark 0 is seen once only
    found, weights = triangulate(projections, points, confidence, 2.0)
    error = np.linalg.norm(found - world, axis=-1)[:, 1:]
    # 0.3 px are 0.5 mm at 1 m and f = 600; seven views average that
    assert np.median(error) < 0.0005 and error.max() < 0.002
    assert (weights[:, 0] == 0).all() and (weights[:, 1:] < 7.5).all()
