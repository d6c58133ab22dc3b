"""Where the person may be: a coarse visual hull in canonical space, so that rays skip empty space.

Carved from the masks of a few training timesteps and kept with the model: a cell is kept if at one
of them cameras see it, and all that do have a mask there. Wider than the truth by some cells on all
sides, for what moves otherwise at other timesteps.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import max_pool2d, max_pool3d

from eavatar.baselines.volume import Rays
from eavatar.data.frames import FrameSet
from eavatar.transforms import axis_angle_to_matrix

# The canonical box: the head with hair, the neck, and the shoulders as far as GHA's crop shows.
LOWER, UPPER = (-1.6, -1.8, -2.0), (1.6, 1.8, 1.4)
CELLS = 48  # along each axis: about 7 mm
MARGIN = 2  # cells
TIMESTEPS = 16  # that are looked at, evenly spread
MASK_SIZE = 96  # pixels along which a cell is at least one
STEPS = 96  # along a ray through the box: half a cell


class Hull(nn.Module):
    """A grid of cells that may hold something.

    Attributes:
        cells: (X, Y, Z) bool, of the box; all, as long as nothing is carved.
    """

    cells: Tensor
    lower: Tensor
    upper: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("cells", torch.ones(CELLS, CELLS, CELLS, dtype=torch.bool))
        self.register_buffer("lower", torch.tensor(LOWER), persistent=False)
        self.register_buffer("upper", torch.tensor(UPPER), persistent=False)

    @torch.no_grad()
    def carve(self, frames: FrameSet) -> None:
        """Keep the cells that the masks of some timesteps do not rule out."""
        places = (torch.arange(CELLS, device=self.lower.device) + 0.5) / CELLS
        grid = torch.stack(torch.meshgrid(places, places, places, indexing="ij"), dim=-1)
        points = (self.lower + grid * (self.upper - self.lower)).flatten(0, 2)
        kept = torch.zeros(len(points), dtype=torch.bool, device=points.device)
        for timestep in range(0, len(frames), max(len(frames) // TIMESTEPS, 1)):
            missing = (~kept).nonzero()[:, 0]
            kept[missing[_seen_by_all(frames, timestep, points[missing])]] = True
        cells = kept.view(1, CELLS, CELLS, CELLS).float()
        self.cells.copy_(max_pool3d(cells, 2 * MARGIN + 1, stride=1, padding=MARGIN)[0] > 0)

    def interval(self, rays: Rays) -> tuple[Tensor, Tensor]:
        """Distances (...) between which rays may meet something; both zero for those that do not.

        Rays (...) come from outside the box.
        """
        start, end = _meet_box(rays, self.lower, self.upper)
        steps = (torch.arange(STEPS, device=start.device) + 0.5) / STEPS
        distances = start[..., None] + (end - start)[..., None] * steps
        places = (rays.at(distances) - self.lower) / (self.upper - self.lower) * CELLS
        x, y, z = places.long().clamp(0, CELLS - 1).unbind(dim=-1)
        hit = self.cells.flatten()[(x * CELLS + y) * CELLS + z] & (end > start)[..., None]
        half = ((end - start) / STEPS / 2)[..., None]
        near = torch.where(hit, distances - half, torch.inf).amin(dim=-1)
        far = torch.where(hit, distances + half, -torch.inf).amax(dim=-1)
        met = near < far
        return torch.where(met, near, 0), torch.where(met, far, 0)


def _meet_box(rays: Rays, lower: Tensor, upper: Tensor) -> tuple[Tensor, Tensor]:
    """Distances (...) at which rays enter and leave a box; the latter smaller where they miss."""
    directions = torch.where(rays.directions.abs() < 1e-9, 1e-9, rays.directions)
    first, second = (lower - rays.origins) / directions, (upper - rays.origins) / directions
    enter = torch.minimum(first, second).amax(dim=-1)
    return enter.clamp(min=0), torch.maximum(first, second).amin(dim=-1)


def _seen_by_all(frames: FrameSet, timestep: int, points: Tensor) -> Tensor:
    """Which points (N, 3) usable cameras see, and none outside its mask: indices (K,)."""
    cameras = frames.usable_cameras(timestep)
    views = frames.views(timestep, cameras)
    factor = max(frames.height // MASK_SIZE, 1)
    unknown = torch.maximum(views.masks, 1 - views.visible)  # padding rules nothing out
    coarse = max_pool2d(unknown[:, None], factor, ceil_mode=True)
    coarse = max_pool2d(coarse, 3, stride=1, padding=1)[:, 0] > 0
    turn = axis_angle_to_matrix(frames.rotation[timestep])
    world = frames.scale * points @ turn.T + frames.translation[timestep]
    left = torch.arange(len(points), device=points.device)
    views_of = torch.zeros(len(points), device=points.device)
    for camera, mask in zip(cameras, coarse, strict=True):
        matrix = frames.world_to_camera[camera]
        in_camera = world[left] @ matrix[:3, :3].T + matrix[:3, 3]
        in_image = in_camera @ frames.intrinsics[camera].T
        column, row = (in_image[:, :2] / in_image[:, 2:]).unbind(dim=-1)
        outside = (column < 0) | (row < 0) | (column >= frames.width) | (row >= frames.height)
        column, row = (
            (place.clamp(0, size - 1) / factor).long()
            for place, size in ((column, frames.width), (row, frames.height))
        )
        views_of[left] += ~outside
        left = left[mask[row, column] | outside]
    return left[views_of[left] > 0]
