"""2-D landmarks of every frame of a sequence, in the pixels of the ingested frames.

A backend is a function from the frames of a sequence to points and confidences; `BACKENDS` lists
them. Landmarks are the 68 of iBUG (face-alignment's order), jaw from the person's right to left.
"""

from __future__ import annotations

import csv
import logging
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from eavatar.errors import UserError
from eavatar.io import LANDMARKS, Float, Landmarks, read_cameras, require, write_arrays
from eavatar.settings import IngestSettings, LandmarkSettings

if TYPE_CHECKING:
    from face_alignment import FaceAlignment

logger = logging.getLogger(__name__)

# Where face-alignment 1.5.0 looks for its weights, by detector: $TORCH_HOME/hub/checkpoints/…
LANDMARK_WEIGHTS = "3DFAN4-7835d9f11d.pth.tar"
DETECTOR_WEIGHTS = {
    "sfd": ("s3fd-619a316812.pth",),
    "blazeface": ("blazeface.pth", "anchors.npy"),
}


@dataclass(frozen=True)
class Frames:
    """The ingested frames of one sequence: T timesteps of C cameras.

    Attributes:
        folder: holds ``<camera>/<timestep:05d>.jpg``.
        serials: (C,) cameras, sorted.
        source_frames: (T, C) frame of the raw video; -1 where there is no frame.
        size: side of the square frames, pixels.
    """

    folder: Path
    serials: list[str]
    source_frames: NDArray[np.int64]
    size: int


def detect_landmarks(
    settings: LandmarkSettings,
    ingest: IngestSettings,
    capture: Path,
    sequence: str,
    landmarks: Path | None,
    output: Path,
) -> None:
    """Write the landmarks of one sequence to ``output``.

    Args:
        capture: folder of the ingested frames, their index and ``cameras.json``.
        landmarks: folder of detections that came with the capture, for the backend `provided`.
        output: the ``.npz`` file.

    Raises:
        UserError: an input is missing or malformed, or the detector's weights are not there.
    """
    frames = read_frames(capture, sequence)
    points, confidence = BACKENDS[settings.backend](settings, ingest, frames, landmarks)
    seen = (confidence > 0).any(axis=2)
    logger.info("%s: faces in %d of %d frames", sequence, seen.sum(), seen.size)
    write_arrays(output, Landmarks(np.array(frames.serials), points, confidence))


def read_frames(capture: Path, sequence: str) -> Frames:
    """The frames that the index of a sequence lists."""
    cameras = read_cameras(capture / "cameras.json")
    serials = list(cameras)
    index = capture / f"{sequence}.csv"
    with require(index, "the index of the sequence").open(newline="") as file:
        rows = list(csv.DictReader(file))
    try:
        keys = [(int(row["timestep"]), serials.index(row["camera"])) for row in rows]
        sources = [int(row["source_frame"]) for row in rows]
    except (KeyError, ValueError, TypeError) as error:
        raise UserError(
            f"{index} does not fit cameras.json or is damaged ({error}); ingest the sequence again."
        ) from error
    if not keys:
        raise UserError(f"{index} lists no frames; ingest the sequence again.")
    source_frames = np.full((max(keys)[0] + 1, len(serials)), -1, dtype=np.int64)
    source_frames[tuple(np.transpose(keys))] = sources
    return Frames(capture / sequence, serials, source_frames, cameras[serials[0]].width)


# --- provided -----------------------------------------------------------------------------------


def provided(
    settings: LandmarkSettings, ingest: IngestSettings, frames: Frames, landmarks: Path | None
) -> tuple[Float, Float]:
    """Detections made elsewhere on the raw videos, in pixels of the full-size image.

    ``<landmarks>/<sequence>.npz`` holds ``cameras`` (C',), ``points`` (F, C', 68, 2) and
    ``confidence`` (F, C', 68) for all F frames of the videos.
    """
    if landmarks is None:
        raise UserError(
            "the landmark backend 'provided' needs a folder of landmarks: name it in the sample "
            "sheet or choose face.landmarks.backend: face_alignment."
        )
    path = landmarks / f"{frames.folder.name}.npz"
    serials, points, confidence = read_provided(path)
    if frames.source_frames.max() >= len(points):
        raise UserError(
            f"{path} covers {len(points)} video frames, but frame {frames.source_frames.max()} "
            "is used; give landmarks for the whole video."
        )
    shape = (*frames.source_frames.shape, LANDMARKS)
    found_points, found = np.zeros((*shape, 2)), np.zeros(shape)
    for camera, serial in enumerate(frames.serials):
        if serial in serials:
            timesteps = np.flatnonzero(frames.source_frames[:, camera] >= 0)
            source = frames.source_frames[timesteps, camera], serials.index(serial)
            found_points[timesteps, camera] = points[source]
            found[timesteps, camera] = confidence[source]
    found_points = (found_points - ingest.crop_origin) * (frames.size / ingest.crop_size)
    found_points[found == 0] = 0
    return found_points.astype(np.float32), found.clip(0, 1).astype(np.float32)


