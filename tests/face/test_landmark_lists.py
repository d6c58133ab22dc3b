"""Landmark lists of morphable models: where they come from, and that wrong ones are refused."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import h5py
import numpy as np
import pytest
import scipy.io

from eavatar.demo.head import landmark_points
from eavatar.demo.morphable_model import build_model
from eavatar.errors import UserError
from eavatar.face.landmark_lists import PUBLISHED_LANDMARKS
from eavatar.face.layout import AVERAGE_FACE
from eavatar.face.morphable import read_morphable_model
from eavatar.landmark_indices import MIRROR
from tests.scenes.morphable_models import (
    EXPRESSION,
    IDENTITY,
    contents_2009,
    random_parts,
    refused,
    write_2017,
)


def test_landmark_indices_beside_the_model(tmp_path: Path) -> None:
    parts = random_parts()
    path = write_2017(tmp_path / "model.h5", parts, landmarks=False)
    with pytest.raises(UserError, match=r"model\.txt"):
        read_morphable_model(path)
    (tmp_path / "model.txt").write_text("1 2 three")
    with pytest.raises(UserError, match="whole numbers"):
        read_morphable_model(path)
    (tmp_path / "model.txt").write_text("1 2 3")
    with pytest.raises(UserError, match="68 vertex indices, not 3"):
        read_morphable_model(path)
    (tmp_path / "model.txt").write_text("\n".join(map(str, parts["landmarks"])))
    np.testing.assert_array_equal(read_morphable_model(path).landmark_vertices, parts["landmarks"])


def give_landmarks(path: Path, indices: np.ndarray) -> Path:
    """Other landmark indices for an .h5 file."""
    with h5py.File(path, "a") as file:
        file["landmarks68/vertex_index"][...] = indices
    return path


FAULTY_LISTS = {
    "counted from 1": (lambda given: given + 1, "each is one too large"),
    "counted from -1": (lambda given: given - 1, "each is one too small|outside 0 to"),
    "permuted": (np.random.default_rng(3).permutation, "wrong side of others"),
    "a jaw from left to right": (
        lambda given: np.append(given[16::-1], given[17:]),
        "the jaw line runs from left to right",
    ),
    "left and right exchanged": (
        lambda given: given[list(MIRROR)],
        "left and right are exchanged",
    ),
    "eyes exchanged": (
        lambda given: given[[*range(36), *range(42, 48), *range(36, 42), *range(48, 68)]],
        "wrong side of others",
    ),
    "lids from the other side": (
        lambda given: given[[*range(36), 36, 41, 40, 39, 38, 37, *range(42, 68)]],
        "wrong side of others",
    ),
    "a mouth that begins elsewhere": (
        lambda given: np.concatenate([given[:48], np.roll(given[48:60], 1), given[60:]]),
        "wrong side of others",
    ),
    "one wrong digit": (
        lambda given: np.where(np.arange(68) == 30, given[33], given),
        "landmark 31 lies on the wrong side of others",
    ),
}


@pytest.fixture(scope="module")
def demo_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The model that the workflow generates, with a mesh of 9,939 vertices."""
    path = tmp_path_factory.mktemp("demo") / "model.h5"
    build_model(path, landmark_points(), np.random.default_rng(0))
    return path


@pytest.mark.parametrize("fault", FAULTY_LISTS)
def test_a_list_that_is_no_face_is_refused_with_its_cause(
    demo_model: Path, tmp_path: Path, fault: str
) -> None:
    change, sentence = FAULTY_LISTS[fault]
    path = Path(shutil.copy(demo_model, tmp_path / "model.h5"))
    indices = read_morphable_model(path).landmark_vertices
    refused(give_landmarks(path, change(indices)), sentence)


@pytest.mark.skipif("EAVATAR_SHARED" not in os.environ, reason="EAVATAR_SHARED is not set")
@pytest.mark.parametrize("fault", FAULTY_LISTS)
def test_a_list_that_is_no_face_of_a_large_model(tmp_path: Path, fault: str) -> None:
    change, sentence = FAULTY_LISTS[fault]
    shared = Path(os.environ["EAVATAR_SHARED"]) / "models" / "ict_bfm2017.h5"
    path = tmp_path / "model.h5"
    path.write_bytes(shared.read_bytes())
    refused(give_landmarks(path, change(read_morphable_model(path).landmark_vertices)), sentence)


