"""What of an avatar is drawn: its image, the image before the upsampler, or a heat map.

All of it may be captured in a CUDA graph. Letters: N Gaussians.
"""

from __future__ import annotations

from dataclasses import replace
from enum import StrEnum

import torch
from torch import Tensor

from eavatar.avatar.model import Avatar, CameraBatch

FULL_DISPLACEMENT = 0.1  # canonical units, 10 mm: gets the heat map's colour in full
HEAT = (0.85, 0.2, 0.05)  # RGB, on the avatar in grey


class Mode(StrEnum):
    """What is drawn; the values are what people read.

    Attributes:
        FINE: the image.
        COARSE: the splatted colours, before the upsampler.
        DISPLACEMENT: how far the expression moves each Gaussian.
        CONTROLS: which Gaussians are controls (Eq. 10).
    """

    FINE = "fine"
    COARSE = "coarse"
    DISPLACEMENT = "displacement"
    CONTROLS = "control Gaussians"

    @property
    def is_image(self) -> bool:
        """Whether it can be compared with a frame."""
        return self in (Mode.FINE, Mode.COARSE)


def draw_mode(
    avatar: Avatar,
    mode: Mode,
    expression: Tensor,
    pose: Tensor,
    camera: CameraBatch,
    capacity: int | None,
) -> tuple[Tensor, Tensor]:
    """An image (H, W, 3), on white and not clamped, and () the pairs that it needed.

    Args:
        avatar: what is drawn.
        mode: what of it; not `Mode.FINE`, which is more than what is splatted.
        expression: as of `Avatar.draw`, as are the next three.
        pose: likewise.
        camera: likewise, a single one.
        capacity: likewise.
    """
    generated = avatar.generate(expression, pose)
    if not mode.is_image:
        if mode is Mode.CONTROLS:
            heat = generated.controls.float()
        else:
            heat = _displacements(avatar, expression, pose) / FULL_DISPLACEMENT
        colours = _tint(generated.gaussians.features[:, :3], heat.clamp(max=1))
        generated = replace(generated, gaussians=replace(generated.gaussians, features=colours))
    coarse = avatar.splat(generated, camera, capacity)
    factor = avatar.settings.upsampling
    image = coarse.features[0, ..., :3].repeat_interleave(factor, 0).repeat_interleave(factor, 1)
    return image[: camera.height, : camera.width], coarse.pairs


def _displacements(avatar: Avatar, expression: Tensor, pose: Tensor) -> Tensor:
    """How far the expression moves each Gaussian from where it is at neutral, (N,) canonical."""
    neutral = expression.new_zeros(avatar.settings.head.expression_size)
    moved = avatar.deform(expression, pose).points - avatar.deform(neutral, pose).points
    distances: Tensor = moved.norm(dim=1)
    return distances


def _tint(colours: Tensor, heat: Tensor) -> Tensor:
    """Colours (N, 3) in grey, and red as far as the heat (N,) goes."""
    grey = colours.mean(dim=1)
    return torch.stack([grey + heat * (value - grey) for value in HEAT], dim=1)
