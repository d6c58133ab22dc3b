"""What stage I starts from: a sphere, or the prior."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import trimesh

from eavatar.errors import UserError
from eavatar.io import Mesh
from eavatar.sdf.field import HeadField
from eavatar.sdf.prior_distance import tabulate_prior
from eavatar.sdf.start import start_as_prior, start_as_sphere
from eavatar.settings import read_config
from tests.scenes import CONFIG

SETTINGS = read_config(CONFIG / "config.yaml", CONFIG / "demo.yaml").sdf.model_copy(
    update={"width": 32, "feature_size": 8}
)


def test_the_field_is_the_distance_to_a_sphere_that_touches_the_face() -> None:
    torch.manual_seed(0)
    field = HeadField(SETTINGS, 2)
    start_as_sphere(field)
    # All landmarks are at the origin, which so is the front of the sphere. Not tested at the
    # sphere's centre: a network rounds off the tip of the distance there.
    points = torch.tensor([[0.0, 0, -0.5], [0, 0, 0], [0, 1.2, -1]])
    expected = torch.tensor([-0.5, 0.0, 0.2])
    assert float((field.distances(points) - expected).abs().max()) < 0.1


def test_a_field_that_cannot_become_a_sphere_is_one_sentence() -> None:
    torch.manual_seed(0)
    field = HeadField(SETTINGS, 2)
    field.geometry.requires_grad_(False)
    field.geometry.layers[-1].bias.requires_grad_(True)
    with pytest.raises(UserError, match="did not become a sphere"):
        start_as_sphere(field)


def test_the_field_is_the_distance_to_the_prior() -> None:
    """The surface of a turned ellipsoid to a millimetre, a tenth of the tests' cells."""
    torch.manual_seed(0)
    field = HeadField(SETTINGS, 2)
    shape = trimesh.creation.icosphere(4)
    shape.apply_transform(np.diag([0.7, 1.1, 0.9, 1.0]))
    shape.apply_transform(trimesh.transformations.rotation_matrix(0.4, [1, 2, 0]))
    mesh = Mesh(shape.vertices.astype(np.float32), np.asarray(shape.faces))
    start_as_prior(field, tabulate_prior(mesh, torch.tensor([[0.0, 0, 10]]), seed=0))
    distances = field.distances(torch.tensor(mesh.vertices))
    assert float(distances.abs().mean()) < 0.01 and float(distances.abs().max()) < 0.05
    assert float(field.distances(torch.zeros(1, 3))) < -0.5
