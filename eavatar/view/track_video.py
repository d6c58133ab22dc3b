"""A driver for reenactment from one ordinary video: `track-video`."""

from __future__ import annotations

import logging
import math
from pathlib import Path

from eavatar.capture.own_video import ingest_video
from eavatar.errors import UserError
from eavatar.face.landmarks import detect_landmarks
from eavatar.face.monocular import fit_video
from eavatar.settings import Config, LandmarkSettings
from eavatar.view.player import RATE

logger = logging.getLogger(__name__)


def track_video(
    config: Config,
    video: Path,
    morphable_model: Path,
    landmarks: Path | None,
    focal: float | None,
    output: Path,
) -> Path:
    """Write ``capture`` and ``face`` of a results folder, which `reenact` takes as driver.

    Its one sequence is called as the video's file, its camera `eavatar.capture.own_video.CAMERA`.

    Args:
        config: gives the landmark backend, the largest frame and the fit's weights.
        video: of one person.
        morphable_model: the model to track with; it may differ from the avatar's.
        landmarks: folder of detections made elsewhere; None to detect them.
        focal: focal length, pixels of the upright video; None to estimate it.
        output: the folder.

    Returns:
        ``output``.

    Raises:
        UserError: an input is missing or malformed, or the video shows no face.
    """
    if not video.is_file():
        raise UserError(f"the video {video} does not exist; name a video file.")
    if focal is not None and not 0 < focal < math.inf:
        raise UserError(f"--focal {focal:g} is no focal length; give pixels above 0.")
    capture, face = output / "capture", output / "face"
    ingest = ingest_video(video, RATE, config.capture.ingest.image_size, focal, capture)
    backend = config.face.landmarks
    if landmarks is not None:
        backend = LandmarkSettings(backend="provided")
    found = face / "landmarks" / f"{video.stem}.npz"
    detect_landmarks(backend, ingest, capture, video.stem, landmarks, found)
    fit_video(config.face.fit, morphable_model, capture, found, focal is None, face)
    logger.info("%s is ready; use it as a driver: eavatar reenact --driver %s", output, output)
    return output
