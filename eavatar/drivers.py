"""The networks that drive colour and shape by expression and by pose, shared by both stages.

Expression drives what is near the landmarks of the neutral face and head pose drives the rest
(hair, neck, shoulders), blended by *squared* distance as Gaussian Head Avatar's code has it.
Letters: N points, E expression coefficients, F feature and K colour channels. A pose is
``(6,)``: axis-angle in radians, then translation in metres.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import cast

import torch
from torch import Tensor, nn

from eavatar.networks import LEAKY_SLOPE, MLP, encode_position, encoded_size

POSE_SIZE = 6


class ConditionedMLP(MLP):
    """An `MLP` whose last inputs are the same for all points.

    They enter as a bias of the two layers that see the input, which gives what concatenating N
    copies would give and costs nothing per point.
    """

    def forward(self, inputs: Tensor, condition: Tensor) -> Tensor:  # type: ignore[override]
        """Inputs (N, A) and a condition (B,), with A + B = sizes[0], to (N, sizes[-1])."""
        hidden = inputs
        for index, layer in enumerate(cast("list[nn.Linear]", self.layers)):
            if index == self.skip:
                hidden = torch.cat([hidden, inputs], dim=-1)
            weight: Tensor = layer.weight
            bias: Tensor = layer.bias
            if index in (0, self.skip):
                columns = hidden.shape[-1]
                bias = bias + weight[:, columns:] @ condition
                weight = weight[:, :columns]
            hidden = nn.functional.linear(hidden, weight, bias)
            if index < len(self.layers) - 1:
                hidden = nn.functional.leaky_relu(hidden, LEAKY_SLOPE)
        return hidden


class Drivers(nn.Module):
    """Colour and deformation by expression and by pose (Eq. 2 and 3).

    Layers are Gaussian Head Avatar's, in proportion to ``width`` (256 there). The deformations
    start at zero, so that training begins from the neutral shape in every timestep.

    Args:
        expression_size: E. feature_size: F. colour_size: K.
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

    def colour(self, features: Tensor, expression: Tensor, pose: Tensor, weights: Tensor) -> Tensor:
        """Blended colour (N, K), before any squashing (Eq. 3).

        Args:
            features: (N, F). expression: (E,). pose: (6,).
            weights: (N,) share of the expression, from `expression_weights`.
        """
        encoded = encode_position(pose)
        return blend(
            weights,
            features,
            lambda chosen: self.expression_colour(chosen, expression),
            lambda chosen: self.pose_colour(chosen, encoded),
        )

    def raw_expression_deformation(self, points: Tensor, expression: Tensor) -> Tensor:
        """Displacement (N, 3) in (-1, 1) of canonical points, neither scaled nor weighted."""
        return torch.tanh(self.expression_deformation(encode_position(points), expression))

    def raw_pose_deformation(self, points: Tensor, pose: Tensor) -> Tensor:
        """Displacement (N, 3) in (-1, 1) of canonical points, neither scaled nor weighted."""
        return torch.tanh(self.pose_deformation(encode_position(points), encode_position(pose)))


def blend(
    weights: Tensor,
    inputs: Tensor,
    by_expression: Callable[[Tensor], Tensor],
    by_pose: Callable[[Tensor], Tensor],
) -> Tensor:
    """``w · by_expression + (1 - w) · by_pose``, each evaluated only where its share is not 0.

    Args:
        weights: (N,) in [0, 1]. inputs: (N, A).
        by_expression, by_pose: (M, A) to (M, B), point by point.
    Returns:
        (N, B).
    """
    near, far = (weights > 0).nonzero()[:, 0], (weights < 1).nonzero()[:, 0]
    first = weights[near, None] * by_expression(inputs[near])
    second = (1 - weights[far, None]) * by_pose(inputs[far])
    result = inputs.new_zeros(len(inputs), first.shape[1])
    return result.index_add(0, near, first).index_add(0, far, second)


def expression_weights(points: Tensor, landmarks: Tensor, near: float, far: float) -> Tensor:
    """Share (N,) of the expression at each point; the rest belongs to the pose.

    ``clamp((far - d) / (far - near), 0, 1)`` with d the *squared* distance to the nearest landmark.

    Args:
        points: (N, 3) canonical. landmarks: (L, 3) of the neutral face, canonical.
        near, far: squared distances, canonical units squared.
    """
    with torch.no_grad():
        nearest = torch.cdist(points, landmarks).argmin(dim=1)
    squared = (points - landmarks[nearest]).square().sum(dim=-1)
    return ((far - squared) / (far - near)).clamp(0, 1)
