"""Masks from the difference between a frame and the background plate, without a network."""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
from cv2.typing import MatLike
from numba import njit

from eavatar.arrays import Bool, Image, Int64

# Distances are CIELAB ΔE, where about 2 is just noticeable.
SHADOW = 6.0  # darkening of the set that a soft shadow explains
MIN_THRESHOLD = 5.0  # above JPEG artefacts, whatever the noise
NOISE_FACTOR = 6.0  # threshold above the background's median, in its standard deviations
BORDER = 1 / 16  # width of the strip taken as background, fraction of the image size
MAX_BORDER = 2**16  # pixels of it that are looked at; twice as many at most
MIN_COMPONENT = 0.1  # area of a part of the subject, fraction of the largest part
BAND = 1 / 96  # half width of the soft edge, fraction of the image size; at least 2 pixels
LOCAL_RADIUS = 7  # pixels of half width for which local colours are those of all pixels
STRIP = 64  # rows whose distances are computed at a time
CONTRAST = 0.04  # contrast of subject and plate below which the hard mask outweighs the colours


@dataclass(frozen=True)
class Plate:
    """The empty set, prepared once per camera, of the H × W pixels that show the sensor.

    Attributes:
        window: rows and columns of these pixels in the (S, S) frames.
        colour: (H, W, 3) BGR in [0, 1].
        lab: (H, W, 3) CIELAB.
        border: (N,) indices of pixels where background is expected, at regular distances in strips
            at the top and the upper sides.
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
        places = places[:: max(1, len(places) // MAX_BORDER)]
        border_colour = np.maximum(colour.reshape(-1, 3)[places] * 255, 1)
        return cls(window, colour, cv2.cvtColor(colour, cv2.COLOR_BGR2Lab), places, border_colour)


def mask_from_plate(image: Image, plate: Plate) -> Image:
    """(S, S) mask of a frame: where it differs from the plate, with a soft edge.

    The plate is matched to the frame's exposure, the perceptual difference is thresholded above
    the noise of the background, the subject is its large components without their false holes, and
    the mask at its edge follows from the known background (see `_draw_soft_edge`).
    """
    mask = np.zeros(image.shape[:2], np.uint8)
    image = image[plate.window]
    levels = _match_exposure(image, plate)
    distance = _distance(image, levels, plate)
    background = distance.ravel()[plate.border]
    centre = float(np.median(background))
    deviation = 1.4826 * float(np.median(np.abs(background - centre)))
    threshold = max(MIN_THRESHOLD, centre + NOISE_FACTOR * deviation)
    subject = _main_components(distance > threshold)
    _fill_holes(subject, distance, centre + 2 * deviation)
    _draw_soft_edge(image, levels, plate.colour, subject, mask[plate.window])
    return mask


def _match_exposure(image: Image, plate: Plate) -> Image:
    """(1, 256, 3) what the levels of a frame (H, W, 3) stand for in [0, 1].

    They are divided by the frame's gain per channel over the plate, the median over the border,
    where hair or a hand is outvoted.
    """
    ratio = image.reshape(-1, 3)[plate.border] / plate.border_colour
    gain = np.maximum(np.median(ratio, axis=0), 0.1)
    levels: Image = (np.arange(256)[:, None] / (255 * gain)).astype(np.float32)
    return levels[None]


def _distance(image: Image, levels: Image, plate: Plate) -> Image:
    """(H, W) CIELAB distance to the plate, with the darkening of soft shadows forgiven.

    A shadow lowers lightness and leaves chromaticity, so only the negative part of the lightness
    difference is reduced, by at most `SHADOW`. In strips that fit into the cache.
    """
    distances = np.empty(image.shape[:2], np.float32)
    for first in range(0, len(image), STRIP):
        start, stop = max(0, first - 1), first + STRIP + 1  # the filter needs a row more
        lab = cv2.cvtColor(cv2.LUT(image[start:stop], levels), cv2.COLOR_BGR2Lab)
        difference = cv2.GaussianBlur(cv2.subtract(lab, plate.lab[start:stop]), (3, 3), 0)
        strip = distances[first : first + STRIP]
        kept = difference[first - start : first - start + len(strip)]
        _fill_lengths(kept.reshape(-1, 3), np.float32(SHADOW), strip.reshape(-1))
    return distances


@njit(cache=True, nogil=True)
def _fill_lengths(differences: Image, shadow: np.float32, lengths: Image) -> None:
    """Lengths (N,) of CIELAB differences (N, 3) with so much darkening forgiven."""
    for i in range(len(lengths)):
        lightness, a, b = differences[i]
        lightness = min(lightness + shadow, max(lightness, np.float32(0)))
        lengths[i] = np.sqrt(lightness * lightness + a * a + b * b)


def _main_components(mask: Bool) -> Image:
    """The large regions, 1 in (H, W) 8 bits, after specks and hairline bridges are removed.

    More than one, since a neck of the plate's colour may part the head from the shirt.
    """
    opened = cv2.morphologyEx(mask.view(np.uint8), cv2.MORPH_OPEN, np.ones((3, 3), np.uint8))
    outlines, _ = _find_outlines(opened)
    areas = [cv2.contourArea(outline) for outline in outlines]
    least = MIN_COMPONENT * max(areas, default=0)
    small = [outline for outline, area in zip(outlines, areas, strict=True) if area < least]
    return cv2.drawContours(opened, small, -1, 0, cv2.FILLED)


def _fill_holes(subject: Image, distance: Image, noise: float) -> None:
    """Fill the enclosed holes of a mask, except those that look like the plate.

    Skin or cloth of the plate's colour differs from it somewhat; where the set is seen between a
    strand of hair and a shoulder the difference is noise.
    """
    _, holes = _find_outlines(subject)
    for outline in holes:
        x, y, w, h = cv2.boundingRect(outline)
        region = (slice(y, y + h), slice(x, x + w))
        enclosed = np.zeros((h, w), np.uint8)
        cv2.drawContours(enclosed, [outline], 0, 1, cv2.FILLED, offset=(-x, -y))
        hole = enclosed > subject[region]
        if np.median(distance[region][hole]) > noise:
            subject[region] |= hole


def _find_outlines(subject: Image) -> tuple[list[MatLike], list[MatLike]]:
    """Outlines, on the background, around the 4-connected parts of a subject (H, W) and its holes.

    OpenCV finds both as those of the 8-connected background, which gets a border, so that what
    reaches the image's edge is one region with it.
    """
    background = cv2.copyMakeBorder(1 - subject, 1, 1, 1, 1, cv2.BORDER_CONSTANT, value=1)
    outlines, hierarchy = cv2.findContours(
        background, cv2.RETR_CCOMP, cv2.CHAIN_APPROX_SIMPLE, offset=(-1, -1)
    )
    parents = hierarchy[0, :, 3]
    parts = [outline for outline, parent in zip(outlines, parents, strict=True) if parent >= 0]
    regions = [outline for outline, parent in zip(outlines, parents, strict=True) if parent < 0]
    return parts, [outline for outline in regions if outline.min() >= 0]


def _draw_soft_edge(image: Image, levels: Image, plate: Image, subject: Image, mask: Image) -> None:
    """Draw a hard mask (H, W) with a soft edge, from the known background, 8 bits.

    In a band along the edge the pixel is I = α F + (1 − α) B with B the plate and F a colour of the
    subject's inside nearby: of its dark or of its bright part (hair and skin, say), whichever
    explains the pixel better. The least-squares α is pulled to the blurred mask with a weight that
    matters only where F and B hardly differ.

    Args:
        image: (H, W, 3) frame.
        levels: (1, 256, 3) what its levels stand for.
        plate: (H, W, 3) in [0, 1].
        subject: (H, W) 1 or 0.
        mask: (H, W) 0, written to.
    """
    radius = max(2, round(len(subject) * BAND))
    step = max(1, radius // LOCAL_RADIUS)
    side = 2 * radius + 1
    box = _box_around(subject, side, step)
    image, hard = image[box], subject[box]
    inside = _distance_within(hard) > radius
    near = _distance_within(1 - hard) <= radius
    blurred = _sums(hard, radius), side**2
    local = _local_colours(
        image[::step, ::step], levels, inside[::step, ::step], 2 * radius // step
    )
    _blend(image, levels[0], plate[box], inside, near, *blurred, local, step, mask[box])


def _box_around(subject: Image, margin: int, step: int) -> tuple[slice, slice]:
    """Rows and columns of the box around a subject (H, W), from multiples of a step."""
    x, y, width, height = cv2.boundingRect(subject)
    left, top = max(0, x - margin) // step * step, max(0, y - margin) // step * step
    return slice(top, y + height + margin), slice(left, x + width + margin)


def _local_colours(image: Image, levels: Image, inside: Bool, radius: int) -> Image:
    """(2, H, W, 4) of the darker and of the brighter inside around each pixel: sums of the frame's
    levels and the number of pixels, exact. Of large squares it is enough to look at every few.

    Args:
        image: (H, W, 3) frame.
        levels: (1, 256, 3) what its levels stand for.
        inside: (H, W) what counts.
        radius: of the square around, pixels.
    """
    lightness = cv2.transform(cv2.LUT(image, levels), np.ones((1, 3)))
    total = _sums(lightness * inside, radius)
    bright = lightness * _sums(inside.view(np.uint8), radius) > total
    counted = np.dstack([image, np.ones_like(image[..., :1])])
    parts = (inside & ~bright, inside & bright)
    return np.stack([_sums(cv2.copyTo(counted, part.view(np.uint8)), radius) for part in parts])


def _sums(values: Image, radius: int) -> Image:
    """Of values (H, W) or (H, W, D), over the square around each pixel; of 8 bits in 32 bits."""
    depth = cv2.CV_32F if values.dtype == np.float32 else cv2.CV_32S
    return cv2.boxFilter(values, depth, (2 * radius + 1, 2 * radius + 1), normalize=False)


@njit(cache=True, nogil=True)
def _blend(
    image: Image,
    levels: Image,
    plate: Image,
    inside: Bool,
    near: Bool,
    counts: Image,
    area: int,
    local: Image,
    step: int,
    mask: Image,
) -> None:
    """Write a mask (H, W): 255 inside, and alpha on the edge, see `_draw_soft_edge`.

    Args:
        image: (H, W, 3) frame.
        levels: (256, 3) what its levels stand for, in proportion to them.
        plate: (H, W, 3) in [0, 1].
        inside: (H, W) within the subject, beyond the edge.
        near: (H, W) the subject and what is near it.
        counts: (H, W) pixels of the hard mask in the square around.
        area: pixels of that square.
        local: (2, H / step, W / step, 4) of `_local_colours`.
        step: pixels.
        mask: (H, W) 0, written to.
    """
    for y in range(len(mask)):
        for x in range(mask.shape[1]):
            if inside[y, x]:
                mask[y, x] = 255
            elif near[y, x]:
                around = local[:, y // step, x // step]
                blurred = counts[y, x] / area
                alpha = _fit_alpha(image[y, x], levels, plate[y, x], around, blurred)
                mask[y, x] = round(255 * alpha)


@njit(cache=True, nogil=True)
def _fit_alpha(pixel: Image, levels: Image, behind: Image, local: Image, blurred: float) -> float:
    """Alpha of a pixel on the edge, see `_draw_soft_edge`.

    Args:
        pixel: (3,) of the frame.
        levels: (256, 3) what its levels stand for, in proportion to them.
        behind: (3,) of the plate.
        local: (2, 4) of `_local_colours`.
        blurred: the blurred hard mask.
    """
    alpha, least = blurred, np.inf
    for part in range(2):
        if local[part, 3] == 0:
            continue
        projected, squared_contrast, squared_difference = 0.0, 0.0, 0.0
        for channel in range(3):
            mean = local[part, channel] / local[part, 3] * levels[255, channel] / 255
            contrast = mean - behind[channel]
            difference = levels[pixel[channel], channel] - behind[channel]
            projected += difference * contrast
            squared_contrast += contrast**2
            squared_difference += difference**2
        fitted = projected + CONTRAST**2 * blurred
        fitted = min(max(fitted / (squared_contrast + CONTRAST**2), 0.0), 1.0)
        residual = squared_difference - 2 * fitted * projected + fitted**2 * squared_contrast
        if residual < least:
            alpha, least = fitted, residual
    return alpha


def _distance_within(mask: Image) -> Image:
    """Distance of the set pixels to the nearest unset one, pixels; 0 at unset ones."""
    return cv2.distanceTransform(mask, cv2.DIST_L2, cv2.DIST_MASK_5)
