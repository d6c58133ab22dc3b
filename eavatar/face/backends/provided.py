"""Detections made elsewhere on the raw videos, in pixels of the full-size image.

``<landmarks>/<sequence>.npz`` holds ``cameras`` (C',), ``points`` (F, C', 68, 2) and ``confidence``
(F, C', 68) for all F frames of the videos.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from eavatar.arrays import Float32
from eavatar.backends import LandmarkBackend
from eavatar.errors import UserError
from eavatar.io import DAMAGED_ARRAY, LANDMARKS, read_cameras, read_lenses, require

if TYPE_CHECKING:
    from eavatar.face.landmarks import LandmarkJob


ProvidedLandmarks = tuple[list[str], NDArray[np.floating], NDArray[np.floating]]
"""Serial numbers (C',), points (F, C', 68, 2) and confidence (F, C', 68)."""
# Heat maps peak a little above 1 and below 0; percentages and scores without bounds do not fit.
CONFIDENCE = -0.5, 1.5
FULL_CAMERAS = "full_cameras.json"


def take_provided(job: LandmarkJob) -> tuple[Float32, Float32]:
    """Points (T, C, 68, 2) and confidence (T, C, 68), cropped like the frames.

    Raises:
        UserError: there is no folder, a file is missing or malformed, or of another length than the
            videos.
    """
    if job.landmarks is None:
        raise UserError(
            "the landmark backend 'provided' needs a folder of landmarks: name it in the sample "
            "sheet or choose face.landmarks.backend: face_alignment."
        )
    frames = job.frames
    path = job.landmarks / f"{frames.folder.name}.npz"
    serials, points, confidence = read_provided(path)
    lengths = job.ingest.video_lengths(int(frames.source_frames.max()))
    if not lengths[0] <= len(points) <= lengths[-1]:
        raise UserError(
            f"{path} covers {len(points)} video frames, but the videos have "
            f"{' to '.join(map(str, lengths))}; give landmarks of this recording, one row for each "
            "of its frames."
        )
    shape = (*frames.source_frames.shape, LANDMARKS)
    found_points, found = np.zeros((*shape, 2)), np.zeros(shape)
    for camera, serial in enumerate(frames.serials):
        if serial in serials:
            timesteps = np.flatnonzero(frames.source_frames[:, camera] >= 0)
            source = frames.source_frames[timesteps, camera], serials.index(serial)
            found_points[timesteps, camera] = points[source]
            found[timesteps, camera] = confidence[source]
    capture = frames.folder.parent
    full, cropped = read_cameras(capture / FULL_CAMERAS), read_cameras(capture / "cameras.json")
    lenses = read_lenses(capture / FULL_CAMERAS)
    for camera, serial in enumerate(frames.serials):
        place = found_points[:, camera]
        if serial in lenses:
            place = lenses[serial].undistort_points(place)
        found_points[:, camera] = full[serial].map_pixels(place, cropped[serial])
    found_points[found == 0] = 0
    return found_points.astype(np.float32), found.clip(0, 1).astype(np.float32)


def read_provided(path: Path) -> ProvidedLandmarks:
    """Serial numbers, points and confidence of a provided file, its shapes checked."""
    try:
        with np.load(require(path, "the provided landmark file"), allow_pickle=False) as archive:
            serials = [str(serial) for serial in archive["cameras"].ravel()]
            points, confidence = archive["points"], archive["confidence"]
    except DAMAGED_ARRAY as error:
        raise UserError(
            f"{path} is not an .npz file with cameras, points and confidence: {error}."
        ) from error
    expected = (len(points), len(serials), LANDMARKS) if points.ndim else ()
    if points.shape != (*expected, 2) or confidence.shape != expected:
        raise UserError(
            f"{path}: points have shape {points.shape} and confidence {confidence.shape}, "
            f"expected (frames, {len(serials)}, 68, 2) and (frames, {len(serials)}, 68)."
        )
    if not (np.isfinite(points).all() and np.isfinite(confidence).all()):
        raise UserError(f"{path} holds values that are not finite; mark them with confidence 0.")
    if len(set(serials)) < len(serials):
        raise UserError(f"{path} names a camera twice: {', '.join(serials)}; name each once.")
    if (
        confidence.size
        and not CONFIDENCE[0] <= confidence.min() <= confidence.max() <= CONFIDENCE[1]
    ):
        raise UserError(
            f"{path} has confidences from {confidence.min():.3g} to {confidence.max():.3g}; scale "
            "them to 0, not seen, to 1."
        )
    return serials, points, confidence


BACKEND = LandmarkBackend(
    name="provided",
    run=take_provided,
    instead="set face.landmarks.backend to another value",
    column="landmarks",
)
