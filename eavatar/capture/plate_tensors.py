"""Masks from the difference to the background plate as tensors, for a GPU.

The same steps as `eavatar.capture.plate`, which has the reasons; masks agree within a level but for
single pixels whose distance to the plate is the threshold within rounding. Colours and distances
are computed where the plate's tensors are; only the regions of a hard mask are found on the CPU, by
the threads that also decode frames and encode masks.

Letters: S side of the frames, H × W their pixels that show the sensor, K planes.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from itertools import tee
from queue import SimpleQueue

import cv2
import numpy as np
import torch
from scipy.fft import next_fast_len
from torch import Tensor
from torch.nn.functional import avg_pool2d, grid_sample, max_pool2d, pad

from eavatar.arrays import Image
from eavatar.capture.matting import REST, with_neighbours
from eavatar.capture.plate import (
    BAND,
    CONTRAST,
    MIN_THRESHOLD,
    NOISE_FACTOR,
    SHADOW,
    Plate,
    distance_within,
    fill_holes,
    large_components,
)

STREAMS = 3  # frames on the GPU at once, so that copies and kernels overlap; 1 GB each at 2048²
TABLE = 33  # colours along a side of OpenCV's table of CIELAB
STEPS = 512  # positions along a side that OpenCV tells apart
LAB_UNITS = (16384 / 100, 64.0, 64.0)  # of OpenCV's fixed-point results


@dataclass(frozen=True)
class TensorPlate:
    """The empty set of one camera.

    Attributes:
        window: as of `Plate`.
        size: S.
        colour: (3, H, W) BGR in [0, 1].
        lab: (3, H, W) CIELAB.
        border: (N,) flat indices of the pixels where background is expected.
    """

    window: tuple[slice, slice]
    size: int
    colour: Tensor
    lab: Tensor
    border: Tensor

    @classmethod
    def of(cls, plate: Plate, size: int, device: torch.device) -> TensorPlate:
        """From the plate for frames of a size."""
        colour, lab = (
            torch.from_numpy(values.transpose(2, 0, 1).copy()).to(device)
            for values in (plate.colour, plate.lab)
        )
        border = torch.from_numpy(np.flatnonzero(plate.border)).to(device)
        return cls(plate.window, size, colour, lab, border)


def matte_in_tensors(frames: Iterable[Image], plate: TensorPlate) -> Iterator[Image]:
    """Steady masks (S, S), 8 bits, of BGR frames (S, S, 3) in the order of time."""
    device = plate.colour.device
    tensors, again = tee(_to_device(frame, device) for frame in frames)
    masks = (mask_from_plate(frame, plate) for frame in again)
    for before, now, after in with_neighbours(zip(tensors, masks, strict=True)):
        with _turn(device):
            mask = now[1]
            if before is not None and after is not None:
                mask = _median_at_rest(before, now, after)
            levels: Image = mask.cpu().numpy()
        yield levels


def _to_device(frame: Image, device: torch.device) -> Tensor:
    """(3, S, S) from a frame (S, S, 3)."""
    with _turn(device):
        return torch.from_numpy(frame).to(device).permute(2, 0, 1)


def mask_from_plate(frame: Tensor, plate: TensorPlate) -> Tensor:
    """(S, S) mask, 8 bits, of a BGR frame (3, S, S), 8 bits, see `plate.mask_from_plate`."""
    with _turn(frame.device):
        colour = _match_exposure(frame[:, *plate.window], plate)
        distance = _distance(colour, plate)
        background = distance.flatten()[plate.border]
        centre = _median(background)
        deviation = 1.4826 * _median((background - centre).abs())
        threshold = (centre + NOISE_FACTOR * deviation).clamp(min=MIN_THRESHOLD)
        noise = float(centre + 2 * deviation)
        opened = _open(distance > threshold).cpu().numpy()
        distances = distance.cpu().numpy()
    subject = fill_holes(large_components(opened), distances, noise)
    with _turn(frame.device):
        alpha = _soft_edge(colour, plate.colour, torch.from_numpy(subject).to(frame.device))
        mask = frame.new_zeros((plate.size, plate.size))
        mask[plate.window] = (alpha * 255).round().byte()
    return mask


@lru_cache(maxsize=1)
def _streams(device: torch.device) -> SimpleQueue[torch.cuda.Stream]:
    streams: SimpleQueue[torch.cuda.Stream] = SimpleQueue()
    for _ in range(STREAMS):
        streams.put(torch.cuda.Stream(device))
    return streams


@contextmanager
def _turn(device: torch.device) -> Iterator[None]:
    """On a GPU, use one of its streams, once one is free, and wait for what was done on it.

    So results may be used on any other stream, and their memory again.
    """
    if device.type == "cpu":
        yield
        return
    streams = _streams(device)
    stream = streams.get()
    try:
        with torch.cuda.stream(stream):
            yield
        stream.synchronize()
    finally:
        streams.put(stream)


def _median(values: Tensor) -> Tensor:
    """The median along the last axis; the mean of the middle two of an even number."""
    ordered, count = values.sort(dim=-1).values, values.shape[-1]
    return (ordered[..., (count - 1) // 2] + ordered[..., count // 2]) / 2


def _match_exposure(frame: Tensor, plate: TensorPlate) -> Tensor:
    """(3, H, W) the frame in [0, 1] divided by its gain per channel over the plate."""
    shown = frame.flatten(1)[:, plate.border]
    known = plate.colour.flatten(1)[:, plate.border]
    gain = _median(shown / (known * 255).clamp(min=1)).clamp(min=0.1)
    return frame / (255 * gain[:, None, None])


@lru_cache(maxsize=1)
def _lab_table(device: torch.device) -> Tensor:
    """(1, 3, TABLE, TABLE, TABLE) CIELAB by blue, green and red, as OpenCV has it."""
    levels = np.linspace(0, 1, TABLE, dtype=np.float32)
    colours = np.stack(np.meshgrid(levels, levels, levels, indexing="ij"), axis=-1)
    lab = cv2.cvtColor(colours.reshape(TABLE, -1, 3), cv2.COLOR_BGR2Lab)
    table = lab.reshape(*colours.shape).transpose(3, 0, 1, 2)
    return torch.from_numpy(table.copy())[None].to(device)


def _to_lab(colour: Tensor) -> Tensor:
    """(3, H, W) BGR in [0, 1], values beyond clipped, to CIELAB as OpenCV computes it.

    It interpolates in a table at positions that are rounded down.
    """
    position = ((colour.clamp(0, 1) * 16384).round() * (STEPS / 16384)).floor() / STEPS
    red_first = (2 * position - 1).flip(0).permute(1, 2, 0)[None, None]
    lab = grid_sample(_lab_table(colour.device), red_first, align_corners=True)[0, :, 0]
    units = lab.new_tensor(LAB_UNITS)[:, None, None]
    return (lab * units).round() / units


def _distance(colour: Tensor, plate: TensorPlate) -> Tensor:
    """(H, W) CIELAB distance to the plate, with the darkening of soft shadows forgiven."""
    difference = pad((_to_lab(colour) - plate.lab)[None], (1, 1, 1, 1), mode="reflect")[0]
    rows = (difference[:, :-2] + 2 * difference[:, 1:-1] + difference[:, 2:]) / 4
    smooth = (rows[..., :-2] + 2 * rows[..., 1:-1] + rows[..., 2:]) / 4
    lightness = smooth[0] + (-smooth[0]).clamp(0, SHADOW)
    return (lightness**2 + smooth[1] ** 2 + smooth[2] ** 2).sqrt()


def _open(mask: Tensor) -> Tensor:
    """(H, W) uint8, the mask without what is less than 3 pixels wide."""
    eroded = -max_pool2d(-mask[None].float(), 3, stride=1, padding=1)
    return max_pool2d(eroded, 3, stride=1, padding=1)[0].byte()


def _soft_edge(colour: Tensor, plate: Tensor, subject: Tensor) -> Tensor:
    """(H, W) a hard mask with a soft edge, in [0, 1], see `plate._soft_edge`.

    Args:
        colour: (3, H, W).
        plate: (3, H, W).
        subject: (H, W) bool.
    """
    radius = max(2, round(len(subject) * BAND))
    inside = subject & ~_grow(~subject, radius)
    at = (~inside & _grow(subject, radius)).flatten().nonzero()[:, 0]
    blurred = _mean_around(subject.float()[None], 2 * radius + 1)[0].flatten()[at]
    behind = plate.flatten(1)[:, at]
    difference = colour.flatten(1)[:, at] - behind
    alpha, least = blurred, torch.full_like(blurred, torch.inf)
    for mean, known in _local_colours(colour, inside, at, 4 * radius + 1):
        contrast = mean - behind
        projected = (difference * contrast).sum(dim=0) + CONTRAST**2 * blurred
        fitted = (projected / ((contrast**2).sum(dim=0) + CONTRAST**2)).clamp(0, 1)
        residual = ((difference - fitted * contrast) ** 2).sum(dim=0)
        better = known & (residual < least)
        alpha, least = torch.where(better, fitted, alpha), torch.where(better, residual, least)
    return inside.float().flatten().index_put((at,), alpha).view(subject.shape)


def _local_colours(
    colour: Tensor, inside: Tensor, at: Tensor, side: int
) -> Iterator[tuple[Tensor, Tensor]]:
    """Mean colours (3, N) of the darker and of the brighter inside around N pixels.

    Args:
        colour: (3, H, W).
        inside: (H, W) bool.
        at: (N,) flat indices of the pixels.
        side: of the square around each.

    Yields:
        the colours, and (N,) whether there is any such inside.
    """
    lightness, within = colour.mean(dim=0), inside.float()
    total, weight = _mean_around(torch.stack([lightness * within, within]), side)
    bright = lightness > total / weight.clamp(min=1e-6)
    for part in (inside & ~bright, inside & bright):
        chosen = part.float()[None]
        means = _mean_around(torch.cat([colour * chosen, chosen]), side).flatten(1)[:, at]
        yield means[:3] / means[3].clamp(min=1e-6), means[3] > 1e-3


def _grow(mask: Tensor, radius: int) -> Tensor:
    """(H, W) the pixels whose distance to a set one is at most the radius, as OpenCV measures."""
    point = np.ones((2 * radius + 1, 2 * radius + 1), np.uint8)
    point[radius, radius] = 0
    ball = torch.from_numpy((distance_within(point) <= radius).astype(np.float32))
    return _convolve(mask.float()[None], ball.to(mask.device))[0] > 0.5


def _mean_around(values: Tensor, side: int) -> Tensor:
    """(K, H, W) means over the square around each pixel; beyond the border values are mirrored."""
    margin = side // 2
    padded = pad(values[None], (margin,) * 4, mode="reflect")[0]
    kernel = values.new_full((side, side), 1 / side**2)
    return _convolve(padded, kernel)[:, margin:-margin, margin:-margin]


def _convolve(values: Tensor, kernel: Tensor) -> Tensor:
    """Planes (K, H, W), 0 beyond, convolved with an odd kernel (n, n): large ones, by an FFT."""
    (height, width), side = values.shape[1:], len(kernel)
    shape = [next_fast_len(length + side - 1, real=True) for length in (height, width)]
    product = torch.fft.rfft2(values, shape) * torch.fft.rfft2(kernel, shape)
    first = side // 2
    result: Tensor = torch.fft.irfft2(product, shape)
    return result[:, first : first + height, first : first + width]


def _median_at_rest(
    before: tuple[Tensor, Tensor], now: tuple[Tensor, Tensor], after: tuple[Tensor, Tensor]
) -> Tensor:
    """The mask of the middle one of three frames and masks (see `matting.steady`)."""
    rests = _rests(before[0], now[0]) & _rests(now[0], after[0])
    low, high = before[1].minimum(after[1]), before[1].maximum(after[1])
    return torch.where(rests, now[1].clamp(low, high), now[1])


def _rests(first: Tensor, second: Tensor) -> Tensor:
    """(S, S) where two frames (3, S, S) are equal, noise averaged out."""
    change = pad((first.float() - second.float()).abs()[None], (2, 2, 2, 2), mode="reflect")
    return avg_pool2d(change, 5, stride=1)[0].amax(dim=0) < REST - 0.5  # levels are rounded
