"""Heads for the tests of this stage: random smooth variations of the generic head, and parts."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
from scipy.spatial import cKDTree

from eavatar.io import Identity, Mesh, write_arrays, write_mesh
from eavatar.prior.template import TemplateHead, generic_head
from eavatar.prior.template_fit import warp


def random_head(seed: int, amplitude: float = 0.08) -> TemplateHead:
    """The generic head under a random smooth warp of about ``amplitude`` dm per axis."""
    random = np.random.default_rng(seed)
    generic = generic_head()
    sources = random.uniform([-1, -1.5, -1], [1, 1.5, 1.3], size=(25, 3))
    targets = sources + amplitude * random.normal(size=sources.shape)
    vertices = warp(generic.mesh.vertices.astype(np.float64), sources, targets, np.zeros(25))
    landmarks = warp(generic.landmarks, sources, targets, np.zeros(25))
    return TemplateHead(replace(generic.mesh, vertices=vertices.astype(np.float32)), landmarks)


def cut(mesh: Mesh, keep: np.ndarray) -> Mesh:
    """The faces all of whose vertices are kept (V,) bool, with those vertices alone."""
    faces = mesh.faces[keep[mesh.faces].all(axis=1)]
    used, faces = np.unique(faces, return_inverse=True)
    return Mesh(mesh.vertices[used], faces.reshape(-1, 3))


def write_face(folder: Path, subject: TemplateHead, radius: float) -> tuple[Path, Path]:
    """What `fit_face` leaves: identity, and the neutral mesh within ``radius`` of the landmarks."""
    near = cKDTree(subject.landmarks).query(subject.mesh.vertices)[0] < radius
    write_mesh(folder / "neutral.ply", cut(subject.mesh, near))
    identity = Identity(np.zeros(4), np.float32(0.1), subject.landmarks)
    return write_arrays(folder / "identity.npz", identity), folder / "neutral.ply"
