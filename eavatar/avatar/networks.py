"""The one multilayer perceptron and the one positional encoding that all stages use."""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor, nn

FREQUENCIES = 4
LEAKY_SLOPE = 0.01
ALIGNED = 8  # numbers: 16 bytes of bfloat16, which fast matrix products load at once


def encode_position(points: Tensor) -> Tensor:
    """Points (..., D) to (..., 9 D): input, sines and cosines at 1, 2, 4 and 8 times it."""
    octaves = 2.0 ** torch.arange(FREQUENCIES, device=points.device, dtype=points.dtype)
    angles = points[..., None, :] * octaves[:, None]
    waves = torch.stack([angles.sin(), angles.cos()], dim=-2)
    return torch.cat([points, waves.flatten(-3)], dim=-1)


def encoded_size(dimensions: int) -> int:
    """Channels that `encode_position` makes of so many dimensions."""
    return dimensions * (1 + 2 * FREQUENCIES)


def align_columns(values: Tensor) -> Tensor:
    """Values (..., D) with zero columns up to a multiple of `ALIGNED` on CUDA, elsewhere as they
    are: products of matrices whose rows begin anywhere take slow kernels there."""
    missing = -values.shape[-1] % ALIGNED
    return nn.functional.pad(values, (0, missing)) if values.is_cuda and missing else values


def widen(weight: Tensor, columns: int) -> Tensor:
    """A weight (O, D) with zeros for further columns of the inputs."""
    missing = columns - weight.shape[1]
    return nn.functional.pad(weight, (0, missing)) if missing else weight


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
        inputs = align_columns(inputs)
        hidden = inputs
        for index, layer in enumerate(cast("list[nn.Linear]", list(self.layers))):
            if index == self.skip:
                hidden = torch.cat([hidden, inputs], dim=-1)
            weight = widen(layer.weight, hidden.shape[-1])
            hidden = nn.functional.linear(hidden, weight, layer.bias)
            if index < len(self.layers) - 1:
                hidden = nn.functional.leaky_relu(hidden, LEAKY_SLOPE)
        return hidden
