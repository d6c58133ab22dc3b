from __future__ import annotations

import math

import torch
from scipy.spatial.transform import Rotation
from torch import Tensor
from torch.nn.functional import normalize

from eavatar.avatar.shading import Shading, estimate_normals, harmonics

LAMP = normalize(torch.tensor([0.5, 0.7, 0.6]), dim=0)
AMBIENT = 0.4


def directions(count: int, seed: int = 0) -> Tensor:
    """(count, 3) evenly distributed unit vectors."""
    return normalize(torch.randn(count, 3, generator=torch.Generator().manual_seed(seed)), dim=1)


def irradiance(normals: Tensor, rotation: Tensor) -> Tensor:
    """(N,) of a diffuse surface, turned, under a lamp that stays and light from everywhere."""
    matrix = torch.from_numpy(Rotation.from_rotvec(rotation.numpy()).as_matrix()).float()
    return AMBIENT + (1 - AMBIENT) * (normals @ matrix.T @ LAMP).clamp(min=0)


def test_colours_are_what_they_are_at_rest() -> None:
    shading, rest = Shading(), torch.tensor([0.1, -0.2, 0.05])
    torch.nn.init.normal_(shading.light, std=0.1)
    assert torch.equal(shading(directions(50), rest, rest), torch.ones(50, 3))


def test_a_turn_that_was_not_seen_is_shaded_as_by_the_lamp() -> None:
    shading, rest, normals = Shading(), torch.zeros(3), directions(400)
    turns = 0.3 * torch.randn(12, 3, generator=torch.Generator().manual_seed(1))
    optimiser = torch.optim.Adam(shading.parameters(), 0.02)
    at_rest = irradiance(normals, rest)
    for step in range(400):
        turn = turns[step % len(turns)]
        error = at_rest[:, None] * shading(normals, turn, rest) - irradiance(normals, turn)[:, None]
        optimiser.zero_grad()
        error.square().mean().backward()
        optimiser.step()
    turn = torch.tensor([0.2, 0.4, -0.1])
    truth = irradiance(normals, turn)
    with torch.no_grad():
        found = at_rest * shading(normals, turn, rest)[:, 0]
    # Where the lamp no longer reaches, the irradiance has an edge, which degree 2 rounds off.
    assert (found - truth).norm() < 0.35 * (at_rest - truth).norm()


def test_harmonics_have_no_mean_over_the_sphere() -> None:
    # 1 / sqrt(N) times their deviations, of at most sqrt(4 / 5), four times.
    assert harmonics(directions(100_000)).mean(dim=0).abs().max() < 4 * math.sqrt(0.8 / 1e5)


def test_normals_are_those_of_an_ellipsoid() -> None:
    axes = torch.tensor([0.8, 1.1, 0.95])  # decimetres, as a head
    points = directions(5000, seed=2) * axes
    truth = normalize(points / axes**2, dim=1)
    found = estimate_normals(points, torch.tensor([0.05, 0.1, -0.1]))
    angles = torch.rad2deg((found * truth).sum(dim=1).clamp(-1, 1).acos())
    assert angles.max() < 8  # of points some 4 degrees apart


def test_few_points_have_normals_of_length_one() -> None:
    normals = estimate_normals(directions(5), torch.zeros(3))
    assert torch.allclose(normals.norm(dim=1), torch.ones(5))
