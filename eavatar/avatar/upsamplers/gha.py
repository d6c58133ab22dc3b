"""The network of Gaussian Head Avatar."""

from __future__ import annotations

from typing import TYPE_CHECKING

from eavatar.backends import UpsamplerBackend

if TYPE_CHECKING:
    from torch import nn


def make(channels: int, width: int, factor: int) -> nn.Module:
    """See `eavatar.avatar.upsample.make_upsampler`."""
    from eavatar.avatar.upsample import PublishedUpsampler

    return PublishedUpsampler(channels, width, factor)


BACKEND = UpsamplerBackend(
    name="gha", run=make, instead="set splat.upsampler to subpixel", factors=(4,)
)
