"""Linear morphable face models: one class, and readers for the Basel models and open ones.

Canonical frame: right-handed, y up, z out of the face, 1 unit = 1 dm. All of them have these axes
already; the origin is put where it does not depend on the model's vertex set, at a
fixed offset from the landmarks: see `LANDMARK_CENTROID`.

A file is recognised by its content, not by its name. Nothing is unpickled; FLAME's arrays are taken
out of its pickle (`eavatar.face.pickled_arrays`). The Basel models cannot be redistributed, so the
readers were run on files of the published layouts with made-up values and on a head model stored
in the 2017 layout.
"""

from __future__ import annotations

import math
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from eavatar.arrays import Float32, Int64
from eavatar.errors import UserError
from eavatar.face.flame import read_flame
from eavatar.face.gnm import read_gnm
from eavatar.face.ict_facekit import is_face_x_model, read_face_x_model
from eavatar.face.landmark_lists import LandmarkList, check_landmark_list, find_landmark_list
from eavatar.face.model_arrays import SUPPORTED, check_shape
from eavatar.io import LANDMARKS, require

# Where the centroid of the mean face's 68 landmarks lies in canonical space. Gaussian Head Avatar
# has the centroid of its face vertices as origin, which puts the nose tip at z = 0.55 and the chin
# at y = -0.82; this constant does the same for an average face without need of its vertex set.
LANDMARK_CENTROID = (0.0, -0.09, 0.19)
MILLIMETRES = 0.01  # in canonical units
# Median distance of the mean face's landmarks to their centroid, canonical units: about 0.6. A
# model in other units is off by a factor of ten at least.
LANDMARK_RADIUS = 0.2, 1.8
# Root-mean-square motion of the landmarks by all components of a basis at one standard deviation,
# canonical units: 0.05 to 0.1. Bases that lack the deviations or have them twice are off by
# hundreds.
DEVIATION = 0.003, 0.5
MAX_FRACTION = 1.5  # of a mean colour given as fractions: published ones may exceed 1 a little
LEVELS = 16.0, 260.0  # the largest mean colour, where colours are levels of 8 bits

HDF5, MATLAB, ICT_FACEKIT = "an HDF5 file", "a MATLAB file", "ICT-FaceKit's mean face"
PICKLE, FLAME_ARCHIVE, GNM_ARCHIVE = "a Python pickle", "FLAME's arrays", "GNM Head"
FLAME_OPEN = "FLAME 2023 Open"
ARCHIVE = "a zip archive, as PyTorch weights are"
# What a file of each kind is, and its licence, as far as its publishers say.
DESCRIPTIONS = {
    HDF5: "layout of BFM 2017; the Basel models' own licence allows no commercial use",
    MATLAB: "layout of BFM 2009; the Basel models' own licence allows no commercial use",
    ICT_FACEKIT: "ICT Face Model Light; MIT licence, commercial use allowed",
    PICKLE: "FLAME; its own licence by form allows no commercial use",
    FLAME_ARCHIVE: "FLAME; its own licence by form allows no commercial use",
    FLAME_OPEN: "FLAME 2023 Open, by its name; CC BY 4.0, commercial use allowed with attribution",
    GNM_ARCHIVE: "GNM Head; Apache-2.0, commercial use allowed",
}
NON_COMMERCIAL = {HDF5, MATLAB, PICKLE, FLAME_ARCHIVE}
SIGNATURES = {
    b"\x89HDF\r\n\x1a\n": HDF5,
    b"MATLAB 5.0": MATLAB,
    b"MATLAB 7.3": "a MATLAB 7.3 file (store it again by save(…, '-v7'))",
    b"\x80": PICKLE,
    b"(dp": PICKLE,
    b"PK\x03\x04": ARCHIVE,
    b"\x1f\x8b": "a gzip archive",
    b"\x93NUMPY": "a NumPy array, as FaceVerse models are",
    b"ply\n": "a mesh",
    b"<": "a web page, perhaps the licence form instead of the file",
}
ARCHIVED = {"v_template.npy": FLAME_ARCHIVE, "template_vertex_positions.npy": GNM_ARCHIVE}
WAVEFRONT = (b"mtllib", b"#", b"v ", b"o ", b"g ")  # the first words of .obj files
STATISMO_ARRAYS = (
    "shape/model/mean",
    "shape/model/pcaVariance",
    "shape/model/pcaBasis",
    "expression/model/mean",
    "expression/model/pcaVariance",
    "expression/model/pcaBasis",
    "shape/representer/cells",
    "color/model/mean",
)
LANDMARK_ARRAY = "landmarks68/vertex_index"  # iBUG-68; not in the published files
BFM_2009_ARRAYS = ("meanshape", "meantex", "idBase", "exBase", "tri", "keypoints")
MAX_ELEMENTS = 10**9  # of an array in a .mat file; the largest of BFM 2009 has 3 · 10⁷

