"""An avatar's Gaussians as other renderers draw them: plain sets with RGB colours.

The avatar learns in images splatted at a fraction of the final size, where the rasteriser widens
every Gaussian by the low pass of a coarse pixel. Drawn with finer pixels the same set has gaps. So
here each Gaussian is wider by what coarse and final pixels differ in, at the distance of the
capture's cameras. The upsampler is left out: colours are the first three channels of the features.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from eavatar.avatar.model import Avatar
from eavatar.cameras import Camera
from eavatar.io import Timestep
from eavatar.rendering.splatting import LOW_PASS, Gaussians
from eavatar.transforms import (
    axis_angle_to_matrix,
    axis_angle_to_quaternion,
    multiply_quaternions,
    rotate,
)


@dataclass(frozen=True)
class PlainSplats:
    """The plain set of any timestep.

    Attributes:
        avatar: whose Gaussians they are.
        widening: added to the variance along each axis, metres².
    """

    avatar: Avatar
    widening: float = 0.0

    @torch.no_grad()
    def __call__(self, timestep: Timestep) -> Gaussians:
        """The Gaussians of a timestep in world space, metres, with RGB as features."""
        avatar, pose = self.avatar, to_pose(timestep).to(self.avatar.device)
        expression = torch.from_numpy(timestep.driving).to(avatar.device)
        gaussians = avatar.generate(expression, pose).gaussians
        return replace(
            gaussians,
            scales=(gaussians.scales.square() + self.widening).sqrt(),
            features=gaussians.features[:, :3].contiguous(),
        )


def find_widening(avatar: Avatar, cameras: Mapping[str, Camera]) -> float:
    """What `PlainSplats` adds to the variance, metres²: the low pass of a coarse pixel less that
    of a pixel at the size of the training, for the mean camera.

    Args:
        avatar: as it was trained.
        cameras: that it was trained with.
    """
    settings, head = avatar.settings, avatar.generator.torso.rest_pose[3:].cpu().numpy()
    pixels = []  # metres that a pixel covers at the head
    for camera in cameras.values():
        focal = camera.resize(settings.image_size, settings.image_size).intrinsics[0, 0]
        pixels.append(np.linalg.norm(camera.centre - head) / focal)
    wider = settings.low_pass * settings.upsampling**2 - LOW_PASS  # of a renderer like gsplat
    return float(max(wider, 0) * np.mean(pixels) ** 2)


def to_pose(timestep: Timestep) -> Tensor:
    """(6,) rotation and translation, as networks take them."""
    return torch.from_numpy(np.concatenate([timestep.rotation, timestep.translation]))


def to_canonical(gaussians: Gaussians, pose: Tensor, scale: float) -> Gaussians:
    """Gaussians without the pose of the head: the inverse of Eq. 7.

    Args:
        gaussians: in world space, metres.
        pose: (6,) axis-angle and translation, metres.
        scale: metres of a unit of the result.
    """
    back = -pose[:3]
    means = rotate(gaussians.means - pose[3:], axis_angle_to_matrix(back)) / scale
    turn = axis_angle_to_quaternion(back)
    quaternions = multiply_quaternions(turn.expand_as(gaussians.quaternions), gaussians.quaternions)
    return replace(gaussians, means=means, quaternions=quaternions, scales=gaussians.scales / scale)


def turn_upside_down(gaussians: Gaussians) -> Gaussians:
    """The same with y down and z forward instead of y up and z backward: half a turn about x."""
    w, x, y, z = gaussians.quaternions.unbind(dim=1)
    return replace(
        gaussians,
        means=gaussians.means * gaussians.means.new_tensor([1.0, -1.0, -1.0]),
        quaternions=torch.stack([-x, w, -z, y], dim=1),
    )
