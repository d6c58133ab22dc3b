"""A driver's networks on CUDA, all layers of a network in one kernel.

Layer by layer, most of the time goes by in writing and reading what is hidden between the layers.
Here a block of points keeps it in registers from the first layer to the last, and the weights
stream past: tiles of them, packed in the order of their use, each loaded while the one before is
multiplied. Operands are bfloat16, sums and biases float32, as in the layers of mixed precision,
but nothing else is rounded in between. There is no gradient.

Letters: N points, A inputs of a point, W units of a hidden layer, O outputs, E numbers of the
condition. A, W and O are padded with zeros to powers of two, as tiles need them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from eavatar.avatar.drivers import ConditionedMLP, SplitLayer
from eavatar.avatar.gaussians import join_outputs
from eavatar.avatar.networks import LEAKY_SLOPE

BLOCK, WARPS = 128, 8  # points of a block: with fewer, weights are read more often
MAX_INPUTS, MAX_WIDTH = 128, 256  # beyond them registers do not suffice
# Rows and columns of a tile: its rows then fill the 128 bytes of shared memory whose banks are
# swizzled together. For narrower swizzles ptxas 12.8 (of Triton 3.6) makes wrong descriptors.
MIN_TILE = 64


@triton.jit
def _load_tile(weights, rows: tl.constexpr, columns: tl.constexpr):
    """The packed tile (rows, columns) at a place."""
    places = tl.arange(0, rows)[:, None] * columns + tl.arange(0, columns)[None, :]
    return tl.load(weights + places)


@triton.jit
def _multiply(sums, values, tile, weights, rows: tl.constexpr, columns: tl.constexpr):
    """sums + values · tile, the next tile (rows, columns) and the place after it.

    Tiles are loaded as integers: the conversion keeps the compiler from moving one to shared memory
    right after its load, which would wait for it before the product that it is to overlap with.
    """
    present = tile.to(values.dtype, bitcast=True)
    following = _load_tile(weights, rows, columns)
    return tl.dot(values, present, sums), following, weights + rows * columns


@triton.jit
def _start_sums(biases, block: tl.constexpr, columns: tl.constexpr):
    """The biases (columns,) in each row of a block."""
    return tl.zeros([block, columns], tl.float32) + tl.load(biases + tl.arange(0, columns))[None, :]


@triton.jit
def _activate(sums, slope: tl.constexpr, operand: tl.constexpr):
    return tl.where(sums > 0, sums, slope * sums).to(operand)


@triton.jit
def _half_layer(
    left, right, points, tile, weights, biases,
    enters: tl.constexpr, next_columns: tl.constexpr, slope: tl.constexpr,
):  # fmt: skip
    """Half of the units of a hidden layer, of both halves of the layer before, and of the points
    where they enter again; then the next tile and the place after it."""
    half: tl.constexpr = left.shape[1]
    sums = _start_sums(biases, left.shape[0], half)
    sums, tile, weights = _multiply(sums, left, tile, weights, half, half)
    if enters:
        inputs: tl.constexpr = points.shape[1]
        sums, tile, weights = _multiply(sums, right, tile, weights, inputs, half)
        sums, tile, weights = _multiply(sums, points, tile, weights, half, next_columns)
    else:
        sums, tile, weights = _multiply(sums, right, tile, weights, half, next_columns)
    return _activate(sums, slope, points.dtype), tile, weights


@triton.jit
def _evaluate_block(
    inputs, weights, biases, outputs, count,
    entering: tl.constexpr, layers: tl.constexpr, size: tl.constexpr, width: tl.constexpr,
    channels: tl.constexpr, columns: tl.constexpr, slope: tl.constexpr, block: tl.constexpr,
):  # fmt: skip
    """Outputs (count, channels) of inputs (count, size) of one block.

    `layers` are between the first and the last. The points enter again at number `entering` of
    these, the last being the number `layers`. `columns` are the channels, padded.
    """
    half: tl.constexpr = width // 2
    rows = tl.program_id(0) * block + tl.arange(0, block)
    inside = rows[:, None] < count
    places = rows[:, None] * size + tl.arange(0, size)[None, :]
    points = tl.load(inputs + places, mask=inside, other=0.0)

    after_first: tl.constexpr = half if layers > 0 else columns
    tile = _load_tile(weights, size, half)
    weights += size * half
    sums = _start_sums(biases, block, half)
    sums, tile, weights = _multiply(sums, points, tile, weights, size, half)
    left = _activate(sums, slope, points.dtype)
    sums = _start_sums(biases + half, block, half)
    sums, tile, weights = _multiply(sums, points, tile, weights, half, after_first)
    right = _activate(sums, slope, points.dtype)

    for layer in tl.static_range(layers):
        biases += width
        first, tile, weights = _half_layer(
            left, right, points, tile, weights, biases, layer == entering, half, slope
        )
        second, tile, weights = _half_layer(
            left, right, points, tile, weights, biases + half, layer == entering,
            half if layer < layers - 1 else columns, slope,
        )  # fmt: skip
        left, right = first, second

    sums = _start_sums(biases + width, block, columns)
    sums, tile, weights = _multiply(sums, left, tile, weights, half, columns)
    if entering == layers:
        sums, tile, weights = _multiply(sums, right, tile, weights, size, columns)
        sums = tl.dot(points, tile.to(points.dtype, bitcast=True), sums)
    else:
        sums = tl.dot(right, tile.to(points.dtype, bitcast=True), sums)
    channel = tl.arange(0, columns)[None, :]
    tl.store(outputs + rows[:, None] * channels + channel, sums, inside & (channel < channels))


# An operation of its own, as compiled modules take it for what it is.
@torch.library.custom_op("eavatar::evaluate_network", mutates_args=())
def evaluate_network(
    inputs: Tensor, weights: Tensor, biases: Tensor, entering: int, layers: int, channels: int
) -> Tensor:
    """Outputs (N, O) float32 of a network, see `FusedMLP`.

    Args:
        inputs: (N, A) bfloat16 or float16.
        weights: packed tiles of the same type, their bits as int16.
        biases: of each layer after the other, the last with padding.
        entering: number of the layer after the first that the inputs enter again.
        layers: between the first and the last.
        channels: O.
    """
    outputs = inputs.new_empty(len(inputs), channels, dtype=torch.float32)
    columns = _padded(channels)
    if len(inputs) == 0:
        return outputs
    with torch.cuda.device_of(inputs):  # Triton's kernels run on the current device
        _evaluate_block[(triton.cdiv(len(inputs), BLOCK),)](
            inputs, weights, biases, outputs, len(inputs),
            entering=entering, layers=layers, size=inputs.shape[1],
            width=(len(biases) - columns) // (1 + layers), channels=channels, columns=columns,
            slope=LEAKY_SLOPE, block=BLOCK, num_warps=WARPS,
        )  # fmt: skip
    return outputs


@evaluate_network.register_fake
def _(
    inputs: Tensor, weights: Tensor, biases: Tensor, entering: int, layers: int, channels: int
) -> Tensor:
    return inputs.new_empty(len(inputs), channels, dtype=torch.float32)


@dataclass(frozen=True)
class FusedMLP:
    """A `ConditionedMLP` at fixed points.

    Attributes:
        inputs: (N, A) of the points, of the type that is multiplied.
        weights: as of `evaluate_network`.
        biases: (B,) likewise, without the condition's part.
        of_condition: (B, E) what a condition adds to the biases.
        entering: as of `evaluate_network`, as are the next two.
        layers: likewise.
        channels: likewise.
    """

    inputs: Tensor
    weights: Tensor
    biases: Tensor
    of_condition: Tensor
    entering: int
    layers: int
    channels: int

    @classmethod
    def of(
        cls, network: ConditionedMLP, points: Tensor, operands: torch.dtype = torch.bfloat16
    ) -> FusedMLP:
        """With the inputs (N, A) of the points, not padded, and the type that is multiplied."""
        split = network.split(points.shape[1])
        size, width = _padded(points.shape[1]), _hidden_width(network)
        channels = len(split[-1].bias)
        widths = [width] * (len(split) - 1) + [_padded(channels)]
        of_condition = [
            # A layer that the condition does not enter adds nothing for it.
            _grow(layer.of_condition, units, split[0].of_condition.shape[1])
            for layer, units in zip(split, widths, strict=True)
        ]
        biases = [_grow(layer.bias, units) for layer, units in zip(split, widths, strict=True)]
        return cls(
            _grow(points, len(points), size).to(operands),
            _pack(split, size, widths).to(operands).view(torch.int16),
            torch.cat(biases),
            torch.cat(of_condition),
            network.skip - 1,
            len(split) - 2,
            channels,
        )

    def __call__(self, biases: Tensor) -> Tensor:
        """Outputs (N, O) at biases (B,) of the layers and a condition."""
        outputs: Tensor = evaluate_network(
            self.inputs, self.weights, biases, self.entering, self.layers, self.channels
        )
        return outputs


@dataclass(frozen=True)
class FusedDriver:
    """The three networks of a driver: of colours, deformation and attributes.

    Attributes:
        networks: in this order.
        biases: (B,) of all of them.
        of_condition: (B, E) likewise, so that a condition takes one product.
    """

    networks: Sequence[FusedMLP]
    biases: Tensor
    of_condition: Tensor

    @classmethod
    def of(cls, networks: Sequence[FusedMLP]) -> FusedDriver:
        return cls(
            networks,
            torch.cat([network.biases for network in networks]),
            torch.cat([network.of_condition for network in networks]),
        )

    def __call__(self, condition: Tensor) -> Tensor:
        """As of `eavatar.avatar.prepared.Driver`."""
        biases = torch.addmv(self.biases, self.of_condition, condition)
        parts = biases.split([len(network.biases) for network in self.networks])
        outputs = [network(part) for network, part in zip(self.networks, parts, strict=True)]
        return join_outputs(*outputs)


def can_fuse(network: ConditionedMLP, inputs: int) -> bool:
    """Whether a network of points with so many inputs is one that the kernel is for."""
    return _padded(inputs) <= MAX_INPUTS and _hidden_width(network) <= MAX_WIDTH


def _padded(size: int) -> int:
    return max(MIN_TILE, 1 << (size - 1).bit_length())


def _hidden_width(network: ConditionedMLP) -> int:
    """Units of the widest hidden layer, in two halves of a tile's size at least."""
    widths = [len(layer.bias) for layer in network.split(0)[:-1]]
    return max(2 * MIN_TILE, *map(_padded, widths))


def _grow(values: Tensor, *shape: int) -> Tensor:
    """Zeros of a shape, with the values in their first places."""
    result = values.new_zeros(shape)
    result[tuple(slice(size) for size in values.shape)] = values
    return result


def _pack(layers: Sequence[SplitLayer], size: int, widths: Sequence[int]) -> Tensor:
    """All tiles in the order in which `_evaluate_block` uses them."""
    half, tiles = widths[0] // 2, []
    for layer, width in zip(layers, widths, strict=True):
        rows: list[Tensor] = []
        if layer.of_hidden.shape[1]:
            rows += _grow(layer.of_hidden.T, 2 * half, width).split(half)
        if layer.of_points.shape[1]:
            rows.append(_grow(layer.of_points.T, size, width))
        columns = width if layer is layers[-1] else half
        for start in range(0, width, columns):
            tiles += [matrix[:, start : start + columns].flatten() for matrix in rows]
    return torch.cat(tiles)
