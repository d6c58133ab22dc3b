"""Normals, areas and samples of a mesh whose values are known by hand."""

import numpy as np

from eavatar.io import Mesh
from eavatar.meshes import sample_surface, vertex_areas, vertex_normals

# A unit square in the plane z = 0, of two triangles, and a vertex that no face has.
VERTICES = np.array([[0, 0, 0], [1, 0, 0], [1, 1, 0], [0, 1, 0], [5, 5, 5]], dtype=np.float32)
FACES = np.array([[0, 1, 2], [0, 2, 3]])


def test_normals_point_to_where_the_faces_are_counter_clockwise() -> None:
    normals = vertex_normals(VERTICES, FACES)
    np.testing.assert_array_equal(normals, [[0, 0, 1]] * 4 + [[0, 0, 0]])
    assert normals.dtype == np.float64


def test_normals_are_weighted_by_area() -> None:
    """A floor of area 1/2 and a wall of area 3/2 that meet in the edge from 0 to 1."""
    vertices = np.array([[0, 0, 0], [1, 0, 0], [0, 1, 0], [0, 0, 3]], dtype=np.float64)
    normals = vertex_normals(vertices, np.array([[0, 1, 2], [0, 1, 3]]))
    np.testing.assert_allclose(normals[0], np.array([0, -3, 1]) / np.sqrt(10), rtol=1e-15)


def test_areas_of_the_vertices_are_that_of_the_surface() -> None:
    areas = vertex_areas(VERTICES, FACES)
    np.testing.assert_allclose(areas, [1 / 3, 1 / 6, 1 / 3, 1 / 6, 0])


def test_samples_lie_on_the_faces_they_name_and_cover_the_area() -> None:
    """Each triangle has half of the area; 0.05 are three standard deviations of 1000 draws."""
    points, faces = sample_surface(Mesh(VERTICES, FACES), 1000, seed=0)
    assert ((points >= 0) & (points <= 1)).all() and (points[:, 2] == 0).all()
    np.testing.assert_array_equal(points[:, 1] > points[:, 0], faces == 1)
    assert abs((faces == 1).mean() - 0.5) < 0.05
    again, _ = sample_surface(Mesh(VERTICES, FACES), 1000, seed=0)
    np.testing.assert_array_equal(points, again)
