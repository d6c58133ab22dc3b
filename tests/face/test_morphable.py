"""Readers of both Basel layouts, the canonical frame, and every refusal."""

from __future__ import annotations

import os
import pickle
from dataclasses import fields
from pathlib import Path

import h5py
import numpy as np
import pytest
import scipy.io
from hypothesis import given
from hypothesis import strategies as st
from scipy.spatial import Delaunay

from eavatar.errors import UserError
from eavatar.face.layout import AVERAGE_FACE
from eavatar.face.morphable import LANDMARK_CENTROID, read_morphable_model
from tests.scenes.morphable_models import (
    EXPRESSION,
    VERTICES,
    contents_2009,
    random_parts,
    refused,
    write_2009,
    write_2017,
)


def test_vertices_follow_the_statismo_formula(tmp_path: Path) -> None:
    parts = random_parts()
    model = read_morphable_model(write_2017(tmp_path / "model.h5", parts))
    coefficients = np.array([1.5, -0.5, 0.25], dtype=np.float32)
    expected = (parts["mean"] + parts["expression_mean"]).reshape(-1, 3) / 100
    expected += np.array(LANDMARK_CENTROID) - expected[parts["landmarks"]].mean(axis=0)
    for k, value in enumerate(coefficients):  # the slow loop: one component at a time
        deviation = np.sqrt(parts["identity_variance"][k])
        expected += value * deviation * parts["identity"][:, k].reshape(-1, 3) / 100
    # float32 storage of values of about 1 dm
    np.testing.assert_allclose(model.vertices(coefficients), expected, atol=1e-5)
    assert model.expression_basis.shape == (VERTICES, 3, EXPRESSION)


def test_both_layouts_give_the_same_model(tmp_path: Path) -> None:
    parts = random_parts()
    first = read_morphable_model(write_2017(tmp_path / "model.h5", parts))
    second = read_morphable_model(write_2009(tmp_path / "BFM09_model_info.mat", parts))
    for name in ("mean", "identity_basis", "expression_basis", "faces", "landmark_vertices"):
        np.testing.assert_allclose(getattr(first, name), getattr(second, name), atol=1e-5)
    assert first.colours is not None and second.colours is not None
    np.testing.assert_allclose(first.colours, second.colours, atol=1e-6)


@pytest.mark.parametrize(
    ("content", "what"),
    [
        (pickle.dumps({"v_template": [0.0]}), "no FLAME model, as it lacks v_template"),
        (pickle.dumps({"v_template": [0.0]}, protocol=0), "no FLAME model, as it lacks"),
        (pickle.dumps([0.0]), "a Python pickle, but damaged or no dictionary of arrays"),
        (b"PK\x03\x04 an archive", "zip archive"),
        (b"\x1f\x8b\x08 compressed", "gzip"),
        (b"\x93NUMPY\x01\x00", "NumPy array, as FaceVerse"),
        (b"<!DOCTYPE html><html>", "web page"),
        (b"ply\nformat ascii 1.0\n", "a mesh"),
        (b"\x4f\x00\x00\x00 Exp_Pca.bin", "unknown format"),
        (b"", "is empty"),
    ],
)
@pytest.mark.parametrize("name", ["model.h5", "model.mat", "model.pkl"])
def test_other_files_are_named_by_what_they_are(
    tmp_path: Path, content: bytes, what: str, name: str
) -> None:
    (tmp_path / name).write_bytes(content)
    refused(tmp_path / name, what)


def test_a_pickle_is_never_loaded(tmp_path: Path) -> None:
    class Trap:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return os.mkdir, (str(tmp_path / "sprung"),)

    for protocol in range(6):
        (tmp_path / "model.h5").write_bytes(pickle.dumps(Trap(), protocol=protocol))
        refused(tmp_path / "model.h5", "model.h5")
    scipy.io.savemat(tmp_path / "model.mat", contents_2009(random_parts()) | {"tri": {"a": "b"}})
    refused(tmp_path / "model.mat", "tri holds no numbers")
    assert not (tmp_path / "sprung").exists()


def test_files_under_another_name_are_read(tmp_path: Path) -> None:
    parts = random_parts()
    first = read_morphable_model(write_2017(tmp_path / "model2017.mat", parts))
    (tmp_path / "given").write_bytes(write_2009(tmp_path / "model.mat", parts).read_bytes())
    second = read_morphable_model(tmp_path / "given")
    np.testing.assert_allclose(first.mean, second.mean, atol=1e-5)


