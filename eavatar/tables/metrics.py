"""Image metrics: PSNR and SSIM (LPIPS is `eavatar.training.perceptual`); docs/metrics.md has all.

All compare an image (H, W, 3) in [0, 1] on white with its truth. The padding of the crop
(``visible`` = 0) is to be made white in both by `whiten_padding`, and does not count.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numba import njit
from torch import Tensor

from eavatar.arrays import Float32, Float64

DEFINITION = (
    "Whole images on white, RGB in [0, 1], at the method's size; the render is not masked by the "
    "truth's mask; the padding of the crop is left out. PSNR: of an image's mean squared error. "
    "SSIM: 11×11 Gaussian window, σ 1.5; beside it the uniform 7×7. LPIPS 0.1: alex and vgg. "
    "Masked: over the pixels of the truth's mask. A metric is the unweighted mean over all images "
    "(cameras × timesteps). See docs/metrics.md."
)
"""What a table of these metrics prints above itself."""


@dataclass(frozen=True)
class Window:
    """What SSIM weighs the neighbours of a pixel with, in rows and columns alike.

    Attributes:
        weights: (radius + 1,) of the centre and outwards.
        covariance: factor of variances and covariance: 1 for those of the population, n / (n - 1)
            for those of a sample of n pixels.
    """

    weights: Float64
    covariance: float

    @property
    def radius(self) -> int:
        return len(self.weights) - 1


def _gaussian_window(sigma: float, radius: int) -> Window:
    """Population covariance, as Wang et al. and the 3DGS family."""
    offsets = np.arange(-radius, radius + 1)
    weights = np.exp(-0.5 / sigma**2 * offsets**2)  # in SciPy's order of operations
    return Window((weights / weights.sum())[radius:], 1.0)


def _uniform_window(side: int) -> Window:
    """Sample covariance, as scikit-image does if not told otherwise."""
    return Window(np.full(side // 2 + 1, 1 / side), side**2 / (side**2 - 1))


GAUSSIAN = _gaussian_window(1.5, 5)
UNIFORM = _uniform_window(7)


def whiten_padding(images: Tensor, visible: Tensor) -> Tensor:
    """Images (K, H, W, 3) with white wherever ``visible`` (K, H, W) is 0."""
    return images * visible[..., None] + (1 - visible[..., None])


def squared_error(render: Tensor, truth: Tensor) -> Tensor:
    """The squared difference of two images, mean over their channels, (H, W) float64."""
    return (render.double() - truth).square().mean(dim=-1)


def psnr(error: Tensor, inside: Tensor) -> Tensor:
    """Peak signal-to-noise ratio over some pixels, dB.

    Args:
        error: (H, W) of `squared_error`.
        inside: (..., H, W) bool, the pixels that count.
    Returns:
        (...) float64, infinite for equal images, NaN where no pixel counts.
    """
    pixels = (-2, -1)
    return -10 * torch.log10((error * inside).sum(dim=pixels) / inside.sum(dim=pixels))


def ssim(similarities: Tensor, inside: Tensor) -> Tensor:
    """Mean structural similarity over some pixels.

    Args:
        similarities: of `similarity`; the border that they lack does not count.
        inside: (H, W) bool, the pixels that count.
    Returns:
        () float64, NaN where no pixel counts.
    """
    border = (inside.shape[0] - similarities.shape[0]) // 2
    counted = inside[border:-border, border:-border]
    return (similarities.double() * counted).sum() / counted.sum()


def similarity(render: Tensor, truth: Tensor, window: Window) -> Tensor:
    """Structural similarity (Wang et al. 2004) around each pixel, data range 1, mean over channels.

    On the CPU the values are those of scikit-image's `structural_similarity` of float32 images,
    rounding included; on CUDA they are computed in the same order of operations.

    Returns:
        (H - 2 r, W - 2 r) without a border as wide as the window's radius r, as there.
    """
    if render.is_cuda:
        return similarity_in_torch(render, truth, window)
    height, width, channels = render.shape
    shape = (height - 2 * window.radius, width - 2 * window.radius, channels)
    found = np.empty(shape, np.float32)
    _fill_similarity(
        render.reshape(height, -1).contiguous().numpy(),
        truth.reshape(height, -1).contiguous().numpy(),
        channels,
        window.weights,
        np.float32(window.covariance),
        found.reshape(shape[0], -1),
    )
    return torch.from_numpy(found.mean(axis=-1))


def similarity_in_torch(render: Tensor, truth: Tensor, window: Window) -> Tensor:
    """As `similarity`, as a tensor on the device of the images."""
    products = (render, truth, render * render, truth * truth, render * truth)
    x, y, xx, yy, xy = (_weigh(_weigh(values, window, 0), window, 1) for values in products)
    of_x, of_y, of_both = (
        window.covariance * (mean - product)
        for mean, product in ((xx, x * x), (yy, y * y), (xy, x * y))
    )
    c1, c2 = 0.01**2, 0.03**2
    above = (2 * x * y + c1) * (2 * of_both + c2)
    similarities: Tensor = above / ((x * x + y * y + c1) * (of_x + of_y + c2))
    return similarities.mean(dim=-1)


def _weigh(values: Tensor, window: Window, axis: int) -> Tensor:
    """What the window makes of values along an axis, without a border of its radius.

    In place, as images of 2048² in float64 take 100 MB each.
    """
    radius, size = window.radius, values.shape[axis] - 2 * window.radius
    precise = values.double()

    def moved(places: int) -> Tensor:
        return precise.narrow(axis, radius + places, size)

    first, *others = window.weights.tolist()
    total: Tensor = first * moved(0)
    for distance in range(radius, 0, -1):
        pair = moved(-distance) + moved(distance)
        total += pair.mul_(others[distance - 1])
    return total.float()


@njit(cache=True, nogil=True)
def _fill_similarity(
    render: Float32,
    truth: Float32,
    channels: int,
    weights: Float64,
    covariance: np.float32,
    found: Float32,
) -> None:
    """Row by row: what the window weighs in columns, then in rows, then Eq. 13 of Wang et al.

    Sums are float64, and float32 what is kept of them, in SciPy's order.

    Args:
        render: (H, W · channels).
        truth: likewise.
        channels: of a pixel, neighbours in a row.
        weights: of the window.
        covariance: of the window.
        found: (H - 2 r, (W - 2 r) · channels), written to.
    """
    radius = len(weights) - 1
    sums = np.empty((5, render.shape[1]), np.float64)
    columns = np.empty((5, render.shape[1]), np.float32)
    for row in range(found.shape[0]):
        _sum_columns(render, truth, row + radius, weights, sums)
        columns[:] = sums
        _sum_rows(columns, channels, weights, sums)
        _compare(sums.astype(np.float32), radius * channels, covariance, found[row])


@njit(cache=True, nogil=True)
def _sum_columns(
    render: Float32, truth: Float32, row: int, weights: Float64, sums: Float64
) -> None:
    """Of x, y, x², y² and x y around a row, to sums (5, N)."""
    for i in range(sums.shape[1]):
        x, y = render[row, i], truth[row, i]
        sums[0, i] = x * weights[0]
        sums[1, i] = y * weights[0]
        sums[2, i] = (x * x) * weights[0]
        sums[3, i] = (y * y) * weights[0]
        sums[4, i] = (x * y) * weights[0]
    for distance in range(len(weights) - 1, 0, -1):
        weight = weights[distance]
        for i in range(sums.shape[1]):
            x, y = render[row - distance, i], truth[row - distance, i]
            u, v = render[row + distance, i], truth[row + distance, i]
            sums[0, i] += (np.float64(x) + np.float64(u)) * weight
            sums[1, i] += (np.float64(y) + np.float64(v)) * weight
            sums[2, i] += (np.float64(x * x) + np.float64(u * u)) * weight
            sums[3, i] += (np.float64(y * y) + np.float64(v * v)) * weight
            sums[4, i] += (np.float64(x * y) + np.float64(u * v)) * weight


@njit(cache=True, nogil=True)
def _sum_rows(columns: Float32, channels: int, weights: Float64, sums: Float64) -> None:
    """Of columns (5, N) to sums (5, N), but for the border."""
    border = (len(weights) - 1) * channels
    for kind in range(len(columns)):
        for i in range(border, columns.shape[1] - border):
            sums[kind, i] = columns[kind, i] * weights[0]
        for distance in range(len(weights) - 1, 0, -1):
            step, weight = distance * channels, weights[distance]
            for i in range(border, columns.shape[1] - border):
                pair = np.float64(columns[kind, i - step]) + np.float64(columns[kind, i + step])
                sums[kind, i] += pair * weight


@njit(cache=True, nogil=True)
def _compare(means: Float32, border: int, covariance: np.float32, found: Float32) -> None:
    """The similarity of a row's pixels from means (5, N) of x, y, x², y² and x y."""
    two, c1, c2 = np.float32(2), np.float32(0.01**2), np.float32(0.03**2)
    for i in range(len(found)):
        place = i + border
        x, y = means[0, place], means[1, place]
        of_x = covariance * (means[2, place] - x * x)
        of_y = covariance * (means[3, place] - y * y)
        of_both = covariance * (means[4, place] - x * y)
        above = (two * x * y + c1) * (two * of_both + c2)
        found[i] = above / ((x * x + y * y + c1) * (of_x + of_y + c2))
