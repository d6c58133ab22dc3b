"""Masks from the difference between a frame and the background plate, without a network."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import cv2
import numpy as np
from numba import njit

from eavatar.arrays import Bool, Image, Int64

# Distances are CIELAB ΔE, where about 2 is just noticeable.
SHADOW = 6.0  # darkening of the set that a soft shadow explains
MIN_THRESHOLD = 5.0  # above JPEG artefacts, whatever the noise
NOISE_FACTOR = 6.0  # threshold above the background's median, in its standard deviations
BORDER = 1 / 16  # width of the strip taken as background, fraction of the image size
MIN_COMPONENT = 0.1  # area of a part of the subject, fraction of the largest part
BAND = 1 / 96  # half width of the soft edge, fraction of the image size; at least 2 pixels
LOCAL_RADIUS = 7  # pixels of half width for which local colours are those of all pixels
CONTRAST = 0.04  # contrast of subject and plate below which the hard mask outweighs the colours


@dataclass(frozen=True)
class Plate:
    """The empty set, prepared once per camera, of the H × W pixels that show the sensor.

    Attributes:
        window: rows and columns of these pixels in the (S, S) frames.
        colour: (H, W, 3) BGR in [0, 1].
        lab: (H, W, 3) CIELAB.
        border: (N,) indices of pixels where background is expected: strips at the top and the upper
            sides.
        border_colour: (N, 3) BGR in [0, 255] there, at least 1.
    """

    window: tuple[slice, slice]
    colour: Image
    lab: Image
    border: Int64
    border_colour: Image

    @classmethod
    def of(cls, image: Image, visible: Image) -> Plate:
        """From the BGR image (S, S, 3) of the empty set, where ``visible`` (S, S) is not 0."""
        left, top, width, height = cv2.boundingRect(visible)
        window = slice(top, top + height), slice(left, left + width)
        colour = image[window].astype(np.float32) / 255
        strip = round(len(visible) * BORDER)
        border = np.zeros((height, width), dtype=bool)
        border[:strip] = True
        border[: height // 2, :strip] = True
        border[: height // 2, -strip:] = True
        places = np.flatnonzero(border)
        border_colour = np.maximum(colour.reshape(-1, 3)[places] * 255, 1)
        return cls(window, colour, cv2.cvtColor(colour, cv2.COLOR_BGR2Lab), places, border_colour)


def mask_from_plate(image: Image, plate: Plate) -> Image:
    """(S, S) mask of a frame: where it differs from the plate, with a soft edge.

    The plate is matched to the frame's exposure, the perceptual difference is thresholded above
    the noise of the background, the subject is its large components without their false holes, and
    the mask at its edge follows from the known background (see `_soft_edge`).
    """
    colour = _match_exposure(image[plate.window], plate)
    distance = _distance(colour, plate)
    background = distance.ravel()[plate.border]
    centre = float(np.median(background))
    deviation = 1.4826 * float(np.median(np.abs(background - centre)))
    threshold = max(MIN_THRESHOLD, centre + NOISE_FACTOR * deviation)
    subject = _main_components(distance > threshold)
    subject = _fill_holes(subject, distance, centre + 2 * deviation)
    mask = np.zeros(image.shape[:2], np.uint8)
    mask[plate.window] = (_soft_edge(colour, plate.colour, subject) * 255).round()
    return mask


def _match_exposure(image: Image, plate: Plate) -> Image:
    """(H, W, 3) the frame in [0, 1], divided by its gain per channel over the plate.

    The gain is the median over the border, where hair or a hand is outvoted.
    """
    ratio = image.reshape(-1, 3)[plate.border] / plate.border_colour
    gain = np.maximum(np.median(ratio, axis=0), 0.1)
    levels = np.arange(256)[:, None] / (255 * gain)
    return cv2.LUT(image, levels.astype(np.float32)[None])


def _distance(colour: Image, plate: Plate) -> Image:
    """(H, W) CIELAB distance to the plate, with the darkening of soft shadows forgiven.

    A shadow lowers lightness and leaves chromaticity, so only the negative part of the lightness
    difference is reduced, by at most `SHADOW`.
    """
    difference = cv2.cvtColor(colour, cv2.COLOR_BGR2Lab) - plate.lab
    difference = cv2.GaussianBlur(difference, (3, 3), 0)
    distances = np.empty(difference.shape[:2], np.float32)
    _fill_lengths(difference.reshape(-1, 3), np.float32(SHADOW), distances.ravel())
    return distances


@njit(cache=True, nogil=True)
def _fill_lengths(differences: Image, shadow: np.float32, lengths: Image) -> None:
    """Lengths (N,) of CIELAB differences (N, 3) with so much darkening forgiven."""
    for i in range(len(lengths)):
        lightness, a, b = differences[i]
        lightness = min(lightness + shadow, max(lightness, np.float32(0)))
        lengths[i] = np.sqrt(lightness * lightness + a * a + b * b)


def _main_components(mask: Bool) -> Bool:
    """The large 4-connected regions after specks and hairline bridges are removed.

    More than one, since a neck of the plate's colour may part the head from the shirt.
    """
    opened = cv2.morphologyEx(mask.astype(np.uint8), cv2.MORPH_OPEN, np.ones((3, 3), np.uint8))
    _, labels, stats, _ = cv2.connectedComponentsWithStats(opened, connectivity=4)
    areas = stats[:, cv2.CC_STAT_AREA].copy()
    areas[0] = 0  # the background
    kept: Bool = (areas >= max(1, MIN_COMPONENT * areas.max()))[labels]
    return kept


def _fill_holes(subject: Bool, distance: Image, noise: float) -> Bool:
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


def _soft_edge(colour: Image, plate: Image, subject: Bool) -> Image:
    """(H, W) a hard mask with a soft edge, in [0, 1], from the known background.

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
    behind = plate[band]
    difference = colour[band] - behind
    alpha, least = blurred, np.full(len(blurred), np.inf, np.float32)
    for mean, known in _local_colours(colour, inside, band, radius):
        contrast = mean - behind
        projected = (difference * contrast).sum(axis=-1) + CONTRAST**2 * blurred
        fitted = np.clip(projected / ((contrast**2).sum(axis=-1) + CONTRAST**2), 0, 1)
        residual = ((difference - fitted[:, None] * contrast) ** 2).sum(axis=-1)
        better = known & (residual < least)
        alpha, least = np.where(better, fitted, alpha), np.where(better, residual, least)
    result = inside.astype(np.float32)
    result[band] = alpha
    return result


