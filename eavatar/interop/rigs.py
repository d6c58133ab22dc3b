"""Calibrations of other programs as the plain layout's ``cameras.json``: `import-rig`."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from eavatar.arrays import Float64
from eavatar.capture.calibration import finite_matrix
from eavatar.capture.plain import CAMERAS, RigCamera, invert_pose, make_rig_camera, write_rig
from eavatar.capture.rig import MIN_CAMERAS
from eavatar.errors import UserError
from eavatar.interop.colmap import read_model
from eavatar.interop.renderme import extract_images, read_renderme
from eavatar.io import read_json
from eavatar.lenses import PIXEL

logger = logging.getLogger(__name__)

OPENGL = np.diag([1.0, -1.0, -1.0, 1.0])  # y up, z backward: nerfstudio's cameras
NERFSTUDIO_MODELS = ("OPENCV", "PINHOLE", "SIMPLE_PINHOLE", "RADIAL", "SIMPLE_RADIAL")
YAML_KEYS = ("image_width", "image_height", "camera_matrix", "R", "T")


def import_rig(program: str, source: Path, metres_per_unit: float, output: Path) -> Path:
    """Write the calibration of another program as ``cameras.json``; of RenderMe-360 images, too.

    Args:
        program: one of `READERS`.
        source: its file or folder.
        metres_per_unit: of its world.
        output: folder of the capture.

    Returns:
        the path of ``cameras.json``.

    Raises:
        UserError: the source is missing or malformed, or holds fewer than two cameras.
    """
    if program not in READERS:
        raise UserError(f"--format {program} is none of {', '.join(READERS)}; give one of these.")
    if not source.exists():
        raise UserError(f"{source} does not exist; name what {program} wrote.")
    if not 0 < metres_per_unit < math.inf:
        raise UserError(f"--metres-per-unit {metres_per_unit:g} must be above 0, and finite.")
    rig = READERS[program](source)
    if len(rig) < MIN_CAMERAS:
        raise UserError(f"{source} holds {len(rig)} camera; a rig has {MIN_CAMERAS} at least.")
    scaled = {name: _scale(one, metres_per_unit) for name, one in rig.items()}
    path = write_rig(output / CAMERAS, scaled)
    if program == "renderme":
        extract_images(source, output)
    logger.info("%s holds %d cameras: %s", path, len(rig), ", ".join(sorted(rig)))
    return path


def _scale(one: RigCamera, metres_per_unit: float) -> RigCamera:
    pose = one.camera.world_to_camera.copy()
    pose[:3, 3] *= metres_per_unit
    camera = replace(one.camera, world_to_camera=pose)
    lens = replace(one.lens, camera=camera) if one.lens else None
    return replace(one, camera=camera, lens=lens)


def name_cameras(images: Sequence[str]) -> list[str]:
    """The cameras that took some images, by the images' names or the folders that they lie in.

    Raises:
        UserError: neither tells the images apart.
    """
    paths = [PurePosixPath(image.replace("\\", "/")) for image in images]
    for words in ([path.stem for path in paths], [path.parent.name for path in paths]):
        names = [word.removeprefix("cam_").removeprefix("image_") for word in words]
        if len(set(names)) == len(names):
            return names
    raise UserError(
        f"the calibration has several images of one camera, {images[0]} among {len(images)}; a "
        "rig's cameras stand still: calibrate with one image of each."
    )


# --- readers ------------------------------------------------------------------------------------


def read_colmap(folder: Path) -> dict[str, RigCamera]:
    """A sparse model of COLMAP with one image of each camera."""
    cameras, images = read_model(folder)
    rig = {}
    for name, image in zip(name_cameras([image.name for image in images]), images, strict=True):
        where = f"{folder}: camera {name}"
        if image.camera not in cameras:
            raise UserError(f"{where} names camera {image.camera}, which is not there; export it.")
        own = cameras[image.camera]
        intrinsics, distortion = own.read(where)
        pose = image.world_to_camera()
        rig[name] = make_rig_camera(where, (own.width, own.height), intrinsics, pose, distortion)
    return rig


def read_nerfstudio(path: Path) -> dict[str, RigCamera]:
    """nerfstudio's ``transforms.json`` with one frame of each camera."""
    path = path / "transforms.json" if path.is_dir() else path
    content = read_json(path, "nerfstudio's calibration")
    frames = content.get("frames") if isinstance(content, dict) else None
    if not isinstance(frames, list) or not all(isinstance(frame, dict) for frame in frames):
        raise UserError(f"{path} lacks the list 'frames'; name a transforms.json of nerfstudio.")
    names = name_cameras([str(frame.get("file_path", "")) for frame in frames])
    return {
        name: _read_nerfstudio_frame(content | frame, f"{path}: camera {name}")
        for name, frame in zip(names, frames, strict=True)
    }


