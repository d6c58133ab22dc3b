"""Dense refinement: identity, poses and expressions against the colours of all views.

1. Identity and scale, from keyframes of the training sequences: a vertex of the right face has
   the same colour in all cameras. Poses and expressions of the keyframes are solved jointly; the
   landmarks of the fit keep a constant offset each in the head's frame, which models a detector's
   bias. Only differences between views count, so light does not matter.
2. Texture, from the same keyframes: each vertex' mean colour, alternating with their poses and
   expressions.
3. Every timestep of every sequence by itself, identity and texture fixed: a held-out sequence
   is treated as any other and contributes nothing to them.

Letters: T timesteps, C cameras, P compared vertices, L = 68 landmarks, E expression and I identity
coefficients, U = 6 + E unknowns of a timestep, S = I + 1 + 3L shared unknowns: identity, logarithm
of the scale, landmark offsets. Unknowns of the pose count in the head's own frame.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy.spatial import cKDTree
from scipy.spatial.transform import Rotation
from tqdm import tqdm

from eavatar.arrays import Float32, Float64, Int64, Uint8
from eavatar.cameras import Camera
from eavatar.data.images import read_colour, read_grey, resize_area
from eavatar.errors import UserError
from eavatar.face.morphable import MorphableModel, read_morphable_model
from eavatar.face.photometric import (
    CELL,
    band_pass,
    fill_depth,
    linearise_colours,
    visible_points,
)
from eavatar.face.triangulation import project_points
from eavatar.io import (
    LANDMARKS,
    ExpressionBasis,
    Identity,
    Mesh,
    Tracking,
    read_arrays,
    read_cameras,
    read_sequences,
    read_table,
    write_arrays,
    write_mesh,
)
from eavatar.meshes import vertex_areas, vertex_normals
from eavatar.settings import RefineSettings
from eavatar.threads import make_pool
from eavatar.transforms import cross_matrices, fit_similarity

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Level:
    """One level of the coarse-to-fine schedule.

    Attributes:
        blur: standard deviation of the images' blur, pixels.
        joint_steps: Gauss-Newton steps of identity and keyframes together.
        max_steps: most Gauss-Newton steps of a timestep by itself.
    """

    blur: float
    joint_steps: int
    max_steps: int


COARSE = Level(blur=2.0, joint_steps=3, max_steps=3)  # two pixels is the landmark fit's error
FINE = Level(blur=1.0, joint_steps=4, max_steps=3)
SCHEDULE = (COARSE, FINE)

BAND = 3.0  # radius of the mean that is subtracted, multiple of the blur; more reaches past a nose
FACE_RADIUS = 0.3  # dm; vertices this close to a landmark are compared
MIN_COSINE = 0.3  # of the angle to the viewing direction; flatter views show little
OCCLUSION_DISTANCE = 0.003  # metres in front of a vertex at which a surface occludes it
MAX_AREA = 3.0  # of the mean area of a vertex, for its weight
SCALE_DEVIATION = 0.02  # relative, of the landmark fit's scale
MARGIN = 24  # pixels around the face in each image
TEXTURE_REWEIGHTINGS = 4  # of the robust mean over timesteps


@dataclass(frozen=True)
class FaceSurface:
    """The morphable model and its vertices that are compared, canonical units.

    Attributes:
        model: truncated to the I and E coefficients that the fit used.
        chosen: (P,) vertices.
        areas: (P,) around the vertices, mean 1.
        basis: (P, 3, E + I).
        landmark_basis: (L, 3, E + I).
    """

    model: MorphableModel
    chosen: Int64
    areas: Float64
    basis: Float32
    landmark_basis: Float64


@dataclass(frozen=True)
class SharedFace:
    """What all timesteps share.

    Attributes:
        identity: (I,) coefficients.
        scale: canonical units to metres.
        offsets: (L, 3) of the detected landmarks in the head's frame, metres.
    """

    identity: Float64
    scale: float
    offsets: Float64


@dataclass(frozen=True)
class FacePose:
    """Pose and expression at one timestep.

    Attributes:
        rotation: (3, 3) canonical to world.
        translation: (3,) metres.
        expression: (E,) coefficients.
    """

    rotation: Float64
    translation: Float64
    expression: Float64


@dataclass(frozen=True)
class ResizedCameras:
    """The cameras at the size of the images compared.

    Attributes:
        serials: C serial numbers.
        projections: (C, 3, 4) world metres to homogeneous pixels.
        centres: (C, 3) metres.
        size: side of the images, pixels.
    """

    serials: tuple[str, ...]
    projections: Float64
    centres: Float64
    size: int


@dataclass(frozen=True)
class Texture:
    """Mean colours over timesteps, band-passed.

    Attributes:
        colours: (P, 3) of the vertices.
        known: (P,) their weights: 1, or 0 where there is none.
    """

    colours: Float64
    known: Float64


@dataclass(frozen=True)
class RefinementProblem:
    """What the equations of every timestep have in common.

    Attributes:
        settings: noise and outlier levels.
        capture: ``results/<subject>/capture``.
        surface: the model.
        cameras: of the capture.
        face: current estimate of what all timesteps share.
        texture: current estimate; unknown at first.
    """

    settings: RefineSettings
    capture: Path
    surface: FaceSurface
    cameras: ResizedCameras
    face: SharedFace
    texture: Texture


@dataclass(frozen=True)
class MaskedSequence:
    """A sequence of a capture.

    Attributes:
        name: of the sequence.
        failed: (timestep, serial number) of the frames whose mask failed.
    """

    name: str
    failed: frozenset[tuple[int, str]]


@dataclass(frozen=True)
class FaceCrops:
    """One timestep's images around the face, and where the landmark fit saw the landmarks.

    Attributes:
        images: (C, H, H, 3) BGR.
        masks: (C, H, H); zero where the mask failed.
        corners: (C, 2) positions of the first pixels, pixels.
        landmarks: (L, 3) world, metres.
    """

    images: Uint8
    masks: Uint8
    corners: Float64
    landmarks: Float64


@dataclass(frozen=True)
class FilteredViews:
    """What stays fixed during the Gauss-Newton steps on a timestep.

    Attributes:
        crops: the images.
        images: (C, H, H, 3) band-passed.
        weights: (C, P) of the vertices in the views, 0 = not visible.
    """

    crops: FaceCrops
    images: Float32
    weights: Float64


@dataclass(frozen=True)
class TimestepEquations:
    """Normal equations of one timestep, for its own unknowns and those shared, or its own alone.

    Attributes:
        cost: at the linearisation point.
        matrix: (U + S, U + S) or (U, U) Gauss-Newton matrix.
        gradient: (U + S,) or (U,).
        colours: (P, 3) mean colours of the vertices over the views.
        weights: (P,) of these colours.
    """

    cost: float
    matrix: Float64
    gradient: Float64
    colours: Float64
    weights: Float64


def refine_face(
    settings: RefineSettings, morphable_model: Path, capture: Path, fit: Path, output: Path
) -> Path:
    """Refine the landmark fit of every sequence, or take it over if not enabled.

    Args:
        settings: sizes, noise levels and whether to refine at all.
        morphable_model: the file that the fit used.
        capture: ``results/<subject>/capture`` with sequences, frames, masks and cameras.
        fit: folder with the landmark fit's ``identity.npz`` and ``tracking/<sequence>.npz``.
        output: folder; receives ``identity.npz``, ``neutral.ply``, ``expression_basis.npz`` and
            ``tracking/<sequence>.npz``. The reprojection errors there remain the landmark fit's.

    Returns:
        ``output``.

    Raises:
        UserError: an input is missing or malformed, or no sequence is for training.
    """
    model = read_morphable_model(morphable_model)
    identity = read_arrays(Identity, fit / "identity.npz")
    names = read_sequences(capture / "sequences.json").names
    tracks = {name: read_arrays(Tracking, fit / "tracking" / f"{name}.npz") for name in names}
    if settings.enabled:
        identity, tracks = refine_tracks(settings, model, capture, identity, tracks)
    for name, track in tracks.items():
        write_arrays(output / "tracking" / f"{name}.npz", track)
    write_arrays(output / "identity.npz", identity)
    mesh = Mesh(model.vertices(identity.identity), model.faces, model.colours)
    write_mesh(output / "neutral.ply", mesh)
    expressions = next(iter(tracks.values())).expression.shape[1]
    basis = ExpressionBasis(model.expression_basis[..., :expressions])
    write_arrays(output / "expression_basis.npz", basis)
    return output


def refine_tracks(
    settings: RefineSettings,
    model: MorphableModel,
    capture: Path,
    identity: Identity,
    tracks: dict[str, Tracking],
) -> tuple[Identity, dict[str, Tracking]]:
    """The refined identity and tracking of all sequences.

    Args:
        settings: sizes and noise levels.
        model: that the fit used.
        capture: ``results/<subject>/capture``.
        identity: of the landmark fit.
        tracks: by sequence, of the landmark fit.
    """
    problem = start_problem(settings, model, capture, identity, tracks)
    problem = _learn_face(problem, tracks, select_keyframes(capture, tracks, settings.keyframes))
    refined = {name: _refine_sequence(problem, name, track) for name, track in tracks.items()}
    face = problem.face
    landmarks = model.vertices(face.identity.astype(np.float32))[model.landmark_vertices]
    logger.info("scale %.5f m per unit, %.5f before", face.scale, float(identity.scale))
    shared = Identity(face.identity.astype(np.float32), np.array(face.scale, np.float32), landmarks)
    return shared, refined


# --- inputs -------------------------------------------------------------------------------------


def start_problem(
    settings: RefineSettings,
    model: MorphableModel,
    capture: Path,
    identity: Identity,
    tracks: dict[str, Tracking],
) -> RefinementProblem:
    """The problem at the landmark fit's identity and scale, without offsets and texture.

    Args:
        settings: sizes and noise levels.
        model: that the fit used.
        capture: ``results/<subject>/capture``.
        identity: of the landmark fit.
        tracks: by sequence, of the landmark fit; at least one.
    """
    expressions = next(iter(tracks.values())).expression.shape[1]
    surface = _choose_surface(model, len(identity.identity), expressions)
    cameras = read_resized_cameras(capture / "cameras.json", settings.image_size)
    offsets = np.zeros((LANDMARKS, 3))
    face = SharedFace(identity.identity.astype(np.float64), float(identity.scale), offsets)
    count = len(surface.chosen)
    texture = Texture(np.zeros((count, 3)), np.zeros(count))
    return RefinementProblem(settings, capture, surface, cameras, face, texture)


def _choose_surface(model: MorphableModel, identities: int, expressions: int) -> FaceSurface:
    """The vertices of the face: near a landmark and not facing backwards."""
    model = replace(
        model,
        identity_basis=model.identity_basis[..., :identities],
        expression_basis=model.expression_basis[..., :expressions],
    )
    mean = model.mean.astype(np.float64)
    distance, _ = cKDTree(mean[model.landmark_vertices]).query(mean)
    forward = vertex_normals(mean, model.faces)[:, 2]
    chosen = np.flatnonzero((distance < FACE_RADIUS) & (forward > -MIN_COSINE))
    areas = vertex_areas(mean, model.faces)[chosen]
    basis = np.concatenate([model.expression_basis, model.identity_basis], axis=2)
    landmark_basis = basis[model.landmark_vertices].astype(np.float64)
    areas = np.minimum(areas / areas.mean(), MAX_AREA)
    return FaceSurface(model, chosen, areas, basis[chosen].astype(np.float32), landmark_basis)


def read_resized_cameras(path: Path, size: int) -> ResizedCameras:
    """The cameras for images of a size; at most that of the ingested ones."""
    cameras = read_cameras(path)
    size = min(size, next(iter(cameras.values())).width)
    resized: list[Camera] = [camera.resize(size, size) for camera in cameras.values()]
    projections = [camera.intrinsics @ camera.world_to_camera[:3] for camera in resized]
    centres = [camera.centre for camera in resized]
    return ResizedCameras(tuple(cameras), np.stack(projections), np.stack(centres), size)


def select_keyframes(
    capture: Path, tracks: dict[str, Tracking], count: int
) -> list[tuple[str, int]]:
    """At most ``count`` (sequence, timestep) of the training sequences, evenly spread."""
    keys = [
        (name, timestep)
        for name in read_sequences(capture / "sequences.json").train
        for timestep in range(len(tracks[name].rotation))
    ]
    if not keys:
        raise UserError(
            f"{capture} has no training sequence to refine the face from; check "
            "capture.ingest.held_out, or switch face.refine off."
        )
    chosen = np.linspace(0, len(keys) - 1, min(count, len(keys))).round().astype(int)
    return [keys[index] for index in chosen]


def read_crops(
    problem: RefinementProblem,
    sequence: MaskedSequence,
    timestep: int,
    pose: FacePose,
    landmarks: Float64,
) -> FaceCrops:
    """The images of a timestep around the face where a pose puts it.

    Args:
        problem: with the cameras and the model.
        sequence: of the capture.
        timestep: in the sequence.
        pose: of the face, about.
        landmarks: (L, 3) of the landmark fit, world, metres.
    """
    size, serials = problem.cameras.size, problem.cameras.serials
    vertices = _canonical_vertices(problem, pose)[problem.surface.chosen]
    world = to_world(problem.face, pose, vertices)
    pixels = project_points(problem.cameras.projections, world[None])[0][0]
    side = int(np.ceil(np.ptp(pixels, axis=1).max())) + 2 * MARGIN
    side = min(side, size)
    middle = (pixels.min(axis=1) + pixels.max(axis=1)) / 2
    corners = np.floor(middle - side / 2).clip(0, size - side).astype(int)
    images = np.empty((len(serials), side, side, 3), np.uint8)
    masks = np.empty((len(serials), side, side), np.uint8)
    for camera, serial in enumerate(serials):
        left, top = corners[camera]
        window = (slice(top, top + side), slice(left, left + side))
        file = Path(sequence.name, serial, f"{timestep:05d}")
        colour = read_colour((problem.capture / file).with_suffix(".jpg"))
        mask = read_grey((problem.capture / "masks" / file).with_suffix(".png"))
        images[camera] = resize_area(colour, size)[window]
        masks[camera] = resize_area(mask, size)[window]
        if (timestep, serial) in sequence.failed:
            masks[camera] = 0
    return FaceCrops(images, masks, corners.astype(np.float64), landmarks)


def read_sequence(capture: Path, name: str) -> MaskedSequence:
    """A sequence; its index of masks says which failed, if any could."""
    path = capture / "masks" / f"{name}.csv"
    table = read_table(path, "the index of the masks", ["camera"])
    table = table[table["failed"] == 1] if "failed" in table else table[:0]
    failed = zip(table["timestep"].astype(int), table["camera"], strict=True)
    return MaskedSequence(name, frozenset(failed))


# --- geometry -----------------------------------------------------------------------------------


def _canonical_vertices(problem: RefinementProblem, pose: FacePose) -> Float64:
    """(V, 3) canonical vertices of a timestep."""
    model = problem.surface.model
    neutral = model.vertices(problem.face.identity.astype(np.float32))
    moved: Float64 = (neutral + model.expression_basis @ pose.expression).astype(np.float64)
    return moved


def canonical_landmarks(problem: RefinementProblem, expression: Float64) -> Float64:
    """(..., L, 3) canonical landmarks of expressions (..., E)."""
    basis, count = problem.surface.landmark_basis, expression.shape[-1]
    model = problem.surface.model
    neutral = model.mean[model.landmark_vertices] + basis[..., count:] @ problem.face.identity
    moved: Float64 = neutral + np.einsum("lik,...k->...li", basis[..., :count], expression)
    return moved


def to_world(face: SharedFace, pose: FacePose, points: Float64) -> Float64:
    """Canonical points (N, 3) in the world, metres."""
    return face.scale * points @ pose.rotation.T + pose.translation


def step_pose(face: SharedFace, pose: FacePose, step: Float64) -> FacePose:
    """A pose after a step (U,) in the head's frame."""
    turn = Rotation.from_rotvec(step[:3]).as_matrix()
    shift = face.scale * pose.rotation @ step[3:6]
    return FacePose(pose.rotation @ turn, pose.translation + shift, pose.expression + step[6:])