Arrays = Mapping[str, NDArray[Any]]


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

    mean: Float32
    identity_basis: Float32
    expression_basis: Float32
    faces: Int64
    landmark_vertices: Int64
    colours: Float32 | None = None

    def vertices(self, identity: Float32) -> Float32:
        """(V, 3) neutral vertices of the leading identity coefficients (n,), n ≤ I, canonical."""
        return self.mean + self.identity_basis[..., : len(identity)] @ identity


def read_morphable_model(
    path: Path, identity_components: int | None = None, expression_components: int | None = None
) -> MorphableModel:
    """Read a model of BFM 2017, 2019 or 2009, ICT-FaceKit, FLAME or GNM into the canonical frame.

    Args:
        path: the ``.h5``, ``.mat``, ``.pkl`` or ``.npz`` file, or
            ``FaceXModel/generic_neutral_mesh.obj``.
        identity_components: the largest number of leading components that are read; None for all.
            All 299 components of BFM 2017 take 0.2 GB.
        expression_components: likewise.

    Raises:
        UserError: the file is missing, of another format, damaged, in other units or axes, or
            without indices of the landmarks, or these are not a face's in iBUG order.
    """
    kind = _identify_model(path)
    limits = identity_components, expression_components
    if kind == HDF5:
        model, listed = _build_bfm_2017(_load_statismo(path, *limits), path)
    elif kind == MATLAB:
        model = _build_bfm_2009(_load_bfm_2009(path), path, *limits)
        listed = LandmarkList(model.landmark_vertices, f"keypoints in {path}", 1, "make it again")
    else:
        read, listed = READERS[kind](path, *limits)
        bases = read.identity_basis, read.expression_basis
        model = MorphableModel(read.mean, *bases, read.faces, read.landmark_vertices)
    _check_model(model, path)
    check_landmark_list(listed, model.mean, path)
    landmarks = model.mean[model.landmark_vertices]
    centred = model.mean + (np.array(LANDMARK_CENTROID) - landmarks.mean(axis=0))
    return replace(model, mean=centred.astype(np.float32), faces=_orient_faces(model))


READERS = {
    ICT_FACEKIT: read_face_x_model,
    PICKLE: read_flame,
    FLAME_ARCHIVE: read_flame,
    FLAME_OPEN: read_flame,
    GNM_ARCHIVE: read_gnm,
}


def describe_morphable_model(path: Path) -> str:
    """What a file that `read_morphable_model` reads is, and the licence of it."""
    return DESCRIPTIONS[_identify_model(path)]


def forbids_commercial_use(path: Path) -> bool:
    """Whether the licence of a file that `read_morphable_model` reads allows no commercial use."""
    return _identify_model(path) in NON_COMMERCIAL


def _identify_model(path: Path) -> str:
    """The kind of a file that can be read; `UserError` if it is none."""
    kind = _identify_file(path)
    if kind not in DESCRIPTIONS:
        raise UserError(f"{path} is {kind}, which cannot be read: give {SUPPORTED}.")
    is_flame = kind in (PICKLE, FLAME_ARCHIVE)
    return FLAME_OPEN if is_flame and "open" in path.stem.lower() else kind


def _identify_file(path: Path) -> str:
    """The kind of a file, by its first bytes."""
    if not require(path, "the morphable model").is_file():
        return "a folder"
    try:
        with path.open("rb") as file:
            start = file.read(16)
    except OSError as error:
        raise UserError(f"{path} cannot be opened: {error.strerror}.") from error
    if not start:
        return "empty"
    for signature, kind in SIGNATURES.items():
        if start.startswith(signature):
            return _identify_archive(path) if kind == ARCHIVE else kind
    if start.startswith(WAVEFRONT):
        return ICT_FACEKIT if is_face_x_model(path) else "a mesh"
    return "of an unknown format"


def _identify_archive(path: Path) -> str:
    """Whose arrays a zip archive holds, by their names."""
    try:
        with zipfile.ZipFile(path) as archive:
            names = set(archive.namelist())
    except (zipfile.BadZipFile, OSError):
        return ARCHIVE
    return next((kind for name, kind in ARCHIVED.items() if name in names), ARCHIVE)


