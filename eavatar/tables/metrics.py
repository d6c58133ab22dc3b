"""Image metrics: PSNR and SSIM (LPIPS is `eavatar.training.perceptual`).

All compare K images (K, H, W, 3) in [0, 1] on white with their truth. The padding of the crop
(``visible`` = 0) is to be made white in both by `whiten_padding`, and is left out of the means of
PSNR and SSIM.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from skimage.metrics import structural_similarity
from torch import Tensor

from eavatar.threads import make_pool

Float = NDArray[np.float32]

DEFINITION = (
    "Whole images on white, RGB in [0, 1], at the method's size; the render is not masked by the "
    "truth's mask; the padding of the crop is left out. PSNR: of an image's mean squared error. "
    "SSIM: 11×11 Gaussian window, σ 1.5. A metric is the unweighted mean over all images "
    "(cameras × timesteps)."
)
"""What a table of these metrics prints above itself."""

WINDOW_RADIUS = 5  # of the 11×11 Gaussian window, σ = 1.5, that the 3DGS family uses


def whiten_padding(images: Tensor, visible: Tensor) -> Tensor:
    """Images (K, H, W, 3) with white wherever ``visible`` (K, H, W) is 0."""
    return images * visible[..., None] + (1 - visible[..., None])


def psnr(renders: Float, truths: Float, visible: Float) -> NDArray[np.float64]:
    """Peak signal-to-noise ratio over the visible pixels, dB, (K,); infinite for equal images."""
    squared = ((renders.astype(np.float64) - truths) ** 2).mean(axis=-1)
    inside = visible > 0
    error = (squared * inside).sum(axis=(1, 2)) / inside.sum(axis=(1, 2))
    with np.errstate(divide="ignore"):
        decibels: NDArray[np.float64] = -10 * np.log10(error)
        return decibels


def ssim(renders: Float, truths: Float, visible: Float) -> NDArray[np.float64]:
    """Mean structural similarity over the visible pixels, (K,); images in parallel threads.

    scikit-image's `structural_similarity` with the 11×11 Gaussian window (σ = 1.5, population
    covariance, data range 1), mean over the channels. Pixels nearer than 5 to the border of the
    image are left out as scikit-image does, so that without padding the two agree.
    """

    def similarity(index: int) -> float:
        _, full = structural_similarity(
            renders[index],
            truths[index],
            channel_axis=-1,
            data_range=1.0,
            gaussian_weights=True,
            sigma=1.5,
            use_sample_covariance=False,
            full=True,
        )
        inner = (slice(WINDOW_RADIUS, -WINDOW_RADIUS),) * 2
        return float(full.mean(axis=-1)[inner][visible[index][inner] > 0].mean())

    with make_pool() as pool:
        return np.array(list(pool.map(similarity, range(len(renders)))))
