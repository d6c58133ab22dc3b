"""Joint multi-view fit of a morphable model to the 2-D landmarks of all sequences of a subject.

1. Each landmark of each timestep is triangulated from all cameras, outliers rejected.
2. A similarity from the mean face to these points starts each pose; the median scale is kept:
   a free scale would grow without end, as smaller coefficients please their priors.
3. A Levenberg-Marquardt iteration refines everything at once against all 2-D detections: the
   neutral landmarks, which all timesteps share, and each timestep's rotation, translation and
   expression. Every step solves the full normal equations: a timestep is
   coupled only to its neighbours (smoothness) and to the shared unknowns, so the matrix is block
   banded with a border, and its factorisation costs time linear in the number of timesteps.

The neutral landmarks are the unknowns, with the prior covariance ``A Aᵀ + b² I``: the model's
identity basis A plus an offset of each landmark, b, which no face of the model explains: a
detector marks every landmark of a person with its own constant bias. The identity coefficients are
the ones most probable given the neutral landmarks, so the bias does not leak into them.

Letters: T timesteps, C cameras, L = 68 landmarks, E expression coefficients, U = 6 + E unknowns
of a timestep, S = 3L shared unknowns.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import block_diag
from scipy.spatial.transform import Rotation
from tqdm import tqdm

from eavatar.cameras import Camera
from eavatar.errors import UserError
from eavatar.face.block_banded import Chain, solve
from eavatar.face.morphable import MorphableModel, read_morphable_model
from eavatar.face.triangulation import geman_mcclure, reproject, triangulate
from eavatar.io import (
    LANDMARKS,
    Identity,
    Landmarks,
    Mesh,
    Tracking,
    read_arrays,
    read_cameras,
    write_arrays,
    write_mesh,
)
from eavatar.settings import FitSettings
from eavatar.transforms import fit_similarity

logger = logging.getLogger(__name__)

Array = NDArray[np.float64]

# Second differences per timestep that `smoothness_weight` = 1 takes for one standard deviation.
ROTATION_CHANGE = 0.05  # radians
TRANSLATION_CHANGE = 0.005  # metres
EXPRESSION_CHANGE = 0.5  # standard deviations of the coefficients
FIRST_DAMPING = 1e-4
LEAST_DAMPING = 1e-3  # keeps timesteps in place that nothing determines; nil against one detection
CONVERGED = 1e-6  # relative change of the cost


@dataclass(frozen=True)
class Observations:
    """The detections of one sequence and the cameras that made them.

    Attributes:
        path: the landmark file.
        projections: (C, 3, 4) world metres to homogeneous pixels.
        points: (T, C, L, 2) pixels.
        confidence: (T, C, L) in [0, 1].
    """

    path: Path
    projections: Array
    points: Array
    confidence: Array


@dataclass(frozen=True)
class FaceModel:
    """The morphable model at its landmarks, canonical units.

    Attributes:
        mean: (L, 3).
        identity: (L, 3, I).
        expression: (L, 3, E).
        precision: (3L, 3L) inverse prior covariance of the neutral landmarks.
    """

    mean: Array
    identity: Array
    expression: Array
    precision: Array


@dataclass(frozen=True)
class Shared:
    """What all timesteps share: ``neutral`` (L, 3) canonical landmarks, ``scale`` to metres."""

    neutral: Array
    scale: float


@dataclass(frozen=True)
class Motion:
    """The timesteps of one sequence.

    Attributes:
        reference: (3, 3) the sequence's mean rotation; ``rotation`` counts from it, which keeps
            axis-angles small and their differences meaningful.
        rotation: (T, 3) axis-angle, applied after ``reference``.
        translation: (T, 3) metres.
        expression: (T, E).
    """

    reference: Array
    rotation: Array
    translation: Array
    expression: Array

    @property
    def matrices(self) -> Array:
        """(T, 3, 3) canonical to world rotations."""
        return Rotation.from_rotvec(self.rotation).as_matrix() @ self.reference

    @property
    def unknowns(self) -> Array:
        """(T, U)."""
        return np.concatenate([self.rotation, self.translation, self.expression], axis=1)

    def moved(self, step: Array) -> Motion:
        """The motion after adding (T, U) to the unknowns."""
        rotation, translation, expression = np.split(self.unknowns + step, [3, 6], axis=1)
        return Motion(self.reference, rotation, translation, expression)


@dataclass(frozen=True)
class Estimate:
    """The unknowns of all sequences."""

    shared: Shared
    motions: list[Motion]

    def moved(self, steps: list[Array], shared_step: Array) -> Estimate:
        """The estimate after adding (T, U) per sequence and (S,) to the unknowns."""
        neutral = self.shared.neutral + shared_step.reshape(-1, 3)
        pairs = zip(self.motions, steps, strict=True)
        return Estimate(
            replace(self.shared, neutral=neutral), [motion.moved(step) for motion, step in pairs]
        )


@dataclass(frozen=True)
class Problem:
    """Normal equations at an estimate: a chain per sequence and the (S, S) shared block."""

    chains: list[Chain]
    matrix: Array
    gradient: Array
    cost: float


def fit_face(
    settings: FitSettings, morphable_model: Path, capture: Path, landmarks: Path, output: Path
) -> None:
    """Fit the morphable model to every sequence of ``landmarks`` jointly.

    Args:
        capture: folder with ``cameras.json``.
        landmarks: folder with a ``<sequence>.npz`` of detections per sequence.
        output: folder; receives ``identity.npz``, ``neutral.ply`` and
            ``tracking/<sequence>.npz``.

    Raises:
        UserError: an input is missing or malformed, or no face was seen.
    """
    model = read_morphable_model(morphable_model)
    cameras = read_cameras(capture / "cameras.json")
    paths = sorted(landmarks.glob("*.npz"))
    if not paths:
        raise UserError(f"{landmarks} holds no landmarks (<sequence>.npz) to fit.")
    sequences = [read_observations(path, cameras) for path in paths]
    width = next(iter(cameras.values())).width
    face = landmark_model(settings, model)
    estimate = start(face, sequences, settings.outlier_distance * width)
    estimate = refine(settings, face, sequences, estimate, width)
    identity = probable_identity(settings, face, estimate.shared.neutral)
    shared = replace(estimate.shared, neutral=face.mean + face.identity @ identity)
    errors = []
    for path, observations, motion in zip(paths, sequences, estimate.motions, strict=True):
        tracking = track(face, shared, motion, observations)
        write_arrays(output / "tracking" / path.name, tracking)
        errors.append(tracking.reprojection_error.ravel())
    logger.info(
        "scale %.5f m per unit; median reprojection error %.2f px of %d",
        shared.scale,
        np.nanmedian(np.concatenate(errors)),
        width,
    )
    coefficients, neutral = identity.astype(np.float32), shared.neutral.astype(np.float32)
    scale = np.array(shared.scale, dtype=np.float32)
    write_arrays(output / "identity.npz", Identity(coefficients, scale, neutral))
    mesh = Mesh(model.vertices(coefficients), model.faces, model.colours)
    write_mesh(output / "neutral.ply", mesh)


def read_observations(path: Path, cameras: dict[str, Camera]) -> Observations:
    """The detections of one sequence with the projections of their cameras."""
    detections = read_arrays(Landmarks, path)
    serials = detections.cameras.tolist()
    unknown = [serial for serial in serials if serial not in cameras]
    if unknown:
        raise UserError(f"{path} names the camera {unknown[0]}, which cameras.json does not hold.")
    projections = [
        cameras[serial].intrinsics @ cameras[serial].world_to_camera[:3] for serial in serials
    ]
    confidence = detections.confidence.astype(np.float64)
    return Observations(
        path, np.stack(projections), detections.points.astype(np.float64), confidence
    )


def landmark_model(settings: FitSettings, model: MorphableModel) -> FaceModel:
    """The leading components at the landmarks, and the prior of the neutral landmarks."""
    chosen = model.landmark_vertices
    identity = model.identity_basis[chosen, :, : settings.identity_components].astype(np.float64)
    expression = model.expression_basis[chosen, :, : settings.expression_components]
    flat = identity.reshape(3 * LANDMARKS, -1)
    covariance = flat @ flat.T / settings.identity_weight
    covariance += settings.landmark_bias**2 * np.eye(3 * LANDMARKS)
    precision: Array = np.asarray(np.linalg.inv(covariance), dtype=np.float64)
    mean = model.mean[chosen].astype(np.float64)
    return FaceModel(mean, identity, expression.astype(np.float64), precision)


def probable_identity(settings: FitSettings, face: FaceModel, neutral: Array) -> Array:
    """The most probable identity coefficients (I,) of neutral landmarks (L, 3) with biases."""
    basis = face.identity.reshape(3 * LANDMARKS, -1)
    deviation = (neutral - face.mean).ravel()
    return basis.T @ face.precision @ deviation / settings.identity_weight


# --- start --------------------------------------------------------------------------------------


def start(face: FaceModel, sequences: list[Observations], distance: float) -> Estimate:
    """Poses and scale of the mean face from triangulated landmarks."""
    clouds = [
        triangulate(each.projections, each.points, each.confidence, distance) for each in sequences
    ]
    usable = [np.flatnonzero((seen > 0).sum(axis=1) >= LANDMARKS // 2) for _, seen in clouds]
    for sequence, timesteps in zip(sequences, usable, strict=True):
        if len(timesteps) == 0:
            raise UserError(
                f"{sequence.path} has no face that two cameras see at once; detect the landmarks "
                "again or exclude the sequence."
            )
    scale = float(
        np.median(
            [
                fit_similarity(face.mean, points[t], weights[t]).scale
                for (points, weights), timesteps in zip(clouds, usable, strict=True)
                for t in timesteps
            ]
        )
    )
    motions = [
        start_motion(scale * face.mean, points, weights, timesteps, face.expression.shape[2])
        for (points, weights), timesteps in zip(clouds, usable, strict=True)
    ]
    return Estimate(Shared(face.mean, scale), motions)


def start_motion(
    neutral: Array, points: Array, weights: Array, usable: NDArray[np.int64], expressions: int
) -> Motion:
    """Rigid motion of a neutral face (L, 3), metres; unusable timesteps take the nearest pose."""
    poses = [fit_similarity(neutral, points[t], weights[t], with_scale=False) for t in usable]
    rotations = np.stack([pose.rotation for pose in poses])
    translations = np.stack([pose.translation for pose in poses])
    nearest = np.abs(np.arange(len(points))[:, None] - usable).argmin(axis=1)
    reference = Rotation.from_matrix(rotations).mean().as_matrix()
    relative = Rotation.from_matrix(rotations @ reference.T).as_rotvec()
    expression = np.zeros((len(points), expressions))
    return Motion(reference, relative[nearest], translations[nearest], expression)


# --- refinement ---------------------------------------------------------------------------------


def refine(
    settings: FitSettings,
    face: FaceModel,
    sequences: list[Observations],
    estimate: Estimate,
    width: int,
) -> Estimate:
    """Levenberg-Marquardt on all unknowns until the cost stands still."""
    damping = FIRST_DAMPING
    problem = linearise(settings, face, sequences, estimate, width)
    for step in tqdm(range(settings.iterations), desc="fitting the face model", unit="step"):
        steps, shared_step = solve(*damped(problem, damping))
        trial = estimate.moved(steps, shared_step)
        trial_problem = linearise(settings, face, sequences, trial, width)
        gain = (problem.cost - trial_problem.cost) / problem.cost
        if gain > 0:
            estimate, problem = trial, trial_problem
        if abs(gain) < CONVERGED:
            logger.info("the fit converged after %d steps", step + 1)
            return estimate
        damping *= 0.1 if gain > 0 else 10.0
    logger.warning("the fit had not converged after %d iterations", settings.iterations)
    return estimate


def damped(problem: Problem, damping: float) -> tuple[list[Chain], Array, Array]:
    """The normal equations with their diagonals enlarged by the factor 1 + ``damping``."""
    chains = []
    for chain in problem.chains:
        extra = damping * np.einsum("tii->ti", chain.blocks) + LEAST_DAMPING
        diagonal = extra[..., None] * np.eye(extra.shape[1])
        chains.append(replace(chain, blocks=chain.blocks + diagonal))
    matrix = problem.matrix + damping * np.diag(np.diag(problem.matrix))
    return chains, matrix, problem.gradient


def linearise(
    settings: FitSettings,
    face: FaceModel,
    sequences: list[Observations],
    estimate: Estimate,
    width: int,
) -> Problem:
    """Cost and normal equations of all terms at an estimate."""
    deviation = (estimate.shared.neutral - face.mean).ravel()
    pull = face.precision @ deviation
    cost = float(0.5 * deviation @ pull)
    gradient, matrix = pull, face.precision
    chains = []
    for observations, motion in zip(sequences, estimate.motions, strict=True):
        part = landmark_terms(settings, face, observations, estimate.shared, motion, width)
        chain, prior = add_motion_prior(settings, part.chains[0], motion)
        chains.append(chain)
        matrix = matrix + part.matrix
        gradient = gradient + part.gradient
        cost += part.cost + prior
    return Problem(chains, matrix, gradient, cost)


def landmark_terms(
    settings: FitSettings,
    face: FaceModel,
    observations: Observations,
    shared: Shared,
    motion: Motion,
    width: int,
) -> Problem:
    """The reprojection cost of one sequence, linearised.

    All cameras' residuals of a landmark depend on its one position in the world, so they are
    summed there into a 3×3 information matrix before the unknowns enter.
    """
    turn = motion.matrices
    centred = head_centred(face, shared, motion)
    world = centred + motion.translation[:, None]
    cost, information, force = reprojection_terms(settings, observations, world, width)
    count, expressions = motion.expression.shape

    jacobian = np.zeros((count, LANDMARKS, 3, 6 + expressions))
    jacobian[..., :3] = -skew(centred) @ left_jacobian(motion.rotation)[:, None]
    jacobian[..., 3:6] = np.eye(3)
    jacobian[..., 6:] = shared.scale * np.einsum("tij,ljk->tlik", turn, face.expression)
    weighted = information @ jacobian
    flat = jacobian.reshape(count, 3 * LANDMARKS, -1)
    flat_weighted = weighted.reshape(count, 3 * LANDMARKS, -1)
    by_neutral = np.einsum("tlik,tij->tklj", weighted, shared.scale * turn)
    blocks = flat.transpose(0, 2, 1) @ flat_weighted
    border = by_neutral.reshape(count, -1, 3 * LANDMARKS)
    nothing = np.zeros((count, 6 + expressions))
    gradient = np.einsum("tlik,tli->tk", jacobian, force)
    chain = Chain(blocks, nothing, nothing, border, gradient)
    matrix, shared_gradient = neutral_terms(shared.scale * turn, information, force)
    return Problem([chain], matrix, shared_gradient, cost)


def head_centred(face: FaceModel, shared: Shared, motion: Motion) -> Array:
    """(T, L, 3) landmarks with the world's axes and unit, the canonical origin at zero."""
    canonical = shared.neutral + np.einsum("lij,tj->tli", face.expression, motion.expression)
    return shared.scale * np.einsum("tij,tlj->tli", motion.matrices, canonical)


