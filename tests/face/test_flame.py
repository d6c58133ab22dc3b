"""FLAME and GNM: files of the published names, shapes and units, with made-up values."""

from __future__ import annotations

import io
import pickle
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import scipy.sparse
from scipy.spatial.transform import Rotation

from eavatar.face.flame import JAW_DEVIATIONS
from eavatar.face.landmark_lists import PUBLISHED_LANDMARKS
from eavatar.face.layout import AVERAGE_FACE
from eavatar.face.morphable import (
    LANDMARK_CENTROID,
    MorphableModel,
    describe_morphable_model,
    forbids_commercial_use,
    read_morphable_model,
)
from eavatar.face.pickled_arrays import read_pickled_arrays
from tests.scenes.morphable_models import refused

FLAME_VERTICES, FLAME_FACES = 5023, 9976
GNM_VERTICES = 17821
EYES = slice(3931, 5023)  # FLAME's eyeballs


class _Wrapper:
    """Pickled under the name of chumpy's array, whose attribute x holds the values."""

    def __init__(self, x: np.ndarray) -> None:
        self.x = x


def make_flame() -> dict[str, Any]:
    """A made-up head in metres; sparse and wrapped arrays where the published file has them."""
    random = np.random.default_rng(0)
    mean = random.normal(0, 0.07, (FLAME_VERTICES, 3))
    mean[100:168] = AVERAGE_FACE / 1000
    weights = np.zeros((FLAME_VERTICES, 5))
    weights[:, 1], weights[:2000, 2], weights[:2000, 1] = 1, 0.7, 0.3
    weights[EYES] = [0, 0, 0, 1, 0]
    regressor = scipy.sparse.random(5, FLAME_VERTICES, 0.01, "csc", random_state=0)
    regressor = regressor.multiply(1 / regressor.sum(axis=1)).tocsc()
    return {
        "v_template": mean,
        "shapedirs": _Wrapper(random.normal(0, 2e-4, (FLAME_VERTICES, 3, 400))),
        "f": random.integers(0, FLAME_VERTICES, (FLAME_FACES, 3)).astype(np.uint32),
        "weights": weights,
        "posedirs": random.normal(0, 1e-3, (FLAME_VERTICES, 3, 36)),
        "J_regressor": regressor,
        "kintree_table": np.zeros((2, 5), np.uint32),
        "bs_style": "lbs",
    }


def write_pickle(path: Path, content: object, protocol: int = 2) -> Path:
    """A pickle whose wrappers are chumpy's, which need not be installed to read it."""
    package, module = ModuleType("chumpy"), ModuleType("chumpy.ch")
    _Wrapper.__module__, _Wrapper.__qualname__, _Wrapper.__name__ = "chumpy.ch", "Ch", "Ch"
    module.Ch = _Wrapper  # type: ignore[attr-defined]
    sys.modules |= {"chumpy": package, "chumpy.ch": module}
    try:
        path.write_bytes(pickle.dumps(content, protocol=protocol))
    finally:
        del sys.modules["chumpy"], sys.modules["chumpy.ch"]
    return path


def write_embedding(folder: Path, content: dict[str, Any]) -> None:
    """DECA's landmarks: points in triangles whose nearest corners are vertices 100 to 167."""
    corners = np.arange(100, 168)
    content["f"][:68, 1] = corners
    embedding = {
        "full_lmk_faces_idx": np.arange(68)[None],
        "full_lmk_bary_coords": np.tile([0.2, 0.7, 0.1], (1, 68, 1)),
        "dynamic_lmk_faces_idx": _Wrapper(np.zeros((79, 17))),  # a tensor, as published
    }
    buffer = io.BytesIO()
    np.lib.format.write_array_header_1_0(
        buffer, {"descr": "|O", "fortran_order": False, "shape": ()}
    )
    path = folder / "landmark_embedding.npy"
    held = np.empty((), dtype=object)
    held[()] = embedding
    write_pickle(path, held, protocol=3)
    path.write_bytes(buffer.getvalue() + path.read_bytes())


