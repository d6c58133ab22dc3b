"""Geometry of triangle meshes: normals, areas and samples of the surface."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from eavatar.arrays import Float64, Int64
from eavatar.io import Mesh


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
