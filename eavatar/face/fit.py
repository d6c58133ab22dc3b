"""Joint multi-view fit of a morphable model to the 2-D landmarks of all sequences of a subject.

1. Each landmark of each timestep is triangulated from all cameras, outliers rejected; the residuals
   give the noise of a detection by its confidence, landmark and camera (`eavatar.face.noise`).
2. A similarity from the mean face to these points initialises each pose; the median scale is kept:
   a free scale would grow without bound, as smaller coefficients lower the cost of their priors.
3. A Levenberg-Marquardt iteration refines everything at once against all 2-D detections: the
   neutral landmarks, which all timesteps share, and each timestep's rotation, translation and
   expression. Every step solves the full normal equations: a timestep is
   coupled only to its neighbours (smoothness) and to the shared unknowns, so the matrix is block
   banded with a border, and its factorisation takes time linear in the number of timesteps.

The neutral landmarks are the unknowns, with the prior covariance ``A Aᵀ + b² I``: the model's
identity basis A plus an offset of each landmark of standard deviation b, outside of the model's
span: a detector has a constant bias for each landmark of a person. The identity coefficients are
the most probable ones given the neutral landmarks, so the bias does not enter them.

Letters: T timesteps, C cameras, L = 68 landmarks, E expression coefficients, U = 6 + E unknowns
of a timestep, S = 3L shared unknowns.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from scipy.linalg import block_diag
from scipy.sparse import eye_array
from scipy.spatial.transform import Rotation
from tqdm import tqdm

from eavatar.arrays import Float64, Int64
from eavatar.cameras import Camera
from eavatar.errors import UserError
from eavatar.face.block_banded import Chain, solve
from eavatar.face.causes import (
    check_agreement,
    check_scale,
    gather,
    missing_face,
)
from eavatar.face.morphable import MorphableModel, read_morphable_model
from eavatar.face.noise import NoiseModel, calibrate_noise, collect_residuals
from eavatar.face.quality import (
    SequenceQuality,
    check_support,
    measure_quality,
    write_quality,
)
from eavatar.face.triangulation import (
    geman_mcclure,
    project_points,
    project_with_jacobian,
    triangulate,
)
from eavatar.io import (
    LANDMARKS,
    ExpressionBasis,
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
from eavatar.transforms import Similarity, cross_matrices, fit_similarity, left_jacobian

logger = logging.getLogger(__name__)

# Second differences per timestep that `smoothness_weight` = 1 takes for one standard deviation.
ROTATION_CHANGE = 0.05  # radians
TRANSLATION_CHANGE = 0.005  # metres
EXPRESSION_CHANGE = 0.5  # standard deviations of the coefficients
START_DAMPING = 1e-4
MIN_DAMPING = 1e-3  # keeps undetermined timesteps in place; negligible beside one detection
MAX_DAMPING = 1e6  # beyond it no step lowers the cost: a minimum to machine precision
CONVERGED_STEP = 1e-5  # metres, root mean square motion of the landmarks in a step
NOISE_GATE = 3.0  # multiple of the outlier distance beyond which the noise is not measured
MAX_CAMERA_NOISE = 2.0  # times the typical noise; above it a warning
MAX_FACE_DISTANCE = 0.015  # metres of an inlier to the posed mean face, for any identity
FACE_DISTANCE_FACTORS = np.geomspace(4, 1, 6)  # of that distance, in successive reweightings


@dataclass(frozen=True)
class Observations:
    """The detections of one sequence and the cameras that made them.

    Attributes:
        path: the landmark file.
        cameras: (C,) indices of the cameras in the order of ``cameras.json``.
        projections: (C, 3, 4) world metres to homogeneous pixels.
        points: (T, C, L, 2) pixels.
        confidence: (T, C, L) in [0, 1]; 0 = not seen.
        noise: (T, C, L) standard deviation per axis, pixels.
        gate: pixels at which a detection counts a quarter.
    """

    path: Path
    cameras: Int64
    projections: Float64
    points: Float64
    confidence: Float64
    noise: Float64
    gate: float

    @property
    def weights(self) -> Float64:
        """(T, C, L) inverse variances; 0 = not seen."""
        return (self.confidence > 0) / self.noise**2


@dataclass(frozen=True)
class TriangulatedLandmarks:
    """Triangulated landmarks of a sequence.

    Attributes:
        points: (T, L, 3) world, metres.
        weights: (T, L), 0 = not triangulated.
    """

    points: Float64
    weights: Float64


@dataclass(frozen=True)
class LandmarkModel:
    """The morphable model at its landmarks, canonical units.

    Attributes:
        mean: (L, 3).
        identity: (L, 3, I).
        expression: (L, 3, E).
        precision: (3L, 3L) inverse prior covariance of the neutral landmarks.
        identity_weight: precision of the identity coefficients.
    """

    mean: Float64
    identity: Float64
    expression: Float64
    precision: Float64
    identity_weight: float


@dataclass(frozen=True)
class SharedUnknowns:
    """What all timesteps share.

    Attributes:
        neutral: (L, 3) canonical landmarks.
        scale: canonical units to metres.
    """

    neutral: Float64
    scale: float


@dataclass(frozen=True)
class SequenceMotion:
    """The timesteps of one sequence.

    Attributes:
        reference: (3, 3) the sequence's mean rotation; ``rotation`` is relative to it, which keeps
            axis-angles small and their differences meaningful.
        rotation: (T, 3) axis-angle, radians, applied after ``reference``.
        translation: (T, 3) metres.
        expression: (T, E) coefficients.
    """

    reference: Float64
    rotation: Float64
    translation: Float64
    expression: Float64

    @property
    def matrices(self) -> Float64:
        """(T, 3, 3) canonical to world rotations."""
        matrices: Float64 = Rotation.from_rotvec(self.rotation).as_matrix() @ self.reference
        return matrices

    @property
    def unknowns(self) -> Float64:
        """(T, U)."""
        return np.concatenate([self.rotation, self.translation, self.expression], axis=1)

    def moved(self, step: Float64) -> SequenceMotion:
        """The motion after adding (T, U) to the unknowns."""
        rotation, translation, expression = np.split(self.unknowns + step, [3, 6], axis=1)
        return SequenceMotion(self.reference, rotation, translation, expression)


@dataclass(frozen=True)
class FitEstimate:
    """The unknowns of all sequences.

    Attributes:
        shared: by all timesteps.
        motions: one per sequence.
    """

    shared: SharedUnknowns
    motions: list[SequenceMotion]

    def moved(self, steps: list[Float64], shared_step: Float64) -> FitEstimate:
        """The estimate after adding (T, U) per sequence and (S,) to the unknowns."""
        neutral = self.shared.neutral + shared_step.reshape(-1, 3)
        pairs = zip(self.motions, steps, strict=True)
        return FitEstimate(
            replace(self.shared, neutral=neutral), [motion.moved(step) for motion, step in pairs]
        )


@dataclass(frozen=True)
class FitEquations:
    """Normal equations at an estimate.

    Attributes:
        chains: one per sequence.
        matrix: (S, S) block of the shared unknowns.
        gradient: (S,) by the shared unknowns.
        cost: at the estimate.
    """

    chains: list[Chain]
    matrix: Float64
    gradient: Float64
    cost: float


def fit_face(
    settings: FitSettings,
    morphable_model: Path,
    capture: Path,
    landmarks: Sequence[Path],
    output: Path,
) -> Path:
    """Fit the morphable model to all sequences jointly.

    Args:
        settings: weights of the priors, noise and outlier levels.
        morphable_model: a file that `read_morphable_model` reads.
        capture: folder with ``cameras.json``.
        landmarks: ``<sequence>.npz`` of detections, one for each sequence.
        output: folder; receives ``identity.npz``, ``neutral.ply``, ``expression_basis.npz``,
            ``tracking/<sequence>.npz`` and ``quality.csv``.

    Returns:
        ``output``.

    Raises:
        UserError: an input is missing or malformed, a sequence shows no face to two cameras, or
            the fit cannot be that of a head: of no such size, or borne out by too few cameras.
    """
    model = read_morphable_model(morphable_model)
    cameras = read_cameras(capture / "cameras.json")
    sequences = [read_observations(settings, path, cameras) for path in sorted(landmarks)]
    width = next(iter(cameras.values())).width
    distance = settings.outlier_distance * width
    triangulated = [
        TriangulatedLandmarks(
            *triangulate(each.projections, each.points, each.confidence, distance)
        )
        for each in tqdm(sequences, desc="triangulating landmarks", unit="sequence")
    ]
    evidence = [gather(each.points, each.confidence, each.cameras, distance) for each in sequences]
    outvoted = check_agreement(cameras, evidence)
    noise = _measure_noise(settings, sequences, triangulated, width, list(cameras), outvoted)
    sequences = [_with_noise(settings, each, noise, width) for each in sequences]
    face = landmark_model(settings, model)
    start = _start_estimate(settings, face, sequences, triangulated, outvoted)
    estimate = minimise(settings, face, sequences, start)
    quality = measure_fit(face, sequences, estimate)
    check_support(quality, settings.min_supported, len(cameras), outvoted)
    write_fit(model, face, sequences, estimate, output)
    write_quality(output / "quality.csv", quality)
    return output


def write_fit(
    model: MorphableModel,
    face: LandmarkModel,
    sequences: list[Observations],
    estimate: FitEstimate,
    output: Path,
) -> None:
    """Write the output files of `fit_face` but for its quality."""
    identity = _most_probable_identity(face, estimate.shared.neutral)
    shared = replace(estimate.shared, neutral=face.mean + face.identity @ identity)
    for observations, motion in zip(sequences, estimate.motions, strict=True):
        tracking = _make_tracking(face, shared, motion, observations)
        write_arrays(output / "tracking" / observations.path.name, tracking)
    coefficients, neutral = identity.astype(np.float32), shared.neutral.astype(np.float32)
    scale = np.array(shared.scale, dtype=np.float32)
    write_arrays(output / "identity.npz", Identity(coefficients, scale, neutral))
    mesh = Mesh(model.vertices(coefficients), model.faces, model.colours)
    write_mesh(output / "neutral.ply", mesh)
    basis = model.expression_basis[..., : face.expression.shape[2]]
    write_arrays(output / "expression_basis.npz", ExpressionBasis(basis))
    logger.info("scale %.5f m per unit", shared.scale)


def measure_fit(
    face: LandmarkModel, sequences: list[Observations], estimate: FitEstimate
) -> dict[str, SequenceQuality]:
    """How well the detections bear out the fit, by sequence."""
    quality = {}
    for observations, motion in zip(sequences, estimate.motions, strict=True):
        distance = _reprojection_distance(face, estimate.shared, motion, observations)
        quality[observations.path.stem] = measure_quality(
            distance, observations.confidence > 0, observations.gate
        )
    return quality


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


def _measure_noise(
    settings: FitSettings,
    sequences: list[Observations],
    triangulated: list[TriangulatedLandmarks],
    width: int,
    serials: list[str],
    outvoted: list[str],
) -> NoiseModel:
    """Measure, and log, the noise of the detections from the triangulated landmarks.

    Args:
        settings: expected noise and outlier distance.
        sequences: the detections.
        triangulated: the triangulated landmarks of each sequence.
        width: of the images, pixels.
        serials: of all cameras.
        outvoted: those that disagree with most, of which there is a warning, too.
    """
    gate = NOISE_GATE * settings.outlier_distance * width
    parts = []
    for each, landmarks in zip(sequences, triangulated, strict=True):
        pixels, _ = project_points(each.projections, landmarks.points)
        distance = np.linalg.norm(pixels - each.points, axis=-1)
        parts.append(collect_residuals(distance, each.confidence, each.cameras, gate))
    noise = calibrate_noise(parts, settings.detection_noise * width, len(serials))
    logger.info(
        "detections are off by %.2f px of %d per axis; %.1f times that where the detector is least "
        "and %.1f times where it is most certain",
        *(noise.typical, width, noise.by_confidence[0], noise.by_confidence[-1]),
    )
    for serial, factor in zip(serials, noise.by_camera, strict=True):
        if factor > MAX_CAMERA_NOISE:
            logger.warning(
                "camera %s is %.1f times as far off as the others and counts less: check its "
                "calibration and its synchronisation",
                *(serial, factor),
            )
        elif serial in outvoted:
            logger.warning(
                "most of what camera %s shows does not agree with the other cameras: check its "
                "calibration and its synchronisation, or leave it out with capture.ingest.cameras",
                serial,
            )
    return noise


def _with_noise(
    settings: FitSettings, observations: Observations, noise: NoiseModel, width: int
) -> Observations:
    """The detections with measured noise, and the robust loss' gate widened to the typical noise.

    The gate is not widened for single landmarks or cameras: where a landmark slides or a camera is
    misaligned, detections are biased, and a wider gate would average that bias in.
    """
    relative = noise.typical / (settings.detection_noise * width)
    gate = settings.outlier_distance * width * max(relative, 1.0)
    deviation = noise(observations.confidence, observations.cameras)
    return replace(observations, noise=deviation, gate=gate)


def landmark_model(settings: FitSettings, model: MorphableModel) -> LandmarkModel:
    """The leading components at the landmarks, and the prior of the neutral landmarks."""
    chosen = model.landmark_vertices
    identity = model.identity_basis[chosen, :, : settings.identity_components].astype(np.float64)
    expression = model.expression_basis[chosen, :, : settings.expression_components]
    flat = identity.reshape(3 * LANDMARKS, -1)
    covariance = flat @ flat.T / settings.identity_weight
    covariance += settings.landmark_bias**2 * np.eye(3 * LANDMARKS)
    precision: Float64 = np.asarray(np.linalg.inv(covariance), dtype=np.float64)
    mean = model.mean[chosen].astype(np.float64)
    return LandmarkModel(
        mean, identity, expression.astype(np.float64), precision, settings.identity_weight
    )


def _most_probable_identity(face: LandmarkModel, neutral: Float64) -> Float64:
    """The most probable identity coefficients (I,) of neutral landmarks (L, 3) with biases."""
    basis = face.identity.reshape(3 * LANDMARKS, -1)
    deviation = (neutral - face.mean).ravel()
    return basis.T @ face.precision @ deviation / face.identity_weight


# --- start --------------------------------------------------------------------------------------


def _start_estimate(
    settings: FitSettings,
    face: LandmarkModel,
    sequences: list[Observations],
    triangulated: list[TriangulatedLandmarks],
    outvoted: list[str],
) -> FitEstimate:
    """Poses and scale of the mean face from triangulated landmarks.

    Args:
        settings: how large heads are.
        face: the landmark model.
        sequences: the detections.
        triangulated: landmarks of each sequence.
        outvoted: cameras that disagree with most, for the message.

    Raises:
        UserError: the scale is no head's, or a sequence has no timestep where at least half of the
            landmarks are triangulated within `MAX_FACE_DISTANCE` of the posed mean face.
    """
    scales = [
        _fit_head_pose(face.mean, landmarks.points[t], landmarks.weights[t], with_scale=True).scale
        for landmarks in triangulated
        for t in _triangulated_timesteps(landmarks)
    ]
    if not scales:
        raise missing_face(sequences[0].path, False, outvoted)
    scale = float(np.median(scales))
    check_scale(scale, settings.head_scale)
    found = [_start_poses(scale * face.mean, landmarks) for landmarks in triangulated]
    motions = []
    for sequence, landmarks, poses in zip(sequences, triangulated, found, strict=True):
        if not poses:
            raise missing_face(sequence.path, any(found), outvoted)
        motions.append(start_motion(poses, len(landmarks.points), face.expression.shape[2]))
    return FitEstimate(SharedUnknowns(face.mean, scale), motions)


def _triangulated_timesteps(landmarks: TriangulatedLandmarks) -> Int64:
    """The timesteps at which at least half of the landmarks could be triangulated."""
    return np.flatnonzero((landmarks.weights > 0).sum(axis=1) >= LANDMARKS // 2)


def _fit_head_pose(
    neutral: Float64, points: Float64, weights: Float64, with_scale: bool
) -> Similarity:
    """Robust similarity from a face to triangulated landmarks, by reweighted least squares.

    Args:
        neutral: (L, 3) of the face.
        points: (L, 3) world, metres.
        weights: (L,) of the points.
        with_scale: estimate the scale too.
    """
    used = weights
    for factor in FACE_DISTANCE_FACTORS:
        pose = fit_similarity(neutral, points, used, with_scale)
        squared = ((pose.apply(neutral) - points) ** 2).sum(axis=1)
        used = weights * geman_mcclure(squared, factor * MAX_FACE_DISTANCE)[1]
    return pose


def _start_poses(neutral: Float64, landmarks: TriangulatedLandmarks) -> dict[int, Similarity]:
    """Poses of a neutral face (L, 3), metres, by timestep.

    Left out are timesteps where less than half of the landmarks are triangulated within
    `MAX_FACE_DISTANCE` of the posed face.
    """
    poses = {}
    for t in _triangulated_timesteps(landmarks):
        pose = _fit_head_pose(neutral, landmarks.points[t], landmarks.weights[t], with_scale=False)
        distance = np.linalg.norm(pose.apply(neutral) - landmarks.points[t], axis=1)
        near = (distance < MAX_FACE_DISTANCE) & (landmarks.weights[t] > 0)
        if near.sum() >= LANDMARKS // 2:
            poses[int(t)] = pose
    return poses


def start_motion(poses: dict[int, Similarity], count: int, expressions: int) -> SequenceMotion:
    """Rigid motion over ``count`` timesteps; those without a pose take the nearest one.

    Args:
        poses: by timestep.
        count: number of timesteps.
        expressions: number of expression coefficients, zero at the start.
    """
    rotations = np.stack([pose.rotation for pose in poses.values()])
    translations = np.stack([pose.translation for pose in poses.values()])
    nearest = np.abs(np.arange(count)[:, None] - np.array(list(poses))).argmin(axis=1)
    reference = Rotation.from_matrix(rotations).mean().as_matrix()
    relative = Rotation.from_matrix(rotations @ reference.T).as_rotvec()
    expression = np.zeros((count, expressions))
    return SequenceMotion(reference, relative[nearest], translations[nearest], expression)


# --- refinement ---------------------------------------------------------------------------------


def minimise(
    settings: FitSettings, face: LandmarkModel, sequences: list[Observations], estimate: FitEstimate
) -> FitEstimate:
    """Levenberg-Marquardt on all unknowns until a step hardly moves the landmarks."""
    damping = START_DAMPING
    problem = linearise(settings, face, sequences, estimate)
    first = problem.cost
    reason = f"stopped after {settings.iterations}, the most that are allowed,"
    for step in tqdm(range(settings.iterations), desc="fitting the face model", unit="step"):
        trial = estimate.moved(*solve(*_damp(problem, damping)))
        moved = _landmark_step(face, estimate, trial)
        trial_problem = linearise(settings, face, sequences, trial)
        if trial_problem.cost < problem.cost:
            estimate, problem = trial, trial_problem
            damping *= 0.1
        else:
            damping *= 10.0
        if moved < CONVERGED_STEP or damping > MAX_DAMPING:
            reason = f"converged after {step + 1}"
            break
    level = logging.INFO if reason.startswith("converged") else logging.WARNING
    logger.log(
        level,
        "the fit %s steps: cost %.4g to %.4g; the last step moved the landmarks by %.3f mm",
        *(reason, first, problem.cost, 1000 * moved),
    )
    return estimate


def _landmark_step(face: LandmarkModel, before: FitEstimate, after: FitEstimate) -> float:
    """Root mean square distance of the landmarks of two estimates, metres."""
    squared = [
        (_world_landmarks(face, after.shared, new) - _world_landmarks(face, before.shared, old))
        ** 2
        for old, new in zip(before.motions, after.motions, strict=True)
    ]
    return float(np.sqrt(3 * np.mean(np.concatenate([each.ravel() for each in squared]))))


def _damp(problem: FitEquations, damping: float) -> tuple[list[Chain], Float64, Float64]:
    """The normal equations with their diagonals multiplied by 1 + ``damping``."""
    chains = []
    for chain in problem.chains:
        extra = damping * np.einsum("tii->ti", chain.blocks) + MIN_DAMPING
        diagonal = extra[..., None] * np.eye(extra.shape[1])
        chains.append(replace(chain, blocks=chain.blocks + diagonal))
    matrix = problem.matrix + damping * np.diag(np.diag(problem.matrix))
    return chains, matrix, problem.gradient


def linearise(
    settings: FitSettings,
    face: LandmarkModel,
    sequences: list[Observations],
    estimate: FitEstimate,
) -> FitEquations:
    """Cost and normal equations of all terms at an estimate."""
    deviation = (estimate.shared.neutral - face.mean).ravel()
    pull = face.precision @ deviation
    cost = float(0.5 * deviation @ pull)
    gradient, matrix = pull, face.precision
    chains = []
    for observations, motion in zip(sequences, estimate.motions, strict=True):
        part = _linearise_landmarks(face, observations, estimate.shared, motion)
        chain, prior = _add_motion_prior(settings, part.chains[0], motion)
        chains.append(chain)
        matrix = matrix + part.matrix
        gradient = gradient + part.gradient
        cost += part.cost + prior
    return FitEquations(chains, matrix, gradient, cost)


def _linearise_landmarks(
    face: LandmarkModel,
    observations: Observations,
    shared: SharedUnknowns,
    motion: SequenceMotion,
) -> FitEquations:
    """The reprojection cost of one sequence, linearised.

    All cameras' residuals of a landmark depend on its one position in the world, so they are
    summed there into a 3×3 information matrix before the unknowns enter.
    """
    turn = motion.matrices
    centred = _rotated_landmarks(face, shared, motion)
    world = centred + motion.translation[:, None]
    cost, information, force = _linearise_reprojection(observations, world)
    count, expressions = motion.expression.shape

    jacobian = np.zeros((count, LANDMARKS, 3, 6 + expressions))
    jacobian[..., :3] = -cross_matrices(centred) @ left_jacobian(motion.rotation)[:, None]
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
    matrix, shared_gradient = _neutral_equations(shared.scale * turn, information, force)
    return FitEquations([chain], matrix, shared_gradient, cost)


def _rotated_landmarks(
    face: LandmarkModel, shared: SharedUnknowns, motion: SequenceMotion
) -> Float64:
    """(T, L, 3) landmarks with the world's axes and unit, relative to the canonical origin."""
    canonical = shared.neutral + np.einsum("lij,tj->tli", face.expression, motion.expression)
    rotated: Float64 = shared.scale * np.einsum("tij,tlj->tli", motion.matrices, canonical)
    return rotated


