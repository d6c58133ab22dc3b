"""The driver networks: folding of conditions, weights."""

from __future__ import annotations

import torch

from eavatar.avatar.drivers import ConditionedMLP, Drivers, DrivingRange, expression_weights
from eavatar.avatar.networks import MLP, encode_position


def test_condition_as_bias_equals_concatenated_copies() -> None:
    torch.manual_seed(0)
    inputs, condition = torch.randn(7, 5), torch.randn(3)
    for sizes in ([8, 6], [8, 6, 2], [8, 6, 6, 6, 2]):
        network = ConditionedMLP(sizes)
        expected = MLP.forward(network, torch.cat([inputs, condition.expand(7, 3)], dim=1))
        torch.testing.assert_close(network(inputs, condition), expected)
        wider = torch.nn.functional.pad(inputs, (0, 3))
        torch.testing.assert_close(network(wider, condition), expected)


def test_weights_by_squared_distance() -> None:
    landmarks = torch.tensor([[0.0, 0, 0], [10, 0, 0]])
    points = torch.tensor([[0.3, 0, 0], [0.4, 0, 0], [0.5, 0, 0], [10, 0.3, 0]])
    # 0.4² = 0.16 lies (0.25 - 0.16) / 0.15 of the way from far to near
    expected = torch.tensor([1.0, 0.6, 0.0, 1.0])
    weights = expression_weights(points, landmarks, near=0.1, far=0.25)
    torch.testing.assert_close(weights, expected, atol=1e-5, rtol=0)


def test_several_conditions_equal_one_after_the_other() -> None:
    torch.manual_seed(0)
    for sizes in ([8, 6], [8, 6, 2], [8, 6, 6, 6, 2]):
        network = ConditionedMLP(sizes).double()
        inputs, conditions = torch.randn(7, 5).double(), torch.randn(4, 3).double()
        inputs.requires_grad_()
        batched = network(inputs, conditions)
        looped = torch.stack([network(inputs, condition) for condition in conditions])
        torch.testing.assert_close(batched, looped)
        wanted = (inputs, *network.parameters())
        pairs = (torch.autograd.grad(result.square().sum(), wanted) for result in (batched, looped))
        for one, other in zip(*pairs, strict=True):
            torch.testing.assert_close(one, other)
        assert network(inputs[:0], conditions).shape == (4, 0, sizes[-1])


def test_condition_is_not_rounded_by_autocast() -> None:
    """What bfloat16 makes of 1 + 2⁻¹⁰ is 1, so a condition that cancels it would be lost."""
    network = ConditionedMLP([2, 1])
    with torch.no_grad():
        network.layers[0].weight.copy_(torch.tensor([[1.0, 1 + 2**-10]]))
        network.layers[0].bias.fill_(-1)
    with torch.autocast("cpu", torch.bfloat16):
        result = network(torch.zeros(1, 1), torch.ones(1))
    assert result.item() == 2**-10


def test_deformation_starts_at_zero_and_can_learn() -> None:
    drivers = Drivers(expression_size=4, feature_size=3, colour_size=3, width=8)
    for network, condition in (
        (drivers.expression_deformation, torch.randn(4)),
        (drivers.pose_deformation, encode_position(torch.randn(6))),
    ):
        displacement = network(encode_position(torch.randn(5, 3)), condition)
        assert not displacement.any()
        displacement.sum().backward()
        assert bool(network.layers[-1].weight.grad.abs().sum() > 0)


def test_what_was_trained_on_passes_and_what_is_beyond_goes_to_the_extremes() -> None:
    torch.manual_seed(0)
    mixing = torch.linalg.qr(torch.randn(4, 4)).Q
    along = 2 * torch.rand(50, 4) - 1
    seen = (along * torch.tensor([4.0, 2.0, 1.0, 0.0])) @ mixing + 3  # one axis never moves
    limits = DrivingRange(4)
    beyond = seen[0] + 100 * mixing[3]
    assert torch.equal(limits(beyond), beyond)  # nothing is known yet
    limits.fit(seen)
    passed = torch.stack([limits(row) for row in seen])
    torch.testing.assert_close(passed, seen, atol=1e-5, rtol=0)  # rounding of single precision
    torch.testing.assert_close(limits(beyond), seen[0], atol=1e-4, rtol=0)  # likewise, of 100
