"""The torso: neck and shoulders stay behind when the head turns.

Gaussian Head Avatar moves everything with the head and leaves it to the pose network to move the
shoulders back, which it can by `deform_scale` at most and has to learn for every pose. Here each
point is a blend of itself riding on the head and itself at the head's mean pose (linear blend
skinning with two bones), so that the pose network has only the difference to learn.

All in canonical space of the present pose: where the result is moved rigidly by the pose, what
belongs to the torso ends at its place in the world.
"""

from __future__ import annotations

import torch
from scipy.spatial.transform import Rotation
from torch import Tensor, nn

from eavatar.landmark_indices import CHIN
from eavatar.settings import TorsoSettings
from eavatar.transforms import (
    axis_angle_to_matrix,
    axis_angle_to_quaternion,
    multiply_quaternions,
    rotate,
)

FAR_BELOW = -1e6  # canonical units: no point belongs to the torso
MIN_EXTENT = 0.05  # canonical units, of the step between torso and head


class Torso(nn.Module):
    """What moves with the head, and where the rest stays.

    Attributes:
        step: (2,) learned: height y at which the head's weight is one half, and over what height it
            rises from 0 to 1, canonical.
        rest_pose: (6,) axis-angle and translation of the head's mean pose.
        scale: () canonical units to metres.
    """

    rest_pose: Tensor
    scale: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.step = nn.Parameter(torch.tensor([FAR_BELOW, 1.0]))
        self.register_buffer("rest_pose", torch.zeros(6))
        self.register_buffer("scale", torch.ones(()))

    @torch.no_grad()
    def place(
        self, settings: TorsoSettings, landmarks: Tensor, poses: Tensor, scale: float
    ) -> None:
        """Set the first heights, from the chin, and the mean pose.

        Args:
            settings: first heights.
            landmarks: (68, 3) of the neutral face, canonical.
            poses: (T, 6) of the training's timesteps.
            scale: canonical units to metres.
        """
        rotation = Rotation.from_rotvec(poses[:, :3].cpu().double().numpy()).mean().as_rotvec()
        self.rest_pose[:3] = torch.from_numpy(rotation)
        self.rest_pose[3:] = poses[:, 3:].mean(dim=0)
        self.scale.fill_(scale)
        if settings.enabled:
            self.step[0] = landmarks[CHIN, 1] - (settings.start + settings.end) / 2
            self.step[1] = settings.end - settings.start

    def head_weight(self, points: Tensor) -> Tensor:
        """Weight (…) of the head at canonical points (…, 3): a smooth step over the height."""
        height, extent = self.step.unbind()
        rise = ((points[..., 1] - height) / extent.clamp(min=MIN_EXTENT) + 0.5).clamp(0, 1)
        return rise * rise * (3 - 2 * rise)

    def hold_points(self, points: Tensor, weights: Tensor, poses: Tensor) -> Tensor:
        """Points (B, N, 3), the torso's kept where it rests.

        Args:
            points: that ride on the head.
            weights: (N,) of the head.
            poses: (B, 6).
        """
        rotations = axis_angle_to_matrix(torch.cat([poses[:, :3], self.rest_pose[None, :3]]))
        rotation, rest = rotations[:-1], rotations[-1]
        shift = rotate((self.rest_pose[3:] - poses[:, 3:])[:, None], rotation.mT) / self.scale
        resting = rotate(rotate(points, rest), rotation.mT) + shift
        return torch.lerp(resting, points, weights[:, None])

    def to_world(
        self, points: Tensor, quaternions: Tensor, weights: Tensor, pose: Tensor, scale: float
    ) -> tuple[Tensor, Tensor]:
        """Gaussians in the world (Eq. 7), each between riding on the head and staying at rest.

        Args:
            points: (N, 3).
            quaternions: (N, 4) wxyz, of any length.
            weights: (N,) of the head.
            pose: (6,) axis-angle and translation.
            scale: canonical units to metres.
        Returns:
            Positions (N, 3) in metres and quaternions (N, 4).
        """
        motions = torch.stack([self.rest_pose, pose])
        rotations = axis_angle_to_matrix(motions[:, :3])
        staying, riding = rotate(scale * points, rotations) + motions[:, None, 3:]
        turns = axis_angle_to_quaternion(motions[:, :3])[:, None]
        rest, head = multiply_quaternions(turns, quaternions).unbind()
        # q and -q are one rotation; the nearer one is blended with.
        rest = torch.where(((rest * head).sum(-1) < 0)[:, None], -rest, rest)
        weights = weights[:, None]
        return torch.lerp(staying, riding, weights), torch.lerp(rest, head, weights)
