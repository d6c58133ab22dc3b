"""Metrics against ground truth, for subjects that have it: the generated one and rendered ones.

A tool beside the pipeline: no stage reads ground truth. A truth folder holds

    <sequence>.npz              R (T, 3, 3), t (T, 3): X_world = R X_model + t, metres;
                                landmarks68 (T, 68, 3) world; T video frames
    <sequence>_mask/cam_<serial>.mp4    mask of the uncropped image, threshold 127
    neutral.ply                 the head at rest in its model's frame, metres

The metrics:

mask IoU             mean over frames; both masks at threshold 127, the truth cropped and resampled
                     as the frames are
head rotation error  degrees between fitted and true head rotation, median over timesteps; and the
                     same without the mean rotation between the two head frames
landmark error       distance of fitted and true landmarks, mm, median over landmarks and timesteps
reprojection error   distance of their projections, % of the face width, median over landmarks,
                     cameras and timesteps; the face width is the distance of the ends of the jaw
                     line (landmarks 0 and 16) as that camera would see it from the front, at the
                     depth of the face
surfaces             fitted face, aligned prior, stage I: mean distance from points of the true
                     face to the nearest point of the surface, % of the head size. Canonical space
                     goes to the truth's model frame by the poses alone (`_map_to_model`),
                     without any fitting. The face is the foremost surface within the outline of
                     the landmarks (`face_points`); the head size is the height from
                     the chin (landmark 8) to the highest vertex.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from zipfile import BadZipFile

import cv2
import numpy as np
import pandas as pd
import trimesh
from scipy.spatial import ConvexHull, Delaunay, cKDTree
from scipy.spatial.transform import Rotation
from tqdm import tqdm

from eavatar.arrays import Bool, Float64, Int64
from eavatar.cameras import Camera
from eavatar.data.images import read_grey
from eavatar.errors import UserError
from eavatar.io import (
    Identity,
    Mesh,
    Tracking,
    read_arrays,
    read_cameras,
    read_mesh,
    read_sequences,
    require,
)
from eavatar.landmark_indices import CHIN, JAW_ENDS
from eavatar.meshes import sample_surface
from eavatar.results import Results
from eavatar.threads import count_threads, make_pool
from eavatar.transforms import Similarity

SURFACE_SAMPLES = 400_000  # dozens in each cell of the front view, so that none is empty
CELL = 0.004  # metres; side of the cells of the front view
NEAREST_SAMPLES = 8  # whose triangles are tried for the nearest point


@dataclass(frozen=True)
class ScoreRow:
    """One metric.

    Attributes:
        metric: its name.
        unit: of the values.
        held_out: over the test sequences; NaN if it does not depend on them.
        all: over all sequences.
    """

    metric: str
    unit: str
    held_out: float
    all: float


@dataclass(frozen=True)
class ScoredSequence:
    """One sequence's fit beside its truth, the same T timesteps.

    Attributes:
        name: of the sequence.
        held_out: whether it is in the test split.
        source_frames: (T,) indices in the video.
        rotation: (T, 3, 3) of the fit.
        translation: (T, 3) of the fit, metres.
        landmarks: (T, 68, 3) of the fit, world, metres.
        true_rotation: (T, 3, 3).
        true_translation: (T, 3) metres.
        true_landmarks: (T, 68, 3) world, metres.
    """

    name: str
    held_out: bool
    source_frames: Int64
    rotation: Float64
    translation: Float64
    landmarks: Float64
    true_rotation: Float64
    true_translation: Float64
    true_landmarks: Float64


@dataclass(frozen=True)
class TrueHead:
    """The true head at rest, in its model's frame, and where canonical space lies in it.

    Attributes:
        mesh: metres.
        landmarks: (68, 3) metres, at rest but for what all timesteps share.
        to_model: canonical space to the model's frame, by the poses alone.
    """

    mesh: Mesh
    landmarks: Float64
    to_model: Similarity

    @property
    def size(self) -> float:
        """Height from the chin to the highest vertex, metres."""
        return float(self.mesh.vertices[:, 1].max() - self.landmarks[CHIN, 1])

    def distances(self, points: Float64, surface: Mesh) -> Float64:
        """Distance from points (N, 3) of the model's frame to a surface, (N,), % of the head size.

        Args:
            points: metres.
            surface: canonical.
        """
        placed = self.to_model.apply(surface.vertices.astype(np.float64)).astype(np.float32)
        return 100 * surface_distances(points, Mesh(placed, surface.faces)) / self.size


def read_true_head(results: Path, truth: Path) -> TrueHead:
    """The truth of a subject's surfaces; folders and errors as of `score`."""
    return _find_true_head(results, truth, _read_sequences(results, truth))


