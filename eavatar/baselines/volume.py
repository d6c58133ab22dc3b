"""Rays, samples along them and what they add up to: the parts of a radiance field without network.

Letters: S samples of a ray; leading axes (...) are of rays. Distances along a ray are canonical
units from the camera's centre, whatever the length of the axis in the image. Nothing here needs a
host-device synchronisation.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from eavatar.transforms import axis_angle_to_matrix

MIN_WEIGHT = 1e-5  # of a sample, so that a ray through nothing has a distribution, too


@dataclass(frozen=True)
class Rays:
    """Half-lines in canonical space, where the head does not move.

    Attributes:
        origins: (..., 3) centres of the cameras.
        directions: (..., 3) of length 1.
    """

    origins: Tensor
    directions: Tensor

    def at(self, distances: Tensor) -> Tensor:
        """Points (..., S, 3) at distances (..., S)."""
        return self.origins[..., None, :] + distances[..., None] * self.directions[..., None, :]


@dataclass(frozen=True)
class Composite:
    """What rays see.

    Attributes:
        colours: (..., D) on the background.
        alpha: (...) opacity of what is before the background.
        depth: (...) optical depth of it: alpha is 1 - exp(-depth).
        weights: (..., S) of the samples, the last of which is the background.
    """

    colours: Tensor
    alpha: Tensor
    depth: Tensor
    weights: Tensor


def encode(values: Tensor, frequencies: int, with_input: bool) -> Tensor:
    """Positional encoding (..., D · (2 · frequencies [+ 1])): sines and cosines at 1, 2, 4, … times
    the values (..., D), after the values themselves if they are wanted.
    """
    octaves = 2.0 ** torch.arange(frequencies, device=values.device)
    angles = values[..., None, :] * octaves[:, None]
    waves = torch.stack([angles.sin(), angles.cos()], dim=-2).flatten(-3)
    return torch.cat([values, waves], dim=-1) if with_input else waves


def cast_rays(
    pixels: Tensor, intrinsics: Tensor, world_to_camera: Tensor, poses: Tensor, scale: float
) -> Rays:
    """Rays through points of images, in the canonical space of a pose.

    Args:
        pixels: (B, N, 2) x, y in B images.
        intrinsics: (B, 3, 3).
        world_to_camera: (B, 4, 4).
        poses: (B, 6) of the head, axis-angle and translation in metres.
        scale: canonical units to metres.
    Returns:
        (B, N) of them.
    """
    focal = torch.stack([intrinsics[:, 0, 0], intrinsics[:, 1, 1]], dim=-1)
    across = (pixels - intrinsics[:, None, :2, 2]) / focal[:, None]
    in_camera = torch.cat([across, torch.ones_like(across[..., :1])], dim=-1)
    in_camera = torch.nn.functional.normalize(in_camera, dim=-1)
    head = axis_angle_to_matrix(poses[:, :3])
    # R_cameraᵀ turns to the world, R_headᵀ on to canonical space.
    to_camera = world_to_camera[:, :3, :3]
    turn = _product(head.mT, to_camera.mT)
    centre = -_product(to_camera.mT, world_to_camera[:, :3, 3:])[..., 0]
    origin = _product(head.mT, (centre - poses[:, 3:])[..., None])[..., 0] / scale
    directions = (in_camera[..., None, :] * turn[:, None]).sum(dim=-1)
    return Rays(origin[:, None].expand_as(directions), directions)


def _product(first: Tensor, second: Tensor) -> Tensor:
    """Products (B, 3, K) of small matrices, in full precision where TF32 is allowed, too."""
    return (first[..., :, :, None] * second[..., None, :, :]).sum(dim=-2)


def spread(near: Tensor, far: Tensor, count: int, jitter: bool) -> Tensor:
    """Distances (..., count) from near (...) to far (...), in ascending order.

    Args:
        near: of the first.
        far: of the last.
        count: S.
        jitter: each moves at random within its stretch, half-way to its neighbours.
    """
    steps = torch.linspace(0, 1, count, device=near.device)
    distances = near[..., None] + (far - near)[..., None] * steps
    if not jitter:
        return distances
    middles = (distances[..., 1:] + distances[..., :-1]) / 2
    lower = torch.cat([distances[..., :1], middles], dim=-1)
    upper = torch.cat([middles, distances[..., -1:]], dim=-1)
    return lower + (upper - lower) * torch.rand_like(distances)


def spread_by_weight(distances: Tensor, weights: Tensor, count: int, jitter: bool) -> Tensor:
    """Distances (..., count) drawn where samples have weight (the second pass of NeRF).

    The weights of all samples but the first and the last are the heights of a step function, whose
    steps are half-way between the samples.

    Args:
        distances: (..., S) ascending.
        weights: (..., S).
        count: how many.
        jitter: at random, otherwise at evenly spread quantiles.
    """
    edges = (distances[..., 1:] + distances[..., :-1]) / 2
    heights = weights[..., 1:-1] + MIN_WEIGHT
    total = heights.cumsum(dim=-1)
    total = torch.cat([torch.zeros_like(total[..., :1]), total / total[..., -1:]], dim=-1)
    if jitter:
        quantiles = torch.rand(*total.shape[:-1], count, device=total.device)
    else:
        even = torch.linspace(0, 1, count, device=total.device)
        quantiles = even.expand(*total.shape[:-1], count).contiguous()
    last = total.shape[-1] - 1
    above = torch.searchsorted(total.contiguous(), quantiles, right=True).clamp(1, last)
    low, high = total.gather(-1, above - 1), total.gather(-1, above)
    start, end = edges.gather(-1, above - 1), edges.gather(-1, above)
    part = ((quantiles - low) / (high - low).clamp(min=MIN_WEIGHT)).clamp(0, 1)
    return start + part * (end - start)


def composite(
    densities: Tensor, colours: Tensor, distances: Tensor, background: float
) -> Composite:
    """Volume rendering whose last sample is the background and lets nothing through.

    Args:
        densities: (..., S) per canonical unit, not negative.
        colours: (..., S, D).
        distances: (..., S) ascending.
        background: of all channels; what density and colour the last sample has does not matter.
    """
    depth = densities[..., :-1] * distances.diff(dim=-1)
    before = torch.cat([torch.zeros_like(depth[..., :1]), depth.cumsum(dim=-1)], dim=-1)
    through = torch.exp(-before)  # how much of the light each sample meets
    weights = torch.cat([through[..., :-1] * -torch.expm1(-depth), through[..., -1:]], dim=-1)
    seen = (weights[..., :-1, None] * colours[..., :-1, :]).sum(dim=-2)
    behind = weights[..., -1]
    colours = seen + background * behind[..., None]
    return Composite(colours, 1 - behind, before[..., -1], weights)
