"""Images for the report: comparisons, contours and points over frames.

Images are RGB, 8 bits, (H, W, 3).
"""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray
from scipy.spatial.transform import Rotation

from eavatar import io
from eavatar.rendering.mesh_images import FRACTION_BITS, Byte, Colour
from eavatar.tables.regions import LABELLED, Regions

Array = NDArray[np.floating]

FULL_ERROR = 0.25  # mean absolute difference of the channels that gets the last colour
ERROR_COLOURS = np.array([[255, 255, 255], [255, 190, 90], [205, 50, 60], [50, 0, 60]])
REGION_COLOURS: dict[str, Colour] = {
    "eyes": (0, 190, 90),
    "brows": (225, 30, 200),
    "mouth": (225, 45, 40),
    "face": (250, 205, 150),
    "hair": (120, 85, 50),
    "outline": (240, 215, 0),
    "torso": (70, 110, 220),
}


def compare(truth: Array, render: Array) -> Byte:
    """Truth, render and error, (H, W, 3) in [0, 1], side by side, (H, 3 W, 3).

    The error is the mean absolute difference of the channels: white for none, dark from
    `FULL_ERROR` on.
    """
    error = np.abs(truth - render).mean(axis=-1)
    stops = np.linspace(0, FULL_ERROR, len(ERROR_COLOURS))
    heat = np.stack([np.interp(error, stops, channel) for channel in ERROR_COLOURS.T], axis=-1)
    strip = np.concatenate([truth * 255, render * 255, heat], axis=1)
    return strip.clip(0, 255).round().astype(np.uint8)


def write_image(path: Path, image: Byte) -> None:
    """Write an image in the format of its suffix."""
    io.write_image(path, cv2.cvtColor(image, cv2.COLOR_RGB2BGR))


def order_along_arc(centres: Array, rotation: Array, translation: Array) -> list[int]:
    """Indices of camera centres (C, 3) around a head's vertical axis, from its right to its left.

    Args:
        centres: world, metres.
        rotation: (3,) axis-angle of the head, radians.
        translation: (3,) of the head, metres.
    """
    seen_from_head = Rotation.from_rotvec(rotation).inv().apply(centres - translation)
    order: list[int] = np.arctan2(seen_from_head[:, 0], seen_from_head[:, 2]).argsort().tolist()
    return order


def draw_contour(image: Byte, mask: Byte, colour: Colour) -> Byte:
    """The outline of a mask (H, W), threshold 127, over an RGB image (H, W, 3)."""
    binary = (mask > 127).astype(np.uint8)
    contours, _ = cv2.findContours(binary, cv2.RETR_LIST, cv2.CHAIN_APPROX_NONE)
    return cv2.drawContours(image.copy(), contours, -1, colour, 1, cv2.LINE_AA).astype(np.uint8)


def draw_regions(image: Byte, regions: Regions) -> Byte:
    """An RGB image (H, W, 3) tinted by the colours of its regions, the outline over the others."""
    tints = np.array([(255, 255, 255), *(REGION_COLOURS[name] for name in LABELLED)])
    tinted: Byte = ((image.astype(np.int32) + tints[regions.labels]) // 2).astype(np.uint8)
    tinted[regions.outline] = REGION_COLOURS["outline"]
    return tinted


def draw_lines(image: Byte, starts: Array, ends: Array, colour: Colour) -> Byte:
    """Lines between points (N, 2) and (N, 2), in the pixels of `draw_points`, on an RGB image."""
    canvas, scale = image.copy(), 2**FRACTION_BITS
    pairs = ((np.stack([starts, ends], axis=1) - 0.5) * scale).round().astype(int)
    for start, end in pairs.tolist():
        cv2.line(canvas, start, end, colour, 1, cv2.LINE_AA, FRACTION_BITS)
    return canvas


def draw_points(image: Byte, points: Array, colour: Colour) -> Byte:
    """Points (N, 2), pixels with the centre of the first at 0.5, as dots on an RGB image."""
    canvas = image.copy()
    scale = 2**FRACTION_BITS
    radius = max(image.shape[0] / 200, 1)
    for x, y in ((points - 0.5) * scale).round().astype(int).tolist():
        cv2.circle(canvas, (x, y), round(radius * scale), colour, -1, cv2.LINE_AA, FRACTION_BITS)
    return canvas


def shrink(image: Byte, height: int) -> Byte:
    """The image at most as high as given, averaged."""
    if image.shape[0] <= height:
        return image
    width = round(image.shape[1] * height / image.shape[0])
    return cv2.resize(image, (width, height), interpolation=cv2.INTER_AREA).astype(np.uint8)
