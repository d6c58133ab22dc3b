"""Faces of made-up morphable models: a bent sheet that smooth bumps move."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from scipy.spatial import cKDTree

from eavatar.face.layout import AVERAGE_FACE
from eavatar.io import ExpressionBasis, Identity, Mesh, write_arrays, write_mesh
from eavatar.view.expressions import Face


def make_face(seed: int, expressions: int, cells: int = 36) -> Face:
    """A face whose expressions are mixtures, by the seed, of the same smooth motions.

    Args:
        seed: of the mixtures.
        expressions: coefficients, as many motions.
        cells: of the sheet, across and up: its vertices differ between models.
    """
    side = np.linspace(-1, 1, cells + 1)
    x, y = (axis.ravel() for axis in np.meshgrid(side, side))
    vertices = np.stack([x, y, 0.5 - 0.3 * x**2 - 0.2 * y**2], axis=1)
    number = np.arange((cells + 1) ** 2).reshape(cells + 1, -1)
    a, b, c, d = (
        part.ravel()
        for part in (number[:-1, :-1], number[:-1, 1:], number[1:, :-1], number[1:, 1:])
    )
    faces = np.concatenate([np.stack([a, b, d], axis=1), np.stack([a, d, c], axis=1)])
    motions = np.random.default_rng(0)
    centres = motions.uniform(-0.7, 0.7, (expressions, 2))
    directions = 0.08 * motions.normal(size=(3, expressions))
    squared = ((vertices[:, None, :2] - centres) ** 2).sum(axis=2)
    bumps = np.exp(-squared / 0.3)[:, None] * directions
    mixture = np.linalg.qr(np.random.default_rng(seed).normal(size=(expressions, expressions)))[0]
    at = cKDTree(vertices[:, :2]).query(AVERAGE_FACE[:, :2] / 100)[1]
    mesh = Mesh(vertices.astype(np.float32), faces.astype(np.int64))
    return Face(mesh, bumps @ mixture, vertices[at])


def write_face(folder: Path, face: Face) -> Path:
    """As ``results/<subject>/face`` has it; returns the folder."""
    write_mesh(folder / "neutral.ply", face.mesh)
    write_arrays(folder / "expression_basis.npz", ExpressionBasis(face.basis.astype(np.float32)))
    identity = Identity(np.zeros(1), np.array(0.1), face.landmarks.astype(np.float32))
    write_arrays(folder / "identity.npz", identity)
    return folder
