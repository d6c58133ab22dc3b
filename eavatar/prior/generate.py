"""A complete head mesh in its generator's own frame: ``prior/raw.ply``.

A backend is a function of the fitted face (and, for `provided`, of the user's file) that returns
the mesh. Its position, orientation and scale mean nothing until `align_prior` has found them.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from eavatar.errors import UserError
from eavatar.io import Identity, Mesh, read_arrays, read_mesh, write_mesh
from eavatar.meshes import vertex_normals
from eavatar.prior.template import Head, generic_head
from eavatar.settings import GenerateSettings
from eavatar.transforms import Array, fit_similarity

logger = logging.getLogger(__name__)

REACH = (0.3, 0.15, 0.1)  # the face pulls the template from at most this far, dm, pass by pass
PULLS = 700  # control points on the face, of which the warp is a dense linear system
LANDMARK_SMOOTHING, SURFACE_SMOOTHING = 1e-3, 5e-2  # ridge on the warp's weights, dm
FORMATS = (".ply", ".obj", ".glb")


def generate_prior(
    settings: GenerateSettings, identity: Path, neutral: Path, mesh: Path | None, output: Path
) -> None:
    """Write the prior mesh of a subject, in the frame of whatever made it.

    Args:
        settings: names the backend.
        identity: ``face/identity.npz``, for the neutral landmarks.
        neutral: ``face/neutral.ply``, the fitted neutral mesh, canonical.
        mesh: the ready mesh of the backend `provided`.
        output: ``prior/raw.ply``.

    Raises:
        UserError: an input is missing or malformed, or `provided` is given no mesh.
    """
    raw = BACKENDS[settings.source](identity, neutral, mesh)
    write_mesh(output, raw)
    logger.info("prior from %s: %d vertices", settings.source, len(raw.vertices))


def generate_template(identity: Path, neutral: Path, mesh: Path | None) -> Mesh:
    """The generic head fitted to the subject, in a generator's frame.

    The frame is that of TRELLIS' meshes: a unit box around the origin, z up, the
    face towards -y. Whatever the source, a prior thus passes the same alignment.
    """
    landmarks = read_arrays(Identity, identity).landmarks
    head = fit_head(landmarks.astype(np.float64), read_mesh(neutral)).mesh
    low, high = head.vertices.min(axis=0), head.vertices.max(axis=0)
    centred = (head.vertices - (low + high) / 2) / (high - low).max()
    turned = centred[:, [0, 2, 1]] * np.array([1, -1, 1], dtype=np.float32)
    return replace(head, vertices=turned)


def read_provided(identity: Path, neutral: Path, mesh: Path | None) -> Mesh:
    """The user's own mesh, in whatever frame it has."""
    if mesh is None:
        raise UserError(
            "prior.generate.source is 'provided' but no mesh is given; name a .ply, .obj or .glb "
            "file for this subject in the sample sheet, or choose the source 'template'."
        )
    if mesh.suffix.lower() not in FORMATS:
        raise UserError(f"{mesh} is no prior mesh: its name must end in {', '.join(FORMATS)}.")
    return read_mesh(mesh)


BACKENDS: dict[str, Callable[[Path, Path, Path | None], Mesh]] = {
    "template": generate_template,
    "provided": read_provided,
}


def fit_head(landmarks: Array, neutral: Mesh) -> Head:
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
    return Head(replace(generic.mesh, vertices=vertices.astype(np.float32)), marks)


def warp(points: Array, sources: Array, targets: Array, smoothing: Array) -> Array:
    """Points (N, 3) moved by the smoothest displacement that takes sources to targets (M, 3).

    The biharmonic radial function -r with a constant: bounded far away, unlike a spline with
    a linear part, which would shear the back of the head after the nearly flat face.

    Args:
        smoothing: (M,) tolerance of each pair; zero interpolates.
    """
    from scipy.interpolate import RBFInterpolator

    displacement = RBFInterpolator(
        sources, targets - sources, kernel="linear", degree=0, smoothing=smoothing
    )
    return points + displacement(points)


def surface_pulls(
    vertices: Array, faces: NDArray[np.int64], neutral: Mesh, reach: float
) -> tuple[Array, Array]:
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
    chosen = np.linspace(0, len(near) - 1, min(PULLS, len(near))).astype(int)
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
