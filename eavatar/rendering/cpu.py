"""Gaussian splatting on the CPU: numba kernels, forward and backward, on all cores.

The image is cut into tiles of 8×8 pixels. A *pair* is a Gaussian and a tile that its ellipse
touches. Pairs are numbered Gaussian by Gaussian, so that the backward pass can write a row of
gradients per pair and add up a Gaussian's rows afterwards: no atomics, and the same result for any
number of threads. Inner loops run over the 64 pixels of a tile, which compilers turn into SIMD.

Conventions and constants are those of gsplat 1.5.3 (`eavatar.rendering.splatting`). Letters: C
views, N Gaussians, P pairs, D feature channels. A splat is a Gaussian in one view; splat
``v * N + n`` is Gaussian ``n`` in view ``v``.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numba
import numpy as np
from numba import njit, prange

from eavatar.arrays import Float32, Int32, Int64

NEAR_PLANE = 0.01
FIELD_OF_VIEW_MARGIN = 0.3  # the Jacobian is frozen beyond the image border plus this fraction
MIN_ALPHA = 1 / 255
ROUNDING = 1e-3  # added to REACH: no tile is missed because its edge pixel is at the threshold

TILE = 8  # pixels; one row fills a 256-bit vector
PIXELS = TILE * TILE
BLOCK = 4  # rows or channels that share one pass over the pixels: fewer loads and stores

# Columns of the splat table.
X, Y, CONIC_XX, CONIC_XY, CONIC_YY, OPACITY, DEPTH, REACH = range(8)
SPLAT_COLUMNS = 8
# Columns of the gradient rows: X … OPACITY of the splat, then the features.
GRADIENT_COLUMNS = 6

# Planes of 64 values in a tile's pixel buffer. They lie in one array at constant distances, so that
# the compiler sees without a check at run time that they do not overlap.
CENTRE_X, CENTRE_Y, LIVE, TRANSMITTANCE, ALONG, BEHIND = range(0, 6 * PIXELS, PIXELS)
PIXEL_BUFFER = 6 * PIXELS
# Likewise in the coverage row of a pair.
ALPHA, WEIGHT = 0, PIXELS

# float32 constants: a float64 one would halve the width of the vectors.
ZERO, ONE, HALF = np.float32(0), np.float32(1), np.float32(0.5)
MIN_ALPHA_F32 = np.float32(MIN_ALPHA)
MAX_ALPHA_F32 = np.float32(0.999)
MIN_TRANSMITTANCE = np.float32(1e-4)  # transmittance at which a pixel is finished
MAX_SIGMA = np.float32(5.6)  # exp(-5.6) < 1/255: beyond it nothing is drawn

# exp(x / 8) as a polynomial, to be squared three times.
SERIES = tuple(
    np.polynomial.Chebyshev.interpolate(np.exp, 6, [-MAX_SIGMA / 8, 0])
    .convert(kind=np.polynomial.Polynomial)
    .coef.astype(np.float32)
)

# NaN and infinity keep their meaning; only the order of sums and products is free.
FAST = {"reassoc", "contract", "arcp", "nsz"}

# Kernels take whole arrays and an index: a row cut out of a shared array is reference-counted,
# and the counter is fought over by the threads. In numpy's error model no check for zero before a
# division keeps a loop from becoming SIMD. Called ones are inlined: otherwise sums in free order
# have other last digits in the process that compiles than in those that load the cache.
_kernel = njit(cache=True, error_model="numpy", forceinline=True)
_simd = njit(cache=True, error_model="numpy", fastmath=FAST, forceinline=True)
_parallel = njit(cache=True, error_model="numpy", parallel=True)


@dataclass(frozen=True)
class Splats:
    """The Gaussians of one call in all views, sorted into tiles.

    Attributes:
        table: (C·N, 8) the columns X … REACH; pixels, pixels⁻², metres. REACH is the squared
            Mahalanobis radius at which alpha falls below 1/255, zero for what is not drawn.
        first_pair: (C·N + 1,) pairs of splat ``s`` are ``first_pair[s]:first_pair[s + 1]``.
        pair_splat: (P,) the splat of a pair.
        first_slot: (C·tiles + 1,) likewise for the tiles in ``sorted_pairs``.
        sorted_pairs: (P,) pairs, tile by tile, near to far.
    """

    table: Float32
    first_pair: Int64
    pair_splat: Int32
    first_slot: Int64
    sorted_pairs: Int32


def prepare(
    means: Float32,
    quaternions: Float32,
    scales: Float32,
    opacities: Float32,
    world_to_camera: Float32,
    intrinsics: Float32,
    width: int,
    height: int,
    low_pass: float,
) -> Splats:
    """Project (N, …) Gaussians into C views and sort them into tiles and by depth."""
    views, count = len(world_to_camera), len(means)
    columns, rows = tiles_across(width), tiles_across(height)
    table = np.empty((views * count, SPLAT_COLUMNS), np.float32)
    pairs_of_splat = np.empty(views * count, np.int64)
    _project(
        means, quaternions, scales, opacities, world_to_camera, intrinsics,
        width, height, low_pass, table, pairs_of_splat, numba.get_num_threads(),
    )  # fmt: skip
    first_pair = np.zeros(views * count + 1, np.int64)
    np.cumsum(pairs_of_splat, out=first_pair[1:])
    pair_splat = np.empty(first_pair[-1], np.int32)
    pair_tile = np.empty(first_pair[-1], np.int32)
    _list_pairs(table, first_pair, columns, rows, pair_splat, pair_tile, numba.get_num_threads())
    # Bits of positive floats sort like the floats; the index below makes ties definite.
    keys = table[:, DEPTH].copy().view(np.int32).astype(np.int64).reshape(views, count)
    keys = np.sort((keys << 32) | np.arange(count), axis=1)
    order = (keys & 0xFFFFFFFF).astype(np.int32)
    first_slot = np.zeros(views * columns * rows + 1, np.int64)
    sorted_pairs = np.empty(first_pair[-1], np.int32)
    _sort_pairs(order, first_pair, pair_tile, first_slot, sorted_pairs)
    return Splats(table, first_pair, pair_splat, first_slot, sorted_pairs)


def composite(
    splats: Splats, features: Float32, background: Float32, views: int, width: int, height: int
) -> tuple[Float32, Float32]:
    """Images (C, H, W, D) and alpha (C, H, W)."""
    image = np.empty((views, height, width, features.shape[1]), np.float32)
    alpha = np.empty((views, height, width), np.float32)
    _composite(
        splats.table, splats.pair_splat, splats.first_slot, splats.sorted_pairs,
        features, background, image, alpha, numba.get_num_threads(),
    )  # fmt: skip
    return image, alpha


def composite_gradients(
    splats: Splats,
    features: Float32,
    background: Float32,
    image_gradient: Float32,
    alpha_gradient: Float32,
) -> tuple[Float32, Float32]:
    """Gradient rows (P, 6 + D) of the pairs and the background's gradient (D,)."""
    channels = features.shape[1]
    rows = np.zeros((len(splats.pair_splat), GRADIENT_COLUMNS + channels), np.float32)
    background_rows = np.zeros((len(splats.first_slot) - 1, channels), np.float32)
    _composite_gradients(
        splats.table, splats.pair_splat, splats.first_slot, splats.sorted_pairs,
        features, background, image_gradient, alpha_gradient,
        rows, background_rows, numba.get_num_threads(),
    )  # fmt: skip
    return rows, background_rows.sum(axis=0)


