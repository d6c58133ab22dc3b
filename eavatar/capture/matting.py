"""Ingested frames to masks, by one of the backends in `eavatar.capture.backends`.

A backend is a function of one camera's `Shot` that yields its masks (S, S), 8 bits, in the order of
time; it may use `batched` and `steady`. Beside the masks goes the set behind the person, which
training and tables take out of the colours where a mask is soft.
"""

from __future__ import annotations

import csv
import logging
import shutil
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from eavatar.arrays import Image
from eavatar.backends import MATTING
from eavatar.capture.backgrounds import estimate_background
from eavatar.capture.ingest import in_threads
from eavatar.data.images import read_colour, read_grey
from eavatar.errors import UserError
from eavatar.io import BACKGROUND, require, write_image, write_rows
from eavatar.settings import IngestSettings, MatteSettings

logger = logging.getLogger(__name__)

# Training decodes masks all the time: a fifth smaller and twice as fast as by OpenCV's default.
PNG = (cv2.IMWRITE_PNG_FILTER, cv2.IMWRITE_PNG_FILTER_UP)
JPEG = (cv2.IMWRITE_JPEG_QUALITY, 95)  # what the frames have by default

NEIGHBOURS = 4  # masks before and after that the coverage of one is compared with
MAX_SHOWN = 32  # frames of a sequence that show the set; the mean of more is no better
REST = 4  # 8-bit levels; noise of 2 levels makes a mean difference of 2.3


@dataclass(frozen=True)
class MaskRow:
    """A row of ``capture/masks/<sequence>.csv``.

    Attributes:
        timestep: of the frame.
        camera: serial number.
        coverage: mean of the mask, in [0, 1].
        left: first column of the pixels above 0; 0 if none is, as the other three.
        top: first row of them.
        right: column after the last of them.
        bottom: row after the last of them.
        failed: 1 if the mask is not to be used (see `find_failed`).
    """

    timestep: int
    camera: str
    coverage: float
    left: int
    top: int
    right: int
    bottom: int
    failed: int = 0

    @classmethod
    def of(cls, timestep: int, camera: str, mask: Image) -> MaskRow:
        """Of a mask (S, S), 8 bits."""
        x, y, width, height = cv2.boundingRect(mask)
        coverage = round(float(mask.mean()) / 255, 5)
        return cls(timestep, camera, coverage, x, y, x + width, y + height)


@dataclass(frozen=True)
class Shot:
    """One camera of one sequence, ready to be matted.

    Attributes:
        settings: of the rule; ``settings.own`` are the backend's.
        ingest: the settings that made the frames.
        frames: folder of the ingested capture.
        mattes: folder of provided alpha videos, if any.
        sequence: its name.
        camera: serial number.
        timesteps: (T,) of the ingested frames.
        source_frames: (T,) their indices in the video.
        visible: (S, S) 255 where the frames show the sensor.
    """

    settings: MatteSettings
    ingest: IngestSettings
    frames: Path
    mattes: Path | None
    sequence: str
    camera: str
    timesteps: tuple[int, ...]
    source_frames: tuple[int, ...]
    visible: Image

    @property
    def plate_path(self) -> Path:
        """The image of the empty set, if there is one."""
        return self.frames / "plates" / f"{self.camera}.png"

    def plate(self) -> Image:
        """The (S, S, 3) BGR image of the empty set, or a `UserError` if there is none."""
        path = self.plate_path
        if not path.exists():
            raise UserError(
                f"the {self.settings.backend} backend needs the background plate of camera "
                f"{self.camera}, but {path} does not exist; add it to the capture or set "
                f"capture.matte.backend to {without_plates()}."
            )
        return read_colour(path, "calibrate")

    def image(self, timestep: int) -> Image:
        """The (S, S, 3) BGR frame of a timestep."""
        return read_colour(self.frames / self.sequence / self.camera / f"{timestep:05d}.jpg")

    def images(self) -> Iterator[Image]:
        """The (S, S, 3) BGR frames in the order of the timesteps."""
        return map(self.image, self.timesteps)


def without_plates() -> str:
    """The names of the backends that need no background plate, for a sentence."""
    return " or ".join(name for name, backend in MATTING.items() if not backend.needs_plates)


def matte(
    settings: MatteSettings,
    ingest: IngestSettings,
    frames: Path,
    sequence: str,
    mattes: Path | None,
    output: Path,
) -> Path:
    """Write a mask for every frame of a sequence, and the set behind the person.

    Args:
        settings: names the backend.
        ingest: the settings that made the frames; ``provided`` crops alike.
        frames: folder of the ingested capture.
        sequence: its name.
        mattes: for ``provided``, a folder with <sequence>/cam_<serial>.mp4 of the uncropped image.
        output: receives <sequence>/<camera>/<timestep:05d>.png, beside them background.jpg unless
            ``settings.foreground`` is none or all masks of the camera have failed, and then
            <sequence>.csv.

    Returns:
        The index, <sequence>.csv.

    Raises:
        UserError: an input of the chosen backend is missing or does not fit the frames.
    """
    folder, index = output / sequence, output / f"{sequence}.csv"
    index.unlink(missing_ok=True)
    shutil.rmtree(folder, ignore_errors=True)
    backend = settings.chosen.run

    def matte_shot(shot: Shot) -> list[MaskRow]:
        rows = []
        for timestep, mask in zip(shot.timesteps, backend(shot), strict=True):
            seen = cv2.min(mask, shot.visible)
            write_image(folder / shot.camera / f"{timestep:05d}.png", seen, PNG)
            rows.append(MaskRow.of(timestep, shot.camera, seen))
        rows = mark_failed(rows, settings, sequence)
        usable = [row.timestep for row in rows if not row.failed]
        if usable and settings.foreground != "none":
            write_image(folder / shot.camera / BACKGROUND, _background(shot, folder, usable), JPEG)
        return rows

    shots = _read_shots(settings, ingest, frames, sequence, mattes)
    rows = [row for rows in in_threads(matte_shot, shots, f"matte {sequence}") for row in rows]
    return write_rows(index, sorted(rows, key=lambda row: (row.timestep, row.camera)))


