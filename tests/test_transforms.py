"""Rotations against scipy, the closed-form similarity against known transforms."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.spatial.transform import Rotation

from eavatar.transforms import (
    Similarity,
    axis_angle_to_matrix,
    axis_angle_to_quaternion,
    fit_similarity,
    left_jacobian,
    multiply_quaternions,
    quaternion_to_matrix,
    rotate,
)

RANDOM = np.random.default_rng(0)
# angles from zero over both sides of the series' switch at 1e-4 rad to nearly half a turn
ANGLES = np.array([0.0, 1e-9, 5e-5, 2e-4, 0.3, 1.5, 3.1])
AXES = RANDOM.normal(size=(len(ANGLES), 3))
ROTATION_VECTORS = ANGLES[:, None] * AXES / np.linalg.norm(AXES, axis=1, keepdims=True)


def random_similarity(scale: float = 1.7) -> Similarity:
    rotation = Rotation.random(rng=1).as_matrix()
    return Similarity(scale, rotation, np.array([0.3, -2.0, 1.1]))


def test_axis_angle_agrees_with_scipy() -> None:
    expected = Rotation.from_rotvec(ROTATION_VECTORS)
    vectors = torch.tensor(ROTATION_VECTORS)
    np.testing.assert_allclose(axis_angle_to_matrix(vectors), expected.as_matrix(), atol=1e-12)
    quaternions = axis_angle_to_quaternion(vectors)
    np.testing.assert_allclose(quaternions, expected.as_quat(scalar_first=True), atol=1e-12)
    np.testing.assert_allclose(
        quaternion_to_matrix(3 * quaternions), expected.as_matrix(), atol=1e-12
    )


def test_float32_is_as_good_as_its_rounding() -> None:
    vectors = torch.tensor(ROTATION_VECTORS, dtype=torch.float32)
    expected = Rotation.from_rotvec(ROTATION_VECTORS).as_matrix()
    np.testing.assert_allclose(axis_angle_to_matrix(vectors), expected, atol=1e-6)
    via = quaternion_to_matrix(axis_angle_to_quaternion(vectors))
    np.testing.assert_allclose(via, expected, atol=1e-6)


@pytest.mark.parametrize("function", [axis_angle_to_matrix, axis_angle_to_quaternion])
def test_gradients_are_right_and_finite_at_zero(function: object) -> None:
    vectors = torch.tensor([[0.0, 0.0, 0.0], [0.2, -0.4, 1.0]], dtype=torch.float64)
    assert torch.autograd.gradcheck(function, vectors.requires_grad_())  # type: ignore[arg-type]


def test_product_of_quaternions_is_the_product_of_matrices() -> None:
    first, second = torch.tensor(RANDOM.normal(size=(2, 5, 4)))
    product = quaternion_to_matrix(multiply_quaternions(first, second))
    expected = quaternion_to_matrix(first) @ quaternion_to_matrix(second)
    np.testing.assert_allclose(product, expected, atol=1e-12)


def test_similarity_inverse_composition_and_matrix() -> None:
    similarity, points = random_similarity(), RANDOM.normal(size=(4, 6, 3))
    np.testing.assert_allclose(similarity.inverse().apply(similarity.apply(points)), points)
    other = Similarity(0.4, Rotation.random(rng=2).as_matrix(), np.array([1.0, 2.0, 3.0]))
    both = other.compose(similarity)
    np.testing.assert_allclose(both.apply(points), other.apply(similarity.apply(points)))
    np.testing.assert_allclose(both.matrix, other.matrix @ similarity.matrix)


def test_known_similarity_is_recovered() -> None:
    similarity, points = random_similarity(), RANDOM.normal(size=(20, 3))
    target = similarity.apply(points)
    np.testing.assert_allclose(fit_similarity(points, target).matrix, similarity.matrix)
    rigid = fit_similarity(points, random_similarity(1.0).apply(points), with_scale=False)
    np.testing.assert_allclose(rigid.matrix, random_similarity(1.0).matrix, atol=1e-12)
    # a point without weight may lie anywhere
    target[3] += 100
    weights = np.ones(20)
    weights[3] = 0
    np.testing.assert_allclose(fit_similarity(points, target, weights).matrix, similarity.matrix)


def test_mirrored_and_flat_points_give_a_proper_rotation() -> None:
    points = RANDOM.normal(size=(20, 3))
    mirrored = fit_similarity(points, points * [-1, 1, 1])
    assert np.linalg.det(mirrored.rotation) == pytest.approx(1.0)
    flat = points * [1, 1, 0]
    similarity = random_similarity()
    np.testing.assert_allclose(
        fit_similarity(flat, similarity.apply(flat)).matrix, similarity.matrix, atol=1e-12
    )


def test_fit_is_the_least_squares_optimum() -> None:
    """Any small change of the noisy fit's rotation, scale or translation makes it worse."""
    points = RANDOM.normal(size=(30, 3))
    weights = RANDOM.uniform(0.1, 1, 30)
    target = random_similarity().apply(points) + RANDOM.normal(0, 0.1, (30, 3))
    best = fit_similarity(points, target, weights)

    def cost(similarity: Similarity) -> float:
        return float(weights @ ((similarity.apply(points) - target) ** 2).sum(axis=1))

    for axis in np.concatenate([np.eye(3), -np.eye(3)]) * 1e-3:
        turned = Rotation.from_rotvec(axis).as_matrix() @ best.rotation
        assert cost(Similarity(best.scale, turned, best.translation)) > cost(best)
        assert cost(Similarity(best.scale, best.rotation, best.translation + axis)) > cost(best)
        assert cost(Similarity(best.scale * (1 + axis.sum()), best.rotation, best.translation)) > (
            cost(best)
        )


def test_left_jacobian_against_finite_differences() -> None:
    vectors = np.array([[0.0, 0, 0], [1e-6, 0, 0], [0.3, -0.5, 0.2], [1.0, 2.0, -0.5]])
    step = np.array([0.4, 0.1, -0.3]) * 1e-6
    there = Rotation.from_rotvec(vectors + step) * Rotation.from_rotvec(vectors).inv()
    np.testing.assert_allclose(left_jacobian(vectors) @ step, there.as_rotvec(), atol=1e-11)


def test_rotate_turns_points_of_every_batch() -> None:
    matrices = torch.tensor(Rotation.random(6, rng=2).as_matrix()).view(2, 3, 3, 3)
    points = torch.tensor(RANDOM.normal(size=(2, 1, 5, 3)))
    torch.testing.assert_close(rotate(points, matrices), points @ matrices.mT)
    torch.testing.assert_close(rotate(points[0, 0], matrices[0]), points[0, 0] @ matrices[0].mT)
