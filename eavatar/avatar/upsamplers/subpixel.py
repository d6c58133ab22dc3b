"""Our cheaper network, a sub-pixel shuffle of a residual."""

from __future__ import annotations

from typing import TYPE_CHECKING

from eavatar.backends import UpsamplerBackend

if TYPE_CHECKING:
    from torch import nn


def make(channels: int, width: int, factor: int) -> nn.Module:
    """See `eavatar.avatar.upsample.make_upsampler`."""
    from eavatar.avatar.upsample import SubPixelUpsampler

    return SubPixelUpsampler(channels, width, factor)


BACKEND = UpsamplerBackend(name="subpixel", run=make, instead="set splat.upsampler to gha")
