"""Colours of surface points in all cameras of a timestep, and their derivative by the positions.

A point of the skin has the same colour in every camera that sees it (multi-view photometric
consistency) and the same as at other timesteps (its texture). All residuals of a point depend on
its one position in the world, so they are summed there into a 3×3 Gauss-Newton matrix and a
gradient.

Letters: C cameras, P points, V vertices, F faces, S side of the images.
"""

from __future__ import annotations

import cv2
import numpy as np
from numba import njit

from eavatar.arrays import Bool, Float32, Float64, Image, Int64, Uint8

CELL = 2.0  # pixels; side of the depth buffer's cells
OCCLUSION_CELLS = 1  # radius around a point in which nothing may occlude it, for blurred edges
REWEIGHTINGS = 4  # of the robust mean colour
MAX_DEPTH = 1e9  # of cells that no face covers
MIN_BORDER = 3  # pixels from the edge of an image within which nothing is sampled


def band_pass(image: Image, mask: Image, blur: float, band: float) -> Float32:
    """(S, S, 3) an image blurred, less its mean over the person nearby.

    The mean is that of light and gloss, which differ between cameras; texture is left.

    Args:
        image: (S, S, 3) uint8.
        mask: (S, S) uint8.
        blur: standard deviation of the Gaussian, pixels.
        band: standard deviation of the Gaussian that weights the mean, pixels.
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
def fill_depth(pixels: Float64, depth: Float64, faces: Int64, buffer: Float64) -> None:
    """Rasterise the nearest depth of a mesh in each cell of a buffer.

    Args:
        pixels: (V, 2) projected vertices.
        depth: (V,) of the vertices.
        faces: (F, 3).
        buffer: (n, n) of cells of side `CELL`, written to.
    """
    side = buffer.shape[0]
    buffer[:] = MAX_DEPTH
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
def visible_points(
    pixels: Float64, depth: Float64, buffer: Float64, mask: Uint8, tolerance: float
) -> Bool:
    """(P,) whether points are on the person and not occluded.

    Args:
        pixels: (P, 2) inside the image.
        depth: (P,) of the points.
        buffer: of `fill_depth`.
        mask: (S, S) of the person.
        tolerance: by which a surface must be nearer to occlude, in the unit of depth.
    """
    side = buffer.shape[0]
    seen = np.zeros(len(pixels), np.bool_)
    for point in range(len(pixels)):
        column, row = int(pixels[point, 0] / CELL), int(pixels[point, 1] / CELL)
        if min(column, row) < OCCLUSION_CELLS or max(column, row) >= side - OCCLUSION_CELLS:
            continue
        if mask[int(pixels[point, 1]), int(pixels[point, 0])] <= 127:
            continue
        around = buffer[
            row - OCCLUSION_CELLS : row + OCCLUSION_CELLS + 1,
            column - OCCLUSION_CELLS : column + OCCLUSION_CELLS + 1,
        ]
        seen[point] = around.min() >= depth[point] - tolerance
    return seen


@njit(cache=True, nogil=True)
def _sample(image: Float32, x: float, y: float, channel: int) -> float:
    """The bilinear value of a channel at a pixel position."""
    column, row = int(np.floor(x - 0.5)), int(np.floor(y - 0.5))
    across, down = x - 0.5 - column, y - 0.5 - row
    upper = image[row, column, channel] * (1 - across) + image[row, column + 1, channel] * across
    row += 1
    lower = image[row, column, channel] * (1 - across) + image[row, column + 1, channel] * across
    value: float = upper * (1 - down) + lower * down
    return value


@njit(cache=True, nogil=True)
def _sample_with_gradient(
    image: Float32,
    corner: Float64,
    projection: Float64,
    point: Float64,
    colour: Float64,
    gradient: Float64,
) -> bool:
    """Colour of a world point and its derivative by the position; False outside of the image.

    Args:
        image: (S, S, 3).
        corner: (2,) position of the image's first pixel, pixels.
        projection: (3, 4) world to homogeneous pixels.
        point: (3,) world.
        colour: (3,), written to.
        gradient: (3, 3) channel by axis, written to.
    """
    across, down, depth = projection[0, 3], projection[1, 3], projection[2, 3]
    for axis in range(3):
        across += projection[0, axis] * point[axis]
        down += projection[1, axis] * point[axis]
        depth += projection[2, axis] * point[axis]
    x, y = across / depth - corner[0], down / depth - corner[1]
    last = image.shape[0] - MIN_BORDER
    if min(x, y) < MIN_BORDER or max(x, y) > last:
        return False
    for channel in range(3):
        colour[channel] = _sample(image, x, y, channel)
        by_x = _sample(image, x + 0.5, y, channel) - _sample(image, x - 0.5, y, channel)
        by_y = _sample(image, x, y + 0.5, channel) - _sample(image, x, y - 0.5, channel)
        for axis in range(3):
            dx = (projection[0, axis] - across / depth * projection[2, axis]) / depth
            dy = (projection[1, axis] - down / depth * projection[2, axis]) / depth
            gradient[channel, axis] = by_x * dx + by_y * dy
    return True


@njit(cache=True, nogil=True)
def _squared_distance(first: Float64, second: Float64) -> float:
    """Squared Euclidean distance of two colours (3,)."""
    total = 0.0
    for channel in range(3):
        total += (first[channel] - second[channel]) ** 2
    return total


@njit(cache=True, nogil=True)
def _robust_mean(
    colours: Float64, weights: Float64, robust: Float64, outlier: float, mean: Float64
) -> float:
    """Geman-McClure mean of colours by iteratively reweighted least squares.

    Args:
        colours: (C, 3).
        weights: (C,).
        robust: (C,) the weights less what outliers lose, written to.
        outlier: distance from the mean at which a colour keeps a quarter of its weight.
        mean: (3,), written to.

    Returns:
        the sum of ``robust``.
    """
    robust[:] = weights
    for _ in range(REWEIGHTINGS):
        total = robust.sum()
        mean[:] = 0
        for camera in range(len(weights)):
            for channel in range(3):
                mean[channel] += robust[camera] / total * colours[camera, channel]
        for camera in range(len(weights)):
            squared = _squared_distance(colours[camera], mean) / outlier**2
            robust[camera] = weights[camera] / (1 + squared) ** 2
    average: float = robust.sum()
    return average


@njit(cache=True, nogil=True)
def _linearise_point(
    colours: Float64,
    gradients: Float64,
    weights: Float64,
    robust: Float64,
    mean: Float64,
    texture: Float64,
    known: float,
    outlier: float,
    matrix: Float64,
    force: Float64,
    scratch: Float64,
) -> float:
    """Cost, Gauss-Newton matrix and gradient of one point.

    The mean colour is eliminated (Schur complement) where no texture is known: only differences
    between the views count then.

    Args:
        colours: (C, 3).
        gradients: (C, 3, 3) camera, channel, axis.
        weights: (C,).
        robust: (C,) of `_robust_mean`.
        mean: (3,) of `_robust_mean`.
        texture: (3,) colour at other timesteps.
        known: weight of the texture, 0 if there is none.
        outlier: of `_robust_mean`.
        matrix: (3, 3), written to.
        force: (3,) gradient, written to.
        scratch: (3, 3) scratch buffer: weighted sum of the gradients.

    Returns:
        the cost.
    """
    total, cost = robust.sum(), 0.0
    matrix[:], force[:], scratch[:] = 0, 0, 0
    for camera in range(len(weights)):
        if weights[camera] > 0:
            squared = _squared_distance(colours[camera], mean)
            cost += 0.5 * weights[camera] * squared / (1 + squared / outlier**2)
            for channel in range(3):
                residual = colours[camera, channel] - mean[channel]
                for axis in range(3):
                    weighted = robust[camera] * gradients[camera, channel, axis]
                    force[axis] += weighted * residual
                    scratch[channel, axis] += weighted
                    for other in range(3):
                        matrix[axis, other] += weighted * gradients[camera, channel, other]
    squared = _squared_distance(mean, texture)
    weight = known / (1 + squared / outlier**2) ** 2
    for channel in range(3):
        residual = mean[channel] - texture[channel]
        for axis in range(3):
            force[axis] += weight * scratch[channel, axis] * residual
            for other in range(3):
                product = scratch[channel, axis] * scratch[channel, other]
                matrix[axis, other] -= (1 - weight) / total * product
    robust_cost: float = cost + 0.5 * known * total * squared / (1 + squared / outlier**2)
    return robust_cost


@njit(cache=True, nogil=True)
def linearise_colours(
    images: Float32,
    corners: Float64,
    projections: Float64,
    points: Float64,
    weights: Float64,
    texture: Float64,
    known: Float64,
    outlier: float,
) -> tuple[float, Float64, Float64, Float64, Float64]:
    """Robust photometric cost of a timestep, linearised by the position of each point.

    Args:
        images: (C, S, S, 3) band-passed.
        corners: (C, 2) positions of the images' first pixels, pixels.
        projections: (C, 3, 4) world to homogeneous pixels.
        points: (P, 3) world.
        weights: (C, P) of the points in the cameras, 0 = not visible.
        texture: (P, 3) colours at other timesteps.
        known: (P,) weights of the texture, 0 = compare the cameras with one another only.
        outlier: difference of colours that counts a quarter (Geman-McClure).

    Returns:
        cost, (P, 3, 3) Gauss-Newton matrices, (P, 3) gradients, (P, 3) mean colours, (P,) their
        weights, 0 = no camera.
    """
    cameras, count = weights.shape
    matrices, forces = np.zeros((count, 3, 3)), np.zeros((count, 3))
    means, totals = np.zeros((count, 3)), np.zeros(count)
    colours, gradients = np.zeros((cameras, 3)), np.zeros((cameras, 3, 3))
    visible, robust = np.zeros(cameras), np.zeros(cameras)
    scratch, cost = np.zeros((3, 3)), 0.0
    for point in range(count):
        for camera in range(cameras):
            visible[camera] = 0.0
            if weights[camera, point] > 0 and _sample_with_gradient(
                images[camera],
                corners[camera],
                projections[camera],
                points[point],
                colours[camera],
                gradients[camera],
            ):
                visible[camera] = weights[camera, point]
        if visible.sum() <= 0:
            continue
        totals[point] = _robust_mean(colours, visible, robust, outlier, means[point])
        cost += _linearise_point(
            colours,
            gradients,
            visible,
            robust,
            means[point],
            texture[point],
            known[point],
            outlier,
            matrices[point],
            forces[point],
            scratch,
        )
    return cost, matrices, forces, means, totals
