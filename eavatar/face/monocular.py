"""The face of one ordinary video, by the equations of the multi-view fit (`eavatar.face.fit`).

One camera tells less than a rig, so some of it is assumed and some is estimated:

1. The size of a head and its distance cannot be told apart: the neutral face keeps the mean
   face's size, at the common scale of heads.
2. The focal length, unless it is given, is the most probable one, whatever face and motion are in
   some timesteps, under a prior of common lenses. The optical axis meets the middle of the image.
3. No triangulation measures the noise of the detections. It is a constant on the face, larger than
   where many views average it out: so the priors on shape, expression and motion count for more.
4. The pose of the mean face in each image starts the iteration.

Letters as in `eavatar.face.fit`, with C = 1 camera.
"""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
from scipy.spatial.transform import Rotation

from eavatar.arrays import Bool, Float64
from eavatar.cameras import Camera
from eavatar.errors import UserError
from eavatar.face.block_banded import Chain, log_determinant
from eavatar.face.fit import (
    FitEquations,
    FitEstimate,
    LandmarkModel,
    Observations,
    SequenceMotion,
    SharedUnknowns,
    landmark_model,
    linearise,
    measure_fit,
    minimise,
    read_observations,
    start_motion,
    write_fit,
)
from eavatar.face.morphable import MorphableModel
from eavatar.face.quality import write_quality
from eavatar.io import LANDMARKS, read_cameras, write_cameras
from eavatar.landmark_indices import JAW_SIDES
from eavatar.settings import FitSettings
from eavatar.transforms import Similarity

logger = logging.getLogger(__name__)

HEAD_SCALE = 0.1  # metres of a canonical unit: heads of adults differ by 5 %
SIZE_DEVIATION = 0.005  # of the neutral face, relative: it is kept
IDENTITY_WEIGHT = 2.0  # times that of many views: one view takes perspective for shape
NOISE = 0.014  # canonical units, 1.4 mm: of a detection per axis
JAW_NOISE = 3.0  # times that: a 2-D detector's jaw line slides along the contour
GATE = 0.1  # canonical units at which a detection counts a quarter
# Focal length / longer side of the image: phones have 0.7, portraits 2.4; a deviation apart.
USUAL_FOCAL, FOCAL_DEVIATION = 1.3, 0.6  # the latter of the logarithm
FOCALS = np.geomspace(0.5, 6, 8)  # that are tried, likewise
MAX_TRIED = 40  # timesteps that they are tried on
TRANSLATION = slice(3, 6)  # among the unknowns of a timestep


def fit_video(
    settings: FitSettings,
    model: MorphableModel,
    capture: Path,
    landmarks: Path,
    estimate_focal: bool,
    output: Path,
) -> Path:
    """Fit the morphable model to the landmarks that one camera saw.

    Args:
        settings: of the multi-view fit.
        model: to track with.
        capture: folder with ``cameras.json`` of the one camera, whose focal length is replaced if
            it is estimated.
        landmarks: ``<sequence>.npz`` of detections.
        estimate_focal: else that of the camera is taken.
        output: as of `eavatar.face.fit.fit_face`.

    Returns:
        ``output``.

    Raises:
        UserError: an input is missing or malformed, or most timesteps do not show a face.
    """
    weight = IDENTITY_WEIGHT * settings.identity_weight
    settings = settings.model_copy(update={"identity_weight": weight})
    ((serial, camera),) = read_cameras(capture / "cameras.json").items()
    face = landmark_model(settings, model)
    observations = _with_noise(face, read_observations(settings, landmarks, {serial: camera}))
    if estimate_focal:
        camera = _with_focal(camera, _estimate_focal(settings, face, observations, camera))
    observations = replace(observations, projections=_projections(camera))
    estimate = _fit(settings, face, observations, camera)
    quality = measure_fit(face, [observations], estimate)
    supported = float(np.mean(quality[landmarks.stem].cameras > 0))
    if supported < settings.min_supported:
        raise _no_face(landmarks, f"{supported:.0%}")
    write_fit(model, face, [observations], estimate, output)
    write_quality(output / "quality.csv", quality, least=1)
    write_cameras(capture / "cameras.json", {serial: camera})
    return output


def _no_face(landmarks: Path, fraction: str) -> UserError:
    return UserError(
        f"{landmarks.stem} shows a face in {fraction} of its timesteps; take a video of one "
        "person's face, upright and well lit, that is in the image most of the time."
    )


def _seen(observations: Observations) -> Bool:
    """(T,) whether half of the landmarks were detected."""
    seen: Bool = (observations.confidence > 0).sum(axis=(1, 2)) >= LANDMARKS // 2
    return seen


def _with_noise(face: LandmarkModel, observations: Observations) -> Observations:
    """The detections with noise and gate relative to the size of the face in the image.

    Raises:
        UserError: no timestep shows a face.
    """
    shown = np.flatnonzero(_seen(observations))
    if len(shown) == 0:
        raise _no_face(observations.path, "none")
    size = np.median([_face_size(face, observations, t) for t in shown])
    noise = np.full(observations.noise.shape, NOISE * size)
    noise[..., JAW_SIDES] *= JAW_NOISE
    return replace(observations, noise=noise, gate=GATE * size)


