"""Which Gaussians touch which tile of which image, in tensors whose sizes do not depend on it.

The list that gsplat's rasteriser walks, of a fixed capacity: the caller says how many (Gaussian,
tile) pairs it holds, so no length is copied to the host and the whole draws inside a CUDA graph.
gsplat's own `isect_tiles` synchronises the host with the device.

A *splat* is a Gaussian in one image; splat ``i * N + n`` is Gaussian ``n`` in image ``i``. The
splats of all images are sorted by depth at once; their pairs, listed in that order, are then sorted
by tile. A stable sort keeps near before far, and both sorts have 32-bit keys.

Capacity that is not needed goes to the end of the last image's list. Every image has therefore one
more row of tiles than it needs, below the image, and the mask tells the rasteriser to skip it.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

TILE = 16  # pixels; gsplat's kernels are compiled for any, and tested with this one


@dataclass(frozen=True)
class Tiles:
    """The pairs of images cut into rows × columns of tiles.

    Attributes:
        offsets: (…, rows + 1, columns) int32, where a tile's pairs begin in `splats`; they end
            where those of the next one begin, and the last ones with `splats`.
        splats: (M,) int32, splats of the pairs, tile by tile, near to far; then meaningless ones.
        drawn: (…, rows + 1, columns) bool, false in the row below the image.
        pairs: () int64, number of pairs there are. Beyond M the farthest are left out.
    """

    offsets: Tensor
    splats: Tensor
    drawn: Tensor
    pairs: Tensor


@torch.no_grad()
def bin_splats(
    means: Tensor, radii: Tensor, depths: Tensor, width: int, height: int, capacity: int | None
) -> Tiles:
    """List the tiles that the splats' rectangles touch, as gsplat 1.5.3 counts them.

    At most 2³¹ splats, tiles and listed pairs.

    Args:
        means: (…, N, 2) pixels; the leading axes together are the I images.
        radii: (…, N, 2) int, half widths of the rectangles in pixels. A splat is seen if both are
            positive; of one that is not, means and depth may be anything.
        depths: (…, N).
        capacity: M. None for the number of pairs, a host-device synchronisation.
    """
    images, columns, rows = depths.shape[:-1], -(-width // TILE), -(-height // TILE)
    number = images.numel() * (rows + 1) * columns
    (x, y), (wide, high) = _spans(means, radii, columns, rows)
    image = torch.arange(images.numel(), dtype=torch.int32, device=means.device)
    image = image.reshape(*images, 1)
    first = ((image * (rows + 1) + y) * columns + x).flatten()
    needed = torch.where((radii > 0).all(-1), wide * high, 0).flatten()

    near_to_far = depths.flatten().argsort(stable=True)
    ends = needed[near_to_far].cumsum(0)
    pairs = ends[-1]
    slots = torch.arange(int(pairs) if capacity is None else capacity, device=means.device)
    # Slots without a pair take the last splat, whatever it is.
    ranks = torch.searchsorted(ends, slots, right=True).clamp_(max=len(ends) - 1)
    splats = near_to_far[ranks]
    left = (ends[ranks] - 1 - slots).int()  # counts a splat's tiles down to zero
    across = wide.flatten()[splats].clamp_(min=1)
    tile = first[splats] + left // across * columns + left % across

    tile, order = torch.where(slots < pairs, tile, number - 1).sort(stable=True)
    every = torch.arange(number, dtype=torch.int32, device=means.device)
    shape = (*images, rows + 1, columns)
    drawn = torch.ones(shape, dtype=torch.bool, device=means.device)
    drawn[..., rows, :].zero_()
    return Tiles(
        offsets=torch.searchsorted(tile, every, out_int32=True).reshape(shape),
        splats=splats[order].int(),
        drawn=drawn,
        pairs=pairs,
    )


def _spans(
    centres: Tensor, radii: Tensor, columns: int, rows: int
) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
    """First tiles (x, y) and numbers of tiles (x, y), each (…, N) int32, of (…, N, 2) pixels."""
    # The limits are made on the device: copied from the host they could not be captured.
    limits = columns + (rows - columns) * torch.arange(2.0, device=centres.device)
    zeros = torch.zeros_like(limits)
    centres, radii = centres / TILE, radii / TILE
    first = (centres - radii).floor().clamp_(zeros, limits).int()
    end = (centres + radii).ceil().clamp_(zeros, limits).int()
    return first.unbind(-1), (end - first).unbind(-1)
