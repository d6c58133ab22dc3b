"""Neutral set and dynamic generator (Eq. 1–8) against per-point loops and closed forms."""

from __future__ import annotations

import math

import pytest
import torch

from eavatar.avatar.drivers import Drivers, expression_weights
from eavatar.avatar.gaussians import (
    Arrangement,
    Generator,
    NeutralGaussians,
    merge_points,
    mouth_interior,
)
from eavatar.avatar.networks import MLP, encode_position
from eavatar.avatar.torso import Torso
from eavatar.landmark_indices import MOUTH
from eavatar.settings import ControlSettings
from eavatar.transforms import axis_angle_to_matrix, quaternion_to_matrix

EXPRESSIONS, FEATURES, COLOURS = 3, 5, 4
NEAR, FAR = 0.1, 0.25
CONTROL = ControlSettings(
    enabled=False,
    threshold=0.3,
    from_neutral=False,
    radius=0.05,
    sigma=0.025,
    neighbours=32,
    mode="blend",
)


@pytest.fixture
def generator() -> Generator:
    torch.manual_seed(0)
    drivers = Drivers(EXPRESSIONS, FEATURES, COLOURS, 8)
    # As after training: new drivers move nothing, and their earlier layers get no gradient yet.
    for network in (drivers.expression_deformation, drivers.pose_deformation):
        torch.nn.init.normal_(network.layers[-1].weight, std=0.3)
    return Generator(
        drivers, Torso(), EXPRESSIONS, FEATURES, 8, deform_scale=0.3, attribute_scale=0.2
    )


@pytest.fixture
def neutral() -> NeutralGaussians:
    torch.manual_seed(1)
    points = 2 * torch.rand(60, 3) - 1
    result = NeutralGaussians(points, torch.randn(60, FEATURES), torch.randn(60, 3) - 3, 0.3)
    torch.nn.init.normal_(result.rotations)
    return result


LANDMARKS = 0.2 * torch.randn(68, 3, generator=torch.Generator().manual_seed(2))
EXPRESSION = torch.tensor([0.5, -1.0, 2.0])
POSE = torch.tensor([0.2, -0.3, 0.1, 0.01, 0.02, -0.03])
SCALE = 0.1


def arrange(neutral: NeutralGaussians, control: ControlSettings = CONTROL) -> Arrangement:
    return Arrangement.of(neutral.anchors, LANDMARKS, NEAR, FAR, control)


def slow_point(generator: Generator, neutral: NeutralGaussians, i: int) -> dict[str, torch.Tensor]:
    """Eq. 2–7 for one Gaussian, with every network evaluated and inputs concatenated."""
    nets = generator.drivers
    squared = (LANDMARKS - neutral.positions[i]).square().sum(dim=1).min()
    weight = ((FAR - squared) / (FAR - NEAR)).clamp(0, 1)
    feature, point = torch.tanh(neutral.features[i]), encode_position(neutral.positions[i])
    pose = encode_position(POSE)

    def both(by_expression, by_pose, values, last):
        first = last(MLP.forward(by_expression, torch.cat([values, EXPRESSION])))
        second = last(MLP.forward(by_pose, torch.cat([values, pose])))
        return weight * first + (1 - weight) * second

    colour = both(nets.expression_colour, nets.pose_colour, feature, lambda x: x)
    shift = both(nets.expression_deformation, nets.pose_deformation, point, torch.tanh)
    residual = 0.2 * both(
        generator.expression_attributes, generator.pose_attributes, feature, lambda x: x
    )
    rotation = axis_angle_to_matrix(POSE[:3])
    axes = rotation @ quaternion_to_matrix(neutral.rotations[i] + residual[3:7])
    raw = torch.tanh(MLP.forward(nets.expression_deformation, torch.cat([point, EXPRESSION])))
    return {
        "means": SCALE * rotation @ (neutral.positions[i] + 0.3 * shift) + POSE[3:],
        "axes": axes,
        "scales": SCALE * torch.exp(neutral.scales[i] + residual[:3]),
        "opacities": torch.sigmoid(neutral.opacities[i] + residual[7:])[0],
        "features": torch.sigmoid(colour),
        "displacement": raw.norm() if weight > 0 else torch.tensor(0.0),
    }


