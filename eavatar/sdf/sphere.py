"""Stage I's first surface: a sphere, to which the signed distance is fitted before training."""

from __future__ import annotations

import torch
from torch import Tensor

from eavatar.errors import UserError
from eavatar.sdf.field import LOWER, UPPER, HeadField

SPHERE_RADIUS = 1.0  # canonical units
SPHERE_STEPS = 500
SPHERE_POINTS = 4096
SPHERE_LEARNING_RATE = 2e-3
SPHERE_TOLERANCE = 0.05  # canonical units; half a cell of the coarsest sensible grid


def start_as_sphere(field: HeadField) -> None:
    """Fit the signed distance to a sphere whose front touches the foremost neutral landmark.

    Raises:
        UserError: the mean error is above `SPHERE_TOLERANCE` in the end.
    """
    landmarks = field.neutral_landmarks.detach()
    centre = landmarks.mean(dim=0)
    centre[0], centre[2] = 0, landmarks[:, 2].max() - SPHERE_RADIUS
    lower, upper = landmarks.new_tensor(LOWER), landmarks.new_tensor(UPPER)
    optimiser = torch.optim.Adam(field.geometry.parameters(), lr=SPHERE_LEARNING_RATE)
    schedule = torch.optim.lr_scheduler.LinearLR(optimiser, 1.0, 0.05, SPHERE_STEPS)

    def error() -> Tensor:
        points = lower + (upper - lower) * torch.rand(SPHERE_POINTS, 3, device=lower.device)
        distance = torch.linalg.vector_norm(points - centre, dim=1) - SPHERE_RADIUS
        errors: Tensor = field.sample(points).sdf - distance
        return errors

    for _ in range(SPHERE_STEPS):
        optimiser.zero_grad()
        error().square().mean().backward()
        optimiser.step()
        schedule.step()
    with torch.no_grad():
        remaining = float(error().abs().mean())
    if not remaining < SPHERE_TOLERANCE:
        raise UserError(
            f"the signed distance field did not become a sphere (mean error {remaining:.3f} dm, "
            f"at most {SPHERE_TOLERANCE}); raise sdf.width or choose another seed."
        )
