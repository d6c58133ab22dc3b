"""Which Gaussians any training camera can have seen: the others nothing would ever train."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import grid_sample

from eavatar.avatar.model import Avatar
from eavatar.data.frames import FrameSet

TIMESTEPS = 8  # looked at: what heads and shoulders reach between them is within the margin
MARGIN = 0.02  # of the image around the sensor, for what moves and for the size of a Gaussian


@torch.no_grad()
def drop_unseen(avatar: Avatar, frames: FrameSet) -> None:
    """Leave out the Gaussians that lie outside the sensor, or the image, of every camera.

    What else is in the way is not considered: a mouth may open later.
    """
    seen = torch.zeros(len(avatar.neutral), dtype=torch.bool, device=frames.device)
    for timestep in range(0, len(frames), max(len(frames) // TIMESTEPS, 1)):
        generated = avatar.generator(
            avatar.neutral,
            avatar.arrangement,
            avatar.settings.control,
            frames.driving[timestep],
            frames.poses[timestep],
            avatar.settings.scale,
        )
        seen |= in_sensors(generated.gaussians.means, frames)
    avatar.neutral.reorder(seen.nonzero()[:, 0])
    avatar.sort_by_expression_weight()


def in_sensors(points: Tensor, frames: FrameSet) -> Tensor:
    """(N,) bool: whether points (N, 3), world, are in the sensor of any camera, or nearly."""
    rotations, shifts = frames.world_to_camera[:, :3, :3], frames.world_to_camera[:, :3, 3]
    local = points @ rotations.transpose(1, 2) + shifts[:, None]
    depths = local[..., 2]
    pixels = local @ frames.intrinsics.transpose(1, 2)
    places = pixels[..., :2] / depths.clamp(min=1e-6)[..., None]
    reach = MARGIN * frames.store.size
    around = places.new_tensor([[0, 0], [reach, 0], [-reach, 0], [0, reach], [0, -reach]])
    sides = places.new_tensor([frames.width, frames.height])
    grid = 2 * (places[:, None] + around[:, None]) / sides - 1  # (C, 5, N, 2)
    found = grid_sample(frames.visible[:, None], grid, mode="nearest", align_corners=False)
    return ((found[:, 0] > 0).any(dim=1) & (depths > 0)).any(dim=0)
