"""The person of a photograph, and the guided filter on edges that are known."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest

from eavatar.capture.backends.selfie import (
    SelfieSettings,
    guided_filter,
    load,
    segment,
    segment_visible,
)
from eavatar.capture.ingest import calibrate, ingest
from eavatar.capture.matting import matte
from eavatar.data.images import read_grey
from eavatar.settings import MatteSettings
from tests.scenes.mediapipe_networks import networks_folder, photograph
from tests.scenes.small_capture import HEIGHT, SERIALS, WIDTH, ingest_settings, write_capture

INSIDE = {"face": (225, 130), "hair": (200, 45), "suit": (200, 350), "neck ring": (165, 180)}
OUTSIDE = {"wall": (120, 60), "flag": (20, 100), "sky": (320, 60), "shuttle": (415, 150)}


def test_the_person_of_a_photograph_is_white_and_the_set_black() -> None:
    network = load(SelfieSettings(weights=networks_folder()))
    mask = segment(network, photograph()[..., ::-1])
    assert mask.shape == (512, 512) and mask.dtype == np.uint8
    for name, (x, y) in INSIDE.items():
        assert mask[y, x] > 230, name
    for name, (x, y) in OUTSIDE.items():
        assert mask[y, x] < 25, name


def test_padding_is_not_shown_to_the_network() -> None:
    """A frame whose sides are padding has the mask of the image without them."""
    network = load(SelfieSettings(weights=networks_folder()))
    image, visible = np.zeros((512, 712, 3), np.uint8), np.zeros((512, 712), np.uint8)
    image[:, 100:612], visible[:, 100:612] = photograph()[..., ::-1], 255
    mask = segment_visible(network, image, visible)
    assert np.array_equal(mask[:, 100:612], segment(network, image[:, 100:612]))
    assert mask[:, :100].max() == mask[:, 612:].max() == 0
    assert segment_visible(network, image, np.zeros_like(visible)).max() == 0


def test_matte_by_selfie(tmp_path: Path) -> None:
    person = cv2.resize(photograph()[:, :352], (WIDTH, HEIGHT), interpolation=cv2.INTER_AREA)
    raw = write_capture(tmp_path / "raw", [person] * 3, sequences=("FREE",))
    capture = tmp_path / "capture"
    calibrate(ingest_settings(image_size=128), raw, capture)
    ingest(ingest_settings(image_size=128), raw, "FREE", capture)
    content = {
        "backend": "selfie", "selfie": {"weights": networks_folder()},
        "min_coverage": 0.02, "max_coverage": 0.95, "max_jump": 0.2, "foreground": "estimated",
    }  # fmt: skip
    settings = MatteSettings.model_validate(content)
    matte(settings, ingest_settings(image_size=128), capture, "FREE", None, capture / "masks")
    mask = read_grey(capture / "masks/FREE" / SERIALS[0] / "00001.png")
    assert 0.2 < mask.mean() / 255 < 0.8
    assert mask[100, 64] > 230 and mask[5, 15] < 25  # the suit, the flag


def test_a_coarse_mask_moves_to_the_edges_of_the_image() -> None:
    """A person on a brighter set, both noisy; the mask has steps of four of the image's pixels."""
    image = np.full((512, 512, 3), 0.8, np.float32)
    cv2.circle(image, (256, 256), 150, (0.3, 0.4, 0.5), -1)
    truth = np.float32(image[..., 0] < 0.5)
    image += 0.01 * np.random.default_rng(0).standard_normal(image.shape, np.float32)
    mask = np.float32(cv2.resize(truth, (128, 128), interpolation=cv2.INTER_AREA) > 0.5)
    mask = cv2.resize(mask, (256, 256), interpolation=cv2.INTER_NEAREST)
    small = cv2.resize(image, (256, 256), interpolation=cv2.INTER_AREA)
    before = np.abs(cv2.resize(mask, (512, 512)) - truth).mean()
    after = np.abs(guided_filter(image, small, mask) - truth).mean()
    assert after < 0.7 * before


@pytest.mark.parametrize("value", [0.0, 0.3, 1.0])
def test_an_even_mask_stays_whatever_the_image(value: float) -> None:
    image = np.random.default_rng(0).random((64, 64, 3), np.float32)
    found = guided_filter(image, image[::2, ::2], np.full((32, 32), value, np.float32))
    np.testing.assert_allclose(found, value, atol=1e-3)  # variances in single precision
