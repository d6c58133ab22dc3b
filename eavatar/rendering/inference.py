"""Gaussian splatting on CUDA where no gradient is wanted: Triton kernels of our own.

The images are those of gsplat (`eavatar.rendering.splatting` has the conventions). What differs:
the work around the two sorts is in few kernels, a Gaussian is listed only where its ellipse touches
a tile's pixel centres and not wherever its rectangle does, and the weighted sums of the features
are matrix products.

1. `project`: the local affine projection (Zwicker et al. 2001, EWA splatting) of every Gaussian
   into every image: a *splat*. Splat ``i * N + n`` is Gaussian ``n`` in image ``i``.
2. `list_tiles`: the pairs of a splat and a tile, listed near to far and then sorted by tile, in
   tensors whose sizes do not depend on the values, as in `eavatar.rendering.tiles`.
3. `composite`: front to back over a tile's list (Kerbl et al. 2023, 3D Gaussian splatting).

Letters: I images, N Gaussians, S = I·N splats, M listed pairs, D feature channels. With scenes, all
cameras of a scene follow each other in I, and the scenes' Gaussians in the inputs.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from eavatar.rendering.tiles import TILE

NEAR_PLANE = tl.constexpr(0.01)  # metres
MARGIN = tl.constexpr(0.15)  # the Jacobian is frozen beyond the image plus this fraction of it
EXTENT = tl.constexpr(3.33)  # standard deviations beyond which gsplat draws nothing
MIN_ALPHA, MAX_ALPHA = tl.constexpr(1 / 255), tl.constexpr(0.999)
MIN_TRANSMITTANCE = tl.constexpr(1e-4)  # a pixel is finished there
LOG_MIN_ALPHA = tl.constexpr(-math.log2(255))  # all logarithms are to base 2
LOG_E = tl.constexpr(math.log2(math.e))
# In the exponent of 2 of alpha: no tile is missed because its edge pixel is at the threshold.
ROUNDING = tl.constexpr(1e-3)
# Of the weighted sums' factors: 11 bits as of TF32, but half as much to move, and a rounding that
# is one instruction. Errors of 2⁻¹² of a feature are far below a level of an 8-bit image.
FACTOR = tl.constexpr(tl.float16)
SIDE = tl.constexpr(TILE)
# Columns of the splat table. The exponent of 2 of a splat's alpha at (x, y) is LOG_OPACITY
# - XX dx² - XY dx dy - YY dy², with dx = X - x and dy = Y - y in pixels.
X, Y, XX, XY, YY, LOG_OPACITY = (tl.constexpr(column) for column in range(6))
COLUMNS = tl.constexpr(8)  # 32 bytes, what the memory delivers at a time

BLOCK = 256  # splats, or pairs, of one program that does not composite
# Of a compositing program. A thread has one or two pixels and all splats of a chunk, so that the
# products along the chunk are its own; more would be more registers than leave several programs
# to a multiprocessor.
PIXELS = 128  # a tile, or part of it
CHUNK = 16  # splats at a time; the matrix products have 16 at least
RUN = 4  # chunks between two looks at whether all pixels are finished, for which all threads wait
WARPS = 4
MAX_CHANNELS = 32  # further ones are another program's


@dataclass(frozen=True)
class Splats:
    """All Gaussians in all images.

    Attributes:
        table: (S, 8) float32, the columns X … LOG_OPACITY; undefined for what is not seen.
        depths: (S,) metres; infinite for what is not seen.
        first: (S,) int32, the first of the tiles that the splat's rectangle touches, counted over
            all images row by row.
        wide: (S,) int32, columns of these tiles.
        tiles: (S,) int64, number of these tiles; zero for what is not seen.
    """

    table: Tensor
    depths: Tensor
    first: Tensor
    wide: Tensor
    tiles: Tensor


@dataclass(frozen=True)
class Lists:
    """The splats of each tile.

    Attributes:
        bounds: (2, tiles of all images) int32, where a tile's splats begin and end in `splats`.
        splats: (M,) int32, tile by tile, near to far; then undefined ones.
        pairs: () int64, pairs of a tile and a splat whose rectangle touches it. Beyond M the
            farthest are left out.
    """

    bounds: Tensor
    splats: Tensor
    pairs: Tensor


def project(
    means: Tensor,
    quaternions: Tensor,
    scales: Tensor,
    opacities: Tensor,
    world_to_camera: Tensor,
    intrinsics: Tensor,
    width: int,
    height: int,
    low_pass: float,
) -> Splats:
    """Project (…, N, …) Gaussians into (…, C) images; arguments as of `splatting.splat`."""
    count, images = opacities.shape[-1], world_to_camera.shape[:-2].numel()
    number = images * count
    splats = Splats(
        means.new_empty(number, COLUMNS.value),
        means.new_empty(number),
        means.new_empty(number, dtype=torch.int32),
        means.new_empty(number, dtype=torch.int32),
        means.new_empty(number, dtype=torch.int64),
    )
    inputs = (means, quaternions, scales, opacities, world_to_camera, intrinsics)
    _project[triton.cdiv(count, BLOCK), images](
        *(tensor.contiguous() for tensor in inputs),
        splats.table, splats.depths, splats.first, splats.wide, splats.tiles,
        count, world_to_camera.shape[-3], width, height, -(-width // TILE), -(-height // TILE),
        low_pass, BLOCK,
    )  # fmt: skip
    return splats


def list_tiles(splats: Splats, images: int, width: int, height: int, capacity: int | None) -> Lists:
    """List the splats of each tile.

    Args:
        capacity: M. None for the number of pairs, a host-device synchronisation.
    """
    columns, rows = -(-width // TILE), -(-height // TILE)
    number, count = images * rows * columns, len(splats.depths)
    near_to_far = splats.depths.argsort(stable=True)
    ends = splats.tiles[near_to_far].cumsum(0)
    pairs = ends[-1]
    slots = int(pairs) if capacity is None else capacity
    # A radix sort takes fewer passes over fewer bits.
    kind = torch.int16 if number <= torch.iinfo(torch.int16).max else torch.int32
    tile = splats.first.new_empty(slots, dtype=kind)
    unsorted, listed = splats.first.new_empty(slots), splats.first.new_empty(slots)
    programs = (triton.cdiv(slots, BLOCK),)
    _list_pairs[programs](
        splats.table, near_to_far, ends, splats.first, splats.wide, tile, unsorted,
        slots, count, columns, rows, number, count.bit_length(), BLOCK,
    )  # fmt: skip
    tile, order = tile.sort(stable=True)
    bounds = splats.first.new_zeros(2, number)  # empty lists stay at zero
    _sort_pairs[programs](tile, order, unsorted, listed, *bounds, slots, number, BLOCK)
    return Lists(bounds, listed, pairs)


def composite(
    splats: Splats,
    lists: Lists,
    features: Tensor,
    background: Tensor | None,
    views: int,
    width: int,
    height: int,
) -> tuple[Tensor, Tensor]:
    """Images (I, H, W, D) and alpha (I, H, W) of features (…, N, D), seen in so many views each.

    Features are at most 65504 in size, the greatest finite half-precision number.
    """
    count, channels = features.shape[-2:]
    images = features.shape[:-2].numel() * views
    image = features.new_empty(images, height, width, channels)
    alpha = features.new_empty(images, height, width)
    # The matrix products have 16 channels at least.
    together = min(max(triton.next_power_of_2(channels), 16), MAX_CHANNELS)
    parts = lists.bounds.shape[1] * (TILE * TILE // PIXELS)
    _composite[parts, triton.cdiv(channels, together)](
        splats.table, *lists.bounds, lists.splats, features.contiguous(), background, image, alpha,
        count, views, channels, width, height, -(-width // TILE), -(-height // TILE),
        background is not None, together, PIXELS, CHUNK, RUN, num_warps=WARPS,
    )  # fmt: skip
    return image, alpha


@triton.jit
def _clamp_slope(slope, focal, centre, size):
    """The slope x / z at which the Jacobian is taken: not far outside the image."""
    margin = MARGIN * size / focal
    slope = tl.minimum(slope, (size - centre) / focal + margin)
    return tl.maximum(slope, -centre / focal - margin)


@triton.jit
def _along_axes(x, y, z, qw, qx, qy, qz):
    """Components of world vectors along the three axes of Gaussians turned by unit quaternions."""
    return (
        x * (1 - 2 * (qy * qy + qz * qz)) + 2 * (y * (qx * qy + qw * qz) + z * (qx * qz - qw * qy)),
        y * (1 - 2 * (qx * qx + qz * qz)) + 2 * (x * (qx * qy - qw * qz) + z * (qy * qz + qw * qx)),
        z * (1 - 2 * (qx * qx + qy * qy)) + 2 * (x * (qx * qz + qw * qy) + y * (qy * qz - qw * qx)),
    )


@triton.jit
def _span(centre, radius, tiles):
    """First tile and number of tiles that an interval touches, as gsplat 1.5.3 counts them."""
    first = tl.maximum(tl.minimum(tl.floor((centre - radius) / SIDE), tiles), 0.0)
    end = tl.maximum(tl.minimum(tl.ceil((centre + radius) / SIDE), tiles), 0.0)
    return first.to(tl.int32), (end - first).to(tl.int32)


@triton.jit
def _load_row(row):
    """The four numbers of a row of a camera's matrix."""
    return tl.load(row), tl.load(row + 1), tl.load(row + 2), tl.load(row + 3)


