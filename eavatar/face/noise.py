"""A noise model of landmark detections, estimated from triangulation residuals.

A detector's confidence ranks its errors but is not calibrated. The standard deviation of a
detection is modelled as a product: typical noise × a factor of its confidence × one of its
landmark × one of its camera. Each is a median of the distances between detections and triangulated
landmarks, so neither the morphable model nor outliers enter. Landmarks that slide along the
contour, as 2-D detectors mark the jaw line, and cameras that disagree with the others thus lose
weight.

Letters: T timesteps, C cameras, L = 68 landmarks, N detections.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from eavatar.arrays import Float64, Int64
from eavatar.io import LANDMARKS

CONFIDENCE_BINS = 10
RAYLEIGH_MEDIAN = 1.1774  # median distance for a standard deviation of 1 per axis
PRIOR_COUNT = 100.0  # pseudo-observations of the expected noise
MIN_NOISE = 0.1  # of the expected noise; below it the model's own error dominates
SWEEPS = 3  # of coordinate descent over confidence, landmarks and cameras


@dataclass(frozen=True)
class Residuals:
    """Residuals of a sequence's detections, of landmarks that at least three views see.

    Attributes:
        distance: (N,) to the triangulated landmark, pixels.
        confidence: (N,).
        landmark: (N,) indices.
        camera: (N,) indices.
    """

    distance: Float64
    confidence: Float64
    landmark: Int64
    camera: Int64


@dataclass(frozen=True)
class NoiseModel:
    """Standard deviation of detections per axis, pixels.

    Attributes:
        typical: of all detections.
        edges: (B - 1,) confidences between the bins.
        by_confidence: (B,) factors.
        by_landmark: (L,) factors.
        by_camera: (number of cameras,) factors.
    """

    typical: float
    edges: Float64
    by_confidence: Float64
    by_landmark: Float64
    by_camera: Float64

    def __call__(self, confidence: Float64, cameras: Int64) -> Float64:
        """(T, C, L) noise of detections with these confidences (T, C, L), by cameras (C,)."""
        factor = self.by_confidence[np.searchsorted(self.edges, confidence, side="right")]
        return self.typical * factor * self.by_landmark * self.by_camera[cameras][:, None]


def collect_residuals(
    distance: Float64, confidence: Float64, cameras: Int64, gate: float
) -> Residuals:
    """The residuals of one sequence, corrected for the degrees of freedom of triangulation.

    Args:
        distance: (T, C, L) of detections to the projected landmarks, pixels.
        confidence: (T, C, L), 0 = not seen.
        cameras: (C,) indices of the sequence's cameras.
        gate: pixels from which on a detection is left out.
    """
    used = (confidence > 0) & (distance < gate)
    views = used.sum(axis=1, keepdims=True)
    used &= views >= 3
    # n views give 2 n residuals; the position takes three degrees of freedom
    corrected = distance * np.sqrt(2 * views / np.maximum(2 * views - 3, 1))
    _, camera, landmark = np.nonzero(used)
    return Residuals(corrected[used], confidence[used], landmark, cameras[camera])


def calibrate_noise(parts: list[Residuals], expected: float, cameras: int) -> NoiseModel:
    """The noise model that explains the residuals of all sequences.

    `PRIOR_COUNT` pseudo-observations shrink it to the expected noise, equal for all.

    Args:
        parts: residuals of each sequence.
        expected: standard deviation per axis, pixels.
        cameras: number of cameras.
    """
    distance = np.concatenate([part.distance for part in parts]) / RAYLEIGH_MEDIAN
    confidence = np.concatenate([part.confidence for part in parts])
    landmark = np.concatenate([part.landmark for part in parts])
    camera = np.concatenate([part.camera for part in parts])
    inner = np.linspace(0, 1, CONFIDENCE_BINS + 1)[1:-1]
    edges = np.unique(np.quantile(confidence, inner)) if len(distance) else np.zeros(0)
    bins = np.searchsorted(edges, confidence, side="right")
    typical = expected * float(_group_medians(np.zeros_like(landmark), distance / expected, 1)[0])
    groups = [(bins, len(edges) + 1), (landmark, LANDMARKS), (camera, cameras)]
    found = [np.ones(count) for _, count in groups]
    explained = np.full(len(distance), typical)
    for _ in range(SWEEPS):
        for number, (group, count) in enumerate(groups):
            change = _group_medians(group, distance / explained, count)
            explained = explained * change[group]
            found[number] *= change
    return NoiseModel(max(typical, MIN_NOISE * expected), edges, *found)


def _group_medians(group: Int64, ratio: Float64, count: int) -> Float64:
    """Median ratio of each group, shrunk to 1 by `PRIOR_COUNT` pseudo-observations, (count,).

    Args:
        group: (N,) indices of groups.
        ratio: (N,) residuals over what is explained so far.
        count: number of groups.
    """
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