def neutral_terms(by_neutral: Array, information: Array, force: Array) -> tuple[Array, Array]:
    """Normal equations (S, S) and gradient (S,) of the neutral landmarks.

    Args:
        by_neutral: (T, 3, 3) derivative of a world landmark by its neutral position.
        information: (T, L, 3, 3) second derivative of the cost by the world landmark.
        force: (T, L, 3) first derivative.
    """
    gradient = np.einsum("tli,tij->lj", force, by_neutral)
    blocks = np.einsum("tki,tlkj->lij", by_neutral, information @ by_neutral[:, None])
    return block_diag(*blocks), gradient.ravel()


def reprojection_terms(
    settings: FitSettings, observations: Observations, world: Array, width: int
) -> tuple[float, Array, Array]:
    """Robust reprojection cost, and its second and first derivative by the world landmarks.

    Returns:
        cost, (T, L, 3, 3) Gauss-Newton matrix, (T, L, 3) gradient.
    """
    pixels, jacobian = reproject(observations.projections, world)
    residual = pixels - observations.points
    robust, share = geman_mcclure((residual**2).sum(-1), settings.outlier_distance * width)
    weights = observations.confidence / (settings.detection_noise * width) ** 2
    weighted = (weights * share)[..., None, None] * jacobian
    information = np.einsum("tclki,tclkj->tlij", weighted, jacobian)
    force = np.einsum("tclki,tclk->tli", weighted, residual)
    return float(0.5 * (weights * robust).sum()), information, force


