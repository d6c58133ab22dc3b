"""How far each timestep of a landmark fit can be trusted: ``quality.csv``."""

from __future__ import annotations

import csv
import logging
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from eavatar.io import atomic

logger = logging.getLogger(__name__)

Array = NDArray[np.float64]
Flags = NDArray[np.bool_]

ENOUGH_CAMERAS = 3  # two views cannot tell which of them is wrong
LARGE_RESIDUAL = 2.0  # times the median over the subject
COLUMNS = ("sequence", "timestep", "cameras", "reprojection_px", "flag")


@dataclass(frozen=True)
class Quality:
    """The timesteps of one sequence.

    Attributes:
        cameras: (T,) cameras in which most landmarks seen are within ``gate`` pixels.
        reprojection: (T,) median distance to the detections of these cameras, pixels; else NaN.
    """

    cameras: NDArray[np.int64]
    reprojection: Array


def judge(distance: Array, seen: Flags, gate: float) -> Quality:
    """Compare a fit with its detections: distances (T, C, L) to them, pixels, and those seen.

    A camera must show a quarter of the landmarks, and most of those must agree with the fit.
    """
    count = seen.sum(axis=2)
    agree = (seen & (distance < gate)).sum(axis=2)
    supporting = (4 * count >= seen.shape[2]) & (2 * agree > count)
    used = seen & supporting[..., None]
    reprojection = np.full(len(distance), np.nan)
    for t in np.flatnonzero(used.any(axis=(1, 2))):
        reprojection[t] = np.median(distance[t][used[t]])
    return Quality(supporting.sum(axis=1), reprojection)


def flags(quality: Quality, typical: float) -> list[str]:
    """'ok' or what is wrong with each timestep; ``typical`` is the subject's residual, pixels."""
    return [
        "interpolated"
        if cameras == 0
        else "few cameras"
        if cameras < ENOUGH_CAMERAS
        else "large residual"
        if residual > LARGE_RESIDUAL * typical
        else "ok"
        for cameras, residual in zip(quality.cameras, quality.reprojection, strict=True)
    ]


def write_quality(path: Path, sequences: Mapping[str, Quality]) -> None:
    """Write a row for each timestep and log how many of them are doubtful."""
    residuals = np.concatenate([each.reprojection for each in sequences.values()])
    typical = float(np.nanmedian(residuals)) if np.isfinite(residuals).any() else 0.0
    counts: Counter[str] = Counter()
    with atomic(path) as temporary, temporary.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(COLUMNS)
        for name, quality in sequences.items():
            found = flags(quality, typical)
            counts.update(found)
            columns = zip(quality.cameras, quality.reprojection, found, strict=True)
            for timestep, (cameras, residual, flag) in enumerate(columns):
                shown = "" if np.isnan(residual) else f"{residual:.3f}"
                writer.writerow((name, timestep, cameras, shown, flag))
    logger.info(
        "median reprojection error %.2f px; timesteps: %s",
        typical,
        ", ".join(f"{count} {flag}" for flag, count in counts.most_common()),
    )
