"""The reader of ICT-FaceKit's own files, on files of the published names, layout and units."""

from __future__ import annotations

import json
import os
from pathlib import Path

import h5py
import numpy as np
import pytest

from eavatar.errors import UserError
from eavatar.face import ict_facekit
from eavatar.face.layout import AVERAGE_FACE
from eavatar.face.morphable import (
    LANDMARK_CENTROID,
    describe_morphable_model,
    read_morphable_model,
)
from eavatar.preflight.check import examine_model
from eavatar.preflight.findings import Examination
from tests.scenes.morphable_models import refused

VERTICES = 90
EXPRESSIONS = ("jawOpen", "eyeBlink_L")
LICENCE = "# ICT FaceKit\n# Permission is hereby granted, free of charge\n"


def _write_mesh(path: Path, vertices: np.ndarray) -> None:
    """Vertices as published, polygons of four corners and of three, which number from 1."""
    lines = [f"v {x:.6g} {y:.6g} {z:.6g}" for x, y, z in vertices]
    path.write_text(
        LICENCE
        + "mtllib ICTFaceModelMaterial.mtl\n"
        + "\n".join(lines)
        + "\nvt 0.5 0.5\nvn 0 0 1\nusemtl M_Face\nf 1/1/1 2/1/1 3/1/1 4/1/1\nf 5/1 6/1 90/1\n"
    )


def _write_model(folder: Path) -> tuple[Path, dict[str, np.ndarray]]:
    """A made-up FaceXModel in centimetres; the mesh, and all its vertices by name."""
    random = np.random.default_rng(0)
    mean, landmarks = random.normal(0, 6, (VERTICES, 3)), random.permutation(VERTICES)[:68]
    mean[landmarks] = np.asarray(AVERAGE_FACE) / 10
    shapes = mean + random.normal(0, 0.3, (4, VERTICES, 3))
    return _write_folder(folder, mean, shapes, landmarks)


def _write_folder(
    folder: Path, mean: np.ndarray, shapes: np.ndarray, landmarks: np.ndarray
) -> tuple[Path, dict[str, np.ndarray]]:
    """A FaceXModel of a mean, two identities and the two expressions, in centimetres."""
    names = ("identity000", "identity001", *EXPRESSIONS)
    meshes = {"generic_neutral_mesh": mean} | dict(zip(names, shapes, strict=True))
    folder.mkdir()
    for name, vertices in meshes.items():
        _write_mesh(folder / f"{name}.obj", vertices)
    listed = {"expressions": EXPRESSIONS, "idx_to_landmark_verts": landmarks.tolist()}
    (folder / "vertex_indices.json").write_text(json.dumps(listed))
    return folder / "generic_neutral_mesh.obj", meshes


@pytest.mark.skipif("EAVATAR_SHARED" not in os.environ, reason="EAVATAR_SHARED is not set")
def test_the_models_own_shapes_are_those_of_its_conversion_to_the_basel_layout(
    tmp_path: Path,
) -> None:
    stored = Path(os.environ["EAVATAR_SHARED"]) / "models" / "ict_bfm2017.h5"
    expected = read_morphable_model(stored)
    with h5py.File(stored) as file:  # the maps give the conversion's coefficients of ICT's shapes
        identities = expected.identity_basis @ file["ict/id_map"][:, :2]
        names = [name.decode() for name in file["ict/expression_names"][:]]
        chosen = [names.index(name) for name in EXPRESSIONS]
        expressions = expected.expression_basis @ file["ict/exp_map"][:][:, chosen]
    moved = np.moveaxis(np.concatenate([identities, expressions], axis=2), 2, 0)
    mean = expected.mean
    path, _ = _write_folder(
        tmp_path / "FaceXModel", 10 * mean, 10 * (mean + moved), expected.landmark_vertices
    )
    model = read_morphable_model(path)
    # Six digits of up to 20 cm: 5·10⁻⁶ dm, twice for a difference, and float32.
    np.testing.assert_allclose(model.mean, mean, atol=2e-5)
    np.testing.assert_allclose(model.identity_basis, identities, atol=2e-5)
    strengths = model.expression_basis / ict_facekit.STRENGTH_DEVIATION
    np.testing.assert_allclose(strengths, expressions, atol=5e-5)
    chin = strengths[model.landmark_vertices[8]]
    assert chin[1, 0] < -0.2  # the jaw opens by more than 2 cm
    assert np.abs(chin[:, 1]).max() < 1e-3  # and a blink leaves it alone


