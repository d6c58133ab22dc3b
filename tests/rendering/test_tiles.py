"""The tile lists against a loop over every tile and every splat."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from eavatar.rendering.tiles import TILE, Tiles, bin_splats


@dataclass(frozen=True)
class Splats:
    """Means (I, N, 2), radii (I, N, 2), depths (I, N) and the image size."""

    means: Tensor
    radii: Tensor
    depths: Tensor
    width: int
    height: int

    def binned(self, capacity: int | None) -> Tiles:
        return bin_splats(self.means, self.radii, self.depths, self.width, self.height, capacity)


def make_splats(images=2, count=40, width=70, height=50, seed=0) -> Splats:
    """Splats in, across and far outside the image, some unseen with garbage, many of one depth."""
    random = np.random.default_rng(seed)
    size = np.array([width, height])
    means = random.uniform(-0.3, 1.3, (images, count, 2)) * size
    # Borders of tiles, where rounding decides.
    means[:, ::5] = TILE * np.round(means[:, ::5] / TILE)
    radii = random.choice([0, 1, 3, 8, 16, 40, 1_000_000], (images, count, 2))
    depths = random.choice([0.5, 1.25, 2.0, 3.5], (images, count))
    unseen = (radii == 0).any(axis=-1)
    means[unseen], depths[unseen] = math.nan, math.nan
    means[:, :1] = 1e30
    return Splats(
        torch.from_numpy(means).float(),
        torch.from_numpy(radii).int(),
        torch.from_numpy(depths).float(),
        width,
        height,
    )


def expected_lists(splats: Splats) -> list[list[int]]:
    """Splats of each tile without the added rows, image by image, near to far, ties by number."""
    images, count = splats.depths.shape
    columns, rows = math.ceil(splats.width / TILE), math.ceil(splats.height / TILE)
    means, radii = splats.means.numpy() / TILE, splats.radii.numpy() / np.float32(TILE)
    lists = []
    for image in range(images):
        for row in range(rows):
            for column in range(columns):
                touching = [
                    n
                    for n in range(count)
                    if min(radii[image, n]) > 0
                    and all(np.floor(means[image, n] - radii[image, n]) <= (column, row))
                    and all(np.ceil(means[image, n] + radii[image, n]) > (column, row))
                ]
                touching.sort(key=lambda n: (splats.depths[image, n].item(), n))
                lists.append([image * count + n for n in touching])
    return lists


def lists_of(tiles: Tiles) -> tuple[list[list[int]], list[int]]:
    """Lists of the drawn tiles, and the lengths of the others'."""
    offsets = [*tiles.offsets.flatten().tolist(), len(tiles.splats)]
    drawn, other = [], []
    for begin, end, seen in zip(offsets, offsets[1:], tiles.drawn.flatten().tolist(), strict=False):
        if seen:
            drawn.append(tiles.splats[begin:end].tolist())
        else:
            other.append(end - begin)
    return drawn, other


scenes = st.builds(
    make_splats,
    images=st.integers(1, 3),
    count=st.integers(1, 40),
    width=st.integers(1, 100),
    height=st.integers(1, 100),
    seed=st.integers(0, 10_000),
)


@settings(max_examples=60)
@given(scenes)
def test_lists_equal_a_loop_over_tiles_and_splats(splats):
    tiles = splats.binned(None)
    lists, added = lists_of(tiles)
    assert lists == expected_lists(splats)
    assert tiles.pairs == len(tiles.splats) == sum(map(len, lists))
    assert not any(added)


@settings(max_examples=40)
@given(scenes, st.integers(0, 2000))
def test_spare_room_is_in_the_last_tile_below_the_last_image(splats, spare):
    exact = splats.binned(None)
    roomy = splats.binned(len(exact.splats) + spare)
    lists, added = lists_of(roomy)
    assert lists == lists_of(exact)[0]
    assert roomy.pairs == exact.pairs
    assert added == [0] * (len(added) - 1) + [spare]
    assert not roomy.drawn[..., -1, :].any()
    assert roomy.drawn[..., :-1, :].all()
    # The rasteriser loads what the spare slots name.
    assert ((roomy.splats >= 0) & (roomy.splats < splats.depths.numel())).all()


@settings(max_examples=40)
@given(scenes, st.floats(0, 1))
def test_without_room_for_all_the_farthest_are_left_out(splats, share):
    exact = splats.binned(None)
    capacity = int(share * len(exact.splats))
    short = splats.binned(capacity)
    assert short.pairs == exact.pairs
    lists, added = lists_of(short)
    depths = splats.depths.flatten()
    kept, left_out = [], []
    for part, whole in zip(lists, lists_of(exact)[0], strict=True):
        assert part == whole[: len(part)]
        kept += part
        left_out += whole[len(part) :]
    assert len(kept) == capacity
    assert not any(added)
    if kept and left_out:
        assert depths[kept].max() <= depths[left_out].min()


def test_leading_axes_are_images():
    splats = make_splats(images=6)
    flat = splats.binned(None)
    tiles = bin_splats(
        *(tensor.unflatten(0, (2, 3)) for tensor in (splats.means, splats.radii, splats.depths)),
        splats.width,
        splats.height,
        None,
    )
    assert tiles.offsets.shape == tiles.drawn.shape == (2, 3, 5, 5)
    assert torch.equal(tiles.offsets.flatten(0, 1), flat.offsets)
    assert torch.equal(tiles.splats, flat.splats)


@pytest.mark.parametrize("capacity", [None, 100])
def test_nothing_in_sight(capacity):
    splats = make_splats()
    unseen = Splats(splats.means, 0 * splats.radii, splats.depths, 70, 50)
    tiles = unseen.binned(capacity)
    assert tiles.pairs == 0
    assert not any(lists_of(tiles)[0])
    assert len(tiles.splats) == (capacity or 0)


@pytest.mark.gpu
def test_lists_equal_those_of_gsplat():
    """Per tile and in order, with its isect_tiles and isect_offset_encode."""
    import gsplat

    splats = make_splats(images=3, count=5000, width=300, height=200)
    inputs = [tensor.cuda() for tensor in (splats.means, splats.radii, splats.depths)]
    columns, rows = math.ceil(300 / TILE), math.ceil(200 / TILE)
    _, ids, expected = gsplat.isect_tiles(*inputs, TILE, columns, rows)
    offsets = gsplat.isect_offset_encode(ids, 3, columns, rows)
    tiles = bin_splats(*inputs, 300, 200, len(expected) + 1000)
    assert tiles.pairs == len(expected)
    assert torch.equal(tiles.splats[: len(expected)], expected)
    assert torch.equal(tiles.offsets[:, :-1].flatten(), offsets.flatten())
