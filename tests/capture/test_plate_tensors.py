"""The tensors' masks are those of the arrays, on the CPU and on a GPU."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
import torch

from eavatar.capture.matting import steady
from eavatar.capture.plate import Plate, distance_within, mask_from_plate
from eavatar.capture.plate_tensors import TensorPlate, _grow, matte_in_tensors
from tests.capture.test_matting import ALL_VISIBLE, SIZE, expose, head, uneven_plate

DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]


def assert_alike(visible: np.ndarray, device: str) -> None:
    """The masks of a head that rests, moves and rests, at several exposures and noise levels."""
    empty = uneven_plate()
    plate = Plate.of(empty.round().astype(np.uint8), visible)
    person, _ = head(empty)
    frames = [
        expose(np.roll(person, 3 * max(0, index - 3), axis=1), gain, noise)
        for gain, noise in [(1.0, 1.0), (0.8, 2.0), (1.15, 8.0)]
        for index in range(5)
    ]
    expected = np.stack(list(steady(frames, [mask_from_plate(frame, plate) for frame in frames])))
    tensors = TensorPlate.of(plate, SIZE, torch.device(device))
    found = np.stack(list(matte_in_tensors(frames, tensors)))
    # A distance within rounding of the threshold may fall on either side of it, which then moves
    # the soft edge around that one pixel; of 2048² pixels it was one in 600,000.
    assert np.mean(np.abs(found.astype(int) - expected) > 1) < 1e-3
    assert 0.2 < expected.mean() / 255 < 0.8


@pytest.mark.parametrize("device", DEVICES)
def test_masks_are_those_of_the_arrays(device: str) -> None:
    assert_alike(ALL_VISIBLE, device)


@pytest.mark.parametrize("device", DEVICES)
def test_masks_of_a_padded_view_are_those_of_the_arrays(device: str) -> None:
    visible = ALL_VISIBLE.copy()
    visible[:, :9] = 0
    visible[-5:] = 0
    assert_alike(visible, device)


@pytest.mark.parametrize("radius", [2, 7, 21])
def test_growing_reaches_as_far_as_opencv_measures(radius: int) -> None:
    random = np.random.default_rng(0)
    seeds = cv2.resize(random.random((9, 12)), (90, 80)) > 0.9
    distance = distance_within((~seeds).astype(np.uint8))
    found = _grow(torch.from_numpy(seeds), radius).numpy()
    assert np.array_equal(found, distance <= radius)
