"""Colours of surface points in all cameras of a timestep, and how they change as the points move.

A point of the skin must look the same in every camera that sees it (consistency between views),
and the same as at other times (its texture). All residuals of a point depend on its one position
in the world, so they are summed there into a 3×3 matrix and a gradient.

Letters: C cameras, P points, V vertices, F faces, S side of the images.
"""

from __future__ import annotations

from typing import Any

import cv2
import numpy as np
from numba import njit
from numpy.typing import NDArray

Array = NDArray[Any]

CELL = 2.0  # pixels; side of the depth buffer's cells
NEIGHBOURS = 1  # cells around a point where nothing may hide it: blurred edges reach that far
REWEIGHTINGS = 4  # of the robust mean colour
FAR = 1e9
BORDER = 3  # pixels from the edge of an image that are not sampled


def band_pass(image: Array, mask: Array, blur: float, band: float) -> Array:
    """(S, S, 3) float32: an image blurred, less its mean over the person nearby.

    The mean is that of light and gloss, which differ between cameras; texture is left.

    Args:
        image: (S, S, 3) uint8. mask: (S, S) uint8. blur, band: standard deviations, pixels.
    """
    colour = image.astype(np.float32) / 255
    fine = cv2.GaussianBlur(colour, (0, 0), blur)
    side = (image.shape[1] // 4, image.shape[0] // 4)
    weight = cv2.resize(mask.astype(np.float32) / 255, side, interpolation=cv2.INTER_AREA)
    coarse = cv2.resize(colour, side, interpolation=cv2.INTER_AREA) * weight[..., None]
    total = cv2.GaussianBlur(weight, (0, 0), band / 4)[..., None]
    mean = cv2.GaussianBlur(coarse, (0, 0), band / 4) / np.maximum(total, 1e-3)
    return fine - cv2.resize(mean, image.shape[1::-1])


@njit(cache=True, nogil=True)
def fill_depth(pixels: Array, depth: Array, faces: Array, buffer: Array) -> None:
    """Write the nearest depth of a mesh in each cell to ``buffer`` (n, n).

    Args:
        pixels: (V, 2). depth: (V,). faces: (F, 3).
    """
    side = buffer.shape[0]
    buffer[:] = FAR
    for a, b, c in faces:
        x, y = pixels[a] / CELL
        x1, y1 = pixels[b] / CELL - pixels[a] / CELL
        x2, y2 = pixels[c] / CELL - pixels[a] / CELL
        area = x1 * y2 - x2 * y1
        if abs(area) < 1e-9:
            continue
        left = max(0, int(np.ceil(x + min(0.0, x1, x2) - 0.5)))
        right = min(side - 1, int(np.floor(x + max(0.0, x1, x2) - 0.5)))
        top = max(0, int(np.ceil(y + min(0.0, y1, y2) - 0.5)))
        bottom = min(side - 1, int(np.floor(y + max(0.0, y1, y2) - 0.5)))
        for row in range(top, bottom + 1):
            for column in range(left, right + 1):
                across, down = column + 0.5 - x, row + 0.5 - y
                second = (across * y2 - x2 * down) / area
                third = (x1 * down - across * y1) / area
                if second >= 0 and third >= 0 and second + third <= 1:
                    between = (1 - second - third) * depth[a] + second * depth[b]
                    buffer[row, column] = min(buffer[row, column], between + third * depth[c])


@njit(cache=True, nogil=True)
def unhidden(pixels: Array, depth: Array, buffer: Array, mask: Array, tolerance: float) -> Array:
    """(P,) bool: points on the person with nothing in front of them.

    Args:
        pixels: (P, 2). depth: (P,). buffer: of `fill_depth`. mask: (S, S) uint8.
        tolerance: in the unit of depth.
    """
    side = buffer.shape[0]
    seen = np.zeros(len(pixels), np.bool_)
    for point in range(len(pixels)):
        column, row = int(pixels[point, 0] / CELL), int(pixels[point, 1] / CELL)
        if min(column, row) < NEIGHBOURS or max(column, row) >= side - NEIGHBOURS:
            continue
        if mask[int(pixels[point, 1]), int(pixels[point, 0])] <= 127:
            continue
        around = buffer[
            row - NEIGHBOURS : row + NEIGHBOURS + 1, column - NEIGHBOURS : column + NEIGHBOURS + 1
        ]
        seen[point] = around.min() >= depth[point] - tolerance
    return seen


@njit(cache=True, nogil=True)
def sample(image: Array, x: float, y: float, channel: int) -> float:
    """The bilinear value of a channel at a pixel position."""
    column, row = int(np.floor(x - 0.5)), int(np.floor(y - 0.5))
    across, down = x - 0.5 - column, y - 0.5 - row
    upper = image[row, column, channel] * (1 - across) + image[row, column + 1, channel] * across
    row += 1
    lower = image[row, column, channel] * (1 - across) + image[row, column + 1, channel] * across
    return upper * (1 - down) + lower * down


@njit(cache=True, nogil=True)
def sample_with_gradient(
    image: Array,
    corner: Array,
    projection: Array,
    point: Array,
    colour: Array,
    gradient: Array,
) -> bool:
    """Colour of a world point and its derivative by the position; False outside of the image.

    Args:
        image: (S, S, 3). corner: (2,) of it, pixels. projection: (3, 4). point: (3,).
        colour: (3,), gradient: (3, 3), channel by axis; written to.
    """
    across, down, depth = projection[0, 3], projection[1, 3], projection[2, 3]
    for axis in range(3):
        across += projection[0, axis] * point[axis]
        down += projection[1, axis] * point[axis]
        depth += projection[2, axis] * point[axis]
    x, y = across / depth - corner[0], down / depth - corner[1]
    last = image.shape[0] - BORDER
    if min(x, y) < BORDER or max(x, y) > last:
        return False
    for channel in range(3):
        colour[channel] = sample(image, x, y, channel)
        by_x = sample(image, x + 0.5, y, channel) - sample(image, x - 0.5, y, channel)
        by_y = sample(image, x, y + 0.5, channel) - sample(image, x, y - 0.5, channel)
        for axis in range(3):
            dx = (projection[0, axis] - across / depth * projection[2, axis]) / depth
            dy = (projection[1, axis] - down / depth * projection[2, axis]) / depth
            gradient[channel, axis] = by_x * dx + by_y * dy
    return True


@njit(cache=True, nogil=True)
def distance_squared(first: Array, second: Array) -> float:
    """Of two colours (3,)."""
    total = 0.0
    for channel in range(3):
        total += (first[channel] - second[channel]) ** 2
    return total


@njit(cache=True, nogil=True)
def robust_mean(
    colours: Array, weights: Array, shares: Array, outlier: float, mean: Array
) -> float:
    """Write the mean (3,) of colours (C, 3) and what each has of its weight, (C,); their sum."""
    shares[:] = weights
    for _ in range(REWEIGHTINGS):
        total = shares.sum()
        mean[:] = 0
        for camera in range(len(weights)):
            for channel in range(3):
                mean[channel] += shares[camera] / total * colours[camera, channel]
        for camera in range(len(weights)):
            squared = distance_squared(colours[camera], mean) / outlier**2
            shares[camera] = weights[camera] / (1 + squared) ** 2
    return shares.sum()


@njit(cache=True, nogil=True)
def add_point(
    colours: Array,
    gradients: Array,
    weights: Array,
    shares: Array,
    mean: Array,
    texture: Array,
    known: float,
    outlier: float,
    matrix: Array,
    force: Array,
    together: Array,
) -> float:
    """Write one point's (3, 3) matrix and (3,) gradient; return its cost.

    The mean colour is eliminated where no texture is known: only differences between the views
    count then. ``together`` (3, 3) is room to compute in.
    """
    total, cost = shares.sum(), 0.0
    matrix[:], force[:], together[:] = 0, 0, 0
    for camera in range(len(weights)):
        if weights[camera] > 0:
            squared = distance_squared(colours[camera], mean)
            cost += 0.5 * weights[camera] * squared / (1 + squared / outlier**2)
            for channel in range(3):
                residual = colours[camera, channel] - mean[channel]
                for axis in range(3):
                    weighted = shares[camera] * gradients[camera, channel, axis]
                    force[axis] += weighted * residual
                    together[channel, axis] += weighted
                    for other in range(3):
                        matrix[axis, other] += weighted * gradients[camera, channel, other]
    squared = distance_squared(mean, texture)
    share = known / (1 + squared / outlier**2) ** 2
    for channel in range(3):
        residual = mean[channel] - texture[channel]
        for axis in range(3):
            force[axis] += share * together[channel, axis] * residual
            for other in range(3):
                product = together[channel, axis] * together[channel, other]
                matrix[axis, other] -= (1 - share) / total * product
    return cost + 0.5 * known * total * squared / (1 + squared / outlier**2)


@njit(cache=True, nogil=True)
def compare(
    images: Array,
    corners: Array,
    projections: Array,
    points: Array,
    weights: Array,
    texture: Array,
    known: Array,
    outlier: float,
) -> tuple[float, Array, Array, Array, Array]:
    """Robust photometric cost of a timestep, linearised by the position of each point.

    Args:
        images: (C, S, S, 3) float32. corners: (C, 2) of them, pixels. projections: (C, 3, 4).
        points: (P, 3) world. weights: (C, P), 0 = hidden.
        texture: (P, 3) colours at other times. known: (P,) their weights, 0 = compare views only.
        outlier: difference of colours that counts less than half (Geman-McClure).
    Returns:
        cost, (P, 3, 3) Gauss-Newton matrices, (P, 3) gradients, (P, 3) mean colours, (P,) their
        weights, 0 = no camera.
    """
    cameras, count = weights.shape
    matrices, forces = np.zeros((count, 3, 3)), np.zeros((count, 3))
    means, totals = np.zeros((count, 3)), np.zeros(count)
    colours, gradients = np.zeros((cameras, 3)), np.zeros((cameras, 3, 3))
    seen, shares = np.zeros(cameras), np.zeros(cameras)
    together, cost = np.zeros((3, 3)), 0.0
    for point in range(count):
        for camera in range(cameras):
            seen[camera] = 0.0
            if weights[camera, point] > 0 and sample_with_gradient(
                images[camera],
                corners[camera],
                projections[camera],
                points[point],
                colours[camera],
                gradients[camera],
            ):
                seen[camera] = weights[camera, point]
        if seen.sum() <= 0:
            continue
        totals[point] = robust_mean(colours, seen, shares, outlier, means[point])
        cost += add_point(
            colours,
            gradients,
            seen,
            shares,
            means[point],
            texture[point],
            known[point],
            outlier,
            matrices[point],
            forces[point],
            together,
        )
    return cost, matrices, forces, means, totals