def _step_face(face: SharedFace, step: Float64) -> SharedFace:
    """The shared unknowns after a step (S,)."""
    count = len(face.identity)
    offsets = face.offsets + face.scale * step[count + 1 :].reshape(-1, 3)
    scale = face.scale * float(np.exp(step[count]))
    return SharedFace(face.identity + step[:count], scale, offsets)


def _start_pose(problem: RefinementProblem, pose: FacePose, landmarks: Float64) -> FacePose:
    """The rigid motion of the changed face to the landmark fit's landmarks (L, 3)."""
    canonical = canonical_landmarks(problem, pose.expression)
    rigid = fit_similarity(
        problem.face.scale * canonical - problem.face.offsets, landmarks, with_scale=False
    )
    return FacePose(rigid.rotation, rigid.translation, pose.expression)


def filter_views(
    problem: RefinementProblem, pose: FacePose, crops: FaceCrops, blur: float
) -> FilteredViews:
    """The band-passed images of a timestep, and which vertices its cameras see.

    Args:
        problem: with the cameras and the model.
        pose: of the face, for visibility.
        crops: the images.
        blur: standard deviation, pixels.
    """
    images = np.stack(
        [
            band_pass(image, mask, blur, BAND * blur)
            for image, mask in zip(crops.images, crops.masks, strict=True)
        ]
    )
    surface, cameras = problem.surface, problem.cameras
    vertices = to_world(problem.face, pose, _canonical_vertices(problem, pose))
    normals = vertex_normals(vertices, surface.model.faces)[surface.chosen]
    side = int(crops.images.shape[1] / CELL)
    buffer = np.empty((side, side))
    weights = np.zeros((len(cameras.serials), len(surface.chosen)))
    projected = project_points(cameras.projections, vertices[None])[0][0] - crops.corners[:, None]
    for camera, pixels in enumerate(projected):
        rays = cameras.centres[camera] - vertices
        depth = np.linalg.norm(rays, axis=1)
        fill_depth(pixels, depth, surface.model.faces, buffer)
        rays, depth = rays[surface.chosen], depth[surface.chosen]
        cosine = (normals * rays).sum(axis=1) / depth
        inside = pixels[surface.chosen].clip(0, crops.images.shape[1] - 1)
        visible = visible_points(inside, depth, buffer, crops.masks[camera], OCCLUSION_DISTANCE)
        facing = (cosine - MIN_COSINE).clip(0) / (1 - MIN_COSINE)
        weights[camera] = visible * facing * surface.areas
    return FilteredViews(crops, images, weights)


