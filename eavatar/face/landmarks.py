"""2-D landmarks of every frame of a sequence, in the pixels of the ingested frames.

A backend (`eavatar.face.backends`) is a function of a sequence's `LandmarkJob` that returns points
(T, C, 68, 2), pixels of the frames, and confidence (T, C, 68) in [0, 1], 0 where a landmark was not
seen. Landmarks are the 68 of iBUG, jaw from the person's right to left. A backend whose networks
find faces, and landmarks in them, leaves the views to `detect_in_views`.
"""

from __future__ import annotations

import csv
import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from tqdm import tqdm

from eavatar.arrays import Float32, Float64, Image, Int64
from eavatar.data.images import read_rgb, resize_area
from eavatar.errors import UserError
from eavatar.face.causes import EXCHANGED_GATE, check_exchanged, gather
from eavatar.face.views import Faces, complete_faces, usable_boxes
from eavatar.io import LANDMARKS, Landmarks, read_cameras, require, write_arrays
from eavatar.settings import IngestSettings, LandmarkSettings
from eavatar.threads import make_pool

logger = logging.getLogger(__name__)

MAX_FACES = 3  # of a frame, the most certain; more are never the person that stands in the middle


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
    source_frames: Int64
    projections: Float64
    size: int


@dataclass(frozen=True)
class LandmarkJob:
    """What a backend is given.

    Attributes:
        settings: of the rule; ``settings.own`` are the backend's.
        ingest: the settings that made the frames.
        frames: of the sequence.
        landmarks: folder of detections that came with the capture, if any.
    """

    settings: LandmarkSettings
    ingest: IngestSettings
    frames: Frames
    landmarks: Path | None


def detect_landmarks(
    settings: LandmarkSettings,
    ingest: IngestSettings,
    capture: Path,
    sequence: str,
    landmarks: Path | None,
    output: Path,
) -> Path:
    """Write the landmarks of one sequence to ``output``.

    Args:
        settings: names the backend.
        ingest: the settings that made the frames.
        capture: folder of the ingested frames, their index and ``cameras.json``.
        sequence: its name.
        landmarks: folder of detections that came with the capture, for the backend `provided`.
        output: the ``.npz`` file.

    Returns:
        ``output``.

    Raises:
        UserError: an input is missing or malformed, or the detector's weights are not there.
    """
    frames = read_frames(capture, sequence)
    job = LandmarkJob(settings, ingest, frames, landmarks)
    points, confidence = settings.chosen.run(job)
    seen = (confidence > 0).any(axis=2)
    logger.info("%s: faces in %d of %d frames", sequence, seen.sum(), seen.size)
    return write_arrays(output, Landmarks(np.array(frames.serials), points, confidence))


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


# --- what backends share ------------------------------------------------------------------------


@dataclass(frozen=True)
class FaceNetwork:
    """What finds faces, and the landmarks in them.

    Attributes:
        boxes: of RGB images of one size (H, W, 3) each's faces (n, 4 or more), left, top, right,
            bottom, pixels, the most certain first.
        landmarks: of N RGB images and a box (N, 4) in each, (N, 68, 2) pixels and (N, 68)
            confidence in [0, 1].
    """

    boxes: Callable[[list[Image]], list[Float64]]
    landmarks: Callable[[list[Image], Float64], tuple[Float64, Float64]]


def detect_in_views(
    network: FaceNetwork, frames: Frames, image_size: int, batch_size: int
) -> tuple[Float32, Float32]:
    """Points (T, C, 68, 2) and confidence (T, C, 68) in every frame of all views.

    Faces that the network misses are looked for where neighbouring timesteps and other views
    say they are: see `eavatar.face.views.complete_faces`.

    Args:
        network: finds faces and landmarks.
        frames: of the sequence.
        image_size: side of the images that the network sees, at most, pixels.
        batch_size: images at once.
    """
    factor = min(image_size / frames.size, 1.0)
    batches = partial(_read_batches, frames, image_size=image_size, batch_size=batch_size)

    def locate(keys: Int64, boxes: Float64) -> tuple[Float64, Float64]:
        found = [
            network.landmarks(images, boxes[rows] * factor)
            for rows, images in batches(keys, "landmarks in missed faces")
        ]
        points, confidence = (np.concatenate(parts) for parts in zip(*found, strict=True))
        return points / factor, confidence

    used = frames.source_frames >= 0
    keys, shape = np.argwhere(used), (*used.shape, MAX_FACES)
    candidates = _find_candidates(network, batches(keys, "detecting faces"), keys, shape, factor)
    # Before views that disagree lose their faces, as all of an exchanged camera would.
    first = candidates.points[:, :, 0], candidates.confidence[:, :, 0]
    evidence = gather(*first, np.arange(len(frames.serials)), EXCHANGED_GATE * frames.size)
    check_exchanged(frames.serials, frames.projections, [evidence])
    faces = complete_faces(candidates, frames.projections, used, frames.size, locate)
    return faces.points.astype(np.float32), faces.confidence.astype(np.float32)


def _find_candidates(
    network: FaceNetwork,
    batches: Iterator[tuple[slice, list[Image]]],
    keys: Int64,
    shape: tuple[int, ...],
    factor: float,
) -> Faces:
    """The most certain faces of every frame.

    Args:
        network: finds faces and landmarks.
        batches: rows of ``keys`` and their images.
        keys: (N, 2) timestep and camera.
        shape: (T, C, K) of the result.
        factor: size of the images / size of the frames, in whose pixels the result is.
    """
    faces = Faces(
        np.zeros((*shape, 4)), np.zeros((*shape, LANDMARKS, 2)), np.zeros((*shape, LANDMARKS))
    )
    for rows, images in batches:
        found = [
            boxes[usable_boxes(boxes[:, :4], len(images[0]))][:MAX_FACES, :4]
            for boxes in network.boxes(images)
        ]
        owner = np.repeat(np.arange(len(found)), [len(boxes) for boxes in found])
        if len(owner):
            boxes = np.concatenate(found)
            points, confidence = network.landmarks([images[i] for i in owner], boxes)
            rank = np.concatenate([np.arange(len(boxes)) for boxes in found])
            at = (*keys[rows][owner].T, rank)
            faces.boxes[at], faces.points[at] = boxes / factor, points / factor
            faces.confidence[at] = confidence
    return faces


def _read_batches(
    frames: Frames, keys: Int64, purpose: str, image_size: int, batch_size: int
) -> Iterator[tuple[slice, list[Image]]]:
    """The frames at ``keys`` (N, 2), timestep and camera, as rows of ``keys`` and their images."""
    paths = [
        frames.folder / frames.serials[camera] / f"{timestep:05d}.jpg" for timestep, camera in keys
    ]
    read = partial(read_frame, size=frames.size, image_size=image_size)
    with make_pool() as pool, tqdm(total=len(keys), desc=purpose, unit="frame") as bar:
        for start in range(0, len(keys), batch_size):
            rows = slice(start, start + batch_size)
            images = list(pool.map(read, paths[rows]))
            yield rows, images
            bar.update(len(images))


def read_frame(path: Path, size: int, image_size: int) -> Image:
    """A square RGB frame of side ``size``, reduced to ``image_size`` where it is larger."""
    image = read_rgb(path)
    if image.shape != (size, size, 3):
        raise UserError(f"{path} is not an image of {size}×{size}; ingest the sequence again.")
    return np.ascontiguousarray(resize_area(image, min(image_size, size)))
