"""Portrait crops of a rig's cameras, found from the landmarks of whole images: `find-crops`.

Landmarks are triangulated at some timesteps of all sequences; each makes a sphere around the head,
and a camera's crop is the square around all of its spheres.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

from eavatar.arrays import Float64
from eavatar.cameras import Camera
from eavatar.capture.captures import open_capture
from eavatar.capture.ingest import calibrate, ingest
from eavatar.capture.layouts import Layout, recognise
from eavatar.capture.plain import CAMERAS, CROPS, write_crops
from eavatar.capture.recording import check_videos
from eavatar.errors import UserError
from eavatar.face.landmarks import detect_landmarks
from eavatar.face.layout import AVERAGE_FACE
from eavatar.face.triangulation import triangulate
from eavatar.io import Landmarks, read_arrays, read_cameras
from eavatar.settings import IngestSettings, LandmarkSettings
from eavatar.transforms import Similarity, fit_similarity

logger = logging.getLogger(__name__)

TIMESTEPS = 32  # of all sequences together, at least one of each
IMAGE_SIZE = 1024  # of the whole image's longer side; detectors gain nothing by more
OUTLIER_DISTANCE = 0.01  # of the image's side, as face.fit.outlier_distance of the default settings
MIN_LANDMARKS = 30  # that two cameras see; a half profile has as many
# The sphere around a head, millimetres from the landmarks' centroid (right, up, forward) and in
# radius: on two heads the crop of a still one is then 2490 to 2680 of NeRSemble's pixels wide, and
# Gaussian Head Avatar's 2600.
CENTRE, RADIUS = (0.0, 25.0, -60.0), 165.0


def find_crops(settings: LandmarkSettings, landmarks: Path | None, capture: Path) -> Path:
    """Write ``crops.json`` into a capture of the plain layout.

    Args:
        settings: name the landmark backend.
        landmarks: folder of detections made elsewhere, for the backend `provided`.
        capture: the folder.

    Returns:
        the path of ``crops.json``.

    Raises:
        UserError: the capture is of another layout or faulty, or no face is seen by two cameras.
    """
    if recognise(capture) is not Layout.PLAIN:
        raise UserError(
            f"{capture} is not in the plain layout of docs/own_rigs.md; the settings crop others."
        )
    faces: list[Similarity] = []
    raw = open_capture(capture)
    lengths = {
        name: min(header.frames for header in headers.values())
        for name, headers in check_videos(raw, list(raw.frames)).items()
    }
    for sequence, frames in lengths.items():
        every = max(1, frames * len(lengths) // TIMESTEPS)
        faces += _find_faces(settings, landmarks, capture, sequence, every)
    if not faces:
        raise UserError(
            f"{capture}: no face was seen by two cameras that agree; check the calibration, or "
            f"write {CROPS} by hand: [left, top, side] of each camera."
        )
    crops = {name: _surround(camera, faces) for name, camera in raw.cameras.items()}
    logger.info("%s: crops around %d faces", capture / CROPS, len(faces))
    return write_crops(capture / CROPS, crops)


def _find_faces(
    settings: LandmarkSettings, landmarks: Path | None, capture: Path, sequence: str, every: int
) -> list[Similarity]:
    """Where the average face is at some timesteps of a sequence, in the world.

    The whole images are ingested for that, padded to squares, into a folder of their own.
    """
    with TemporaryDirectory() as folder:
        raw, whole = Path(folder, "raw"), Path(folder, "capture")
        (raw / "sequences").mkdir(parents=True)
        (raw / CAMERAS).symlink_to((capture / CAMERAS).resolve())
        (raw / "sequences" / sequence).symlink_to((capture / "sequences" / sequence).resolve())
        cameras = open_capture(raw).cameras
        write_crops(raw / CROPS, {name: _pad(camera) for name, camera in cameras.items()})
        own = _ingest_settings(cameras, every)
        calibrate(own, raw, whole)
        ingest(own, raw, sequence, whole)
        path = Path(folder, f"{sequence}.npz")
        detect_landmarks(settings, own, whole, sequence, landmarks, path)
        found, frames = read_arrays(Landmarks, path), read_cameras(whole / "cameras.json")
    projections = np.stack([c.intrinsics @ c.world_to_camera[:3] for c in frames.values()])
    points, confidence = found.points.astype(np.float64), found.confidence.astype(np.float64)
    distance = OUTLIER_DISTANCE * own.image_size
    world, weight = triangulate(projections, points, confidence, distance)
    return [
        fit_similarity(AVERAGE_FACE[seen], face[seen])
        for face, seen in zip(world, weight > 0, strict=True)
        if seen.sum() >= MIN_LANDMARKS
    ]


def _pad(camera: Camera) -> tuple[int, int, int]:
    """The square around a whole image: left, top and side."""
    side = max(camera.width, camera.height)
    return (camera.width - side) // 2, (camera.height - side) // 2, side


def _ingest_settings(cameras: Mapping[str, Camera], every: int) -> IngestSettings:
    longer = max(max(camera.width, camera.height) for camera in cameras.values())
    return IngestSettings(
        sequences=("*",),
        exclude=(),
        held_out=(),
        cameras=("*",),
        every=every,
        crop_origin=(0, 0),
        crop_size=longer,
        image_size=min(IMAGE_SIZE, longer),
        jpeg_quality=95,
        colour_correction=False,
    )


def _surround(camera: Camera, faces: list[Similarity]) -> tuple[int, int, int]:
    """The square around the spheres of heads: left, top and side, full-size pixels.

    It is that of the whole image for a camera that has some of them behind it.
    """
    centres: Float64 = np.concatenate([face.apply(np.array([CENTRE])) for face in faces])
    middle, depth = camera.project(centres)
    if depth.min() <= 0:
        return _pad(camera)
    radius = np.array([face.scale * RADIUS for face in faces]) * camera.intrinsics[0, 0] / depth
    low, high = (middle - radius[:, None]).min(axis=0), (middle + radius[:, None]).max(axis=0)
    side = int(np.ceil((high - low).max()))
    left, top = np.round((low + high - side) / 2).astype(int).tolist()
    return left, top, side
