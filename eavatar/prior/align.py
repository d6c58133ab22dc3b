"""Similarity ICP: the prior mesh into canonical space, from an unknown orientation and scale.

The fitted face may be a small part of the prior, and a face alone matches a head in many wrong
places. So the search first registers complete heads: the fitted face completed by the generic
head, against the prior. Only then is the face itself, which is most accurate, registered to the
prior; in that direction hair, neck and shoulders do not contribute. Starts are ranked by a
symmetric clipped distance, because one-sided fitness rewards shrinking.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from scipy.spatial import cKDTree
from scipy.spatial.transform import Rotation
from tqdm import tqdm

from eavatar.arrays import Float64
from eavatar.errors import UserError
from eavatar.io import (
    Alignment,
    Identity,
    Mesh,
    read_arrays,
    read_mesh,
    write_alignment,
    write_mesh,
)
from eavatar.meshes import sample_surface
from eavatar.prior.open3d_loader import import_open3d
from eavatar.prior.template_fit import fit_head
from eavatar.settings import AlignSettings
from eavatar.transforms import Similarity

logger = logging.getLogger(__name__)

# Lengths in canonical units (dm).
ROTATIONS = Rotation.create_group("I")  # 60 turns; no orientation is over 45° from all of them
SCALES = (0.8, 1.25)  # initial ones, as factors of the ratio of the sizes
MAX_SCALE_CHANGE = 1.5  # factor; a start that ICP scales by more has diverged
START_SAMPLES = 1000  # of each head during the search
START_STAGES = ((0.5, 15), (0.25, 15))  # correspondence distance, maximum of iterations
REFINED_STARTS = 4  # best starts, which are refined
HEAD_STAGES = ((0.4, 30), (0.2, 30))
FINE_SAMPLES = 4000  # of the head, and of the face, during refinement
FACE_STAGES = ((0.3, 40), (0.2, 40), (0.1, 60), (0.05, 60))
FACE_RADIUS = 0.3  # the face is what is this close to a landmark; more would include hair
MAX_DISTANCE = 0.3  # at which distances are clipped in the ranking


@dataclass(frozen=True)
class AlignmentTarget:
    """What the prior is registered to, canonical.

    Attributes:
        face: (N, 3) samples of the fitted neutral mesh near the landmarks.
        head: (M, 3) samples of the generic head fitted to it.
    """

    face: Float64
    head: Float64


def align_prior(
    settings: AlignSettings, seed: int, raw: Path, identity: Path, neutral: Path, output: Path
) -> Path:
    """Write ``aligned.ply`` and ``alignment.json`` to a folder.

    Args:
        settings: samples and thresholds of a good alignment.
        seed: of the surface samples; the search itself is deterministic.
        raw: the prior in any orientation, position and scale; its axes must be right-handed.
        identity: ``face/identity.npz``, for the neutral landmarks.
        neutral: ``face/neutral.ply``: the fitted neutral mesh, a face or more of the head.
        output: folder of the two files.

    Returns:
        ``output``.

    Raises:
        UserError: an input is malformed, or no orientation fits well enough.
    """
    prior = _check_extent(read_mesh(raw), raw)
    face = _check_extent(read_mesh(neutral), neutral)
    landmarks = read_arrays(Identity, identity).landmarks.astype(np.float64)
    target = _build_target(face, landmarks, settings.samples, seed)
    samples, _ = sample_surface(prior, settings.samples, seed)
    transform = _search(samples, target)
    alignment = measure_alignment(transform, samples, target, settings.inlier_distance)
    logger.info(
        "prior aligned: fitness %.3f, rmse %.4f dm, scale %.4g",
        alignment.fitness, alignment.inlier_rmse, transform.scale,
    )  # fmt: skip
    _check_quality(alignment, settings, raw)
    vertices = transform.apply(prior.vertices.astype(np.float64)).astype(np.float32)
    write_mesh(output / "aligned.ply", replace(prior, vertices=vertices))
    write_alignment(output / "alignment.json", alignment)
    return output


def _check_extent(mesh: Mesh, path: Path) -> Mesh:
    """``mesh`` if its vertices are finite and span a volume, else a `UserError`."""
    used = mesh.vertices[np.unique(mesh.faces)]
    if not np.isfinite(used).all() or np.linalg.matrix_rank(used - used.mean(axis=0)) < 3:
        raise UserError(
            f"{path} is no usable mesh: its vertices must be finite and not in a plane."
        )
    return mesh


def _check_quality(alignment: Alignment, settings: AlignSettings, raw: Path) -> None:
    """Raise `UserError` unless the alignment is as good as the settings want."""
    if alignment.fitness < settings.min_fitness or alignment.inlier_rmse > settings.max_rmse:
        raise UserError(
            f"{raw} does not match the fitted face in any orientation: {alignment.fitness:.0%} of "
            f"the face is within {settings.inlier_distance} dm of it (at least "
            f"{settings.min_fitness:.0%} wanted), at an rmse of {alignment.inlier_rmse:.3f} dm "
            f"(at most {settings.max_rmse}); check that it is one upright or turned, complete, "
            "unmirrored head, or set prior.generate.source to 'template'."
        )


def _build_target(face: Mesh, landmarks: Float64, samples: int, seed: int) -> AlignmentTarget:
    """Samples of the fitted face and of the generic head fitted to it.

    Args:
        face: the fitted neutral mesh, canonical.
        landmarks: (68, 3) canonical.
        samples: of the mesh, of which those of the face are kept.
        seed: of the samples.
    """
    points, _ = sample_surface(face, samples, seed)
    near = cKDTree(landmarks).query(points)[0] < FACE_RADIUS
    if not near.any():
        raise UserError(
            "the fitted neutral mesh and the neutral landmarks are apart: no part of the mesh is "
            f"within {FACE_RADIUS} dm of a landmark; run fit_face again."
        )
    head = fit_head(landmarks, face).mesh
    return AlignmentTarget(points[near][:FINE_SAMPLES], sample_surface(head, FINE_SAMPLES, seed)[0])


def _search(prior: Float64, target: AlignmentTarget) -> Similarity:
    """The similarity from the prior's frame to canonical space.

    Args:
        prior: (N, 3) samples in the prior's frame.
        target: what it is registered to.
    """
    few = prior[:START_SAMPLES], target.head[:START_SAMPLES]
    tried: list[tuple[float, int, Similarity]] = []
    for start in tqdm(_initial_alignments(prior, target.head), desc="align_prior", unit="start"):
        found = _icp(*few, start, START_STAGES)
        if 1 / MAX_SCALE_CHANGE < found.scale / start.scale < MAX_SCALE_CHANGE:
            tried.append(
                (symmetric_distance(found.apply(few[0]), few[1], few[1]), len(tried), found)
            )
    if not tried:
        raise UserError("the prior cannot be aligned: its scale collapses from every start.")
    refined = [
        _refine_alignment(prior, target, found) for _, _, found in sorted(tried)[:REFINED_STARTS]
    ]
    several = prior[:FINE_SAMPLES]
    return min(
        refined,
        key=lambda found: symmetric_distance(found.apply(several), target.face, target.head),
    )


def _initial_alignments(prior: Float64, head: Float64) -> list[Similarity]:
    """Every rotation and scale, with the medians of both heads' samples (N, 3) together."""
    prior_centre, head_centre = np.median(prior, axis=0), np.median(head, axis=0)
    size = np.linalg.norm(head - head_centre, axis=1).mean()
    ratio = size / np.linalg.norm(prior - prior_centre, axis=1).mean()
    return [
        Similarity(scale * ratio, turn, head_centre - scale * ratio * turn @ prior_centre)
        for scale in SCALES
        for turn in ROTATIONS.as_matrix()
    ]


