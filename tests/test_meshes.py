"""Normals, areas and samples of a mesh whose values are known by hand."""

from pathlib import Path

import numpy as np
import pytest
import trimesh

from eavatar.errors import UserError
from eavatar.io import Mesh
from eavatar.meshes import (
    check_extent,
    drop_stray_faces,
    flatness,
    sample_surface,
    smooth_noise,
    vertex_areas,
    vertex_normals,
)

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


def test_noise_is_smoothed_without_shrinking_and_a_smooth_mesh_is_left_alone() -> None:
    sphere = trimesh.creation.icosphere(subdivisions=5)
    smooth = Mesh(sphere.vertices.astype(np.float32), sphere.faces)
    assert smooth_noise(smooth) is smooth
    noise = np.random.default_rng(0).normal(scale=0.02, size=smooth.vertices.shape)  # edges: 0.04
    noisy = Mesh((smooth.vertices + noise).astype(np.float32), smooth.faces)
    assert flatness(noisy) < 0.7  # so it is smoothed
    cleaned = smooth_noise(noisy)
    assert flatness(cleaned) > 0.9
    radii = np.linalg.norm(cleaned.vertices, axis=1)
    assert abs(radii.mean() - 1) < 0.002
    assert radii.std() < 0.014  # two thirds of the noise along the normal


def test_a_vertex_that_no_face_has_stays_where_it_is() -> None:
    sphere = trimesh.creation.icosphere(subdivisions=4)
    noise = np.random.default_rng(0).normal(scale=0.04, size=sphere.vertices.shape)
    vertices = np.concatenate([[[9, 9, 9]], sphere.vertices + noise]).astype(np.float32)
    cleaned = smooth_noise(Mesh(vertices, sphere.faces + 1))
    assert np.isfinite(cleaned.vertices).all()
    np.testing.assert_array_equal(cleaned.vertices[0], 9)


def test_a_scan_of_many_vertices_is_not_taken_for_a_plane() -> None:
    points = np.random.default_rng(0).normal(size=(600_000, 3)) * (1, 1, 0.05)
    corners = np.arange(len(points)).reshape(-1, 3)
    scan = Mesh(points.astype(np.float32), corners)
    assert check_extent(scan, Path("scan.ply")) is scan


def with_stray_face(mesh: Mesh, far: float, joined: bool = False) -> Mesh:
    """A mesh, and a face that is, or reaches, as far away."""
    stray = np.array([[1, 0, 0], [1, 1, 0], [1, 0, 1]]) + np.array([far, far / 2, far / 3])
    count = len(mesh.vertices)
    face = [0, 1, count] if joined else [count, count + 1, count + 2]
    vertices = np.concatenate([mesh.vertices, stray]).astype(np.float32)
    return Mesh(vertices, np.concatenate([mesh.faces, [face]]))


def ball(height: float = 1) -> Mesh:
    sphere = trimesh.creation.icosphere(2)
    return Mesh(np.float32(sphere.vertices * (1, 1, height)), np.asarray(sphere.faces))


@pytest.mark.parametrize("far", [10, 1e3, 1e6, 1e30])
def test_a_stray_face_far_away_hides_neither_a_head_nor_a_plane(far: float) -> None:
    """A ball is as thick as it is wide; with a face at 1000 diameters its spread is a line's."""
    whole, flat = (with_stray_face(ball(height), far) for height in (1, 0))
    assert check_extent(whole, Path("ball.ply")) is whole
    with pytest.raises(UserError, match=r"flat\.ply is no usable mesh: .* not in a plane"):
        check_extent(flat, Path("flat.ply"))


@pytest.mark.parametrize("joined", [False, True])
def test_stray_faces_are_dropped_and_nothing_else_is(joined: bool) -> None:
    whole = ball()
    cleaned = drop_stray_faces(with_stray_face(whole, 100, joined))
    np.testing.assert_array_equal(cleaned.vertices, whole.vertices)
    np.testing.assert_array_equal(cleaned.faces, whole.faces)
    assert drop_stray_faces(whole) is whole
