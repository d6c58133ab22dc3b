"""The torso stays at rest: two rigid motions and their blend."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from scipy.spatial.transform import Rotation

from eavatar.avatar.torso import Torso
from eavatar.landmark_indices import CHIN
from eavatar.settings import TorsoSettings
from eavatar.transforms import axis_angle_to_matrix, quaternion_to_matrix

SCALE = 0.1
POSES = torch.tensor([[0.1, 0.5, -0.2, 0.02, 0.01, 0.9], [-0.2, -0.4, 0.1, -0.01, 0.0, 1.0]])


def make_torso(enabled: bool = True) -> Torso:
    torso, landmarks = Torso(), torch.zeros(68, 3)
    landmarks[CHIN, 1] = -0.8
    settings = TorsoSettings(enabled=enabled, start=0.2, end=0.7)
    torso.place(settings, landmarks, POSES, SCALE)
    return torso


def to_world(points: torch.Tensor, pose: torch.Tensor) -> torch.Tensor:
    return SCALE * points @ axis_angle_to_matrix(pose[:3]).T + pose[3:]


def test_share_is_a_smooth_step_below_the_chin():
    heights = torch.tensor([0.5, -1.0, -1.25, -1.5, -3.0])
    points = torch.stack([torch.ones(5), heights, torch.ones(5)], dim=1)
    torch.testing.assert_close(
        make_torso().head_weight(points), torch.tensor([1.0, 1.0, 0.5, 0.0, 0.0])
    )
    assert (make_torso(enabled=False).head_weight(points) == 1).all()


def test_rest_pose_is_the_mean():
    torso = make_torso()
    mean = Rotation.from_rotvec(POSES[:, :3].numpy()).mean().as_rotvec()
    np.testing.assert_allclose(torso.rest_pose[:3].numpy(), mean, atol=1e-6)
    torch.testing.assert_close(torso.rest_pose[3:], POSES[:, 3:].mean(dim=0))


def test_torso_ends_at_its_place_in_the_world():
    torch.manual_seed(0)
    torso, points = make_torso(), torch.randn(7, 3)
    shares = torch.tensor([1.0, 1, 0, 0, 0.25, 0.5, 0.75])
    held = torso.hold_points(points.expand(2, -1, -1), shares, POSES)
    for pose, moved in zip(POSES, held, strict=True):
        head, rest = to_world(points, pose), to_world(points, torso.rest_pose)
        expected = shares[:, None] * head + (1 - shares[:, None]) * rest
        # float32 metres about 1
        torch.testing.assert_close(to_world(moved, pose), expected, rtol=0, atol=1e-6)
    assert torch.equal(held[:, :2], points[:2].expand(2, -1, -1))


def test_gaussians_end_where_points_and_axes_do():
    torch.manual_seed(1)
    torso, points = make_torso(), torch.randn(6, 3)
    quaternions = torch.nn.functional.normalize(torch.randn(6, 4), dim=1)
    shares = torch.tensor([1.0, 1, 0, 0, 0.5, 0.5])
    means, turns = torso.to_world(points, quaternions, shares, POSES[0], SCALE)
    held = torso.hold_points(points[None], shares, POSES[:1])[0]
    torch.testing.assert_close(means, to_world(held, POSES[0]), rtol=0, atol=1e-6)
    moved, axes = quaternion_to_matrix(turns), quaternion_to_matrix(quaternions)
    turned, rest = (axis_angle_to_matrix(p[:3]) for p in (POSES[0], torso.rest_pose))
    torch.testing.assert_close(moved[:2], turned @ axes[:2], rtol=0, atol=1e-6)
    torch.testing.assert_close(moved[2:4], rest @ axes[2:4], rtol=0, atol=1e-6)
    # halfway, the angle to either side is the same
    for blended, start in zip(moved[4:], axes[4:], strict=True):
        angles = [
            torch.arccos((((side @ start) * blended).sum() - 1) / 2) for side in (turned, rest)
        ]
        torch.testing.assert_close(angles[0], angles[1], rtol=0, atol=1e-4)


def test_the_end_lies_below_the_start():
    with pytest.raises(ValidationError, match="larger than start"):
        TorsoSettings(enabled=True, start=0.5, end=0.5)