def _check_model(model: MorphableModel, path: Path) -> None:
    """Raise `UserError` for indices outside the mesh, values not finite, and other units."""
    count = len(model.mean)
    for name, indices in (("faces", model.faces), ("landmarks", model.landmark_vertices)):
        if indices.size == 0 or indices.min() < 0 or indices.max() >= count:
            raise UserError(
                f"{path}: the {name} name vertices outside 0 to {count - 1}; an HDF5 or text file "
                "counts them from 0, a .mat file from 1."
            )
    for basis in (model.identity_basis, model.expression_basis):
        if not np.isfinite(basis).all():
            raise UserError(f"{path} holds values that are not finite; fetch the file again.")
    landmarks = model.mean[model.landmark_vertices]
    radius = np.median(np.linalg.norm(landmarks - landmarks.mean(axis=0), axis=1))
    if not LANDMARK_RADIUS[0] < radius < LANDMARK_RADIUS[1]:
        raise UserError(
            f"{path}: its landmarks lie {100 * radius:.3g} mm from their centre instead of about "
            "60; an .h5 file is in millimetres, a .mat file in decimetres, ICT-FaceKit in "
            "centimetres, FLAME and GNM in metres, and the landmarks must be those of its vertices."
        )
    for name, basis in (("identity", model.identity_basis), ("expression", model.expression_basis)):
        motion = np.sqrt(np.square(basis[model.landmark_vertices]).sum(axis=(1, 2)).mean())
        if not DEVIATION[0] < motion < DEVIATION[1]:
            raise UserError(
                f"{path}: its {name} components move the landmarks by {100 * motion:.3g} mm at one "
                "standard deviation instead of 5 to 10; an .h5 file holds unit components and "
                "variances in square millimetres, a .mat file components times deviations in "
                "decimetres."
            )


def _orient_faces(model: MorphableModel) -> Int64:
    """The faces (F, 3), reversed if those around the landmarks are clockwise seen from outside.

    The publishers do not state the winding; a face looks along z.
    """
    around = model.faces[np.isin(model.faces, model.landmark_vertices).any(axis=1)]
    corners = model.mean[around]
    normals = np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
    return model.faces if normals[:, 2].sum() >= 0 else model.faces[:, ::-1]


def _as_vertices(array: NDArray[Any], name: str, path: Path) -> Float32:
    """(V, 3) of the array called ``name``, 3·V numbers in any shape."""
    flat = check_shape(array.reshape(-1), name, (None,), path)
    if flat.size == 0 or flat.size % 3:
        raise UserError(f"{path}: {name} holds {flat.size} numbers, not three for each vertex.")
    if not np.isfinite(flat).all():
        raise UserError(f"{path}: {name} holds values that are not finite; fetch the file again.")
    return flat.astype(np.float32).reshape(-1, 3)


def _as_fractions(colours: Float32, name: str, path: Path) -> Float32:
    """Mean colours (V, 3) in [0, 1] of the array called ``name``, fractions or levels to 255.

    The published .h5 files hold fractions and the .mat files levels; converters mix them up.
    """
    low, high = float(colours.min()), float(colours.max())
    if low > -MAX_FRACTION + 1 and high <= MAX_FRACTION:
        return colours.clip(0, 1)
    if low >= 0 and LEVELS[0] <= high <= LEVELS[1]:
        return (colours / 255).clip(0, 1)
    raise UserError(
        f"{path}: {name} has colours from {low:.3g} to {high:.3g}, which are neither fractions of "
        "1 nor levels to 255; store them as one of these."
    )


def _as_basis(
    array: NDArray[Any], name: str, vertices: int, components: int | None, path: Path
) -> Float32:
    """(V, 3, K) of a basis (3·V, all components), of which the K ≤ ``components`` leading ones."""
    stored = check_shape(array, name, (3 * vertices, None), path)
    return stored[:, :components].astype(np.float32).reshape(vertices, 3, -1)


# --- BFM 2017 and 2019 --------------------------------------------------------------------------


def _load_statismo(
    path: Path, identity_components: int | None, expression_components: int | None
) -> Arrays:
    """The arrays of an HDF5 file of the Statismo layout, by name; leading parts of the bases."""
    import h5py

    limits = {
        "shape/model/pcaBasis": np.s_[..., :identity_components],
        "expression/model/pcaBasis": np.s_[..., :expression_components],
    }
    try:
        with h5py.File(path) as file:
            groups = sorted(file)
            missing = [name for name in STATISMO_ARRAYS if name not in file]
            arrays = {
                name: np.asarray(file[name][limits.get(name, ...)])
                for name in (*STATISMO_ARRAYS, LANDMARK_ARRAY)
                if name in file
            }
    except Exception as error:  # h5py raises errors of many types on damaged files
        raise UserError(
            f"{path} is an HDF5 file, but damaged or cut short ({_one_line(error)}); "
            "fetch it again."
        ) from error
    if missing:
        raise UserError(
            f"{path} is an HDF5 file of {', '.join(groups) or 'nothing'} and lacks {missing[0]}: "
            f"give {SUPPORTED}."
        )
    return arrays


