"""RenderMe-360: a subject's ``<subject>_<part>_anno.smc`` and ``_raw.smc``, HDF5 files.

As the dataset's own reader and benchmark have it, ``Calibration/<camera>`` holds ``K`` (3, 3),
``D`` (5,) and ``RT`` (4, 4), camera-to-world in metres with OpenCV's axes;
``Camera/<camera>/color`` of the raw file and ``Camera/<camera>/mask`` of the other hold an encoded
image for each frame; the attribute ``resolution`` of ``Camera`` is height and width. No download
was read here.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from eavatar.capture.calibration import finite_matrix
from eavatar.capture.plain import RigCamera, invert_pose, make_rig_camera
from eavatar.errors import UserError
from eavatar.io import atomic
from eavatar.lenses import PIXEL

logger = logging.getLogger(__name__)

ANNOTATION, RAW = "_anno.smc", "_raw.smc"
SUFFIXES = {b"\xff\xd8\xff": ".jpg", b"\x89PNG": ".png"}


def read_renderme(folder: Path) -> dict[str, RigCamera]:
    """The rig of a subject, from the first of its annotations.

    Raises:
        UserError: the folder, and those in it, hold no annotation, or it is damaged.
    """
    path = next(iter(_list_parts(folder, ANNOTATION).values()))
    with _open(path) as file:
        height, width = (int(side) for side in file["Camera"].attrs["resolution"][:2])
        table = {
            name: {key: group[key][()] for key in ("K", "D", "RT")}
            for name, group in file["Calibration"].items()
        }
    rig = {}
    for name, entry in table.items():
        where = f"{path}: camera {name}"
        intrinsics = finite_matrix(entry["K"], (3, 3), f"{where}: K")
        intrinsics[:2, 2] += PIXEL
        pose = invert_pose(finite_matrix(entry["RT"], (4, 4), f"{where}: RT"), where)
        rig[name] = make_rig_camera(where, (width, height), intrinsics, pose, entry["D"])
    return rig


def extract_images(folder: Path, output: Path) -> None:
    """Write the images of all parts as they are stored, and their masks.

    Args:
        folder: of the subject's files.
        output: receives sequences/<part>/cam_<camera>/<frame:05d>.jpg and
            mattes/<part>/cam_<camera>/<frame:05d>.png.

    Raises:
        UserError: a file is damaged or holds no such images.
    """
    for ending, kind, place in ((RAW, "color", "sequences"), (ANNOTATION, "mask", "mattes")):
        for part, path in _list_parts(folder, ending).items():
            for camera, frame, content in _read_images(path, kind):
                suffix = next((s for start, s in SUFFIXES.items() if content.startswith(start)), "")
                if not suffix:
                    raise UserError(f"{path}: frame {frame} of camera {camera} is no JPEG or PNG.")
                target = output / place / part / f"cam_{camera}" / f"{frame:05d}{suffix}"
                with atomic(target) as temporary:
                    temporary.write_bytes(content)
            logger.info("%s: %s written", path.name, place)


def _list_parts(folder: Path, ending: str) -> dict[str, Path]:
    """The files of one kind by the name of their part, as ``e0``."""
    paths = sorted(folder.rglob(f"*{ending}"))
    if not paths:
        raise UserError(f"{folder} holds no <subject>_<part>{ending}; download it again.")
    return {path.name.removesuffix(ending).partition("_")[2]: path for path in paths}


def _read_images(path: Path, kind: str) -> Iterator[tuple[str, int, bytes]]:
    """Camera, frame and encoded image of all images of a kind."""
    with _open(path) as file:
        for camera, group in file["Camera"].items():
            for frame in sorted(group.get(kind, ()), key=int):
                yield camera, int(frame), np.asarray(group[kind][frame]).tobytes()


@contextmanager
def _open(path: Path) -> Iterator[Any]:
    """An HDF5 file; what h5py raises in the block becomes a `UserError`."""
    import h5py

    try:
        with h5py.File(path) as file:
            yield file
    except (OSError, KeyError, ValueError, TypeError) as error:
        raise UserError(
            f"{path} is no readable file of RenderMe-360 ({error}); download it again."
        ) from error
