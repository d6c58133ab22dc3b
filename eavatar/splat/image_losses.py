"""The terms of stage II's loss that are made of images (Eq. 19)."""

from __future__ import annotations

import logging
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import avg_pool2d

from eavatar.avatar.model import Avatar
from eavatar.avatar.upsample import stretch
from eavatar.data.frames import FrameSet, unpack
from eavatar.settings import SplatSettings
from eavatar.training.losses import rgb_loss
from eavatar.training.perceptual import Perceptual

logger = logging.getLogger(__name__)

MIN_SEEN = 1e-6  # in place of no part of a splatted pixel


class ImageLosses:
    """Upsampler and image terms, as one function that can be compiled.

    Args:
        avatar: its upsampler makes the final images.
        perceptual: LPIPS, or None for a loss without it.
        patch_size: side of the patch that LPIPS sees, pixels.
    """

    def __init__(self, avatar: Avatar, perceptual: Perceptual | None, patch_size: int):
        self.avatar, self.perceptual, self.patch_size = avatar, perceptual, patch_size

    def terms(
        self, coarse: Tensor, pixels: Tensor, visible: Tensor, corner: Tensor
    ) -> dict[str, Tensor]:
        """The unweighted terms, by the names of their weights.

        Those of Eq. 19; GHA's coarse term; and what the upsampler adds in the padding of the crop,
        where no image says what it should be: at the borders of its images, which show nothing but
        padding, a network of convolutions otherwise draws anything.

        Args:
            coarse: (V, h, w, K) splatted features.
            pixels: (V, H, W, 4) uint8, as of `eavatar.data.loader.Batch`.
            visible: (V, H, W) 1 where a pixel counts.
            corner: (2,) upper left corner of the LPIPS patch: row, column.
        """
        images, _ = unpack(pixels)
        fine, factor = self.avatar.upsample(coarse), self.avatar.settings.upsampling
        colours, counted = coarse[..., :3], visible[..., None]
        seen = shrink(counted, factor)
        plain = stretch(colours, factor, align_corners=False)
        losses = {
            "rgb": rgb_loss(fine, images, visible),
            "coarse": rgb_loss(
                colours,
                shrink(images * counted, factor) / seen.clamp(min=MIN_SEEN),
                seen[..., 0],
            ),
            "padding": rgb_loss(fine, plain, 1 - visible),
        }
        if self.perceptual is not None:
            pair = [self._patch(image * counted, corner) for image in (fine, images)]
            precision = self.avatar.mixed_precision
            with torch.autocast(coarse.device.type, torch.bfloat16, enabled=precision):
                losses["lpips"] = self.perceptual(*pair).mean()
        return losses

    def _patch(self, images: Tensor, corner: Tensor) -> Tensor:
        """The LPIPS patch of images (V, H, W, 3), or all of them where they are smaller."""
        for axis in (1, 2):
            side = min(self.patch_size, images.shape[axis])
            rows = corner[axis - 1] + torch.arange(side, device=images.device)
            images = images.index_select(axis, rows)
        return images


def shrink(images: Tensor, factor: int) -> Tensor:
    """Images (C, H, W, D) to (C, H / factor, W / factor, D) by averaging areas."""
    return avg_pool2d(images.permute(0, 3, 1, 2), factor).permute(0, 2, 3, 1)


def make_image_losses(
    settings: SplatSettings, avatar: Avatar, perceptual: Perceptual | None
) -> Callable[[Tensor, Tensor, Tensor, Tensor], dict[str, Tensor]]:
    """`ImageLosses.terms` for a training, compiled where the settings and the device say so."""
    terms = ImageLosses(avatar, perceptual, settings.lpips_patch).terms
    if not (settings.run.compile and avatar.device.type == "cuda"):
        return terms
    logger.info("the first step compiles; that takes up to a minute and is kept on disk")
    return torch.compile(terms, dynamic=False)


def patch_corner(seed: int, step: int, frames: FrameSet, patch_size: int) -> Tensor:
    """The upper left corner (2,) of a step's LPIPS patch: row, column; on the frames' device."""
    places = [max(side - patch_size, 0) + 1 for side in (frames.height, frames.width)]
    corner = np.random.default_rng([seed, step]).integers(places)
    return torch.from_numpy(corner).to(frames.device, non_blocking=True)
