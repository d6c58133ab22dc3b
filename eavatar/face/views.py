"""Faces in many calibrated views: which views agree, and where a face was missed.

Letters: T timesteps, C cameras, K candidate faces in a frame, P pairs of candidates. All in the
pixels of the ingested frames; boxes are left, top, right, bottom.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np

from eavatar.arrays import Bool, Float64, Int64
from eavatar.face.triangulation import (
    intersect_planes,
    project_points,
    triangulate,
    view_planes,
)

# Two views agree on a face if half of its landmarks lie this close to the projections of the points
# triangulated from both, as a fraction of the box's side: a detector errs by 1 to 3 %, another face
# by over 50 %.
AGREEMENT = 0.1
VOTING = slice(None, None, 4)  # landmarks by which views are compared: 17 of all parts of a face
FACE_RADIUS = 0.02, 0.2  # metres; limits of the median distance of landmarks to their median
MAX_GAP = 5  # timesteps between detections to interpolate a box between; 0.2 s at 24 Hz
INTERPOLATED_CONFIDENCE = 0.5  # factor in an interpolated box, where no face was detected
MIN_BOX = 16  # pixels; smaller boxes show the landmark network too little

Locate = Callable[[Int64, Float64], tuple[Float64, Float64]]


@dataclass(frozen=True)
class Faces:
    """Detected faces; the leading axes are (T, C, K) for candidates, (T, C) for chosen ones.

    Attributes:
        boxes: (..., 4) pixels.
        points: (..., 68, 2) pixels.
        confidence: (..., 68) in [0, 1]; all 0 = no face.
    """

    boxes: Float64
    points: Float64
    confidence: Float64

    @property
    def found(self) -> Bool:
        """(...,) whether there is a face."""
        return np.asarray(self.confidence.max(axis=-1) > 0)

    @property
    def sides(self) -> Float64:
        """(...,) geometric mean of width and height of the boxes, pixels; at least 1."""
        sides: Float64 = np.sqrt(
            np.prod((self.boxes[..., 2:] - self.boxes[..., :2]).clip(1), axis=-1)
        )
        return sides

    def put(self, keys: Int64, boxes: Float64, points: Float64, confidence: Float64) -> Faces:
        """With the faces at ``keys`` (N, 2), timestep and camera, replaced."""
        result = Faces(self.boxes.copy(), self.points.copy(), self.confidence.copy())
        at = tuple(keys.T)
        result.boxes[at], result.points[at], result.confidence[at] = boxes, points, confidence
        return result


def complete_faces(
    candidates: Faces, projections: Float64, used: Bool, size: int, locate: Locate
) -> Faces:
    """One face per view: the one that other views confirm, else the most confident one.

    A view without a face gets a box interpolated between neighbouring timesteps. Where two views
    agree, every view that does not agree with them gets the box of the landmarks triangulated
    from those that do; if the face found there disagrees too, the view has none.

    Args:
        candidates: (T, C, K) detected faces.
        projections: (C, 3, 4) world metres to pixels.
        used: (T, C) whether there is a frame.
        size: side of the frames, pixels.
        locate: landmarks (N, 68, 2) and confidence (N, 68) of the faces at ``keys`` (N, 2),
            timestep and camera, in boxes (N, 4).
    """
    faces = _choose_faces(candidates, find_agreeing(candidates, projections))
    boxes, missed = interpolate_boxes(faces.boxes, faces.found)
    keys = np.argwhere(missed & used)
    if len(keys):
        points, confidence = locate(keys, boxes[missed & used])
        faces = faces.put(keys, boxes[missed & used], points, INTERPOLATED_CONFIDENCE * confidence)
    return _correct_faces(faces, projections, used, size, locate)


def _choose_faces(candidates: Faces, agreeing_candidates: Int64) -> Faces:
    """The agreeing candidate of each view (T, C), else that of the greatest total confidence."""
    best = candidates.confidence.sum(axis=-1).argmax(axis=-1)
    index = np.where(agreeing_candidates >= 0, agreeing_candidates, best)[..., None, None]
    return Faces(
        np.take_along_axis(candidates.boxes, index, axis=2)[:, :, 0],
        np.take_along_axis(candidates.points, index[..., None], axis=2)[:, :, 0],
        np.take_along_axis(candidates.confidence, index, axis=2)[:, :, 0],
    )


def interpolate_boxes(boxes: Float64, found: Bool) -> tuple[Float64, Bool]:
    """Boxes of timesteps without a face, linearly interpolated over at most `MAX_GAP` timesteps.

    Args:
        boxes: (T, C, 4).
        found: (T, C) whether a box is one of a face.

    Returns:
        (T, C, 4) boxes and (T, C) whether a box is interpolated.
    """
    boxes, filled = boxes.copy(), np.zeros_like(found)
    for camera in range(found.shape[1]):
        known = np.flatnonzero(found[:, camera])
        for first, last in pairwise(known):
            if last - first <= MAX_GAP:
                inside = np.arange(first + 1, last)
                weight = ((inside - first) / (last - first))[:, None]
                ends = boxes[first, camera], boxes[last, camera]
                boxes[inside, camera] = (1 - weight) * ends[0] + weight * ends[1]
                filled[inside, camera] = True
    return boxes, filled


def find_agreeing(candidates: Faces, projections: Float64) -> Int64:
    """(T, C) the candidate that agrees with the most other views; -1 where none does."""
    timesteps, cameras = candidates.found.shape[:2]
    result = np.full((timesteps, cameras), -1)
    for timestep in range(timesteps):
        camera, candidate = np.nonzero(candidates.found[timestep])
        if len(np.unique(camera)) < 2:
            continue
        points, sides = candidates.points[timestep, :, :, VOTING], candidates.sides[timestep]
        confirmed = _find_best_pair(
            projections[camera], camera, points[camera, candidate], sides[camera, candidate]
        )
        result[timestep, camera[confirmed]] = candidate[confirmed]
    return result


def _find_best_pair(projections: Float64, camera: Int64, points: Float64, sides: Float64) -> Int64:
    """The consensus set of the best pair of faces in two cameras, one face for each camera.

    The best pair is the one whose landmarks, triangulated from the two, lie within `AGREEMENT` of
    the nearest face in the most cameras; the distances decide between equals.

    Args:
        projections: (N, 3, 4) of the camera of each face.
        camera: (N,) indices of cameras, ascending.
        points: (N, L, 2) pixels.
        sides: (N,) of the boxes, pixels.

    Returns:
        Int64 of faces; none where no pair agrees with itself.
    """
    first, second = np.triu_indices(len(camera), k=1)
    first, second = np.stack([first, second])[:, camera[first] != camera[second]]
    matrices, vectors = (planes[0] for planes in view_planes(projections, points[None]))
    world = intersect_planes(matrices[first] + matrices[second], vectors[first] + vectors[second])
    pixels, depth = project_points(projections, world)
    distances = np.median(np.linalg.norm(pixels - points, axis=-1), axis=-1) / sides
    in_front = np.median(depth, axis=-1) > 0
    closeness = np.where(in_front, 1 - distances / AGREEMENT, 0).clip(0)
    starts = np.flatnonzero(np.diff(camera, prepend=-1))
    nearest = np.maximum.reduceat(closeness, starts, axis=1)
    pairs = np.arange(len(first))
    agrees = (closeness[pairs, first] > 0) & (closeness[pairs, second] > 0)
    agrees &= _have_face_size(world)
    votes = np.where(agrees, (nearest > 0).sum(axis=1) + nearest.mean(axis=1), 0)
    best = int(votes.argmax())
    if votes[best] == 0:
        return np.empty(0, dtype=np.int64)
    of_camera = np.searchsorted(camera[starts], camera)
    chosen = (closeness[best] > 0) & (closeness[best] == nearest[best, of_camera])
    return np.flatnonzero(chosen)


def _have_face_size(world: Float64) -> Bool:
    """(P,) whether landmarks (P, L, 3), metres, have a face's size."""
    offsets = world - np.median(world, axis=1, keepdims=True)
    radius = np.median(np.linalg.norm(offsets, axis=-1), axis=-1)
    return np.asarray((radius > FACE_RADIUS[0]) & (radius < FACE_RADIUS[1]))


