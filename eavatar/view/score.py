"""Figures against ground truth, for subjects that have it: the generated one and rendered ones.

A tool beside the pipeline: no stage reads ground truth. A truth folder holds

    <sequence>.npz              R (T, 3, 3), t (T, 3): X_world = R X_model + t, metres;
                                landmarks68 (T, 68, 3) world; T video frames
    <sequence>_mask/cam_<serial>.mp4    alpha of the uncropped image, threshold 127
    neutral.ply                 the head at rest in its model's frame, metres

The figures:

mask IoU             mean over images; both masks at threshold 127, the truth cropped and averaged
                     as the frames are
head rotation error  degrees between fitted and true head rotation, median over timesteps; and the
                     same after the mean rotation between the two head frames is taken away
landmark error       distance of fitted and true landmarks, mm, median over landmarks and timesteps
reprojection error   distance of their projections, % of the face width, median over landmarks,
                     cameras and timesteps; the face width is the distance of the ends of the jaw
                     line (landmarks 0 and 16) as that camera would see it from the front, at the
                     depth of the face
surfaces             fitted face, aligned prior, stage I: mean distance from points of the true
                     face to the nearest point of the surface, % of the head size. Canonical space
                     goes to the truth's model frame by the poses alone (`canonical_to_model`),
                     without any fitting. The face is what is seen first from the front within the
                     outline of the landmarks (`face_points`); the head size is the height from
                     the chin (landmark 8) to the highest vertex.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
import trimesh
from numpy.typing import NDArray
from scipy.spatial import ConvexHull, Delaunay, cKDTree
from scipy.spatial.transform import Rotation
from tqdm import tqdm

from eavatar.cameras import Camera
from eavatar.capture.captures import open_capture
from eavatar.data.frames import read_grey
from eavatar.errors import UserError
from eavatar.io import Identity, Mesh, Tracking, read_arrays, read_cameras, read_mesh, require
from eavatar.landmark_indices import CHIN, JAW_ENDS
from eavatar.meshes import sample_surface
from eavatar.transforms import Similarity

Array = NDArray[np.float64]
Mask = NDArray[np.bool_]

SURFACE_SAMPLES = 400_000  # dozens in each cell of the front view, so that none falls through
CELL = 0.004  # metres; side of the cells in which the face is looked at from the front
CANDIDATES = 8  # nearest samples whose triangles are tried for the nearest point


@dataclass(frozen=True)
class Row:
    """A figure over the test sequences (NaN if it does not depend on them) and over all."""

    figure: str
    unit: str
    held_out: float
    all: float


@dataclass(frozen=True)
class Sequence:
    """One sequence's fit beside its truth, the same T timesteps.

    Attributes:
        name; held_out: whether it is in the test split.
        source_frames: (T,) frame of the video.
        rotation, true_rotation: (T, 3, 3); translation, true_translation: (T, 3) metres.
        landmarks, true_landmarks: (T, 68, 3) world, metres.
    """

    name: str
    held_out: bool
    source_frames: NDArray[np.int64]
    rotation: Array
    translation: Array
    landmarks: Array
    true_rotation: Array
    true_translation: Array
    true_landmarks: Array


def score(
    results: Path, truth: Path, capture: Path | None = None, variant: str = "full"
) -> pd.DataFrame:
    """Compare a subject's results with ground truth and print the table.

    Args:
        results: ``results/<subject>``.
        truth: the truth folder.
        capture: the raw capture, for the calibration of the uncropped image; by default
            ``results/raw``, where a generated subject has it.
    Returns:
        the table: figure, unit, held_out (test sequences), all.
    """
    cameras = read_cameras(results / "capture" / "cameras.json")
    full = open_capture(capture or results / "raw").cameras
    sequences = _read_sequences(results, truth)
    rows = _pose_rows(sequences, cameras)
    rows += _mask_rows(results, truth, sequences, cameras, full)
    rows += _surface_rows(results, truth, sequences, variant)
    table = pd.DataFrame(rows)
    print(table.to_string(index=False, float_format="%.3f", na_rep="–"))
    return table


def _pose_rows(sequences: list[Sequence], cameras: dict[str, Camera]) -> list[Row]:
    constant = _mean_rotation(sequences)
    measures: list[tuple[str, str, Callable[[Sequence], Array]]] = [
        ("head rotation error", "°", lambda s: rotation_errors(s, np.eye(3))),
        ("… less a constant rotation", "°", lambda s: rotation_errors(s, constant)),
        ("landmark error", "mm", lambda s: 1000 * landmark_errors(s)),
        ("reprojection error", "% of face width", lambda s: reprojection_errors(s, cameras)),
    ]
    return [
        _row(name, unit, sequences, [measure(s) for s in sequences], np.median)
        for name, unit, measure in measures
    ]


def _mask_rows(
    results: Path,
    truth: Path,
    sequences: list[Sequence],
    cameras: dict[str, Camera],
    full: Mapping[str, Camera],
) -> list[Row]:
    overlaps = [
        _mask_overlaps(results, truth, sequence, cameras, full)
        for sequence in tqdm(sequences, desc="score masks", unit="sequence")
    ]
    return [_row("mask IoU", "", sequences, overlaps, np.mean)]


def _row(
    name: str,
    unit: str,
    sequences: list[Sequence],
    values: list[Array],
    average: Callable[[Array], np.floating],
) -> Row:
    """A figure over the held-out and over all sequences, from the values of each sequence."""
    flat = [value.ravel() for value in values]
    held_out = [v for v, sequence in zip(flat, sequences, strict=True) if sequence.held_out]
    return Row(
        name,
        unit,
        float(average(np.concatenate(held_out))) if held_out else np.nan,
        float(average(np.concatenate(flat))),
    )


def rotation_errors(sequence: Sequence, constant: Array) -> Array:
    """Angle between fitted and true head rotation, degrees, (T,).

    Args:
        constant: (3, 3) rotation from the canonical frame to the truth's model frame.
    """
    between = sequence.true_rotation @ constant @ sequence.rotation.transpose(0, 2, 1)
    return np.degrees(Rotation.from_matrix(between).magnitude())


def landmark_errors(sequence: Sequence) -> Array:
    """Distance of fitted and true landmarks, metres, (T, 68)."""
    return np.linalg.norm(sequence.landmarks - sequence.true_landmarks, axis=-1)


def reprojection_errors(sequence: Sequence, cameras: dict[str, Camera]) -> Array:
    """Distance of projected fitted and true landmarks, % of the face width, (C, T, 68)."""
    first, last = (sequence.true_landmarks[:, end] for end in JAW_ENDS)
    width = np.linalg.norm(first - last, axis=-1)
    errors = []
    for camera in cameras.values():
        true_pixels, depth = camera.project(sequence.true_landmarks)
        pixels, _ = camera.project(sequence.landmarks)
        face_pixels = width * camera.intrinsics[0, 0] / depth.mean(axis=1)
        distance = np.linalg.norm(pixels - true_pixels, axis=-1)
        errors.append(100 * distance / face_pixels[:, None])
    return np.stack(errors)


def canonical_to_model(sequences: list[Sequence], scale: float) -> Similarity:
    """The map from canonical space to the truth's model frame that the poses imply.

    Of each timestep X = R'ᵀ (scale · R x + t − t'); the rotations are averaged as the nearest
    rotation to their mean, the translations by their median.
    """
    rotation = _mean_rotation(sequences)
    offsets = [
        np.einsum("tji,tj->ti", s.true_rotation, s.translation - s.true_translation)
        for s in sequences
    ]
    return Similarity(scale, rotation, np.median(np.concatenate(offsets), axis=0))


def face_points(mesh: Mesh, landmarks: Array) -> Array:
    """Points of a head that are seen first from the front, inside the landmarks' outline, (N, 3).

    One for each cell of a grid in x and y: the sample of the surface with the largest z. Eyeballs,
    teeth and the back of the head, which the face hides, are thus left out.

    Args:
        mesh: y up, z out of the face, metres. landmarks: (68, 3).
    """
    samples, _ = sample_surface(mesh, SURFACE_SAMPLES, seed=0)
    samples = samples[samples[:, 2].argsort()[::-1]]
    cells = np.floor(samples[:, :2] / CELL).astype(np.int64)
    _, first = np.unique(cells, axis=0, return_index=True)
    outline = landmarks[ConvexHull(landmarks[:, :2]).vertices, :2]
    inside = Delaunay(outline).find_simplex(samples[first, :2]) >= 0
    return samples[first][inside]


def surface_distances(points: Array, mesh: Mesh) -> Array:
    """Distance from points (N, 3) to the nearest point of a mesh's surface, (N,).

    Exact for the triangles tried: those of the nearest of many samples of the surface.
    """
    samples, owners = sample_surface(mesh, SURFACE_SAMPLES, seed=0)
    _, nearest = cKDTree(samples).query(points, CANDIDATES, workers=-1)
    triangles = mesh.vertices[mesh.faces][owners[nearest]].reshape(-1, 3, 3)
    repeated = np.repeat(points, CANDIDATES, axis=0)
    closest = trimesh.triangles.closest_point(triangles, repeated)
    distances = np.linalg.norm(closest - repeated, axis=1)
    return distances.reshape(-1, CANDIDATES).min(axis=1)


def crop_mask(mask: Mask, full: Camera, frame: Camera) -> Mask:
    """A mask of the uncropped image as the ingested frames see it.

    Args:
        mask: (h, w) of any size that shows the whole image.
        full, frame: the same camera, uncropped at full size and as ingested.
    """
    stored = full.resize(mask.shape[1], mask.shape[0])
    fine = 4  # samples per pixel and axis
    camera = frame.resize(fine * frame.width, fine * frame.height)
    to_stored = stored.intrinsics @ np.linalg.inv(camera.intrinsics)
    to_stored[:2, 2] += to_stored[:2, :2] @ [0.5, 0.5] - 0.5  # OpenCV puts pixel centres at 0
    sampled = cv2.warpAffine(
        mask.astype(np.float32),
        to_stored[:2],
        (camera.width, camera.height),
        flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP,
    )
    size = (frame.width, frame.height)
    return cv2.resize(sampled, size, interpolation=cv2.INTER_AREA) >= 0.5


def overlap(first: Mask, second: Mask) -> float:
    """Intersection over union; 1 if both are empty."""
    union = np.count_nonzero(first | second)
    return float(np.count_nonzero(first & second) / union) if union else 1.0


def _read_sequences(results: Path, truth: Path) -> list[Sequence]:
    """The sequences that were ingested and have a truth."""
    ingested = {path.stem for path in (results / "capture").glob("*.csv")}
    paths = [path for path in sorted(truth.glob("*.npz")) if path.stem in ingested]
    if not paths:
        raise UserError(f"{truth} has no <sequence>.npz of a sequence in {results}/capture.")
    return [_read_sequence(results, path) for path in paths]


def _read_sequence(results: Path, path: Path) -> Sequence:
    index = pd.read_csv(results / "capture" / f"{path.stem}.csv")
    index = index.drop_duplicates("timestep").sort_values("timestep")
    track = read_arrays(Tracking, results / "face" / "tracking" / path.name)
    source = index["source_frame"].to_numpy()
    with np.load(path, allow_pickle=False) as archive:
        true = {name: archive[name][source] for name in ("R", "t", "landmarks68")}
    return Sequence(
        name=path.stem,
        held_out=bool((index["split"] == "test").any()),
        source_frames=source,
        rotation=Rotation.from_rotvec(track.rotation).as_matrix(),
        translation=track.translation.astype(np.float64),
        landmarks=track.landmarks.astype(np.float64),
        true_rotation=true["R"],
        true_translation=true["t"],
        true_landmarks=true["landmarks68"],
    )


def _mask_overlaps(
    results: Path,
    truth: Path,
    sequence: Sequence,
    cameras: dict[str, Camera],
    full: Mapping[str, Camera],
) -> Array:
    """IoU of every image of a sequence, (C, T)."""

    def overlaps(serial: str) -> list[float]:
        folder = results / "capture" / "masks" / sequence.name / serial
        video = truth / f"{sequence.name}_mask" / f"cam_{serial}.mp4"
        true = _read_masks(require(video, "the true mask"))
        values = []
        for timestep, source in enumerate(sequence.source_frames):
            found = read_grey(folder / f"{timestep:05d}.png") > 127
            values.append(overlap(found, crop_mask(true[source], full[serial], cameras[serial])))
        return values

    with ThreadPoolExecutor() as pool:
        return np.array(list(pool.map(overlaps, cameras)))


def _read_masks(path: Path) -> list[Mask]:
    import av

    with av.open(str(path)) as container:
        return [frame.to_ndarray(format="gray") > 127 for frame in container.decode(video=0)]


def _mean_rotation(sequences: list[Sequence]) -> Array:
    """The mean over all timesteps of R'ᵀ R, (3, 3)."""
    rotations = [s.true_rotation.transpose(0, 2, 1) @ s.rotation for s in sequences]
    return Rotation.from_matrix(np.concatenate(rotations)).mean().as_matrix()


def _surface_rows(results: Path, truth: Path, sequences: list[Sequence], variant: str) -> list[Row]:
    identity = read_arrays(Identity, results / "face" / "identity.npz")
    to_model = canonical_to_model(sequences, float(identity.scale))
    head = read_mesh(truth / "neutral.ply")
    in_model = [
        np.einsum("tji,tlj->tli", s.true_rotation, s.true_landmarks - s.true_translation[:, None])
        for s in sequences
    ]
    landmarks = np.median(np.concatenate(in_model), axis=0)
    size = float(head.vertices[:, 1].max() - landmarks[CHIN, 1])
    points = face_points(head, landmarks)
    paths = {
        "fitted face": results / "face" / "neutral.ply",
        "aligned prior": results / "prior" / "aligned.ply",
        "stage I surface": results / "sdf" / variant / "neutral.ply",
    }
    rows = []
    for name, path in paths.items():
        mesh = read_mesh(path)
        placed = Mesh(
            to_model.apply(mesh.vertices.astype(np.float64)).astype(np.float32), mesh.faces
        )
        error = 100 * float(surface_distances(points, placed).mean()) / size
        rows.append(Row(name, "% of head size", np.nan, error))
    return rows
