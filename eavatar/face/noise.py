"""What a detection's error is, learned from how well the views of a landmark agree.

A detector's confidence ranks its errors but is not one. The noise of a detection is taken as a
product: typical noise × a factor of its confidence × one of its landmark × one of its camera. Each
is the median of the distances between detections and the triangulated landmarks, so neither the
morphable model nor outliers enter. Landmarks that slide along the contour, as 2-D detectors mark
the jaw line, and cameras that do not fit the others thus lose their weight.

Letters: T timesteps, C cameras, L = 68 landmarks, N detections.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from eavatar.io import LANDMARKS

Array = NDArray[np.float64]
Integers = NDArray[np.int64]

CONFIDENCE_BINS = 10
RAYLEIGH_MEDIAN = 1.1774  # median distance for a deviation of 1 per axis
PRIOR_COUNT = 100.0  # detections that the expected noise counts for
LEAST_NOISE = 0.1  # of the expected noise: below it the model's own error decides
SWEEPS = 3  # over confidence, landmarks and cameras


@dataclass(frozen=True)
class Residuals:
    """Detections of a sequence that at least three views bear out.

    Attributes:
        distance: (N,) to the triangulated landmark, pixels.
        confidence: (N,).
        landmark, camera: (N,) indices.
    """

    distance: Array
    confidence: Array
    landmark: Integers
    camera: Integers


@dataclass(frozen=True)
class NoiseModel:
    """Deviation of detections per axis, in pixels.

    Attributes:
        typical: of all detections.
        edges: (B - 1,) confidences between the bins.
        by_confidence, by_landmark, by_camera: (B,), (L,) and (number of cameras,) factors.
    """

    typical: float
    edges: Array
    by_confidence: Array
    by_landmark: Array
    by_camera: Array

    def __call__(self, confidence: Array, cameras: Integers) -> Array:
        """(T, C, L) noise of detections with these confidences (T, C, L), by cameras (C,)."""
        factor = self.by_confidence[np.searchsorted(self.edges, confidence, side="right")]
        return self.typical * factor * self.by_landmark * self.by_camera[cameras][:, None]


def collect_residuals(
    distance: Array, confidence: Array, cameras: Integers, gate: float
) -> Residuals:
    """The distances of one sequence below ``gate`` pixels, freed of the triangulation's fit.

    Args:
        distance, confidence: (T, C, L). cameras: (C,) numbers of the sequence's cameras.
    """
    used = (confidence > 0) & (distance < gate)
    views = used.sum(axis=1, keepdims=True)
    used &= views >= 3
    # n views give 2 n residuals, of which three were spent on the position
    freed = distance * np.sqrt(2 * views / np.maximum(2 * views - 3, 1))
    _, camera, landmark = np.nonzero(used)
    return Residuals(freed[used], confidence[used], landmark, cameras[camera])


def calibrate_noise(parts: list[Residuals], expected: float, cameras: int) -> NoiseModel:
    """The noise that explains the residuals of all sequences.

    Where there are few, it is drawn to the ``expected`` noise, pixels, and to no differences.
    """
    distance = np.concatenate([part.distance for part in parts]) / RAYLEIGH_MEDIAN
    confidence = np.concatenate([part.confidence for part in parts])
    landmark = np.concatenate([part.landmark for part in parts])
    camera = np.concatenate([part.camera for part in parts])
    inner = np.linspace(0, 1, CONFIDENCE_BINS + 1)[1:-1]
    edges = np.unique(np.quantile(confidence, inner)) if len(distance) else np.zeros(0)
    bins = np.searchsorted(edges, confidence, side="right")
    typical = expected * float(factors(np.zeros_like(landmark), distance / expected, 1)[0])
    groups = [(bins, len(edges) + 1), (landmark, LANDMARKS), (camera, cameras)]
    found = [np.ones(count) for _, count in groups]
    explained = np.full(len(distance), typical)
    for _ in range(SWEEPS):
        for number, (group, count) in enumerate(groups):
            change = factors(group, distance / explained, count)
            explained = explained * change[group]
            found[number] *= change
    return NoiseModel(max(typical, LEAST_NOISE * expected), edges, *found)


def factors(group: Integers, ratio: Array, count: int) -> Array:
    """Median of the ratios (N,) of each group, drawn to 1 where a group has few, (count,)."""
    order = np.argsort(group, kind="stable")
    parts = np.split(ratio[order], np.searchsorted(group[order], np.arange(1, count)))
    return np.array(
        [
            (len(part) * np.median(part) + PRIOR_COUNT) / (len(part) + PRIOR_COUNT)
            if len(part)
            else 1.0
            for part in parts
        ]
    )