def _world_landmarks(
    face: LandmarkModel, shared: SharedUnknowns, motion: SequenceMotion
) -> Float64:
    """(T, L, 3) world, metres."""
    return _rotated_landmarks(face, shared, motion) + motion.translation[:, None]


def _neutral_equations(
    by_neutral: Float64, information: Float64, force: Float64
) -> tuple[Float64, Float64]:
    """Normal equations (S, S) and gradient (S,) of the neutral landmarks.

    Args:
        by_neutral: (T, 3, 3) derivative of a world landmark by its neutral position.
        information: (T, L, 3, 3) second derivative of the cost by the world landmark.
        force: (T, L, 3) first derivative.
    """
    gradient = np.einsum("tli,tij->lj", force, by_neutral)
    blocks = np.einsum("tki,tlkj->lij", by_neutral, information @ by_neutral[:, None])
    return block_diag(*blocks), gradient.ravel()


def _linearise_reprojection(
    observations: Observations, world: Float64
) -> tuple[float, Float64, Float64]:
    """Robust reprojection cost, and its derivatives by the world landmarks (T, L, 3).

    Returns:
        cost, (T, L, 3, 3) Gauss-Newton matrix, (T, L, 3) gradient.
    """
    pixels, jacobian = project_with_jacobian(observations.projections, world)
    residual = pixels - observations.points
    robust, ratio = geman_mcclure((residual**2).sum(-1), observations.gate)
    weights = observations.weights
    weighted = (weights * ratio)[..., None, None] * jacobian
    information = np.einsum("tclki,tclkj->tlij", weighted, jacobian)
    force = np.einsum("tclki,tclk->tli", weighted, residual)
    return float(0.5 * (weights * robust).sum()), information, force


