"""2-D landmarks of every frame of a sequence, in the pixels of the ingested frames.

A backend is a function from the frames of a sequence to points and confidences; `BACKENDS` lists
them. Landmarks are the 68 of iBUG (face-alignment's order), jaw from the person's right to left.
"""

from __future__ import annotations

import csv
import logging
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from eavatar.errors import UserError
from eavatar.face.network import (
    Image,
    detect_boxes,
    load_network,
    locate_landmarks,
    weights_folder,
    weights_of,
)
from eavatar.face.views import Array, Faces, Indices, complete, usable
from eavatar.io import (
    DAMAGED_ARRAY,
    LANDMARKS,
    Float,
    Landmarks,
    read_cameras,
    require,
    write_arrays,
)
from eavatar.settings import IngestSettings, LandmarkSettings

if TYPE_CHECKING:
    from face_alignment import FaceAlignment

logger = logging.getLogger(__name__)

MOST_FACES = 3  # of a frame, the most certain; more are never the person that stands in the middle


@dataclass(frozen=True)
class Frames:
    """The ingested frames of one sequence: T timesteps of C cameras.

    Attributes:
        folder: holds ``<camera>/<timestep:05d>.jpg``.
        serials: (C,) cameras, sorted.
        source_frames: (T, C) frame of the raw video; -1 where there is no frame.
        projections: (C, 3, 4) world metres to pixels of the frames.
        size: side of the square frames, pixels.
    """

    folder: Path
    serials: list[str]
    source_frames: Indices
    projections: Array
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
    projections = np.stack(
        [camera.intrinsics @ camera.world_to_camera[:3] for camera in cameras.values()]
    )
    size = cameras[serials[0]].width
    return Frames(capture / sequence, serials, source_frames, projections, size)


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
    return serials, points, confidence


# --- face_alignment -----------------------------------------------------------------------------


def face_alignment(
    settings: LandmarkSettings, ingest: IngestSettings, frames: Frames, landmarks: Path | None
) -> tuple[Float, Float]:
    """Detections of the package face-alignment (Bulat and Tzimiropoulos 2017) on every frame.

    Faces that the detector misses are looked for where neighbouring timesteps and other views
    say they are: see `eavatar.face.views.complete`.
    """
    network = load_network(settings.detector)
    factor = min(settings.image_size / frames.size, 1.0)

    def locate(keys: Indices, boxes: Array) -> tuple[Array, Array]:
        batches = read_batches(frames, keys, settings, "landmarks in missed faces")
        found = [
            locate_landmarks(network, images, boxes[rows] * factor) for rows, images in batches
        ]
        points, confidence = (np.concatenate(parts) for parts in zip(*found, strict=True))
        return points / factor, confidence

    candidates = detect_faces(network, settings, frames)
    used = frames.source_frames >= 0
    faces = complete(candidates, frames.projections, used, frames.size, locate)
    return faces.points.astype(np.float32), faces.confidence.astype(np.float32)


def detect_faces(network: FaceAlignment, settings: LandmarkSettings, frames: Frames) -> Faces:
    """The most certain faces of every frame: candidates (T, C, K) in pixels of the frames."""
    factor = min(settings.image_size / frames.size, 1.0)
    shape = (*frames.source_frames.shape, MOST_FACES)
    faces = Faces(
        np.zeros((*shape, 4)), np.zeros((*shape, LANDMARKS, 2)), np.zeros((*shape, LANDMARKS))
    )
    keys = np.argwhere(frames.source_frames >= 0)
    for rows, images in read_batches(frames, keys, settings, "detecting faces"):
        found = [
            boxes[usable(boxes[:, :4], len(images[0]))][:MOST_FACES, :4]
            for boxes in detect_boxes(network, images)
        ]
        owner = np.repeat(np.arange(len(found)), [len(boxes) for boxes in found])
        if len(owner):
            boxes = np.concatenate(found)
            points, confidence = locate_landmarks(network, [images[i] for i in owner], boxes)
            rank = np.concatenate([np.arange(len(boxes)) for boxes in found])
            at = (*keys[rows][owner].T, rank)
            faces.boxes[at], faces.points[at] = boxes / factor, points / factor
            faces.confidence[at] = confidence
    return faces


def read_batches(
    frames: Frames, keys: Indices, settings: LandmarkSettings, purpose: str
) -> Iterator[tuple[slice, list[Image]]]:
    """The frames at ``keys`` (N, 2), timestep and camera, as rows of ``keys`` and their images."""
    paths = [
        frames.folder / frames.serials[camera] / f"{timestep:05d}.jpg" for timestep, camera in keys
    ]
    read = partial(read_image, size=frames.size, image_size=settings.image_size)
    with ThreadPoolExecutor() as pool, tqdm(total=len(keys), desc=purpose, unit="frame") as bar:
        for start in range(0, len(keys), settings.batch_size):
            rows = slice(start, start + settings.batch_size)
            images = list(pool.map(read, paths[rows]))
            yield rows, images
            bar.update(len(images))


def read_image(path: Path, size: int, image_size: int) -> Image:
    """A square RGB frame of side ``size``, reduced to ``image_size`` where it is larger."""
    import cv2

    image = cv2.imread(str(require(path, "the frame")))
    if image is None or image.shape != (size, size, 3):
        raise UserError(f"{path} is not an image of {size}×{size}; ingest the sequence again.")
    if image_size < size:
        image = cv2.resize(image, (image_size, image_size), interpolation=cv2.INTER_AREA)
    return np.ascontiguousarray(image[..., ::-1], dtype=np.uint8)


def required_weights(settings: LandmarkSettings) -> list[Path]:
    """The weight files that the chosen backend reads, whether they exist or not.

    `eavatar.face.network.weights_of` tells where each can be had.
    """
    if settings.backend == "provided":
        return []
    return [weights_folder() / weight.name for weight in weights_of(settings.detector)]


Backend = Callable[
    [LandmarkSettings, IngestSettings, Frames, Path | None],
    tuple[Float, Float],
]
BACKENDS: dict[str, Backend] = {"face_alignment": face_alignment, "provided": provided}
