"""BackgroundMattingV2's code on a TorchScript file with the published inputs and attributes."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from torch import Tensor, nn

from eavatar.capture.background_matting import load_background_matting
from eavatar.capture.ingest import calibrate, ingest
from eavatar.capture.matting import matte
from eavatar.data.images import read_grey
from eavatar.errors import UserError
from tests.scenes.small_capture import (
    HEIGHT,
    SERIALS,
    WIDTH,
    ingest_settings,
    matte_settings,
    write_capture,
)

cpu_only = pytest.mark.skipif(torch.cuda.is_available(), reason="is about the CPU")


class Matting(nn.Module):
    """Inputs, outputs and attributes of the published network; alpha is 4 times the difference."""

    def __init__(self) -> None:
        super().__init__()
        self.mix = nn.Conv2d(3, 1, 1, bias=False)
        nn.init.constant_(self.mix.weight, 4 / 3)
        self.backbone_scale = 1.0
        self.refine_mode = "full"
        self.refine_sample_pixels = 0

    def forward(
        self, src: Tensor, bgr: Tensor
    ) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
        assert src.shape == bgr.shape, "src and bgr must have the same shape"
        assert src.shape[2] % 4 == 0 and src.shape[3] % 4 == 0, "sides must be divisible by 4"
        assert self.refine_mode == "sampling" and self.refine_sample_pixels > 0
        small = nn.functional.interpolate(src - bgr, scale_factor=self.backbone_scale)
        alpha = self.mix((src - bgr).abs())  # beyond 1, as the published one's is before clamping
        rough = self.mix(small.abs())
        return alpha, src, rough, small, rough, rough


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    path = tmp_path / "torchscript_test_fp32.pth"
    torch.jit.script(Matting()).save(str(path))
    return path


def disc(size: int, x: int, y: int) -> np.ndarray:
    """A blue-green disc on grey, BGR."""
    image = np.full((size, size, 3), 60, np.uint8)
    cv2.circle(image, (x, y), size // 4, (200, 160, 60), -1)
    return image


@pytest.mark.parametrize("size", [64, 66, 101])
def test_alpha_is_that_of_the_network(weights: Path, size: int) -> None:
    network = load_background_matting(weights, size)
    plate = np.full((size, size, 3), 60, np.uint8)
    images = [disc(size, size // 2, size // 2), disc(size, size // 3, size // 2), plate]
    alpha = network.masks(images, plate)
    assert alpha.shape == (3, size, size) and alpha.dtype == np.uint8
    difference = np.abs(np.stack(images).astype(float) - plate).mean(axis=-1)
    assert np.abs(alpha - np.clip(4 * difference, 0, 255)).max() <= 1
    assert np.array_equal(network.masks(images[1:2], plate)[0], alpha[1])


def test_channels_are_red_green_blue(tmp_path: Path) -> None:
    module = Matting()
    module.mix.weight.data[0, 1:] = 0  # red alone
    torch.jit.script(module).save(str(tmp_path / "red.pth"))
    plate = np.zeros((8, 8, 3), np.uint8)
    images = [np.full_like(plate, colour) for colour in ((255, 0, 0), (0, 0, 255))]  # BGR
    alpha = load_background_matting(tmp_path / "red.pth", 8).masks(images, plate)
    assert alpha[0].max() == 0 and alpha[1].min() == 255


@pytest.mark.parametrize(
    "size, scale, pixels, batch",
    [(640, 0.25, 80_000, 10), (2048, 0.25, 80_000, 1), (2880, 0.125, 320_000, 1)],
)
def test_resolution_rule(weights: Path, size: int, scale: float, pixels: int, batch: int) -> None:
    network = load_background_matting(weights, size)
    assert network.module.backbone_scale == scale
    assert network.module.refine_sample_pixels == pixels
    assert network.module.refine_mode == "sampling"
    assert network.batch_size == batch


def test_matte_by_background_matting(weights: Path, tmp_path: Path) -> None:
    plate = np.full((HEIGHT, WIDTH, 3), (165, 175, 180), np.uint8)
    rows, columns = np.mgrid[:HEIGHT, :WIDTH]
    truth = ((columns - 110) / 60) ** 2 + ((rows - 170) / 80) ** 2 < 1
    image = np.where(truth[..., None], np.array([60, 40, 40], np.uint8), plate)
    raw = write_capture(tmp_path / "raw", [image] * 3, sequences=("FREE",), plate=plate)
    ingested, capture = ingest_settings(image_size=128), tmp_path / "capture"
    calibrate(ingested, raw, capture)
    ingest(ingested, raw, "FREE", capture)
    settings = matte_settings("background_matting_v2", weights=weights)
    matte(settings, ingested, capture, "FREE", None, capture / "masks")
    for timestep in range(3):
        path = capture / "masks" / "FREE" / SERIALS[0] / f"{timestep:05d}.png"
        mask = read_grey(path)
        assert mask[64, 64] == 255 and mask[4, 64] < 26
    (capture / "plates" / f"{min(SERIALS)}.png").unlink()
    with pytest.raises(UserError, match=f"background_matting_v2 .* plate of camera {min(SERIALS)}"):
        matte(settings, ingested, capture, "FREE", None, capture / "masks")


def test_a_missing_file_is_named_with_its_source_and_a_way_around(tmp_path: Path) -> None:
    path = tmp_path / "torchscript_resnet101_fp32.pth"
    with pytest.raises(UserError) as caught:
        load_background_matting(path, 64)
    message = str(caught.value)
    assert str(path) in message and "PeterL1n/BackgroundMattingV2" in message
    assert "capture.matte.background_matting_v2.weights" in message
    assert "capture.matte.backend to plate" in message


def test_other_files_are_refused(tmp_path: Path) -> None:
    torch.save(Matting().state_dict(), tmp_path / "pytorch_resnet101.pth")
    (tmp_path / "noise.pth").write_bytes(b"noise" * 100)
    (tmp_path / "empty.pth").touch()
    for name in ("pytorch_resnet101.pth", "noise.pth", "empty.pth"):
        with pytest.raises(UserError, match=f"{name} is not a TorchScript file"):
            load_background_matting(tmp_path / name, 64)
    torch.jit.script(nn.Conv2d(3, 3, 1)).save(str(tmp_path / "convolution.pth"))
    with pytest.raises(UserError, match=r"convolution\.pth has no attribute 'backbone_scale'"):
        load_background_matting(tmp_path / "convolution.pth", 64)


@cpu_only
def test_half_precision_needs_a_gpu(tmp_path: Path) -> None:
    path = tmp_path / "torchscript_test_fp16.pth"
    torch.jit.script(Matting().half()).save(str(path))
    with pytest.raises(UserError, match=r"fp16\.pth is of half precision.*fp32\.pth"):
        load_background_matting(path, 64)


@pytest.mark.gpu
def test_half_precision_on_the_gpu(weights: Path, tmp_path: Path) -> None:
    path = tmp_path / "torchscript_test_fp16.pth"
    torch.jit.script(Matting().half()).save(str(path))
    plate = np.full((66, 66, 3), 60, np.uint8)
    half, single = (
        load_background_matting(file, 66).masks([disc(66, 33, 30)], plate)
        for file in (path, weights)
    )
    assert np.abs(half.astype(float) - single).max() <= 2  # float16 has 11 bits
