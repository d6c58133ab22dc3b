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
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from scipy.spatial import cKDTree
from scipy.spatial.transform import Rotation
from tqdm import tqdm

from eavatar.arrays import Float64, Int64, Uint8
from eavatar.data.images import read_colour, read_grey, resize_area
from eavatar.errors import UserError
from eavatar.face.morphable import MorphableModel, read_morphable_model
from eavatar.face.photometric import CELL, fill_depth, linearise_colours, visible_points
from eavatar.face.refine import MaskedSequence, ResizedCameras, read_resized_cameras, read_sequence
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
from eavatar.landmark_indices import BROWS, LEFT_EYE, MOUTH, RIGHT_EYE
from eavatar.meshes import vertex_normals
from eavatar.settings import AppearanceSettings
from eavatar.threads import make_pool

logger = logging.getLogger(__name__)

TAKEN_OVER = ("identity.npz", "neutral.ply", "expression_basis.npz")
RADIUS = 0.12  # dm; vertices this close to a landmark of a region belong to it
SPACING = 0.02  # dm; of the points on the mesh, two pixels of a head that fills 320
MIN_FORWARD = 0.2  # cosine of a vertex' normal to the direction in which the face looks
COLUMNS, ROWS = 9, 6  # of points between lids and between lips
MIN_COSINE = 0.3  # of the angle to the viewing direction; flatter views show little
OCCLUSION_DISTANCE = 0.006  # metres in front of a point; an eye bulges by half of it
COLOUR_OUTLIER = 0.1  # of a range of 1: gloss; less than skin differs from teeth
MIN_WEIGHT = 0.05  # of the views of a point, from which on it counts as seen
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
class TrackedFace:
    """What the textures of all sequences have in common.

    Attributes:
        capture: ``results/<subject>/capture``.
        cameras: of the capture.
        model: whose expressions the tracking has.
        neutral: (V, 3) canonical.
        scale: canonical units to metres.
        points: at which the colours are measured.
    """

    capture: Path
    cameras: ResizedCameras
    model: MorphableModel
    neutral: Float64
    scale: float
    points: SurfacePoints


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
    names = read_sequences(capture / "sequences.json").names
    tracks = {name: read_arrays(Tracking, face / "tracking" / f"{name}.npz") for name in names}
    if settings.enabled:
        model = read_morphable_model(morphable_model)
        tracks = measure_tracks(settings, model, capture, face, tracks)
    for name, track in tracks.items():
        write_arrays(output / "tracking" / f"{name}.npz", track)
    for name in TAKEN_OVER:
        with atomic(output / name) as temporary:
            shutil.copyfile(face / name, temporary)
    return output


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
    tracked = start_face(settings, model, capture, face)
    textures = {name: read_textures(tracked, name, track) for name, track in tracks.items()}
    training = [textures[name] for name in read_sequences(capture / "sequences.json").train]
    basis = learn_basis(training, tracked.points.regions, settings.components)
    return {
        name: replace(track, appearance=project(basis, textures[name]).astype(np.float32))
        for name, track in tracks.items()
    }


# --- points on the surface ----------------------------------------------------------------------


def start_face(
    settings: AppearanceSettings, model: MorphableModel, capture: Path, face: Path
) -> TrackedFace:
    """The face, with its points chosen.

    Args:
        settings: size of the images.
        model: that the fit used.
        capture: ``results/<subject>/capture``.
        face: folder with ``identity.npz`` and ``neutral.ply``.
    """
    cameras = read_resized_cameras(capture / "cameras.json", settings.image_size)
    neutral = read_mesh(face / "neutral.ply").vertices.astype(np.float64)
    scale = float(read_arrays(Identity, face / "identity.npz").scale)
    return TrackedFace(capture, cameras, model, neutral, scale, choose_points(model, neutral))


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


def read_textures(face: TrackedFace, name: str, track: Tracking) -> Textures:
    """The colours of a sequence's timesteps, each by itself.

    Args:
        face: with capture, cameras and points.
        name: of the sequence.
        track: of the sequence.
    """
    sequence, count = read_sequence(face.capture, name), len(track)
    with make_pool() as pool:
        rows = pool.map(lambda step: _read_texture(face, sequence, track, step), range(count))
        found = list(tqdm(rows, f"appearance of {name}", count))
    return Textures(
        np.stack([colours for colours, _ in found]), np.stack([seen for _, seen in found])
    )


def _read_texture(
    face: TrackedFace, sequence: MaskedSequence, track: Tracking, timestep: int
) -> tuple[Float64, Float64]:
    """Colours (P, 3) of the points at a timestep, and whether they are seen (P,)."""
    cameras, points = face.cameras, face.points
    basis = face.model.expression_basis[..., : track.expression.shape[1]]
    canonical = face.neutral + basis @ track.expression[timestep]
    turn = Rotation.from_rotvec(track.rotation[timestep].astype(np.float64)).as_matrix()
    vertices = face.scale * canonical @ turn.T + track.translation[timestep]
    places = points.of(vertices)
    images = np.empty((len(cameras.serials), cameras.size, cameras.size, 3), np.float32)
    masks = np.zeros(images.shape[:3], np.uint8)
    for camera, serial in enumerate(cameras.serials):
        file = Path(sequence.name, serial, f"{timestep:05d}")
        colour = read_colour((face.capture / file).with_suffix(".jpg"))
        images[camera] = resize_area(colour, cameras.size).astype(np.float32) / 255
        if (timestep, serial) not in sequence.failed:
            mask = read_grey((face.capture / "masks" / file).with_suffix(".png"))
            masks[camera] = resize_area(mask, cameras.size)
    weights = _weigh_views(face, vertices, places, masks)
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
    return colours, (totals > MIN_WEIGHT).astype(np.float64)


def _weigh_views(face: TrackedFace, vertices: Float64, places: Float64, masks: Uint8) -> Float64:
    """(C, P) how well the cameras see the points, 0 = not at all.

    Args:
        face: with cameras, points and faces.
        vertices: (V, 3) world, metres.
        places: (P, 3) of the points.
        masks: (C, S, S).
    """
    cameras = face.cameras
    normals = face.points.of(vertex_normals(vertices, face.model.faces))
    normals /= np.linalg.norm(normals, axis=1, keepdims=True)
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