@triton.jit
def _load_vectors(vectors, exists):
    """The three components of vectors, zero where there is none."""
    return (
        tl.load(vectors, exists, 0.0),
        tl.load(vectors + 1, exists, 0.0),
        tl.load(vectors + 2, exists, 0.0),
    )


@triton.jit
def _project(
    means, quaternions, scales, opacities, world_to_camera, intrinsics,
    table, depths, firsts, wides, tiles,
    count, views, width, height, columns, rows, low_pass, BLOCK: tl.constexpr,
):  # fmt: skip
    image = tl.program_id(1)
    n = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    exists = n < count
    splat = image * count + n
    gaussian = image // views * count + n

    camera = world_to_camera + 16 * image
    r00, r01, r02, tx = _load_row(camera)
    r10, r11, r12, ty = _load_row(camera + 4)
    r20, r21, r22, tz = _load_row(camera + 8)
    intrinsics += 9 * image
    focal_x, centre_x = tl.load(intrinsics), tl.load(intrinsics + 2)
    focal_y, centre_y = tl.load(intrinsics + 4), tl.load(intrinsics + 5)

    mx, my, mz = _load_vectors(means + 3 * gaussian, exists)
    z = r20 * mx + r21 * my + r22 * mz + tz
    slope_x = (r00 * mx + r01 * my + r02 * mz + tx) / z
    slope_y = (r10 * mx + r11 * my + r12 * mz + ty) / z
    x, y = focal_x * slope_x + centre_x, focal_y * slope_y + centre_y
    slope_x = _clamp_slope(slope_x, focal_x, centre_x, width)
    slope_y = _clamp_slope(slope_y, focal_y, centre_y, height)

    quaternions += 4 * gaussian
    qw, qx = tl.load(quaternions, exists, 0.0), tl.load(quaternions + 1, exists, 0.0)
    qy, qz = tl.load(quaternions + 2, exists, 0.0), tl.load(quaternions + 3, exists, 0.0)
    shorter = 1 / tl.sqrt(qw * qw + qx * qx + qy * qy + qz * qz)
    qw, qx, qy, qz = qw * shorter, qx * shorter, qy * shorter, qz * shorter
    # The rows of Jacobian · camera's rotation · Gaussian's rotation, without focal length / depth.
    u0, u1, u2 = _along_axes(
        r00 - slope_x * r20, r01 - slope_x * r21, r02 - slope_x * r22, qw, qx, qy, qz
    )
    v0, v1, v2 = _along_axes(
        r10 - slope_y * r20, r11 - slope_y * r21, r12 - slope_y * r22, qw, qx, qy, qz
    )
    s0, s1, s2 = _load_vectors(scales + 3 * gaussian, exists)
    u0, u1, u2, v0, v1, v2 = u0 * s0, u1 * s1, u2 * s2, v0 * s0, v1 * s1, v2 * s2
    per_x, per_y = focal_x / z, focal_y / z
    xx = per_x * per_x * (u0 * u0 + u1 * u1 + u2 * u2) + low_pass
    xy = per_x * per_y * (u0 * v0 + u1 * v1 + u2 * v2)
    yy = per_y * per_y * (v0 * v0 + v1 * v1 + v2 * v2) + low_pass
    determinant = xx * yy - xy * xy

    opacity = tl.load(opacities + gaussian, exists, 0.0)
    log_opacity = tl.log2(tl.maximum(opacity, MIN_ALPHA))
    extent = tl.sqrt(tl.maximum(log_opacity - LOG_MIN_ALPHA, 0.0) * (2 / LOG_E))
    extent = tl.minimum(extent, EXTENT)
    radius_x, radius_y = tl.ceil(extent * tl.sqrt(xx)), tl.ceil(extent * tl.sqrt(yy))
    # Written so that what is not a number is not seen: a tile's index made of it would be any.
    seen = exists & (z >= NEAR_PLANE) & (opacity >= MIN_ALPHA) & (radius_x > 0) & (radius_y > 0)
    seen &= (determinant > 0) & (determinant < float("inf"))
    seen &= (x + radius_x > 0) & (x - radius_x < width)
    seen &= (y + radius_y > 0) & (y - radius_y < height)

    column, wide = _span(x, radius_x, columns)
    row, high = _span(y, radius_y, rows)
    tl.store(depths + splat, tl.where(seen, z, float("inf")), exists)
    tl.store(firsts + splat, (image * rows + row) * columns + column, exists)
    tl.store(wides + splat, wide, exists)
    tl.store(tiles + splat, tl.where(seen, wide * high, 0), exists)
    table += COLUMNS * splat
    scale = 0.5 * LOG_E / determinant
    tl.store(table + X, x, exists)
    tl.store(table + Y, y, exists)
    tl.store(table + XX, scale * yy, exists)
    tl.store(table + XY, -2 * scale * xy, exists)
    tl.store(table + YY, scale * xx, exists)
    tl.store(table + LOG_OPACITY, log_opacity, exists)


