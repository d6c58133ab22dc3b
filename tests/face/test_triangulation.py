"""Reprojection and triangulation against closed forms, finite differences and outliers."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from eavatar.face.triangulation import geman_mcclure, project_with_jacobian, triangulate


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
    _, jacobian = project_with_jacobian(projections, world)
    for axis in range(3):
        step = 1e-6 * np.eye(3)[axis]
        numeric = (
            project_with_jacobian(projections, world + step)[0]
            - project_with_jacobian(projections, world - step)[0]
        )
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
    points, _ = project_with_jacobian(projections, world)
    confidence = np.random.default_rng(2).uniform(0.2, 1, points.shape[:3])
    found, weights = triangulate(projections, points, confidence, 2.0)
    np.testing.assert_allclose(found, world, atol=1e-9)
    np.testing.assert_allclose(weights, confidence.sum(axis=1), rtol=1e-6)


def test_outliers_are_left_out_and_unseen_points_have_no_weight() -> None:
    projections = arc(8)
    random = np.random.default_rng(3)
    world = random.normal(0, 0.05, (20, 10, 3))
    points, _ = project_with_jacobian(projections, world)
    points += random.normal(0, 0.3, points.shape)
    points[:, 2] += random.uniform(30, 60, points[:, 2].shape)  # one camera is wrong throughout
    confidence = np.ones(points.shape[:3])
    confidence[:, 1:, 0] = 0  # landmark 0 is seen once only
    found, weights = triangulate(projections, points, confidence, 2.0)
    error = np.linalg.norm(found - world, axis=-1)[:, 1:]
    # 0.3 px are 0.5 mm at 1 m and f = 600; seven views average that
    assert np.median(error) < 0.0005 and error.max() < 0.002
    assert (weights[:, 0] == 0).all() and (weights[:, 1:] < 7.5).all()


@settings(max_examples=40)
@given(
    cameras=st.integers(4, 9),
    seed=st.integers(0, 2**32 - 1),
    reach=st.floats(20, 400),
    data=st.data(),
)
def test_a_minority_of_wrong_views_is_outvoted(
    cameras: int, seed: int, reach: float, data: st.DataObject
) -> None:
    """However far off and whichever they are: three views that agree exactly outvote the rest."""
    wrong = data.draw(st.sets(st.integers(0, cameras - 1), max_size=(cameras - 2) // 2))
    projections = arc(cameras)
    random = np.random.default_rng(seed)
    world = random.normal(0, 0.05, (2, 4, 3))
    points, _ = project_with_jacobian(projections, world)
    for camera in wrong:
        angle = random.uniform(0, 2 * np.pi, (2, 4))
        offset = np.stack([np.cos(angle), np.sin(angle)], axis=-1)
        points[:, camera] += reach * random.uniform(1, 3) * offset
    found, weights = triangulate(projections, points, np.ones(points.shape[:3]), 2.0)
    # an outlier of 20 px keeps a weight of 1e-4 and pulls a point by some 20 px · 1e-4 / 3
    np.testing.assert_allclose(found, world, atol=1e-5)
    assert (weights > cameras - len(wrong) - 0.01).all()


@settings(max_examples=40)
@given(
    points=arrays(np.float64, (2, 3, 2, 2), elements=st.floats(-1e4, 1e4)),
    confidence=arrays(np.float64, (2, 3, 2), elements=st.sampled_from([0.0, 0.3, 1.0])),
    views=st.lists(st.integers(0, 3), min_size=3, max_size=3),
)
def test_any_input_gives_finite_points(
    points: np.ndarray, confidence: np.ndarray, views: list[int]
) -> None:
    """Also where two cameras are the same one, rays are parallel or meet behind the cameras."""
    found, weights = triangulate(arc(4)[views], points, confidence, 2.0)
    assert np.isfinite(found).all() and np.isfinite(weights).all()
    seen_once = (confidence > 0).sum(axis=1) < 2
    assert (weights[seen_once] == 0).all() and (found[seen_once] == 0).all()