def _correct_faces(
    faces: Faces, projections: Float64, used: Bool, size: int, locate: Locate
) -> Faces:
    """Faces in which every view agrees with those that agree, or has none.

    Only at timesteps where some views agree. The arguments are those of `complete_faces`.
    """
    single = Faces(*(array[:, :, None] for array in (faces.boxes, faces.points, faces.confidence)))
    agrees = find_agreeing(single, projections) >= 0
    known = np.asarray(agrees.any(axis=1))
    if not known.any():
        return faces
    distance = AGREEMENT * float(np.median(faces.sides[agrees]))
    weights = (faces.confidence * agrees[..., None])[known]
    world, certainty = triangulate(projections, faces.points[known], weights, distance)
    pixels, seen = np.zeros_like(faces.points), np.zeros(faces.confidence.shape, dtype=bool)
    pixels[known] = project_points(projections, world)[0]
    seen[known] = (certainty > 0)[:, None]
    boxes = landmark_boxes(pixels, seen)
    wanted = used & known[:, None] & ~agrees & usable_boxes(boxes, size)
    if wanted.any():
        keys = np.argwhere(wanted)
        faces = faces.put(keys, boxes[wanted], *locate(keys, boxes[wanted]))
    errors = np.where(seen, np.linalg.norm(faces.points - pixels, axis=-1), np.inf)
    wrong = known[:, None] & (np.median(errors, axis=-1) / faces.sides >= AGREEMENT)
    return replace(faces, confidence=np.where(wrong[..., None], 0.0, faces.confidence))


def landmark_boxes(pixels: Float64, seen: Bool) -> Float64:
    """(T, C, 4) the smallest boxes around the landmarks (T, C, 68, 2) that are ``seen``.

    Such boxes are what the landmark network was trained on; a detector's are about 1.1 times as
    large. Where no landmark is seen, left is +∞ and right -∞.
    """
    low = np.where(seen[..., None], pixels, np.inf).min(axis=2)
    high = np.where(seen[..., None], pixels, -np.inf).max(axis=2)
    return np.concatenate([low, high], axis=-1)


def usable_boxes(boxes: Float64, size: int) -> Bool:
    """(...,) whether boxes (..., 4) are large enough and have their centre in the frame."""
    low, high = boxes[..., :2], boxes[..., 2:]
    large = (high - low).min(axis=-1) >= MIN_BOX
    with np.errstate(invalid="ignore"):
        middle = (low + high) / 2
    return np.asarray(large & ((middle >= 0) & (middle <= size)).all(axis=-1))
