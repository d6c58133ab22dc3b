"""Raw videos to colour-corrected, cropped frames, and the cameras that belong to them.

The crop is GHA's of the settings, or each camera's own that came with the capture, given in
full-size pixels. It is rounded to whole stored pixels once, in
`Window`, and both the frames and the cameras follow the rounded window: the resampling and the
calibration agree exactly.
"""

from __future__ import annotations

import logging
import math
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import cv2
import numpy as np
from tqdm import tqdm

from eavatar.arrays import Image
from eavatar.cameras import Camera
from eavatar.capture.captures import open_capture
from eavatar.capture.colour import ColourTable
from eavatar.capture.nersemble import FULL_SIZE
from eavatar.capture.recording import Capture, check_size, check_videos
from eavatar.capture.video import Header, read_raw_image
from eavatar.capture.yuv import Part
from eavatar.errors import UserError
from eavatar.io import encode_image, refusals_told, write_cameras, write_image, write_rows
from eavatar.lenses import straightener
from eavatar.settings import IngestSettings, check_patterns, select
from eavatar.threads import make_pool

logger = logging.getLogger(__name__)

Item = TypeVar("Item")
Result = TypeVar("Result")


@dataclass(frozen=True)
class Window:
    """The crop in the pixels of one stored image size; it may leave the image.

    Attributes:
        x: first column, whole stored pixels.
        y: first row.
        width: number of columns.
        height: number of rows.
        stored_width: of the stored images, pixels.
        stored_height: of the stored images, pixels.
        image_size: side of the ingested frames, pixels.
    """

    x: int
    y: int
    width: int
    height: int
    stored_width: int
    stored_height: int
    image_size: int

    @classmethod
    def of(cls, settings: IngestSettings, stored_width: int, stored_height: int) -> Window:
        """The window of the settings' crop for images of a stored size."""
        crop = (*settings.crop_origin, settings.crop_size)
        window = cls.of_crop(settings, crop, FULL_SIZE, stored_width, stored_height)
        if window is None:
            raise UserError(
                f"crop_origin {settings.crop_origin} and crop_size {settings.crop_size} lie "
                f"outside the {FULL_SIZE[0]}×{FULL_SIZE[1]} image; change them."
            )
        return window

    @classmethod
    def of_crop(
        cls,
        settings: IngestSettings,
        crop: tuple[int, int, int],
        full_size: tuple[int, int],
        stored_width: int,
        stored_height: int,
    ) -> Window | None:
        """The window of a crop for images of a stored size; None if it lies outside of them.

        Args:
            settings: give the size of the frames.
            crop: left, top and side, full-size pixels.
            full_size: width and height that the crop refers to.
            stored_width: of the images, pixels.
            stored_height: of the images, pixels.
        """
        across, down = stored_width / full_size[0], stored_height / full_size[1]
        x, y = round(crop[0] * across), round(crop[1] * down)
        width, height = round(crop[2] * across), round(crop[2] * down)
        if x >= stored_width or y >= stored_height or x + width <= 0 or y + height <= 0:
            return None
        return cls(x, y, width, height, stored_width, stored_height, settings.image_size)

    @classmethod
    def between(cls, full: Camera, frame: Camera, stored_width: int, stored_height: int) -> Window:
        """The window that was cropped and resized from one camera's image to another's.

        Args:
            full: of the full-size image.
            frame: of the ingested frames.
            stored_width: of the images, pixels.
            stored_height: of the images, pixels.
        """
        corners = np.array([[0.0, 0.0], [frame.width, frame.height]])
        stored = full.resize(stored_width, stored_height)
        (x, y), (right, bottom) = frame.map_pixels(corners, stored).round().astype(int).tolist()
        return cls(x, y, right - x, bottom - y, stored_width, stored_height, frame.width)

    @classmethod
    def whole(cls, settings: IngestSettings, width: int, height: int) -> Window:
        """The window that keeps a whole stored image, for images that are cropped already."""
        return cls(0, 0, width, height, width, height, settings.image_size)

    def apply(self, image: Image, colour: ColourTable | None = None) -> Image:
        """Crop a stored image (H, W[, 3]), black outside, and resize it to image_size.

        Pixel u of the result covers [u, u + 1) · width / image_size of the window: the mean over
        that interval where the image shrinks to less than half, otherwise linear interpolation at
        its centre, as GHA crops. Colours are corrected before the resize mixes them, but only
        inside the window.

        Args:
            image: (H, W[, 3]) at the stored size.
            colour: correction, if any.
        """
        black = np.zeros((self.height, self.width, *image.shape[2:]), np.uint8)
        return self.resize(image[self.part], colour, black)

    def resize(self, inner: Image, colour: ColourTable | None, black: Image) -> Image:
        """The same, from only the part of the stored image that the window shows.

        Args:
            inner: that part (H, W[, 3]).
            colour: correction, if any.
            black: of the window's size; written to where it shows the image, to be used again.
        """
        left, top = max(0, -self.x), max(0, -self.y)
        height, width = inner.shape[:2]
        target = black[top : top + height, left : left + width]
        if colour is None:
            target[:] = inner
        else:
            colour.correct(inner, target)
        size = self.image_size
        shrinks = min(self.width, self.height) > 2 * size
        method = cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR
        return cv2.resize(black, (size, size), interpolation=method)

    def camera(self, full: Camera) -> Camera:
        """The camera of the ingested frames, from the camera of the full-size image."""
        stored = full.resize(self.stored_width, self.stored_height)
        return stored.crop(self.x, self.y, self.width, self.height).resize(
            self.image_size, self.image_size
        )

    @property
    def part(self) -> Part:
        """Rows and columns of the stored image that the window shows."""
        bottom, right = self.y + self.height, self.x + self.width
        return (
            slice(max(0, self.y), min(self.stored_height, bottom)),
            slice(max(0, self.x), min(self.stored_width, right)),
        )

    @property
    def inside(self) -> tuple[slice, slice]:
        """Rows and columns of the result that draw on pixels of the sensor only."""

        def span(start: int, length: int, stored: int) -> slice:
            step = length / self.image_size
            margin = max(step, 1) / 2  # half the support of the area and the linear filter
            first = math.ceil((margin - start) / step - 0.5 - 1e-9)
            last = math.floor((stored - margin - start) / step - 0.5 + 1e-9)
            return slice(max(0, first), min(self.image_size, last + 1))

        rows = span(self.y, self.height, self.stored_height)
        return rows, span(self.x, self.width, self.stored_width)

    def visible(self) -> Image:
        """(S, S) 255 where the result shows the sensor, 0 in the padding of the crop."""
        mask = np.zeros((self.image_size, self.image_size), dtype=np.uint8)
        mask[self.inside] = 255
        return mask


