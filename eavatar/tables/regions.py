"""Regions of a head in an image, from the tracked landmarks and the mask (docs/metrics.md).

Letters: H, W of an image. Landmarks are iBUG's 68.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
import torch
from torch import Tensor

from eavatar.arrays import Bool, Float64, Uint8
from eavatar.cameras import Camera
from eavatar.landmark_indices import (
    BROWS,
    CHIN,
    FACE,
    JAW_CORNERS,
    JAW_ENDS,
    LEFT_BROW,
    LEFT_EYE,
    LIPS,
    NOSE_BASE,
    RIGHT_BROW,
    RIGHT_EYE,
)
from eavatar.tables.metrics import psnr

LABELLED = ("face", "hair", "torso", "eyes", "brows", "mouth")  # labels 1, 2, …; 0 is no region
REGIONS = ("eyes", "brows", "mouth", "face", "hair", "outline", "torso")
PERSON = 0.5  # of a mask, from which on a pixel belongs to the person
MIN_PIXELS = 16  # a region of fewer is not measured: 4×4, less than an eye at 128²

# Margins around the landmarks and width of the outline, in widths of the face (landmarks 0 to 16).
EYE_MARGIN = 0.04  # lids and lashes: landmarks lie on the rims of the lids
BROW_MARGIN = 0.035  # landmarks lie along the middle of a brow
MOUTH_MARGIN = 0.03  # the skin that moves with the lips: landmarks lie on their outer rim
OUTLINE = 0.03  # to either side of the mask's edge

FOREHEAD_SLOPE = 0.3  # how far the hairline lies behind the brows, in heights of the forehead
CIRCLE = np.stack([np.cos(np.arange(16) * np.pi / 8), np.sin(np.arange(16) * np.pi / 8)], axis=1)
FRACTION_BITS = 4  # sub-pixel digits of OpenCV's polygon corners


@dataclass(frozen=True)
class Regions:
    """Where the parts of the head are in an image.

    Attributes:
        labels: (H, W) 1 + the index in `LABELLED`, or 0: each pixel has one.
        outline: (H, W) the band around the mask's edge, across the others.
    """

    labels: Uint8
    outline: Bool


@dataclass(frozen=True)
class Head:
    """The tracked head at a timestep.

    Attributes:
        landmarks: (68, 3) world, metres.
        rotation: (3, 3) canonical axes in world space: x to its left, y up, z out of the face.
    """

    landmarks: Float64
    rotation: Float64

    @property
    def up(self) -> Float64:
        return self.rotation[:, 1]

    @property
    def forward(self) -> Float64:
        return self.rotation[:, 2]


def find_regions(head: Head, camera: Camera, mask: Bool, visible: Bool) -> Regions:
    """The regions of a view; nothing outside the sensor belongs to one.

    Args:
        head: its tracking.
        camera: of the image's size.
        mask: (H, W) the person.
        visible: (H, W) inside the sensor.
    """
    points, depths = camera.project(head.landmarks)
    width = float(np.linalg.norm(np.subtract(*head.landmarks[list(JAW_ENDS)])))
    pixels = width * camera.intrinsics[0, 0] / float(depths.mean())  # of the face's width
    labels = np.where(_below_jaw(head, camera, mask.shape), _label("torso"), _label("hair"))
    labels[~mask] = 0
    if _area(points[FACE]) > 0:
        _draw(labels, np.concatenate([points[FACE], _forehead(head, camera)]), 0.0, "face")
    for eye, brow in ((RIGHT_EYE, RIGHT_BROW), (LEFT_EYE, LEFT_BROW)):
        if _area(points[eye]) > 0:
            _draw(labels, points[brow], BROW_MARGIN * pixels, "brows")
            _draw(labels, points[eye], EYE_MARGIN * pixels, "eyes")
    if _area(points[LIPS]) > 0:
        _draw(labels, points[LIPS], MOUTH_MARGIN * pixels, "mouth")
    labels[~visible] = 0
    return Regions(labels, _near_edge(mask, visible, max(OUTLINE * pixels, 1)))


def measure_regions(error: Tensor, regions: Regions) -> dict[str, Tensor]:
    """PSNR in dB of each of `REGIONS`, () float64; NaN where it is not seen.

    Args:
        error: (H, W) of `eavatar.tables.metrics.squared_error`.
        regions: of the same image.
    """
    labels, outline = (
        torch.from_numpy(pixels).to(error.device) for pixels in (regions.labels, regions.outline)
    )
    names = torch.arange(1, 1 + len(LABELLED), device=error.device)
    inside = torch.cat([labels == names[:, None, None], outline[None]])
    seen = inside.sum(dim=(1, 2)) >= MIN_PIXELS
    found = dict(
        zip((*LABELLED, "outline"), psnr(error, inside).where(seen, torch.nan), strict=True)
    )
    return {name: found[name] for name in REGIONS}


def _label(name: str) -> int:
    return 1 + LABELLED.index(name)


def _area(ring: Float64) -> float:
    """The area of a polygon (N, 2), pixels squared, positive if clockwise as y points down."""
    following = np.roll(ring, -1, axis=0)
    return float((ring[:, 0] * following[:, 1] - ring[:, 1] * following[:, 0]).sum() / 2)


def _draw(labels: Uint8, points: Float64, margin: float, name: str) -> None:
    """Label what lies within a margin, pixels, of the convex hull of points (N, 2), on the mask."""
    spread = (points[:, None] + margin * CIRCLE).reshape(-1, 2)
    hull = cv2.convexHull(spread.astype(np.float32))[:, 0].astype(np.float64)
    labels[_fill(hull, labels.shape) & (labels > 0)] = _label(name)


def _fill(polygon: Float64, shape: tuple[int, ...]) -> Bool:
    """The pixels (H, W) of a polygon (N, 2), pixels."""
    corners = ((polygon - 0.5) * 2**FRACTION_BITS).round().astype(np.int32)
    inside = np.zeros(shape, np.uint8)
    cv2.fillPoly(inside, [corners], 1, shift=FRACTION_BITS)
    return inside > 0


def _forehead(head: Head, camera: Camera) -> Float64:
    """The hairline (10, 2), pixels: as far above the brows as the base of the nose is below them.

    These are two of the three equal parts into which the classical canon divides a face.
    """
    brows = head.landmarks[BROWS]
    third = (brows.mean(axis=0) - head.landmarks[NOSE_BASE]) @ head.up
    hairline = brows + third * (head.up - FOREHEAD_SLOPE * head.forward)
    return camera.project(hairline)[0]


def _below_jaw(head: Head, camera: Camera, shape: tuple[int, ...]) -> Bool:
    """Which pixels (H, W) lie below the chin and the corners of the jaw, as the head stands.

    In a side view, also what is seen in front of the chin up to the base of the nose: a shoulder.
    """
    chin = head.landmarks[CHIN]
    ends, _ = camera.project(np.stack([chin, chin + 0.1 * head.up]))
    up = (ends[1] - ends[0]) / np.linalg.norm(ends[1] - ends[0])
    across = np.array([-up[1], up[0]])
    points, _ = camera.project(head.landmarks[[CHIN, *JAW_CORNERS, NOSE_BASE]])
    in_front = points[0] + ((points[3] - points[0]) @ up) * up
    order = np.argsort(points[:3] @ across)
    jaw = points[order]
    first = in_front if order[0] == 0 else jaw[0]
    last = in_front if order[-1] == 0 else jaw[-1]
    beyond = 2 * (shape[0] + shape[1])  # surely outside the image
    left, right = first - beyond * across, last + beyond * across
    return _fill(
        np.stack([left, first, *jaw, last, right, right - beyond * up, left - beyond * up]), shape
    )


def _near_edge(mask: Bool, visible: Bool, radius: float) -> Bool:
    """The pixels within a radius of both the person and the background, as far as they are seen."""
    person, background = (
        cv2.distanceTransform((~seen).astype(np.uint8), cv2.DIST_L2, cv2.DIST_MASK_5) <= radius
        for seen in (mask & visible, ~mask & visible)
    )
    return person & background & visible
