"""Expressions of one morphable model in the coefficients of another."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from eavatar.errors import UserError
from eavatar.io import read_mesh, write_mesh
from eavatar.view.expressions import Face, expression_map
from tests.scenes.faces import make_face, write_face

EXPRESSIONS = 6


def landmark_motion(face: Face, expressions: np.ndarray) -> np.ndarray:
    """(68, 3) of coefficients."""
    squared = ((face.mesh.vertices - face.landmarks[:, None]) ** 2).sum(axis=2)
    return face.basis[squared.argmin(axis=1)] @ expressions


def test_expressions_of_one_model_stay_as_they_are():
    face = make_face(0, EXPRESSIONS)
    other = replace(face, landmarks=1.1 * face.landmarks)  # another person
    assert np.array_equal(expression_map(other, face), np.eye(EXPRESSIONS))


def test_another_model_moves_the_face_alike():
    """The same motions in other coefficients, on another mesh and a larger face."""
    driver, avatar = make_face(1, EXPRESSIONS), make_face(2, EXPRESSIONS, cells=43)
    mesh = replace(avatar.mesh, vertices=1.1 * avatar.mesh.vertices)
    avatar = replace(avatar, mesh=mesh, landmarks=1.1 * avatar.landmarks)
    acted = np.random.default_rng(0).normal(size=EXPRESSIONS)
    wanted = landmark_motion(driver, acted)
    found = landmark_motion(avatar, expression_map(driver, avatar) @ acted)
    # vertices are 5 mm apart: a landmark is at the nearest one of each mesh
    assert np.linalg.norm(found - wanted) < 0.15 * np.linalg.norm(wanted)


def test_what_the_other_model_lacks_is_left_out():
    driver, avatar = make_face(1, EXPRESSIONS), make_face(2, EXPRESSIONS)
    few = replace(avatar, basis=avatar.basis[..., :2])
    carried = expression_map(driver, few)
    assert carried.shape == (2, EXPRESSIONS)
    # no coefficient runs away for a motion that it can make only in part
    assert np.abs(carried).max() < 2


def test_files_that_do_not_belong_together_are_told(tmp_path):
    write_face(tmp_path, make_face(0, EXPRESSIONS))
    mesh = make_face(0, EXPRESSIONS, cells=20).mesh
    write_mesh(tmp_path / "neutral.ply", mesh)
    count = len(read_mesh(tmp_path / "neutral.ply").vertices)
    with pytest.raises(UserError, match=f"{count}; track the person again"):
        Face.read(tmp_path)