@dataclass(frozen=True)
class FrameRow:
    """A row of ``capture/<sequence>.csv``: one ingested image.

    Attributes:
        timestep: index after temporal subsampling.
        camera: serial number.
        source_frame: index in the video.
        sharpness: variance of the Laplacian of every fourth row, squared 8-bit levels.
    """

    timestep: int
    camera: str
    source_frame: int
    sharpness: float


def calibrate(settings: IngestSettings, capture: Path, output: Path) -> Path:
    """Write the cameras of the ingested frames, the visible masks and the plates.

    All videos of the chosen sequences are checked first, so that a fault stops the run here.

    Args:
        settings: sequences, cameras and the crop.
        capture: the raw capture's folder.
        output: receives cameras.json, full_cameras.json (of the uncropped images at full size),
            visible/<camera>.png and plates/<camera>.png; without plates an empty folder.

    Returns:
        ``output``.

    Raises:
        UserError: the capture is faulty, or the settings choose no sequence or camera.
    """
    raw = open_capture(capture)
    sequences = select(list(raw.frames), settings.sequences, settings.exclude)
    if not sequences:
        raise UserError(f"the settings 'sequences' and 'exclude' leave none of {list(raw.frames)}.")
    serials = select_cameras(settings, raw)
    headers = check_videos(raw, sequences, serials)[sequences[0]]
    windows = {serial: _window(settings, raw, serial, headers[serial]) for serial in serials}
    (output / "plates").mkdir(parents=True, exist_ok=True)  # Snakemake waits for the folder
    for serial, window in windows.items():
        write_image(output / "visible" / f"{serial}.png", _visible(raw, serial, window))
        if serial in raw.plates:
            straighten = _straightener(raw, serial, window)
            plate = straighten(_read_plate(raw, serial, window))
            plate = window.apply(plate, _table(settings, raw, serial))
            write_image(output / "plates" / f"{serial}.png", plate)
    cameras = {serial: raw.cameras[serial] for serial in serials}
    lenses = {serial: raw.lenses[serial] for serial in serials if serial in raw.lenses}
    write_cameras(output / "full_cameras.json", cameras, lenses)
    ingested = {serial: windows[serial].camera(camera) for serial, camera in cameras.items()}
    write_cameras(output / "cameras.json", ingested)
    return output


