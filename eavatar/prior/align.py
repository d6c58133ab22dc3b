"""The prior mesh into canonical space, from an unknown orientation, position and scale.

It is registered to the fitted face, around it to the generic head fitted to the subject, and to the
person's outlines in the masks (`eavatar.prior.registration`). No landmarks are sought on it: the
search fails only where half of the face or more is missing, and landmarks with it (docs/method.md).
"""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path

import numpy as np
from scipy.spatial import cKDTree

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
from eavatar.landmark_indices import CHIN
from eavatar.meshes import check_extent, drop_stray_faces, face_normals, sample_surface
from eavatar.prior.confidence import confidence
from eavatar.prior.drawing import draw_alignment
from eavatar.prior.registration import Candidate, Target, register
from eavatar.prior.silhouettes import Silhouettes, read_silhouettes
from eavatar.prior.template_fit import fit_head
from eavatar.settings import AlignSettings

logger = logging.getLogger(__name__)

# Lengths in canonical units (dm).
FACE_RADIUS = 0.3  # the face is what is this close to a landmark; more would include hair
FACE_SAMPLES, HEAD_SAMPLES = 2500, 6000  # of the target: the face four times as densely
SEAM = 0.08  # between the samples of the fitted face and those of the generic head
CONFINED = 0.8  # of the confidence in an alignment that does not fill the masks
NECK = 0.1  # below the chin, where what every prior has ends


def align_prior(
    settings: AlignSettings, seed: int, raw: Path, capture: Path, face: Path, output: Path
) -> Path:
    """Write ``aligned.ply``, ``alignment.json`` and ``alignment.png`` to a folder.

    The image is also written where the confidence is too low; then, unless the settings go on
    without a prior, it is all that is written.

    Args:
        settings: samples, and what to do with a doubtful alignment.
        seed: of the surface samples; the search itself is deterministic.
        raw: the prior in any orientation, position and scale; its axes must be right-handed.
        capture: ``results/<subject>/capture``, for cameras and masks.
        face: ``results/<subject>/face``: the fitted neutral mesh, a face or more of the head, its
            landmarks and the tracking.
        output: folder of the files.

    Returns:
        ``output``.

    Raises:
        UserError: an input is malformed, or no orientation fits well enough.
    """
    given = check_extent(read_mesh(raw), raw)
    prior = drop_stray_faces(given)
    if prior is not given:
        stray = len(given.faces) - len(prior.faces)
        logger.warning("%d faces of %s are far away from the others and left out", stray, raw)
    neutral = check_extent(read_mesh(face / "neutral.ply"), face / "neutral.ply")
    landmarks = read_arrays(Identity, face / "identity.npz").landmarks.astype(np.float64)
    outlines = read_silhouettes(capture, face)
    target = build_target(neutral, landmarks, outlines, settings.samples, seed)
    samples, _ = sample_surface(prior, settings.samples, seed)
    best, sure = _search(samples, target, settings.min_confidence, raw)
    alignment = Alignment(best.transform, best.residual, sure, sure >= settings.min_confidence)
    logger.info(
        "prior aligned: confidence %.2f, residual %.4f dm, outside the masks %.4f dm, scale %.4g",
        sure, best.residual, best.protrusion, best.transform.scale,
    )  # fmt: skip
    vertices = best.transform.apply(prior.vertices.astype(np.float64)).astype(np.float32)
    aligned = replace(prior, vertices=vertices)
    image = output / "alignment.png"
    draw_alignment(image, aligned, neutral, target, settings.samples, seed)
    if not alignment.accepted:
        _refuse(alignment, settings, raw, image)
    write_mesh(output / "aligned.ply", aligned)
    write_alignment(output / "alignment.json", alignment)
    return output


def _search(
    samples: Float64, target: Target, min_confidence: float, raw: Path
) -> tuple[Candidate, float]:
    """The best alignment of samples (N, 3), and the confidence in it.

    The masks' outlines mislead where they are of hair that the prior does not have; so a doubtful
    result has to compete with that of a search in which the masks only confine, whose confidence
    counts for less.
    """
    results = []
    confined = replace(target, outlines=target.outlines.confining())
    for goal, share in ((target, 1.0), (confined, CONFINED)):
        found = register(samples, goal)
        results += [(found[0], share * confidence(found, samples, goal))] if found else []
        if results and results[0][1] >= min_confidence:
            break
    if not results:
        raise UserError(f"{raw} cannot be aligned: its scale collapses from every start.")
    return max(results, key=lambda result: result[1])


def _refuse(alignment: Alignment, settings: AlignSettings, raw: Path, image: Path) -> None:
    """Raise `UserError`, or warn, if the settings go on without a prior."""
    reason = (
        f"{raw} does not match the fitted face and the masks in any orientation, as the confidence "
        f"{alignment.confidence:.2f} is below {settings.min_confidence} ({image} shows the best)"
    )
    if settings.on_low_confidence == "without_prior":
        logger.warning("%s; stage I goes on without a prior.", reason)
        return
    raise UserError(
        f"{reason}; check that it is a head with a face, make another one, set "
        "prior.generate.source to 'template', or prior.align.on_low_confidence to 'without_prior'."
    )


def build_target(
    face: Mesh, landmarks: Float64, outlines: Silhouettes, samples: int, seed: int
) -> Target:
    """Samples of the fitted face, and around it of the generic head fitted to it.

    Args:
        face: the fitted neutral mesh, canonical.
        landmarks: (68, 3) canonical.
        outlines: of the person in the masks.
        samples: of the mesh, of which those of the face are kept.
        seed: of the samples and their order.
    """
    points, faces = sample_surface(face, samples, seed)
    near = np.flatnonzero(cKDTree(landmarks).query(points)[0] < FACE_RADIUS)[:FACE_SAMPLES]
    if len(near) == 0:
        raise UserError(
            "the fitted neutral mesh and the neutral landmarks are apart: no part of the mesh is "
            f"within {FACE_RADIUS} dm of a landmark; run fit_face again."
        )
    points, normals = points[near], face_normals(face.vertices, face.faces)[faces[near]]
    head = fit_head(landmarks, face).mesh
    others, faces = sample_surface(head, HEAD_SAMPLES, seed)
    apart = cKDTree(points).query(others)[0] > SEAM
    points = np.concatenate([points, others[apart]])
    beside = face_normals(head.vertices, head.faces)[faces[apart]]
    on_face = np.arange(len(points)) < len(near)
    expected = on_face | (points[:, 1] > landmarks[CHIN, 1] - NECK)
    target = Target(points, np.concatenate([normals, beside]), on_face, expected, outlines)
    return target[np.random.default_rng(seed).permutation(len(points))]