def _local_colours(
    colour: Image, inside: Bool, band: Bool, radius: int
) -> Iterator[tuple[Image, Bool]]:
    """Mean colours (N, 3) of the darker and of the brighter inside around the N pixels of a band.

    Each comes with (N,) whether there is any such inside nearby. Of large squares it is enough to
    look at every few pixels.
    """
    step = max(1, radius // LOCAL_RADIUS)
    at = tuple(index // step for index in np.nonzero(band))
    colour, inside = colour[::step, ::step], inside[::step, ::step]
    side = 2 * (2 * radius // step) + 1

    def mean(values: Image) -> Image:
        return cv2.blur(values, (side, side))

    lightness = colour.mean(axis=-1)
    within = inside.astype(np.float32)
    bright = lightness > mean(lightness * within) / np.maximum(mean(within), 1e-6)
    for part in (inside & ~bright, inside & bright):
        chosen = part.astype(np.float32)
        weight = mean(chosen)[at]
        local = mean(colour * chosen[..., None])[at]
        yield local / np.maximum(weight[:, None], 1e-6), weight > 1e-3


def _distance_within(mask: Image) -> Image:
    """Distance of the set pixels to the nearest unset one, pixels; 0 at unset ones."""
    return cv2.distanceTransform(mask, cv2.DIST_L2, cv2.DIST_MASK_5)
