"""The driver networks: folding of conditions, blending, weights."""

from __future__ import annotations

import torch

from eavatar.drivers import ConditionedMLP, Drivers, blend, expression_weights
from eavatar.networks import MLP


def test_condition_as_bias_equals_concatenated_copies() -> None:
    torch.manual_seed(0)
    inputs, condition = torch.randn(7, 5), torch.randn(3)
    for sizes in ([8, 6], [8, 6, 2], [8, 6, 6, 6, 2]):
        network = ConditionedMLP(sizes)
        expected = MLP.forward(network, torch.cat([inputs, condition.expand(7, 3)], dim=1))
        torch.testing.assert_close(network(inputs, condition), expected)


def test_weights_by_squared_distance() -> None:
    landmarks = torch.tensor([[0.0, 0, 0], [10, 0, 0]])
    points = torch.tensor([[0.3, 0, 0], [0.4, 0, 0], [0.5, 0, 0], [10, 0.3, 0]])
    # 0.4² = 0.16 lies (0.25 - 0.16) / 0.15 of the way from far to near
    expected = torch.tensor([1.0, 0.6, 0.0, 1.0])
    weights = expression_weights(points, landmarks, near=0.1, far=0.25)
    torch.testing.assert_close(weights, expected, atol=1e-5, rtol=0)


def test_blend_equals_the_full_sum() -> None:
    torch.manual_seed(0)
    weights = torch.tensor([0.0, 0.3, 1.0, 0.9])
    inputs = torch.randn(4, 3)
    blended = blend(weights, inputs, lambda x: x * 2, lambda x: x + 1)
    expected = weights[:, None] * inputs * 2 + (1 - weights[:, None]) * (inputs + 1)
    torch.testing.assert_close(blended, expected)


def test_deformation_starts_at_zero_and_can_learn() -> None:
    drivers = Drivers(expression_size=4, feature_size=3, colour_size=3, width=8)
    points, expression, pose = torch.randn(5, 3), torch.randn(4), torch.randn(6)
    for displacement in (
        drivers.raw_expression_deformation(points, expression),
        drivers.raw_pose_deformation(points, pose),
    ):
        assert not displacement.any()
        displacement.sum().backward()
    for network in (drivers.expression_deformation, drivers.pose_deformation):
        assert bool(network.layers[-1].weight.grad.abs().sum() > 0)
