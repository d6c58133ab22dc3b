"""Captures in the layout of NeRSemble v2.

    calibration/camera_params.json        world_2_cam per serial number, one shared intrinsics
    calibration/color_calibration.json    colour matrix per serial number (optional)
    sequences/<sequence>/images/cam_<serial>.mp4
    sequences/BACKGROUND/image_<serial>.jpg    plates without the subject (optional)

Layout and conventions: github.com/tobias-kirschstein/nersemble-data. Another layout is another
function that returns the same `Capture`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from eavatar.cameras import Camera
from eavatar.capture.colour import TERMS
from eavatar.capture.video import Header, read_header
from eavatar.errors import UserError
from eavatar.io import read_json

Array = NDArray[np.float64]

FULL_WIDTH, FULL_HEIGHT = 2200, 3208  # the pixels that NeRSemble's intrinsics refer to
SIZE_TOLERANCE = 3  # pixels; a video of a scaled image is rounded to even sizes
RIGID_TOLERANCE = 1e-3  # of the entries of RᵀR; published calibrations are rounded to float32


@dataclass(frozen=True)
class Capture:
    """The raw recording of a subject: calibration in memory, images by path.

    Attributes:
        root: the capture's folder.
        cameras: serial number to camera, in full-size pixels whatever the size of the images.
        colours: serial number to (3, terms) colour matrix; empty if there is no calibration.
        videos: sequence to serial number to video; every sequence has every camera.
        plates: serial number to the image without the subject; may be empty.
    """

    root: Path
    cameras: Mapping[str, Camera]
    colours: Mapping[str, Array]
    videos: Mapping[str, Mapping[str, Path]]
    plates: Mapping[str, Path]


def open_capture(root: Path) -> Capture:
    """Read the calibration and list the images of a NeRSemble v2 capture; no image is read.

    Raises:
        UserError: a file is missing or malformed, or a camera is not rigid.
    """
    sequences = root / "sequences"
    if not sequences.is_dir():
        raise UserError(f"{root} is not a NeRSemble v2 capture: it has no folder 'sequences'.")
    cameras = _read_cameras(root / "calibration" / "camera_params.json")
    folders = sorted(path for path in sequences.glob("*/images") if path.is_dir())
    videos = {folder.parent.name: _by_serial(folder, "cam_*.mp4") for folder in folders}
    if not videos:
        raise UserError(f"{sequences} holds no sequence (<sequence>/images/cam_<serial>.mp4).")
    colours = _read_colours(root / "calibration" / "color_calibration.json", cameras)
    plates = _by_serial(sequences / "BACKGROUND", "image_*.jpg")
    return Capture(root, cameras, colours, videos, plates)


def check_videos(capture: Capture, sequences: Sequence[str]) -> dict[str, Header]:
    """Check that the videos of some sequences are complete and agree; give each sequence's header.

    Fast: only containers are opened (see `read_header`).

    Raises:
        UserError: a sequence that the capture lacks, a camera without a video or the reverse, a
            truncated video, a size that is not that
            of the full image scaled down, or videos of different sizes or lengths.
    """
    headers: dict[str, Header] = {}
    for sequence in sequences:
        if sequence not in capture.videos:
            raise UserError(f"{capture.root} has no sequence '{sequence}'.")
        folder = capture.root / "sequences" / sequence / "images"
        _match_videos(folder, capture.videos[sequence], capture.cameras)
        for path in capture.videos[sequence].values():
            header = read_header(path)
            first = headers.setdefault(sequence, header)
            if header.frames != first.frames:
                raise UserError(
                    f"{path} has {header.frames} frames but other cameras of {sequence} have "
                    f"{first.frames}; the videos of a sequence must be synchronised."
                )
            check_size(path, header.width, header.height)
            size = next(iter(headers.values()))
            if (header.width, header.height) != (size.width, size.height):
                raise UserError(
                    f"{path} has {header.width}×{header.height} pixels but other videos have "
                    f"{size.width}×{size.height}; store all videos at one size."
                )
    return headers


def check_size(path: Path, width: int, height: int) -> None:
    """Raise `UserError` unless an image is the full image at another size."""
    if abs(height - width * FULL_HEIGHT / FULL_WIDTH) > SIZE_TOLERANCE:
        raise UserError(
            f"{path} has {width}×{height} pixels, which is not {FULL_WIDTH}×{FULL_HEIGHT} scaled; "
            "give the uncropped image."
        )


def _by_serial(folder: Path, pattern: str) -> dict[str, Path]:
    """Files named <word>_<serial>.<suffix>, by serial number."""
    return {path.stem.split("_", 1)[1]: path for path in sorted(folder.glob(pattern))}


def _match_videos(folder: Path, videos: Mapping[str, Path], cameras: Mapping[str, Camera]) -> None:
    for serial, path in videos.items():
        if serial not in cameras:
            raise UserError(f"the calibration lacks camera {serial}, which recorded {path}.")
    for serial in cameras:
        if serial not in videos:
            raise UserError(
                f"the video of camera {serial} is missing: "
                f"{folder}/cam_{serial}.mp4 does not exist."
            )


def _read_cameras(path: Path) -> dict[str, Camera]:
    content = read_json(path, "the camera calibration")
    if not isinstance(content, dict) or not isinstance(content.get("world_2_cam"), dict):
        raise UserError(f"{path} lacks the table 'world_2_cam' of serial numbers and matrices.")
    intrinsics = _matrix(content.get("intrinsics"), (3, 3), f"{path}: intrinsics")
    if min(intrinsics[0, 0], intrinsics[1, 1]) <= 0 or intrinsics[2].tolist() != [0, 0, 1]:
        raise UserError(f"{path}: intrinsics need positive focal lengths and the last row 0, 0, 1.")
    cameras = {}
    for serial, rows in sorted(content["world_2_cam"].items()):
        world_to_camera = _matrix(rows, (4, 4), f"{path}: camera {serial}")
        rotation = world_to_camera[:3, :3]
        rigid = np.allclose(rotation.T @ rotation, np.eye(3), rtol=0, atol=RIGID_TOLERANCE)
        if not rigid or np.linalg.det(rotation) < 0 or world_to_camera[3].tolist() != [0, 0, 0, 1]:
            raise UserError(
                f"{path}: world_2_cam of camera {serial} is no rotation and translation."
            )
        cameras[serial] = Camera(intrinsics, world_to_camera, FULL_WIDTH, FULL_HEIGHT)
    return cameras


def _read_colours(path: Path, cameras: Mapping[str, Camera]) -> dict[str, Array]:
    if not path.exists():
        return {}
    content = read_json(path, "the colour calibration")
    for serial in cameras:
        if serial not in content:
            raise UserError(f"{path} lacks camera {serial}.")
    colours = {serial: np.array(content[serial], dtype=np.float64) for serial in cameras}
    for serial, matrix in colours.items():
        if matrix.ndim != 2 or matrix.shape[0] != 3 or matrix.shape[1] not in TERMS:
            raise UserError(
                f"{path}: the colour matrix of camera {serial} has shape {matrix.shape}, expected "
                f"(3, n) with n one of {', '.join(map(str, TERMS))}."
            )
    return colours


def _matrix(rows: Any, shape: tuple[int, int], where: str) -> Array:
    """Nested lists as a finite matrix of the given shape, or a `UserError`."""
    try:
        matrix = np.array(rows, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise UserError(f"{where}: not a {shape[0]}×{shape[1]} matrix of numbers.") from error
    if matrix.shape != shape or not np.isfinite(matrix).all():
        raise UserError(f"{where}: not a {shape[0]}×{shape[1]} matrix of finite numbers.")
    return matrix
