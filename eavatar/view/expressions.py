"""Expressions of one morphable model in the coefficients of another.

Two models share no coefficients, but both move a face in canonical space. A map takes the
coefficients of the one to those of the other that move its face most alike: the 68 landmarks, and
the surface, brought together by a smooth warp between the two people's neutral landmarks.

Letters: V vertices, E expression coefficients, L = 68 landmarks, N points compared.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Self

import numpy as np
from scipy.spatial import cKDTree

from eavatar.arrays import Float64, Int64
from eavatar.errors import UserError
from eavatar.io import ExpressionBasis, Identity, Mesh, read_arrays, read_mesh
from eavatar.meshes import vertex_normals
from eavatar.prior.template_fit import LANDMARK_SMOOTHING, warp

ALIKE = 1e-4  # canonical units, 0.01 mm: bases that differ by less are of one model
REACH = 0.1  # canonical units: surfaces farther apart than 1 cm are no places of the same kind
MIN_COSINE = 0.5  # of their normals: 60 degrees
DEVIATION = 0.01  # canonical units: a millimetre of motion against one deviation of a coefficient


@dataclass(frozen=True)
class Face:
    """A person's face in canonical space, and how expressions move it.

    Attributes:
        mesh: neutral, V vertices.
        basis: (V, 3, E) displacements, a standard deviation each.
        landmarks: (L, 3) neutral.
    """

    mesh: Mesh
    basis: Float64
    landmarks: Float64

    @classmethod
    def read(cls, folder: Path) -> Self:
        """From ``results/<subject>/face``.

        Raises:
            UserError: a file is missing or malformed, or they do not belong together.
        """
        path = folder / "expression_basis.npz"
        basis = read_arrays(ExpressionBasis, path).basis.astype(np.float64)
        mesh = read_mesh(folder / "neutral.ply")
        if len(basis) != len(mesh.vertices):
            raise UserError(
                f"{path} is of {len(basis)} vertices, but neutral.ply beside it has "
                f"{len(mesh.vertices)}; track the person again."
            )
        landmarks = read_arrays(Identity, folder / "identity.npz").landmarks
        return cls(mesh, basis, landmarks.astype(np.float64))

    @property
    def landmark_basis(self) -> Float64:
        """(L, 3, E) displacements of the landmarks, which are at the nearest vertices."""
        _, vertices = cKDTree(self.mesh.vertices).query(self.landmarks)
        displacements: Float64 = self.basis[vertices]
        return displacements

    def has_model_of(self, other: Face) -> bool:
        """Whether both have one model and as many coefficients."""
        return self.basis.shape == other.basis.shape and np.allclose(
            self.basis, other.basis, rtol=0, atol=ALIKE
        )


def expression_map(driver: Face, avatar: Face) -> Float64:
    """The matrix (E of the avatar, E of the driver) that takes expressions from one to the other.

    It is linear, so no expression remains none. Between faces of one model it is the identity,
    otherwise the most probable coefficients given the driver's motion, of the landmarks and of the
    surface with the same weight in total.
    """
    if avatar.has_model_of(driver):
        return np.eye(avatar.basis.shape[2])
    own, theirs = _corresponding(driver, avatar)
    target, source = (
        np.concatenate([face.landmark_basis, face.basis[places]]).reshape(-1, face.basis.shape[2])
        for face, places in ((avatar, own), (driver, theirs))
    )
    marks = 3 * len(driver.landmarks)
    weights = np.ones(len(target))
    weights[marks:] = marks / max(len(target) - marks, 1)
    information = target.T @ (weights[:, None] * target) / DEVIATION**2
    pull = target.T @ (weights[:, None] * source) / DEVIATION**2
    solved: Float64 = np.linalg.solve(information + np.eye(len(information)), pull)
    return solved


def _corresponding(driver: Face, avatar: Face) -> tuple[Int64, Int64]:
    """Vertices (N,) of the avatar's face and those (N,) of the driver's in the same places."""
    vertices = avatar.mesh.vertices.astype(np.float64)
    smoothing = np.full(len(avatar.landmarks), LANDMARK_SMOOTHING)  # closed lips' may coincide
    there = warp(vertices, avatar.landmarks, driver.landmarks, smoothing)
    distance, nearest = cKDTree(driver.mesh.vertices).query(there)
    normals = (
        vertex_normals(there, avatar.mesh.faces),
        vertex_normals(driver.mesh.vertices, driver.mesh.faces),
    )
    cosine = (normals[0] * normals[1][nearest]).sum(axis=1)
    own = np.flatnonzero((distance < REACH) & (cosine > MIN_COSINE))
    return own, nearest[own]
