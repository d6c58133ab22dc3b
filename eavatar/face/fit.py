"""Joint multi-view fit of a morphable model to the 2-D landmarks of all sequences of a subject.

1. Each landmark of each timestep is triangulated from all cameras, outliers rejected; how well the
   views agree tells the noise that a detection's confidence stands for (`eavatar.face.noise`).
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
from scipy.sparse import eye_array
from scipy.spatial.transform import Rotation
from tqdm import tqdm

from eavatar.cameras import Camera
from eavatar.errors import UserError
from eavatar.face.block_banded import Chain, solve
from eavatar.face.morphable import MorphableModel, read_morphable_model
from eavatar.face.noise import NoiseModel, calibrate_noise, collect_residuals
from eavatar.face.quality import Quality, judge, write_quality
from eavatar.face.triangulation import geman_mcclure, project, reproject, triangulate
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
from eavatar.transforms import Similarity, fit_similarity

logger = logging.getLogger(__name__)

Array = NDArray[np.float64]

# Second differences per timestep that `smoothness_weight` = 1 takes for one standard deviation.
ROTATION_CHANGE = 0.05  # radians
TRANSLATION_CHANGE = 0.005  # metres
EXPRESSION_CHANGE = 0.5  # standard deviations of the coefficients
FIRST_DAMPING = 1e-4
LEAST_DAMPING = 1e-3  # keeps timesteps in place that nothing determines; nil against one detection
MOST_DAMPING = 1e6  # no step lowers the cost: a minimum to machine precision
CONVERGED = 1e-5  # metres, root mean square motion of the landmarks in a step
NOISE_GATE = 3.0  # outlier distances: farther detections say nothing about the noise of the others
DOUBTFUL_CAMERA = 2.0  # times the typical noise
FACE_DISTANCE = 0.015  # metres from the mean face that a person and an expression may be
FACE_ROUNDS = np.geomspace(4, 1, 6)  # widenings of that distance, as it narrows


@dataclass(frozen=True)
class Observations:
    """The detections of one sequence and the cameras that made them.

    Attributes:
        path: the landmark file.
        cameras: (C,) numbers of the cameras in the order of ``cameras.json``.
        projections: (C, 3, 4) world metres to homogeneous pixels.
        points: (T, C, L, 2) pixels.
        confidence: (T, C, L) in [0, 1]; 0 = not seen.
        noise: (T, C, L) deviation per axis, pixels.
        gate: pixels at which a detection counts a quarter.
    """

    path: Path
    cameras: NDArray[np.int64]
    projections: Array
    points: Array
    confidence: Array
    noise: Array
    gate: float

    @property
    def weights(self) -> Array:
        """(T, C, L) inverse variances; 0 = not seen."""
        return (self.confidence > 0) / self.noise**2


@dataclass(frozen=True)
class Cloud:
    """Triangulated landmarks of a sequence: ``points`` (T, L, 3) metres, ``weights`` (T, L)."""

    points: Array
    weights: Array


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
        output: folder; receives ``identity.npz``, ``neutral.ply``, ``tracking/<sequence>.npz`` and
            ``quality.csv``.

    Raises:
        UserError: an input is missing or malformed, or a sequence shows no face to two cameras.
    """
    model = read_morphable_model(morphable_model)
    cameras = read_cameras(capture / "cameras.json")
    paths = sorted(landmarks.glob("*.npz"))
    if not paths:
        raise UserError(f"{landmarks} holds no landmarks (<sequence>.npz) to fit.")
    sequences = [read_observations(settings, path, cameras) for path in paths]
    width = next(iter(cameras.values())).width
    distance = settings.outlier_distance * width
    clouds = [
        Cloud(*triangulate(each.projections, each.points, each.confidence, distance))
        for each in tqdm(sequences, desc="triangulating landmarks", unit="sequence")
    ]
    noise = measure_noise(settings, sequences, clouds, width, list(cameras))
    sequences = [with_noise(settings, each, noise, width) for each in sequences]
    face = landmark_model(settings, model)
    estimate = refine(settings, face, sequences, start(face, sequences, clouds))
    write_fit(settings, model, face, sequences, estimate, output)


