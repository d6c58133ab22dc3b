"""Shaded images of meshes."""

from __future__ import annotations

import numpy as np
import trimesh

from eavatar.io import Mesh
from eavatar.rendering.mesh_images import Colour, contact_sheet, draw_meshes

RED: Colour = (255, 0, 0)
BLUE: Colour = (0, 0, 255)


def ball(radius: float, centre: tuple[float, float, float]) -> Mesh:
    sphere = trimesh.creation.icosphere(3)
    return Mesh((radius * sphere.vertices + centre).astype(np.float32), np.array(sphere.faces))


def test_nearer_surface_hides_the_other() -> None:
    meshes = [(ball(0.5, (0, 0, 1)), RED), (ball(1, (0, 0, 0)), BLUE)]
    front = draw_meshes(meshes, 0, 64, 2.0)
    assert front[32, 32, 0] > 200
    assert front[32, 32, 2] < 30
    assert front[32, 18, 2] > 80  # the large ball around it
    assert (front[2, 2] == 255).all()
    left = draw_meshes(meshes, 90, 64, 2.0)
    # From the head's left, its front (+z) points to the left of the image.
    assert left[32, 12, 0] > 80
    assert (left[32, 56] == 255).all()


def test_each_face_has_its_own_colour() -> None:
    mesh = ball(1, (0, 0, 0))
    upper = mesh.vertices[mesh.faces].mean(axis=1)[:, 1] > 0
    image = draw_meshes([(mesh, np.where(upper[:, None], RED, BLUE))], 0, 64, 2.0)
    assert image[22, 32, 0] > 200 and image[22, 32, 2] < 30
    assert image[42, 32, 2] > 200 and image[42, 32, 0] < 30


def test_a_sheet_has_gaps_between_rows_and_columns() -> None:
    image = np.zeros((40, 40, 3), np.uint8)
    sheet = contact_sheet([image] * 5, 3)
    assert sheet.shape == (84, 128, 3)
    assert (sheet[42] == 255).all()
