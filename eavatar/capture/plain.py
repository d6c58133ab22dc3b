"""Captures of any rig in one plain layout; docs/own_rigs.md explains it to users.

cameras.json                                    see `read_rig`
crops.json                                      camera to [left, top, side], pixels of its
                                                full-size image (optional, see `find-crops`)
sequences/<sequence>/cam_<camera>.mp4           or as `eavatar.capture.video` says
sequences/BACKGROUND/image_<camera>.jpg         plates without the subject (optional)
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from eavatar.arrays import Float64
from eavatar.cameras import Camera
from eavatar.capture.calibration import (
    finite_matrix,
    read_camera,
    read_intrinsics,
    refuse_unknown,
)
from eavatar.capture.colour import Affine, Colour
from eavatar.capture.layouts import BACKGROUND, list_sequence_names
from eavatar.capture.recording import Capture
from eavatar.capture.video import list_cameras, list_plates
from eavatar.errors import UserError
from eavatar.io import read_json, write_json
from eavatar.lenses import Lens, read_lens
from eavatar.settings import MIN_FRAME

CAMERAS, CROPS = "cameras.json", "crops.json"
DIRECTIONS = ("world_to_camera", "camera_to_world")
MAX_CROP = 4  # of the image's longer side; what is beyond is black
KEYS = ("width", "height", "intrinsics", "distortion", "colour", *DIRECTIONS)


@dataclass(frozen=True)
class RigCamera:
    """A camera of a rig.

    Attributes:
        camera: of the full-size image without distortion.
        lens: None without distortion.
        colour: (3, 4) matrix on columns R, G, B, 1 of encoded colours in [0, 1]; None without.
    """

    camera: Camera
    lens: Lens | None = None
    colour: Float64 | None = None


def read_plain(root: Path) -> Capture:
    """A capture in the plain layout; `UserError` where it is malformed."""
    rig = read_rig(root / CAMERAS)
    cameras = {name: one.camera for name, one in rig.items()}
    frames = {name: list_cameras([root / "sequences" / name]) for name in list_sequence_names(root)}
    if not any(frames.values()):
        raise UserError(
            f"{root / 'sequences'} holds no recording (<sequence>/cam_<camera>.mp4, or a folder of "
            "numbered images <sequence>/cam_<camera>/)."
        )
    return Capture(
        root,
        cameras,
        colours=_collect_colours(rig, root / CAMERAS),
        frames=frames,
        plates=list_plates([root / "sequences" / BACKGROUND]),
        masks={},
        visible={},
        lenses={name: one.lens for name, one in rig.items() if one.lens},
        crops=_read_crops(root / CROPS, cameras),
    )


def read_rig(path: Path) -> dict[str, RigCamera]:
    """The cameras of a ``cameras.json``, by name.

    The file holds one object, ``cameras``, of an object for each camera:

        width, height       of the image that the intrinsics refer to, pixels
        intrinsics          3×3, pixels; the image's upper left corner is at 0, 0
        world_to_camera     4×4, metres, OpenCV's axes (x right, y down, z forward);
                            or its inverse, named camera_to_world
        distortion          OpenCV's 4, 5 or 8 coefficients (optional)
        colour              3×3 or 3×4, on encoded colours in [0, 1] (optional)

    Raises:
        UserError: the file is missing or malformed.
    """
    content = read_json(path, "the rig's calibration")
    table = content.get("cameras") if isinstance(content, dict) else None
    if not isinstance(table, dict) or not table:
        raise UserError(f"{path} lacks the object 'cameras' of names and calibrations.")
    refuse_unknown(content, ("cameras",), path)
    return {name: _read_rig_camera(path, name, table[name]) for name in sorted(table)}


def write_rig(path: Path, rig: Mapping[str, RigCamera]) -> Path:
    """Write a ``cameras.json`` for `read_rig`."""
    content = {}
    for name, one in sorted(rig.items()):
        camera = one.camera
        content[name] = {
            "width": camera.width,
            "height": camera.height,
            "intrinsics": camera.intrinsics.tolist(),
            "world_to_camera": camera.world_to_camera.tolist(),
        }
        if one.lens:
            content[name]["distortion"] = list(one.lens.coefficients)
        if one.colour is not None:
            content[name]["colour"] = one.colour.tolist()
    return write_json(path, {"cameras": content})


def write_crops(path: Path, crops: Mapping[str, tuple[int, int, int]]) -> Path:
    """Write a ``crops.json``: camera to left, top and side, full-size pixels."""
    return write_json(path, {name: list(crop) for name, crop in sorted(crops.items())})


def make_rig_camera(
    where: str, size: tuple[int, int], intrinsics: Any, world_to_camera: Any, distortion: Any
) -> RigCamera:
    """A camera of unchecked numbers.

    Args:
        where: the file and the part of it, for messages.
        size: width and height of the image, pixels.
        intrinsics: 3×3; the image's upper left corner is at 0, 0.
        world_to_camera: 4×4, metres, OpenCV's axes.
        distortion: OpenCV's coefficients, or None.

    Raises:
        UserError: a matrix is not what it should be.
    """
    checked = read_intrinsics(intrinsics, *size, where)
    camera = read_camera(checked, world_to_camera, *size, where)
    return RigCamera(camera, read_lens(camera, distortion, where))


def _read_rig_camera(path: Path, name: str, entry: Any) -> RigCamera:
    where = f"{path}: camera {name}"
    if not name or "/" in name or name.startswith("."):
        raise UserError(f"{where}: the name must do for a file; choose a plain word.")
    if not isinstance(entry, dict):
        raise UserError(f"{where} is no object of {', '.join(KEYS)}; correct it.")
    refuse_unknown(entry, KEYS, path)
    given = [key for key in DIRECTIONS if key in entry]
    if len(given) != 1:
        raise UserError(
            f"{where} needs either 'world_to_camera' or 'camera_to_world', so that nobody has to "
            f"guess the direction; it has {' and '.join(given) or 'neither'}."
        )
    pose = finite_matrix(entry[given[0]], (4, 4), f"{where}: {given[0]}")
    if given[0] == "camera_to_world":
        pose = invert_pose(pose, where)
    one = make_rig_camera(
        where, _read_size(entry, where), entry.get("intrinsics"), pose, entry.get("distortion")
    )
    if "colour" not in entry:
        return one
    return RigCamera(one.camera, one.lens, _read_colour(entry["colour"], f"{where}: colour"))


def invert_pose(pose: Float64, where: str) -> Float64:
    """The inverse of a 4×4 matrix; `UserError` if it has none."""
    try:
        return np.asarray(np.linalg.inv(pose), dtype=np.float64)
    except np.linalg.LinAlgError as error:
        raise UserError(
            f"{where}: its camera-to-world matrix is no rotation and translation; restore the file."
        ) from error


def _read_size(entry: Mapping[str, Any], where: str) -> tuple[int, int]:
    size = entry.get("width"), entry.get("height")
    if not all(type(side) is int and side > 0 for side in size):
        raise UserError(
            f"{where} needs 'width' and 'height', whole numbers: the size in pixels of the image "
            "that its intrinsics refer to; add them."
        )
    return entry["width"], entry["height"]


def _read_colour(rows: Any, where: str) -> Float64:
    first = rows[0] if isinstance(rows, list) and rows else None
    columns = 3 if isinstance(first, list) and len(first) == 3 else 4
    matrix = finite_matrix(rows, (3, columns), where)
    return np.column_stack([matrix, np.zeros((3, 4 - columns))])


def _collect_colours(rig: Mapping[str, RigCamera], path: Path) -> dict[str, Colour] | None:
    """The colour corrections by camera; None if no camera has one."""
    found: dict[str, Colour] = {
        name: Affine(np.column_stack([one.colour[:, :3].T, one.colour[:, 3]]))
        for name, one in rig.items()
        if one.colour is not None
    }
    missing = sorted(set(rig) - set(found))
    if found and missing:
        raise UserError(f"{path}: camera {missing[0]} lacks 'colour'; give it to all or to none.")
    return found or None


def _read_crops(path: Path, cameras: Mapping[str, Camera]) -> dict[str, tuple[int, int, int]]:
    """The crops by camera; without a file the squares in the middle of the images."""
    if not path.exists():
        return {name: _middle_square(camera) for name, camera in cameras.items()}
    content: Any = read_json(path, "the crops")
    crops = {}
    for name, camera in cameras.items():
        crop: Any = content.get(name) if isinstance(content, dict) else None
        whole = isinstance(crop, list) and [type(number) for number in crop] == [int] * 3
        if not whole:
            raise UserError(
                f"{path}: camera {name} needs [left, top, side], whole pixels of its full-size "
                "image; correct it, or remove the file for squares in the middle."
            )
        largest = MAX_CROP * max(camera.width, camera.height)
        if not MIN_FRAME <= crop[2] <= largest:
            raise UserError(
                f"{path}: the side of camera {name}'s crop is {crop[2]} pixels; choose {MIN_FRAME} "
                f"to {largest} for its {camera.width}×{camera.height} image."
            )
        crops[name] = (crop[0], crop[1], crop[2])
    return crops


def _middle_square(camera: Camera) -> tuple[int, int, int]:
    side = min(camera.width, camera.height)
    return (camera.width - side) // 2, (camera.height - side) // 2, side