def write_fit(
    settings: FitSettings,
    model: MorphableModel,
    face: FaceModel,
    sequences: list[Observations],
    estimate: Estimate,
    output: Path,
) -> None:
    """Write what `fit_face` promises, and log how good it is."""
    identity = probable_identity(settings, face, estimate.shared.neutral)
    shared = replace(estimate.shared, neutral=face.mean + face.identity @ identity)
    quality: dict[str, Quality] = {}
    for observations, motion in zip(sequences, estimate.motions, strict=True):
        tracking = track(face, shared, motion, observations)
        write_arrays(output / "tracking" / observations.path.name, tracking)
        distance = reprojection_distance(face, estimate.shared, motion, observations)
        quality[observations.path.stem] = judge(
            distance, observations.confidence > 0, observations.gate
        )
    write_quality(output / "quality.csv", quality)
    coefficients, neutral = identity.astype(np.float32), shared.neutral.astype(np.float32)
    scale = np.array(shared.scale, dtype=np.float32)
    write_arrays(output / "identity.npz", Identity(coefficients, scale, neutral))
    mesh = Mesh(model.vertices(coefficients), model.faces, model.colours)
    write_mesh(output / "neutral.ply", mesh)
    logger.info("scale %.5f m per unit", shared.scale)


def read_observations(
    settings: FitSettings, path: Path, cameras: dict[str, Camera]
) -> Observations:
    """The detections of one sequence, with the noise that is expected of them."""
    detections = read_arrays(Landmarks, path)
    serials = detections.cameras.tolist()
    unknown = [serial for serial in serials if serial not in cameras]
    if unknown:
        raise UserError(f"{path} names the camera {unknown[0]}, which cameras.json does not hold.")
    points, confidence = detections.points.astype(float), detections.confidence.astype(float)
    if not (np.isfinite(points).all() and np.isfinite(confidence).all()):
        raise UserError(f"{path} holds values that are not finite; detect the landmarks again.")
    used = [cameras[serial] for serial in serials]
    noise = np.full(confidence.shape, settings.detection_noise * used[0].width)
    return Observations(
        path=path,
        cameras=np.array([list(cameras).index(serial) for serial in serials]),
        projections=np.stack([each.intrinsics @ each.world_to_camera[:3] for each in used]),
        points=points,
        confidence=confidence,
        noise=noise,
        gate=settings.outlier_distance * used[0].width,
    )


def measure_noise(
    settings: FitSettings,
    sequences: list[Observations],
    clouds: list[Cloud],
    width: int,
    serials: list[str],
) -> NoiseModel:
    """The noise of the detections, from the triangulated landmarks; and log it."""
    gate = NOISE_GATE * settings.outlier_distance * width
    parts = []
    for each, cloud in zip(sequences, clouds, strict=True):
        pixels, _ = project(each.projections, cloud.points)
        distance = np.linalg.norm(pixels - each.points, axis=-1)
        parts.append(collect_residuals(distance, each.confidence, each.cameras, gate))
    noise = calibrate_noise(parts, settings.detection_noise * width, len(serials))
    logger.info(
        "detections are off by %.2f px of %d per axis; %.1f times that where the detector is least "
        "and %.1f times where it is most certain",
        *(noise.typical, width, noise.by_confidence[0], noise.by_confidence[-1]),
    )
    for serial, factor in zip(serials, noise.by_camera, strict=True):
        if factor > DOUBTFUL_CAMERA:
            logger.warning(
                "camera %s is %.1f times as far off as the others and counts less: check its "
                "calibration and its synchronisation",
                *(serial, factor),
            )
    return noise


def with_noise(
    settings: FitSettings, observations: Observations, noise: NoiseModel, width: int
) -> Observations:
    """The detections with measured noise, and the robust loss as wide as it was set, or wider.

    It widens with the typical noise only: where a landmark slides or a camera is off, detections
    err to one side, and a wider loss would average that.
    """
    relative = noise.typical / (settings.detection_noise * width)
    gate = settings.outlier_distance * width * max(relative, 1.0)
    deviation = noise(observations.confidence, observations.cameras)
    return replace(observations, noise=deviation, gate=gate)


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


