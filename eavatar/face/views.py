"""Faces of many calibrated views: which views agree, and where a face that was missed must be.

Letters: T timesteps, C cameras, K candidate faces in a frame, P pairs of candidates. All in the
pixels of the ingested frames; boxes are left, top, right, bottom.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from eavatar.face.triangulation import intersect, project, triangulate, view_planes

Array = NDArray[np.float64]
Mask = NDArray[np.bool_]
Indices = NDArray[np.int64]

# Two views agree on a face if half of its landmarks lie this close to where the views place them
# together, as a share of the box's side: a detector errs by 1 to 3 %, another face by over 50 %.
AGREEMENT = 0.1
VOTING = slice(None, None, 4)  # landmarks by which views are compared: 17 of all parts of a face
FACE_RADIUS = 0.02, 0.2  # metres; median distance of a face's landmarks to their middle, 0.05 m
REACH = 5  # timesteps between the detections that a box is interpolated between; 0.2 s at 24 Hz
INTERPOLATED = 0.5  # confidence of landmarks in an interpolated box: nothing saw a face there
SMALLEST = 16  # pixels; the landmark network would see a smear in smaller boxes

Locate = Callable[[Indices, Array], tuple[Array, Array]]


@dataclass(frozen=True)
class Faces:
    """Detected faces; the leading axes are (T, C, K) for candidates, (T, C) for chosen ones.

    Attributes:
        boxes: (..., 4) pixels.
        points: (..., 68, 2) pixels.
        confidence: (..., 68) in [0, 1]; all 0 = no face.
    """

    boxes: Array
    points: Array
    confidence: Array

    @property
    def found(self) -> Mask:
        """(...,) whether there is a face."""
        return np.asarray(self.confidence.max(axis=-1) > 0)

    @property
    def sides(self) -> Array:
        """(...,) geometric mean of width and height of the boxes, pixels; at least 1."""
        return np.sqrt(np.prod((self.boxes[..., 2:] - self.boxes[..., :2]).clip(1), axis=-1))

    def put(self, keys: Indices, boxes: Array, points: Array, confidence: Array) -> Faces:
        """With the faces at ``keys`` (N, 2), timestep and camera, replaced."""
        result = Faces(self.boxes.copy(), self.points.copy(), self.confidence.copy())
        at = tuple(keys.T)
        result.boxes[at], result.points[at], result.confidence[at] = boxes, points, confidence
        return result


def complete(candidates: Faces, projections: Array, used: Mask, size: int, locate: Locate) -> Faces:
    """One face per view: the one that other views confirm, else the most certain one.

    A view without a face gets the box between those of neighbouring timesteps. Where two views
    agree, every view that does not agree with them gets the box of the landmarks triangulated
    from those that do; if the face found there disagrees too, the view has none.

    Args:
        candidates: (T, C, K).
        projections: (C, 3, 4) world metres to pixels.
        used: (T, C) whether there is a frame.
        size: side of the frames, pixels.
        locate: landmarks (N, 68, 2) and confidence (N, 68) of the faces at ``keys`` (N, 2),
            timestep and camera, in boxes (N, 4).
    """
    faces = choose(candidates, agreeing(candidates, projections))
    boxes, missed = interpolated_boxes(faces.boxes, faces.found)
    keys = np.argwhere(missed & used)
    if len(keys):
        points, confidence = locate(keys, boxes[missed & used])
        faces = faces.put(keys, boxes[missed & used], points, INTERPOLATED * confidence)
    return project_faces(faces, projections, used, size, locate)


def choose(candidates: Faces, agreeing_candidates: Indices) -> Faces:
    """The agreeing candidate of each view (T, C), else that of the greatest total confidence."""
    best = candidates.confidence.sum(axis=-1).argmax(axis=-1)
    index = np.where(agreeing_candidates >= 0, agreeing_candidates, best)[..., None, None]
    return Faces(
        np.take_along_axis(candidates.boxes, index, axis=2)[:, :, 0],
        np.take_along_axis(candidates.points, index[..., None], axis=2)[:, :, 0],
        np.take_along_axis(candidates.confidence, index, axis=2)[:, :, 0],
    )


def interpolated_boxes(boxes: Array, found: Mask) -> tuple[Array, Mask]:
    """Boxes (T, C, 4) where none was found between two of a camera, and (T, C) where that is.

    Both detections lie within `REACH` timesteps of each other.
    """
    boxes, filled = boxes.copy(), np.zeros_like(found)
    for camera in range(found.shape[1]):
        known = np.flatnonzero(found[:, camera])
        for first, last in pairwise(known):
            if last - first <= REACH:
                inside = np.arange(first + 1, last)
                share = ((inside - first) / (last - first))[:, None]
                ends = boxes[first, camera], boxes[last, camera]
                boxes[inside, camera] = (1 - share) * ends[0] + share * ends[1]
                filled[inside, camera] = True
    return boxes, filled


def agreeing(candidates: Faces, projections: Array) -> Indices:
    """(T, C) the candidate that agrees with the most other views; -1 where none does."""
    timesteps, cameras = candidates.found.shape[:2]
    result = np.full((timesteps, cameras), -1)
    for timestep in range(timesteps):
        camera, candidate = np.nonzero(candidates.found[timestep])
        if len(np.unique(camera)) < 2:
            continue
        points, sides = candidates.points[timestep, :, :, VOTING], candidates.sides[timestep]
        confirmed = best_pair(
            projections[camera], camera, points[camera, candidate], sides[camera, candidate]
        )
        result[timestep, camera[confirmed]] = candidate[confirmed]
    return result


def best_pair(projections: Array, camera: Indices, points: Array, sides: Array) -> Indices:
    """The faces that agree with the best pair of faces in two cameras, one for each camera.

    Of all pairs the one wins whose landmarks, triangulated from the two, lie within `AGREEMENT`
    of the nearest face in the most cameras; the distances decide between equals.

    Args:
        projections: (N, 3, 4) of the camera of each face.
        camera: (N,) ascending.
        points: (N, L, 2) pixels.
        sides: (N,) of the boxes, pixels.

    Returns:
        Indices of faces; none where no pair agrees with itself.
    """
    first, second = np.triu_indices(len(camera), k=1)
    first, second = np.stack([first, second])[:, camera[first] != camera[second]]
    matrices, vectors = (planes[0] for planes in view_planes(projections, points[None]))
    world = intersect(matrices[first] + matrices[second], vectors[first] + vectors[second])
    pixels, depth = project(projections, world)
    distances = np.median(np.linalg.norm(pixels - points, axis=-1), axis=-1) / sides
    in_front = np.median(depth, axis=-1) > 0
    closeness = np.where(in_front, 1 - distances / AGREEMENT, 0).clip(0)
    starts = np.flatnonzero(np.diff(camera, prepend=-1))
    nearest = np.maximum.reduceat(closeness, starts, axis=1)
    pairs = np.arange(len(first))
    agrees = (closeness[pairs, first] > 0) & (closeness[pairs, second] > 0)
    agrees &= plausible(world)
    votes = np.where(agrees, (nearest > 0).sum(axis=1) + nearest.mean(axis=1), 0)
    best = int(votes.argmax())
    if votes[best] == 0:
        return np.empty(0, dtype=np.int64)
    of_camera = np.searchsorted(camera[starts], camera)
    chosen = (closeness[best] > 0) & (closeness[best] == nearest[best, of_camera])
    return np.flatnonzero(chosen)


def plausible(world: Array) -> Mask:
    """(P,) whether landmarks (P, L, 3), metres, have a face's size."""
    offsets = world - np.median(world, axis=1, keepdims=True)
    radius = np.median(np.linalg.norm(offsets, axis=-1), axis=-1)
    return np.asarray((radius > FACE_RADIUS[0]) & (radius < FACE_RADIUS[1]))


