from __future__ import annotations

import numpy as np
import pytest
import torch
from skimage.metrics import peak_signal_noise_ratio, structural_similarity

from eavatar.tables.metrics import (
    GAUSSIAN,
    UNIFORM,
    psnr,
    similarity,
    similarity_in_torch,
    squared_error,
    ssim,
    whiten_padding,
)

SCIKIT_IMAGE = {  # what its function is told for each window
    "gaussian": (
        GAUSSIAN,
        {"gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False},
    ),
    "uniform": (UNIFORM, {}),
}


def image(seed: int, height: int = 24, width: int = 20) -> torch.Tensor:
    pixels = np.random.default_rng(seed).random((height, width, 3), dtype=np.float32)
    return torch.from_numpy(pixels)


def everywhere(pixels: torch.Tensor) -> torch.Tensor:
    return torch.ones(pixels.shape[:2], dtype=torch.bool)


def test_psnr_of_a_constant_difference() -> None:
    truth = torch.full((8, 8, 3), 0.5)
    inside = everywhere(truth)
    # 20 log10(1 / 0.1) = 20 dB.
    error = squared_error(truth + 0.1, truth)
    assert psnr(error, inside) == pytest.approx(20.0, abs=1e-5)
    assert torch.isposinf(psnr(squared_error(truth, truth), inside))


def test_psnr_is_scikit_images() -> None:
    render, truth = image(0), image(1)
    expected = peak_signal_noise_ratio(truth.numpy(), render.numpy(), data_range=1.0)
    assert psnr(squared_error(render, truth), everywhere(truth)).item() == pytest.approx(
        expected,
        abs=1e-6,  # dB; both sum in float64
    )


@pytest.mark.parametrize("name", SCIKIT_IMAGE)
@pytest.mark.parametrize("size", [(24, 20), (120, 97)])
def test_ssim_is_scikit_images(name: str, size: tuple[int, int]) -> None:
    window, words = SCIKIT_IMAGE[name]
    render, truth = image(0, *size), image(1, *size)
    render[:, : size[1] // 2] = (render + 9 * truth)[:, : size[1] // 2] / 10  # near to it
    render[: size[0] // 2], truth[: size[0] // 2] = 1, 1  # white, as most of a frame is
    expected = structural_similarity(
        render.numpy(), truth.numpy(), channel_axis=-1, data_range=1.0, **words
    )
    own = ssim(similarity(render, truth, window), everywhere(truth))
    assert own.item() == pytest.approx(expected, abs=1e-6)  # a mean of float32


def test_ssim_around_each_pixel_is_scikit_images_to_the_last_bit() -> None:
    render, truth = image(0, 60, 50), image(1, 60, 50)
    _, words = SCIKIT_IMAGE["gaussian"]
    _, full = structural_similarity(
        render.numpy(), truth.numpy(), channel_axis=-1, data_range=1.0, full=True, **words
    )
    expected = full.mean(axis=-1)[5:-5, 5:-5]
    np.testing.assert_array_equal(similarity(render, truth, GAUSSIAN), expected)


@pytest.mark.parametrize("window", [GAUSSIAN, UNIFORM])
def test_ssim_of_a_gpu_is_that_of_the_cpu(window) -> None:
    render, truth = image(0, 60, 50), image(1, 60, 50)
    render[:30] = truth[:30] * 0.98
    found = similarity_in_torch(render, truth, window)
    expected = similarity(render, truth, window)
    assert abs(found.mean() - expected.mean()) < 1e-7
    # Rounding of float32, which the small variances of the upper half make larger.
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_ssim_against_a_slow_loop() -> None:
    first, second = image(0), image(1)
    arrays = first.numpy(), second.numpy()
    offsets = np.arange(-5, 6)
    kernel = np.exp(-(offsets**2) / (2 * 1.5**2))
    window = np.outer(kernel, kernel) / kernel.sum() ** 2
    values = []
    for row in range(5, 19):
        for column in range(5, 15):
            for channel in range(3):
                patch = np.s_[row - 5 : row + 6, column - 5 : column + 6, channel]
                x, y = (array[patch].astype(float) for array in arrays)
                mean_x, mean_y = (window * x).sum(), (window * y).sum()
                variances = (window * x * x).sum() - mean_x**2 + (window * y * y).sum() - mean_y**2
                covariance = (window * x * y).sum() - mean_x * mean_y
                values.append(
                    (2 * mean_x * mean_y + 0.01**2)
                    * (2 * covariance + 0.03**2)
                    / ((mean_x**2 + mean_y**2 + 0.01**2) * (variances + 0.03**2))
                )
    own = ssim(similarity(first, second, GAUSSIAN), everywhere(first))
    assert own.item() == pytest.approx(np.mean(values), abs=1e-5)  # float32


def test_padding_does_not_count() -> None:
    truth, render = image(0), image(1)
    visible = torch.ones(truth.shape[:2])
    visible[:, :7] = 0
    changed = render.clone()
    changed[:, :7] = 0
    whitened = [
        whiten_padding(pixels[None], visible[None])[0] for pixels in (render, changed, truth)
    ]
    assert (whitened[0][:, :7] == 1).all()
    measured = [
        (
            psnr(squared_error(pixels, whitened[2]), visible > 0),
            ssim(similarity(pixels, whitened[2], GAUSSIAN), visible > 0),
        )
        for pixels in whitened[:2]
    ]
    assert measured[0] == measured[1]


def test_no_pixel_no_metric() -> None:
    render, truth = image(0), image(1)
    nowhere = ~everywhere(truth)
    assert torch.isnan(psnr(squared_error(render, truth), nowhere))
    assert torch.isnan(ssim(similarity(render, truth, GAUSSIAN), nowhere))


@pytest.mark.gpu
def test_metrics_of_cuda_are_those_of_the_cpu() -> None:
    render, truth = image(0, 60, 50), image(1, 60, 50)
    inside = everywhere(truth)
    of_cpu, of_cuda = (
        (
            psnr(squared_error(*images), inside.to(device)).item(),
            ssim(similarity(*images, GAUSSIAN), inside.to(device)).item(),
        )
        for device in ("cpu", "cuda")
        for images in [(render.to(device), truth.to(device))]
    )
    assert of_cuda == pytest.approx(of_cpu, abs=1e-6)  # similarities are float32
