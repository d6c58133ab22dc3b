"""The colours of places on the tracked head, averaged over the cameras that see them.

Letters: T timesteps, C cameras, P places, V vertices, S side of the images.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import numpy as np
from scipy.spatial.transform import Rotation

from eavatar.arrays import Bool, Float32, Float64, Uint8
from eavatar.data.images import read_colour, read_grey, resize_area
from eavatar.face.morphable import MorphableModel, read_morphable_model
from eavatar.face.photometric import CELL, fill_depth, linearise_colours, visible_points
from eavatar.face.refine import MaskedSequence, ResizedCameras, read_resized_cameras
from eavatar.face.triangulation import project_points
from eavatar.io import (
    Identity,
    Tracking,
    atomic,
    read_arrays,
    read_mesh,
    read_sequences,
    write_arrays,
)

TAKEN_OVER = ("identity.npz", "neutral.ply", "expression_basis.npz")
MIN_COSINE = 0.3  # of the angle to the viewing direction; flatter views show little
OCCLUSION_DISTANCE = 0.006  # metres in front of a point; an eye bulges by half of it
COLOUR_OUTLIER = 0.1  # of a range of 1: gloss; less than skin differs from teeth
MIN_WEIGHT = 0.05  # of the views of a point, from which on it counts as seen


@dataclass(frozen=True)
class Pose:
    """The head's rigid motion at a timestep: ``x_world = scale · turn · x + shift``.

    Attributes:
        scale: canonical units to metres.
        turn: (3, 3).
        shift: (3,) metres.
    """

    scale: float
    turn: Float64
    shift: Float64

    def place(self, points: Float64) -> Float64:
        """Canonical points (…, 3) in world space."""
        placed: Float64 = self.scale * points @ self.turn.T + self.shift
        return placed

    def bring_back(self, points: Float64) -> Float64:
        """World points (…, 3) in canonical space."""
        canonical: Float64 = (points - self.shift) @ self.turn / self.scale
        return canonical


@dataclass(frozen=True)
class TrackedFace:
    """What all timesteps have in common.

    Attributes:
        capture: ``results/<subject>/capture``.
        cameras: of the capture.
        model: whose expressions the tracking has.
        neutral: (V, 3) canonical.
        landmarks: (68, 3) of it.
        scale: canonical units to metres.
    """

    capture: Path
    cameras: ResizedCameras
    model: MorphableModel
    neutral: Float64
    landmarks: Float64
    scale: float

    @classmethod
    def read(cls, image_size: int, model: MorphableModel, capture: Path, face: Path) -> Self:
        """From a folder with ``identity.npz`` and ``neutral.ply``, for images of a size."""
        identity = read_arrays(Identity, face / "identity.npz")
        return cls(
            capture,
            read_resized_cameras(capture / "cameras.json", image_size),
            model,
            read_mesh(face / "neutral.ply").vertices.astype(np.float64),
            identity.landmarks.astype(np.float64),
            float(identity.scale),
        )

    def pose(self, track: Tracking, timestep: int) -> Pose:
        """Of the head at a timestep."""
        turn = Rotation.from_rotvec(track.rotation[timestep].astype(np.float64)).as_matrix()
        return Pose(self.scale, turn, track.translation[timestep].astype(np.float64))

    def vertices(self, track: Tracking, timestep: int) -> Float64:
        """(V, 3) of the mesh at a timestep, world."""
        basis = self.model.expression_basis[..., : track.expression.shape[1]]
        return self.pose(track, timestep).place(self.neutral + basis @ track.expression[timestep])


def mean_colours(
    face: TrackedFace,
    sequence: MaskedSequence,
    timestep: int,
    vertices: Float64,
    places: Float64,
    normals: Float64,
) -> tuple[Float64, Bool]:
    """The robust mean of the colours (P, 3) in the cameras that see a place, and whether any does.

    Args:
        face: with capture, cameras and faces.
        sequence: of the timestep.
        timestep: whose frames are read.
        vertices: (V, 3) of the mesh that may occlude them, world.
        places: (P, 3) world.
        normals: (P, 3) of unit length.
    """
    cameras = face.cameras
    images, masks = _read_images(face, sequence, timestep)
    weights = _weigh_views(face, vertices, places, normals, masks)
    nothing = np.zeros((len(places), 3))
    _, _, _, colours, totals = linearise_colours(
        images,
        np.zeros((len(cameras.serials), 2)),
        cameras.projections,
        places,
        weights,
        nothing,
        nothing[:, 0],
        COLOUR_OUTLIER,
    )
    return colours, totals > MIN_WEIGHT


def _read_images(
    face: TrackedFace, sequence: MaskedSequence, timestep: int
) -> tuple[Float32, Uint8]:
    """Frames (C, S, S, 3) in [0, 1] and masks (C, S, S); those that have failed are empty."""
    cameras = face.cameras
    images = np.empty((len(cameras.serials), cameras.size, cameras.size, 3), np.float32)
    masks = np.zeros(images.shape[:3], np.uint8)
    for camera, serial in enumerate(cameras.serials):
        file = Path(sequence.name, serial, f"{timestep:05d}")
        colour = read_colour((face.capture / file).with_suffix(".jpg"))
        images[camera] = resize_area(colour, cameras.size).astype(np.float32) / 255
        if (timestep, serial) not in sequence.failed:
            mask = read_grey((face.capture / "masks" / file).with_suffix(".png"))
            masks[camera] = resize_area(mask, cameras.size)
    return images, masks


def _weigh_views(
    face: TrackedFace, vertices: Float64, places: Float64, normals: Float64, masks: Uint8
) -> Float64:
    """(C, P) how well the cameras see the places, 0 = not at all; arguments as `mean_colours`."""
    cameras = face.cameras
    buffer = np.empty((int(cameras.size / CELL), int(cameras.size / CELL)))
    corners = project_points(cameras.projections, vertices[None])[0][0]
    pixels = project_points(cameras.projections, places[None])[0][0]
    weights = np.zeros((len(masks), len(places)))
    for camera, mask in enumerate(masks):
        depth = np.linalg.norm(cameras.centres[camera] - vertices, axis=1)
        fill_depth(corners[camera], depth, face.model.faces, buffer)
        rays = cameras.centres[camera] - places
        depth = np.linalg.norm(rays, axis=1)
        cosine = (normals * rays).sum(axis=1) / depth
        inside = pixels[camera].clip(0, cameras.size - 1)
        seen = visible_points(inside, depth, buffer, mask, OCCLUSION_DISTANCE)
        weights[camera] = seen * ((cosine - MIN_COSINE).clip(0) / (1 - MIN_COSINE)) ** 2
    return weights


def measure_sequences(
    measure: Callable[[MorphableModel, dict[str, Tracking]], dict[str, Tracking]] | None,
    morphable_model: Path,
    capture: Path,
    face: Path,
    output: Path,
) -> Path:
    """Write the tracking of all sequences with what is measured, all else as it is in ``face``.

    Args:
        measure: adds to the tracking by sequence; None adds nothing.
        morphable_model: the file that the fit used.
        capture: ``results/<subject>/capture``.
        face: folder with ``tracking/<sequence>.npz`` and `TAKEN_OVER`.
        output: folder; receives the same.

    Returns:
        ``output``.

    Raises:
        UserError: an input is missing or malformed.
    """
    names = read_sequences(capture / "sequences.json").names
    tracks = {name: read_arrays(Tracking, face / "tracking" / f"{name}.npz") for name in names}
    if measure:
        tracks = measure(read_morphable_model(morphable_model), tracks)
    for name, track in tracks.items():
        write_arrays(output / "tracking" / f"{name}.npz", track)
    for name in TAKEN_OVER:
        with atomic(output / name) as temporary:
            shutil.copyfile(face / name, temporary)
    return output
