"""A U-net with the decoder of StyleGAN2 (Karras et al. 2020): an image and a style to an image.

Sizes are powers of two. Without the wavelets and the noise of the published StyleUNet. Weights have
unit variance and are scaled where they are used (equalised learning rate): the steps of Adam are
then as large, beside the weights, in a layer of 512 channels as in one of 8.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn.functional import conv2d, interpolate, leaky_relu, linear

SLOPE = 0.2
GAIN = math.sqrt(2)  # keeps the variance of what a leaky ReLU lets through
REFERENCE = 32  # size up to which layers have all channels; half at twice the size, and so on
MAPPING_LAYERS = 4
MAPPING_RATE = 0.01  # learning rate of the mapping / that of the others


def channels_at(size: int, most: int) -> int:
    """Channels of a layer whose images have a size."""
    return max(4, min(most, REFERENCE * most // size))


class StyleUNet(nn.Module):
    """From (B, K, in_size, in_size) and a style (B, Z) to (B, D, out_size, out_size).

    Args:
        inputs: K.
        outputs: D.
        in_size: side of the image.
        middle_size: to which the encoder shrinks it.
        out_size: to which the decoder enlarges it.
        style_size: Z.
        channels: most of a layer, see `channels_at`.
    """

    def __init__(
        self,
        inputs: int,
        outputs: int,
        in_size: int,
        middle_size: int,
        out_size: int,
        style_size: int,
        channels: int,
    ):
        super().__init__()
        widths = {}
        for power in range(int(math.log2(max(in_size, out_size))) + 1):
            widths[2**power] = channels_at(2**power, channels)
        self.mapping = nn.ModuleList(
            Linear(style_size, style_size, rate=MAPPING_RATE) for _ in range(MAPPING_LAYERS)
        )
        self.entry = Convolution(inputs, widths[in_size], 1)
        self.encoder = nn.ModuleList()
        size = in_size
        while size > middle_size:
            self.encoder.append(Convolution(widths[size], widths[size], 3))
            self.encoder.append(Convolution(widths[size], widths[size // 2], 3, stride=2))
            size //= 2
        self.middle = StyledConvolution(widths[size], widths[size], style_size)
        self.decoder = nn.ModuleList()
        while size < out_size:
            before, size = size, 2 * size
            skip = widths[size] if size <= in_size else 0
            first = StyledConvolution(widths[before] + skip, widths[size], style_size)
            self.decoder.append(first)
            self.decoder.append(StyledConvolution(widths[size], widths[size], style_size))
        self.exit = Convolution(widths[out_size], outputs, 1)

    def forward(self, image: Tensor, style: Tensor) -> Tensor:
        """(B, D, out_size, out_size), not clamped."""
        for layer in self.mapping:
            style = _activate(layer(style))
        hidden = _activate(self.entry(image))
        skips = []
        for keep, down in zip(self.encoder[::2], self.encoder[1::2], strict=True):
            hidden = _activate(keep(hidden))
            skips.append(hidden)
            hidden = _activate(down(hidden))
        hidden = self.middle(hidden, style)
        for first, second in zip(self.decoder[::2], self.decoder[1::2], strict=True):
            hidden = interpolate(hidden, scale_factor=2, mode="bilinear", align_corners=False)
            if skips and skips[-1].shape[-1] == hidden.shape[-1]:
                hidden = torch.cat([hidden, skips.pop()], dim=1)
            hidden = second(first(hidden, style), style)
        drawn: Tensor = self.exit(hidden)
        return drawn


class Linear(nn.Module):
    """A linear layer with an equalised learning rate.

    Args:
        inputs: of a vector.
        outputs: likewise.
        rate: factor of the learning rate.
        bias: of all outputs at first.
    """

    def __init__(self, inputs: int, outputs: int, rate: float = 1.0, bias: float = 0.0):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(outputs, inputs) / rate)
        self.bias = nn.Parameter(torch.full((outputs,), bias / rate))
        self.rate, self.scale = rate, rate / math.sqrt(inputs)

    def forward(self, vectors: Tensor) -> Tensor:
        return linear(vectors, self.scale * self.weight, self.rate * self.bias)


class Convolution(nn.Module):
    """A convolution, zeros outside the image, with an equalised learning rate."""

    def __init__(self, inputs: int, outputs: int, size: int, stride: int = 1):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(outputs, inputs, size, size))
        self.bias = nn.Parameter(torch.zeros(outputs))
        self.stride, self.scale = stride, 1 / (size * math.sqrt(inputs))

    def forward(self, images: Tensor) -> Tensor:
        weight = self.scale * self.weight
        return conv2d(images, weight, self.bias, self.stride, weight.shape[-1] // 2)


class StyledConvolution(nn.Module):
    """3×3, its input channels weighted by a style, its outputs brought back to unit variance."""

    def __init__(self, inputs: int, outputs: int, style_size: int):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(outputs, inputs, 3, 3))
        self.bias = nn.Parameter(torch.zeros(outputs))
        self.style = Linear(style_size, inputs, bias=1.0)
        self.scale = 1 / math.sqrt(9 * inputs)

    def forward(self, images: Tensor, style: Tensor) -> Tensor:
        factors, weight = self.style(style), self.scale * self.weight
        # As if each image had a kernel of its own: the factors of its inputs, and one over the
        # root of what the squares of that kernel add up to.
        norm = torch.rsqrt(factors.float().square() @ weight.square().sum((2, 3)).T + 1e-8)
        drawn = conv2d(images * factors[:, :, None, None], weight, padding=1)
        return _activate(drawn * norm.to(drawn.dtype)[:, :, None, None] + self.bias[:, None, None])


def _activate(values: Tensor) -> Tensor:
    return GAIN * leaky_relu(values, SLOPE)
