"""A driver for reenactment from one ordinary video: `track-video`."""

from __future__ import annotations

import logging
import math
import shlex
from contextlib import suppress
from pathlib import Path

from eavatar.capture.own_video import CAMERA, ingest_video
from eavatar.errors import UserError
from eavatar.face.landmarks import detect_landmarks
from eavatar.face.monocular import fit_video
from eavatar.face.morphable import read_morphable_model
from eavatar.io import read_cameras, replace_folder
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
        output: the folder, whose ``capture`` and ``face`` are replaced once all has succeeded.

    Returns:
        ``output``.

    Raises:
        UserError: an input is missing or malformed, the video shows no face, or the output holds
            other results.
    """
    if not video.is_file():
        raise UserError(f"the video {video} does not exist; name a video file.")
    if focal is not None and not 0 < focal < math.inf:
        raise UserError(f"--focal {focal:g} is no focal length; give pixels above 0.")
    places = output / "capture", output / "face"
    _check_places(*places)
    model = read_morphable_model(morphable_model)  # a fault of it is told before the work
    backend = config.face.landmarks
    if landmarks is not None:
        backend = LandmarkSettings(backend="provided")
    backend.chosen.load(backend.own)  # missing weights are told before the work, too
    is_new = not output.exists()
    try:
        with replace_folder(places[0]) as capture, replace_folder(places[1]) as face:
            ingest = ingest_video(video, RATE, config.capture.ingest.image_size, focal, capture)
            found = face / "landmarks" / f"{video.stem}.npz"
            detect_landmarks(backend, ingest, capture, video.stem, landmarks, found)
            fit_video(config.face.fit, model, capture, found, focal is None, face)
    except BaseException:
        if is_new:
            with suppress(OSError):  # it was never made, or holds something
                output.rmdir()
        raise
    words = shlex.join(["--driver", str(output), "--sequence", video.stem])
    logger.info("%s is ready; it moves an avatar with: eavatar reenact … %s", output, words)
    return output


def _check_places(capture: Path, face: Path) -> None:
    """Raise `UserError` where replacing both folders would remove something else than a driver."""
    cameras = capture / "cameras.json"
    is_driver = cameras.exists() and list(read_cameras(cameras)) == [CAMERA]
    if not is_driver and (capture.exists() or face.exists()):
        raise UserError(
            f"{capture.parent} holds other results than those of a video; name a new folder."
        )