def start(face: FaceModel, sequences: list[Observations], clouds: list[Cloud]) -> Estimate:
    """Poses and scale of the mean face from triangulated landmarks.

    Raises:
        UserError: a sequence has no timestep whose landmarks form a face.
    """
    scales = [
        fit_face_pose(face.mean, cloud.points[t], cloud.weights[t], with_scale=True).scale
        for cloud in clouds
        for t in complete(cloud)
    ]
    scale = float(np.median(scales)) if scales else 0.0
    motions = []
    for sequence, cloud in zip(sequences, clouds, strict=True):
        poses = start_poses(scale * face.mean, cloud)
        if not poses:
            raise UserError(
                f"{sequence.path} has no face that two cameras see at once; detect the landmarks "
                "again or exclude the sequence."
            )
        motions.append(start_motion(poses, len(cloud.points), face.expression.shape[2]))
    return Estimate(Shared(face.mean, scale), motions)


def complete(cloud: Cloud) -> NDArray[np.int64]:
    """The timesteps at which half the landmarks could be triangulated."""
    return np.flatnonzero((cloud.weights > 0).sum(axis=1) >= LANDMARKS // 2)


def fit_face_pose(neutral: Array, points: Array, weights: Array, with_scale: bool) -> Similarity:
    """The similarity from a face (L, 3) to points (L, 3), metres, that most of them agree on."""
    used = weights
    for widening in FACE_ROUNDS:
        pose = fit_similarity(neutral, points, used, with_scale)
        squared = ((pose.apply(neutral) - points) ** 2).sum(axis=1)
        used = weights * geman_mcclure(squared, widening * FACE_DISTANCE)[1]
    return pose


def start_poses(neutral: Array, cloud: Cloud) -> dict[int, Similarity]:
    """The pose of a neutral face (L, 3), metres, at the timesteps whose landmarks form a face."""
    poses = {}
    for t in complete(cloud):
        pose = fit_face_pose(neutral, cloud.points[t], cloud.weights[t], with_scale=False)
        distance = np.linalg.norm(pose.apply(neutral) - cloud.points[t], axis=1)
        near = (distance < FACE_DISTANCE) & (cloud.weights[t] > 0)
        if near.sum() >= LANDMARKS // 2:
            poses[int(t)] = pose
    return poses


def start_motion(poses: dict[int, Similarity], count: int, expressions: int) -> Motion:
    """Rigid motion over ``count`` timesteps; those without a pose take the nearest one."""
    rotations = np.stack([pose.rotation for pose in poses.values()])
    translations = np.stack([pose.translation for pose in poses.values()])
    nearest = np.abs(np.arange(count)[:, None] - np.array(list(poses))).argmin(axis=1)
    reference = Rotation.from_matrix(rotations).mean().as_matrix()
    relative = Rotation.from_matrix(rotations @ reference.T).as_rotvec()
    expression = np.zeros((count, expressions))
    return Motion(reference, relative[nearest], translations[nearest], expression)


# --- refinement ---------------------------------------------------------------------------------


def refine(
    settings: FitSettings, face: FaceModel, sequences: list[Observations], estimate: Estimate
) -> Estimate:
    """Levenberg-Marquardt on all unknowns until a step hardly moves the landmarks."""
    damping = FIRST_DAMPING
    problem = linearise(settings, face, sequences, estimate)
    first = problem.cost
    reason = f"stopped after {settings.iterations}, the most that are allowed,"
    for step in tqdm(range(settings.iterations), desc="fitting the face model", unit="step"):
        trial = estimate.moved(*solve(*damped(problem, damping)))
        moved = landmark_motion(face, estimate, trial)
        trial_problem = linearise(settings, face, sequences, trial)
        if trial_problem.cost < problem.cost:
            estimate, problem = trial, trial_problem
            damping *= 0.1
        else:
            damping *= 10.0
        if moved < CONVERGED or damping > MOST_DAMPING:
            reason = f"converged after {step + 1}"
            break
    level = logging.INFO if reason.startswith("converged") else logging.WARNING
    logger.log(
        level,
        "the fit %s steps: cost %.4g to %.4g; the last step moved the landmarks by %.3f mm",
        *(reason, first, problem.cost, 1000 * moved),
    )
    return estimate


def landmark_motion(face: FaceModel, before: Estimate, after: Estimate) -> float:
    """Root mean square distance of the landmarks of two estimates, metres."""
    squared = [
        (world_landmarks(face, after.shared, new) - world_landmarks(face, before.shared, old)) ** 2
        for old, new in zip(before.motions, after.motions, strict=True)
    ]
    return float(np.sqrt(3 * np.mean(np.concatenate([each.ravel() for each in squared]))))


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
) -> Problem:
    """Cost and normal equations of all terms at an estimate."""
    deviation = (estimate.shared.neutral - face.mean).ravel()
    pull = face.precision @ deviation
    cost = float(0.5 * deviation @ pull)
    gradient, matrix = pull, face.precision
    chains = []
    for observations, motion in zip(sequences, estimate.motions, strict=True):
        part = landmark_terms(face, observations, estimate.shared, motion)
        chain, prior = add_motion_prior(settings, part.chains[0], motion)
        chains.append(chain)
        matrix = matrix + part.matrix
        gradient = gradient + part.gradient
        cost += part.cost + prior
    return Problem(chains, matrix, gradient, cost)


