"""Frames and masks on disk to pixels: decode, place on white, crop, keep within a budget."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import cv2
import numpy as np
from numba import njit

from eavatar.arrays import Image, Uint8
from eavatar.errors import UserError
from eavatar.threads import make_pool


@dataclass(frozen=True)
class Boxes:
    """The part of each camera's image that is used.

    Attributes:
        corners: (left, top) for each of C cameras, pixels.
        height: of all of them, pixels.
        width: likewise.
    """

    corners: tuple[tuple[int, int], ...]
    height: int
    width: int

    def window(self, camera: int) -> tuple[slice, slice]:
        """What to index the rows and columns of a camera's whole image with."""
        left, top = self.corners[camera]
        return slice(top, top + self.height), slice(left, left + self.width)


@dataclass(frozen=True)
class Files:
    """The bytes of a frame's JPEG and of its mask's PNG, and the files they are from."""

    colour: Uint8
    mask: Uint8
    colour_path: Path
    mask_path: Path

    @property
    def nbytes(self) -> int:
        return self.colour.nbytes + self.mask.nbytes

    def decode_colour(self) -> Image:
        """(H, W, 3) RGB uint8."""
        return _decode(self.colour, cv2.IMREAD_COLOR_RGB, self.colour_path, "ingest")

    def decode_mask(self) -> Image:
        """(H, W) uint8."""
        return _decode(self.mask, cv2.IMREAD_GRAYSCALE, self.mask_path, "matte")


class ImageStore:
    """Frames on white and their masks, kept in memory up to a budget.

    Kept are the files, or the pixels where these take no more memory: if the pixels of all frames
    fit, or those of one are fewer bytes than its files. What is beyond the budget is read anew.
    Threads may share a store.

    Args:
        capture: ``results/<subject>/capture``.
        keys: (sequence, timestep) of each of T timesteps.
        serials: C camera serial numbers.
        ingested: side of the square images on disk, pixels.
        size: side after downsizing.
        boxes: what is used of the downsized images.
        memory: budget, bytes.
        backgrounds: of each camera the set behind the person (ingested, ingested, 3) RGB, which is
            taken out of the colours where the mask is soft; None to leave it in.
    """

    def __init__(
        self,
        capture: Path,
        keys: Sequence[tuple[str, int]],
        serials: Sequence[str],
        ingested: int,
        size: int,
        boxes: Boxes,
        memory: int,
        backgrounds: Sequence[Image | None],
    ):
        self.capture, self.keys, self.serials = capture, keys, serials
        self.ingested, self.size, self.boxes, self.memory = ingested, size, boxes, memory
        self.backgrounds = backgrounds
        pixels = 4 * boxes.height * boxes.width
        self.keeps_pixels = pixels * len(keys) * len(serials) <= memory
        self.kept: dict[tuple[int, int], Files | Image] = {}
        self.used = 0
        self._lock = threading.Lock()

    @property
    def keeps_files(self) -> bool:
        """Whether the images are the files' at their size, and decoded at every use."""
        return self.size == self.ingested and not self.keeps_pixels

    def cropped(self, boxes: Boxes) -> ImageStore:
        """The same images in other boxes, nothing kept yet."""
        return ImageStore(
            self.capture,
            self.keys,
            self.serials,
            self.ingested,
            self.size,
            boxes,
            self.memory,
            self.backgrounds,
        )

    def read(self, timestep: int, cameras: Sequence[int]) -> Uint8:
        """(K, H, W, 4) uint8: colour on white, and mask."""
        images = np.empty((len(cameras), self.boxes.height, self.boxes.width, 4), np.uint8)
        with make_pool() as pool:
            list(pool.map(partial(self.fill, timestep), cameras, images))
        return images

    def read_with_set(self, timestep: int, cameras: Sequence[int]) -> Uint8:
        """(K, H, W, 4) as `read`, but with the set left in: ``mask · frame`` on white."""
        if all(self.backgrounds[camera] is None for camera in cameras):
            return self.read(timestep, cameras)
        images = np.empty((len(cameras), self.boxes.height, self.boxes.width, 4), np.uint8)

        def fill(camera: int, image: Uint8) -> None:
            self._decode(self._read(timestep, camera), camera, None, image)

        with make_pool() as pool:
            list(pool.map(fill, cameras, images))
        return images

    def fill(self, timestep: int, camera: int, image: Uint8) -> None:
        """Write colour on white and mask of one frame to ``image`` (H, W, 4) uint8."""
        kept = self.kept.get((timestep, camera))
        if isinstance(kept, np.ndarray):
            image[:] = kept
            return
        files = kept or self._read(timestep, camera)
        self._decode(files, camera, self.backgrounds[camera], image)
        if kept is None:
            smaller = self.keeps_pixels or image.nbytes <= files.nbytes
            self._keep(timestep, camera, image.copy() if smaller else files)

    def fill_mask(self, timestep: int, camera: int, mask: Uint8) -> Uint8:
        """Write only the mask of one frame to ``mask`` (H, W) uint8; return the frame's JPEG.

        Only for images at the ingested size.
        """
        kept = self.kept.get((timestep, camera))
        files = kept if isinstance(kept, Files) else self._read(timestep, camera)
        mask[:] = files.decode_mask()[self.boxes.window(camera)]
        if kept is None:
            self._keep(timestep, camera, files)
        return files.colour

    def paths(self, timestep: int, camera: int) -> tuple[Path, Path]:
        """The files of one frame: colour as JPEG, mask as PNG."""
        sequence, number = self.keys[timestep]
        place = Path(sequence, self.serials[camera], f"{number:05d}")
        colour = (self.capture / place).with_suffix(".jpg")
        return colour, (self.capture / "masks" / place).with_suffix(".png")

    def _read(self, timestep: int, camera: int) -> Files:
        colour, mask = self.paths(timestep, camera)
        return Files(_read_bytes(colour, "ingest"), _read_bytes(mask, "matte"), colour, mask)

    def _decode(self, files: Files, camera: int, background: Image | None, image: Uint8) -> None:
        colour, mask, window = files.decode_colour(), files.decode_mask(), self.boxes.window(camera)
        behind = colour if background is None else background
        if self.size == self.ingested:
            place_on_white(colour[window], mask[window], behind[window], image)
            return
        # On white first: averaging would mix the background into the edge of the person.
        whole = np.empty((*mask.shape, 4), np.uint8)
        place_on_white(colour, mask, behind, whole)
        image[:] = resize_area(whole, self.size)[window]

    def _keep(self, timestep: int, camera: int, content: Files | Image) -> None:
        with self._lock:
            if self.used + content.nbytes <= self.memory and (timestep, camera) not in self.kept:
                self.kept[timestep, camera] = content
                self.used += content.nbytes


