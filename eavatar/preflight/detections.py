"""Whether provided landmarks fit the capture: its crop, its calibration, and a face.

Pixels of another size, another order of landmarks or another take give a fit that looks well by its
own measure. The calibration tells: rays of one landmark must meet, and 68 of them make a head.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from eavatar.arrays import Float64, Int64
from eavatar.cameras import Camera
from eavatar.face.layout import MILLIMETRES_PER_UNIT, count_turned_pairs, place_average_face
from eavatar.face.triangulation import intersect_planes, project_points, triangulate, view_planes
from eavatar.transforms import Similarity

SAMPLES = 8  # timesteps that are triangulated, spread over the sequence
MIN_INSIDE = 0.5  # fraction of the detections in the crop; heads of the published one fill it
# Median distance of detections to the landmark that all of a timestep agree on, as a fraction of
# the crop: 0.003 for usual detectors, 0.006 for coarse ones; 0.011 and more in pixels of another
# size. Two views agree on anything.
MAX_DISAGREEMENT, MIN_VIEWS = 0.01, 3
# The same of one camera beside the others: no detector is off by the width of an eye, but the fit
# leaves such a camera out by itself.
MAX_CAMERA_DISAGREEMENT = 0.05
ROBUST_VIEWS = 5  # from which on one camera can be told from the others
MIN_ORDERED = 20.0  # millimetres; eyes and lips close, and detections err by millimetres
# Mean cosine between where a face looks and where its cameras are: 0 where they stand all around.
# Mirrored images make a face that looks away.
MIN_FRONTALITY = 0.3


@dataclass(frozen=True)
class Sight:
    """What the cameras of a capture show of the head, in pixels of the full-size image.

    Attributes:
        cameras: C calibrated cameras.
        origin: left and top of the crop.
        side: of the crop.
        image_size: side of the frames that the crop is resized to, pixels.
        stored_size: width and height of the stored images.
        head_scale: smallest and largest head, metres of a canonical unit.
    """

    cameras: Sequence[Camera]
    origin: tuple[float, float]
    side: float
    image_size: int
    stored_size: tuple[int, int]
    head_scale: tuple[float, float]

    @property
    def projections(self) -> Float64:
        """(C, 3, 4) world metres to pixels."""
        return np.stack([camera.intrinsics @ camera.world_to_camera[:3] for camera in self.cameras])


def find_detection_fault(sight: Sight, points: Float64, confidence: Float64) -> str | None:
    """What tells that detections are not of these cameras' videos, a clause; None if nothing does.

    Args:
        sight: of C cameras.
        points: (T, C, 68, 2) pixels of the full-size image.
        confidence: (T, C, 68), 0 = not seen.
    """
    seen = confidence > 0
    if not seen.any():
        return "no landmark has a confidence above 0"
    faces = seen.all(axis=2)
    if faces.any() and (np.ptp(points[faces], axis=1) == 0).all(axis=1).any():
        return "faces lie in one point; mark what was not found by confidence 0"
    used = _sample(seen)
    if not len(used):
        return None
    given, weights = points[used], confidence[used].clip(0, 1)
    fault = _find_fault(sight, given, weights)
    if fault is None:
        return None
    fitting = {
        cause: _measure_disagreement(sight, other, weights)
        for cause, other in _corrections(sight, given).items()
        if _find_fault(sight, other, weights) is None
    }
    return f"{fault}; they seem to be {min(fitting, key=fitting.__getitem__)}" if fitting else fault


def find_odd_cameras(sight: Sight, points: Float64, confidence: Float64) -> list[int]:
    """Indices of cameras whose detections are far from what the others agree on.

    Args:
        sight: of C cameras.
        points: (T, C, 68, 2) pixels of the full-size image.
        confidence: (T, C, 68), 0 = not seen.
    """
    used = _sample(confidence > 0)
    if len(sight.cameras) < ROBUST_VIEWS or not len(used):
        return []
    given, weights = points[used], confidence[used].clip(0, 1)
    world, _ = triangulate(sight.projections, given, weights, MAX_DISAGREEMENT * sight.side)
    distance = np.linalg.norm(project_points(sight.projections, world)[0] - given, axis=-1)
    limit = MAX_CAMERA_DISAGREEMENT * sight.side
    return [
        camera
        for camera in range(len(sight.cameras))
        if (weights[:, camera] > 0).any()
        and np.median(distance[:, camera][weights[:, camera] > 0]) > limit
    ]


def _sample(seen: NDArray[np.bool_]) -> Int64:
    """Up to `SAMPLES` timesteps, evenly among those where two cameras or more see a face."""
    usable = np.flatnonzero(seen.any(axis=2).sum(axis=1) >= 2)
    picks = np.linspace(0, len(usable) - 1, min(SAMPLES, len(usable))).astype(int)
    used: Int64 = usable[picks]
    return used


def _find_fault(sight: Sight, points: Float64, weights: Float64) -> str | None:
    return _find_place_fault(sight, points, weights) or _find_head_fault(sight, points, weights)


def _find_place_fault(sight: Sight, points: Float64, weights: Float64) -> str | None:
    """Whether detections lie outside the crop, or their rays do not meet."""
    seen = weights > 0
    from_middle = np.abs(points[seen] - np.add(sight.origin, sight.side / 2))
    fraction = (from_middle <= sight.side / 2).all(axis=-1).mean()
    if fraction < MIN_INSIDE:
        return f"{1 - fraction:.0%} of the points lie outside the crop of the images"
    disagreement = _measure_disagreement(sight, points, weights)
    much = MAX_DISAGREEMENT * sight.side
    if disagreement > much:
        return (
            f"the cameras' rays to a landmark miss each other by {disagreement:.0f} pixels, where "
            f"{much:.0f} are much"
        )
    return None


def _measure_disagreement(sight: Sight, points: Float64, weights: Float64) -> float:
    """Median distance of detections to the landmark nearest to all rays, pixels; 0 if unknown."""
    many = (weights > 0) & ((weights > 0).sum(axis=1, keepdims=True) >= MIN_VIEWS)
    if not many.any():
        return 0.0
    matrices, vectors = view_planes(sight.projections, points)
    world = intersect_planes(
        np.einsum("tcl,tclij->tlij", weights, matrices),
        np.einsum("tcl,tcli->tli", weights, vectors),
    )
    distance = np.linalg.norm(project_points(sight.projections, world)[0] - points, axis=-1)
    return float(np.median(distance[many]))


def _find_head_fault(sight: Sight, points: Float64, weights: Float64) -> str | None:
    """Whether triangulated landmarks make no face in iBUG's order, or one of another size."""
    distance = MAX_DISAGREEMENT * sight.side
    world, total = triangulate(sight.projections, points, weights, distance)
    faces = world[(total > 0).all(axis=1)]
    if not len(faces):
        return None
    if np.mean([count_turned_pairs(face, MIN_ORDERED) > 0 for face in faces]) > 0.5:
        return "they are not in iBUG's order, from the person's right to the left"
    placed = [place_average_face(face) for face in faces]
    if np.median([_frontality(sight, face) for face in placed]) < -MIN_FRONTALITY:
        return "they make a face that looks away from the cameras, as in mirrored images"
    scale = MILLIMETRES_PER_UNIT * np.median([face.scale for face in placed])
    low, high = sight.head_scale
    if not low < scale < high:
        return (
            f"with the calibration they make a head of {scale:.3g} m to the unit, outside "
            f"face.fit.head_scale {low:g} to {high:g} (of adults; a setting)"
        )
    return None


def _frontality(sight: Sight, face: Similarity) -> float:
    """Mean cosine between where a face looks and where the cameras are."""
    towards = np.stack([camera.centre for camera in sight.cameras]) - face.translation
    lengths = np.linalg.norm(towards, axis=1)
    return float((towards @ face.rotation[:, 2] / lengths).mean())


def _corrections(sight: Sight, points: Float64) -> dict[str, Float64]:
    """Detections in pixels of the full-size image, if they were given as the key says."""
    full = sight.cameras[0].width, sight.cameras[0].height
    width, height = sight.stored_size
    return {
        f"in pixels of the stored {width}×{height} images": points
        * np.divide(full, (width, height)),
        f"in pixels of the cropped {sight.image_size}×{sight.image_size} frames": points
        * (sight.side / sight.image_size)
        + sight.origin,
        "in pixels of the crop": points + sight.origin,
        "in pixels of images of half the size": points * 2,
        "fractions of the image's sides": points * full,
        "y before x": points[..., ::-1],
    }