def add_motion_prior(settings: FitSettings, chain: Chain, motion: Motion) -> tuple[Chain, float]:
    """Add the priors on expression and on second differences over time; and give their cost."""
    count, expressions = motion.expression.shape
    changes = np.repeat(
        [ROTATION_CHANGE, TRANSLATION_CHANGE, EXPRESSION_CHANGE], [3, 3, expressions]
    )
    stiffness = settings.smoothness_weight / changes**2
    rest = np.repeat([0.0, settings.expression_weight], [6, expressions])
    second = np.diff(np.eye(count), n=2, axis=0)
    coupling = second.T @ second
    pull = rest * motion.unknowns + stiffness * (coupling @ motion.unknowns)
    blocks = chain.blocks + np.diag(rest) + np.einsum("tt,ij->tij", coupling, np.diag(stiffness))
    next_one = np.zeros_like(chain.next_one)
    next_two = np.zeros_like(chain.next_two)
    next_one[:-1] = np.diag(coupling, 1)[:, None] * stiffness
    next_two[:-2] = np.diag(coupling, 2)[:, None] * stiffness
    enlarged = Chain(blocks, next_one, next_two, chain.border, chain.gradient + pull)
    return enlarged, float(0.5 * (motion.unknowns * pull).sum())


def skew(vectors: Array) -> Array:
    """Cross product matrices (..., 3, 3) of vectors (..., 3)."""
    x, y, z = np.moveaxis(vectors, -1, 0)
    zero = np.zeros_like(x)
    return np.stack([zero, -z, y, z, zero, -x, -y, x, zero], -1).reshape(*x.shape, 3, 3)


