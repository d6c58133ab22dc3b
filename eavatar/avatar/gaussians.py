"""The neutral Gaussians and the dynamic generator that moves and colours them (Eq. 1–8).

Positions are canonical (decimetres) until the last step. Letters: N Gaussians, E expression
coefficients, F feature and K colour channels.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from scipy.spatial import cKDTree
from torch import Tensor, nn

from eavatar.avatar.base_motion import Attachment, BaseMotion, mouth_box
from eavatar.avatar.control import Neighbours, find_neighbours, propagate
from eavatar.avatar.drivers import (
    POSE_SIZE,
    ConditionedMLP,
    Drivers,
    DrivingRange,
    expression_weights,
)
from eavatar.avatar.networks import align_columns, encode_position, encoded_size
from eavatar.avatar.shading import Shading, estimate_normals, inside_head
from eavatar.avatar.torso import Torso
from eavatar.rendering.splatting import Gaussians
from eavatar.settings import ControlSettings

DUPLICATE_DISTANCE = 1e-4  # canonical units: a hundredth of a millimetre
CELL_HALVINGS = 20  # of the logarithm of the size of the cells: to 1e-5 of it
MAX_FEATURE = 1 - 1e-4  # atanh is infinite at 1
MIN_SPACING = 1e-7  # squared canonical units, under the root of the first scales (GHA)
RESIDUALS = 8  # scale 3, rotation 4, opacity 1


class NeutralGaussians(nn.Module):
    """The learned set of Eq. 1, and where its members were when the set last changed.

    Attributes:
        positions: (N, 3) canonical.
        features: (N, F), used through tanh.
        rotations: (N, 4) quaternions wxyz of any length.
        scales: (N, 3) logarithms of canonical units.
        opacities: (N, 1) logits.
        anchors: (N, 3) positions at the last change of the set: what the neighbour graph and the
            driver weights are made from, so that they depend on nothing but this file.
    """

    anchors: Tensor

    def __init__(self, positions: Tensor, features: Tensor, scales: Tensor, opacity: float):
        super().__init__()
        count = len(positions)
        upright = positions.new_tensor([1.0, 0.0, 0.0, 0.0]).repeat(count, 1)
        logit = math.log(opacity / (1 - opacity))
        self.positions = nn.Parameter(positions)
        self.features = nn.Parameter(features)
        self.rotations = nn.Parameter(upright)
        self.scales = nn.Parameter(scales)
        self.opacities = nn.Parameter(positions.new_full((count, 1), logit))
        self.register_buffer("anchors", positions.clone())

    def __len__(self) -> int:
        return len(self.positions)

    @torch.no_grad()
    def reorder(self, order: Tensor) -> None:
        """Bring the Gaussians into another order, in place.

        Args:
            order: (N,) the present index of each.
        """
        for parameter in self.parameters():
            parameter.data, parameter.grad = parameter[order], None
        self.anchors = self.anchors[order]

    @classmethod
    def empty(cls, count: int, feature_size: int) -> NeutralGaussians:
        """A set of the given size to be filled from a file."""
        points = torch.zeros(count, 3)
        return cls(points, torch.zeros(count, feature_size), torch.zeros(count, 3), opacity=0.5)

    @classmethod
    def from_surface(
        cls, vertices: Tensor, features: Tensor, mouth: Tensor, opacity: float
    ) -> NeutralGaussians:
        """A Gaussian for each distinct surface vertex and mouth point, as large as their spacing.

        Args:
            vertices: (V, 3) neutral surface of stage I.
            features: (V, F) in [-1, 1].
            mouth: (M, 3) points inside the mouth, whose features start at zero.
            opacity: of all Gaussians, in (0, 1).
        """
        rounded = (vertices / DUPLICATE_DISTANCE).round().cpu().numpy()
        first = np.sort(np.unique(rounded, axis=0, return_index=True)[1])
        kept = torch.from_numpy(first).to(vertices.device)
        inverse = torch.atanh(features[kept].clamp(-MAX_FEATURE, MAX_FEATURE))
        positions = torch.cat([vertices[kept], mouth])
        inverse = torch.cat([inverse, inverse.new_zeros(len(mouth), inverse.shape[1])])
        points = positions.cpu().numpy()
        nearest = cKDTree(points).query(points, k=4)[0][:, 1:]
        spacing = np.maximum((nearest**2).mean(axis=1), MIN_SPACING)
        logarithm = torch.from_numpy(0.5 * np.log(spacing)).float().to(positions.device)
        return cls(positions, inverse, logarithm[:, None].repeat(1, 3), opacity)


def merge_points(points: Tensor, features: Tensor, most: int) -> tuple[Tensor, Tensor]:
    """Points (V, 3) and their features (V, F), or fewer: at most so many, about evenly spread.

    Marching tetrahedra leave crowds of vertices where a corner of the grid is near the surface.
    The points of a cubic cell become their mean (vertex clustering, Rossignac and Borrel 1993), in
    the smallest cells that leave few enough.

    Args:
        points: (V, 3).
        features: (V, F).
        most: at least 8.
    """
    if len(points) <= most:
        return points, features
    low, high = DUPLICATE_DISTANCE, (points.amax(0) - points.amin(0)).max().item()
    for _ in range(CELL_HALVINGS):
        middle = math.sqrt(low * high)
        low, high = (middle, high) if _cells(points, middle).max() >= most else (low, middle)
    cells = _cells(points, high)
    count = cells.bincount()[:, None]
    rows = torch.cat([points, features], dim=1)
    sums = rows.new_zeros(len(count), rows.shape[1]).index_add(0, cells, rows)
    merged = sums / count
    return merged[:, :3], merged[:, 3:]


def _cells(points: Tensor, size: float) -> Tensor:
    """The number (V,) of the cubic cell of each point, among the cells that hold any."""
    places = (points / size).floor().long()
    places = places - places.amin(dim=0)
    x, y, z = places.unbind(dim=1)
    _, height, depth = (places.amax(dim=0) + 1).tolist()
    cells: Tensor = ((x * height + y) * depth + z).unique(return_inverse=True)[1]
    return cells


def mouth_interior(landmarks: Tensor, count: int) -> Tensor:
    """Random points (count, 3) on a sheet behind the lips, for teeth and tongue, canonical.

    Args:
        landmarks: (68, 3) of the neutral face, canonical.
        count: of points.
    """
    lower, upper = mouth_box(landmarks)
    return torch.lerp(lower, upper, torch.rand(count, 3).to(landmarks))


@dataclass(frozen=True)
class Arrangement:
    """What follows from where the Gaussians are; made anew only when the set changes.

    Attributes:
        weights: (N,) of the expression, the rest is the pose's.
        near: the expression has no weight from this Gaussian on.
        far: the pose has no weight before this Gaussian; at most ``near``.
        neighbours: the neighbour graph of the control Gaussians.
        attachment: where the base motion's mesh carries them; None without base motion.
        normals: (N, 3) of the surface that they lie on, canonical; None where nothing is shaded.
    """

    weights: Tensor
    near: int
    far: int
    neighbours: Neighbours
    attachment: Attachment | None = None
    normals: Tensor | None = None

    @classmethod
    def of(
        cls,
        anchors: Tensor,
        landmarks: Tensor,
        near: float,
        far: float,
        control: ControlSettings,
        base: BaseMotion | None = None,
        shaded: bool = False,
    ) -> Arrangement:
        """From the anchors (N, 3) and the neutral landmarks (68, 3), both canonical.

        Right for any order of the Gaussians, and least work where their weights descend.
        """
        weights = expression_weights(anchors, landmarks, near, far)
        numbers = torch.arange(len(weights), device=weights.device)
        return cls(
            weights,
            int(torch.where(weights > 0, numbers + 1, 0).max()),
            int(torch.where(weights < 1, numbers, len(weights)).min()),
            find_neighbours(anchors, control.radius, control.neighbours),
            base.attach(anchors) if base else None,
            estimate_normals(anchors, inside_head(landmarks)) if shaded else None,
        )


@dataclass(frozen=True)
class Generated:
    """The Gaussians of one timestep.

    Attributes:
        gaussians: in world space (Eq. 8).
        displacements: (N,) norm of the raw expression displacement (Eq. 9, before scaling and
            weighting), the base motion in the same unit included; zero where the expression has no
            weight; no gradient.
        controls: (N,) bool (Eq. 10).
    """

    gaussians: Gaussians
    displacements: Tensor
    controls: Tensor


@dataclass(frozen=True)
class CanonicalGaussians:
    """The Gaussians of one timestep before the head pose (Eq. 2–6), in canonical space.

    Attributes:
        points: (N, 3) canonical.
        quaternions: (N, 4) wxyz of length 1.
        scales: (N, 3) logarithms of canonical units.
        opacities: (N,) logits.
        colours: (N, K) before the sigmoid.
        displacements: (N,) as in `Generated`.
        controls: (N,) likewise.
    """

    points: Tensor
    quaternions: Tensor
    scales: Tensor
    opacities: Tensor
    colours: Tensor
    displacements: Tensor
    controls: Tensor


@dataclass(frozen=True)
class Outputs:
    """What the networks give for one timestep: columns of colour, displacement through tanh, and
    attributes, in full precision.

    Attributes:
        by_expression: (near, K + 3 + 8) of the Gaussians that the expression has a weight in.
        by_pose: (N - far, K + 3 + 8) of those that the pose has one in.
        resting: (near, 3) the expression's displacement where it is neutral; no gradient. None if
            it is not asked for.
    """

    by_expression: Tensor
    by_pose: Tensor
    resting: Tensor | None


Prepared = Callable[[Tensor, Tensor], Outputs]
"""What takes the place of `Generator.evaluate`, of an expression and an encoded pose."""


@dataclass(frozen=True)
class Driven:
    """What the networks add for one timestep, blended.

    Attributes:
        colours: (N, K).
        shifts: (N, 3) canonical.
        residuals: (N, 8).
        displacements: (N,) as in `Generated`.
    """

    colours: Tensor
    shifts: Tensor
    residuals: Tensor
    displacements: Tensor


class Generator(nn.Module):
    """The networks of Eq. 2–6: stage I's drivers, and attribute residuals by the same drivers.

    The paper feeds the attribute networks with rotation, scale and opacity; as in Gaussian Head
    Avatar, on which it builds, one network per driver reads the feature and gives all residuals.

    Args:
        drivers: colour and deformation networks, trained by stage I.
        torso: what stays behind when the head turns, as in stage I.
        expression_size: E.
        feature_size: F.
        width: units of a hidden layer of the attribute networks.
        deform_scale: largest displacement per axis, canonical units.
        attribute_scale: factor of the attribute residuals.
        base: what the expression moves before the drivers learn; None for nothing, as in the paper.
        shaded: colours change with the head's rotation.

    Attributes:
        seen: the range of the training, outside which the networks are not asked; the base motion,
            which is linear, follows any expression.
        mixed_precision: run the networks in bfloat16.
    """

    def __init__(
        self,
        drivers: Drivers,
        torso: Torso,
        expression_size: int,
        feature_size: int,
        width: int,
        deform_scale: float,
        attribute_scale: float,
        base: BaseMotion | None = None,
        shaded: bool = False,
    ):
        super().__init__()
        self.drivers, self.torso, self.base = drivers, torso, base
        self.shading = Shading() if shaded else None
        self.seen = DrivingRange(expression_size)
        self.expression_attributes = ConditionedMLP(
            [feature_size + expression_size, width, width, width, RESIDUALS]
        )
        self.pose_attributes = ConditionedMLP(
            [feature_size + encoded_size(POSE_SIZE), width // 2, RESIDUALS]
        )
        self.deform_scale, self.attribute_scale = deform_scale, attribute_scale
        self.mixed_precision = False

    def forward(
        self,
        neutral: NeutralGaussians,
        arrangement: Arrangement,
        control: ControlSettings,
        expression: Tensor,
        pose: Tensor,
        scale: float,
        prepared: Prepared | None = None,
    ) -> Generated:
        """The Gaussians of a timestep in world space; arguments as of `deform`.

        Args:
            scale: canonical units to metres.
        """
        deformed = self.deform(neutral, arrangement, control, expression, pose, prepared)
        weights = self.torso.head_weight(neutral.anchors)
        means, quaternions = self.torso.to_world(
            deformed.points, deformed.quaternions, weights, pose, scale
        )
        gaussians = Gaussians(
            means,
            quaternions,
            scales=scale * torch.exp(deformed.scales),
            opacities=torch.sigmoid(deformed.opacities),
            features=self.shade(deformed.colours, arrangement, weights, pose),
        )
        return Generated(gaussians, deformed.displacements, deformed.controls)

    def shade(
        self, colours: Tensor, arrangement: Arrangement, weights: Tensor, pose: Tensor
    ) -> Tensor:
        """The features (N, K) of Gaussians at a pose, RGB under the lamps.

        Args:
            colours: (N, K) before the sigmoid.
            arrangement: of the set.
            weights: (N,) of the head: the torso does not turn.
            pose: (6,) axis-angle and translation.
        """
        features = torch.sigmoid(colours)
        if self.shading is None or arrangement.normals is None:
            return features
        gains = self.shading(arrangement.normals, pose[:3], self.torso.rest_pose[:3])
        gains = 1 + weights[:, None] * (gains - 1)
        return torch.cat([features[:, :3] * gains, features[:, 3:]], dim=1)

    def deform(
        self,
        neutral: NeutralGaussians,
        arrangement: Arrangement,
        control: ControlSettings,
        expression: Tensor,
        pose: Tensor,
        prepared: Prepared | None = None,
    ) -> CanonicalGaussians:
        """The Gaussians of a timestep in canonical space.

        Args:
            neutral: the set.
            arrangement: of the set.
            control: which displacements are propagated, and how far.
            expression: (E,).
            pose: (6,) axis-angle and translation.
            prepared: of the same set, arrangement and networks, which it takes the place of.
        """
        base = self._base(arrangement, expression)
        seen, encoded = self.seen(expression), encode_position(pose)
        if prepared is None:
            outputs = self.evaluate(neutral, arrangement, control.from_neutral, seen, encoded)
        else:
            outputs = prepared(seen, encoded)
        driven = self._blend(outputs, arrangement, base)
        controls = driven.displacements > control.threshold
        shifts = driven.shifts
        if control.enabled:
            shifts = propagate(
                shifts,
                controls,
                arrangement.neighbours,
                control.radius,
                control.sigma,
                control.mode,
            )
        residuals = self.attribute_scale * driven.residuals
        # The base motion is not propagated: neighbours on the two lips go apart.
        points = neutral.positions + shifts
        if base is not None:
            points = points + base
        return CanonicalGaussians(
            points,
            nn.functional.normalize(neutral.rotations + residuals[:, 3:7], dim=-1),
            neutral.scales + residuals[:, :3],
            (neutral.opacities + residuals[:, 7:])[:, 0],
            driven.colours,
            driven.displacements,
            controls,
        )

    def _base(self, arrangement: Arrangement, expression: Tensor) -> Tensor | None:
        """The base motion (N, 3) of an expression (E,), canonical."""
        if self.base is None or arrangement.attachment is None:
            return None
        return arrangement.attachment.carry(self.base(expression))

    def evaluate(
        self,
        neutral: NeutralGaussians,
        arrangement: Arrangement,
        from_neutral: bool,
        expression: Tensor,
        pose: Tensor,
    ) -> Outputs:
        """Run each driver on the Gaussians where it has a weight.

        Args:
            neutral: the set.
            arrangement: of the set.
            from_neutral: find the displacement where the expression is neutral, too.
            expression: (E,).
            pose: (54,) encoded.
        """
        features = torch.tanh(neutral.features)
        points = align_columns(encode_position(neutral.positions))  # for all networks at once
        if self.mixed_precision:  # once rather than in every network
            features, points = features.bfloat16(), points.bfloat16()
        near, far = arrangement.near, arrangement.far
        # One slice each, as the gradient of a slice is as large as the whole.
        expressed, expressed_points = features[:near], points[:near]
        posed, posed_points = features[far:], points[far:]
        nets, resting = self.drivers, None

        with torch.autocast(features.device.type, torch.bfloat16, enabled=self.mixed_precision):
            by_expression = [
                nets.expression_colour(expressed, expression),
                nets.expression_deformation(expressed_points, expression),
                self.expression_attributes(expressed, expression),
            ]
            by_pose = [
                nets.pose_colour(posed, pose),
                nets.pose_deformation(posed_points, pose),
                self.pose_attributes(posed, pose),
            ]
            if from_neutral:
                with torch.no_grad():
                    rest = nets.expression_deformation(expressed_points, 0 * expression)
                    resting = torch.tanh(rest.float())
        return Outputs(join_outputs(*by_expression), join_outputs(*by_pose), resting)

    def _blend(self, outputs: Outputs, arrangement: Arrangement, base: Tensor | None) -> Driven:
        """Both drivers' outputs by their weights, all networks in one blend."""
        near, far, weights = arrangement.near, arrangement.far, arrangement.weights
        sizes = [outputs.by_pose.shape[1] - 3 - RESIDUALS, 3, RESIDUALS]
        with torch.no_grad():
            moved = outputs.by_expression.split(sizes, dim=1)[1]
            if outputs.resting is not None:
                moved = moved - outputs.resting
            if base is not None:
                moved = moved + base[:near] / self.deform_scale
            norms = moved.norm(dim=1) * (weights[:near] > 0)
        first = weights[:near, None] * outputs.by_expression
        second = (1 - weights[far:, None]) * outputs.by_pose
        both = first[far:] + second[: near - far]
        blended = torch.cat([first[:far], both, second[near - far :]])
        colours, shifts, residuals = blended.split(sizes, dim=1)
        displacements = nn.functional.pad(norms, (0, len(weights) - near))
        return Driven(colours, self.deform_scale * shifts, residuals, displacements)


def join_outputs(colours: Tensor, deformation: Tensor, residuals: Tensor) -> Tensor:
    """What one driver's networks give, (M, K + 3 + 8), in full precision."""
    return torch.cat([colours.float(), torch.tanh(deformation.float()), residuals.float()], dim=1)
