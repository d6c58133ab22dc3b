"""Which pixels of images a step looks at, and what it finds there.

Letters: B images, N pixels of each.
"""

from __future__ import annotations

import torch
from torch import Tensor


def pixel_centres(size: int, device: torch.device) -> Tensor:
    """x, y of the pixels (size², 2) of a square image, row by row."""
    places = torch.arange(size, device=device) + 0.5
    rows, columns = torch.meshgrid(places, places, indexing="ij")
    return torch.stack([columns, rows], dim=-1).flatten(0, 1)


def choose_pixels(person: Tensor, count: int, fraction: float) -> Tensor:
    """Columns and rows (B, N, 2) int64 of pixels at random, N as `count` says.

    Args:
        person: (B, H, W) bool.
        count: how many of each image.
        fraction: of them that lie in the box around the person, or anywhere if nobody is seen.
    """
    images, height, width = person.shape
    inside = round(fraction * count)
    places = torch.rand(images, count, 2, device=person.device)
    parts = []
    for axis, size in ((1, width), (2, height)):
        seen = person.any(dim=axis)
        steps = torch.arange(size, device=person.device)
        low = torch.where(seen, steps, size).amin(dim=1, keepdim=True)
        high = torch.where(seen, steps + 1, 0).amax(dim=1, keepdim=True)
        low, high = torch.where(low < high, low, 0), torch.where(low < high, high, size)
        drawn = places[..., axis - 1]
        boxed = low + drawn[:, :inside] * (high - low)
        whole = drawn[:, inside:] * size
        parts.append(torch.cat([boxed, whole], dim=1).long().clamp(max=size - 1))
    return torch.stack(parts, dim=-1)


def look_up(images: Tensor, pixels: Tensor) -> Tensor:
    """Values (B, N, D) of images (B, H, W, D) at columns and rows (B, N, 2)."""
    index = pixels[..., 1] * images.shape[2] + pixels[..., 0]
    channels = images.shape[3]
    return images.flatten(1, 2).gather(1, index[..., None].expand(-1, -1, channels))


def squared_error(prediction: Tensor, truth: Tensor, visible: Tensor) -> Tensor:
    """Mean squared difference of colours (B, N, 3) where visible (B, N, 1) is 1, a scalar."""
    error = (prediction - truth).square().mean(dim=-1, keepdim=True)
    return (error * visible).sum() / visible.sum().clamp(min=1)
