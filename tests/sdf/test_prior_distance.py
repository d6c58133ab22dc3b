"""The aligned prior as signed distances, against a ball whose distances are known."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import trimesh

from eavatar.io import Mesh
from eavatar.sdf import prior_distance
from eavatar.sdf.prior_distance import PriorDistance, tabulate_prior

RADIUS, CENTRE = 0.9, np.array([0.1, 0.1, -0.3])
FRONT = torch.tensor([[0.0, 0.1, 10.0], [3.0, 0.1, 9.5]])


@pytest.fixture(autouse=True)
def few_points(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each is as good as among many."""
    monkeypatch.setattr(prior_distance, "POINTS", 8000)


def ball(faces: slice | np.ndarray = slice(None), inverted: bool = False) -> Mesh:
    shape = trimesh.creation.icosphere(5)
    chosen = shape.faces[faces][:, :: -1 if inverted else 1]
    vertices = RADIUS * shape.vertices + CENTRE
    return Mesh(vertices.astype(np.float32), np.ascontiguousarray(chosen))


def expected(prior: PriorDistance) -> torch.Tensor:
    return torch.linalg.vector_norm(prior.points - torch.tensor(CENTRE), dim=1) - RADIUS


@pytest.mark.parametrize("inverted", [False, True])
def test_distances_are_those_of_the_ball(inverted: bool) -> None:
    prior = tabulate_prior(ball(inverted=inverted), FRONT, seed=0)
    # Samples are 0.01 dm apart, and few three times that.
    error = (prior.distances - expected(prior)).abs()
    assert error.mean() < 0.001 and error.max() < 0.01
    assert ((prior.distances < 0) == (expected(prior) < 0)).float().mean() > 0.999
    assert (prior.distances.abs() < 0.05).float().mean() > 0.2  # close, where it matters


def test_a_ball_with_a_hole_is_still_solid() -> None:
    every = trimesh.creation.icosphere(5)
    kept = every.triangles_center[:, 2] > -0.7  # 15 % of the surface is missing
    prior = tabulate_prior(ball(kept), FRONT, seed=0)
    truly = expected(prior)
    away = (truly.abs() > 0.02) & (prior.points[:, 2] > CENTRE[2] - 0.5)
    assert ((prior.distances < 0) == (truly < 0))[away].float().mean() > 0.995


def test_what_no_camera_sees_is_hidden() -> None:
    prior = tabulate_prior(ball(), FRONT, seed=0)
    directions = torch.nn.functional.normalize(prior.points - torch.tensor(CENTRE), dim=1)
    ahead = directions @ torch.nn.functional.normalize(FRONT[1].double(), dim=0)
    away = (prior.points - torch.tensor(CENTRE)).norm(dim=1) > 0.5  # inside, nearest points jump
    assert (prior.weights[away & (ahead > 0.6)] == 0).all()
    assert prior.weights[away & (directions[:, 2] < -0.3)].mean() > 0.9
    assert (prior.weights[away & (directions[:, 2] < -0.6)] == 1).all()


def test_draws_depend_on_the_step_alone() -> None:
    table = torch.arange(10.0)
    prior = PriorDistance(table[:, None].expand(-1, 3), table, table)
    for step in (0, 3, 1000):
        once, again = prior.draw(step, 4), prior.draw(step, 4)
        assert torch.equal(once.points, again.points) and len(once.distances) == 4
    assert not torch.equal(prior.draw(0, 4).distances, prior.draw(1, 4).distances)
    one, other = (tabulate_prior(ball(), FRONT, seed=3) for _ in range(2))
    assert torch.equal(one.points, other.points) and torch.equal(one.distances, other.distances)
    assert len(one.points) == 8000