# --- normal equations ---------------------------------------------------------------------------


def linearise_timestep(
    problem: RefinementProblem, pose: FacePose, views: FilteredViews, shared: bool
) -> TimestepEquations:
    """Photometric, landmark and expression terms of one timestep, linearised.

    Args:
        problem: with what all timesteps share.
        pose: at which to linearise.
        views: of the timestep.
        shared: also by what all timesteps share, which takes five times as long.
    """
    settings, surface = problem.settings, problem.surface
    points = _canonical_vertices(problem, pose)[surface.chosen]
    cost, matrices, forces, colours, weights = linearise_colours(
        views.images,
        views.crops.corners,
        problem.cameras.projections,
        to_world(problem.face, pose, points),
        views.weights,
        problem.texture.colours,
        problem.texture.known,
        settings.colour_outlier,
    )
    # By canonical positions from here on.
    world_by_canonical = problem.face.scale * pose.rotation
    information = world_by_canonical.T @ matrices @ world_by_canonical / settings.colour_noise**2
    force = forces @ world_by_canonical / settings.colour_noise**2
    jacobian = _point_jacobian(points, pose, surface.basis, shared).astype(np.float32)
    flat = jacobian.reshape(-1, jacobian.shape[2])
    weighted = (information.astype(np.float32) @ jacobian).reshape(flat.shape)
    matrix = (flat.T @ weighted).astype(np.float64)
    gradient = (flat.T @ force.ravel().astype(np.float32)).astype(np.float64)
    cost /= settings.colour_noise**2
    photometric = TimestepEquations(cost, matrix, gradient, colours, weights)
    return _add_landmarks(problem, pose, views.crops.landmarks, photometric, shared)