def left_jacobian(rotation: Array) -> Array:
    """(T, 3, 3) ``J`` with ``exp(w + dw) ≈ exp(J dw) exp(w)`` for rotation vectors (T, 3)."""
    angle = np.linalg.norm(rotation, axis=1)[:, None, None]
    safe = np.maximum(angle, 1e-4)
    first = np.where(angle < 1e-4, 0.5, (1 - np.cos(safe)) / safe**2)
    second = np.where(angle < 1e-4, 1 / 6, (safe - np.sin(safe)) / safe**3)
    cross = skew(rotation)
    return np.eye(3) + first * cross + second * (cross @ cross)


# --- result -------------------------------------------------------------------------------------


def track(face: FaceModel, shared: Shared, motion: Motion, observations: Observations) -> Tracking:
    """The contract's record of one sequence."""
    world = head_centred(face, shared, motion) + motion.translation[:, None]
    pixels, _ = reproject(observations.projections, world)
    distance = np.linalg.norm(pixels - observations.points, axis=-1)
    seen = observations.confidence > 0
    count = seen.sum(axis=2)
    error = np.where(count > 0, (distance * seen).sum(axis=2) / np.maximum(count, 1), np.nan)
    parts = (
        motion.expression,
        Rotation.from_matrix(motion.matrices).as_rotvec(),
        motion.translation,
    )
    return Tracking(*(part.astype(np.float32) for part in (*parts, world, error)))
