"""The networks that drive colour and shape by expression and by pose, shared by both stages.

Expression drives what is near the landmarks of the neutral face and head pose drives the rest
(hair, neck, shoulders), blended by *squared* distance as Gaussian Head Avatar's code has it.
Letters: N points, E expression coefficients, F feature and K colour channels. A pose is
``(6,)``: axis-angle in radians, then translation in metres.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn

from eavatar.avatar.networks import LEAKY_SLOPE, MLP, align_columns, encoded_size, widen

POSE_SIZE = 6


class ConditionedMLP(MLP):
    """An `MLP` whose last inputs, the condition, are the same for all points.

    They enter as a bias of the two layers that see the input, which gives what concatenating N
    copies would give and costs nothing per point. Several conditions share the other half of those
    layers, as far as that depends on the points alone.
    """

    def forward(self, inputs: Tensor, condition: Tensor) -> Tensor:  # type: ignore[override]
        """Points under one condition or several, with A + E = sizes[0] and O = sizes[-1].

        Args:
            inputs: (N, A); further columns, as of `align_columns`, must be zero.
            condition: (E,) or (B, E).
        Returns:
            (N, O) or (B, N, O).
        """
        inputs = align_columns(inputs)
        first, *others = cast("list[nn.Linear]", list(self.layers))
        hidden = _enter(first.weight, first.bias, inputs, condition)
        for index, layer in enumerate(others, start=1):
            hidden = nn.functional.leaky_relu(hidden, LEAKY_SLOPE)
            if index == self.skip:
                sizes = [hidden.shape[1], layer.in_features - hidden.shape[1]]
                own, entering = _split_inputs(layer.weight, sizes)
                entered = _enter(entering, layer.bias, inputs, condition)
                hidden = torch.addmm(entered, hidden, own.T)
            else:
                hidden = layer(hidden)
        return hidden.view(*condition.shape[:-1], len(inputs), hidden.shape[1])

    def split(self, inputs: int) -> list[SplitLayer]:
        """The layers by what their weights multiply, detached, for points of so many inputs A."""
        layers = cast("list[nn.Linear]", list(self.layers))
        result: list[SplitLayer] = []
        for index, layer in enumerate(layers):
            entering = layers[0].in_features if index in (0, self.skip) else 0
            sizes = [layer.in_features - entering, min(inputs, entering), max(entering - inputs, 0)]
            own, of_points, of_condition = layer.weight.detach().split(sizes, dim=1)
            result.append(SplitLayer(own, of_points, of_condition, layer.bias.detach()))
        return result


@dataclass(frozen=True)
class SplitLayer:
    """A layer of a `ConditionedMLP` with O outputs; a weight without columns is absent.

    Attributes:
        of_hidden: (O, H) of the outputs of the layer before.
        of_points: (O, A).
        of_condition: (O, E).
        bias: (O,).
    """

    of_hidden: Tensor
    of_points: Tensor
    of_condition: Tensor
    bias: Tensor


def _enter(weight: Tensor, bias: Tensor, inputs: Tensor, condition: Tensor) -> Tensor:
    """What a layer's weight (O, A + E) and bias (O,) make of inputs (N, A) and B conditions:
    (B · N, O)."""
    sizes = [weight.shape[1] - condition.shape[-1], condition.shape[-1]]
    of_points, of_condition = _split_inputs(weight, sizes)
    of_points = widen(of_points, inputs.shape[-1])
    with torch.autocast(inputs.device.type, enabled=False):  # few numbers that move all points
        bias = nn.functional.linear(condition, of_condition, bias)
    if condition.ndim == 1:
        return nn.functional.linear(inputs, of_points, bias)
    shared = nn.functional.linear(inputs, of_points)
    return (shared + bias[:, None].to(shared.dtype)).flatten(0, 1)


def _split_inputs(weight: Tensor, sizes: list[int]) -> tuple[Tensor, Tensor]:
    """A layer's weight (O, A + E) for some of its inputs (O, A) and for the others (O, E)."""
    # Split rather than sliced: the gradient of each slice would be as large as the weight.
    first, second = weight.split(sizes, dim=1)
    if weight.is_cuda:
        return first, second
    # On the CPU the gradient of one with gaps is multiplied in an order that is several times
    # slower for few outputs.
    return first.contiguous(), second.contiguous()