@triton.jit
def _greatest_power(table, splat, left, top):
    """The greatest exponent of 2 of a splat's alpha at any place between a tile's pixel centres.

    Where the splat's centre is outside, it is on one of the sides that face the centre.
    """
    table += COLUMNS * splat
    x, y = tl.load(table + X), tl.load(table + Y)
    xx, xy, yy = tl.load(table + XX), tl.load(table + XY), tl.load(table + YY)
    low_x, low_y = x - left - (SIDE - 0.5), y - top - (SIDE - 0.5)
    high_x, high_y = x - left - 0.5, y - top - 0.5
    # The nearest place in x and in y alone, and from there on the best one in the other.
    near_x = tl.minimum(tl.maximum(0.0, low_x), high_x)
    near_y = tl.minimum(tl.maximum(0.0, low_y), high_y)
    best_x = tl.minimum(tl.maximum(-0.5 * xy / xx * near_y, low_x), high_x)
    best_y = tl.minimum(tl.maximum(-0.5 * xy / yy * near_x, low_y), high_y)
    across = (xx * near_x + xy * best_y) * near_x + yy * best_y * best_y
    along = (xx * best_x + xy * near_y) * best_x + yy * near_y * near_y
    return tl.load(table + LOG_OPACITY) - tl.minimum(across, along)


