"""Ingested frames to alpha masks, by one of three backends with one signature.

``plate`` compares each frame with the picture of the empty set and needs no network; ``rembg``
segments single images with a pretrained network; ``provided`` crops alpha videos that come with
a dataset.
"""

from __future__ import annotations

import csv
import logging
import os
import shutil
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from eavatar.capture.ingest import Window, in_threads, write_image, write_rows
from eavatar.capture.nersemble import check_size
from eavatar.capture.video import Image, decode, read_header
from eavatar.errors import UserError
from eavatar.io import require
from eavatar.settings import IngestSettings, MatteSettings

Float = NDArray[Any]  # float32; OpenCV annotates no narrower type
Mask = NDArray[np.bool_]

logger = logging.getLogger(__name__)
_session_lock = threading.Lock()

# Training decodes masks all the time: a fifth smaller and twice as fast as by OpenCV's default.
PNG = (cv2.IMWRITE_PNG_FILTER, cv2.IMWRITE_PNG_FILTER_UP)

# The plate backend's constants. Distances are CIELAB ΔE, where about 2 is just noticeable.
SHADOW = 6.0  # darkening of the set that a soft shadow explains
LEAST_THRESHOLD = 5.0  # above JPEG artefacts, whatever the noise
NOISE_FACTOR = 6.0  # threshold above the background's median, in its standard deviations
BORDER = 1 / 16  # width of the strip taken as background, share of the image size
COMPONENT = 0.1  # least area of a part of the subject, share of the largest part
BAND = 1 / 96  # half width of the soft edge, share of the image size; at least 2 pixels
PLAUSIBLE_COVERAGE = (0.02, 0.95)  # a head in GHA's crop covers about half of it
CONTRAST = 0.04  # contrast of subject and plate below which the hard mask outweighs the colours


@dataclass(frozen=True)
class MatteRow:
    """A row of ``capture/masks/<sequence>.csv``.

    Attributes:
        coverage: mean alpha, in [0, 1].
        left, top, right, bottom: half-open box of the pixels with alpha > 0; zeros if none has.
    """

    timestep: int
    camera: str
    coverage: float
    left: int
    top: int
    right: int
    bottom: int

    @classmethod
    def of(cls, timestep: int, camera: str, alpha: Image) -> MatteRow:
        x, y, width, height = cv2.boundingRect(alpha)
        coverage = round(float(alpha.mean()) / 255, 5)
        return cls(timestep, camera, coverage, x, y, x + width, y + height)