def _point_jacobian(
    points: Float64, pose: FacePose, basis: NDArray[np.floating], shared: bool
) -> Float64:
    """(N, 3, U) derivative of canonical points by pose and expression, or, by identity and scale,
    too, (N, 3, U + I + 1)."""
    rigid = np.broadcast_to(np.eye(3), (len(points), 3, 3))
    own = basis[..., : len(pose.expression)]
    shape = [basis, points[..., None]] if shared else [own]
    return np.concatenate([-cross_matrices(points), rigid, *shape], axis=2)


def _add_landmarks(
    problem: RefinementProblem,
    pose: FacePose,
    landmarks: Float64,
    equations: TimestepEquations,
    shared: bool,
) -> TimestepEquations:
    """Add the distance to the fit's landmarks, less their offsets, and the expression's prior.

    Args:
        problem: with the model and the current face.
        pose: at which to linearise.
        landmarks: (L, 3) of the landmark fit, world, metres.
        equations: of the other terms.
        shared: as of `linearise_timestep`.
    """
    face = problem.face
    points = canonical_landmarks(problem, pose.expression)
    measured = (landmarks - pose.translation) @ pose.rotation
    residual = ((face.scale * points - measured - face.offsets) / face.scale).ravel()
    jacobian = _point_jacobian(points, pose, problem.surface.landmark_basis, shared)
    jacobian = jacobian.reshape(3 * LANDMARKS, -1)
    if shared:
        jacobian = np.concatenate([jacobian, -np.eye(3 * LANDMARKS)], axis=1)
    weight = 1 / problem.settings.landmark_noise**2
    matrix = weight * jacobian.T @ jacobian
    gradient = weight * jacobian.T @ residual
    count = len(equations.gradient)
    matrix[:count, :count] += equations.matrix
    gradient[:count] += equations.gradient
    expression = np.arange(6, 6 + len(pose.expression))
    matrix[expression, expression] += 1
    gradient[expression] += pose.expression
    prior = float(weight * residual @ residual + pose.expression @ pose.expression)
    return replace(equations, cost=equations.cost + 0.5 * prior, matrix=matrix, gradient=gradient)