def test_generator_equals_slow_loop(generator, neutral):
    generated = generator(neutral, arrange(neutral), CONTROL, EXPRESSION, POSE, SCALE)
    slow = [slow_point(generator, neutral, i) for i in range(len(neutral))]
    # Unnormalised quaternions: Q0 + residual is normalised inside, so only the axes are compared.
    normalised = torch.nn.functional.normalize(generated.gaussians.quaternions, dim=-1)
    fast = {
        "means": generated.gaussians.means,
        "axes": quaternion_to_matrix(normalised),
        "scales": generated.gaussians.scales,
        "opacities": generated.gaussians.opacities,
        "features": generated.gaussians.features,
        "displacement": generated.displacements,
    }
    for name, value in fast.items():
        expected = torch.stack([point[name] for point in slow])
        # float32, sums of at most 60 terms in another order
        torch.testing.assert_close(value, expected, rtol=1e-4, atol=2e-5, msg=name)


def test_drivers_are_used_in_shares(neutral):
    """The case must hold points of all three kinds, or the comparison above proves little."""
    weights = expression_weights(neutral.anchors, LANDMARKS, NEAR, FAR)
    assert (weights == 0).any() and (weights == 1).any() and ((weights > 0) & (weights < 1)).any()


def test_every_parameter_gets_a_gradient(generator, neutral):
    generator.torso.step.data = torch.tensor([0.0, 1.0])
    generated = generator(neutral, arrange(neutral), CONTROL, EXPRESSION, POSE, SCALE).gaussians
    values = (
        generated.means, generated.quaternions, generated.scales, generated.opacities,
        generated.features,
    )  # fmt: skip
    torch.manual_seed(3)
    sum((value * torch.randn_like(value)).sum() for value in values).backward()
    for name, parameter in [*neutral.named_parameters(), *generator.named_parameters()]:
        assert parameter.grad is not None and (parameter.grad != 0).any(), name


def test_from_the_neutral_expression_only_what_an_expression_moves_counts(generator, neutral):
    control = CONTROL.model_copy(update={"from_neutral": True})
    arrangement = arrange(neutral, control)
    resting = generator(neutral, arrangement, CONTROL, 0 * EXPRESSION, POSE, SCALE)
    still = generator(neutral, arrangement, control, 0 * EXPRESSION, POSE, SCALE)
    assert resting.displacements.max() > 0  # at the neutral expression
    assert not still.displacements.any()
    moved = generator(neutral, arrangement, control, EXPRESSION, POSE, SCALE)
    anyway = generator(neutral, arrangement, CONTROL, EXPRESSION, POSE, SCALE)
    assert (moved.displacements > 0).any()
    assert torch.equal(moved.gaussians.means, anyway.gaussians.means)  # it moves nothing itself


def test_controls_move_their_neighbours_only(generator, neutral):
    off = arrange(neutral)
    raw = generator(neutral, off, CONTROL, EXPRESSION, POSE, SCALE)
    threshold = raw.displacements[raw.displacements > 0].median().item()
    control = CONTROL.model_copy(
        update={"enabled": True, "threshold": threshold, "radius": 0.3, "sigma": 0.15}
    )
    led = generator(neutral, arrange(neutral, control), control, EXPRESSION, POSE, SCALE)
    assert torch.equal(led.displacements, raw.displacements)
    assert torch.equal(led.controls, raw.displacements > threshold)
    moved = (led.gaussians.means != raw.gaussians.means).any(dim=1)
    near = torch.cdist(neutral.positions, neutral.positions[led.controls]).min(dim=1).values < 0.3
    assert moved.any() and not (moved & led.controls).any() and not (moved & ~near).any()


