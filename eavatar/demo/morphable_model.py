"""The demo's morphable model: principal components of other random heads of the family.

Written in the HDF5 layout of the Basel Face Model 2017 (Gerig et al. 2018), millimetres, in the
axes and with the origin of the demo's model frame.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from eavatar.demo import controls
from eavatar.demo.controls import CONTROLS
from eavatar.demo.sculpt import MOUTH_Y, SKIN, Surface, axis, mesh
from eavatar.io import atomic

Array = NDArray[np.float64]

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
class Components:
    """A linear model of 3-D points.

    Attributes:
        mean: (3N,) millimetres.
        basis: (3N, M) orthonormal columns.
        variance: (M,) square millimetres.
    """

    mean: Array
    basis: Array
    variance: Array


def keep_vertices(surface: Surface, keep: NDArray[np.bool_]) -> Surface:
    """The faces whose corners are all kept, and the vertices that they use."""
    faces = surface.faces[keep[surface.faces].all(axis=1)]
    used, renumbered = np.unique(faces, return_inverse=True)
    return Surface(surface.vertices[used], renumbered.reshape(-1, 3).astype(np.int32))


def template(landmarks: Array) -> tuple[Surface, NDArray[np.int64]]:
    """Coarse skin without the mouth's inside, and the (68,) vertices that lie on the landmarks.

    Args:
        landmarks: (68, 3) on the sculpture, decimetres.
    """
    from scipy.spatial import cKDTree

    surface = mesh(SKIN, AXES)
    inside = ((surface.vertices - [0, MOUTH_Y, 0.60]) / [0.28, 0.205, 0.30]) ** 2
    surface = keep_vertices(surface, inside.sum(axis=1) > 1)
    vertices = surface.vertices.copy()
    indices: list[int] = []
    _, candidates = cKDTree(vertices).query(landmarks, k=8)
    for point, nearest in zip(landmarks, candidates, strict=True):
        index = next(int(i) for i in nearest if i not in indices)
        vertices[index] = point
        indices.append(index)
    return Surface(vertices, surface.faces), np.array(indices)


def identity_components(points: Array, generator: np.random.Generator) -> Components:
    """Principal components of random heads; points (N, 3) on the sculpture, lips closed."""
    heads = np.stack(
        [controls.warp(points, controls.random_shape(generator)).ravel() for _ in range(HEADS)]
    )
    mean = heads.mean(axis=0)
    _, singular, directions = np.linalg.svd(heads - mean, full_matrices=False)
    variance = singular[:IDENTITY_COMPONENTS] ** 2 / (HEADS - 1)
    basis = directions[:IDENTITY_COMPONENTS].T
    return Components(MILLIMETRES * mean, basis, MILLIMETRES**2 * variance)


def expression_components(
    points: Array, displacements: Array, generator: np.random.Generator
) -> Components:
    """Orthonormal span of the controls, averaged over other heads; displacements (K, N, 3)."""
    total = np.zeros((len(CONTROLS), points.size))
    for _ in range(EXPRESSIVE_HEADS):
        shape = controls.random_shape(generator)
        neutral = controls.warp(points, shape)
        for row, displacement in zip(total, displacements, strict=True):
            row += (controls.warp(points + displacement, shape) - neutral).ravel()
    mean_motion = total / EXPRESSIVE_HEADS
    _, singular, directions = np.linalg.svd(mean_motion, full_matrices=False)
    variance = (MILLIMETRES * STRENGTH * singular) ** 2
    return Components(np.zeros(points.size), directions.T, variance)


def landmark_metadata(points: Array) -> str:
    """The JSON list of named landmarks; points (68, 3) of the mean head, millimetres."""
    uncertainty = {"stddevs": [4.0, 4.0, 4.0], "pcvectors": np.eye(3, dtype=int).tolist()}
    entries = [
        {"id": name, "coordinates": points[index].tolist(), "uncertainty": uncertainty}
        for name, index in NAMED_LANDMARKS.items()
    ]
    return json.dumps(entries)


def write_model(
    path: Path,
    groups: dict[str, Components],
    faces: NDArray[np.int32],
    landmarks: NDArray[np.int64],
) -> None:
    """Write the HDF5 file; groups are ``shape``, ``color`` and ``expression``."""
    import h5py

    mean = groups["shape"].mean.reshape(-1, 3)
    with atomic(path) as temporary, h5py.File(temporary, "w") as file:
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
        text = landmark_metadata(mean[landmarks])
        file.create_dataset("metadata/landmarks/json", data=[text], dtype=h5py.string_dtype())


def build_model(path: Path, landmarks: Array, generator: np.random.Generator) -> None:
    """Build and write the morphable model.

    Args:
        landmarks: (68, 3) of the subject's landmark vertices on the sculpture, decimetres.
        generator: of the other heads; must not be the subject's.
    """
    surface, indices = template(landmarks)
    sculpture = surface.vertices.astype(np.float64)
    neutral = sculpture + controls.lip_closure(sculpture)
    groups = {
        "shape": identity_components(neutral, generator),
        "color": Components(
            np.full(neutral.size, 0.6), np.zeros((neutral.size, 1)), np.full(1, 1e-4)
        ),
        "expression": expression_components(
            neutral, controls.skin_displacements(sculpture), generator
        ),
    }
    write_model(path, groups, surface.faces, indices)
