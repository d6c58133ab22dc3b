from __future__ import annotations

import numpy as np
import pytest
import torch
from skimage.metrics import structural_similarity

from eavatar.tables.metrics import psnr, ssim, whiten_padding


def images(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).random((2, 24, 20, 3), dtype=np.float32)


def test_psnr_of_a_constant_difference() -> None:
    truth = np.full((1, 8, 8, 3), 0.5, np.float32)
    visible = np.ones((1, 8, 8), np.float32)
    # 20 log10(1 / 0.1) = 20 dB.
    assert psnr(truth + np.float32(0.1), truth, visible) == pytest.approx([20.0], abs=1e-5)
    assert np.isposinf(psnr(truth, truth, visible)).all()


def test_ssim_without_padding_is_scikit_images() -> None:
    first, second = images(0), images(1)
    own = ssim(first, second, np.ones(first.shape[:3], np.float32))
    for index in range(2):
        expected = structural_similarity(
            first[index],
            second[index],
            channel_axis=-1,
            data_range=1.0,
            gaussian_weights=True,
            sigma=1.5,
            use_sample_covariance=False,
        )
        assert own[index] == pytest.approx(expected, abs=1e-6)  # one is summed in float32


def test_ssim_against_a_slow_loop() -> None:
    first, second = images(0), images(1)
    offsets = np.arange(-5, 6)
    kernel = np.exp(-(offsets**2) / (2 * 1.5**2))
    window = np.outer(kernel, kernel) / kernel.sum() ** 2
    values = []
    for row in range(5, 19):
        for column in range(5, 15):
            for channel in range(3):
                patch = np.s_[0, row - 5 : row + 6, column - 5 : column + 6, channel]
                x, y = first[patch].astype(float), second[patch].astype(float)
                mean_x, mean_y = (window * x).sum(), (window * y).sum()
                variances = (window * x * x).sum() - mean_x**2 + (window * y * y).sum() - mean_y**2
                covariance = (window * x * y).sum() - mean_x * mean_y
                values.append(
                    (2 * mean_x * mean_y + 0.01**2)
                    * (2 * covariance + 0.03**2)
                    / ((mean_x**2 + mean_y**2 + 0.01**2) * (variances + 0.03**2))
                )
    own = ssim(first, second, np.ones(first.shape[:3], np.float32))[0]
    assert own == pytest.approx(np.mean(values), abs=1e-5)  # float32 in scikit-image


def test_padding_does_not_count() -> None:
    truth, render = images(0), images(1)
    visible = np.ones(truth.shape[:3], np.float32)
    visible[:, :, :7] = 0
    changed = render.copy()
    changed[:, :, :7] = 0
    whitened = [
        whiten_padding(torch.from_numpy(image), torch.from_numpy(visible)).numpy()
        for image in (render, changed, truth)
    ]
    assert (whitened[0][:, :, :7] == 1).all()
    for metric in (psnr, ssim):
        first, second = (metric(image, whitened[2], visible) for image in whitened[:2])
        np.testing.assert_array_equal(first, second)
