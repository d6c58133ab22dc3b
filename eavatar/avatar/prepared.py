"""The networks of an avatar that does not change any more, at the points that it has.

Between two frames only expression and pose change. What the networks' layers make of the points
alone is computed once: it needs memory for each Gaussian, and no gradient passes it.
Letters: N points, H inputs of a layer, O outputs, E numbers that drive it, K colour channels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from eavatar.avatar.drivers import ConditionedMLP
from eavatar.avatar.gaussians import (
    Arrangement,
    Generator,
    NeutralGaussians,
    Outputs,
    join_outputs,
)
from eavatar.avatar.networks import LEAKY_SLOPE, encode_position


@dataclass(frozen=True)
class PreparedLayer:
    """A layer of a `ConditionedMLP` at fixed points.

    Attributes:
        of_hidden: (H, O) contiguous; (0, O) in the first layer.
        of_points: (N, O) what it makes of the points, bias included; None where they do not enter.
        of_condition: (O, E); (O, 0) where that does not enter.
        bias: (O,) if `of_points` is None.
    """

    of_hidden: Tensor
    of_points: Tensor | None
    of_condition: Tensor
    bias: Tensor

    def __call__(self, hidden: Tensor, condition: Tensor) -> Tensor:
        """Outputs (N, O) of the layer before's (N, H) and of a condition (E,)."""
        if self.of_points is None:
            return torch.addmm(self.bias, hidden, self.of_hidden)
        bias = self.of_condition @ condition
        if len(self.of_hidden) == 0:
            return self.of_points + bias
        return torch.addmm(self.of_points, hidden, self.of_hidden).add_(bias)


@dataclass(frozen=True)
class PreparedMLP:
    """A `ConditionedMLP` at fixed points, in float32."""

    layers: Sequence[PreparedLayer]

    @classmethod
    def of(cls, network: ConditionedMLP, points: Tensor) -> PreparedMLP:
        """With the inputs (N, A) of the points."""
        return cls(
            [
                PreparedLayer(
                    layer.of_hidden.T.contiguous(),
                    nn.functional.linear(points, layer.of_points, layer.bias)
                    if layer.of_points.shape[1]
                    else None,
                    layer.of_condition.contiguous(),
                    layer.bias,
                )
                for layer in network.split(points.shape[1])
            ]
        )

    def __call__(self, condition: Tensor) -> Tensor:
        """Outputs (N, O) under a condition (E,)."""
        first, *others = self.layers
        hidden = first(condition, condition)
        for layer in others:
            hidden = layer(nn.functional.leaky_relu_(hidden, LEAKY_SLOPE), condition)
        return hidden


@dataclass(frozen=True)
class PreparedDriver:
    """The three networks of a driver."""

    colours: PreparedMLP
    deformation: PreparedMLP
    attributes: PreparedMLP

    def __call__(self, condition: Tensor) -> Tensor:
        """(N, K + 3 + 8), a driver's part of `Outputs`, under a condition (E,)."""
        return join_outputs(
            self.colours(condition), self.deformation(condition), self.attributes(condition)
        )


@dataclass(frozen=True)
class PreparedNetworks:
    """What takes the place of `Generator.evaluate`.

    Attributes:
        by_expression: on the Gaussians that the expression has a weight in.
        by_pose: likewise.
        resting: as of `Outputs`.
    """

    by_expression: PreparedDriver
    by_pose: PreparedDriver
    resting: Tensor | None

    @classmethod
    @torch.no_grad()
    def of(
        cls,
        generator: Generator,
        neutral: NeutralGaussians,
        arrangement: Arrangement,
        from_neutral: bool,
    ) -> PreparedNetworks:
        """Arguments as of `Generator.evaluate`."""
        features, points = torch.tanh(neutral.features), encode_position(neutral.positions)
        near, far, nets = arrangement.near, arrangement.far, generator.drivers
        by_expression = PreparedDriver(
            PreparedMLP.of(nets.expression_colour, features[:near]),
            PreparedMLP.of(nets.expression_deformation, points[:near]),
            PreparedMLP.of(generator.expression_attributes, features[:near]),
        )
        by_pose = PreparedDriver(
            PreparedMLP.of(nets.pose_colour, features[far:]),
            PreparedMLP.of(nets.pose_deformation, points[far:]),
            PreparedMLP.of(generator.pose_attributes, features[far:]),
        )
        resting = None
        if from_neutral:
            still = features.new_zeros(len(generator.seen.centre))
            resting = torch.tanh(by_expression.deformation(still))
        return cls(by_expression, by_pose, resting)

    def __call__(self, expression: Tensor, pose: Tensor) -> Outputs:
        """At an expression (E,) and an encoded pose (54,)."""
        return Outputs(self.by_expression(expression), self.by_pose(pose), self.resting)
