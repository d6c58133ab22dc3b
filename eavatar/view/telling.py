"""Telling expressions of a person, found in what was tracked, and the strongest coefficients.

Nothing is picked by hand: an expression is the training timestep at which the landmarks depart
farthest from rest in one way. Letters: T timesteps, E expression coefficients.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.spatial.transform import Rotation

from eavatar.arrays import Float32, Float64
from eavatar.io import Tracking
from eavatar.landmark_indices import (
    CHIN,
    LEFT_BROW,
    LEFT_EYE,
    LIPS,
    NOSE_BASE,
    OUTER_LIP_CORNERS,
    RIGHT_BROW,
    RIGHT_EYE,
)

# Canonical units, 2 mm: what is seen from afar. Of two heads' expressions the weakest that was
# acted departs by 3.2 mm; one head never moves its mouth to a side, and has 1.4 mm there.
MIN_DEPARTURE = 0.02
EYE_CORNERS = [eye[corner] for eye in (RIGHT_EYE, LEFT_EYE) for corner in (0, 3)]
LIDS = [  # upper and lower, which face one another
    (eye[upper], eye[lower]) for eye in (RIGHT_EYE, LEFT_EYE) for upper, lower in ((1, 5), (2, 4))
]
X, Y = 0, 1  # canonical axes: to the person's left, and up

Measure = Callable[[Float64], Float64]
"""Canonical landmarks (T, 68, 3) to how far each timestep has something, (T,) canonical units."""


@dataclass(frozen=True)
class Telling:
    """A timestep that shows an expression.

    Attributes:
        name: of the expression.
        sequence: where it was tracked.
        timestep: index there.
    """

    name: str
    sequence: str
    timestep: int


@dataclass(frozen=True)
class Component:
    """An expression coefficient.

    Attributes:
        index: among the E.
        limit: largest departure from its median that was tracked, rounded up to tenths of a
            standard deviation.
    """

    index: int
    limit: float


def find_telling(tracks: Mapping[str, Tracking], scale: float) -> list[Telling]:
    """Rest, and those expressions that the tracking has.

    Args:
        tracks: of the training sequences by name.
        scale: canonical units to metres.
    """
    landmarks = np.concatenate([_to_canonical(track, scale) for track in tracks.values()])
    places = [(name, step) for name, track in tracks.items() for step in range(len(track))]
    departures = np.linalg.norm(landmarks - np.median(landmarks, axis=0), axis=2).mean(axis=1)
    found = [Telling("At rest", *places[departures.argmin()])]
    for name, measure in MEASURES.items():
        values = measure(landmarks)
        if values.max() - np.median(values) > MIN_DEPARTURE:
            found.append(Telling(name, *places[values.argmax()]))
    return found


def strongest_components(
    tracks: Mapping[str, Tracking], basis: Float32, most: int
) -> list[Component]:
    """The coefficients that move the face most in the tracking, the strongest first.

    Args:
        tracks: of the training sequences by name.
        basis: (V, 3, E) canonical displacements, of a standard deviation each.
        most: how many at most.
    """
    expression = np.concatenate([track.expression for track in tracks.values()])
    motion = expression.std(axis=0) * np.sqrt((basis**2).sum(axis=1).mean(axis=0))
    departures = np.abs(expression - np.median(expression, axis=0)).max(axis=0)
    limits = np.ceil(10 * departures) / 10
    strongest = [index for index in motion.argsort()[::-1][:most].tolist() if motion[index] > 0]
    return [Component(index, float(limits[index])) for index in strongest]


def _to_canonical(track: Tracking, scale: float) -> Float64:
    """The landmarks (T, 68, 3) without head pose."""
    head = Rotation.from_rotvec(track.rotation).as_matrix()
    turned = track.landmarks - track.translation[:, None]
    landmarks: Float64 = np.einsum("tji,tlj->tli", head, turned) / scale
    return landmarks


def _distance(landmarks: Float64, first: int, second: int) -> Float64:
    distance: Float64 = np.linalg.norm(landmarks[:, first] - landmarks[:, second], axis=1)
    return distance


def _mean(landmarks: Float64, chosen: Sequence[int], axis: int) -> Float64:
    mean: Float64 = landmarks[:, chosen, axis].mean(axis=1)
    return mean


def _jaw(landmarks: Float64) -> Float64:
    return _distance(landmarks, CHIN, NOSE_BASE)


def _width(landmarks: Float64) -> Float64:
    return _distance(landmarks, *OUTER_LIP_CORNERS)


def _smile(landmarks: Float64) -> Float64:
    raised = _mean(landmarks, OUTER_LIP_CORNERS, Y) - _mean(landmarks, [NOSE_BASE], Y)
    return raised + _width(landmarks) / 2


def _mouth_to_left(landmarks: Float64) -> Float64:
    return _mean(landmarks, LIPS, X) - _mean(landmarks, [NOSE_BASE], X)


def _left_over_right_corner(landmarks: Float64) -> Float64:
    right, left = OUTER_LIP_CORNERS
    return _mean(landmarks, [left], Y) - _mean(landmarks, [right], Y)


def _brows(landmarks: Float64) -> Float64:
    return _mean(landmarks, RIGHT_BROW + LEFT_BROW, Y) - _mean(landmarks, EYE_CORNERS, Y)


def _lids(landmarks: Float64) -> Float64:
    lids: Float64 = np.mean([_distance(landmarks, *pair) for pair in LIDS], axis=0)
    return lids


def _less(measure: Measure) -> Measure:
    return lambda landmarks: -measure(landmarks)


MEASURES: dict[str, Measure] = {
    "Jaw open": _jaw,
    "Smile": _smile,
    "Lips pursed": _less(_width),
    "Mouth left": _mouth_to_left,
    "Mouth right": _less(_mouth_to_left),
    "Left corner up": _left_over_right_corner,
    "Right corner up": _less(_left_over_right_corner),
    "Brows up": _brows,
    "Brows down": _less(_brows),
    "Eyes closed": _less(_lids),
}
