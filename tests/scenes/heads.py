"""Heads for the tests of this stage: random smooth variations of the generic head, and parts."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
from scipy.spatial import cKDTree

from eavatar.io import Identity, Mesh, write_arrays, write_mesh
from eavatar.prior.template import TemplateHead, generic_head
from eavatar.prior.template_fit import warp
from tests.scenes.outlines import SCALE, write_outlines


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


def write_subject(
    folder: Path, subject: TemplateHead, radius: float, person: Mesh | None = None
) -> tuple[Path, Path]:
    """Write what `align_prior` knows of a subject.

    Args:
        folder: in which ``capture`` and ``face`` are written; these are returned.
        subject: in canonical space.
        radius: the fitted neutral mesh is what is this close to a landmark, dm.
        person: what the masks show, if not the subject's head.
    """
    capture, face = folder / "capture", folder / "face"
    write_outlines(capture, face, person or subject.mesh, cameras=5, matte=1.0, seed=0)
    near = cKDTree(subject.landmarks).query(subject.mesh.vertices)[0] < radius
    write_mesh(face / "neutral.ply", cut(subject.mesh, near))
    identity = Identity(np.zeros(4), np.float32(SCALE), subject.landmarks)
    write_arrays(face / "identity.npz", identity)
    return capture, face
