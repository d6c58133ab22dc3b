"""What Eq. 17 compares: centre and size over the region that prior and prediction have."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import trimesh

from eavatar.io import Mesh
from eavatar.sdf.shape import Shape

RADII, CENTRE = np.array([0.8, 1.1, 0.95]), np.array([0.0, 0.2, -0.2])
CHIN, TOLERANCE = -0.7, 0.01  # dm: 1 mm, half a percent of the head


def head(cut: float = 1.0, neck: bool = False) -> Mesh:
    """An ellipsoid as a head, without faces behind a plane; with a neck and a bust if asked."""
    ball = trimesh.creation.icosphere(5)
    vertices = ball.vertices * RADII + CENTRE
    faces = ball.faces[ball.vertices[ball.faces].mean(axis=1)[:, 2] > -cut]
    if neck:
        low = trimesh.creation.box([2.4, 0.6, 1.0], transform=np.eye(4)).subdivide()
        faces = np.concatenate([faces, low.faces + len(vertices)])
        vertices = np.concatenate([vertices, low.vertices - [0, 1.4, 0]])
    return Mesh(vertices.astype(np.float32), faces.astype(np.int64))


def shape(mesh: Mesh) -> Shape:
    return Shape.of(mesh, CHIN, torch.device("cpu"), seed=0)


def measure(of: Shape, mesh: Mesh) -> tuple[torch.Tensor, torch.Tensor]:
    return of.region.measure(torch.from_numpy(mesh.vertices), torch.from_numpy(mesh.faces))


@pytest.mark.parametrize(
    "prior", [head(neck=True), head(cut=0.4), head(cut=0.0)],
    ids=["with a bust", "without the back", "half a head"],
)  # fmt: skip
def test_a_right_prediction_has_no_loss_whatever_the_prior_lacks(prior: Mesh) -> None:
    of = shape(prior)
    centre, size = measure(of, head())
    # Of the cells at the border of a hole, 1.3 cm wide, some count wholly that are covered in part.
    torch.testing.assert_close(centre, of.centre, atol=3 * TOLERANCE, rtol=0)
    torch.testing.assert_close(size, of.size, atol=3 * TOLERANCE, rtol=0)


def test_a_complete_prior_counts_as_a_whole() -> None:
    of, mesh = shape(head()), head()
    assert of.region.contains(torch.from_numpy(mesh.vertices)[mesh.vertices[:, 1] > CHIN]).all()


def test_a_frozen_prior_sees_a_shift_that_the_realigned_one_does_not() -> None:
    fixed, moving = shape(head()), shape(head())
    turned = trimesh.transformations.rotation_matrix(0.05, [0, 1, 0])[:3, :3]
    vertices = 1.05 * head().vertices @ turned.T + [0.05, 0.02, -0.03]
    prediction = Mesh(vertices.astype(np.float32), head().faces)
    centre, size = measure(fixed, prediction)
    assert torch.linalg.vector_norm(centre - fixed.centre) > 0.05 and size > 1.03 * fixed.size
    for _ in range(2):  # from the same start each time
        moving.realign(torch.from_numpy(prediction.vertices))
        torch.testing.assert_close(centre, moving.centre, atol=TOLERANCE, rtol=0)
        torch.testing.assert_close(size, moving.size, atol=TOLERANCE, rtol=0)