@pytest.fixture(scope="module")
def flame(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    folder, content = tmp_path_factory.mktemp("flame"), make_flame()
    write_embedding(folder, content)
    return write_pickle(folder / "generic_model.pkl", content), content


def expected_vertices(
    content: dict[str, Any], identity: np.ndarray, expression: np.ndarray, jaw: np.ndarray
) -> np.ndarray:
    """FLAME's own formula, metres: linear blend skinning of the jaw alone, with its correctives."""
    bases = content["shapedirs"].x
    shaped = content["v_template"] + bases[..., : len(identity)] @ identity
    shaped += bases[..., 300 : 300 + len(expression)] @ expression
    joint = (content["J_regressor"] @ content["v_template"])[2]
    turn = Rotation.from_rotvec(jaw).as_matrix()
    posed = shaped + content["posedirs"][..., 9:18] @ (turn - np.eye(3)).ravel()
    weight = content["weights"][:, 2:3]
    return weight * ((posed - joint) @ turn.T + joint) + (1 - weight) * posed


def place(model: MorphableModel, vertices: np.ndarray, landmarks: np.ndarray) -> np.ndarray:
    """Vertices in the model's own origin, put where canonical space has them."""
    return vertices + (np.array(LANDMARK_CENTROID) - landmarks.mean(axis=0))


def test_flame_is_read_from_its_pickle_in_canonical_units(
    flame: tuple[Path, dict[str, Any]],
) -> None:
    path, content = flame
    model = read_morphable_model(path)
    assert model.mean.shape == (FLAME_VERTICES - 1092, 3)  # without the eyeballs
    assert model.identity_basis.shape[2] == 300 and model.expression_basis.shape[2] == 2 + 100
    assert model.landmark_vertices.tolist() == list(range(100, 168))
    random = np.random.default_rng(1)
    identity, expression = random.normal(size=5), random.normal(size=4)
    expected = 10 * expected_vertices(content, identity, expression, np.zeros(3))
    rest = 10 * content["v_template"]
    coefficients = np.concatenate([[0, 0], expression])
    found = model.vertices(identity.astype(np.float32))
    found = found + model.expression_basis[..., : len(coefficients)] @ coefficients
    # float32 storage of values of about 1 dm
    np.testing.assert_allclose(found, place(model, expected, rest[100:168])[:3931], atol=1e-5)


def test_the_first_expressions_turn_the_jaw(flame: tuple[Path, dict[str, Any]]) -> None:
    path, content = flame
    model = read_morphable_model(path)
    step = 1e-4
    for k, deviation in enumerate(JAW_DEVIATIONS):
        turn = np.zeros(3)
        turn[k] = step
        ahead, behind = (
            expected_vertices(content, np.zeros(0), np.zeros(0), sign * turn) for sign in (1, -1)
        )
        derivative = 10 * (ahead - behind)[:3931] / (2 * step)
        np.testing.assert_allclose(
            model.expression_basis[..., k], deviation * derivative, atol=1e-5
        )


def test_the_linear_jaw_is_off_the_arc_by_what_is_said(tmp_path: Path) -> None:
    """At two deviations, 17°, a chin 100 mm from the joint lies 4.5 mm beside its arc."""
    opened = 2 * JAW_DEVIATIONS[0]
    chin = np.array([0.0, 0.0, 100.0])
    linear = chin + np.cross([opened, 0, 0], chin)
    turned = Rotation.from_rotvec([opened, 0, 0]).apply(chin)
    assert 4.4 < np.linalg.norm(linear - turned) < 4.8


def test_flame_as_npz_and_without_jaw(flame: tuple[Path, dict[str, Any]], tmp_path: Path) -> None:
    path, content = flame
    plain = content | {"shapedirs": content["shapedirs"].x}
    plain["J_regressor"] = plain["J_regressor"].toarray()
    write_embedding(tmp_path, content)
    np.savez(tmp_path / "flame2023_Open.npz", **plain)
    model, first = read_morphable_model(tmp_path / "flame2023_Open.npz"), read_morphable_model(path)
    np.testing.assert_allclose(model.expression_basis, first.expression_basis, atol=1e-6)
    np.testing.assert_array_equal(model.mean, first.mean)
    (tmp_path / "flame2023_Open.npz").rename(tmp_path / "flame2023_no_jaw.npz")
    bare = read_morphable_model(tmp_path / "flame2023_no_jaw.npz", 10, 20)
    np.testing.assert_array_equal(bare.expression_basis, first.expression_basis[..., 2:22])
    assert bare.identity_basis.shape[2] == 10


def test_files_say_what_they_are(flame: tuple[Path, dict[str, Any]], tmp_path: Path) -> None:
    path, _ = flame
    assert "no commercial use" in describe_morphable_model(path)
    assert forbids_commercial_use(path)
    opened = tmp_path / "flame2023_Open.pkl"
    opened.symlink_to(path)
    assert "CC BY 4.0, commercial use allowed" in describe_morphable_model(opened)
    assert not forbids_commercial_use(opened)


def test_faulty_flame_files_are_one_sentence(tmp_path: Path) -> None:
    content = make_flame()
    path = write_pickle(tmp_path / "flame.pkl", content)
    refused(path, r"put landmark_embedding\.npy of DECA beside it")
    (tmp_path / "flame.txt").write_text(" ".join(map(str, range(5000, 5068))))
    refused(path, "name vertices outside 0 to 5022")
    (tmp_path / "flame.txt").write_text(" ".join(map(str, range(100, 168))))
    read_morphable_model(path)
    write_pickle(path, content | {"shapedirs": content["shapedirs"].x[..., :110]})
    refused(path, "shapedirs is 5023 × 3 × 110 instead of 5023 × 3 × 400")
    write_pickle(path, {name: content[name] for name in content if name != "J_regressor"})
    refused(path, "lacks J and J_regressor")
    path.write_bytes(path.read_bytes()[:-1000])
    refused(path, "a Python pickle, but damaged")


class _Attack:
    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Any, ...]:
        return exec, (f"import pathlib; pathlib.Path({str(self.mark)!r}).touch()",)


