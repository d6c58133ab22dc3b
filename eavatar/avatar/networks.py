"""The one multilayer perceptron and the one positional encoding that all stages use."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

FREQUENCIES = 4
LEAKY_SLOPE = 0.01


def encode_position(points: Tensor) -> Tensor:
    """Points (..., D) to (..., 9 D): input, sines and cosines at 1, 2, 4 and 8 times it."""
    octaves = 2.0 ** torch.arange(FREQUENCIES, device=points.device, dtype=points.dtype)
    angles = points[..., None, :] * octaves[:, None]
    waves = torch.stack([angles.sin(), angles.cos()], dim=-2)
    return torch.cat([points, waves.flatten(-3)], dim=-1)


def encoded_size(dimensions: int) -> int:
    """Channels that `encode_position` makes of so many dimensions."""
    return dimensions * (1 + 2 * FREQUENCIES)


class MLP(nn.Module):
    """Linear layers with leaky ReLU between them; the input enters again in the middle.

    Args:
        sizes: channels of the input, of each hidden layer and of the output. The input is
            concatenated to what enters layer ``len(sizes) // 2`` (as in Gaussian Head Avatar).
    """

    def __init__(self, sizes: Sequence[int]):
        super().__init__()
        self.skip = len(sizes) // 2
        inputs = [size + sizes[0] * (i == self.skip) for i, size in enumerate(sizes[:-1])]
        self.layers = nn.ModuleList(
            nn.Linear(before, after) for before, after in zip(inputs, sizes[1:], strict=True)
        )

    def forward(self, inputs: Tensor) -> Tensor:
        """(..., sizes[0]) to (..., sizes[-1])."""
        hidden = inputs
        for index, layer in enumerate(self.layers):
            if index == self.skip:
                hidden = torch.cat([hidden, inputs], dim=-1)
            hidden = layer(hidden)
            if index < len(self.layers) - 1:
                hidden = nn.functional.leaky_relu(hidden, LEAKY_SLOPE)
        return hidden