def _face_size(face: LandmarkModel, observations: Observations, timestep: np.int64) -> float:
    """Pixels of a canonical unit, by the affine projection that fits best."""
    seen = observations.confidence[timestep, 0] > 0
    points = np.column_stack([face.mean[seen], np.ones(seen.sum())])
    affine = np.linalg.lstsq(points, observations.points[timestep, 0][seen], rcond=None)[0]
    return float(np.linalg.svd(affine[:3], compute_uv=False).mean())


def _with_focal(camera: Camera, focal: float) -> Camera:
    intrinsics = camera.intrinsics.copy()
    intrinsics[0, 0] = intrinsics[1, 1] = focal
    return replace(camera, intrinsics=intrinsics)


def _projections(camera: Camera) -> Float64:
    """(1, 3, 4) world metres to homogeneous pixels."""
    return (camera.intrinsics @ camera.world_to_camera[:3])[None]


def _estimate_focal(
    settings: FitSettings, face: LandmarkModel, observations: Observations, camera: Camera
) -> float:
    """The most probable focal length, pixels, by the detections in some timesteps.

    What it costs is integrated over shape and motion, in Laplace's approximation: the nearer a head
    would be, the better they would be known, and the fewer of them would fit. The least cost lies
    on the parabola, over the logarithm, through the best one tried and those beside it.
    """
    shown = np.flatnonzero(_seen(observations))
    step = -(-len(shown) // MAX_TRIED)
    some = replace(
        observations,
        **{
            name: getattr(observations, name)[shown[::step]]
            for name in ("points", "confidence", "noise")
        },
    )
    # Second differences grow with the square of the time between, and their cost with its square.
    looser = settings.model_copy(update={"smoothness_weight": settings.smoothness_weight / step**4})
    longer = max(camera.width, camera.height)
    costs = []
    for relative in FOCALS:
        tried = _with_focal(camera, relative * longer)
        seen = replace(some, projections=_projections(tried))
        estimate = _fit(looser, face, seen, tried)
        equations = linearise(looser, _keep_size(face), [seen], estimate)
        prior = 0.5 * (np.log(relative / USUAL_FOCAL) / FOCAL_DEVIATION) ** 2
        costs.append(equations.cost + 0.5 * _log_precision(equations) + prior)
    best = int(np.clip(np.argmin(costs), 1, len(FOCALS) - 2))
    around = slice(best - 1, best + 2)
    square, linear, _ = np.polyfit(np.log(FOCALS[around]), costs[around], 2)
    found = np.exp(-linear / (2 * square)) if square > 0 else FOCALS[np.argmin(costs)]
    found = float(np.clip(found, FOCALS[0], FOCALS[-1]))
    logger.info("focal length %.2f times the longer side of the image", found)
    return found * longer


def _log_precision(equations: FitEquations) -> float:
    """Log-determinant of the precision of all unknowns, given the translations.

    Translations are in metres: as they are known less in a head that is farther away, integrating
    over them would favour distance.
    """
    (chain,) = equations.chains
    kept = np.delete(np.arange(chain.gradient.shape[1]), TRANSLATION)
    rest = Chain(
        chain.blocks[:, kept[:, None], kept],
        chain.next_one[:, kept],
        chain.next_two[:, kept],
        chain.border[:, kept],
        chain.gradient[:, kept],
    )
    return log_determinant([rest], equations.matrix)


def _fit(
    settings: FitSettings, face: LandmarkModel, observations: Observations, camera: Camera
) -> FitEstimate:
    """The least cost at a focal length."""
    motion = _start(face, observations, camera)
    start = FitEstimate(SharedUnknowns(face.mean, HEAD_SCALE), [motion])
    return minimise(settings, _keep_size(face), [observations], start)


def _keep_size(face: LandmarkModel) -> LandmarkModel:
    """The model whose neutral landmarks have the mean face's size."""
    outwards = face.mean - face.mean.mean(axis=0)
    size = np.linalg.norm(outwards)
    direction = outwards.ravel() / size
    precision = face.precision + np.outer(direction, direction) / (SIZE_DEVIATION * size) ** 2
    return replace(face, precision=precision)


def _start(face: LandmarkModel, observations: Observations, camera: Camera) -> SequenceMotion:
    """The poses of the mean face in the timesteps that show most of it.

    Raises:
        UserError: there is none.
    """
    turn, shift = camera.world_to_camera[:3, :3], camera.world_to_camera[:3, 3]
    poses = {}
    for t in np.flatnonzero(_seen(observations)):
        seen = observations.confidence[t, 0] > 0
        found, rotation, translation, _ = cv2.solvePnPRansac(
            HEAD_SCALE * face.mean[seen],
            observations.points[t, 0][seen],
            camera.intrinsics,
            None,
            flags=cv2.SOLVEPNP_SQPNP,
            reprojectionError=observations.gate,
        )
        if found:
            matrix = Rotation.from_rotvec(rotation[:, 0]).as_matrix()
            place = turn.T @ (translation[:, 0] - shift)
            poses[int(t)] = Similarity(1.0, turn.T @ matrix, place)
    if not poses:
        raise _no_face(observations.path, "none")
    return start_motion(poses, len(observations.points), face.expression.shape[2])
