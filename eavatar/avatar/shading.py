"""Light that stays where it is while the head turns (not in the paper).

Gaussian Head Avatar gives the face colours by the expression alone. A head that turns under lamps
that do not turn changes its colours, too, and the networks then learn these from whatever
expressions came with the turns. The irradiance of a diffuse surface is nearly a quadratic
polynomial of its normal (Ramamoorthi and Hanrahan 2001): few numbers, for all Gaussians and turns.
"""

from __future__ import annotations

import numpy as np
import torch
from scipy.spatial import cKDTree
from torch import Tensor, nn

from eavatar.threads import count_threads
from eavatar.transforms import axis_angle_to_matrix, rotate

NEIGHBOURS = 24  # points whose plane gives a normal: half as many give it worse, twice no better
HARMONICS = 8  # of degrees 1 and 2
MIN_IRRADIANCE = 0.1  # of the mean over all directions: a head is never lit from one side alone


class Shading(nn.Module):
    """The gain of a Gaussian's colour by how the head's rotation has turned its normal.

    Attributes:
        light: (`HARMONICS`, 3) learned: of the irradiance relative to its mean, per colour.
    """

    def __init__(self) -> None:
        super().__init__()
        self.light = nn.Parameter(torch.zeros(HARMONICS, 3))

    def forward(self, normals: Tensor, rotation: Tensor, rest: Tensor) -> Tensor:
        """Gains (N, 3), which are 1 at the rest rotation.

        Args:
            normals: (N, 3) canonical, of length 1.
            rotation: (3,) axis-angle of the head.
            rest: (3,) likewise, at which colours are what they are.
        """
        turned = rotate(normals, axis_angle_to_matrix(torch.stack([rotation, rest])))
        now, before = (1 + harmonics(turned) @ self.light).clamp(min=MIN_IRRADIANCE)
        gains: Tensor = now / before
        return gains


def harmonics(directions: Tensor) -> Tensor:
    """Real spherical harmonics (..., `HARMONICS`) of degrees 1 and 2, not normalised."""
    x, y, z = directions.unbind(dim=-1)
    return torch.stack([x, y, z, x * y, y * z, z * x, x * x - y * y, 3 * z * z - 1], dim=-1)


def inside_head(landmarks: Tensor) -> Tensor:
    """(3,) behind the middle of the landmarks (68, 3) by half of the face's width, canonical."""
    middle, (left, right) = landmarks.mean(dim=0), landmarks[:, 0].aminmax()
    return middle - (right - left) / 2 * middle.new_tensor([0.0, 0.0, 1.0])


def estimate_normals(points: Tensor, centre: Tensor) -> Tensor:
    """Normals (N, 3) of a surface that points (N, 3) lie on, away from a centre (3,).

    Each is that of the plane through the nearest points; the few around then agree by their mean.
    """
    places = points.cpu().double().numpy()
    count = min(NEIGHBOURS, len(places))
    _, found = cKDTree(places).query(places, k=count, workers=count_threads())
    near = found.reshape(len(places), count)
    offsets = places[near] - places[near].mean(axis=1, keepdims=True)
    normals = np.linalg.eigh(offsets.transpose(0, 2, 1) @ offsets)[1][:, :, 0]
    outward = places - centre.cpu().double().numpy()
    normals *= np.where((normals * outward).sum(axis=1) < 0, -1, 1)[:, None]
    normals = normals[near].mean(axis=1)
    normals /= np.maximum(np.linalg.norm(normals, axis=1, keepdims=True), 1e-9)
    return torch.from_numpy(normals).to(points)