@triton.jit(do_not_specialize=["slots"])
def _list_pairs(
    table, near_to_far, ends, firsts, wides, tiles, splats,
    slots, count, columns, rows, nowhere, STEPS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    slot = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    # The first splat, near to far, whose pairs end behind the slot; beyond all pairs the last one.
    low, high = tl.zeros([BLOCK], tl.int32), tl.full([BLOCK], count - 1, tl.int32)
    for _ in range(STEPS):
        middle = (low + high) // 2
        behind = tl.load(ends + middle) > slot
        high = tl.where(behind, middle, high)
        low = tl.where(behind, low, middle + 1)
    splat = tl.load(near_to_far + high).to(tl.int32)
    left = (tl.load(ends + high) - 1 - slot).to(tl.int32)  # counts a splat's tiles down to zero
    exists = left >= 0
    wide = tl.maximum(tl.load(wides + splat), 1)
    tile = tl.load(firsts + splat) + left // wide * columns + left % wide
    power = _greatest_power(table, splat, tile % columns * SIDE, tile // columns % rows * SIDE)
    drawn = exists & (power > LOG_MIN_ALPHA - ROUNDING)
    tl.store(tiles + slot, tl.where(drawn, tile, nowhere), slot < slots)
    tl.store(splats + slot, splat, slot < slots)


@triton.jit(do_not_specialize=["slots"])
def _sort_pairs(
    tiles, order, unsorted, splats, begins, ends, slots, nowhere, BLOCK: tl.constexpr
):  # fmt: skip
    slot = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    exists = slot < slots
    tile = tl.load(tiles + slot, exists, nowhere).to(tl.int32)
    before = tl.load(tiles + slot - 1, exists & (slot > 0), nowhere).to(tl.int32)
    drawn = exists & (tile != nowhere)
    splat = tl.load(unsorted + tl.load(order + slot, drawn, 0), drawn, 0)
    tl.store(splats + slot, splat, drawn)
    border = exists & (tile != before)
    tl.store(begins + tile, slot, border & drawn)
    tl.store(ends + before, slot, border & (before != nowhere))
    last = exists & (slot == slots - 1)
    tl.store(ends + tile, slot + 1, last & drawn)


@triton.jit
def _blend(transmittance, weight, next_transmittance, next_weight):
    """Transmittance of two layers, and the weight of the farther one behind the nearer."""
    return transmittance * next_transmittance, transmittance * next_weight


@triton.jit
def _load_numbers(splats, listed, end):
    """The splats' numbers, repeated along the columns of the table (CHUNK, COLUMNS).

    As part of such a tensor, a number is where its row will be asked for. A vector of them would
    be distributed otherwise, and every chunk redistribute it through shared memory.
    """
    number = tl.load(splats + listed, listed < end, 0)
    return tl.broadcast_to(number[:, None], [listed.shape[0], COLUMNS])


@triton.jit
def _load_chunk(table, features, number, exists, channel, channels):
    """Rows of the table (CHUNK, COLUMNS) and features; what does not exist is transparent."""
    column = tl.arange(0, COLUMNS)[None, :]
    transparent = tl.where(column == LOG_OPACITY, float("-inf"), 0.0)
    rows = tl.load(table + COLUMNS * number + column, exists[:, None], transparent)
    # Of equal columns any is wanted; the maximum is three exchanges within a warp.
    place = tl.max(number, 1)[:, None] * channels + channel[None, :]
    used = exists[:, None] & (channel < channels)[None, :]
    return rows, tl.load(features + place, used, 0.0)


@triton.jit
def _split_columns(rows):
    """The columns X … LOG_OPACITY of rows of the table."""
    # The bits of a column's number, the lowest last.
    even, odd = tl.split(tl.reshape(rows, [rows.shape[0], 2, 2, 2]))
    columns_04, columns_26 = tl.split(even)
    columns_15, columns_37 = tl.split(odd)
    x, yy = tl.split(columns_04)
    y, log_opacity = tl.split(columns_15)
    xx, _ = tl.split(columns_26)
    xy, _ = tl.split(columns_37)
    return x, y, xx, xy, yy, log_opacity


@triton.jit
def _composite(
    table, begins, ends, splats, features, background, image, alphas,
    count, views, channels, width, height, tile_columns, tile_rows,
    HAS_BACKGROUND: tl.constexpr, CHANNELS: tl.constexpr, PIXELS: tl.constexpr,
    CHUNK: tl.constexpr, RUN: tl.constexpr,
):  # fmt: skip
    parts: tl.constexpr = SIDE * SIDE // PIXELS
    tile, part = tl.program_id(0) // parts, tl.program_id(0) % parts
    view = tile // (tile_rows * tile_columns)
    pixel = tl.arange(0, PIXELS)
    column = tile % tile_columns * SIDE + pixel % SIDE
    row = tile // tile_columns % tile_rows * SIDE + part * (SIDE // parts) + pixel // SIDE
    inside = (column < width) & (row < height)
    x, y = (column + 0.5)[None, :], (row + 0.5)[None, :]
    channel = tl.program_id(1) * CHANNELS + tl.arange(0, CHANNELS)
    # Of a splat's number, its Gaussian's number among those of all scenes is left.
    features += (view // views - view).to(tl.int64) * count * channels

    # What is outside the image is finished already.
    transmittance = tl.where(inside, 1.0, 0.0)
    alpha = tl.zeros([PIXELS], tl.float32)
    colours = tl.zeros([PIXELS, CHANNELS], tl.float32)
    slot, end = tl.load(begins + tile), tl.load(ends + tile)
    layer = tl.arange(0, CHUNK)
    # A program is one long chain of chunks, and few of them are at work at a time: a chunk's rows
    # and features are asked for while the chunk before it is drawn, and its numbers even earlier.
    number = _load_numbers(splats, slot + layer, end)
    rows, feature = _load_chunk(table, features, number, slot + layer < end, channel, channels)
    number = _load_numbers(splats, slot + CHUNK + layer, end)
    unfinished = slot < end
    while unfinished:
        for _ in range(0, tl.minimum(tl.cdiv(end - slot, CHUNK), RUN)):
            slot += CHUNK
            exists = slot + layer < end
            next_rows, next_feature = _load_chunk(
                table, features, number, exists, channel, channels
            )
            number = _load_numbers(splats, slot + CHUNK + layer, end)

            centre_x, centre_y, xx, xy, yy, log_opacity = _split_columns(rows)
            dx, dy = centre_x[:, None] - x, centre_y[:, None] - y
            power = log_opacity[:, None] - (xx[:, None] * dx + xy[:, None] * dy) * dx
            covered = tl.exp2(power - yy[:, None] * dy * dy)
            covered = tl.where(covered >= MIN_ALPHA, tl.minimum(covered, MAX_ALPHA), 0.0)
            before = tl.where(layer[:, None] == 0, transmittance[None, :], 1.0)
            after, weight = tl.associative_scan(
                ((1 - covered) * before, covered * before), 0, _blend
            )
            # The splat that would finish a pixel is not drawn, nor any behind it.
            weight = tl.where(after > MIN_TRANSMITTANCE, weight, 0.0)
            alpha += tl.sum(weight, 0)
            transmittance = tl.max(tl.where(layer[:, None] == CHUNK - 1, after, 0.0), 0)
            colours = tl.dot(tl.trans(weight.to(FACTOR)), feature.to(FACTOR), colours)
            rows, feature = next_rows, next_feature
        unfinished = (slot < end) & (tl.max(transmittance, 0) > MIN_TRANSMITTANCE)

    if HAS_BACKGROUND:
        behind = tl.load(background + channel, channel < channels, 0.0)
        colours += (1 - alpha)[:, None] * behind[None, :]
    place = (view.to(tl.int64) * height + row) * width + column
    tl.store(
        image + place[:, None] * channels + channel[None, :],
        colours,
        inside[:, None] & (channel < channels)[None, :],
    )
    if tl.program_id(1) == 0:
        tl.store(alphas + place, alpha, inside)
