"""What the tracked face looks like around eyes, brows and mouth: a few numbers of a timestep.

As in active appearance models (Cootes et al., 2001): colours at fixed points of the fitted surface
tell what landmarks do not, such as where the eyes look and how far the lids are closed.

1. Points on the mesh around the landmarks of the regions, and between lids and between lips, where
   a mesh may have a hole, follow pose and expression of a timestep. Each gets the robust mean of
   the colours in the cameras that see it.
2. Light: the colours of a timestep are taken to their mean over the training timesteps by one
   factor and one offset for each channel.
3. A linear basis of the training timesteps, by principal components, in which all regions weigh
   alike. A held-out timestep is measured with it as a training timestep is and contributes nothing
   to it. Points that no camera sees are left out of the least squares, whose prior is the normal
   distribution of the coefficients.

Letters: T timesteps, C cameras, P points, V vertices, K appearance coefficients.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from scipy.spatial import cKDTree
from tqdm import tqdm

from eavatar.arrays import Bool, Float64, Int64
from eavatar.errors import UserError
from eavatar.face.colours import TrackedFace, mean_colours, measure_sequences
from eavatar.face.morphable import MorphableModel
from eavatar.face.refine import read_sequence
from eavatar.io import Tracking, read_sequences
from eavatar.landmark_indices import BROWS, LEFT_EYE, MOUTH, RIGHT_EYE
from eavatar.meshes import vertex_normals
from eavatar.settings import AppearanceSettings
from eavatar.threads import make_pool

logger = logging.getLogger(__name__)

RADIUS = 0.12  # dm; vertices this close to a landmark of a region belong to it
SPACING = 0.02  # dm; of the points on the mesh, two pixels of a head that fills 320
MIN_FORWARD = 0.2  # cosine of a vertex' normal to the direction in which the face looks
COLUMNS, ROWS = 9, 6  # of points between lids and between lips
MIN_SEEN = 0.5  # of the training timesteps in which a point is seen, else it is not used
MIN_FACTOR = 0.2  # of light
LIMIT = 3.0  # deviations; the largest coefficient


@dataclass(frozen=True)
class Region:
    """A region by indices of landmarks.

    Attributes:
        landmarks: around which its vertices lie.
        upper: the arc above its opening, if it has one, from the subject's right.
        lower: the arc below, as many.
    """

    landmarks: tuple[int, ...]
    upper: tuple[int, ...] = ()
    lower: tuple[int, ...] = ()


REGIONS = (
    Region(tuple(RIGHT_EYE), upper=(36, 37, 38, 39), lower=(36, 41, 40, 39)),
    Region(tuple(LEFT_EYE), upper=(42, 43, 44, 45), lower=(42, 47, 46, 45)),
    Region(tuple(range(BROWS.start, BROWS.stop))),
    Region(
        tuple(range(MOUTH.start, MOUTH.stop)),
        upper=(60, 61, 62, 63, 64),
        lower=(60, 67, 66, 65, 64),
    ),
)


@dataclass(frozen=True)
class SurfacePoints:
    """Points that follow a mesh, each a mean of four vertices.

    Attributes:
        corners: (P, 4) vertices.
        weights: (P, 4) whose sums are one.
        regions: (P,) index in `REGIONS`.
    """

    corners: Int64
    weights: Float64
    regions: Int64

    def of(self, values: Float64) -> Float64:
        """(P, D) at the points, of values (V, D) at the vertices."""
        mixed: Float64 = (self.weights[..., None] * values[self.corners]).sum(axis=1)
        return mixed


@dataclass(frozen=True)
class Textures:
    """Colours of the points at T timesteps.

    Attributes:
        colours: (T, P, 3) in [0, 1], the mean over the cameras.
        seen: (T, P) bool as 0 or 1, whether any camera sees the point.
    """

    colours: Float64
    seen: Float64


@dataclass(frozen=True)
class AppearanceBasis:
    """``factors · colours = factors · mean + deviations · coefficients + noise``.

    Attributes:
        mean: (P, 3) colours.
        factors: (P,) that make regions weigh alike; 0 for points that are not used.
        deviations: (P, 3, K) of one standard deviation of each coefficient.
        noise: variance of what the K leave.
    """

    mean: Float64
    factors: Float64
    deviations: Float64
    noise: float


def measure_appearance(
    settings: AppearanceSettings, morphable_model: Path, capture: Path, face: Path, output: Path
) -> Path:
    """Give the tracking of every sequence its appearance coefficients, or none if not enabled.

    Args:
        settings: number of coefficients and whether to measure at all.
        morphable_model: the file that the fit used.
        capture: ``results/<subject>/capture`` with sequences, frames, masks and cameras.
        face: folder with ``identity.npz``, ``neutral.ply``, ``expression_basis.npz`` and
            ``tracking/<sequence>.npz``.
        output: folder; receives the same, the tracking with its appearance.

    Returns:
        ``output``.

    Raises:
        UserError: an input is missing or malformed, or the training sequences have too few
            timesteps for so many coefficients.
    """

    def measure(model: MorphableModel, tracks: dict[str, Tracking]) -> dict[str, Tracking]:
        return measure_tracks(settings, model, capture, face, tracks)

    return measure_sequences(
        measure if settings.enabled else None, morphable_model, capture, face, output
    )


def measure_tracks(
    settings: AppearanceSettings,
    model: MorphableModel,
    capture: Path,
    face: Path,
    tracks: dict[str, Tracking],
) -> dict[str, Tracking]:
    """The tracking of all sequences with its appearance.

    Args:
        settings: number of coefficients and size of the images.
        model: that the fit used.
        capture: ``results/<subject>/capture``.
        face: folder with ``identity.npz`` and ``neutral.ply``.
        tracks: by sequence.

    Raises:
        UserError: as `measure_appearance`.
    """
    tracked = TrackedFace.read(settings.image_size, model, capture, face)
    points = choose_points(model, tracked.neutral)
    textures = {name: read_textures(tracked, points, name, track) for name, track in tracks.items()}
    training = [textures[name] for name in read_sequences(capture / "sequences.json").train]
    basis = learn_basis(training, points.regions, settings.components)
    return {
        name: replace(track, appearance=project(basis, textures[name]).astype(np.float32))
        for name, track in tracks.items()
    }


# --- points on the surface ----------------------------------------------------------------------


def choose_points(model: MorphableModel, neutral: Float64) -> SurfacePoints:
    """The points of all regions, on the mesh and in their openings.

    Args:
        model: whose landmarks the regions name.
        neutral: (V, 3) of the person.
    """
    forward = vertex_normals(neutral, model.faces)[:, 2] > MIN_FORWARD
    corners, weights, regions = [], [], []
    for number, region in enumerate(REGIONS):
        centres = neutral[model.landmark_vertices[list(region.landmarks)]]
        distance, _ = cKDTree(centres).query(neutral)
        chosen = _thin(neutral, np.flatnonzero(forward & (distance < RADIUS)))
        parts = [(np.repeat(chosen[:, None], 4, axis=1), np.full((len(chosen), 4), 0.25))]
        if region.upper:
            parts.append(_span_opening(model.landmark_vertices, region))
        for of_part, weights_of_part in parts:
            corners.append(of_part)
            weights.append(weights_of_part)
            regions.append(np.full(len(of_part), number))
    return SurfacePoints(np.concatenate(corners), np.concatenate(weights), np.concatenate(regions))


def _thin(vertices: Float64, chosen: Int64) -> Int64:
    """One of the chosen vertices in each cell of a grid, the first."""
    cells = np.round(vertices[chosen] / SPACING).astype(np.int64)
    _, first = np.unique(cells, axis=0, return_index=True)
    return chosen[np.sort(first)]


def _span_opening(landmark_vertices: Int64, region: Region) -> tuple[Int64, Float64]:
    """Corners and weights (N, 4) of points between the upper and the lower arc of a region."""
    place = (np.arange(COLUMNS) + 0.5) / COLUMNS * (len(region.upper) - 1)
    left, across = np.floor(place).astype(int), place % 1
    down = (np.arange(ROWS) + 0.5) / ROWS
    upper, lower = (landmark_vertices[list(arc)] for arc in (region.upper, region.lower))
    ends = np.stack([upper[left], upper[left + 1], lower[left], lower[left + 1]], axis=1)
    fractions = np.stack([1 - across, across], axis=1)
    weights = np.concatenate(
        [
            (1 - down)[:, None, None] * fractions,
            down[:, None, None] * fractions,
        ],
        axis=2,
    )
    return np.tile(ends, (ROWS, 1)), weights.reshape(-1, 4)


# --- colours ------------------------------------------------------------------------------------


def read_textures(face: TrackedFace, points: SurfacePoints, name: str, track: Tracking) -> Textures:
    """The colours of a sequence's timesteps, each by itself.

    Args:
        face: with capture and cameras.
        points: at which they are measured.
        name: of the sequence.
        track: of the sequence.
    """
    sequence, count = read_sequence(face.capture, name), len(track)

    def read(timestep: int) -> tuple[Float64, Bool]:
        vertices = face.vertices(track, timestep)
        normals = points.of(vertex_normals(vertices, face.model.faces))
        normals /= np.linalg.norm(normals, axis=1, keepdims=True)
        places = points.of(vertices)
        return mean_colours(face, sequence, timestep, vertices, places, normals)

    with make_pool() as pool:
        found = list(tqdm(pool.map(read, range(count)), f"appearance of {name}", count))
    colours, seen = zip(*found, strict=True)
    return Textures(np.stack(colours), np.stack(seen).astype(np.float64))


# --- the basis ----------------------------------------------------------------------------------


def learn_basis(training: Sequence[Textures], regions: Int64, components: int) -> AppearanceBasis:
    """Principal components of the training timesteps.

    Args:
        training: of each training sequence.
        regions: (P,) of the points.
        components: K.

    Raises:
        UserError: there are not more timesteps than components.
    """
    colours = np.concatenate([each.colours for each in training])
    seen = np.concatenate([each.seen for each in training])
    if len(colours) <= components:
        raise UserError(
            f"face.appearance.components is {components}, but the training sequences have only "
            f"{len(colours)} timesteps; lower it, or switch face.appearance off."
        )
    seen = seen * (seen.mean(axis=0) >= MIN_SEEN)
    raw = Textures(colours, seen)
    mean = _mean_colours(remove_light(raw, _mean_colours(raw)))
    lit = remove_light(raw, mean)
    residuals = (lit.colours - mean) * seen[..., None]
    variances = np.array(
        [np.square(residuals[:, regions == number]).sum() for number in range(len(REGIONS))]
    ) / len(colours)
    factors = seen.any(axis=0) / np.sqrt(variances.clip(1e-9))[regions]
    flat = (factors[:, None] * residuals).reshape(len(colours), -1)
    _, strengths, directions = np.linalg.svd(flat, full_matrices=False)
    shares = strengths**2 / (strengths**2).sum()
    logger.info(
        "%d appearance coefficients hold %.0f %% of what the training timesteps show",
        components, 100 * shares[:components].sum(),
    )  # fmt: skip
    deviations = strengths[:components, None] * directions[:components] / np.sqrt(len(colours))
    used = 3 * (factors > 0).sum() - components
    noise = np.square(strengths[components:]).sum() / len(colours) / used
    return AppearanceBasis(mean, factors, deviations.T.reshape(-1, 3, components), float(noise))


def _mean_colours(textures: Textures) -> Float64:
    """(P, 3) mean over the timesteps that see a point."""
    total = (textures.colours * textures.seen[..., None]).sum(axis=0)
    mean: Float64 = total / textures.seen.sum(axis=0).clip(1)[:, None]
    return mean


def remove_light(textures: Textures, mean: Float64) -> Textures:
    """The colours after the factor and offset per timestep and channel that fit them to a mean.

    Args:
        textures: T timesteps.
        mean: (P, 3).
    """
    weights = textures.seen[..., None]
    total = weights.sum(axis=1, keepdims=True).clip(1)
    middle, reference = (
        (weights * colours).sum(axis=1, keepdims=True) / total
        for colours in (textures.colours, mean)
    )
    spread = (weights * np.square(mean - reference)).sum(axis=1, keepdims=True)
    common = (weights * (mean - reference) * (textures.colours - middle)).sum(axis=1, keepdims=True)
    factor = np.maximum(common / spread.clip(1e-9), MIN_FACTOR)
    return replace(textures, colours=(textures.colours - middle) / factor + reference)


def project(basis: AppearanceBasis, textures: Textures) -> Float64:
    """The most probable coefficients (T, K) of each timestep by itself, in standard deviations."""
    seen = textures.seen * (basis.factors > 0)
    lit = remove_light(replace(textures, seen=seen), basis.mean)
    residuals = (basis.factors[:, None] * (lit.colours - basis.mean)) * seen[..., None]
    count = basis.deviations.shape[2]
    matrices = np.einsum("tp,pck,pcl->tkl", seen, basis.deviations, basis.deviations, optimize=True)
    right = np.einsum("tpc,pck->tk", residuals, basis.deviations, optimize=True)
    regular = matrices + basis.noise * np.eye(count)
    coefficients: Float64 = np.linalg.solve(regular, right[..., None])[..., 0]
    return coefficients.clip(-LIMIT, LIMIT)