def test_wrong_variants_are_named(tmp_path: Path) -> None:
    refused(tmp_path / "none.h5", "does not exist")
    refused(tmp_path, "is a folder")
    published = {
        "shapeMU": np.zeros((270, 1)),
        "shapePC": np.zeros((270, 2)),
        "tl": np.ones((9, 3)),
    }
    scipy.io.savemat(tmp_path / "01_MorphableModel.mat", published)
    refused(tmp_path / "01_MorphableModel.mat", r"as published.*convert_bfm09_data\.py")
    indices = {name: contents_2009(random_parts())[name] for name in ("tri", "keypoints")}
    scipy.io.savemat(tmp_path / "facemodel_info.mat", indices)
    refused(tmp_path / "facemodel_info.mat", "a MATLAB file of tri, keypoints.* lacks meanshape")
    with h5py.File(tmp_path / "weights.h5", "w") as file:
        file["layers/kernel"] = np.zeros(3)
    refused(tmp_path / "weights.h5", "an HDF5 file of layers and lacks shape/model/mean")
    with h5py.File(write_2017(tmp_path / "shape.h5", random_parts()), "a") as file:
        del file["expression"]
    refused(tmp_path / "shape.h5", "lacks expression/model/mean")
    (tmp_path / "seven.mat").write_bytes(b"MATLAB 7.3 MAT-file, Platform: GLNXA64")
    refused(tmp_path / "seven.mat", "MATLAB 7.3 file .*-v7")


@pytest.mark.parametrize(
    ("name", "match"),
    [
        ("shape/model/pcaBasis", "pcaBasis is 4 × 270 instead of 270 × any, transposed"),
        ("expression/model/pcaBasis", "expression.* transposed"),
        ("shape/representer/cells", "cells is 50 × 3 instead of 3 × any, transposed"),
    ],
)
def test_transposed_arrays_of_2017(tmp_path: Path, name: str, match: str) -> None:
    path = write_2017(tmp_path / "model.h5", random_parts())
    with h5py.File(path, "a") as file:
        turned = file[name][...].T
        del file[name]
        file[name] = turned
    refused(path, match)


@pytest.mark.parametrize("name", ["idBase", "exBase", "tri"])
def test_transposed_arrays_of_2009(tmp_path: Path, name: str) -> None:
    content = contents_2009(random_parts())
    scipy.io.savemat(tmp_path / "model.mat", content | {name: content[name].T})
    refused(tmp_path / "model.mat", f"{name} is .*, transposed")


def test_indices_of_the_other_convention(tmp_path: Path) -> None:
    parts = random_parts()
    content = contents_2009(parts)
    for name in ("tri", "keypoints"):
        scipy.io.savemat(tmp_path / "model.mat", content | {name: content[name] * 0})
        refused(tmp_path / "model.mat", r"outside 0 to 89; .* a \.mat file from 1")
    parts["faces"] = parts["faces"] - parts["faces"].max() + VERTICES
    refused(write_2017(tmp_path / "model.h5", parts), "faces name vertices outside 0 to 89")


def test_other_units_are_refused(tmp_path: Path) -> None:
    parts = random_parts()
    for factor in (1e-3, 1e3):  # metres and micrometres instead of millimetres
        changed = {**parts, "mean": parts["mean"] * factor}
        changed["expression_mean"] = parts["expression_mean"] * factor
        refused(write_2017(tmp_path / "model.h5", changed), r"instead of about 60.*millimetres")
        refused(write_2009(tmp_path / "model.mat", changed), "decimetres")


def test_values_that_are_not_finite_or_do_not_fit(tmp_path: Path) -> None:
    parts = random_parts()
    for name in ("mean", "identity", "expression"):
        changed = parts[name].copy()
        changed.flat[5] = np.nan
        refused(write_2017(tmp_path / "model.h5", {**parts, name: changed}), "not finite")
    negative = {**parts, "identity_variance": -parts["identity_variance"]}
    refused(write_2017(tmp_path / "model.h5", negative), "shape/model/pcaVariance .* not positive")
    short = {**parts, "expression_mean": parts["expression_mean"][:-3]}
    refused(write_2017(tmp_path / "model.h5", short), "90, 89 and 90 vertices")
    few = {**parts, "identity_variance": parts["identity_variance"][:2]}
    refused(write_2017(tmp_path / "model.h5", few), "pcaVariance is 2 instead of 4")


def test_only_the_wanted_components_are_read(tmp_path: Path) -> None:
    parts = random_parts()
    for path in (write_2017(tmp_path / "a.h5", parts), write_2009(tmp_path / "b.mat", parts)):
        whole, part = read_morphable_model(path), read_morphable_model(path, 2, 100)
        assert part.identity_basis.shape == (VERTICES, 3, 2)
        np.testing.assert_array_equal(part.identity_basis, whole.identity_basis[..., :2])
        np.testing.assert_array_equal(part.expression_basis, whole.expression_basis)


