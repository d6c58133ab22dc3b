"""Captures in the layout that Gaussian Head Avatar's code trains on.

    images/<timestep>/image_<camera>.jpg      square crops, any size; their lowres_ copies unused
    images/<timestep>/mask_<camera>.jpg       the layout's own masks (optional)
    images/<timestep>/visible_<camera>.jpg    0 in the padding of the crop (optional)
    cameras/<timestep>/camera_<camera>.npz    extrinsic (3, 4) world-to-camera, OpenCV; intrinsic
                                              (3, 3) in the image's pixels, 2048×2048 as published;
                                              ours: distortion, OpenCV's coefficients (optional)
    background/image_<camera>.jpg             plates, cropped like the images (optional)
    held_out/{images,cameras}/<timestep>/     ours: timesteps that GHA's code must not train on
    sequences/<name>.txt                      ours: the timesteps of a sequence, one folder name
                                              per line (optional)

The images are cropped and subsampled in time already. Timesteps are the folders named by a number,
in numeric order. The layout knows no sequences: without lists, images/ is one called 'all', and a
test set needs lists. params/, if there, is not read: the face is fitted anew.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from eavatar.cameras import Camera
from eavatar.capture.calibration import (
    finite_matrix,
    read_camera,
    read_intrinsics,
    refuse_unknown,
)
from eavatar.capture.layouts import GHA_PARTS
from eavatar.capture.recording import Capture
from eavatar.capture.video import CameraFrames, read_raw_image
from eavatar.errors import UserError
from eavatar.io import DAMAGED_ARRAY
from eavatar.lenses import Lens, read_lens

MAX_MOTION = 1e-4  # change of a camera's matrices over time: metres, and pixels


def read_gha(root: Path) -> Capture:
    """A folder in the layout of Gaussian Head Avatar; `UserError` where it is malformed.

    One image is read, for its size. The cameras are those of the first timestep; that they stand
    still is checked where sequences begin and end, as every timestep has a file per camera.
    """
    sequences: dict[str, list[Path]] = {}
    for part, whole in GHA_PARTS.items():
        if (root / part / "images").is_dir():
            for name, folders in _sequences(root / part, whole).items():
                if name in sequences:
                    raise UserError(f"{root}: both parts list a sequence '{name}'; rename one.")
                sequences[name] = folders
    first = next(iter(sequences.values()))[0]
    serials = _list_cameras(first)
    paths = (first / f"image_{serial}.jpg" for serial in serials)
    height, width = read_raw_image(next(filter(Path.exists, paths))).shape[:2]

    def list_frames(kind: str) -> dict[str, dict[str, CameraFrames]]:
        """The images of a kind by sequence and camera; none if no camera has one at first."""
        if not any((first / f"{kind}_{serial}.jpg").exists() for serial in serials):
            return {}
        return {
            name: {
                serial: CameraFrames(tuple(folder / f"{kind}_{serial}.jpg" for folder in folders))
                for serial in serials
            }
            for name, folders in sequences.items()
        }

    ends = [folder for folders in sequences.values() for folder in (folders[0], folders[-1])]
    read = {serial: _read_still_camera(ends, serial, width, height) for serial in serials}
    return Capture(
        root,
        cameras={serial: camera for serial, (camera, _) in read.items()},
        colours=None,
        frames=list_frames("image"),
        plates={
            serial: path
            for serial in serials
            if (path := root / "background" / f"image_{serial}.jpg").exists()
        },
        masks=list_frames("mask"),
        visible=list_frames("visible"),
        prepared=True,
        lenses={serial: lens for serial, (_, lens) in read.items() if lens},
    )


def _list_cameras(folder: Path) -> list[str]:
    """The cameras that have an image or a calibration at a timestep, given its folder of images."""
    images = {path.stem.removeprefix("image_") for path in folder.glob("image_*.jpg")}
    names = {name for name in images if not name.startswith("lowres_")}
    if not names:
        raise UserError(f"{folder} holds no image_<camera>.jpg; copy the folder again.")
    calibrations = folder.parent.parent.glob(f"cameras/{folder.name}/camera_*.npz")
    return sorted(names | {path.stem.removeprefix("camera_") for path in calibrations})


def _timesteps(part: Path) -> dict[int, Path]:
    """Number to folder of the timesteps, in order."""
    folders = [path for path in (part / "images").iterdir() if path.name.isdecimal()]
    if not folders:
        raise UserError(f"{part / 'images'} holds no timestep (0000/, 0001/, …).")
    numbers = [int(path.name) for path in folders]
    if len(set(numbers)) < len(numbers):
        raise UserError(f"{part / 'images'} has two folders of one number; remove one.")
    return dict(sorted(zip(numbers, folders, strict=True)))


def _sequences(part: Path, whole: str) -> dict[str, list[Path]]:
    """Sequence to the folders of its timesteps, in order; without lists all are one sequence."""
    timesteps = _timesteps(part)
    owners: dict[int, Path] = {}
    sequences = {}
    for path in sorted(part.glob("sequences/*.txt")):
        numbers = _read_numbers(path)
        for number in numbers:
            if number not in timesteps:
                raise UserError(f"{path} lists {number}, which is no folder of {part / 'images'}.")
            if number in owners:
                raise UserError(f"{path} and {owners[number]} both list {number}; remove one.")
            owners[number] = path
        sequences[path.stem] = [timesteps[number] for number in sorted(numbers)]
    return sequences or {whole: list(timesteps.values())}


def _read_numbers(path: Path) -> list[int]:
    try:
        words = path.read_text(encoding="utf-8-sig").split()  # some editors begin with a mark
        numbers = [int(word) for word in words]
    except (OSError, ValueError) as error:
        raise UserError(f"{path} must list folder names of timesteps, one per line.") from error
    if not numbers:
        raise UserError(f"{path} is empty; list the sequence's timesteps or remove it.")
    return numbers


def _read_still_camera(
    ends: Sequence[Path], serial: str, width: int, height: int
) -> tuple[Camera, Lens | None]:
    """A camera's calibration and lens, which must be the same at some timesteps.

    Args:
        ends: image folders of the timesteps.
        serial: of the camera.
        width: of the images, pixels.
        height: of the images, pixels.
    """
    paths = [
        end.parent.parent / "cameras" / end.name / f"camera_{serial}.npz"
        for end in dict.fromkeys(ends)
    ]
    read = [_read_camera(path, width, height) for path in paths]
    first, lens = read[0]
    for (camera, other), path in zip(read, paths, strict=True):
        moved = np.abs(camera.world_to_camera - first.world_to_camera).max()
        zoomed = np.abs(camera.intrinsics - first.intrinsics).max()
        bent = (other and other.coefficients) != (lens and lens.coefficients)
        if max(moved, zoomed) > MAX_MOTION or bent:
            raise UserError(f"{path} differs from {paths[0]}; cameras must stand still.")
    return first, lens


def _read_camera(path: Path, width: int, height: int) -> tuple[Camera, Lens | None]:
    try:
        with np.load(path, allow_pickle=False) as archive:
            content = dict(archive)
            extrinsic, intrinsic = content["extrinsic"], content["intrinsic"]
    except FileNotFoundError as error:
        raise UserError(f"the calibration {path} does not exist; copy it again.") from error
    except DAMAGED_ARRAY as error:
        raise UserError(
            f"{path} is no .npz file of arrays 'extrinsic' and 'intrinsic'; copy it again."
        ) from error
    refuse_unknown(content, ("extrinsic", "intrinsic", "distortion"), path)
    rows = np.vstack([finite_matrix(extrinsic, (3, 4), f"{path}: extrinsic"), [0, 0, 0, 1]])
    intrinsics = read_intrinsics(intrinsic, width, height, str(path))
    camera = read_camera(intrinsics, rows, width, height, str(path))
    return camera, read_lens(camera, content.get("distortion"), str(path))
