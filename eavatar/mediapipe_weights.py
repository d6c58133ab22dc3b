"""MediaPipe's networks, which its wheel carries: where they lie, and how they get there.

They are Apache-2.0, as the wheel is, and run by OpenCV: the package itself is not needed.
"""

from __future__ import annotations

import hashlib
import zipfile
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from eavatar.backends import WeightFile
from eavatar.errors import UserError
from eavatar.io import atomic, require

PACKAGE = "mediapipe==0.10.21"  # from 1.0 on it carries none
FOLDER = Path("models/mediapipe")
FACE_DETECTION = "face_detection_short_range.tflite"
FACE_LANDMARK = "face_landmark.tflite"
IRIS_LANDMARK = "iris_landmark.tflite"
SELFIE_SEGMENTATION = "selfie_segmentation.tflite"
SHA256 = {  # the same in the wheels of all systems
    FACE_DETECTION: "bbff11cebd1eb27a1e004cae0b0e63ec8c551cbf34a4451148b4908b8db3eca8",
    FACE_LANDMARK: "1055cb9d4a9ca8b8c688902a3a5194311138ba256bcc94e336d8373a5f30c814",
    IRIS_LANDMARK: "d1744d2a09c25f501d39eba4faff47e53ecca8852c5ce19bce8eeac39357521f",
    SELFIE_SEGMENTATION: "9ee168ec7c8f2a16c56fe8e1cfbc514974cbbb7e434051b455635f1bd1462f5c",
}
GET = f"pip download --no-deps {PACKAGE}, then eavatar unpack-weights mediapipe-*.whl"


def mediapipe_weights(folder: Path, names: Sequence[str]) -> tuple[WeightFile, ...]:
    """The networks of these names, whether they exist or not."""
    return tuple(
        WeightFile(
            folder / name,
            f"the wheel of {PACKAGE}",
            "Apache-2.0",
            digest=f"sha256:{SHA256[name]}",
            note=f"{GET} --output {folder}",
            open=_read_published,
        )
        for name in names
    )


def open_network(path: Path) -> Any:
    """A network for OpenCV's dnn.

    Raises:
        UserError: the file is missing, or is not that of the wheel.
    """
    import cv2
    import numpy as np

    try:
        content = _read_published(require(path, "MediaPipe's network"))
    except ValueError as error:
        raise UserError(f"{path}: {error}; {GET} --output {path.parent}.") from error
    return cv2.dnn.readNetFromTFLite(np.frombuffer(content, np.uint8))


def _read_published(path: Path) -> bytes:
    """The content of a network's file; `ValueError` if it is another than the wheel's."""
    content = path.read_bytes()
    if hashlib.sha256(content).hexdigest() != SHA256[path.name]:
        raise ValueError(f"its content is not that of {PACKAGE}")
    return content


def unpack_weights(source: Path, output: Path = FOLDER) -> Path:
    """Copy the networks into a folder.

    Args:
        source: a wheel of MediaPipe, or a folder in which its networks lie somewhere, as that of
            the installed package.
        output: the folder; made if it does not exist.

    Returns:
        ``output``.

    Raises:
        UserError: a network is not there, or is not that of the wheel.
    """
    for name, digest in SHA256.items():
        content = _find_content(source, name)
        if content is None or hashlib.sha256(content).hexdigest() != digest:
            lack = "holds no" if content is None else "holds another file than"
            raise UserError(f"{source} {lack} {name} of {PACKAGE}; {GET}.")
        with atomic(output / name) as temporary:
            temporary.write_bytes(content)
    return output


def _find_content(source: Path, name: str) -> bytes | None:
    """The content of the file of this name somewhere in a folder or a wheel; None without one."""
    if require(source, "the wheel of mediapipe").is_dir():
        path = next(source.rglob(name), None)
        return path.read_bytes() if path else None
    try:
        with zipfile.ZipFile(source) as wheel:
            inside = next((one for one in wheel.namelist() if Path(one).name == name), None)
            return wheel.read(inside) if inside else None
    except (zipfile.BadZipFile, zlib.error) as error:
        raise UserError(f"{source} is no wheel, or damaged ({error}); {GET}.") from error