def project_faces(faces: Faces, projections: Array, used: Mask, size: int, locate: Locate) -> Faces:
    """Faces (T, C) with those of the timesteps where views agree brought to agreement."""
    single = Faces(*(array[:, :, None] for array in (faces.boxes, faces.points, faces.confidence)))
    agrees = agreeing(single, projections) >= 0
    known = np.asarray(agrees.any(axis=1))
    if not known.any():
        return faces
    distance = AGREEMENT * float(np.median(faces.sides[agrees]))
    weights = (faces.confidence * agrees[..., None])[known]
    world, certainty = triangulate(projections, faces.points[known], weights, distance)
    pixels, seen = np.zeros_like(faces.points), np.zeros(faces.confidence.shape, dtype=bool)
    pixels[known] = project(projections, world)[0]
    seen[known] = (certainty > 0)[:, None]
    boxes = landmark_boxes(pixels, seen)
    wanted = used & known[:, None] & ~agrees & usable(boxes, size)
    if wanted.any():
        keys = np.argwhere(wanted)
        faces = faces.put(keys, boxes[wanted], *locate(keys, boxes[wanted]))
    errors = np.where(seen, np.linalg.norm(faces.points - pixels, axis=-1), np.inf)
    wrong = known[:, None] & (np.median(errors, axis=-1) / faces.sides >= AGREEMENT)
    return replace(faces, confidence=np.where(wrong[..., None], 0.0, faces.confidence))


def landmark_boxes(pixels: Array, seen: Mask) -> Array:
    """(T, C, 4) the smallest boxes around the landmarks (T, C, 68, 2) that are ``seen``.

    Such boxes are what the landmark network was trained on; a detector's are about 1.1 times as
    large. Where no landmark is seen the box is turned inside out.
    """
    low = np.where(seen[..., None], pixels, np.inf).min(axis=2)
    high = np.where(seen[..., None], pixels, -np.inf).max(axis=2)
    return np.concatenate([low, high], axis=-1)


def usable(boxes: Array, size: int) -> Mask:
    """(...,) whether boxes (..., 4) have their middle in the frame and a face could be seen."""
    low, high = boxes[..., :2], boxes[..., 2:]
    large = (high - low).min(axis=-1) >= SMALLEST
    with np.errstate(invalid="ignore"):
        middle = (low + high) / 2
    return np.asarray(large & ((middle >= 0) & (middle <= size)).all(axis=-1))
