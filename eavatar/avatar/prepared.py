"""The networks of an avatar that does not change any more, at the points that it has.

Between two frames only expression and pose change. What the networks' layers make of the points
alone is computed once: it needs memory for each Gaussian, and no gradient passes it.
Letters: N points, H inputs of a layer, O outputs, E numbers that drive it, K colour channels.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from eavatar.avatar.drivers import ConditionedMLP
from eavatar.avatar.gaussians import (
    RESIDUALS,
    Arrangement,
    Generator,
    NeutralGaussians,
    Outputs,
    join_outputs,
)
from eavatar.avatar.networks import LEAKY_SLOPE, encode_position
from eavatar.device import runs_triton

Driver = Callable[[Tensor], Tensor]
"""(N, K + 3 + 8) of a condition (E,): a driver's part of `Outputs`."""
Networks = Sequence[tuple[ConditionedMLP, Tensor]]
"""A driver's, of colours, deformation and attributes, each with its inputs (N, A)."""


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
    """The three networks of a driver: of colours, deformation and attributes, in this order."""

    networks: Sequence[PreparedMLP]

    def __call__(self, condition: Tensor) -> Tensor:
        """As of `Driver`."""
        return join_outputs(*(network(condition) for network in self.networks))


@dataclass(frozen=True)
class PreparedNetworks:
    """What takes the place of `Generator.evaluate`.

    Attributes:
        by_expression: on the Gaussians that the expression has a weight in.
        by_pose: likewise.
        resting: as of `Outputs`.
    """

    by_expression: Driver
    by_pose: Driver
    resting: Tensor | None

    def __call__(self, expression: Tensor, pose: Tensor) -> Outputs:
        """At an expression (E,) and an encoded pose (54,)."""
        return Outputs(self.by_expression(expression), self.by_pose(pose), self.resting)


@torch.no_grad()
def prepare_networks(
    generator: Generator, neutral: NeutralGaussians, arrangement: Arrangement, from_neutral: bool
) -> PreparedNetworks | None:
    """What takes the place of `Generator.evaluate`, whose arguments these are.

    Returns:
        None in mixed precision where there is no fused kernel: float32 would be slower than the
        layers in bfloat16.
    """
    features, points = torch.tanh(neutral.features), encode_position(neutral.positions)
    nets = generator.drivers
    by_expression = [
        (nets.expression_colour, features[: arrangement.near]),
        (nets.expression_deformation, points[: arrangement.near]),
        (generator.expression_attributes, features[: arrangement.near]),
    ]
    by_pose = [
        (nets.pose_colour, features[arrangement.far :]),
        (nets.pose_deformation, points[arrangement.far :]),
        (generator.pose_attributes, features[arrangement.far :]),
    ]
    make = _make_fused if generator.mixed_precision else _make_float32
    expressed, posed = make(by_expression), make(by_pose)
    if expressed is None or posed is None:
        return None
    resting = None
    if from_neutral:
        still = expressed(features.new_zeros(len(generator.seen.centre)))
        resting = still[:, -3 - RESIDUALS : -RESIDUALS].contiguous()
    return PreparedNetworks(expressed, posed, resting)


def _make_float32(networks: Networks) -> Driver:
    return PreparedDriver([PreparedMLP.of(*each) for each in networks])


def _make_fused(networks: Networks) -> Driver | None:
    if not _fuses(networks[0][1].device):
        return None
    from eavatar.avatar.fused import FusedDriver, FusedMLP, can_fuse  # needs Triton

    if not all(can_fuse(network, inputs.shape[1]) for network, inputs in networks):
        return None
    return FusedDriver.of([FusedMLP.of(*each) for each in networks])


def _fuses(device: torch.device) -> bool:
    """Whether the fused kernel is for a device: on others than Hopper its registers would spill."""
    on_hopper = device.type == "cuda" and torch.cuda.get_device_capability(device)[0] == 9
    return on_hopper and runs_triton()