def test_a_list_of_neighbours_is_refused(tmp_path: Path) -> None:
    """Vertices 2 mm beside each landmark: a face still, but less symmetric than one index before.

    Half of the offsets are mirrored by none: 2 mm times the root of 2 is the median asymmetry.
    """
    parts = random_parts()
    vertices = np.zeros((136, 3))
    vertices[0::2] = AVERAGE_FACE
    offsets = np.random.default_rng(0).normal(size=(68, 3))
    vertices[1::2] = AVERAGE_FACE + 2 * offsets / np.linalg.norm(offsets, axis=1, keepdims=True)
    large = {
        **parts,
        "mean": vertices.ravel(),
        "expression_mean": np.zeros(3 * 136),
        "colours": np.full(3 * 136, 0.5),
        "identity": np.linalg.qr(np.random.default_rng(1).normal(size=(3 * 136, IDENTITY)))[0],
        "expression": np.linalg.qr(np.random.default_rng(2).normal(size=(3 * 136, EXPRESSION)))[0],
        "landmarks": np.arange(0, 136, 2),
    }
    path = write_2017(tmp_path / "model.h5", large)
    read_morphable_model(path)
    refused(give_landmarks(path, large["landmarks"] + 1), "more symmetric.*one too large")


def test_keypoints_of_a_mat_file_that_count_from_0(demo_model: Path, tmp_path: Path) -> None:
    parts = random_parts()
    content = contents_2009(parts)
    shifted = np.roll(parts["mean"].reshape(-1, 3), 1, axis=0)  # so that none is vertex 0
    content |= {"meanshape": shifted.reshape(1, -1) / 100}
    scipy.io.savemat(tmp_path / "model.mat", content)
    refused(tmp_path / "model.mat", "keypoints in .* one too small.* count vertices from 1")


@pytest.mark.parametrize(
    ("axes", "sentence"),
    [
        ([[1, 0, 0], [0, 0, -1], [0, 1, 0]], "turned by 90°.*turn the model"),  # z up
        ([[-1, 0, 0], [0, 1, 0], [0, 0, 1]], "or the mesh is a mirror image"),
    ],
)
def test_a_model_in_other_axes_is_refused(
    tmp_path: Path, axes: list[list[int]], sentence: str
) -> None:
    parts = random_parts()
    for name in ("mean", "expression_mean"):
        parts[name] = (parts[name].reshape(-1, 3) @ np.array(axes).T).ravel()
    refused(write_2017(tmp_path / "model.h5", parts), sentence)


def write_published(path: Path, vertices: int, indices: np.ndarray) -> Path:
    """An .h5 file of a published size without landmarks, a face at the given vertices."""
    random = np.random.default_rng(0)
    mean = random.normal(0, 60, (vertices, 3))
    mean[indices] = AVERAGE_FACE
    bases = {name: random.normal(size=(3 * vertices, 1)) for name in ("identity", "expression")}
    parts = {
        "mean": mean.ravel(),
        "expression_mean": np.zeros(3 * vertices),
        "colours": np.full(3 * vertices, 0.5),
        **{name: basis / np.linalg.norm(basis) for name, basis in bases.items()},
        "identity_variance": np.full(1, 30.0 * vertices),
        "expression_variance": np.full(1, 30.0 * vertices),
        "faces": np.array([[0, 1, 2]]),
    }
    return write_2017(path, parts, landmarks=False)


FACE12 = np.array(PUBLISHED_LANDMARKS[28588])


def test_the_published_face12_file_needs_no_list_beside_it(tmp_path: Path) -> None:
    path = write_published(tmp_path / "model2017-1_face12_nomouth.h5", 28588, FACE12)
    np.testing.assert_array_equal(read_morphable_model(path).landmark_vertices, FACE12)
    beside = path.with_suffix(".txt")
    beside.write_text("\n".join(map(str, FACE12)), encoding="utf-8-sig")  # as some editors do
    np.testing.assert_array_equal(read_morphable_model(path).landmark_vertices, FACE12)
    beside.write_text("\n".join(map(str, FACE12 + 1)))
    with pytest.raises(UserError, match=r"\.txt .*one too large.*remove the file"):
        read_morphable_model(path)


def test_a_published_list_is_checked_against_the_file(tmp_path: Path) -> None:
    path = write_published(tmp_path / "other.h5", 28588, FACE12[::-1])
    refused(path, r"published indices for .* are not the 68 landmarks.*write .* into .*other\.txt")


def test_what_the_larger_published_file_needs_is_said(tmp_path: Path) -> None:
    indices = np.random.default_rng(1).permutation(53149)[:68]
    path = write_published(tmp_path / "model2017-1_bfm_nomouth.h5", 53149, indices)
    refused(
        path, r"lacks the jaw line and the brows: take model2017-1_face12_nomouth\.h5 .* or write"
    )
    known = np.array(PUBLISHED_LANDMARKS[53149])
    corners = {8: 47846, 30: 8156, 36: 2602, 39: 5830, 42: 10390, 45: 13481, 48: 5522, 67: 7719}
    assert (known >= 0).sum() == 26 and {i: known[i] for i in corners} == corners
