"""Linear morphable face models: one class, and readers for the Basel Face Models.

Canonical frame: right-handed, y up, z out of the face, 1 unit = 1 dm. Both Basel models have
these axes already; the origin is put where it does not depend on the model's vertex set, at a
fixed offset from the landmarks: see `LANDMARK_CENTROID`.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from eavatar.errors import UserError
from eavatar.io import LANDMARKS, Float, require

# Where the centroid of the mean face's 68 landmarks lies in canonical space. Gaussian Head Avatar
# has the centroid of its face vertices as origin, which puts the nose tip at z = 0.55 and the chin
# at y = -0.82; this constant does the same for an average face without need of its vertex set.
LANDMARK_CENTROID = (0.0, -0.09, 0.19)
MILLIMETRES = 0.01  # in canonical units


@dataclass(frozen=True)
class MorphableModel:
    """``mean + identity_basis · a + expression_basis · e``, canonical units.

    Coefficients are in standard deviations: the bases hold the deviations.

    Attributes:
        mean: (V, 3) neutral average face.
        identity_basis: (V, 3, I).
        expression_basis: (V, 3, E).
        faces: (F, 3) vertex indices, counter-clockwise seen from outside.
        landmark_vertices: (68,) vertices of the iBUG-68 landmarks.
        colours: (V, 3) average skin colour in [0, 1], or None.
    """

    mean: Float
    identity_basis: Float
    expression_basis: Float
    faces: NDArray[np.int64]
    landmark_vertices: NDArray[np.int64]
    colours: Float | None = None

    def vertices(self, identity: Float) -> Float:
        """(V, 3) neutral vertices of the leading identity coefficients (n,), n ≤ I, canonical."""
        return self.mean + self.identity_basis[..., : len(identity)] @ identity


def read_morphable_model(path: Path) -> MorphableModel:
    """Read a BFM 2017 or 2019 ``.h5`` or a BFM 2009 ``.mat`` file into the canonical frame.

    Raises:
        UserError: the file is missing, of another format, damaged, or without landmark indices.
    """
    readers: dict[str, Callable[[Path], MorphableModel]] = {
        ".h5": read_bfm_2017,
        ".mat": read_bfm_2009,
    }
    require(path, "the morphable model")
    if path.suffix not in readers:
        raise UserError(
            f"{path} is not a supported morphable model: give a Basel Face Model 2017 or 2019 "
            "(.h5) or BFM09_model_info.mat."
        )
    model = readers[path.suffix](path)
    check_model(model, path)
    shift = np.array(LANDMARK_CENTROID) - model.mean[model.landmark_vertices].mean(axis=0)
    return replace(model, mean=(model.mean + shift).astype(np.float32))


def check_model(model: MorphableModel, path: Path) -> None:
    """Raise `UserError` for parts that do not fit together or values that are not finite."""
    count = len(model.mean)
    if {model.identity_basis.shape[:2], model.expression_basis.shape[:2]} != {(count, 3)}:
        raise UserError(f"{path}: the bases do not belong to a mean of {count} vertices.")
    for name, indices in (("faces", model.faces), ("landmarks", model.landmark_vertices)):
        if indices.min() < 0 or indices.max() >= count:
            raise UserError(f"{path}: the {name} name vertices outside 0 to {count - 1}.")
    for basis in (model.mean, model.identity_basis, model.expression_basis):
        if not np.isfinite(basis).all():
            raise UserError(f"{path} holds values that are not finite; fetch the file again.")


def read_bfm_2017(path: Path) -> MorphableModel:
    """Read the Statismo HDF5 layout of BFM 2017 and 2019, millimetres, in its own origin."""
    import h5py

    try:
        with h5py.File(path) as file:
            shape_mean, identity_basis = read_statismo(file["shape/model"])
            expression_mean, expression_basis = read_statismo(file["expression/model"])
            faces = np.asarray(file["shape/representer/cells"], dtype=np.int64).T
            colours = np.asarray(file["color/model/mean"], dtype=np.float32).reshape(-1, 3)
            stored = file.get("landmarks68/vertex_index")
            indices = None if stored is None else np.asarray(stored, dtype=np.int64)
            mean = (shape_mean + expression_mean) * np.float32(MILLIMETRES)
    except (OSError, KeyError, ValueError, AttributeError) as error:
        raise UserError(
            f"{path} is not a Basel Face Model 2017 or 2019 .h5 file, or it is damaged: {error}."
        ) from error
    if indices is None:
        indices = read_landmark_vertices(path)
    if faces.shape[1:] != (3,) or indices.shape != (LANDMARKS,) or colours.shape != mean.shape:
        raise UserError(f"{path}: the faces, colours or landmarks have the wrong shape.")
    colours = colours.clip(0, 1)
    return MorphableModel(mean, identity_basis, expression_basis, faces, indices, colours)


def read_statismo(group: object) -> tuple[Float, Float]:
    """Mean (V, 3) in millimetres and canonical basis (V, 3, K) of a Statismo model group."""
    mean, basis, variance = (
        np.asarray(group[name], dtype=np.float32)  # type: ignore[index]
        for name in ("mean", "pcaBasis", "pcaVariance")
    )
    scaled = (basis * np.sqrt(variance) * MILLIMETRES).astype(np.float32)
    return mean.reshape(-1, 3), scaled.reshape(-1, 3, len(variance))


def read_landmark_vertices(path: Path) -> NDArray[np.int64]:
    """The 68 vertex indices of the text file beside a model that does not hold them itself."""
    beside = path.with_suffix(".txt")
    if not beside.is_file():
        raise UserError(
            f"{path} does not say which vertices are the 68 landmarks: write their indices, "
            f"counted from 0 and in iBUG order, into {beside}."
        )
    try:
        indices = np.array(beside.read_text().split(), dtype=np.int64)
    except ValueError as error:
        raise UserError(f"{beside} must hold whole numbers only: {error}.") from error
    if indices.shape != (LANDMARKS,):
        raise UserError(f"{beside} must hold 68 vertex indices, not {indices.size}.")
    return indices


def read_bfm_2009(path: Path) -> MorphableModel:
    """Read ``BFM09_model_info.mat``: decimetres, indices from 1, deviations in the bases."""
    import scipy.io

    names = ("meanshape", "meantex", "idBase", "exBase", "tri", "keypoints")
    try:
        content = scipy.io.loadmat(path, variable_names=names)
        mean, colours = (
            np.asarray(content[name], dtype=np.float32).reshape(-1, 3) for name in names[:2]
        )
        identity_basis, expression_basis = (
            np.asarray(content[name], dtype=np.float32).reshape(*mean.shape, -1)
            for name in names[2:4]
        )
        faces = np.asarray(content["tri"], dtype=np.int64).reshape(-1, 3) - 1
        indices = np.asarray(content["keypoints"], dtype=np.int64).reshape(LANDMARKS) - 1
        colours = (colours.reshape(mean.shape) / 255).clip(0, 1)
    except (
        OSError,
        KeyError,
        ValueError,
        TypeError,
        NotImplementedError,
        zlib.error,
        scipy.io.matlab.MatReadError,
    ) as error:
        raise UserError(
            f"{path} is not BFM09_model_info.mat (with {', '.join(names)}), or it is damaged: "
            f"{' '.join(str(error).split())}."
        ) from error
    return MorphableModel(mean, identity_basis, expression_basis, faces, indices, colours)
