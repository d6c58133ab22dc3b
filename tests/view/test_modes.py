from __future__ import annotations

import numpy as np
import pytest
import torch

from eavatar.avatar.model import Avatar, CameraBatch
from eavatar.view.modes import HEAT, Mode
from eavatar.view.player import draw_frame
from tests.scenes.small_avatar import EXPRESSIONS, SIZE, make_avatar
from tests.scenes.small_results import make_camera


def draw(avatar: Avatar, mode: Mode, expression: float = 1.0, side: int | None = None):
    size = side or SIZE
    camera = CameraBatch.of([make_camera(10).resize(size, size)], avatar.device)
    driving = torch.full((EXPRESSIONS,), expression)
    views = camera.intrinsics, camera.world_to_camera
    return draw_frame(avatar, None, driving, torch.zeros(6), *views, mode, (size, size))[0].numpy()


def test_the_coarse_image_is_what_the_upsampler_is_given() -> None:
    avatar = make_avatar()
    coarse = draw(avatar, Mode.COARSE)
    camera = CameraBatch.of([make_camera(10).resize(SIZE, SIZE)], avatar.device)
    with torch.no_grad():
        drawn = avatar.draw(torch.ones(EXPRESSIONS), torch.zeros(6), camera)
    expected = 255 * drawn.features[0, ..., :3].clamp(0, 1).numpy()
    factor = avatar.settings.upsampling
    for row in range(factor):
        for column in range(factor):
            part = coarse[row::factor, column::factor]
            assert np.abs(part - expected).max() < 0.501  # half a step of rounding
    assert np.abs(coarse.astype(int) - draw(avatar, Mode.FINE)).max() > 10


def middle(image: np.ndarray) -> np.ndarray:
    """Colour in [0, 1] of what is seen in the middle, where the ball hides the background."""
    return image[SIZE // 2, SIZE // 2] / 255


def test_controls_are_the_gaussians_beyond_the_threshold() -> None:
    avatar = make_avatar()

    def draw_beyond(threshold: float) -> np.ndarray:
        control = avatar.settings.control.model_copy(update={"threshold": threshold})
        avatar.settings = avatar.settings.model_copy(update={"control": control})
        return draw(avatar, Mode.CONTROLS)

    assert np.ptp(draw_beyond(100.0), axis=2).max() == 0  # none
    assert np.abs(middle(draw_beyond(-1.0)) - HEAT).max() < 0.02  # all
    generated = avatar.generate(torch.ones(EXPRESSIONS), torch.zeros(6))
    some = draw_beyond(generated.displacements.median().item()).astype(int)
    redness = some[..., 0] - some[..., 2]
    assert redness.min() < 20
    assert redness.max() > 100


@pytest.mark.parametrize("mode", list(Mode))
def test_a_smaller_image_shows_the_same(mode: Mode) -> None:
    avatar = make_avatar()
    small, large = draw(avatar, mode, side=SIZE // 2), draw(avatar, mode)
    assert small.shape == (SIZE // 2, SIZE // 2, 3)
    averaged = large.reshape(SIZE // 2, 2, SIZE // 2, 2, 3).mean(axis=(1, 3))
    # Another sampling of Gaussians as small as a pixel: alike on the whole, and on white alike.
    assert np.abs(small - averaged).mean() < 12
    assert np.abs(small[0] - averaged[0]).max() <= 1