def score(folder: Path, truth: Path | None = None, variant: str | None = None) -> pd.DataFrame:
    """Compare a subject's results with ground truth and print the table.

    Args:
        folder: ``results/<subject>``.
        truth: the truth folder; if None ``results/<subject>/truth``, which a generated subject has.
        variant: of stage I; None as of `eavatar.results.Results.model`.

    Returns:
        the table: metric, unit, held_out (test sequences), all.

    Raises:
        UserError: a file is missing or malformed, or the truth is of another subject.
    """
    results = Results.open(folder)
    truth = truth or folder / "truth"
    if not truth.is_dir():
        raise UserError(
            f"there is no ground truth {truth}; name its folder with --truth: a generated subject "
            "has one in its results, a recorded one has none."
        )
    surface = results.model("sdf", variant) / "neutral.ply"
    cameras = read_cameras(results.cameras)
    if not results.full_cameras.exists():
        raise UserError(
            f"{results.full_cameras} is missing, which earlier versions did not write; write it "
            f"with: snakemake --cores all {results.full_cameras}"
        )
    full = read_cameras(results.full_cameras)
    sequences = _read_sequences(folder, truth)
    rows = _pose_rows(sequences, cameras)
    rows += _mask_rows(folder, truth, sequences, cameras, full)
    rows += _surface_rows(folder, truth, sequences, surface)
    table = pd.DataFrame(rows)
    print(table.to_string(index=False, float_format="%.3f", na_rep="–"))
    return table


def _pose_rows(sequences: list[ScoredSequence], cameras: dict[str, Camera]) -> list[ScoreRow]:
    constant = _mean_rotation(sequences)
    measures: list[tuple[str, str, Callable[[ScoredSequence], Float64]]] = [
        ("head rotation error", "°", lambda s: _rotation_errors(s, np.eye(3))),
        ("… less a constant rotation", "°", lambda s: _rotation_errors(s, constant)),
        ("landmark error", "mm", lambda s: 1000 * _landmark_errors(s)),
        ("reprojection error", "% of face width", lambda s: _reprojection_errors(s, cameras)),
    ]
    return [
        _row(name, unit, sequences, [measure(s) for s in sequences], np.median)
        for name, unit, measure in measures
    ]


def _mask_rows(
    results: Path,
    truth: Path,
    sequences: list[ScoredSequence],
    cameras: dict[str, Camera],
    full: Mapping[str, Camera],
) -> list[ScoreRow]:
    overlaps = [
        _mask_overlaps(results, truth, sequence, cameras, full)
        for sequence in tqdm(sequences, desc="score masks", unit="sequence")
    ]
    return [_row("mask IoU", "", sequences, overlaps, np.mean)]


def _row(
    name: str,
    unit: str,
    sequences: list[ScoredSequence],
    values: list[Float64],
    average: Callable[[Float64], np.floating],
) -> ScoreRow:
    """A metric over the held-out and over all sequences.

    Args:
        name: of the metric.
        unit: of its values.
        sequences: to average over.
        values: of each sequence, any shape.
        average: median or mean.
    """
    flat = [value.ravel() for value in values]
    held_out = [v for v, sequence in zip(flat, sequences, strict=True) if sequence.held_out]
    return ScoreRow(
        name,
        unit,
        float(average(np.concatenate(held_out))) if held_out else np.nan,
        float(average(np.concatenate(flat))),
    )


def _rotation_errors(sequence: ScoredSequence, constant: Float64) -> Float64:
    """Angle between fitted and true head rotation, degrees, (T,).

    Args:
        sequence: fit and truth.
        constant: (3, 3) rotation from the canonical frame to the truth's model frame.
    """
    between = sequence.true_rotation @ constant @ sequence.rotation.transpose(0, 2, 1)
    degrees: Float64 = np.degrees(Rotation.from_matrix(between).magnitude())
    return degrees


def _landmark_errors(sequence: ScoredSequence) -> Float64:
    """Distance of fitted and true landmarks, metres, (T, 68)."""
    distances: Float64 = np.linalg.norm(sequence.landmarks - sequence.true_landmarks, axis=-1)
    return distances


def _reprojection_errors(sequence: ScoredSequence, cameras: dict[str, Camera]) -> Float64:
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


def _map_to_model(sequences: list[ScoredSequence], scale: float) -> Similarity:
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


def face_points(mesh: Mesh, landmarks: Float64) -> Float64:
    """The foremost points of a head inside the landmarks' outline, (N, 3).

    One for each cell of a grid in x and y: the sample of the surface with the largest z. Eyeballs,
    teeth and the back of the head, which the face occludes, are thus left out.

    Args:
        mesh: y up, z out of the face, metres.
        landmarks: (68, 3) in the frame of the mesh.
    """
    samples, _ = sample_surface(mesh, SURFACE_SAMPLES, seed=0)
    samples = samples[samples[:, 2].argsort()[::-1]]
    cells = np.floor(samples[:, :2] / CELL).astype(np.int64)
    _, first = np.unique(cells, axis=0, return_index=True)
    outline = landmarks[ConvexHull(landmarks[:, :2]).vertices, :2]
    inside = Delaunay(outline).find_simplex(samples[first, :2]) >= 0
    inner: Float64 = samples[first][inside]
    return inner


