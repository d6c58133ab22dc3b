"""Geometry of triangle meshes: normals, areas, samples of the surface, noise."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from eavatar.arrays import Float64, Int64
from eavatar.errors import UserError
from eavatar.io import Mesh

# Flatness. Heads have 0.99, of 1,000 faces 0.92, with coarse inner parts 0.73; one of 47,000 faces
# with noise of 1 % of its size has 0.44.
NOISY, FLAT = 0.7, 0.9
MAX_SMOOTHINGS = 15  # on that head 7 are enough
PLANE = 1e-3  # of a mesh's spread, across its plane; of float32's rounding it is less than 1e-6
STRAY = 10  # median distances from the middle; those of heads with shoulders are within 5


def vertex_normals(vertices: NDArray[np.floating], faces: NDArray[np.integer]) -> Float64:
    """(V, 3) unit normals, averaged over the faces of a vertex by area; zero where it has none.

    Args:
        vertices: (V, 3); the faces' normals have their precision.
        faces: (F, 3) counter-clockwise seen from outside.
    """
    across = _doubled_areas(vertices, faces)
    normals = np.stack([_sum_at_vertices(side, faces, len(vertices)) for side in across.T], axis=1)
    lengths = np.linalg.norm(normals, axis=1, keepdims=True)
    unit: Float64 = normals / np.maximum(lengths, 1e-12)
    return unit


def face_normals(vertices: NDArray[np.floating], faces: NDArray[np.integer]) -> Float64:
    """(F, 3) unit normals of the faces; zero where a face has no area.

    Args:
        vertices: (V, 3).
        faces: (F, 3) counter-clockwise seen from outside.
    """
    across = _doubled_areas(vertices.astype(np.float64), faces)
    lengths = np.linalg.norm(across, axis=1, keepdims=True)
    unit: Float64 = across / np.maximum(lengths, 1e-12)
    return unit


def vertex_areas(vertices: NDArray[np.floating], faces: NDArray[np.integer]) -> Float64:
    """(V,) a third of the areas of the faces of a vertex.

    Args:
        vertices: (V, 3).
        faces: (F, 3).
    """
    across = _doubled_areas(vertices, faces)
    return _sum_at_vertices(np.linalg.norm(across, axis=1) / 6, faces, len(vertices))


def sample_surface(mesh: Mesh, count: int, seed: int) -> tuple[Float64, Int64]:
    """Points spread evenly over the area of a mesh.

    Args:
        mesh: the mesh.
        count: number of points N.
        seed: of the random positions.

    Returns:
        (N, 3) points and (N,) the faces that they lie on.
    """
    import trimesh

    shape = trimesh.Trimesh(mesh.vertices, mesh.faces, process=False)
    points, faces = trimesh.sample.sample_surface(shape, count, seed=seed)
    return np.asarray(points, dtype=np.float64), np.asarray(faces, dtype=np.int64)


def flatness(mesh: Mesh) -> float:
    """How far the faces about a vertex face one way, on average: 1 where all do.

    The area of the sum of their normals, weighted by area, over their area.
    """
    across = _doubled_areas(mesh.vertices.astype(np.float64), mesh.faces)
    count = len(mesh.vertices)
    sums = np.stack([_sum_at_vertices(side, mesh.faces, count) for side in across.T], axis=1)
    areas = 3 * np.linalg.norm(across, axis=1).sum()
    return float(np.linalg.norm(sums, axis=1).sum() / areas)


def smooth_noise(mesh: Mesh) -> Mesh:
    """A mesh whose vertices are so noisy that its normals tell little, smoothed; others as given.

    Taubin's filter, which does not shrink, as often as it takes.

    Args:
        mesh: open or closed.
    """
    if flatness(mesh) >= NOISY:
        return mesh
    import trimesh

    used, faces = np.unique(mesh.faces, return_inverse=True)
    surface = trimesh.Trimesh(
        mesh.vertices[used].astype(np.float64), faces.reshape(-1, 3), process=False
    )
    vertices = mesh.vertices.copy()
    for _ in range(MAX_SMOOTHINGS):
        trimesh.smoothing.filter_taubin(surface, iterations=2)
        vertices[used] = surface.vertices
        smoothed = replace(mesh, vertices=vertices)
        if flatness(smoothed) >= FLAT:
            break
    return smoothed


def check_extent(mesh: Mesh, path: Path) -> Mesh:
    """``mesh`` if its vertices are finite and span a volume, and its faces have area.

    Raises:
        UserError: otherwise.
    """
    used = mesh.vertices[np.unique(mesh.faces)].astype(np.float64)
    if not np.isfinite(used).all() or _lies_in_a_plane(used):
        raise UserError(
            f"{path} is no usable mesh: its vertices must be finite and not in a plane."
        )
    if not face_normals(mesh.vertices, mesh.faces).any():
        raise UserError(f"{path} is no usable mesh: none of its faces has an area.")
    return mesh


def drop_stray_faces(mesh: Mesh) -> Mesh:
    """A mesh without the faces that reach far away from its middle; others as given.

    Args:
        mesh: a head, of which generators and scanners leave crumbs elsewhere.
    """
    used = np.unique(mesh.faces)
    stray = np.zeros(len(mesh.vertices), bool)
    stray[used] = _are_stray(mesh.vertices[used].astype(np.float64))
    kept = mesh.faces[~stray[mesh.faces].any(axis=1)]
    if len(kept) == len(mesh.faces):
        return mesh
    used, faces = np.unique(kept, return_inverse=True)
    colours = None if mesh.colours is None else mesh.colours[used]
    return Mesh(mesh.vertices[used], faces.reshape(-1, 3), colours)


def _are_stray(vertices: Float64) -> NDArray[np.bool_]:
    """(V,) which vertices (V, 3) are far away from the others."""
    distances = np.linalg.norm(vertices - np.median(vertices, axis=0), axis=1)
    return np.asarray(distances > STRAY * np.median(distances))


def _lies_in_a_plane(vertices: Float64) -> bool:
    """Whether vertices (V, 3) lie in a plane, but for stray ones: beside those all would."""
    near = vertices[~_are_stray(vertices)]
    centred = near - near.mean(axis=0)
    least, _, most = np.linalg.eigvalsh(centred.T @ centred)
    return bool(least <= PLANE**2 * most)


def _doubled_areas(
    vertices: NDArray[np.floating], faces: NDArray[np.integer]
) -> NDArray[np.floating]:
    """(F, 3) normals of the faces, as long as twice their areas."""
    corners = vertices[faces]
    return np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])


def _sum_at_vertices(
    values: NDArray[np.floating], faces: NDArray[np.integer], count: int
) -> Float64:
    """(count,) the sum over the faces of each vertex of a value (F,) per face."""
    sums = np.bincount(faces.ravel(), np.repeat(values, 3), count)
    return sums.astype(np.float64, copy=False)