def _shared_prior(problem: RefinementProblem, start: SharedFace) -> tuple[Float64, Float64]:
    """Diagonal (S,) and gradient (S,) of the priors on identity, scale and landmark offsets.

    The landmark fit's identity is the mean: it is the most probable one given the landmarks.
    """
    face = problem.face
    deviations = np.repeat(
        [1.0, SCALE_DEVIATION, problem.settings.landmark_bias],
        [len(face.identity), 1, 3 * LANDMARKS],
    )
    scale = np.log(face.scale / start.scale)
    change = face.identity - start.identity
    values = np.concatenate([change, [scale], face.offsets.ravel() / face.scale])
    return 1 / deviations**2, values / deviations**2


def _solve_jointly(
    equations: Iterable[TimestepEquations], diagonal: Float64, gradient: Float64
) -> tuple[list[Float64], Float64]:
    """The steps (U,) of each timestep and the shared one (S,), by Schur complements.

    Args:
        equations: of the timesteps.
        diagonal: (S,) of the shared unknowns' prior.
        gradient: (S,) of the shared unknowns' prior.
    """
    matrix, gradient = np.diag(diagonal), gradient.copy()
    own = []
    for each in equations:
        count = len(each.gradient) - len(gradient)
        border = each.matrix[:count, count:]
        right = np.concatenate([border, each.gradient[:count, None]], axis=1)
        solved = np.linalg.solve(each.matrix[:count, :count], right)
        matrix += each.matrix[count:, count:] - border.T @ solved[:, :-1]
        gradient += each.gradient[count:] - border.T @ solved[:, -1]
        own.append(solved)
    shared: Float64 = -np.asarray(np.linalg.solve(matrix, gradient), dtype=np.float64)
    return [-(solved[:, -1] + solved[:, :-1] @ shared) for solved in own], shared