def _add_motion_prior(
    settings: FitSettings, chain: Chain, motion: SequenceMotion
) -> tuple[Chain, float]:
    """Add the priors on expression and on second differences over time; return their cost too."""
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


# --- result -------------------------------------------------------------------------------------


def _reprojection_distance(
    face: LandmarkModel, shared: SharedUnknowns, motion: SequenceMotion, observations: Observations
) -> Float64:
    """(T, C, L) pixels between the fitted landmarks and the detections."""
    pixels, _ = project_points(observations.projections, _world_landmarks(face, shared, motion))
    distances: Float64 = np.linalg.norm(pixels - observations.points, axis=-1)
    return distances


def _make_tracking(
    face: LandmarkModel, shared: SharedUnknowns, motion: SequenceMotion, observations: Observations
) -> Tracking:
    """What is written of one sequence."""
    distance = _reprojection_distance(face, shared, motion, observations)
    seen = observations.confidence > 0
    count = seen.sum(axis=2)
    error = np.where(count > 0, (distance * seen).sum(axis=2) / np.maximum(count, 1), np.nan)
    parts = (
        motion.expression,
        Rotation.from_matrix(motion.matrices).as_rotvec(),
        motion.translation,
        _world_landmarks(face, shared, motion),
        error,
    )
    return Tracking(*(part.astype(np.float32) for part in parts))
