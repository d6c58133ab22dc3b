"""Whether 68 points in space are the landmarks of a face, in iBUG's order.

Morphable models and detectors come with lists of landmarks that other people made: counted from
another number, in another order, or with left and right exchanged. A fit takes all of them, and
the face is wrong by centimetres or by a few millimetres. The limits are wide enough for any
convention of where the jaw line lies and for faces from child to adult, since the size is free.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from eavatar.arrays import Float64
from eavatar.landmark_indices import MIRROR
from eavatar.transforms import Similarity, fit_similarity

# Mean of ICT-FaceKit's faces (MIT), made symmetric: millimetres from the centroid, y up, z forward.
AVERAGE_FACE = np.array([
    (-74, 39, -58), (-73, 18, -55), (-69, -2, -49), (-66, -21, -43),
    (-57, -42, -33), (-43, -59, -21), (-31, -67, -7), (-15, -70, 8),
    (0, -73, 10), (15, -70, 8), (31, -67, -7), (43, -59, -21),
    (57, -42, -33), (66, -21, -43), (69, -2, -49), (73, 18, -55),
    (74, 39, -58), (-58, 55, -15), (-49, 62, -4), (-38, 65, 4),
    (-24, 65, 10), (-12, 62, 13), (12, 62, 13), (24, 65, 10),
    (38, 65, 4), (49, 62, -4), (58, 55, -15), (0, 40, 13),
    (0, 29, 21), (0, 19, 29), (0, 7, 36), (-13, -9, 14),
    (-6, -9, 20), (0, -9, 21), (6, -9, 20), (13, -9, 14),
    (-45, 37, -8), (-39, 41, -1), (-28, 42, 1), (-18, 35, -2),
    (-27, 33, 0), (-39, 33, -2), (18, 35, -2), (28, 42, 1),
    (39, 41, -1), (45, 37, -8), (39, 33, -2), (27, 33, 0),
    (-25, -33, 8), (-17, -25, 18), (-7, -22, 23), (0, -22, 24),
    (7, -22, 23), (17, -25, 18), (25, -33, 8), (18, -38, 15),
    (10, -40, 20), (0, -41, 21), (-10, -40, 20), (-18, -38, 15),
    (-22, -32, 7), (-10, -30, 17), (0, -31, 18), (10, -30, 17),
    (22, -32, 7), (11, -31, 16), (0, -31, 18), (-11, -31, 16),
], dtype=np.float64)  # fmt: skip
MILLIMETRES_PER_UNIT = 100.0  # canonical
# Landmarks so far apart, millimetres, lie one way round in every face: eyelids are 8 apart, lips
# may touch.
MIN_ORDERED = 8.0
# From the place in an average face, millimetres: conventions of the jaw line differ by 30 (on the
# bone, or where the outline is seen from the front).
MAX_DISPLACEMENT = 40.0
# Between a landmark and the mirror image of its counterpart, millimetres: of one, and the median.
# Means of scanned faces are symmetric to a millimetre, lists picked by hand to a few.
MAX_ASYMMETRY, MAX_MEDIAN_ASYMMETRY = 15.0, 4.0

FIRST, SECOND = np.triu_indices(len(AVERAGE_FACE), 1)
BETWEEN = AVERAGE_FACE[SECOND] - AVERAGE_FACE[FIRST]


def place_average_face(landmarks: Float64) -> Similarity:
    """What takes the average face to landmarks (68, 3), in their unit."""
    return fit_similarity(AVERAGE_FACE, landmarks)


def find_asymmetry(landmarks: Float64) -> Float64:
    """(68,) distances of landmarks to the mirror images of their counterparts, in their unit."""
    image = landmarks[list(MIRROR)] * (-1.0, 1.0, 1.0)
    placed = fit_similarity(image, landmarks, with_scale=False).apply(image)
    distances: Float64 = np.linalg.norm(placed - landmarks, axis=1)
    return distances


def count_turned_pairs(landmarks: Float64, min_distance: float) -> int:
    """How many pairs of landmarks (68, 3) lie the other way round than in an average face.

    Args:
        landmarks: of any unit and pose.
        min_distance: of the pairs that count, in an average face, millimetres.
    """
    placed = place_average_face(landmarks).inverse().apply(landmarks)
    return int(_turned_pairs(placed, min_distance).sum())


def _turned_pairs(placed: Float64, min_distance: float) -> NDArray[np.bool_]:
    """Which pairs `FIRST`, `SECOND` of landmarks on the average face lie the other way round."""
    along: Float64 = ((placed[SECOND] - placed[FIRST]) * BETWEEN).sum(axis=1)
    turned: NDArray[np.bool_] = (along <= 0) & (np.linalg.norm(BETWEEN, axis=1) >= min_distance)
    return turned


def find_layout_fault(landmarks: Float64) -> str | None:
    """Why landmarks (68, 3) of any unit and pose are not a face's in iBUG order, or None.

    The clause numbers landmarks from 1, as iBUG does.
    """
    placed = place_average_face(landmarks).inverse().apply(landmarks)
    turned = _turned_pairs(placed, MIN_ORDERED)
    if turned.any():
        counts = np.bincount(np.concatenate([FIRST[turned], SECOND[turned]]), minlength=68)
        return f"landmark {counts.argmax() + 1} lies on the wrong side of others"
    distance = np.linalg.norm(placed - AVERAGE_FACE, axis=1)
    if distance.max() > MAX_DISPLACEMENT:
        return (
            f"landmark {distance.argmax() + 1} lies {distance.max():.0f} mm from its place in an "
            "average face"
        )
    asymmetry = find_asymmetry(placed)
    if asymmetry.max() > MAX_ASYMMETRY or np.median(asymmetry) > MAX_MEDIAN_ASYMMETRY:
        worst = int(asymmetry.argmax())
        first, second = sorted((worst + 1, MIRROR[worst] + 1))
        return f"landmarks {first} and {second} are {asymmetry.max():.0f} mm from mirror images"
    return None