def _build_bfm_2017(arrays: Arrays, path: Path) -> tuple[MorphableModel, LandmarkList]:
    """The model of a Statismo file: millimetres, vertices from 0, in its own origin."""
    mean = _as_vertices(arrays["shape/model/mean"], "shape/model/mean", path)
    offset = _as_vertices(arrays["expression/model/mean"], "expression/model/mean", path)
    colours = _as_vertices(arrays["color/model/mean"], "color/model/mean", path)
    if not len(mean) == len(offset) == len(colours):
        raise UserError(
            f"{path}: shape, expression and colour have {len(mean)}, {len(offset)} and "
            f"{len(colours)} vertices; fetch the file again."
        )
    cells = "shape/representer/cells"
    faces = check_shape(arrays[cells], cells, (3, None), path)
    if LANDMARK_ARRAY in arrays:
        found = check_shape(arrays[LANDMARK_ARRAY], LANDMARK_ARRAY, (LANDMARKS,), path)
        origin = f"indices {LANDMARK_ARRAY} in {path}"
        listed = LandmarkList(found.astype(np.int64), origin, 0, "correct them")
    else:
        listed = find_landmark_list(path, len(mean))
    model = MorphableModel(
        (mean + offset) * np.float32(MILLIMETRES),
        _build_statismo_basis(arrays, "shape/model", len(mean), path),
        _build_statismo_basis(arrays, "expression/model", len(mean), path),
        faces.T.astype(np.int64),
        listed.vertices,
        _as_fractions(colours, "color/model/mean", path),
    )
    return model, listed


def _build_statismo_basis(arrays: Arrays, group: str, vertices: int, path: Path) -> Float32:
    """(V, 3, K) canonical deviations of a group, from unit components and variances in mm²."""
    name = f"{group}/pcaVariance"
    basis = _as_basis(arrays[f"{group}/pcaBasis"], f"{group}/pcaBasis", vertices, None, path)
    count = basis.shape[2]
    variance = check_shape(arrays[name][:count], name, (count,), path)
    if not (variance >= 0).all():
        raise UserError(f"{path}: {name} holds values that are not positive; fetch it again.")
    basis *= (np.sqrt(variance) * MILLIMETRES).astype(np.float32)
    return basis


# --- BFM 2009 -----------------------------------------------------------------------------------


def _load_bfm_2009(path: Path) -> Arrays:
    """The arrays of ``BFM09_model_info.mat`` by name."""
    import scipy.io

    try:
        sizes = {name: math.prod(shape) for name, shape, _ in scipy.io.whosmat(path)}
        if any(not 0 <= size <= MAX_ELEMENTS for size in sizes.values()):
            raise ValueError("a size in it is absurd")  # scipy would reserve the memory for it
        arrays = scipy.io.loadmat(path, variable_names=BFM_2009_ARRAYS)
    except Exception as error:  # scipy raises errors of many types on damaged files
        raise UserError(
            f"{path} is a MATLAB file, but damaged or cut short ({_one_line(error)}); fetch or "
            "make it again."
        ) from error
    if "shapePC" in sizes:
        raise UserError(
            f"{path} is the Basel Face Model 2009 as published, without expressions: convert it to "
            "BFM09_model_info.mat by convert_bfm09_data.py of "
            "github.com/ascust/3DMM-Fitting-Pytorch, which adds those of Exp_Pca.bin of "
            "github.com/Juyong/3DFace."
        )
    missing = [name for name in BFM_2009_ARRAYS if name not in arrays]
    if missing:
        raise UserError(
            f"{path} is a MATLAB file of {', '.join(sizes) or 'nothing'} and lacks {missing[0]}: "
            f"give {SUPPORTED}."
        )
    return {name: np.asarray(arrays[name]) for name in BFM_2009_ARRAYS}


def _build_bfm_2009(
    arrays: Arrays, path: Path, identity_components: int | None, expression_components: int | None
) -> MorphableModel:
    """The model of a .mat file: decimetres, vertices from 1, the deviations in the bases."""
    mean = _as_vertices(arrays["meanshape"], "meanshape", path)
    colours = _as_vertices(arrays["meantex"], "meantex", path)
    if len(mean) != len(colours):
        raise UserError(
            f"{path}: meanshape has {len(mean)} vertices and meantex {len(colours)}; make it again."
        )
    indices = check_shape(arrays["keypoints"].reshape(-1), "keypoints", (LANDMARKS,), path)
    return MorphableModel(
        mean,
        _as_basis(arrays["idBase"], "idBase", len(mean), identity_components, path),
        _as_basis(arrays["exBase"], "exBase", len(mean), expression_components, path),
        check_shape(arrays["tri"], "tri", (None, 3), path).astype(np.int64) - 1,
        indices.astype(np.int64) - 1,
        _as_fractions(colours, "meantex", path),
    )


def _one_line(error: Exception) -> str:
    """What an error of a library says, without its line breaks."""
    return " ".join(str(error).split()) or type(error).__name__
