"""From splatted feature images to the final colours at a multiple of their size."""

from __future__ import annotations

from torch import Tensor, nn

from eavatar.networks import LEAKY_SLOPE


class Upsampler(nn.Module):
    """Bilinear interpolation of the first three channels plus a learned residual.

    The residual network works at the small size and ends in a sub-pixel shuffle; it is zero at
    first, so that training starts from the plain interpolation. Nothing is normalised over the
    image: a pixel depends on its neighbourhood only.

    Args:
        channels: feature channels, at least 3; the first three are RGB.
        width: channels of the hidden layers.
        factor: final size / feature size.
    """

    def __init__(self, channels: int, width: int, factor: int):
        super().__init__()
        self.factor = factor
        last = nn.Conv2d(width, 3 * factor**2, 3, padding=1)
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)  # type: ignore[arg-type]
        self.residual = nn.Sequential(
            nn.Conv2d(channels, width, 3, padding=1),
            nn.LeakyReLU(LEAKY_SLOPE, inplace=True),
            nn.Conv2d(width, width, 3, padding=1),
            nn.LeakyReLU(LEAKY_SLOPE, inplace=True),
            last,
            nn.PixelShuffle(factor),
        )

    def forward(self, features: Tensor) -> Tensor:
        """Features (C, H, W, D) to colours (C, factor · H, factor · W, 3), not clamped."""
        images = features.permute(0, 3, 1, 2)
        plain = nn.functional.interpolate(
            images[:, :3], scale_factor=float(self.factor), mode="bilinear", align_corners=False
        )
        return (plain + self.residual(images)).permute(0, 2, 3, 1)