# --- the three parts ----------------------------------------------------------------------------


def _learn_face(
    problem: RefinementProblem, tracks: dict[str, Tracking], keys: list[tuple[str, int]]
) -> RefinementProblem:
    """The problem with identity, scale, offsets and texture estimated from keyframes.

    Args:
        problem: at the landmark fit.
        tracks: by sequence, of the landmark fit.
        keys: (sequence, timestep) of the keyframes.
    """
    start = problem.face
    sequences = {name: read_sequence(problem.capture, name) for name in dict(keys)}
    poses = [_tracked_pose(tracks[name], timestep) for name, timestep in keys]
    with make_pool() as pool:

        def read(key: tuple[str, int], pose: FacePose) -> FaceCrops:
            landmarks = tracks[key[0]].landmarks[key[1]].astype(np.float64)
            return read_crops(problem, sequences[key[0]], key[1], pose, landmarks)

        crops = list(tqdm(pool.map(read, keys, poses), "reading keyframes", len(keys)))
        blurs = [level.blur for level in SCHEDULE for _ in range(level.joint_steps)]
        for blur in tqdm(blurs, desc="refining the identity", unit="step"):
            equations = pool.map(partial(_linearise_crops, problem, blur), poses, crops)
            steps, step = _solve_jointly(equations, *_shared_prior(problem, start))
            poses = [step_pose(problem.face, *pair) for pair in zip(poses, steps, strict=True)]
            problem = replace(problem, face=_step_face(problem.face, step))
        for _ in tqdm(range(problem.settings.rounds), desc="refining the texture", unit="round"):
            solve = partial(solve_timestep, problem, levels=(FINE,))
            solved = list(pool.map(solve, poses, crops))
            poses = [pose for pose, _ in solved]
            texture = mean_texture(problem.settings, [terms for _, terms in solved])
            problem = replace(problem, texture=texture)
    return problem