@pytest.mark.parametrize("protocol", range(5))
def test_nothing_that_a_pickle_names_is_run(tmp_path: Path, protocol: int) -> None:
    mark = tmp_path / "run"
    content = {"a": _Attack(mark), "b": np.eye(2)}
    path = write_pickle(tmp_path / "model.pkl", content, protocol)
    arrays = read_pickled_arrays(path)
    assert list(arrays) == ["b"] and not mark.exists()
    np.testing.assert_array_equal(arrays["b"], np.eye(2))
    pickle.loads(path.read_bytes())
    assert mark.exists()  # what unpickling does


@pytest.mark.parametrize("protocol", range(5))
def test_arrays_of_a_pickle_are_those_that_were_stored(tmp_path: Path, protocol: int) -> None:
    stored = {
        "c": np.arange(6.0).reshape(2, 3),
        "fortran": np.asfortranarray(np.arange(6, dtype=np.uint32).reshape(2, 3)),
        "swapped": np.arange(4, dtype=">f4"),
    }
    sparse = scipy.sparse.random(7, 9, 0.3, "csc", random_state=1)
    objects = {"objects": np.array([{}], dtype=object), "text": "lbs", "sparse": sparse}
    found = read_pickled_arrays(write_pickle(tmp_path / "a.pkl", stored | objects, protocol))
    assert set(found) == {*stored, "sparse"}
    for name, array in stored.items():
        np.testing.assert_array_equal(found[name], array)
    np.testing.assert_array_equal(found["sparse"], sparse.toarray())


# --- GNM ----------------------------------------------------------------------------------------


