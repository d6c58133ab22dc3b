"""The demo's morphable model: principal components of other random heads of the family.

Written in the HDF5 layout of the Basel Face Model 2017 (Gerig et al. 2018), millimetres, in the
axes and with the origin of the demo's model frame.

The subject is none of these heads. Of its motion by a control the expression components leave 6 to
20 % (seed 0), of the jaw's 40 mm up to 5 mm; of a blink next to nothing.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path

import numpy as np

from eavatar.arrays import Bool, Float64, Int32, Int64
from eavatar.demo import controls
from eavatar.demo.controls import CONTROLS
from eavatar.demo.sculpt import MOUTH_Y, SKIN, SculptSurface, axis, extract_surface
from eavatar.io import atomic

HEADS = 60  # whose shapes the identity components come from
EXPRESSIVE_HEADS = 3  # whose controls are averaged
IDENTITY_COMPONENTS = 40
STRENGTH = 0.4  # standard deviation of a control's strength
MILLIMETRES = 100.0  # per decimetre

# Coarser than the subject's skin, finest around eyes and mouth.
AXES = (
    axis((-1.05, 0.06), (-0.50, 0.035), (0.50, 0.06), (1.05, 0)),
    axis((-1.30, 0.07), (-0.55, 0.030), (0.50, 0.08), (1.6, 0)),
    axis((-1.15, 0.10), (0.30, 0.040), (1.3, 0)),
)
# Of the names that BFM 2017's metadata uses, with their iBUG numbers.
NAMED_LANDMARKS = {
    "right.eye.corner_outer": 36, "right.eye.corner_inner": 39, "left.eye.corner_inner": 42,
    "left.eye.corner_outer": 45, "center.nose.tip": 30, "right.lips.corner": 48,
    "left.lips.corner": 54, "center.lips.upper.outer": 51, "center.lips.lower.outer": 57,
    "center.chin.tip": 8,
}  # fmt: skip


@dataclass(frozen=True)
class LinearModel:
    """A linear model of 3-D points.

    Attributes:
        mean: (3N,) millimetres.
        basis: (3N, M) orthonormal columns.
        variance: (M,) square millimetres.
    """

    mean: Float64
    basis: Float64
    variance: Float64


def _keep_vertices(surface: SculptSurface, keep: Bool) -> SculptSurface:
    """The faces whose corners are all kept, and the vertices that they use."""
    faces = surface.faces[keep[surface.faces].all(axis=1)]
    used, renumbered = np.unique(faces, return_inverse=True)
    return SculptSurface(surface.vertices[used], renumbered.reshape(-1, 3).astype(np.int32))


def _build_template(landmarks: Float64) -> tuple[SculptSurface, Int64]:
    """Coarse skin without the mouth's inside, and the (68,) vertices that lie on the landmarks.

    Args:
        landmarks: (68, 3) on the sculpture, decimetres.
    """
    from scipy.spatial import cKDTree

    surface = extract_surface(SKIN, AXES)
    inside = ((surface.vertices - [0, MOUTH_Y, 0.60]) / [0.28, 0.205, 0.30]) ** 2
    surface = _keep_vertices(surface, inside.sum(axis=1) > 1)
    vertices = surface.vertices.copy()
    indices: list[int] = []
    _, candidates = cKDTree(vertices).query(landmarks, k=8)
    for point, nearest in zip(landmarks, candidates, strict=True):
        index = next(int(i) for i in nearest if i not in indices)
        vertices[index] = point
        indices.append(index)
    return SculptSurface(vertices, surface.faces), np.array(indices)


def _identity_components(points: Float64, generator: np.random.Generator) -> LinearModel:
    """Principal components of random heads; points (N, 3) on the sculpture, lips closed."""
    heads = np.stack(
        [
            controls.warp_to_head(points, controls.random_shape(generator)).ravel()
            for _ in range(HEADS)
        ]
    )
    mean = heads.mean(axis=0)
    _, singular, directions = np.linalg.svd(heads - mean, full_matrices=False)
    variance = singular[:IDENTITY_COMPONENTS] ** 2 / (HEADS - 1)
    basis = directions[:IDENTITY_COMPONENTS].T
    return LinearModel(MILLIMETRES * mean, basis, MILLIMETRES**2 * variance)


def _expression_components(
    points: Float64, displacements: Float64, generator: np.random.Generator
) -> LinearModel:
    """Orthonormal span of the controls, averaged over other heads; displacements (K, N, 3)."""
    total = np.zeros((len(CONTROLS), points.size))
    for _ in range(EXPRESSIVE_HEADS):
        shape = controls.random_shape(generator)
        neutral = controls.warp_to_head(points, shape)
        for row, displacement in zip(total, displacements, strict=True):
            row += (controls.warp_to_head(points + displacement, shape) - neutral).ravel()
    mean_motion = total / EXPRESSIVE_HEADS
    _, singular, directions = np.linalg.svd(mean_motion, full_matrices=False)
    variance = (MILLIMETRES * STRENGTH * singular) ** 2
    return LinearModel(np.zeros(points.size), directions.T, variance)


def _landmark_metadata(points: Float64) -> str:
    """The JSON list of named landmarks; points (68, 3) of the mean head, millimetres."""
    uncertainty = {"stddevs": [4.0, 4.0, 4.0], "pcvectors": np.eye(3, dtype=int).tolist()}
    entries = [
        {"id": name, "coordinates": points[index].tolist(), "uncertainty": uncertainty}
        for name, index in NAMED_LANDMARKS.items()
    ]
    return json.dumps(entries)


def _write_model(
    path: Path,
    groups: dict[str, LinearModel],
    faces: Int32,
    landmarks: Int64,
) -> None:
    """Write the HDF5 file; groups are ``shape``, ``color`` and ``expression``."""
    import h5py

    mean = groups["shape"].mean.reshape(-1, 3)
    content = BytesIO()  # HDF5 itself crashes where the disk is full
    with h5py.File(content, "w") as file:
        for name, components in groups.items():
            model = file.create_group(f"{name}/model")
            model["mean"] = components.mean.astype(np.float32)
            model["pcaBasis"] = components.basis.astype(np.float32)
            model["pcaVariance"] = components.variance.astype(np.float32)
            model["noiseVariance"] = np.float32(0)
            representer = file.create_group(f"{name}/representer")
            representer["points"] = mean.T.astype(np.float32)
            representer["cells"] = faces.T
        file["landmarks68/vertex_index"] = landmarks.astype(np.int32)
        text = _landmark_metadata(mean[landmarks])
        file.create_dataset("metadata/landmarks/json", data=[text], dtype=h5py.string_dtype())
    with atomic(path) as temporary:
        temporary.write_bytes(content.getvalue())


def build_model(path: Path, landmarks: Float64, generator: np.random.Generator) -> None:
    """Build and write the morphable model.

    Args:
        path: of the HDF5 file.
        landmarks: (68, 3) of the subject's landmark vertices on the sculpture, decimetres.
        generator: of the other heads; must not be the subject's.
    """
    surface, indices = _build_template(landmarks)
    sculpture = surface.vertices.astype(np.float64)
    neutral = sculpture + controls.lip_closure(sculpture)
    groups = {
        "shape": _identity_components(neutral, generator),
        "color": LinearModel(
            np.full(neutral.size, 0.6), np.zeros((neutral.size, 1)), np.full(1, 1e-4)
        ),
        "expression": _expression_components(
            neutral, controls.skin_displacements(sculpture), generator
        ),
    }
    _write_model(path, groups, surface.faces, indices)