def test_rigid_transform_moves_points_and_covariances():
    """Eq. 7: a sample of each Gaussian moved by hand has the transformed mean and covariance."""
    torch.manual_seed(0)
    points, quaternions, scales = torch.randn(7, 3), torch.randn(7, 4), torch.rand(7, 3)
    means, turned = Torso().to_world(points, quaternions, torch.ones(7), POSE, SCALE)
    rotation = SCALE * axis_angle_to_matrix(POSE[:3])

    def covariance(quaternions: torch.Tensor, scales: torch.Tensor) -> torch.Tensor:
        factor = quaternion_to_matrix(quaternions) * scales[:, None, :]
        return factor @ factor.transpose(1, 2)

    expected = rotation @ covariance(quaternions, scales) @ rotation.T
    torch.testing.assert_close(covariance(turned, SCALE * scales), expected, rtol=1e-4, atol=1e-7)
    torch.testing.assert_close(means, points @ rotation.T + POSE[3:])


def test_surface_start():
    """Saturated features stay finite, duplicates go, sizes are the distances of a grid."""
    axis = torch.arange(6) * 0.1
    grid = torch.stack(torch.meshgrid(axis, axis, indexing="ij"), dim=-1).reshape(-1, 2)
    vertices = torch.cat([grid, torch.zeros(36, 1)], dim=1)
    doubled = torch.cat([vertices, vertices[:5] + 1e-6])
    features = torch.cat([torch.ones(36, 2), -torch.ones(5, 2)])
    features[1] = torch.tensor([0.5, -0.25])
    mouth = torch.tensor([[5.0, 5, 5]])
    neutral = NeutralGaussians.from_surface(doubled, features, mouth, opacity=0.3)
    assert len(neutral) == 37
    assert torch.equal(neutral.positions[:36], vertices)
    assert all(bool(p.isfinite().all()) for p in neutral.parameters())
    torch.testing.assert_close(torch.tanh(neutral.features[1]), features[1])
    # tanh(atanh(1 - 1e-4))
    torch.testing.assert_close(torch.tanh(neutral.features[0]), torch.full((2,), 0.9999))
    assert torch.equal(neutral.features[36], torch.zeros(2))
    # an inner grid point has its nearest neighbours at 0.1; a corner at 0.1, 0.1 and 0.1·√2
    assert neutral.scales[7, 0].item() == pytest.approx(math.log(0.1), abs=1e-4)
    corner = math.log(math.sqrt((0.01 + 0.01 + 0.02) / 3))
    assert neutral.scales[0, 0].item() == pytest.approx(corner, abs=1e-4)
    assert torch.sigmoid(neutral.opacities).mean().item() == pytest.approx(0.3, abs=1e-6)


def test_merged_points_are_few_and_even():
    """Crowded vertices of a plane: as many as asked for, means of what they replace."""
    torch.manual_seed(0)
    crowd = torch.rand(1, 3) + 1e-3 * torch.rand(3000, 3)
    points = torch.cat([crowd, torch.rand(3000, 3) * torch.tensor([1.0, 1.0, 0.0])])
    merged, features = merge_points(points, 2 * points, 500)
    assert 450 < len(merged) <= 500
    torch.testing.assert_close(features, 2 * merged)
    # The crowd is one cell, or eight where it lies on a corner; of the plane most are left.
    assert (torch.cdist(merged, crowd.mean(0, keepdim=True)) < 2e-3).sum() <= 8
    spacing = torch.cdist(merged, merged).fill_diagonal_(torch.inf).amin(dim=1)
    assert spacing.median() > 0.5 * 500**-0.5
    few, same = merge_points(points[:7], points[:7], 8)
    assert torch.equal(few, points[:7]) and torch.equal(same, points[:7])


def test_mouth_points_lie_on_a_sheet_behind_the_lips():
    torch.manual_seed(0)
    landmarks = torch.rand(68, 3)
    points = mouth_interior(landmarks, 500)
    mouth = landmarks[MOUTH]
    reach = 0.8 * (mouth - mouth.mean(dim=0)).abs().amax(dim=0)
    offsets = (points - mouth.mean(dim=0)).abs()
    assert points.shape == (500, 3) and torch.all(points[:, 2] == mouth[:, 2].min())
    assert torch.all(offsets[:, :2] <= reach[:2])
    assert torch.all(offsets[:, :2].amax(dim=0) > 0.9 * reach[:2])  # they fill the box