def test_vertices_are_the_mean_and_the_meshes_differences_from_it(tmp_path: Path) -> None:
    path, meshes = _write_model(tmp_path / "FaceXModel")
    model = read_morphable_model(path)
    centre = (meshes["generic_neutral_mesh"] / 10)[model.landmark_vertices].mean(axis=0)
    # Files hold six digits of values of about 10 cm, so 10⁻⁵ dm.
    np.testing.assert_allclose(
        model.vertices(np.array([0, 1], dtype=np.float32)),
        meshes["identity001"] / 10 - centre + LANDMARK_CENTROID,
        atol=3e-5,
    )
    full = 1 / ict_facekit.STRENGTH_DEVIATION  # coefficient of an expression at full strength
    np.testing.assert_allclose(
        model.mean + full * model.expression_basis[..., 1],
        meshes["eyeBlink_L"] / 10 - centre + LANDMARK_CENTROID,
        atol=3e-5,
    )


def test_polygons_become_triangles_that_cover_them(tmp_path: Path) -> None:
    model = read_morphable_model(_write_model(tmp_path / "FaceXModel")[0])
    corners = {frozenset(face) for face in model.faces.tolist()}
    assert corners == {frozenset({0, 1, 2}), frozenset({0, 2, 3}), frozenset({4, 5, 89})}


def test_only_the_leading_components_are_read(tmp_path: Path) -> None:
    path, _ = _write_model(tmp_path / "FaceXModel")
    model = read_morphable_model(path, identity_components=1, expression_components=1)
    assert model.identity_basis.shape == model.expression_basis.shape == (VERTICES, 3, 1)


def test_what_lies_behind_the_skin_is_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, _ = _write_model(tmp_path / "FaceXModel")
    whole = read_morphable_model(path)
    skin = int(whole.landmark_vertices.max()) + 1
    monkeypatch.setattr(ict_facekit, "SKIN_VERTICES", skin)
    model = read_morphable_model(path)
    np.testing.assert_array_equal(model.mean, whole.mean[:skin])
    assert model.faces.max() < skin


def test_what_is_wrong_with_the_folder_is_said(tmp_path: Path) -> None:
    path, meshes = _write_model(tmp_path / "FaceXModel")
    expression, indices = path.with_name("jawOpen.obj"), path.with_name("vertex_indices.json")
    refused(expression, "is a mesh, which cannot be read: give .*generic_neutral_mesh")
    _write_mesh(expression, meshes["jawOpen"][:-1])
    with pytest.raises(UserError, match=r"jawOpen\.obj has 89 vertices and the mean 90"):
        read_morphable_model(path)
    expression.write_text("v 1 2\n")
    with pytest.raises(UserError, match=r"jawOpen\.obj is missing or damaged"):
        read_morphable_model(path)
    expression.unlink()
    with pytest.raises(UserError, match=r"jawOpen\.obj is missing or damaged"):
        read_morphable_model(path)
    indices.write_text("{}")
    with pytest.raises(UserError, match="cannot be read as ICT-FaceKit's list"):
        read_morphable_model(path)
    indices.unlink()
    refused(path, "is a mesh, which cannot be read")


def test_landmarks_of_another_mesh_are_refused(tmp_path: Path) -> None:
    path, _ = _write_model(tmp_path / "FaceXModel")
    indices = path.with_name("vertex_indices.json")
    listed = json.loads(indices.read_text())
    listed["idx_to_landmark_verts"].reverse()
    indices.write_text(json.dumps(listed))
    with pytest.raises(UserError, match=r"landmarks in .*vertex_indices\.json are not the 68"):
        read_morphable_model(path)


def test_a_change_of_any_file_beside_the_mean_is_seen(tmp_path: Path) -> None:
    path, _ = _write_model(tmp_path / "FaceXModel")
    read = {file.name for file in ict_facekit.list_face_x_model(path)} | {path.name}
    assert read == {file.name for file in path.parent.iterdir()}
    assert ict_facekit.list_face_x_model(path.with_name("jawOpen.obj")) == []


def test_check_names_the_model_and_its_licence(tmp_path: Path) -> None:
    path, _ = _write_model(tmp_path / "FaceXModel")
    assert "MIT licence" in describe_morphable_model(path)
    found = Examination()
    assert examine_model(found, path) is not None
    assert "ICT Face Model Light; MIT licence" in found.table()
