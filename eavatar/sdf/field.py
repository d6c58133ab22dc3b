"""The head as a field: signed distance, features, and what expression and pose make of them.

All in canonical space, 1 unit = 1 dm. Letters: N points, S surface vertices, L = 68 landmarks,
B timesteps, E expression and F feature channels.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from eavatar.avatar.base_motion import BaseMotion
from eavatar.avatar.drivers import expression_weights
from eavatar.avatar.files import StageOne
from eavatar.avatar.model import HeadSettings
from eavatar.avatar.networks import MLP, encode_position, encoded_size
from eavatar.avatar.torso import Torso
from eavatar.io import LANDMARKS
from eavatar.sdf.attachment_table import AttachmentTable
from eavatar.sdf.tetrahedra import Cut, Grid, Surface, body_centred_grid, cut
from eavatar.settings import SdfSettings

# The canonical box: the head with hair, the neck, and the shoulders as far as GHA's crop shows.
LOWER = (-1.6, -1.8, -2.0)
UPPER = (1.6, 1.8, 1.4)

HIDDEN_LAYERS = 5  # of the geometry network, as GHA's
OFFSET_LIMIT = 0.25  # cells; the shorter edges have 0.87, so that no tetrahedron turns over
SIDES = 0.6  # cells from the box' sides to where it is closed: the grid's rim is within 0.5
CHUNK = 2**16  # points evaluated at once where no gradient is needed


@dataclass(frozen=True)
class Samples:
    """The field at N points.

    Attributes:
        sdf: (N,) positive outside.
        offsets: (N, 3) of grid vertices.
        features: (N, F) in (-1, 1).
    """

    sdf: Tensor
    offsets: Tensor
    features: Tensor


@dataclass(frozen=True)
class DrivenSurface:
    """The surface at B timesteps, canonical: before the head's rigid motion.

    Attributes:
        vertices: (B, S, 3).
        colours: (B, S, 3) RGB in (0, 1).
        landmarks: (B, L, 3) the neutral ones moved by the expression.
        base: (B, S, 3) what the base motion has moved of the vertices; no gradient.
        raw_expression: (B, P, 3) displacements in (-1, 1) by the expression, neither scaled nor
            weighted, of all vertices where its weight is not zero, and perhaps of others.
        raw_pose: (B, Q, 3) likewise by the pose.
        expressed: (P,) bool, where the expression's weight is not zero.
        posed: (Q,) bool, where the pose's weight is not zero.
    """

    vertices: Tensor
    colours: Tensor
    landmarks: Tensor
    base: Tensor
    raw_expression: Tensor
    raw_pose: Tensor
    expressed: Tensor
    posed: Tensor


class HeadField(nn.Module):
    """Signed distance and feature network (Eq. 14) with its drivers (Eq. 2 and 3).

    The surface is closed: where a body leaves the canonical box, it ends in a flat side.

    Args:
        settings: sizes of the networks and of the grid.
        expression_size: E.
        appearance_size: further coefficients beside them; E counts them, too, from here on.
        gaze_size: likewise of the gaze, which comes first.
        base: what the expression moves before the drivers learn; None for nothing, as in the paper.
    """

    lower: Tensor
    upper: Tensor

    def __init__(
        self,
        settings: SdfSettings,
        expression_size: int,
        appearance_size: int = 0,
        gaze_size: int = 0,
        base: BaseMotion | None = None,
    ):
        super().__init__()
        self.base, self.table = base, AttachmentTable.of(base) if base else None
        self.settings = settings
        self.head = HeadSettings.of(settings, expression_size, appearance_size, gaze_size)
        width, outputs = settings.width, 1 + 3 + settings.feature_size
        self.geometry = MLP([encoded_size(3), *[width] * HIDDEN_LAYERS, outputs])
        self.drivers = self.head.make_drivers()
        self.torso = Torso()
        self.neutral_landmarks = nn.Parameter(torch.zeros(LANDMARKS, 3))
        longest = max(upper - lower for lower, upper in zip(LOWER, UPPER, strict=True))
        cell = longest / settings.grid_resolution
        self.offset_limit = OFFSET_LIMIT * cell
        inset = SIDES * cell
        self.register_buffer("lower", torch.tensor(LOWER) + inset, persistent=False)
        self.register_buffer("upper", torch.tensor(UPPER) - inset, persistent=False)

    def grid(self) -> Grid:
        """The grid over the canonical box, on the field's device."""
        lower, upper = torch.tensor(LOWER), torch.tensor(UPPER)
        grid = body_centred_grid(lower, upper, self.settings.grid_resolution)
        device = self.neutral_landmarks.device
        return Grid(grid.vertices.to(device), grid.tetrahedra.to(device))

    def sample(self, points: Tensor) -> Samples:
        """The field at canonical points (N, 3) (Eq. 14); the distance alone is not squashed."""
        values = self.geometry(encode_position(points))
        squashed = torch.tanh(values[:, 1:])
        sdf = self._close(points, values[:, 0])
        return Samples(sdf, self.offset_limit * squashed[:, :3], squashed[:, 3:])

    @torch.no_grad()
    def distances(self, points: Tensor) -> Tensor:
        """Signed distances (N,) of many points, without gradients and in bounded memory."""
        chunks = points.split(CHUNK)
        return torch.cat([self.distances_encoded(encode_position(chunk)) for chunk in chunks])

    @torch.no_grad()
    def distances_encoded(self, encoded: Tensor) -> Tensor:
        """The same for points that `encode_position` has encoded, all at once."""
        return self._close(encoded[:, :3], self.geometry(encoded)[:, 0])

    def _close(self, points: Tensor, sdf: Tensor) -> Tensor:
        """Distances (N,) at points (N, 3) to the part within the box, whose sides close it."""
        beyond = torch.maximum(self.lower - points, points - self.upper).amax(dim=1)
        return torch.maximum(sdf, beyond)

    def surface(self, grid: Grid, distances: Tensor) -> Surface:
        """The neutral surface in a grid (Eq. 15) whose vertices have the distances (V,)."""
        return self.surface_through(*find_cut(grid, distances))

    def surface_through(self, points: Tensor, crossings: Cut) -> Surface:
        """The neutral surface through edges between grid vertices (U, 3), with gradients."""
        samples = self.sample(points)
        return crossings.surface(points + samples.offsets, samples.sdf, samples.features)

    def weights(self, points: Tensor) -> Tensor:
        """Weight (N,) of the expression at canonical points; the rest is the pose's."""
        near, far = self.settings.near, self.settings.far
        return expression_weights(points, self.neutral_landmarks, near, far)

    def result(self, surface: Surface) -> StageOne:
        """What stage II starts from, with the neutral surface."""
        return StageOne(
            self.head,
            self.drivers,
            self.torso,
            self.neutral_landmarks.detach(),
            surface.vertices.detach(),
            surface.features.detach(),
            self.geometry.state_dict(),
            self.base,
        )

    def drive(
        self,
        surface: Surface,
        expressions: Tensor,
        poses: Tensor,
        near_capacity: int | None = None,
        far_capacity: int | None = None,
    ) -> DrivenSurface:
        """The neutral surface under B expressions (B, E) and poses (B, 6) (Eq. 2 and 3).

        Each driver is evaluated only where its weight is not zero. At a landmark the weight of
        the expression is one, so it does not enter there.

        Args:
            surface: neutral.
            expressions: (B, E).
            poses: (B, 6).
            near_capacity: evaluate the expression at so many vertices, those of the largest
                weights. None for as many as have a weight, a host-device synchronisation.
            far_capacity: likewise of the pose.
        """
        nets, scale = self.drivers, self.settings.deform_scale
        points, features = surface.vertices, surface.features
        weights = self.weights(points)
        near, near_weights = _largest(weights * surface.present, near_capacity)
        far, far_weights = _largest((1 - weights) * surface.present, far_capacity)
        encoded_poses = encode_position(poses)
        expressed = torch.cat([points.index_select(0, near), self.neutral_landmarks])
        by_expression, at_landmarks = torch.tanh(
            nets.expression_deformation(encode_position(expressed), expressions)
        ).split([len(near), LANDMARKS], dim=1)
        by_pose = torch.tanh(
            nets.pose_deformation(encode_position(points.index_select(0, far)), encoded_poses)
        )
        colour_by_expression = nets.expression_colour(features.index_select(0, near), expressions)
        colour_by_pose = nets.pose_colour(features.index_select(0, far), encoded_poses)
        first = torch.cat([scale * by_expression, colour_by_expression[..., :3]], dim=-1)
        second = torch.cat([scale * by_pose, colour_by_pose[..., :3]], dim=-1)
        both = points.new_zeros(len(poses), len(points), 6)
        both = both.index_add(1, near, near_weights[:, None] * first)
        both = both.index_add(1, far, far_weights[:, None] * second)
        base, base_at_landmarks = self._base(
            torch.cat([points, self.neutral_landmarks]), expressions
        ).split([len(points), LANDMARKS], dim=1)
        moved = points + base + both[..., :3]
        return DrivenSurface(
            vertices=self.torso.hold_points(moved, self.torso.head_weight(points), poses),
            colours=torch.sigmoid(both[..., 3:]),
            landmarks=self.neutral_landmarks + base_at_landmarks + scale * at_landmarks,
            base=base,
            raw_expression=by_expression,
            raw_pose=by_pose,
            expressed=near_weights > 0,
            posed=far_weights > 0,
        )

    @torch.no_grad()
    def _base(self, points: Tensor, expressions: Tensor) -> Tensor:
        """The base motion (B, N, 3) of points (N, 3) under expressions (B, E)."""
        if self.base is None or self.table is None:
            return points.new_zeros(len(expressions), len(points), 3)
        return self.table.attach(self.base, points).carry(self.base(expressions))


def find_cut(grid: Grid, distances: Tensor) -> tuple[Tensor, Cut]:
    """Where the zero level of distances (V,) cuts a grid: the vertices (U, 3) at the ends of cut
    edges, at which alone the field enters the surface, and the cut in terms of those."""
    used, crossings = cut(grid, distances < 0).compact(len(grid.vertices))
    return grid.vertices.index_select(0, used), crossings


def _largest(weights: Tensor, capacity: int | None) -> tuple[Tensor, Tensor]:
    """Indices (P,) of the points with a weight, or of as many as the capacity, and their weights
    (P,) out of (S,)."""
    if capacity is None:
        index = (weights > 0).nonzero()[:, 0]
    else:
        index = weights.detach().argsort(descending=True, stable=True)[:capacity]
    return index, weights.index_select(0, index)