def _read_nerfstudio_frame(values: Mapping[str, Any], where: str) -> RigCamera:
    """A camera of a frame's values, and of those that all frames share."""
    model = values.get("camera_model", "OPENCV")
    if model not in NERFSTUDIO_MODELS or values.get("k4"):
        raise UserError(
            f"{where} has camera model {model}{' with k4' if values.get('k4') else ''}, which "
            f"OpenCV's distortion cannot say; calibrate with one of {', '.join(NERFSTUDIO_MODELS)}."
        )
    missing = [key for key in ("w", "h", "fl_x", "fl_y", "cx", "cy") if key not in values]
    if missing:
        raise UserError(f"{where} lacks '{missing[0]}'; add it to the frame or to the file.")
    rows = [[values["fl_x"], 0, values["cx"]], [0, values["fl_y"], values["cy"]], [0, 0, 1]]
    pose = finite_matrix(values.get("transform_matrix"), (4, 4), f"{where}: transform_matrix")
    coefficients = [values.get(key, 0.0) for key in ("k1", "k2", "p1", "p2", "k3")]
    size = _read_size(values["w"], values["h"], where)
    return make_rig_camera(where, size, rows, OPENGL @ invert_pose(pose, where), coefficients)


def read_opencv(folder: Path) -> dict[str, RigCamera]:
    """A folder of OpenCV's files, one for each camera: ``<camera>.yml``, ``.yaml`` or ``.xml``.

    Each holds image_width, image_height, camera_matrix and distortion_coefficients, as OpenCV's
    calibration sample writes them, and the pose R (a matrix or a rotation vector) and T,
    world-to-camera.
    """
    paths = [p for p in sorted(folder.glob("*")) if p.suffix in (".yml", ".yaml", ".xml")]
    if not paths:
        raise UserError(f"{folder} holds no <camera>.yml of OpenCV; name the folder of these.")
    return {path.stem: _read_opencv_camera(path) for path in paths}


def _read_opencv_camera(path: Path) -> RigCamera:
    import cv2

    try:
        storage = cv2.FileStorage(str(path), cv2.FILE_STORAGE_READ)
    except (cv2.error, SystemError) as error:
        raise UserError(f"{path} is no file of OpenCV's; write it again.") from error
    missing = [key for key in YAML_KEYS if storage.getNode(key).empty()]
    if missing:
        raise UserError(f"{path} lacks '{missing[0]}'; write {', '.join(YAML_KEYS)} into it.")
    width, height = (storage.getNode(key).real() for key in YAML_KEYS[:2])
    keys = (*YAML_KEYS[2:], "distortion_coefficients")
    matrix, rotation, translation, distortion = (
        _read_opencv_matrix(storage.getNode(key), f"{path}: {key}") for key in keys
    )
    intrinsics = finite_matrix(matrix, (3, 3), f"{path}: camera_matrix")
    intrinsics[:2, 2] += PIXEL
    if rotation is not None and rotation.size == 3:
        rotation = cv2.Rodrigues(rotation.astype(np.float64))[0]
    pose: Float64 = np.eye(4)
    pose[:3, :3] = finite_matrix(rotation, (3, 3), f"{path}: R")
    pose[:3, 3] = finite_matrix(np.ravel(translation), (3,), f"{path}: T")
    size = _read_size(width, height, str(path))
    return make_rig_camera(str(path), size, intrinsics, pose, distortion)


def _read_opencv_matrix(node: Any, where: str) -> Any:
    """What a node holds; None if it is not there."""
    import cv2

    try:
        return node.mat()
    except cv2.error as error:
        raise UserError(
            f"{where} is no matrix as cv2.FileStorage writes one; write it again."
        ) from error


def _read_size(width: Any, height: Any, where: str) -> tuple[int, int]:
    """Width and height, whole numbers above 0."""
    try:
        size = int(width), int(height)
    except (TypeError, ValueError, OverflowError):
        size = 0, 0
    if min(size) <= 0:
        raise UserError(f"{where}: its image size must be two whole numbers of pixels; correct it.")
    return size


READERS: dict[str, Callable[[Path], dict[str, RigCamera]]] = {
    "colmap": read_colmap,
    "nerfstudio": read_nerfstudio,
    "opencv": read_opencv,
    "renderme": read_renderme,
}