def _linearise_crops(
    problem: RefinementProblem, blur: float, pose: FacePose, crops: FaceCrops
) -> TimestepEquations:
    return linearise_timestep(problem, pose, filter_views(problem, pose, crops, blur), shared=True)


def mean_texture(settings: RefineSettings, equations: list[TimestepEquations]) -> Texture:
    """Robust mean of the colours of some timesteps."""
    colours = np.stack([each.colours for each in equations])
    weights = np.stack([each.weights for each in equations])[..., None]
    robust = weights
    for _ in range(TEXTURE_REWEIGHTINGS):
        mean = (robust * colours).sum(axis=0) / robust.sum(axis=0).clip(1e-9)
        squared = ((colours - mean) ** 2).sum(axis=-1, keepdims=True)
        robust = weights / (1 + squared / settings.colour_outlier**2) ** 2
    return Texture(mean, (weights.sum(axis=0)[:, 0] > 0).astype(np.float64))


def solve_timestep(
    problem: RefinementProblem,
    pose: FacePose,
    crops: FaceCrops,
    levels: Sequence[Level] = SCHEDULE,
) -> tuple[FacePose, TimestepEquations]:
    """Pose and expression of a timestep by Gauss-Newton steps, and its own equations there.

    Args:
        problem: with what all timesteps share, which stays fixed.
        pose: to start from.
        crops: the timestep's images.
        levels: of the schedule, in order; a level ends early where a step raises the cost.
    """
    for level in levels:
        views = filter_views(problem, pose, crops, level.blur)
        equations = linearise_timestep(problem, pose, views, shared=False)
        for _ in range(level.max_steps):
            step = np.linalg.solve(equations.matrix, -equations.gradient)
            trial = step_pose(problem.face, pose, step.astype(float))
            trial_equations = linearise_timestep(problem, trial, views, shared=False)
            if trial_equations.cost >= equations.cost:
                break
            pose, equations = trial, trial_equations
    return pose, equations


def _refine_sequence(problem: RefinementProblem, name: str, track: Tracking) -> Tracking:
    """All timesteps of a sequence, each by itself."""
    sequence = read_sequence(problem.capture, name)

    def solve(timestep: int) -> FacePose:
        landmarks = track.landmarks[timestep].astype(np.float64)
        pose = _start_pose(problem, _tracked_pose(track, timestep), landmarks)
        crops = read_crops(problem, sequence, timestep, pose, landmarks)
        return solve_timestep(problem, pose, crops)[0]

    count = len(track.rotation)
    with make_pool() as pool:
        poses = list(tqdm(pool.map(solve, range(count)), f"refining {name}", count))
    rotation = np.stack([pose.rotation for pose in poses])
    translation = np.stack([pose.translation for pose in poses])
    expression = np.stack([pose.expression for pose in poses])
    points = canonical_landmarks(problem, expression)
    landmarks = problem.face.scale * points @ rotation.transpose(0, 2, 1) + translation[:, None]
    rotation_vectors = Rotation.from_matrix(rotation).as_rotvec()
    arrays = (expression, rotation_vectors, translation, landmarks, track.reprojection_error)
    return Tracking(*(array.astype(np.float32) for array in arrays))


def _tracked_pose(track: Tracking, timestep: int) -> FacePose:
    """The landmark fit's pose of a timestep."""
    rotation = Rotation.from_rotvec(track.rotation[timestep]).as_matrix()
    translation = track.translation[timestep].astype(np.float64)
    return FacePose(rotation, translation, track.expression[timestep].astype(np.float64))