def surface_distances(points: Float64, mesh: Mesh) -> Float64:
    """Distance from points (N, 3) to the nearest point of a mesh's surface, (N,).

    Exact for the triangles tried: those of the nearest of many samples of the surface.
    """
    samples, owners = sample_surface(mesh, SURFACE_SAMPLES, seed=0)
    _, nearest = cKDTree(samples).query(points, NEAREST_SAMPLES, workers=count_threads())
    triangles = mesh.vertices[mesh.faces][owners[nearest]].reshape(-1, 3, 3)
    repeated = np.repeat(points, NEAREST_SAMPLES, axis=0)
    closest = trimesh.triangles.closest_point(triangles, repeated)
    tried = np.linalg.norm(closest - repeated, axis=1)
    distances: Float64 = tried.reshape(-1, NEAREST_SAMPLES).min(axis=1)
    return distances


def crop_mask(mask: Bool, full: Camera, frame: Camera) -> Bool:
    """A mask of the uncropped image resampled to the ingested frames.

    Args:
        mask: (h, w) of any size that shows the whole image.
        full: the camera at full size, uncropped.
        frame: the same camera as ingested.
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


def overlap(first: Bool, second: Bool) -> float:
    """Intersection over union; 1 if both are empty."""
    union = np.count_nonzero(first | second)
    return float(np.count_nonzero(first & second) / union) if union else 1.0


def _read_sequences(results: Path, truth: Path) -> list[ScoredSequence]:
    """The sequences that were ingested and have ground truth."""
    listed = results / "capture" / "sequences.json"
    sequences = read_sequences(listed)
    paths = [path for path in sorted(truth.glob("*.npz")) if path.stem in sequences.names]
    if not paths:
        raise UserError(f"{truth} has no <sequence>.npz of a sequence in {listed}.")
    return [_read_sequence(results, path, path.stem in sequences.test) for path in paths]


def _read_sequence(results: Path, path: Path, held_out: bool) -> ScoredSequence:
    index = pd.read_csv(results / "capture" / f"{path.stem}.csv")
    index = index.drop_duplicates("timestep").sort_values("timestep")
    track = read_arrays(Tracking, results / "face" / "tracking" / path.name)
    source = index["source_frame"].to_numpy()
    try:
        with np.load(path, allow_pickle=False) as archive:
            true = {name: archive[name][source] for name in ("R", "t", "landmarks68")}
    except (BadZipFile, EOFError, IndexError, KeyError, OSError, TypeError, ValueError) as error:
        raise UserError(
            f"{path} is no ground truth of the sequence in {results} ({error}); name the truth of "
            "this subject."
        ) from error
    return ScoredSequence(
        name=path.stem,
        held_out=held_out,
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
    sequence: ScoredSequence,
    cameras: dict[str, Camera],
    full: Mapping[str, Camera],
) -> Float64:
    """IoU of every frame of a sequence, (C, T)."""

    def overlaps(serial: str) -> list[float]:
        folder = results / "capture" / "masks" / sequence.name / serial
        video = truth / f"{sequence.name}_mask" / f"cam_{serial}.mp4"
        true = _read_masks(require(video, "the true mask"))
        last = sequence.source_frames.max()
        if len(true) <= last:
            raise UserError(
                f"{video} has {len(true)} frames, but {sequence.name} was ingested up to frame "
                f"{last}; name the truth of this subject."
            )
        values = []
        for timestep, source in enumerate(sequence.source_frames):
            found = read_grey(folder / f"{timestep:05d}.png") > 127
            values.append(overlap(found, crop_mask(true[source], full[serial], cameras[serial])))
        return values

    with make_pool() as pool:
        return np.array(list(pool.map(overlaps, cameras)))


def _read_masks(path: Path) -> list[Bool]:
    import av

    with av.open(str(path)) as container:
        return [frame.to_ndarray(format="gray") > 127 for frame in container.decode(video=0)]


def _mean_rotation(sequences: list[ScoredSequence]) -> Float64:
    """The mean over all timesteps of R'ᵀ R, (3, 3)."""
    rotations = [s.true_rotation.transpose(0, 2, 1) @ s.rotation for s in sequences]
    mean: Float64 = Rotation.from_matrix(np.concatenate(rotations)).mean().as_matrix()
    return mean


def _surface_rows(
    results: Path, truth: Path, sequences: list[ScoredSequence], stage_one: Path
) -> list[ScoreRow]:
    head = _find_true_head(results, truth, sequences)
    points = face_points(head.mesh, head.landmarks)
    paths = {
        "fitted face": results / "face" / "neutral.ply",
        "aligned prior": results / "prior" / "aligned.ply",
        "stage I surface": stage_one,
    }
    rows = []
    for name, path in paths.items():
        error = float(head.distances(points, read_mesh(path)).mean())
        rows.append(ScoreRow(name, "% of head size", np.nan, error))
    return rows


def _find_true_head(results: Path, truth: Path, sequences: list[ScoredSequence]) -> TrueHead:
    identity = read_arrays(Identity, results / "face" / "identity.npz")
    in_model = [
        np.einsum("tji,tlj->tli", s.true_rotation, s.true_landmarks - s.true_translation[:, None])
        for s in sequences
    ]
    return TrueHead(
        read_mesh(truth / "neutral.ply"),
        np.median(np.concatenate(in_model), axis=0),
        _map_to_model(sequences, float(identity.scale)),
    )