def project_gradients(
    splats: Splats,
    rows: Float32,
    means: Float32,
    quaternions: Float32,
    scales: Float32,
    world_to_camera: Float32,
    intrinsics: Float32,
    width: int,
    height: int,
) -> tuple[Float32, Float32, Float32, Float32, Float32]:
    """Gradients of means, quaternions, scales, opacities and features from gradient rows."""
    count, channels = len(means), rows.shape[1] - GRADIENT_COLUMNS
    gradients = (
        np.zeros((count, 3), np.float32),
        np.zeros((count, 4), np.float32),
        np.zeros((count, 3), np.float32),
        np.zeros(count, np.float32),
        np.zeros((count, channels), np.float32),
    )
    _project_gradients(
        splats.table, splats.first_pair, rows, means, quaternions, scales,
        world_to_camera, intrinsics, width, height, *gradients, numba.get_num_threads(),
    )  # fmt: skip
    return gradients


def tiles_across(pixels: int) -> int:
    """Number of tiles that cover so many pixels."""
    return -(-pixels // TILE)


@_kernel
def _rotate(quaternions, n, rotation):
    """Fill the matrix (3, 3) of quaternion ``n``, wxyz, not zero; returns its length."""
    w, x = float(quaternions[n, 0]), float(quaternions[n, 1])
    y, z = float(quaternions[n, 2]), float(quaternions[n, 3])
    length = math.sqrt(w * w + x * x + y * y + z * z)
    w, x, y, z = w / length, x / length, y / length, z / length
    rotation[0, 0] = 1 - 2 * (y * y + z * z)
    rotation[0, 1] = 2 * (x * y - w * z)
    rotation[0, 2] = 2 * (x * z + w * y)
    rotation[1, 0] = 2 * (x * y + w * z)
    rotation[1, 1] = 1 - 2 * (x * x + z * z)
    rotation[1, 2] = 2 * (y * z - w * x)
    rotation[2, 0] = 2 * (x * z - w * y)
    rotation[2, 1] = 2 * (y * z + w * x)
    rotation[2, 2] = 1 - 2 * (x * x + y * y)
    return length


@_kernel
def _to_camera(world_to_camera, view, means, n):
    x, y, z = float(means[n, 0]), float(means[n, 1]), float(means[n, 2])
    m, v = world_to_camera, view
    return (
        m[v, 0, 0] * x + m[v, 0, 1] * y + m[v, 0, 2] * z + m[v, 0, 3],
        m[v, 1, 0] * x + m[v, 1, 1] * y + m[v, 1, 2] * z + m[v, 1, 3],
        m[v, 2, 0] * x + m[v, 2, 1] * y + m[v, 2, 2] * z + m[v, 2, 3],
    )


@_kernel
def _clamp_slope(slope, focal, centre, size):
    """The slope x / z at which the Jacobian is taken: not far outside the image."""
    margin = FIELD_OF_VIEW_MARGIN * 0.5 * size / focal
    return min((size - centre) / focal + margin, max(-centre / focal - margin, slope))


@_kernel
def _image_axes(world_to_camera, intrinsics, view, x, y, z, width, height, axes):
    """Fill the rows (2, 3) that take a small world displacement to pixels: Jacobian · rotation."""
    focal_x, focal_y = float(intrinsics[view, 0, 0]), float(intrinsics[view, 1, 1])
    slope_x = _clamp_slope(x / z, focal_x, float(intrinsics[view, 0, 2]), width)
    slope_y = _clamp_slope(y / z, focal_y, float(intrinsics[view, 1, 2]), height)
    for k in range(3):
        forward = world_to_camera[view, 2, k]
        axes[0, k] = focal_x / z * (world_to_camera[view, 0, k] - slope_x * forward)
        axes[1, k] = focal_y / z * (world_to_camera[view, 1, k] - slope_y * forward)
    return slope_x, slope_y


@_kernel
def _project_splat(
    means, quaternions, scales, opacities, world_to_camera, intrinsics,
    width, height, low_pass, rotation, axes, table, s,
):  # fmt: skip
    """Fill row ``s`` of the splat table; REACH stays zero unless the Gaussian can be seen."""
    view, n = s // len(means), s % len(means)
    for column in range(SPLAT_COLUMNS):
        table[s, column] = 0
    x, y, z = _to_camera(world_to_camera, view, means, n)
    opacity = float(opacities[n])
    # Written so that NaN is culled too: a tile index made of it would leave the arrays.
    if not (z >= NEAR_PLANE and opacity >= MIN_ALPHA):
        return
    _rotate(quaternions, n, rotation)
    _image_axes(world_to_camera, intrinsics, view, x, y, z, width, height, axes)
    xx, xy, yy = low_pass, 0.0, low_pass
    for k in range(3):
        u = v = 0.0
        for j in range(3):
            u += axes[0, j] * rotation[j, k]
            v += axes[1, j] * rotation[j, k]
        squared = float(scales[n, k]) ** 2
        xx += squared * u * u
        xy += squared * u * v
        yy += squared * v * v
    determinant = xx * yy - xy * xy
    mean_x = intrinsics[view, 0, 0] * x / z + intrinsics[view, 0, 2]
    mean_y = intrinsics[view, 1, 1] * y / z + intrinsics[view, 1, 2]
    reach = 2 * math.log(opacity / MIN_ALPHA) + ROUNDING
    radius_x, radius_y = math.sqrt(reach * xx), math.sqrt(reach * yy)
    if not (determinant > 0 and np.isfinite(determinant)):
        return
    if not (-radius_x < mean_x < width + radius_x and -radius_y < mean_y < height + radius_y):
        return
    table[s, X], table[s, Y] = mean_x, mean_y
    table[s, CONIC_XX], table[s, CONIC_XY] = yy / determinant, -xy / determinant
    table[s, CONIC_YY] = xx / determinant
    table[s, OPACITY], table[s, DEPTH], table[s, REACH] = opacity, z, reach


@_kernel
def _tile_range(low, high, tiles):
    """Half-open range of the tiles with a pixel centre between two coordinates."""
    first = math.ceil(max(low, 0.5) - 0.5) // TILE
    last = math.floor(min(high, tiles * TILE) - 0.5) // TILE
    return first, last + 1


@_kernel
def _tile_rows(table, s, rows):
    """Half-open range of the rows of tiles that the ellipse touches, and its half-height."""
    xx, xy, yy = float(table[s, CONIC_XX]), float(table[s, CONIC_XY]), float(table[s, CONIC_YY])
    half_height = math.sqrt(table[s, REACH] * xx / (xx * yy - xy * xy))
    first, end = _tile_range(table[s, Y] - half_height, table[s, Y] + half_height, rows)
    return first, end, half_height


@_kernel
def _tile_columns(table, s, row, half_height, columns):
    """Half-open range of the columns of tiles that the ellipse touches in one row of tiles.

    The right end of the ellipse's chord is a concave function of the height, so within the band of
    the row's pixel centres it is greatest at the rightmost point or at the border nearer to it.
    """
    xx, xy, yy = float(table[s, CONIC_XX]), float(table[s, CONIC_XY]), float(table[s, CONIC_YY])
    low = max(row * TILE + 0.5 - table[s, Y], -half_height)
    high = min(row * TILE + TILE - 0.5 - table[s, Y], half_height)
    determinant = xx * yy - xy * xy
    rightmost = -xy / yy * math.sqrt(table[s, REACH] * yy / determinant)
    ends = (min(high, max(low, -rightmost)), min(high, max(low, rightmost)))
    chord_left = math.sqrt(max(0.0, xx * table[s, REACH] - determinant * ends[0] ** 2))
    chord_right = math.sqrt(max(0.0, xx * table[s, REACH] - determinant * ends[1] ** 2))
    left = table[s, X] - (xy * ends[0] + chord_left) / xx
    right = table[s, X] - (xy * ends[1] - chord_right) / xx
    return _tile_range(left, right, columns)


@_kernel
def _count_tiles(table, s, columns, rows):
    if table[s, REACH] == 0:
        return 0
    first_row, end_row, half_height = _tile_rows(table, s, rows)
    total = 0
    for row in range(first_row, end_row):
        first, end = _tile_columns(table, s, row, half_height, columns)
        total += max(0, end - first)
    return total


@_kernel
def _project_part(
    start, end, means, quaternions, scales, opacities, world_to_camera, intrinsics,
    width, height, low_pass, table, pairs_of_splat,
):  # fmt: skip
    columns, rows = -(-width // TILE), -(-height // TILE)
    rotation, axes = np.empty((3, 3)), np.empty((2, 3))
    for s in range(start, end):
        _project_splat(
            means, quaternions, scales, opacities, world_to_camera, intrinsics,
            width, height, low_pass, rotation, axes, table, s,
        )  # fmt: skip
        pairs_of_splat[s] = _count_tiles(table, s, columns, rows)


@_parallel
def _project(
    means, quaternions, scales, opacities, world_to_camera, intrinsics,
    width, height, low_pass, table, pairs_of_splat, workers,
):  # fmt: skip
    total = len(table)
    for number in prange(workers):
        worker = np.int64(number)
        _project_part(
            total * worker // workers, total * (worker + 1) // workers,
            means, quaternions, scales, opacities, world_to_camera, intrinsics,
            width, height, low_pass, table, pairs_of_splat,
        )  # fmt: skip


@_kernel
def _list_part(start, end, table, first_pair, columns, rows, pair_splat, pair_tile):
    for s in range(start, end):
        pair = first_pair[s]
        if pair == first_pair[s + 1]:
            continue
        first_row, end_row, half_height = _tile_rows(table, s, rows)
        for row in range(first_row, end_row):
            first, last = _tile_columns(table, s, row, half_height, columns)
            for column in range(first, last):
                pair_splat[pair] = s
                pair_tile[pair] = row * columns + column
                pair += 1


@_parallel
def _list_pairs(table, first_pair, columns, rows, pair_splat, pair_tile, workers):
    total = len(table)
    for number in prange(workers):
        worker = np.int64(number)
        _list_part(
            total * worker // workers, total * (worker + 1) // workers,
            table, first_pair, columns, rows, pair_splat, pair_tile,
        )  # fmt: skip


@_kernel
def _sort_view(view, order, first_pair, pair_tile, first_slot, sorted_pairs):
    """Counting sort of one view's pairs by tile; visiting them near to far keeps that order."""
    count = order.shape[1]
    tiles = (len(first_slot) - 1) // len(order)
    first, end = first_pair[view * count], first_pair[(view + 1) * count]
    next_slot = np.zeros(tiles + 1, np.int64)
    for pair in range(first, end):
        next_slot[pair_tile[pair] + 1] += 1
    next_slot[0] = first
    for tile in range(tiles):
        next_slot[tile + 1] += next_slot[tile]
        first_slot[view * tiles + tile + 1] = next_slot[tile + 1]
    for n in order[view]:
        for pair in range(first_pair[view * count + n], first_pair[view * count + n + 1]):
            sorted_pairs[next_slot[pair_tile[pair]]] = pair
            next_slot[pair_tile[pair]] += 1


@_parallel
def _sort_pairs(order, first_pair, pair_tile, first_slot, sorted_pairs):
    for number in prange(len(order)):
        view = np.int64(number)
        _sort_view(view, order, first_pair, pair_tile, first_slot, sorted_pairs)


@_simd
def _exponential(x):
    """exp(x) for -MAX_SIGMA ≤ x ≤ 0, error below 2e-6 of it; becomes SIMD, unlike math.exp."""
    t = x * np.float32(0.125)
    value = SERIES[6] * t + SERIES[5]
    value = value * t + SERIES[4]
    value = value * t + SERIES[3]
    value = value * t + SERIES[2]
    value = value * t + SERIES[1]
    value = value * t + SERIES[0]
    value *= value
    value *= value
    return value * value


@_simd
def _weigh(table, s, left, top, pixels, coverage, i):
    """Fill coverage row ``i`` with splat ``s``; takes it off the transmittance.

    Returns the sum of the weights, and how many pixels are still unfinished.
    """
    x, y, opacity = table[s, X] - left, table[s, Y] - top, table[s, OPACITY]
    half_xx, xy, half_yy = HALF * table[s, CONIC_XX], table[s, CONIC_XY], HALF * table[s, CONIC_YY]
    total, unfinished = ZERO, ZERO
    for p in range(PIXELS):
        dx, dy = x - pixels[CENTRE_X + p], y - pixels[CENTRE_Y + p]
        before = pixels[TRANSMITTANCE + p]
        sigma = half_xx * dx * dx + xy * dx * dy + half_yy * dy * dy
        alpha = opacity * _exponential(-(sigma if sigma < MAX_SIGMA else MAX_SIGMA))
        alpha = alpha if alpha < MAX_ALPHA_F32 else MAX_ALPHA_F32
        alpha = alpha * pixels[LIVE + p] if alpha >= MIN_ALPHA_F32 else ZERO
        after = before * (ONE - alpha)
        goes_on = ONE if after > MIN_TRANSMITTANCE else ZERO
        alpha *= goes_on
        live = pixels[LIVE + p] * goes_on
        pixels[LIVE + p] = live
        pixels[TRANSMITTANCE + p] = before * (ONE - alpha)
        coverage[i, ALPHA + p] = alpha
        coverage[i, WEIGHT + p] = alpha * before
        total += alpha * before
        unfinished += live
    return total, unfinished


@_kernel
def _start_tile(left, top, width, height, pixels):
    """Nothing is in front of the pixels yet; those outside the image are finished already."""
    for p in range(PIXELS):
        column, row = p % TILE, p // TILE
        pixels[CENTRE_X + p] = column + HALF
        pixels[CENTRE_Y + p] = row + HALF
        pixels[LIVE + p] = ONE if left + column < width and top + row < height else ZERO
        pixels[TRANSMITTANCE + p] = ONE


@_kernel
def _weigh_tile(
    slots, pair_splat, table, features, left, top, pixels, seen_pairs, coverage, colours
):
    """Weigh a tile's pairs near to far; returns how many are seen, rounded up to whole blocks.

    Fills, in that order, the seen pairs (-1 in the unused rows of the last block), their coverage
    and their features (., ≥ D).
    """
    channels = features.shape[1]
    seen = 0
    for pair in slots:
        s = pair_splat[pair]
        total, unfinished = _weigh(
            table, s, np.float32(left), np.float32(top), pixels, coverage, seen
        )
        if total > ZERO:
            seen_pairs[seen] = pair
            for c in range(channels):
                colours[seen, c] = features[s % len(features), c]
            seen += 1
        if unfinished == ZERO:
            break
    while seen % BLOCK:
        seen_pairs[seen] = -1
        coverage[seen] = ZERO
        colours[seen] = ZERO
        seen += 1
    return seen


@_simd
def _add_weighted(count, coverage, colours, planes):
    """planes (channels, 64) += coloursᵀ (channels, count) · weights (count, 64)."""
    for first in range(0, count, BLOCK):
        w0, w1 = coverage[first], coverage[first + 1]
        w2, w3 = coverage[first + 2], coverage[first + 3]
        for c in range(len(planes)):
            plane = planes[c]
            c0, c1 = colours[first, c], colours[first + 1, c]
            c2, c3 = colours[first + 2, c], colours[first + 3, c]
            for p in range(PIXELS):
                plane[p] += (
                    w0[WEIGHT + p] * c0
                    + w1[WEIGHT + p] * c1
                    + w2[WEIGHT + p] * c2
                    + w3[WEIGHT + p] * c3
                )


@_kernel
def _longest(first_slot):
    """The greatest number of pairs in a tile, and what fills up the last block."""
    longest = 0
    for tile in range(len(first_slot) - 1):
        longest = max(longest, first_slot[tile + 1] - first_slot[tile])
    return longest + BLOCK


@_kernel
def _composite_part(
    worker, workers, table, pair_splat, first_slot, sorted_pairs, features, background,
    image, alpha,
):  # fmt: skip
    height, width, channels = image.shape[1:]
    columns, rows = -(-width // TILE), -(-height // TILE)
    capacity = _longest(first_slot)
    pixels = np.empty(PIXEL_BUFFER, np.float32)
    seen_pairs = np.empty(capacity, np.int32)
    coverage = np.empty((capacity, 2 * PIXELS), np.float32)
    colours = np.empty((capacity, channels), np.float32)
    planes = np.empty((channels, PIXELS), np.float32)
    for tile in range(worker, len(first_slot) - 1, workers):
        view, tile_in_view = divmod(tile, columns * rows)
        left, top = tile_in_view % columns * TILE, tile_in_view // columns * TILE
        _start_tile(left, top, width, height, pixels)
        seen = _weigh_tile(
            sorted_pairs[first_slot[tile] : first_slot[tile + 1]], pair_splat, table, features,
            left, top, pixels, seen_pairs, coverage, colours,
        )  # fmt: skip
        for c in range(channels):
            for p in range(PIXELS):
                planes[c, p] = pixels[TRANSMITTANCE + p] * background[c]
        _add_weighted(seen, coverage, colours, planes)
        for y in range(top, min(top + TILE, height)):
            for x in range(left, min(left + TILE, width)):
                p = (y - top) * TILE + x - left
                for c in range(channels):
                    image[view, y, x, c] = planes[c, p]
                alpha[view, y, x] = ONE - pixels[TRANSMITTANCE + p]


@_parallel
def _composite(
    table, pair_splat, first_slot, sorted_pairs, features, background, image, alpha, workers
):
    for number in prange(workers):
        worker = np.int64(number)
        _composite_part(
            worker, workers, table, pair_splat, first_slot, sorted_pairs, features, background,
            image, alpha,
        )  # fmt: skip


@_kernel
def _gather_gradients(view, left, top, image_gradient, planes):
    """The tile's gradients as planes, one for each feature; zero outside the image."""
    height, width, channels = image_gradient.shape[1:]
    planes[:] = ZERO
    for y in range(top, min(top + TILE, height)):
        for x in range(left, min(left + TILE, width)):
            p = (y - top) * TILE + x - left
            for c in range(channels):
                planes[c, p] = image_gradient[view, y, x, c]


@_simd
def _background_gradients(view, left, top, pixels, background, alpha_gradient, planes, row):
    """Fill the background's gradient (D,) and BEHIND: the background's worth in each pixel."""
    height, width = alpha_gradient.shape[1:]
    pixels[BEHIND : BEHIND + PIXELS] = ZERO
    for y in range(top, min(top + TILE, height)):
        for x in range(left, min(left + TILE, width)):
            pixels[BEHIND + (y - top) * TILE + x - left] = -alpha_gradient[view, y, x]
    for c in range(len(background)):
        plane = planes[c]
        total = ZERO
        for p in range(PIXELS):
            total += pixels[TRANSMITTANCE + p] * plane[p]
            pixels[BEHIND + p] += background[c] * plane[p]
        row[c] = total
    for p in range(PIXELS):
        pixels[BEHIND + p] *= pixels[TRANSMITTANCE + p]


@_simd
def _colour_gradients(first, coverage, planes, colour_gradients):
    """(BLOCK, D) gradients of a block's features: weights · planesᵀ."""
    w0, w1 = coverage[first], coverage[first + 1]
    w2, w3 = coverage[first + 2], coverage[first + 3]
    for c in range(colour_gradients.shape[1]):
        plane = planes[c]
        g0 = g1 = g2 = g3 = ZERO
        for p in range(PIXELS):
            g0 += w0[WEIGHT + p] * plane[p]
            g1 += w1[WEIGHT + p] * plane[p]
            g2 += w2[WEIGHT + p] * plane[p]
            g3 += w3[WEIGHT + p] * plane[p]
        colour_gradients[0, c], colour_gradients[1, c] = g0, g1
        colour_gradients[2, c], colour_gradients[3, c] = g2, g3


@_simd
def _project_colour(colours, i, planes, pixels):
    """ALONG = colour ``i`` (channels,) · planes (channels, 64); channels a multiple of BLOCK."""
    for p in range(PIXELS):
        pixels[ALONG + p] = ZERO
    for c in range(0, len(planes), BLOCK):
        c0, c1, c2, c3 = colours[i, c], colours[i, c + 1], colours[i, c + 2], colours[i, c + 3]
        for p in range(PIXELS):
            pixels[ALONG + p] += (
                c0 * planes[c, p]
                + c1 * planes[c + 1, p]
                + c2 * planes[c + 2, p]
                + c3 * planes[c + 3, p]
            )


@_simd
def _opacity_gradients(table, s, left, top, pixels, coverage, i, rows, pair):
    """Fill the columns X … OPACITY of the pair's gradient row, and add the splat to BEHIND."""
    x, y = table[s, X] - left, table[s, Y] - top
    xx, xy, yy = table[s, CONIC_XX], table[s, CONIC_XY], table[s, CONIC_YY]
    total = total_x = total_y = total_xx = total_xy = total_yy = ZERO
    for p in range(PIXELS):
        dx, dy = x - pixels[CENTRE_X + p], y - pixels[CENTRE_Y + p]
        alpha = coverage[i, ALPHA + p]
        own = coverage[i, WEIGHT + p] * pixels[ALONG + p]
        change = pixels[BEHIND + p] * alpha / (ONE - alpha) - own  # d loss / d sigma
        change = change if alpha < MAX_ALPHA_F32 else ZERO  # a clamped alpha does not move
        pixels[BEHIND + p] += own
        change_x, change_y = change * dx, change * dy
        total += change
        total_x += change_x
        total_y += change_y
        total_xx += change_x * dx
        total_xy += change_x * dy
        total_yy += change_y * dy
    rows[pair, X] = xx * total_x + xy * total_y
    rows[pair, Y] = xy * total_x + yy * total_y
    rows[pair, CONIC_XX] = HALF * total_xx
    rows[pair, CONIC_XY] = total_xy
    rows[pair, CONIC_YY] = HALF * total_yy
    rows[pair, OPACITY] = -total / table[s, OPACITY]


@_kernel
def _composite_gradients_part(
    worker, workers, table, pair_splat, first_slot, sorted_pairs, features, background,
    image_gradient, alpha_gradient, rows, background_rows,
):  # fmt: skip
    height, width, channels = image_gradient.shape[1:]
    tile_columns, tile_rows = -(-width // TILE), -(-height // TILE)
    padded = -(-channels // BLOCK) * BLOCK
    capacity = _longest(first_slot)
    pixels = np.empty(PIXEL_BUFFER, np.float32)
    seen_pairs = np.empty(capacity, np.int32)
    coverage = np.empty((capacity, 2 * PIXELS), np.float32)
    colours = np.zeros((capacity, padded), np.float32)
    colour_gradients = np.empty((BLOCK, channels), np.float32)
    planes = np.empty((padded, PIXELS), np.float32)
    for tile in range(worker, len(first_slot) - 1, workers):
        view, tile_in_view = divmod(tile, tile_columns * tile_rows)
        left, top = tile_in_view % tile_columns * TILE, tile_in_view // tile_columns * TILE
        _start_tile(left, top, width, height, pixels)
        seen = _weigh_tile(
            sorted_pairs[first_slot[tile] : first_slot[tile + 1]], pair_splat, table, features,
            left, top, pixels, seen_pairs, coverage, colours,
        )  # fmt: skip
        _gather_gradients(view, left, top, image_gradient, planes)
        _background_gradients(
            view, left, top, pixels, background, alpha_gradient, planes, background_rows[tile]
        )
        for first in range(seen - BLOCK, -1, -BLOCK):
            _colour_gradients(first, coverage, planes, colour_gradients)
            for i in range(BLOCK - 1, -1, -1):
                pair = seen_pairs[first + i]
                if pair < 0:
                    continue
                _project_colour(colours, first + i, planes, pixels)
                _opacity_gradients(
                    table, pair_splat[pair], np.float32(left), np.float32(top),
                    pixels, coverage, first + i, rows, pair,
                )  # fmt: skip
                for c in range(channels):
                    rows[pair, GRADIENT_COLUMNS + c] = colour_gradients[i, c]


@_parallel
def _composite_gradients(
    table, pair_splat, first_slot, sorted_pairs, features, background,
    image_gradient, alpha_gradient, rows, background_rows, workers,
):  # fmt: skip
    for number in prange(workers):
        worker = np.int64(number)
        _composite_gradients_part(
            worker, workers, table, pair_splat, first_slot, sorted_pairs, features, background,
            image_gradient, alpha_gradient, rows, background_rows,
        )  # fmt: skip


@_kernel
def _unrotate(quaternions, n, length, rotation_gradient, quaternion_gradients):
    """Set the gradient of quaternion ``n`` from that of its rotation matrix (3, 3)."""
    g = rotation_gradient
    w, x = quaternions[n, 0] / length, quaternions[n, 1] / length
    y, z = quaternions[n, 2] / length, quaternions[n, 3] / length
    unit = (
        2 * (x * (g[2, 1] - g[1, 2]) + y * (g[0, 2] - g[2, 0]) + z * (g[1, 0] - g[0, 1])),
        2 * (w * (g[2, 1] - g[1, 2]) + y * (g[0, 1] + g[1, 0]) + z * (g[0, 2] + g[2, 0]))
        - 4 * x * (g[1, 1] + g[2, 2]),
        2 * (w * (g[0, 2] - g[2, 0]) + x * (g[0, 1] + g[1, 0]) + z * (g[1, 2] + g[2, 1]))
        - 4 * y * (g[0, 0] + g[2, 2]),
        2 * (w * (g[1, 0] - g[0, 1]) + x * (g[0, 2] + g[2, 0]) + y * (g[1, 2] + g[2, 1]))
        - 4 * z * (g[0, 0] + g[1, 1]),
    )
    along = unit[0] * w + unit[1] * x + unit[2] * y + unit[3] * z
    for k in range(4):
        quaternion_gradients[n, k] = (unit[k] - along * quaternions[n, k] / length) / length


@_kernel
def _covariance_gradients(table, s, row):
    """Gradients of the covariance's xx, xy, yy from those of its inverse, the conic."""
    xx, xy, yy = float(table[s, CONIC_XX]), float(table[s, CONIC_XY]), float(table[s, CONIC_YY])
    g_xx, g_xy, g_yy = row[CONIC_XX], row[CONIC_XY], row[CONIC_YY]
    return (
        -(xx * xx * g_xx + xx * xy * g_xy + xy * xy * g_yy),
        -(2 * xx * xy * g_xx + (xx * yy + xy * xy) * g_xy + 2 * xy * yy * g_yy),
        -(xy * xy * g_xx + xy * yy * g_xy + yy * yy * g_yy),
    )


@_kernel
def _shape_gradients(
    covariance_gradient, scales, n, axes, rotation,
    scale_gradients, axes_gradient, rotation_gradient,
):  # fmt: skip
    """Add the gradients of scale ``n``, axes (2, 3) and rotation (3, 3) to the three arrays.

    The covariance is M Mᵀ with M = axes · rotation · diag(scales[n]).
    """
    g_xx, g_xy, g_yy = covariance_gradient
    for k in range(3):
        s = float(scales[n, k])
        u = axes[0, 0] * rotation[0, k] + axes[0, 1] * rotation[1, k] + axes[0, 2] * rotation[2, k]
        v = axes[1, 0] * rotation[0, k] + axes[1, 1] * rotation[1, k] + axes[1, 2] * rotation[2, k]
        g_u, g_v = 2 * g_xx * u + g_xy * v, 2 * g_yy * v + g_xy * u
        scale_gradients[n, k] += s * (g_u * u + g_v * v)
        for j in range(3):
            rotation_gradient[j, k] += s * s * (g_u * axes[0, j] + g_v * axes[1, j])
            axes_gradient[0, j] += s * s * g_u * rotation[j, k]
            axes_gradient[1, j] += s * s * g_v * rotation[j, k]


@_kernel
def _mean_gradient(
    means, n, world_to_camera, intrinsics, view, width, height,
    row, axes, axes_gradient, mean_gradients,
):  # fmt: skip
    """Add the gradient of mean ``n``: through its pixel and the image axes."""
    x, y, z = _to_camera(world_to_camera, view, means, n)
    slope_x, slope_y = _image_axes(world_to_camera, intrinsics, view, x, y, z, width, height, axes)
    scale_x, scale_y = intrinsics[view, 0, 0] / z, intrinsics[view, 1, 1] / z  # pixels per metre
    g_slope_x = g_slope_y = g_z = 0.0
    for k in range(3):
        if slope_x == x / z:  # a clamped slope does not move
            g_slope_x -= scale_x * axes_gradient[0, k] * world_to_camera[view, 2, k]
        if slope_y == y / z:
            g_slope_y -= scale_y * axes_gradient[1, k] * world_to_camera[view, 2, k]
        g_z -= (axes_gradient[0, k] * axes[0, k] + axes_gradient[1, k] * axes[1, k]) / z
    g_x = (g_slope_x + row[X] * intrinsics[view, 0, 0]) / z
    g_y = (g_slope_y + row[Y] * intrinsics[view, 1, 1]) / z
    g_z -= (g_x * x + g_y * y) / z
    for k in range(3):
        mean_gradients[n, k] += (
            world_to_camera[view, 0, k] * g_x
            + world_to_camera[view, 1, k] * g_y
            + world_to_camera[view, 2, k] * g_z
        )


@_kernel
def _add_rows(rows, first, end, total, feature_gradients, n):
    """Add up a splat's pairs: the columns of the splat, and the features on top of other views'."""
    total[:] = 0
    for pair in range(first, end):
        for column in range(GRADIENT_COLUMNS):
            total[column] += rows[pair, column]
        for c in range(feature_gradients.shape[1]):
            feature_gradients[n, c] += rows[pair, GRADIENT_COLUMNS + c]


@_kernel
def _project_gradients_part(
    start, end, table, first_pair, rows, means, quaternions, scales, world_to_camera, intrinsics,
    width, height, mean_gradients, quaternion_gradients, scale_gradients, opacity_gradients,
    feature_gradients,
):  # fmt: skip
    rotation, axes, total = np.empty((3, 3)), np.empty((2, 3)), np.empty(GRADIENT_COLUMNS)
    rotation_gradient, axes_gradient = np.empty((3, 3)), np.empty((2, 3))
    for n in range(start, end):
        length = _rotate(quaternions, n, rotation)
        rotation_gradient[:] = 0
        for view in range(len(world_to_camera)):
            s = view * len(means) + n
            if first_pair[s] == first_pair[s + 1]:
                continue
            _add_rows(rows, first_pair[s], first_pair[s + 1], total, feature_gradients, n)
            opacity_gradients[n] += total[OPACITY]
            x, y, z = _to_camera(world_to_camera, view, means, n)
            _image_axes(world_to_camera, intrinsics, view, x, y, z, width, height, axes)
            axes_gradient[:] = 0
            _shape_gradients(
                _covariance_gradients(table, s, total), scales, n, axes, rotation,
                scale_gradients, axes_gradient, rotation_gradient,
            )  # fmt: skip
            _mean_gradient(
                means, n, world_to_camera, intrinsics, view, width, height,
                total, axes, axes_gradient, mean_gradients,
            )  # fmt: skip
        _unrotate(quaternions, n, length, rotation_gradient, quaternion_gradients)


@_parallel
def _project_gradients(
    table, first_pair, rows, means, quaternions, scales, world_to_camera, intrinsics,
    width, height, mean_gradients, quaternion_gradients, scale_gradients, opacity_gradients,
    feature_gradients, workers,
):  # fmt: skip
    total = len(means)
    for number in prange(workers):
        worker = np.int64(number)
        _project_gradients_part(
            total * worker // workers, total * (worker + 1) // workers,
            table, first_pair, rows, means, quaternions, scales, world_to_camera, intrinsics,
            width, height, mean_gradients, quaternion_gradients, scale_gradients,
            opacity_gradients, feature_gradients,
        )  # fmt: skip