def ingest(settings: IngestSettings, capture: Path, sequence: str, output: Path) -> Path:
    """Decode one sequence into frames; what an interrupted run left is replaced.

    Args:
        settings: cameras, crop, subsampling and image size.
        capture: the raw capture's folder.
        sequence: its name.
        output: receives <sequence>/<camera>/<timestep:05d>.jpg and then <sequence>.csv.

    Returns:
        the path of <sequence>.csv.

    Raises:
        UserError: the capture is faulty, or a video cannot be decoded to its end.
    """
    raw = open_capture(capture)
    serials = select_cameras(settings, raw)
    headers = check_videos(raw, [sequence], serials)[sequence]
    folder, index = output / sequence, output / f"{sequence}.csv"
    index.unlink(missing_ok=True)
    shutil.rmtree(folder, ignore_errors=True)

    def ingest_camera(serial: str) -> list[FrameRow]:
        return _ingest_camera(settings, raw, sequence, serial, headers[serial], folder / serial)

    results = in_threads(ingest_camera, serials, f"ingest {sequence}")
    rows = [row for camera_rows in results for row in camera_rows]
    return write_rows(index, sorted(rows, key=lambda row: (row.timestep, row.camera)))


def select_cameras(settings: IngestSettings, capture: Capture) -> list[str]:
    """Serial numbers that the settings choose, sorted.

    Raises:
        UserError: none is chosen, or the colour calibration that the settings want is missing.
    """
    check_patterns("cameras", list(capture.cameras), settings.cameras)
    serials = select(list(capture.cameras), settings.cameras)
    if not serials:
        raise UserError(f"capture.ingest.cameras is empty; there are {list(capture.cameras)}.")
    if settings.colour_correction and capture.colours == {}:
        raise UserError(
            f"the colour calibration of {capture.root} is missing (calibration/"
            "color_calibration.json of NeRSemble v2, color_correction/ of v1); restore it or set "
            "colour_correction: false."
        )
    return serials


def frame_cameras(settings: IngestSettings, capture: Capture) -> dict[str, Camera]:
    """The chosen cameras as the ingested frames show them, whatever the size of the stored images.

    Args:
        settings: cameras and crop.
        capture: whose calibration is read.

    Raises:
        UserError: the crop leaves nothing of the image.
    """
    chosen = select(list(capture.cameras), settings.cameras)
    return {
        serial: _window(settings, capture, serial, Header(*capture.full_size(serial), 0)).camera(
            capture.cameras[serial]
        )
        for serial in chosen
    }


def in_threads(work: Callable[[Item], Result], items: Sequence[Item], title: str) -> list[Result]:
    """Apply a function to each item in threads, with a progress bar; results in order."""
    with make_pool() as pool:
        return list(tqdm(pool.map(work, items), title, total=len(items), unit="camera"))