def landmark_terms(
    face: FaceModel,
    observations: Observations,
    shared: Shared,
    motion: Motion,
) -> Problem:
    """The reprojection cost of one sequence, linearised.

    All cameras' residuals of a landmark depend on its one position in the world, so they are
    summed there into a 3×3 information matrix before the unknowns enter.
    """
    turn = motion.matrices
    centred = head_centred(face, shared, motion)
    world = centred + motion.translation[:, None]
    cost, information, force = reprojection_terms(observations, world)
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


def world_landmarks(face: FaceModel, shared: Shared, motion: Motion) -> Array:
    """(T, L, 3) metres."""
    return head_centred(face, shared, motion) + motion.translation[:, None]


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


def reprojection_terms(observations: Observations, world: Array) -> tuple[float, Array, Array]:
    """Robust reprojection cost, and its second and first derivative by the world landmarks.

    Returns:
        cost, (T, L, 3, 3) Gauss-Newton matrix, (T, L, 3) gradient.
    """
    pixels, jacobian = reproject(observations.projections, world)
    residual = pixels - observations.points
    robust, share = geman_mcclure((residual**2).sum(-1), observations.gate)
    weights = observations.weights
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
    rows = eye_array(count, format="csr")
    for _ in range(2):
        rows = rows[1:] - rows[:-1]
    coupling = rows.T @ rows
    pull = rest * motion.unknowns + stiffness * (coupling @ motion.unknowns)
    own = coupling.diagonal()[:, None, None] * np.diag(stiffness)
    blocks = chain.blocks + np.diag(rest) + own
    next_one, next_two = np.zeros_like(chain.next_one), np.zeros_like(chain.next_two)
    next_one[:-1] = coupling.diagonal(1)[:, None] * stiffness
    next_two[:-2] = coupling.diagonal(2)[:, None] * stiffness
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


def reprojection_distance(
    face: FaceModel, shared: Shared, motion: Motion, observations: Observations
) -> Array:
    """(T, C, L) pixels between the fitted landmarks and the detections."""
    pixels, _ = project(observations.projections, world_landmarks(face, shared, motion))
    return np.linalg.norm(pixels - observations.points, axis=-1)


def track(face: FaceModel, shared: Shared, motion: Motion, observations: Observations) -> Tracking:
    """The contract's record of one sequence."""
    distance = reprojection_distance(face, shared, motion, observations)
    seen = observations.confidence > 0
    count = seen.sum(axis=2)
    error = np.where(count > 0, (distance * seen).sum(axis=2) / np.maximum(count, 1), np.nan)
    parts = (
        motion.expression,
        Rotation.from_matrix(motion.matrices).as_rotvec(),
        motion.translation,
        world_landmarks(face, shared, motion),
        error,
    )
    return Tracking(*(part.astype(np.float32) for part in parts))