@dataclass(frozen=True)
class Shot:
    """One camera of one sequence, ready to be matted.

    Attributes:
        frames: folder of the ingested capture.
        mattes: folder of provided alpha videos, if any.
        timesteps, source_frames: (T,) the ingested frames and their indices in the video.
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

    def images(self) -> Iterator[Image]:
        """The (S, S, 3) BGR frames in the order of the timesteps."""
        for timestep in self.timesteps:
            yield read_image(
                self.frames / self.sequence / self.camera / f"{timestep:05d}.jpg", cv2.IMREAD_COLOR
            )


def matte(
    settings: MatteSettings,
    ingest: IngestSettings,
    frames: Path,
    sequence: str,
    mattes: Path | None,
    output: Path,
) -> None:
    """Write an alpha mask for every frame of a sequence.

    Args:
        ingest: the settings that made the frames; ``provided`` crops alike.
        frames: folder of the ingested capture.
        mattes: for ``provided``, a folder with <sequence>/cam_<serial>.mp4 of the uncropped image.
        output: receives <sequence>/<camera>/<timestep:05d>.png and then <sequence>.csv.
    Raises:
        UserError: an input of the chosen backend is missing or does not fit the frames.
    """
    folder, index = output / sequence, output / f"{sequence}.csv"
    index.unlink(missing_ok=True)
    shutil.rmtree(folder, ignore_errors=True)
    backend = BACKENDS[settings.backend]

    def matte_shot(shot: Shot) -> list[MatteRow]:
        rows = []
        for timestep, alpha in zip(shot.timesteps, backend(shot), strict=True):
            seen = cv2.min(alpha, shot.visible)
            write_image(folder / shot.camera / f"{timestep:05d}.png", seen, PNG)
            rows.append(MatteRow.of(timestep, shot.camera, seen))
        _warn_if_implausible(rows, sequence)
        return rows

    shots = _read_shots(settings, ingest, frames, sequence, mattes)
    rows = [row for rows in in_threads(matte_shot, shots, f"matte {sequence}") for row in rows]
    write_rows(index, sorted(rows, key=lambda row: (row.timestep, row.camera)))


def _warn_if_implausible(rows: Sequence[MatteRow], sequence: str) -> None:
    least, most = PLAUSIBLE_COVERAGE
    faulty = [row for row in rows if not least <= row.coverage <= most]
    if faulty:
        logger.warning(
            "%s, camera %s: %d masks cover less than %.0f %% or more than %.0f %% of the image, "
            "the first at timestep %d; look at them.",
            sequence, faulty[0].camera, len(faulty), 100 * least, 100 * most, faulty[0].timestep,
        )  # fmt: skip


def read_image(path: Path, flags: int) -> Image:
    """An image of an earlier stage, or a `UserError` if it is missing or damaged."""
    image = cv2.imread(str(require(path, "the image")), flags)
    if image is None:
        raise UserError(f"{path} is not a readable image; make it again.")
    return image


def _read_shots(
    settings: MatteSettings,
    ingest: IngestSettings,
    frames: Path,
    sequence: str,
    mattes: Path | None,
) -> list[Shot]:
    with require(frames / f"{sequence}.csv", "the index of the frames").open(newline="") as file:
        rows = [
            (row["camera"], int(row["timestep"]), int(row["source_frame"]))
            for row in csv.DictReader(file)
        ]
    shots = []
    for camera in sorted({camera for camera, _, _ in rows}):
        own = sorted((timestep, source) for serial, timestep, source in rows if serial == camera)
        timesteps, source_frames = zip(*own, strict=True)
        visible = read_image(frames / "visible" / f"{camera}.png", cv2.IMREAD_GRAYSCALE)
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


# --- plate ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Plate:
    """The empty set, prepared once per camera, of the H × W pixels that show the sensor.

    Attributes:
        window: rows and columns of these pixels in the (S, S) frames.
        colour: (H, W, 3) BGR in [0, 1].
        lab: (H, W, 3) CIELAB.
        border: (H, W) where background is expected: strips at the top and the upper sides.
    """

    window: tuple[slice, slice]
    colour: Float
    lab: Float
    border: Mask

    @classmethod
    def of(cls, image: Image, visible: Image) -> Plate:
        left, top, width, height = cv2.boundingRect(visible)
        window = slice(top, top + height), slice(left, left + width)
        colour = image[window].astype(np.float32) / 255
        strip = round(len(visible) * BORDER)
        border = np.zeros((height, width), dtype=bool)
        border[:strip] = True
        border[: height // 2, :strip] = True
        border[: height // 2, -strip:] = True
        return cls(window, colour, cv2.cvtColor(colour, cv2.COLOR_BGR2Lab), border)


def matte_by_plate(shot: Shot) -> Iterator[Image]:
    """Alpha from the difference to the background plate (see `alpha_from_plate`)."""
    path = shot.frames / "plates" / f"{shot.camera}.png"
    if not path.exists():
        raise UserError(
            f"the plate backend needs the background plate of camera {shot.camera}, but {path} "
            "does not exist; add it to the capture or set capture.matte.backend."
        )
    plate = Plate.of(read_image(path, cv2.IMREAD_COLOR), shot.visible)
    for image in shot.images():
        yield alpha_from_plate(image, plate)


def alpha_from_plate(image: Image, plate: Plate) -> Image:
    """(S, S) alpha of a frame: where it differs from the plate, with a soft edge.

    The plate is matched to the frame's exposure, the perceptual difference is thresholded above
    the noise of the background, the subject is its large components without their false holes, and
    the alpha of its edge follows from the known background (see `_soft_edge`).
    """
    colour = _match_exposure(image[plate.window], plate)
    distance = _distance(colour, plate)
    background = distance[plate.border]
    centre = float(np.median(background))
    deviation = 1.4826 * float(np.median(np.abs(background - centre)))
    threshold = max(LEAST_THRESHOLD, centre + NOISE_FACTOR * deviation)
    subject = _main_components(distance > threshold)
    subject = _fill_holes(subject, distance, centre + 2 * deviation)
    alpha = np.zeros(image.shape[:2], np.uint8)
    alpha[plate.window] = (_soft_edge(colour, plate.colour, subject) * 255).round()
    return alpha


def _match_exposure(image: Image, plate: Plate) -> Float:
    """(H, W, 3) the frame in [0, 1], divided by its gain per channel over the plate.

    The gain is the median over the border, where hair or a hand is outvoted.
    """
    ratio = image[plate.border] / np.maximum(plate.colour[plate.border] * 255, 1)
    gain = np.maximum(np.median(ratio, axis=0), 0.1)
    levels = np.arange(256)[:, None] / (255 * gain)
    return cv2.LUT(image, levels.astype(np.float32)[None])


def _distance(colour: Float, plate: Plate) -> Float:
    """(H, W) CIELAB distance to the plate, with the darkening of soft shadows forgiven.

    A shadow lowers lightness and leaves chromaticity, so only the negative part of the lightness
    difference is reduced, by at most `SHADOW`.
    """
    difference = cv2.cvtColor(colour, cv2.COLOR_BGR2Lab) - plate.lab
    difference = cv2.GaussianBlur(difference, (3, 3), 0)
    lightness = difference[..., 0]
    lightness += np.clip(-lightness, 0, SHADOW)
    return np.sqrt(np.einsum("...c,...c", difference, difference))


def _main_components(mask: Mask) -> Mask:
    """The large 4-connected regions after specks and hairline bridges are removed.

    More than one, since a neck of the plate's colour may part the head from the shirt.
    """
    opened = cv2.morphologyEx(mask.astype(np.uint8), cv2.MORPH_OPEN, np.ones((3, 3), np.uint8))
    _, labels, stats, _ = cv2.connectedComponentsWithStats(opened, connectivity=4)
    areas = stats[:, cv2.CC_STAT_AREA].copy()
    areas[0] = 0  # the background
    return (areas >= max(1, COMPONENT * areas.max()))[labels]


def _fill_holes(subject: Mask, distance: Float, noise: float) -> Mask:
    """Fill the enclosed holes of a mask, except those that look like the plate.

    Skin or cloth of the plate's colour differs from it somewhat; where the set is seen between a
    strand of hair and a shoulder the difference is noise.
    """
    count, labels, stats, _ = cv2.connectedComponentsWithStats(
        (~subject).astype(np.uint8), connectivity=8
    )
    filled = subject.copy()
    height, width = subject.shape
    for label in range(1, count):
        x, y, w, h, _ = stats[label]
        if x == 0 or y == 0 or x + w == width or y + h == height:
            continue
        region = (slice(y, y + h), slice(x, x + w))
        hole = labels[region] == label
        if np.median(distance[region][hole]) > noise:
            filled[region] |= hole
    return filled


def _soft_edge(colour: Float, plate: Float, subject: Mask) -> Float:
    """(H, W) alpha in [0, 1] of a hard mask's edge, from the known background.

    In a band along the edge the pixel is I = α F + (1 − α) B with B the plate and F a colour of the
    subject's inside nearby: of its dark or of its bright part (hair and skin, say), whichever
    explains the pixel better. The least-squares α is pulled to the blurred mask with a weight that
    matters only where F and B hardly differ.
    """
    radius = max(2, round(len(subject) * BAND))
    hard = subject.astype(np.uint8)
    inside = _distance_within(hard) > radius
    band = ~inside & (_distance_within(1 - hard) <= radius)
    blurred = cv2.blur(hard.astype(np.float32), (2 * radius + 1, 2 * radius + 1))[band]
    difference = colour[band] - plate[band]
    alpha, least = blurred, np.full(len(blurred), np.inf, np.float32)
    for mean, known in _local_colours(colour, inside, band, radius):
        contrast = mean - plate[band]
        projected = (difference * contrast).sum(axis=-1) + CONTRAST**2 * blurred
        fitted = np.clip(projected / ((contrast**2).sum(axis=-1) + CONTRAST**2), 0, 1)
        residual = ((difference - fitted[:, None] * contrast) ** 2).sum(axis=-1)
        better = known & (residual < least)
        alpha, least = np.where(better, fitted, alpha), np.where(better, residual, least)
    result = inside.astype(np.float32)
    result[band] = alpha
    return result


def _local_colours(
    colour: Float, inside: Mask, band: Mask, radius: int
) -> Iterator[tuple[Float, Mask]]:
    """Mean colours (N, 3) of the darker and of the brighter inside around the N pixels of a band.

    Each comes with (N,) whether there is any such inside nearby.
    """
    window = (4 * radius + 1, 4 * radius + 1)

    def mean(values: Float, weight: Float) -> Float:
        return cv2.blur(values, window) / np.maximum(weight, 1e-6)

    lightness = colour.mean(axis=-1)
    within = inside.astype(np.float32)
    bright = lightness > mean(lightness * within, cv2.blur(within, window))
    for part in (inside & ~bright, inside & bright):
        chosen = part.astype(np.float32)
        weight = cv2.blur(chosen, window)
        local = cv2.blur(colour * chosen[..., None], window)[band]
        yield local / np.maximum(weight[band, None], 1e-6), weight[band] > 1e-3


def _distance_within(mask: Image) -> Float:
    """Distance of the set pixels to the nearest unset one, pixels; 0 at unset ones."""
    return cv2.distanceTransform(mask, cv2.DIST_L2, cv2.DIST_MASK_5)


# --- rembg ------------------------------------------------------------------------------------


def matte_by_rembg(shot: Shot) -> Iterator[Image]:
    """Alpha from a pretrained segmentation network of the rembg package."""
    with _session_lock:  # the cache alone would let two threads load the model twice
        session = _rembg_session(shot.settings.rembg_model)
    from rembg import remove

    for image in shot.images():
        alpha = remove(cv2.cvtColor(image, cv2.COLOR_BGR2RGB), session=session, only_mask=True)
        yield np.clip(np.asarray(alpha), 0, 255).astype(np.uint8)


@lru_cache(maxsize=1)
def _rembg_session(name: str) -> Any:
    """A rembg session on a model file that is there already; rembg would download it otherwise."""
    home, legacy = _rembg_homes()
    candidates = (home / "models" / name / f"{name}.onnx", legacy / f"{name}.onnx")
    if not any(path.is_file() for path in candidates):
        raise UserError(
            f"the rembg model '{name}' is missing: put {name}.onnx at {candidates[0]} "
            "(REMBG_HOME or U2NET_HOME name another folder), or set capture.matte.backend to plate."
        )
    try:
        from rembg import new_session
    except (ImportError, SystemExit) as error:  # rembg exits if onnxruntime is missing
        raise UserError(
            "the packages rembg and onnxruntime are needed by the rembg backend; install them, or "
            "set capture.matte.backend to plate."
        ) from error
    return new_session(name)


def _rembg_homes() -> tuple[Path, Path]:
    """Where rembg looks for models: its home, and the flat folder of its earlier versions."""
    data = os.environ.get("XDG_DATA_HOME")
    legacy = Path(os.environ.get("U2NET_HOME") or Path(data or "~") / ".u2net").expanduser()
    if os.environ.get("U2NET_HOME"):
        return legacy, legacy
    default = Path(data) / "rembg" if data else Path("~/.rembg")
    return Path(os.environ.get("REMBG_HOME", default)).expanduser(), legacy


# --- provided ---------------------------------------------------------------------------------


def matte_by_provided(shot: Shot) -> Iterator[Image]:
    """Alpha from videos of the uncropped image, cropped and resized like the frames."""
    if shot.mattes is None:
        raise UserError(
            "the provided mattes have no folder; name it in the sample sheet or set "
            "capture.matte.backend."
        )
    path = shot.mattes / shot.sequence / f"cam_{shot.camera}.mp4"
    header = read_header(require(path, f"the alpha video of camera {shot.camera}"))
    check_size(path, header.width, header.height)
    if header.frames <= max(shot.source_frames):
        raise UserError(
            f"{path} has {header.frames} frames but frame {max(shot.source_frames)} is needed; "
            "alpha videos must be as long as the colour videos."
        )
    window = Window.of(shot.ingest, header.width, header.height)
    wanted = set(shot.source_frames)
    for index, image in decode(path):
        if index in wanted:
            yield window.apply(image[..., 1])


BACKENDS: dict[str, Callable[[Shot], Iterator[Image]]] = {
    "plate": matte_by_plate,
    "rembg": matte_by_rembg,
    "provided": matte_by_provided,
}
