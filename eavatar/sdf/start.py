"""Stage I's first surface, to which the signed distance is fitted before training."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from eavatar.errors import UserError
from eavatar.sdf.field import LOWER, UPPER, HeadField
from eavatar.sdf.prior_distance import PriorDistance

SPHERE_POINTS = 4096  # of a step
PRIOR_POINTS = 2048  # of a step
LEARNING_RATE = 2e-3
SPHERE_RADIUS = 1.0  # canonical units
SPHERE_STEPS = 500
SPHERE_TOLERANCE = 0.05  # canonical units; half a cell of the coarsest sensible grid
PRIOR_STEPS = 1000


def start_as_sphere(field: HeadField) -> None:
    """Fit the signed distance to a sphere whose front touches the foremost neutral landmark.

    Raises:
        UserError: the mean error is above `SPHERE_TOLERANCE` in the end.
    """
    landmarks = field.neutral_landmarks.detach()
    centre = landmarks.mean(dim=0)
    centre[0], centre[2] = 0, landmarks[:, 2].max() - SPHERE_RADIUS
    lower, upper = landmarks.new_tensor(LOWER), landmarks.new_tensor(UPPER)

    def error(step: int) -> Tensor:
        points = lower + (upper - lower) * torch.rand(SPHERE_POINTS, 3, device=lower.device)
        distance = torch.linalg.vector_norm(points - centre, dim=1) - SPHERE_RADIUS
        errors: Tensor = field.sample(points).sdf - distance
        return errors

    _fit(field, error, torch.square, SPHERE_STEPS)
    with torch.no_grad():
        remaining = float(error(0).abs().mean())
    if not remaining < SPHERE_TOLERANCE:
        raise UserError(
            f"the signed distance field did not become a sphere (mean error {remaining:.3f} dm, "
            f"at most {SPHERE_TOLERANCE}); raise sdf.width or choose another seed."
        )


def start_as_prior(field: HeadField, prior: PriorDistance) -> None:
    """Fit the signed distance to the aligned prior's, with the grid's vertices where they are."""

    def error(step: int) -> Tensor:
        drawn = prior.draw(step, PRIOR_POINTS)
        samples = field.sample(drawn.points)
        return torch.cat([samples.sdf - drawn.distances, samples.offsets.flatten()])

    _fit(field, error, torch.abs, PRIOR_STEPS)


def _fit(
    field: HeadField,
    error: Callable[[int], Tensor],
    cost: Callable[[Tensor], Tensor],
    steps: int,
) -> None:
    """Lower the mean cost of the errors (N,) of a step."""
    optimiser = torch.optim.Adam(field.geometry.parameters(), lr=LEARNING_RATE)
    schedule = torch.optim.lr_scheduler.LinearLR(optimiser, 1.0, 0.05, steps)
    for step in range(steps):
        optimiser.zero_grad()
        cost(error(step)).mean().backward()
        optimiser.step()
        schedule.step()