def _refine_alignment(prior: Float64, target: AlignmentTarget, start: Similarity) -> Similarity:
    """Refine a coarse alignment: complete heads first, then the face alone.

    Args:
        prior: (N, 3) samples in the prior's frame.
        target: what it is registered to.
        start: the coarse alignment.
    """
    rough = _icp(prior[:FINE_SAMPLES], target.head, start, HEAD_STAGES)
    moved = rough.apply(prior)
    distance, _ = cKDTree(target.face).query(moved)
    around = moved[distance < 2 * FACE_STAGES[0][0]]
    if len(around) == 0:
        return rough
    # The face is the source: each of its points has a correspondence on the prior, hair has none.
    identity = Similarity(1.0, np.eye(3), np.zeros(3))
    return _icp(target.face, around, identity, FACE_STAGES).inverse().compose(rough)


def _icp(
    source: Float64, target: Float64, start: Similarity, stages: tuple[tuple[float, int], ...]
) -> Similarity:
    """Open3D's point-to-point ICP with scale.

    Args:
        source: (N, 3) points to move.
        target: (M, 3) fixed points.
        start: initial similarity.
        stages: largest distance of correspondences and number of iterations, in order.
    """
    open3d = import_open3d()
    registration = open3d.pipelines.registration
    clouds = [
        open3d.geometry.PointCloud(open3d.utility.Vector3dVector(points))
        for points in (source, target)
    ]
    matrix = start.matrix
    for distance, iterations in stages:
        result = registration.registration_icp(
            *clouds, distance, matrix,
            registration.TransformationEstimationPointToPoint(with_scaling=True),
            registration.ICPConvergenceCriteria(1e-6, 1e-6, iterations),
        )  # fmt: skip
        matrix = np.asarray(result.transformation)
    scale = float(np.cbrt(np.linalg.det(matrix[:3, :3])))
    return Similarity(scale, matrix[:3, :3] / scale, matrix[:3, 3].copy())


def symmetric_distance(prior: Float64, observed: Float64, expected: Float64) -> float:
    """Mean clipped distance of observed points to the prior plus that of the prior to a head, dm.

    Args:
        prior: (N, 3) samples, canonical.
        observed: (M, 3) samples of the fitted face or head, canonical.
        expected: (K, 3) samples of a complete head, canonical.
    """
    there, _ = cKDTree(prior).query(observed, distance_upper_bound=MAX_DISTANCE)
    back, _ = cKDTree(expected).query(prior, distance_upper_bound=MAX_DISTANCE)
    return float(np.minimum(there, MAX_DISTANCE).mean() + np.minimum(back, MAX_DISTANCE).mean())


def measure_alignment(
    transform: Similarity, prior: Float64, target: AlignmentTarget, inlier_distance: float
) -> Alignment:
    """Fitness and RMSE of an alignment.

    Args:
        transform: from the prior's frame to canonical space.
        prior: (N, 3) samples in the prior's frame.
        target: what it is registered to.
        inlier_distance: largest distance of a correspondence, dm.
    """
    distance, _ = cKDTree(transform.apply(prior)).query(target.face)
    inliers = distance[distance < inlier_distance]
    rmse = float(np.sqrt((inliers**2).mean())) if len(inliers) else float("inf")
    return Alignment(transform, len(inliers) / len(distance), rmse)