@njit(cache=True, nogil=True)
def place_on_white(colour: Image, mask: Image, background: Image, image: Uint8) -> None:
    """Write the person on white, to the nearest level, and the mask to an image.

    A frame is ``I = α F + (1 - α) B`` of the person's colour F, the background B and the mask α, so
    that the person on white is ``I + (1 - α) (1 - B)``, kept to what an F in [0, 1] can give. With
    the frame itself in place of B it is the composite ``α I + (1 - α)``, B left in.

    Args:
        colour: (H, W, 3) RGB uint8.
        mask: (H, W) uint8.
        background: (H, W, 3) RGB uint8.
        image: (H, W, 4) uint8, written to.
    """
    for row in range(mask.shape[0]):
        for column in range(mask.shape[1]):
            weight = np.int32(mask[row, column])
            image[row, column, 3] = weight
            for channel in range(3):
                # Most pixels are wholly inside or outside, which needs no arithmetic.
                if weight == 255:
                    image[row, column, channel] = colour[row, column, channel]
                elif weight == 0:
                    image[row, column, channel] = 255
                else:
                    frame = 255 - np.int32(colour[row, column, channel])
                    behind = 255 - np.int32(background[row, column, channel])
                    darkness = 255 * frame - (255 - weight) * behind
                    possible = min(max(darkness, np.int32(0)), 255 * weight)
                    image[row, column, channel] = 255 - (possible + 127) // 255


def resize_area(image: Image, size: int) -> Image:
    """(H, W, ...) uint8 to (size, size, ...) uint8, each pixel the mean of what it covers."""
    if image.shape[0] == size:
        return image
    return cv2.resize(image, (size, size), interpolation=cv2.INTER_AREA)


def read_colour(path: Path, stage: str = "ingest") -> Image:
    """An image (H, W, 3) BGR, uint8; ``stage`` is the verb that wrote it."""
    return _decode(_read_bytes(path, stage), cv2.IMREAD_COLOR, path, stage)


def read_rgb(path: Path, stage: str = "ingest") -> Image:
    """An image (H, W, 3) RGB, uint8; ``stage`` is the verb that wrote it."""
    return _decode(_read_bytes(path, stage), cv2.IMREAD_COLOR_RGB, path, stage)


def read_rgba(path: Path, stage: str) -> Image:
    """An image (H, W, 4) RGB and alpha, uint8; ``stage`` is the verb that wrote it."""
    image = _decode(_read_bytes(path, stage), cv2.IMREAD_UNCHANGED, path, stage)
    return cv2.cvtColor(image, cv2.COLOR_BGRA2RGBA)


def read_grey(path: Path, stage: str = "matte") -> Image:
    """A mask (H, W), uint8; ``stage`` is the verb that wrote it."""
    return _decode(_read_bytes(path, stage), cv2.IMREAD_GRAYSCALE, path, stage)


def _read_bytes(path: Path, stage: str) -> Uint8:
    try:
        return np.fromfile(path, np.uint8)
    except OSError as error:
        raise UserError(f"the image {path} is missing; run `{stage}` again.") from error


def _decode(content: Uint8, flags: int, path: Path, stage: str) -> Image:
    image = cv2.imdecode(content, flags) if content.size else None
    if image is None:
        raise UserError(f"the image {path} is damaged; run `{stage}` again.")
    return image