def read_provided(path: Path) -> tuple[list[str], NDArray[np.floating], NDArray[np.floating]]:
    """Serial numbers, points and confidence of a provided file, its shapes checked."""
    try:
        with np.load(require(path, "the provided landmark file"), allow_pickle=False) as archive:
            serials = [str(serial) for serial in archive["cameras"].ravel()]
            points, confidence = archive["points"], archive["confidence"]
    except (OSError, ValueError, KeyError, EOFError, AttributeError, zipfile.BadZipFile) as error:
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
    return serials, points, confidence


# --- face_alignment -----------------------------------------------------------------------------


def face_alignment(
    settings: LandmarkSettings, ingest: IngestSettings, frames: Frames, landmarks: Path | None
) -> tuple[Float, Float]:
    """Detections of the package face-alignment (Bulat and Tzimiropoulos 2017) on every frame."""
    network = load_network(settings.detector)
    shape = (*frames.source_frames.shape, LANDMARKS)
    points, confidence = np.zeros((*shape, 2), np.float32), np.zeros(shape, np.float32)
    used = np.argwhere(frames.source_frames >= 0)
    for timestep, camera in tqdm(used, desc="detecting landmarks", unit="frame"):
        path = frames.folder / frames.serials[camera] / f"{timestep:05d}.jpg"
        found = detect_face(network, path, settings.image_size)
        if found is not None:
            points[timestep, camera], confidence[timestep, camera] = found
    return points, confidence


def detect_face(network: FaceAlignment, path: Path, image_size: int) -> tuple[Float, Float] | None:
    """Points (68, 2) in pixels of the frame and confidence (68,) of its most certain face."""
    import cv2

    image = cv2.imread(str(require(path, "the frame")))
    if image is None:
        raise UserError(f"{path} is not a readable image; ingest the sequence again.")
    factor = min(image_size / image.shape[1], 1.0)
    small = cv2.resize(image, None, fx=factor, fy=factor, interpolation=cv2.INTER_AREA)
    faces, scores, _ = network.get_landmarks_from_image(
        cv2.cvtColor(small, cv2.COLOR_BGR2RGB), return_bboxes=True, return_landmark_score=True
    )
    if not faces:
        return None
    best = int(np.argmax([score.sum() for score in scores]))
    # the package truncates to whole pixels: on average that takes half a pixel
    points = (faces[best][:, :2] + 0.5) / factor
    return points.astype(np.float32), np.clip(scores[best], 0, 1).astype(np.float32)


def load_network(detector: str) -> FaceAlignment:
    """The landmark network, after a check that it need not download anything."""
    import torch

    folder = Path(torch.hub.get_dir()) / "checkpoints"
    for name in (LANDMARK_WEIGHTS, *DETECTOR_WEIGHTS[detector]):
        if not (folder / name).is_file():
            raise UserError(
                f"face-alignment's weight file {name} is missing: put it into {folder}, or set "
                "face.landmarks.backend: provided and give landmarks in the sample sheet."
            )
    from face_alignment import FaceAlignment, LandmarksType

    # TWO_HALF_D gives the image positions of THREE_D, whose extra network only adds a depth that
    # many views make needless; TWO_D would slide along the contour in side views.
    return FaceAlignment(
        LandmarksType.TWO_HALF_D,
        device="cuda" if torch.cuda.is_available() else "cpu",
        flip_input=False,
        face_detector=detector,
        compile=False,
    )


Backend = Callable[
    [LandmarkSettings, IngestSettings, Frames, Path | None],
    tuple[Float, Float],
]
BACKENDS: dict[str, Backend] = {"face_alignment": face_alignment, "provided": provided}
