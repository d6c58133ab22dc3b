"""The quality of a landmark fit at each timestep: ``quality.csv``."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from eavatar.arrays import Bool, Float64, Int64
from eavatar.errors import UserError
from eavatar.face.causes import say_causes
from eavatar.io import write_rows

logger = logging.getLogger(__name__)

MIN_CAMERAS = 3  # two views cannot tell which of them is wrong
MAX_RESIDUAL = 2.0  # times the median over the subject
NO_FACES = (
    "in no more than {} of them was a face found by that many; look whether the frames show one, "
    "upright, in the middle of the crop and bright enough"
)


@dataclass(frozen=True)
class QualityRow:
    """A row of ``quality.csv``: one timestep.

    Attributes:
        sequence: its name.
        timestep: index in the sequence.
        cameras: number of cameras that support the fit.
        reprojection_px: median reprojection error, three decimals; empty without such a camera.
        flag: ``ok``, ``interpolated``, ``few cameras`` or ``large residual``.
    """

    sequence: str
    timestep: int
    cameras: int
    reprojection_px: str
    flag: str


@dataclass(frozen=True)
class SequenceQuality:
    """The timesteps of one sequence.

    Attributes:
        cameras: (T,) number of cameras whose detections support the fit.
        seeing: (T,) number of cameras that show a face, whether it supports the fit or not.
        reprojection: (T,) median reprojection error in these cameras, pixels; else NaN.
    """

    cameras: Int64
    seeing: Int64
    reprojection: Float64


def measure_quality(distance: Float64, seen: Bool, gate: float) -> SequenceQuality:
    """Compare a fit with its detections.

    A camera supports the fit if it shows a quarter of the landmarks and most of those agree.

    Args:
        distance: (T, C, L) reprojection errors, pixels.
        seen: (T, C, L) whether a landmark was detected.
        gate: pixels within which a detection agrees with the fit.
    """
    count = seen.sum(axis=2)
    agree = (seen & (distance < gate)).sum(axis=2)
    seeing = 4 * count >= seen.shape[2]
    supporting = seeing & (2 * agree > count)
    used = seen & supporting[..., None]
    reprojection = np.full(len(distance), np.nan)
    for t in np.flatnonzero(used.any(axis=(1, 2))):
        reprojection[t] = np.median(distance[t][used[t]])
    return SequenceQuality(supporting.sum(axis=1), seeing.sum(axis=1), reprojection)


def check_support(
    sequences: Mapping[str, SequenceQuality], least: float, cameras: int, outvoted: Sequence[str]
) -> None:
    """Check that enough timesteps are borne out by enough cameras: of a rig of two, by both.

    Args:
        sequences: by name.
        least: fraction of all timesteps.
        cameras: of the rig.
        outvoted: those that disagree with most, for the message.

    Raises:
        UserError: they are not; of a single sequence it is a warning.
    """
    needed = min(MIN_CAMERAS, cameras)
    supporting = np.concatenate([each.cameras for each in sequences.values()])
    seeing = np.concatenate([each.seeing for each in sequences.values()])
    supported, seen = int((supporting >= needed).sum()), int((seeing >= needed).sum())
    if supported < least * len(supporting):
        causes = say_causes(outvoted) if seen >= least * len(seeing) else NO_FACES.format(seen)
        raise UserError(
            f"only {supported} of {len(supporting)} timesteps of the fit are borne out by {needed} "
            f"cameras or more: {causes}. face.fit.min_supported: 0 goes on with the fit as it is."
        )
    for name, each in sequences.items():
        supported = int((each.cameras >= needed).sum())
        if supported < least * len(each.cameras):
            logger.warning(
                "%s: only %d of %d timesteps are borne out by %d cameras or more; look at it, or "
                "leave it out with capture.ingest.exclude",
                *(name, supported, len(each.cameras), needed),
            )


def _find_flags(quality: SequenceQuality, typical: float, least: int) -> list[str]:
    """'ok' or what is wrong with each timestep; ``typical`` is the subject's median, pixels."""
    return [
        "interpolated"
        if cameras == 0
        else "few cameras"
        if cameras < least
        else "large residual"
        if residual > MAX_RESIDUAL * typical
        else "ok"
        for cameras, residual in zip(quality.cameras, quality.reprojection, strict=True)
    ]


def write_quality(
    path: Path, sequences: Mapping[str, SequenceQuality], least: int = MIN_CAMERAS
) -> Path:
    """Write a row for each timestep and log how many have which flag.

    Args:
        path: the file.
        sequences: by name.
        least: cameras below which they are few.

    Returns:
        ``path``.
    """
    residuals = np.concatenate([each.reprojection for each in sequences.values()])
    typical = float(np.nanmedian(residuals)) if np.isfinite(residuals).any() else 0.0
    rows = []
    for name, quality in sequences.items():
        columns = zip(
            quality.cameras, quality.reprojection, _find_flags(quality, typical, least), strict=True
        )
        for timestep, (cameras, residual, flag) in enumerate(columns):
            shown = "" if np.isnan(residual) else f"{residual:.3f}"
            rows.append(QualityRow(name, timestep, int(cameras), shown, flag))
    counts = Counter(row.flag for row in rows)
    logger.info(
        "median reprojection error %.2f px; timesteps: %s",
        typical,
        ", ".join(f"{count} {flag}" for flag, count in counts.most_common()),
    )
    return write_rows(path, rows)