def _ingest_camera(
    settings: IngestSettings,
    capture: Capture,
    sequence: str,
    serial: str,
    header: Header,
    folder: Path,
) -> list[FrameRow]:
    """Write the frames of one camera of one sequence and return their rows."""
    window = _window(settings, capture, serial, header)
    table = _table(settings, capture, serial)
    straighten = _straightener(capture, serial, window)
    distorted = serial in capture.lenses  # the window then draws on other pixels than its own
    inside = _box(_visible(capture, serial, window))
    quality = [cv2.IMWRITE_JPEG_QUALITY, settings.jpeg_quality]
    every = 1 if capture.prepared else settings.every
    folder.mkdir(parents=True)
    black = np.zeros((window.height, window.width, 3), np.uint8)
    wanted = None if distorted else window.part
    rows = []
    for index, image in capture.frames[sequence][serial].decode(every, wanted):
        shown = straighten(image)[window.part] if distorted else image
        frame = window.resize(shown, table, black)
        # Straight to its name: the index, written last, makes the whole sequence atomic.
        path = folder / f"{index // every:05d}.jpg"
        with refusals_told(path):
            path.write_bytes(encode_image(path.suffix, frame, quality))
        sharpness = measure_sharpness(frame[inside])
        rows.append(FrameRow(index // every, serial, index, sharpness))
    return rows


def _window(settings: IngestSettings, capture: Capture, serial: str, header: Header) -> Window:
    """What a camera's stored images are cropped to."""
    stored = header.width, header.height
    if capture.prepared:
        return Window.whole(settings, *stored)
    if not capture.crops:
        return Window.of(settings, *stored)
    crop, full_size = capture.crops[serial], capture.full_size(serial)
    window = Window.of_crop(settings, crop, full_size, *stored)
    if window is None:
        raise UserError(
            f"{capture.root}: the crop {list(crop)} of camera {serial} lies outside its "
            f"{full_size[0]}×{full_size[1]} image; correct left, top and side."
        )
    return window


def _visible(capture: Capture, serial: str, window: Window) -> Image:
    """(S, S) 255 where a camera's frames show the sensor, 0 in the padding of the crop."""
    known = _read_padding(capture, serial, window)
    if known is None and serial not in capture.lenses:
        return window.visible()
    if known is None:
        known = np.full((window.stored_height, window.stored_width), 255, np.uint8)
    if serial in capture.lenses:  # the filter reaches a pixel beyond what it shows
        known = cv2.erode(_straightener(capture, serial, window)(known), np.ones((3, 3)))
    inside = window.apply((known == 255).astype(np.uint8)) == 1
    return np.where(inside, 255, 0).astype(np.uint8)


def _read_padding(capture: Capture, serial: str, window: Window) -> Image | None:
    """The stored image that is 0 in the padding of an earlier crop, and else 255; None without."""
    for path in (path for kept in capture.visible.values() for path in kept[serial].paths):
        image = read_raw_image(path)
        check_size(path, image.shape[1], image.shape[0], capture.full_size(serial))
        if image.max() > 127:  # else the frame is marked as unusable, not as padded
            size = (window.stored_width, window.stored_height)
            known = cv2.resize(image[..., 1], size, interpolation=cv2.INTER_AREA)
            return np.where(known > 127, 255, 0).astype(np.uint8)
    return None


def _straightener(capture: Capture, serial: str, window: Window) -> Callable[[Image], Image]:
    """What undistorts a camera's stored images."""
    lens = capture.lenses.get(serial)
    return straightener(lens, window.stored_width, window.stored_height)


def _box(mask: Image) -> tuple[slice, slice]:
    """Rows and columns of the box around the set pixels."""
    x, y, width, height = cv2.boundingRect(mask)
    return slice(y, y + height), slice(x, x + width)


def _table(settings: IngestSettings, capture: Capture, serial: str) -> ColourTable | None:
    if not settings.colour_correction or capture.colours is None:
        return None
    return ColourTable(capture.colours[serial])


def _read_plate(capture: Capture, serial: str, window: Window) -> Image:
    """A plate at the stored size of the frames; real plates are larger than reduced videos."""
    path = capture.plates[serial]
    plate = read_raw_image(path)
    check_size(path, plate.shape[1], plate.shape[0], capture.full_size(serial))
    size = (window.stored_width, window.stored_height)
    return cv2.resize(plate, size, interpolation=cv2.INTER_AREA)


def measure_sharpness(frame: Image) -> float:
    """Variance of the Laplacian of every fourth row of the green channel, squared 8-bit levels."""
    laplacian = cv2.Laplacian(np.ascontiguousarray(frame[::4, :, 1]), cv2.CV_16S)
    mean_square = cv2.norm(laplacian, cv2.NORM_L2SQR) / laplacian.size
    return round(mean_square - cv2.mean(laplacian)[0] ** 2, 2)
