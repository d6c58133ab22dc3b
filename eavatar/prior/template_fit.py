"""The generic head fitted to a subject's face, in canonical space."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from eavatar.arrays import Float64
from eavatar.io import Mesh
from eavatar.meshes import vertex_normals
from eavatar.prior.template import TemplateHead, generic_head
from eavatar.transforms import fit_similarity

REACH = (0.3, 0.15, 0.1)  # the face pulls the template from at most this far, dm, pass by pass
MAX_PULLS = 700  # control points on the face, of which the warp is a dense linear system
LANDMARK_SMOOTHING, SURFACE_SMOOTHING = 1e-3, 5e-2  # ridge on the warp's weights, dm


def fit_head(landmarks: Float64, neutral: Mesh) -> TemplateHead:
    """The generic head deformed to a subject's neutral face, in canonical space.

    A similarity brings the landmarks together; a smooth warp then makes them agree, and draws
    the surface near the fitted face on to it. Far from the face the warp tends to a constant, so
    that the back of the head and the shoulders keep their shape.

    Args:
        landmarks: (68, 3) canonical.
        neutral: the fitted neutral mesh, canonical; a face, or a head of any extent.
    """
    generic = generic_head()
    similarity = fit_similarity(generic.landmarks, landmarks)
    vertices = similarity.apply(generic.mesh.vertices.astype(np.float64))
    marks = similarity.apply(generic.landmarks)
    for reach in (0.0, *REACH):
        sources, targets = surface_pulls(vertices, generic.mesh.faces, neutral, reach)
        smoothing = np.repeat([LANDMARK_SMOOTHING, SURFACE_SMOOTHING], [len(marks), len(sources)])
        sources, targets = np.concatenate([marks, sources]), np.concatenate([landmarks, targets])
        moved = warp(np.concatenate([vertices, marks]), sources, targets, smoothing)
        vertices, marks = moved[: len(vertices)], moved[len(vertices) :]
    return TemplateHead(replace(generic.mesh, vertices=vertices.astype(np.float32)), marks)


def warp(points: Float64, sources: Float64, targets: Float64, smoothing: Float64) -> Float64:
    """Points (N, 3) moved by the smoothest displacement that takes sources to targets (M, 3).

    The biharmonic radial function -r with a constant: bounded far away, unlike a spline with
    a linear part, which would shear the back of the head after the nearly flat face.

    Args:
        points: (N, 3).
        sources: (M, 3).
        targets: (M, 3).
        smoothing: (M,) tolerance of each pair; zero interpolates.
    """
    from scipy.interpolate import RBFInterpolator

    displacement = RBFInterpolator(
        sources, targets - sources, kernel="linear", degree=0, smoothing=smoothing
    )
    warped: Float64 = points + displacement(points)
    return warped


def surface_pulls(
    vertices: Float64, faces: NDArray[np.int64], neutral: Mesh, reach: float
) -> tuple[Float64, Float64]:
    """Template vertices (M, 3) and the points (M, 3) of the fitted face that they belong to.

    A pair counts if it is closer than ``reach``, both surfaces face the same way, and the face
    does not end there: where it has a border, nearest points pile up.
    """
    from scipy.spatial import cKDTree

    normals = vertex_normals(vertices, faces)
    face_normals = vertex_normals(neutral.vertices.astype(np.float64), neutral.faces)
    distance, nearest = cKDTree(neutral.vertices).query(vertices, distance_upper_bound=reach)
    near = np.flatnonzero(np.isfinite(distance))
    nearest = nearest[near]
    agree = (normals[near] * face_normals[nearest]).sum(axis=1) > 0.7
    kept = agree & ~on_border(neutral)[nearest]
    near, nearest = near[kept], nearest[kept]
    chosen = np.linspace(0, len(near) - 1, min(MAX_PULLS, len(near))).astype(int)
    near, nearest = near[chosen], nearest[chosen]
    # along the normal only: sliding along the surface is for the landmarks to decide
    offset = ((neutral.vertices[nearest] - vertices[near]) * face_normals[nearest]).sum(1)
    return vertices[near], vertices[near] + offset[:, None] * face_normals[nearest]


def on_border(mesh: Mesh) -> NDArray[np.bool_]:
    """(V,) bool: vertices of edges that only one face has."""
    edges = np.sort(mesh.faces[:, [0, 1, 1, 2, 2, 0]].reshape(-1, 2), axis=1)
    unique, count = np.unique(edges, axis=0, return_counts=True)
    border = np.zeros(len(mesh.vertices), dtype=bool)
    border[unique[count == 1]] = True
    return border