class Drivers(nn.Module):
    """Colour and deformation by expression and by pose (Eq. 2 and 3).

    Layers are Gaussian Head Avatar's, in proportion to ``width`` (256 there). The deformations
    start at zero, so that training begins from the neutral shape in every timestep.

    Args:
        expression_size: E.
        feature_size: F.
        colour_size: K.
        width: units of a hidden layer.
    """

    def __init__(self, expression_size: int, feature_size: int, colour_size: int, width: int):
        super().__init__()
        pose, point = encoded_size(POSE_SIZE), encoded_size(3)
        self.expression_colour = ConditionedMLP(
            [feature_size + expression_size, width, width, colour_size]
        )
        self.pose_colour = ConditionedMLP([feature_size + pose, width // 2, colour_size])
        self.expression_deformation = ConditionedMLP([point + expression_size, *[width] * 5, 3])
        self.pose_deformation = ConditionedMLP([point + pose, width, width, 3])
        for network in (self.expression_deformation, self.pose_deformation):
            for parameter in network.layers[-1].parameters():
                nn.init.zeros_(parameter)


class DrivingRange(nn.Module):
    """Keeps what drives the networks where they have learned.

    Beyond the expressions of the training they extrapolate, and skin changes its colour. Here a
    driving vector is clamped, along each principal axis of the training's, to their extremes; what
    was trained on passes unchanged. A new one clamps nothing.

    Args:
        size: D = E + G + A, numbers that drive a timestep.
    """

    centre: Tensor
    axes: Tensor
    low: Tensor
    high: Tensor

    def __init__(self, size: int):
        super().__init__()
        most = torch.finfo(torch.float32).max
        self.register_buffer("centre", torch.zeros(size))
        self.register_buffer("axes", torch.eye(size))
        self.register_buffer("low", torch.full((size,), -most))
        self.register_buffer("high", torch.full((size,), most))

    @torch.no_grad()
    def fit(self, driving: Tensor) -> None:
        """Take the extremes from all timesteps (T, D) of the training, in place."""
        rows = driving.double()
        centred = rows - rows.mean(dim=0)
        axes = torch.linalg.eigh(centred.T @ centred).eigenvectors
        along = centred @ axes
        self.centre.copy_(rows.mean(dim=0))
        self.axes.copy_(axes)
        self.low.copy_(along.amin(dim=0))
        self.high.copy_(along.amax(dim=0))

    def forward(self, driving: Tensor) -> Tensor:
        """Driving (D,), within the range."""
        # Sums, as products of matrices may be rounded to TF32 or bfloat16.
        along = ((driving - self.centre)[:, None] * self.axes).sum(dim=0)
        excess = along - along.clamp(self.low, self.high)
        return driving - (excess * self.axes).sum(dim=1)


def expression_weights(points: Tensor, landmarks: Tensor, near: float, far: float) -> Tensor:
    """Weight (N,) of the expression at each point; the rest is the pose's.

    ``clamp((far - d) / (far - near), 0, 1)`` with d the *squared* distance to the nearest landmark.

    Args:
        points: (N, 3) canonical.
        landmarks: (L, 3) of the neutral face, canonical.
        near: squared distance up to which it is one, canonical units squared.
        far: squared distance from which on it is zero.
    """
    with torch.no_grad():
        # Not torch.cdist, which is slow on CUDA, or would need products that TF32 makes wrong.
        axes = zip(points.unbind(dim=1), landmarks.unbind(dim=1), strict=True)
        squares = [(of_points[:, None] - of_landmarks).square() for of_points, of_landmarks in axes]
        nearest = (squares[0] + squares[1] + squares[2]).argmin(dim=1)
    squared = (points - landmarks.index_select(0, nearest)).square().sum(dim=-1)
    return ((far - squared) / (far - near)).clamp(0, 1)