def make_gnm() -> dict[str, np.ndarray]:
    """A made-up head in metres: skin of 12,500 vertices, of which the mouth moves most."""
    random = np.random.default_rng(0)
    mean = random.normal(0, 0.07, (GNM_VERTICES, 3)).astype(np.float32)
    mean[list(PUBLISHED_LANDMARKS[GNM_VERTICES])] = AVERAGE_FACE / 1000
    skin = np.arange(GNM_VERTICES) < 12500
    names = ["left_eye_region_0", "tongue_0", "lower_face_region_0", "lower_face_region_1"]
    sizes = np.array([2e-4, 3e-3, 3e-3, 1e-3])
    expression = random.normal(0, 1, (4, GNM_VERTICES, 3)) * sizes[:, None, None]
    expression[1, skin] = 0
    identity = random.normal(0, 1e-3, (3, GNM_VERTICES, 3))
    identity[2, skin] = 0  # teeth
    return {
        "version": np.array("3.0"),
        "variant": np.array("head"),
        "template_vertex_positions": mean,
        "vertex_identity_basis": identity.astype(np.float32),
        "expression_basis": expression.astype(np.float32),
        "identity_names": np.array(["head_0", "head_1", "teeth_0"]),
        "expression_names": np.array(names),
        "triangles": random.integers(0, GNM_VERTICES, (35000, 3)).astype(np.int32),
        "vertex_group_names": np.array(["eyes", "skin"]),
        "vertex_groups": np.stack([~skin, skin]).astype(np.float32),
    }


def test_gnm_is_read_with_its_published_landmarks(tmp_path: Path) -> None:
    content, path = make_gnm(), tmp_path / "gnm_head.npz"
    np.savez(path, **content)
    model = read_morphable_model(path)
    assert model.mean.shape == (12500, 3) and model.faces.max() < 12500
    landmarks = PUBLISHED_LANDMARKS[GNM_VERTICES]
    assert model.landmark_vertices.tolist() == list(landmarks)  # all in the skin, which is first
    mean = 10 * content["template_vertex_positions"].astype(float)
    expected = place(model, mean, mean[list(landmarks)])
    np.testing.assert_allclose(model.mean, expected[:12500], atol=1e-5)
    np.testing.assert_allclose(
        model.identity_basis, 10 * np.moveaxis(content["vertex_identity_basis"][:2, :12500], 0, 2),
        atol=1e-6,
    )  # fmt: skip
    strongest = content["expression_basis"][[2, 3, 0], :12500]  # the tongue does not move the skin
    np.testing.assert_allclose(model.expression_basis, 10 * np.moveaxis(strongest, 0, 2), atol=1e-6)
    assert read_morphable_model(path, 1, 2).expression_basis.shape == (12500, 3, 2)
    assert describe_morphable_model(path) == "GNM Head; Apache-2.0, commercial use allowed"


def test_the_published_landmarks_of_gnm_mirror_each_other() -> None:
    """Its mesh is numbered so that the right half comes after the left one; the nearest corners
    of mirrored points must not lie on one side."""
    listed = np.array(PUBLISHED_LANDMARKS[GNM_VERTICES])
    assert len(set(listed.tolist())) == 68
    right, left = listed[:8], listed[16:8:-1]
    assert (right > left).all()


def test_faulty_gnm_files_are_one_sentence(tmp_path: Path) -> None:
    content, path = make_gnm(), tmp_path / "gnm_head.npz"
    np.savez(path, **content | {"vertex_group_names": np.array(["eyes", "face"])})
    refused(path, "no vertex group 'skin'")
    np.savez(path, **{name: content[name] for name in content if name != "triangles"})
    refused(path, r"no readable gnm_head\.npz of version 3")
    np.savez(path, **content | {"expression_basis": content["expression_basis"][:, :9]})
    refused(path, "expression_basis is 4 × 9 × 3 instead of any × 17821 × 3")
    np.savez(
        path, **content | {"template_vertex_positions": 1000 * content["template_vertex_positions"]}
    )
    refused(path, "GNM in metres")
