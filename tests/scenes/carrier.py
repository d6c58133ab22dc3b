"""A mesh that carries points: an ellipsoid whose basis bends it, and landmarks on its front."""

from __future__ import annotations

import numpy as np
import torch
from scipy.spatial import ConvexHull

from eavatar.io import Mesh
from eavatar.landmark_indices import INNER_LIPS, LEFT_EYE, MOUTH, RIGHT_EYE
from tests.scenes.splat_scene import AXES, sphere
from tests.scenes.splat_scene import MOUTH as MOUTH_CENTRE

EXPRESSIONS, VERTICES = 3, 600


def carrier(count: int = VERTICES) -> tuple[Mesh, torch.Tensor]:
    """The mesh (V vertices), outward faces, and a smooth basis (V, 3, E)."""
    vertices = (AXES * sphere(count)).numpy()
    hull = ConvexHull(vertices)
    faces = hull.simplices.astype(np.int64)
    corners = vertices[faces]
    across = np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
    inward = (across * corners.mean(axis=1)).sum(axis=1) < 0
    faces[inward] = faces[inward][:, ::-1]
    points = torch.from_numpy(vertices).float()
    basis = torch.stack([torch.sin(3 * points + phase) for phase in range(EXPRESSIONS)], dim=2)
    return Mesh(vertices.astype(np.float32), faces), 0.1 * basis


def face_landmarks() -> torch.Tensor:
    """(68, 3): a ring of lips on the front, the chin below it, eyes, all others on the forehead."""
    result = torch.tensor([0.0, 0.5, 0.7]).repeat(68, 1)
    result[8] = torch.tensor([0.0, -0.9, 0.35])
    turns = torch.arange(20) * 2 * np.pi / 20
    ring = torch.stack([0.25 * turns.cos(), 0.1 * turns.sin(), -0.1 * turns.cos().square()], dim=1)
    result[MOUTH] = MOUTH_CENTRE + ring
    result[INNER_LIPS, 1] = MOUTH_CENTRE[1]
    corner = torch.arange(6) * np.pi / 3
    eye = torch.stack([-0.15 * corner.cos(), 0.06 * corner.sin(), torch.zeros(6)], dim=1)
    result[RIGHT_EYE] = torch.tensor([-0.3, 0.15, 0.73]) + eye
    result[LEFT_EYE] = torch.tensor([0.3, 0.15, 0.73]) + eye
    return result