def _background(shot: Shot, masks: Path, usable: Sequence[int]) -> Image:
    """The (S, S, 3) BGR set behind the person: the plate, or an estimate.

    Args:
        shot: a camera.
        masks: folder of the sequence's masks.
        usable: the timesteps whose masks have not failed, at least one.
    """
    if shot.settings.foreground == "plate" and shot.plate_path.exists():
        return shot.plate()
    shown = usable[:: max(1, len(usable) // MAX_SHOWN)]
    views = (
        (shot.image(timestep), read_grey(masks / shot.camera / f"{timestep:05d}.png"))
        for timestep in shown
    )
    return estimate_background(views, shot.visible)


def mark_failed(rows: Sequence[MaskRow], settings: MatteSettings, sequence: str) -> list[MaskRow]:
    """The rows of one camera in the order of time, with ``failed`` set and a warning if any is."""
    failed = find_failed(np.array([row.coverage for row in rows]), settings)
    if failed.any():
        logger.warning(
            "%s, camera %s: %d of %d masks failed, the first at timestep %d: they cover less than "
            "%g or more than %g of the image, or differ by %g from those around them; these views "
            "are left out.",
            sequence, rows[0].camera, failed.sum(), len(rows), rows[int(failed.argmax())].timestep,
            settings.min_coverage, settings.max_coverage, settings.max_jump,
        )  # fmt: skip
    return [replace(row, failed=int(bad)) for row, bad in zip(rows, failed, strict=True)]


def find_failed(coverage: NDArray[np.float64], settings: MatteSettings) -> NDArray[np.bool_]:
    """(T,) whether the masks of one camera are implausible by their coverage (T,).

    A mask fails if it covers too little or too much of the image, or if its coverage differs too
    much from most of the `NEIGHBOURS` plausible masks that are nearest in time.
    """
    failed = (coverage < settings.min_coverage) | (coverage > settings.max_coverage)
    plausible = np.flatnonzero(~failed)
    last = max(0, len(plausible) - NEIGHBOURS - 1)
    for place, index in enumerate(plausible):
        start = min(max(0, place - NEIGHBOURS // 2), last)
        around = np.delete(plausible[start : start + NEIGHBOURS + 1], place - start)
        change = np.abs(coverage[index] - coverage[around])
        if len(around) > 1:  # of two alone, none could tell which one is wrong
            failed[index] = np.mean(change > settings.max_jump * coverage[around]) > 0.5
    return failed


def _read_shots(
    settings: MatteSettings,
    ingest: IngestSettings,
    frames: Path,
    sequence: str,
    mattes: Path | None,
) -> list[Shot]:
    index = frames / f"{sequence}.csv"
    with require(index, "the index of the frames").open(newline="") as file:
        table = list(csv.DictReader(file))
    try:
        rows = [(row["camera"], int(row["timestep"]), int(row["source_frame"])) for row in table]
    except (KeyError, ValueError, TypeError) as error:
        raise UserError(f"{index} is damaged ({error}); ingest the sequence again.") from error
    if not rows:
        raise UserError(f"{index} lists no frames; ingest the sequence again.")
    shots = []
    for camera in sorted({camera for camera, _, _ in rows}):
        own = sorted((timestep, source) for serial, timestep, source in rows if serial == camera)
        timesteps, source_frames = zip(*own, strict=True)
        visible = read_grey(frames / "visible" / f"{camera}.png", "calibrate")
        shots.append(
            Shot(
                settings,
                ingest,
                frames,
                mattes,
                sequence,
                camera,
                timesteps,
                source_frames,
                visible,
            )
        )
    return shots


# --- what backends share ----------------------------------------------------------------------


def batched(images: Iterator[Image], size: int) -> Iterator[list[Image]]:
    """Lists of at most ``size`` images."""
    while batch := list(islice(images, size)):
        yield batch


def steady(images: Iterable[Image], masks: Iterable[Image]) -> Iterator[Image]:
    """Masks (S, S) with less flicker, given their frames (S, S, 3) in the order of time.

    Where a frame rests, that is equals the one before and the one after up to `REST`, its mask is
    the median of the three.
    """
    past: tuple[Image, NDArray[np.bool_]] | None = None  # a mask, and where its frame then rested
    now: tuple[Image, Image] | None = None
    for image, after in zip(images, masks, strict=True):
        if now is not None:
            frame, mask = now
            rests = _rests(frame, image)
            yield mask if past is None else _median_at_rest(past[1] & rests, past[0], mask, after)
            past = mask, rests
        now = image, after
    if now is not None:
        yield now[1]


def _median_at_rest(rests: NDArray[np.bool_], before: Image, now: Image, after: Image) -> Image:
    """The middle one of three masks (S, S), their median where the frames rest."""
    low, high = cv2.min(before, after), cv2.max(before, after)
    return np.where(rests, cv2.max(low, cv2.min(high, now)), now)


def _rests(first: Image, second: Image) -> NDArray[np.bool_]:
    """(S, S) where two frames (S, S, 3) are equal, noise averaged out."""
    blue, green, red = cv2.split(cv2.blur(cv2.absdiff(first, second), (5, 5)))
    resting: NDArray[np.bool_] = cv2.max(cv2.max(blue, green), red) < REST
    return resting
