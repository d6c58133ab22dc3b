"""The set behind the person as the frames of one camera show it, for captures without a plate."""

from __future__ import annotations

from collections.abc import Iterable

import cv2
import numpy as np

from eavatar.arrays import Float32, Image

FRINGE = np.ones((3, 3), np.uint8)  # pixels beside a mask may show what it has missed of an edge


def estimate_background(views: Iterable[tuple[Image, Image]], visible: Image) -> Image:
    """The set (S, S, 3), 8 bits: the mean of what the masks leave, and its surroundings elsewhere.

    The set is wanted only within the soft edges of masks, which lie beside what is seen of it.

    Args:
        views: frames (S, S, 3) of a camera that stands still, and their masks (S, S).
        visible: (S, S) 255 where the frames show the sensor.
    """
    total = np.zeros((*visible.shape, 3), np.float32)
    count = np.zeros(visible.shape, np.float32)
    for frame, mask in views:
        shown = (cv2.dilate(mask, FRINGE) == 0) & (visible == 255)
        total += frame * shown[..., None]
        count += shown
    total /= np.maximum(count, 1)[..., None]
    filled: Image = _fill(total, (count > 0).astype(np.float32)).round().astype(np.uint8)
    return filled


def _fill(values: Float32, known: Float32) -> Float32:
    """Values (H, W, 3), those with a weight ``known`` (H, W) below 1 mixed with ones around them.

    From the same at half the size, again and again: near what is known it is nearly that, further
    away it is smooth.
    """
    height, width = known.shape
    if max(height, width) == 1:
        return values
    weighted = values * known[..., None]
    half = ((width + 1) // 2, (height + 1) // 2)
    weights = cv2.resize(known, half, interpolation=cv2.INTER_AREA)
    means = cv2.resize(weighted, half, interpolation=cv2.INTER_AREA)
    means = means / np.maximum(weights, 1e-6)[..., None]
    enough = np.minimum(4 * weights, 1)  # one pixel of four
    smooth = _fill(means.astype(np.float32), enough)
    around = cv2.resize(smooth, (width, height), interpolation=cv2.INTER_LINEAR)
    return weighted + (1 - known)[..., None] * around
