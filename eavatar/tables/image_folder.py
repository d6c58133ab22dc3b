"""Images that another code rendered, as a method that is compared.

``<folder>/<sequence>/<camera>/<timestep:05d>.png``: one image for each view that is measured, RGB
with 8 bits, on white, the head with shoulders as in the ingested frames and with the same crop.
All are square and of one size, at most that of the ingested frames, which are averaged down to it.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import torch
from torch import Tensor

from eavatar.data.camera_split import split_cameras
from eavatar.data.frames import read_usable
from eavatar.data.methods import ViewRequest
from eavatar.errors import UserError
from eavatar.io import read_cameras, require

LAYOUT = "<sequence>/<camera>/<timestep, 5 digits>.png"
FILE_NAME = re.compile(r"\d{5}\.png")
HEADER = struct.Struct(">8s8xIIBB")  # of a PNG: signature, width, height, bits, kind of colours
SIGNATURE = b"\x89PNG\r\n\x1a\n"
COLOURS = {0: "grey", 2: "RGB", 3: "palette", 4: "grey with alpha", 6: "RGB with alpha"}
MAX_NAMED = 3  # of the missing images


@dataclass(frozen=True)
class ImageFolder:
    """`Method` over a folder of images.

    Attributes:
        folder: of the layout above.
        image_size: side of its images, pixels.
    """

    folder: Path
    image_size: int
    drivable = False

    @classmethod
    def open(cls, folder: Path, capture: Path, held_out: Sequence[str] = ()) -> ImageFolder:
        """The folder, once all images that will be asked for are there and of the right form.

        Args:
            folder: of the layout above.
            capture: ``results/<subject>/capture``.
            held_out: cameras that alone are measured, as of `split_cameras`.
        Raises:
            UserError: the folder or an image is missing, or an image is of another form.
        """
        require(folder, "the folder of rendered images")
        names = _list_names(capture, held_out)
        missing = [name for name in names if not (folder / name).is_file()]
        if missing:
            raise UserError(_describe_missing(folder, names, missing))
        sizes = {name: _read_size(folder / name) for name in names}
        first, (side, _) = next(iter(sizes.items()))
        for name, (width, height) in sizes.items():
            if (width, height) != (side, side):
                raise UserError(
                    f"{folder / name} has {width}×{height} pixels, {first} {side} in width; all "
                    "images must be square and of one size."
                )
        return cls(folder, side)

    def render(self, request: ViewRequest) -> Tensor:
        names = [_name(request.sequence, camera, request.timestep) for camera in request.serials]
        images = np.stack([_read_image(self.folder / name) for name in names])
        return torch.from_numpy(images).to(request.intrinsics.device).float() / 255


def _list_names(capture: Path, held_out: Sequence[str]) -> list[str]:
    """The images of all views that are measured: those whose mask has not failed."""
    serials = split_cameras(read_cameras(capture / "cameras.json"), held_out)[1]
    keys, usable = read_usable(capture, "test", serials)
    return [
        _name(sequence, serial, timestep)
        for (sequence, timestep), cameras in zip(keys, usable, strict=True)
        for serial, used in zip(serials, cameras, strict=True)
        if used
    ]


def _name(sequence: str, serial: str, timestep: int) -> str:
    return f"{sequence}/{serial}/{timestep:05d}.png"


def _describe_missing(folder: Path, names: Sequence[str], missing: Sequence[str]) -> str:
    listed = ", ".join(missing[:MAX_NAMED]) + (", …" if len(missing) > MAX_NAMED else "")
    places = {name.rsplit("/", 1)[0] for name in names}
    found = (path.relative_to(folder) for path in sorted(folder.rglob("*")) if path.is_file())
    strays = (p for p in found if str(p.parent) not in places or not FILE_NAME.fullmatch(p.name))
    stray = next(strays, None)
    return (
        f"{folder} lacks {len(missing)} of {len(names)} images: {listed}; render them as {LAYOUT}"
        + (f", or rename what is called otherwise, like {stray}." if stray else ".")
    )


def _read_size(path: Path) -> tuple[int, int]:
    """Width and height of an RGB image with 8 bits, from its header."""
    with path.open("rb") as file:
        head = file.read(HEADER.size)
    if len(head) < HEADER.size or head[:8] != SIGNATURE:
        raise UserError(f"{path} is no PNG image; write it again as one.")
    _, width, height, bits, colours = HEADER.unpack(head)
    if (bits, colours) != (8, 2):
        kind = f"{COLOURS.get(colours, 'of unknown colours')} with {bits} bits"
        raise UserError(f"{path} is {kind} a channel; it must be RGB with 8 bits, on white.")
    return width, height


def _read_image(path: Path) -> np.ndarray:
    image = cv2.imread(str(path), cv2.IMREAD_COLOR_RGB)
    if image is None:
        raise UserError(f"the image {path} is damaged; render it again.")
    return image
