"""The ICT Face Model Light in its own files, the folder ``FaceXModel`` of ICT-FaceKit.

As published at github.com/ICT-VGL/ICT-FaceKit under the MIT licence (Li et al. 2020):

    generic_neutral_mesh.obj   the mean face, 26,719 vertices, polygons of up to four corners
    identity000.obj …          the mean moved by one standard deviation of an identity component
    <expression>.obj           the mean with one expression at full strength
    vertex_indices.json        "expressions", their names; "idx_to_landmark_verts", iBUG-68 from 0

Centimetres, y up, z out of the face. The reader was run on shapes of the
model that were written so, not on the published files themselves.
"""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from eavatar.arrays import Float32, Int64
from eavatar.errors import UserError
from eavatar.face.landmark_lists import LandmarkList
from eavatar.face.model_arrays import ModelArrays
from eavatar.io import LANDMARKS

NEUTRAL, INDICES = "generic_neutral_mesh.obj", "vertex_indices.json"
EXPRESSIONS, LANDMARK_VERTICES = "expressions", "idx_to_landmark_verts"  # in INDICES
CENTIMETRES = 0.1  # in canonical units
# Face, head and neck come first in the published order; mouth socket, teeth, eyeballs and lashes,
# which no landmark lies on, come after.
SKIN_VERTICES = 11248
# Expressions have strengths from 0 to 1 instead of deviations; this is the deviation of a strength
# that is uniform there. All 53 then move the landmarks by 8.5 mm, as the Basel models' do.
STRENGTH_DEVIATION = 12**-0.5
FETCH = "fetch FaceXModel of github.com/ICT-VGL/ICT-FaceKit again"


def is_face_x_model(path: Path) -> bool:
    """Whether a path is the folder's mean face, with the indices beside it."""
    return path.name == NEUTRAL and path.with_name(INDICES).is_file()


def list_face_x_model(path: Path) -> list[Path]:
    """The files that are read beside the mean face; none if the path is another model's."""
    if not is_face_x_model(path):
        return []
    return [path.with_name(INDICES), *path.parent.glob("*.obj")]


def read_face_x_model(
    path: Path, identity_components: int | None, expression_components: int | None
) -> tuple[ModelArrays, LandmarkList]:
    """Read the mean face and the files beside it, and who says where its landmarks are.

    Args:
        path: ``generic_neutral_mesh.obj``.
        identity_components: the largest number of leading components that are read; None for all.
        expression_components: likewise.

    Raises:
        UserError: a file is missing, damaged, or of a mesh with other vertices.
    """
    names, landmarks = _read_indices(path.with_name(INDICES))
    expressions = [path.with_name(f"{name}.obj") for name in names[:expression_components]]
    identities = sorted(path.parent.glob("identity[0-9][0-9][0-9].obj"))[:identity_components]
    if not identities:
        raise UserError(f"{path.parent} holds no identity000.obj; {FETCH}.")
    mean, faces = _read_mesh(path)
    strength = np.float32(STRENGTH_DEVIATION)
    model = ModelArrays(
        mean[:SKIN_VERTICES],
        _read_basis(identities, mean),
        _read_basis(expressions, mean) * strength,
        faces[(faces < SKIN_VERTICES).all(axis=1)],
        landmarks,
    )
    origin = f"landmarks in {path.with_name(INDICES)}"
    return model, LandmarkList(landmarks, origin, 0, "fetch the folder again")


def _read_indices(path: Path) -> tuple[list[str], Int64]:
    """The names of the expressions, and the (68,) landmark vertices."""
    try:
        content: Any = json.loads(path.read_text(encoding="utf-8"))
        names = [str(name) for name in content[EXPRESSIONS]]
        landmarks = np.array(content[LANDMARK_VERTICES], dtype=np.int64)
    except (OSError, ValueError, KeyError, TypeError, OverflowError) as error:
        raise UserError(
            f"{path} cannot be read as ICT-FaceKit's list of {EXPRESSIONS} and "
            f"{LANDMARK_VERTICES}; {FETCH}."
        ) from error
    if landmarks.shape != (LANDMARKS,) or not names:
        raise UserError(f"{path} must name 68 {LANDMARK_VERTICES} and some {EXPRESSIONS}; {FETCH}.")
    return names, landmarks


def _read_basis(paths: list[Path], mean: Float32) -> Float32:
    """(V, 3, K) how the skin of K meshes differs from the mean's."""
    basis = np.empty((min(len(mean), SKIN_VERTICES), 3, len(paths)), dtype=np.float32)
    for k, path in enumerate(paths):
        vertices = _read_vertices(path)
        if vertices.shape != mean.shape:
            raise UserError(
                f"{path} has {len(vertices)} vertices and the mean {len(mean)}; {FETCH}."
            )
        basis[..., k] = (vertices - mean)[:SKIN_VERTICES]
    return basis


def _read_mesh(path: Path) -> tuple[Float32, Int64]:
    """Vertices (V, 3) in canonical units and triangles (F, 3) of all polygons."""
    try:
        polygons = [
            [int(corner.split(b"/")[0]) - 1 for corner in line.split()[1:]]
            for line in path.read_bytes().splitlines()
            if line.startswith(b"f ")
        ]
    except (OSError, ValueError) as error:
        raise UserError(f"{path} is damaged; {FETCH}.") from error
    triangles = [(corners[0], *pair) for corners in polygons for pair in pairwise(corners[1:])]
    return _read_vertices(path), np.array(triangles, dtype=np.int64).reshape(-1, 3)


def _read_vertices(path: Path) -> Float32:
    """Vertices (V, 3) of an ``.obj`` file in canonical units."""
    try:
        lines = [line[2:] for line in path.read_bytes().splitlines() if line.startswith(b"v ")]
        values = np.array(b" ".join(lines).split(), dtype=np.float64).reshape(len(lines), 3)
    except (OSError, ValueError) as error:
        raise UserError(f"{path} is missing or damaged; {FETCH}.") from error
    if not np.isfinite(values).all():
        raise UserError(f"{path} holds values that are not finite; {FETCH}.")
    return (values * CENTIMETRES).astype(np.float32)