def test_faces_are_turned_outward(tmp_path: Path) -> None:
    """A mesh over the landmarks as seen from the front, stored clockwise and counter-clockwise."""
    parts = random_parts()
    faces = parts["landmarks"][Delaunay(AVERAGE_FACE[:, :2]).simplices]
    corners = parts["mean"].reshape(-1, 3)[faces]
    toward = np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])[:, 2] > 0
    seen_from_front = np.where(toward[:, None], faces, faces[:, ::-1])
    for stored in (seen_from_front, seen_from_front[:, ::-1]):
        path = write_2017(tmp_path / "model.h5", {**parts, "faces": stored})
        np.testing.assert_array_equal(read_morphable_model(path).faces, seen_from_front)


# --- colours and deviations ---------------------------------------------------------------------


def test_colours_are_recognised_as_fractions_or_levels(tmp_path: Path) -> None:
    parts = random_parts()
    fractions = read_morphable_model(write_2017(tmp_path / "a.h5", parts)).colours
    levels = {**parts, "colours": parts["colours"] * 255}
    swapped = {**contents_2009(parts), "meantex": parts["colours"][None]}
    scipy.io.savemat(tmp_path / "b.mat", swapped)
    assert fractions is not None
    for path in (write_2017(tmp_path / "b.h5", levels), tmp_path / "b.mat"):
        found = read_morphable_model(path).colours
        assert found is not None
        np.testing.assert_allclose(found, fractions, atol=1e-6)  # float32 storage


@pytest.mark.parametrize("factor", [-1.0, 4.0, 1000.0, np.nan])
def test_other_colours_are_refused(tmp_path: Path, factor: float) -> None:
    parts = random_parts()
    parts["colours"] = parts["colours"] * factor
    sentence = "not finite" if np.isnan(factor) else "neither fractions of 1 nor levels"
    refused(write_2017(tmp_path / "model.h5", parts), sentence)


@pytest.mark.parametrize("name", ["identity", "expression"])
@pytest.mark.parametrize("power", [0.0, 2.0])
def test_deviations_that_are_missing_or_applied_twice(
    tmp_path: Path, name: str, power: float
) -> None:
    """Components of unit length over thousands of vertices have variances of a million."""
    parts = random_parts()
    parts[f"{name}_variance"] = (parts[f"{name}_variance"] * 1e3) ** power
    refused(write_2017(tmp_path / "model.h5", parts), f"its {name} components move the landmarks")


@pytest.fixture(scope="module")
def whole_files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of a whole model.h5 and model.mat."""
    folder, parts = tmp_path_factory.mktemp("whole"), random_parts()
    write_2017(folder / "model.h5", parts)
    write_2009(folder / "model.mat", parts)
    return folder


@given(name=st.sampled_from(["model.h5", "model.mat"]), share=st.floats(0, 1, exclude_max=True))
def test_files_cut_short_anywhere(
    whole_files: Path, tmp_path_factory: pytest.TempPathFactory, name: str, share: float
) -> None:
    """Refused, or read as the whole file is where only what no one reads is cut off."""
    content = (whole_files / name).read_bytes()
    path = tmp_path_factory.mktemp("cut") / name
    path.write_bytes(content[: int(share * len(content))])
    try:
        found = read_morphable_model(path)
    except UserError:
        refused(path, "damaged or cut short|is empty|lacks|unknown format")
        return
    assert name == "model.mat" and share > 0.8  # point_buf … skinmask are the file's end
    whole = read_morphable_model(whole_files / name)
    for field in fields(whole):
        np.testing.assert_array_equal(getattr(found, field.name), getattr(whole, field.name))


@given(
    start=st.sampled_from(
        [b"", b"\x89HDF\r\n\x1a\n", b"MATLAB 5.0 MAT-file".ljust(124) + b"\0\1IM"]
    ),
    rest=st.binary(max_size=600),
)
def test_random_bytes(tmp_path_factory: pytest.TempPathFactory, start: bytes, rest: bytes) -> None:
    path = tmp_path_factory.mktemp("random") / "model.h5"
    path.write_bytes(start + rest)
    refused(path, "model.h5")


@pytest.mark.skipif("EAVATAR_SHARED" not in os.environ, reason="EAVATAR_SHARED is not set")
def test_large_model_lies_in_the_canonical_frame() -> None:
    shared = Path(os.environ["EAVATAR_SHARED"])
    model = read_morphable_model(shared / "models" / "ict_bfm2017.h5")
    landmarks = model.mean[model.landmark_vertices]
    # figures of Gaussian Head Avatar's frame; faces differ by a few millimetres
    assert abs(landmarks[30, 2] - 0.55) < 0.1 and abs(landmarks[8, 1] + 0.82) < 0.1
    assert abs(landmarks[16, 0] - 0.73) < 0.1 and abs(landmarks[0, 0] + 0.73) < 0.1
    assert model.identity_basis.shape == (11248, 3, 80) and model.colours is not None
