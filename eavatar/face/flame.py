"""FLAME 2020, 2023 and 2023 Open (Li et al. 2017): the published pickle, or the same as ``.npz``.

    v_template (V, 3), shapedirs (V, 3, 400): 300 of identity, then 100 of expression, f (F, 3),
    weights (V, 5) and posedirs (V, 3, 36) of the joints root, neck, jaw and both eyes;
    J (5, 3) or J_regressor (5, V), where the joints are

Metres, y up, z out of the face. The jaw's rotation is made linear, as the first two components of
the expression, unless the file is one of those called ``no_jaw``, whose expressions move the jaw.
The eyeballs are left out: the gaze is measured apart.

The 68 landmarks are not in the model. They are read from ``landmark_embedding.npy`` beside it, the
file of DECA and its successors, or from the text file that any model may have. The reader was run
on files of the published names, shapes and units with made-up values.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from eavatar.arrays import Float32, Float64, Int64
from eavatar.errors import UserError
from eavatar.face.landmark_lists import LandmarkList, find_landmark_list
from eavatar.face.model_arrays import SUPPORTED, ModelArrays, check_shape
from eavatar.face.pickled_arrays import read_pickled_arrays
from eavatar.io import DAMAGED_ARRAY, LANDMARKS
from eavatar.transforms import cross_matrices

Arrays = Mapping[str, NDArray[Any]]

NAMES = ("v_template", "shapedirs", "f", "weights", "posedirs")
JOINTS, JAW, EYES = 5, 2, slice(3, 5)
IDENTITIES, EXPRESSIONS = 300, 100
METRES = 10.0  # in canonical units
# Deviations of the jaw's rotation about x (it opens) and y (sideways), radians: it opens by 20 to
# 25° at most. The linear motion is a rotation's to first order: at two deviations, 17°, the chin,
# 100 mm from the joint, lies 4.5 mm off the arc.
JAW_DEVIATIONS = (0.15, 0.04)
NO_JAW = "no_jaw"
EMBEDDING = "landmark_embedding.npy"


def read_flame(
    path: Path,
    identity_components: int | None,
    expression_components: int | None,
) -> tuple[ModelArrays, LandmarkList]:
    """Read a FLAME model, and who says where its landmarks are.

    Args:
        path: ``.pkl`` or ``.npz``.
        identity_components: the largest number of leading components that are read; None for all.
        expression_components: likewise; the jaw's are the first.

    Raises:
        UserError: the file is damaged or no FLAME model, or no list of landmarks is found.
    """
    arrays = _read_arrays(path)
    missing = [name for name in NAMES if name not in arrays]
    if missing:
        raise UserError(f"{path} is no FLAME model, as it lacks {missing[0]}: give {SUPPORTED}.")
    mean = check_shape(arrays["v_template"], "v_template", (None, 3), path)
    count = len(mean)
    shapes = (count, 3, IDENTITIES + EXPRESSIONS)
    basis = METRES * check_shape(arrays["shapedirs"], "shapedirs", shapes, path).astype(np.float32)
    weights = check_shape(arrays["weights"], "weights", (count, JOINTS), path)
    faces = check_shape(arrays["f"], "f", (None, 3), path).astype(np.int64)
    expression = basis[..., IDENTITIES:]
    if NO_JAW not in path.stem:
        jaw = _linearise_jaw(arrays, mean, weights[:, JAW], path)
        expression = np.concatenate([jaw, expression], axis=2)
    listed = _find_landmarks(path, count, faces)
    model = ModelArrays(
        (METRES * mean).astype(np.float32),
        basis[..., :IDENTITIES][..., :identity_components],
        expression[..., :expression_components],
        faces,
        listed.vertices,
    )
    return model.keep(weights[:, EYES].sum(axis=1) < 0.5, listed, path)


def _read_arrays(path: Path) -> Arrays:
    with path.open("rb") as file:
        is_archive = file.read(2) == b"PK"
    if not is_archive:
        try:
            return read_pickled_arrays(path)
        except UserError as error:
            raise UserError(f"{str(error).removesuffix('.')}, or give {SUPPORTED}.") from error
    arrays = {}
    with np.load(path, allow_pickle=False) as archive:
        for name in {*NAMES, "J", "J_regressor"} & set(archive.files):
            try:
                arrays[name] = archive[name]
            except DAMAGED_ARRAY as error:
                if name in NAMES:  # a sparse J_regressor is an object; J says the same
                    raise UserError(f"{path}: {name} cannot be read ({error}).") from error
    return arrays


def _linearise_jaw(arrays: Arrays, mean: NDArray[Any], weight: NDArray[Any], path: Path) -> Float32:
    """(V, 3, 2) canonical motion by the jaw's rotation about x and y, by a deviation of each.

    The derivative of linear blend skinning at rest, with the pose correctives.
    """
    count = len(mean)
    posedirs = check_shape(arrays["posedirs"], "posedirs", (count, 3, 9 * (JOINTS - 1)), path)
    if "J" in arrays:
        joints = check_shape(arrays["J"], "J", (JOINTS, 3), path)
    elif "J_regressor" in arrays:
        regressor = check_shape(arrays["J_regressor"], "J_regressor", (JOINTS, count), path)
        joints = regressor @ mean
    else:
        raise UserError(f"{path} lacks J and J_regressor; give the model file of FLAME.")
    turns = cross_matrices(np.diag([*JAW_DEVIATIONS, 0.0])[:2])  # of the rotation vectors
    moved: Float64 = np.einsum("kij,vj->vik", turns, mean - joints[JAW]) * weight[:, None, None]
    own = posedirs[..., 9 * (JAW - 1) : 9 * JAW]  # the root has none
    moved += np.einsum("vin,kn->vik", own, turns.reshape(len(turns), 9))
    return (METRES * moved).astype(np.float32)


def _find_landmarks(path: Path, count: int, faces: Int64) -> LandmarkList:
    """The landmarks by the text file beside a model, or by DECA's embedding."""
    embedding, listed = path.with_name(EMBEDDING), path.with_suffix(".txt")
    if listed.is_file():
        return find_landmark_list(path, count)
    if not embedding.is_file():
        raise UserError(
            f"{path} does not say where the 68 landmarks are: put {EMBEDDING} of DECA beside it, "
            f"or write the vertices of all 68, counted from 0 and in iBUG order, into {listed}."
        )
    return _read_embedding(embedding, faces)


def _read_embedding(path: Path, faces: Int64) -> LandmarkList:
    """Of each landmark, a point in a triangle, the nearest of its corners."""
    arrays = read_pickled_arrays(path)
    try:
        triangles = arrays["full_lmk_faces_idx"].reshape(LANDMARKS)
        nearest = arrays["full_lmk_bary_coords"].reshape(LANDMARKS, 3).argmax(axis=1)
        vertices = faces[triangles, nearest]
    except (KeyError, ValueError, IndexError) as error:
        raise UserError(
            f"{path} holds no full_lmk_faces_idx and full_lmk_bary_coords of 68 landmarks in the "
            "model's triangles; give DECA's file."
        ) from error
    return LandmarkList(vertices, f"landmarks in {path}", 0, "fetch the file again")
