"""A rig calibrated by COLMAP: ``cameras`` and ``images`` of a sparse model, .bin or .txt.

Written from COLMAP's documentation of its output format; the tests write files by it. COLMAP puts
the upper left corner of an image at 0, 0, as this package does.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from eavatar.arrays import Float64
from eavatar.errors import UserError
from eavatar.transforms import quaternion_to_matrix

# The camera models that OpenCV's coefficients can say, by COLMAP's number: name and parameters.
MODELS = {
    0: ("SIMPLE_PINHOLE", "f cx cy"),
    1: ("PINHOLE", "fx fy cx cy"),
    2: ("SIMPLE_RADIAL", "f cx cy k1"),
    3: ("RADIAL", "f cx cy k1 k2"),
    4: ("OPENCV", "fx fy cx cy k1 k2 p1 p2"),
    6: ("FULL_OPENCV", "fx fy cx cy k1 k2 p1 p2 k3 k4 k5 k6"),
}
DISTORTION = ("k1", "k2", "p1", "p2", "k3", "k4", "k5", "k6")
NAMES = {name: number for number, (name, _) in MODELS.items()}
POINT_BYTES = 24  # of an observed point: x, y, identifier


@dataclass(frozen=True)
class ColmapCamera:
    """A line of ``cameras``: model, width, height, parameters."""

    model: int | str
    width: int
    height: int
    parameters: tuple[float, ...]

    def read(self, where: str) -> tuple[Float64, list[float]]:
        """(3, 3) intrinsics and OpenCV's coefficients; `UserError` for other models."""
        number = NAMES.get(self.model) if isinstance(self.model, str) else self.model
        if number not in MODELS:
            raise _unknown_model(self.model, where)
        keys = MODELS[number][1].split()
        if len(keys) != len(self.parameters):
            raise UserError(
                f"{where} has {len(self.parameters)} parameters instead of {len(keys)}."
            )
        value = dict(zip(keys, self.parameters, strict=True))
        fx, fy = value.get("fx", value.get("f")), value.get("fy", value.get("f"))
        intrinsics = np.array([[fx, 0, value["cx"]], [0, fy, value["cy"]], [0, 0, 1]])
        used = DISTORTION if "k4" in value else DISTORTION[:5]
        return intrinsics.astype(np.float64), [value.get(key, 0.0) for key in used]


@dataclass(frozen=True)
class ColmapImage:
    """A line of ``images``: file name, number of its camera, quaternion wxyz and translation of
    its world-to-camera motion."""

    name: str
    camera: int
    quaternion: tuple[float, ...]
    translation: tuple[float, ...]

    def world_to_camera(self) -> Float64:
        """(4, 4), in COLMAP's unit."""
        matrix = np.eye(4)
        unit = torch.tensor(self.quaternion, dtype=torch.float64)
        matrix[:3, :3] = quaternion_to_matrix(unit / unit.norm()).numpy()
        matrix[:3, 3] = self.translation
        return matrix


def read_model(folder: Path) -> tuple[dict[int, ColmapCamera], list[ColmapImage]]:
    """The cameras by number, and the images, of a sparse model.

    Raises:
        UserError: the folder holds none, or it is damaged.
    """
    for suffix, read_cameras, read_images in (
        (".bin", _read_binary_cameras, _read_binary_images),
        (".txt", _read_text_cameras, _read_text_images),
    ):
        paths = folder / f"cameras{suffix}", folder / f"images{suffix}"
        if all(path.is_file() for path in paths):
            try:
                return read_cameras(paths[0]), read_images(paths[1])
            except (struct.error, ValueError, IndexError, OverflowError) as error:
                raise UserError(
                    f"{folder} holds no readable COLMAP model ({error}); export it again."
                ) from error
    raise UserError(
        f"{folder} holds neither cameras.bin and images.bin nor cameras.txt and images.txt; name "
        "the folder of COLMAP's sparse model, such as sparse/0."
    )


def _unknown_model(model: int | str, where: str) -> UserError:
    return UserError(
        f"{where} has camera model {model}, which OpenCV's distortion cannot say; run COLMAP with "
        f"one of {', '.join(NAMES)}."
    )


class _Reader:
    """Little-endian numbers of a file, one after another."""

    def __init__(self, path: Path) -> None:
        self._content, self._place = path.read_bytes(), 0

    def take(self, kinds: str) -> tuple[float, ...]:
        found = struct.unpack_from(f"<{kinds}", self._content, self._place)
        self._place += struct.calcsize(f"<{kinds}")
        return found

    def take_name(self) -> str:
        end = self._content.index(b"\0", self._place)
        name = self._content[self._place : end].decode()
        self._place = end + 1
        return name

    def skip(self, count: int) -> None:
        self._place += count


def _read_binary_cameras(path: Path) -> dict[int, ColmapCamera]:
    reader, cameras = _Reader(path), {}
    for _ in range(int(reader.take("Q")[0])):
        number, model, width, height = map(int, reader.take("iiQQ"))
        if model not in MODELS:  # how many parameters follow is not known
            raise _unknown_model(model, f"{path}: camera {number}")
        count = len(MODELS[model][1].split())
        cameras[number] = ColmapCamera(model, width, height, reader.take(f"{count}d"))
    return cameras


def _read_binary_images(path: Path) -> list[ColmapImage]:
    reader, images = _Reader(path), []
    for _ in range(int(reader.take("Q")[0])):
        values = reader.take("i7di")
        images.append(ColmapImage(reader.take_name(), int(values[8]), values[1:5], values[5:8]))
        reader.skip(POINT_BYTES * int(reader.take("Q")[0]))
    return images


def _read_text_cameras(path: Path) -> dict[int, ColmapCamera]:
    rows = [line.split() for line in _read_lines(path) if line.strip()]
    return {
        int(row[0]): ColmapCamera(row[1], int(row[2]), int(row[3]), tuple(map(float, row[4:])))
        for row in rows
    }


def _read_text_images(path: Path) -> list[ColmapImage]:
    """Of each image's two lines the first; the second lists its points and may be empty."""
    rows = [line.split(maxsplit=9) for line in _read_lines(path)[::2] if line.strip()]
    return [
        ColmapImage(row[9].strip(), int(row[8]), _numbers(row[1:5]), _numbers(row[5:8]))
        for row in rows
    ]


def _read_lines(path: Path) -> list[str]:
    lines = path.read_text(encoding="utf-8").splitlines()
    return [line for line in lines if not line.startswith("#")]


def _numbers(words: Sequence[str]) -> tuple[float, ...]:
    return tuple(map(float, words))
