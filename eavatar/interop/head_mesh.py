"""The head's surface of stage I at any timestep.

Letters: S vertices, F faces.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor

from eavatar.arrays import Int64
from eavatar.avatar.base_motion import Attachment
from eavatar.avatar.drivers import expression_weights
from eavatar.avatar.files import StageOne, read_stage_one
from eavatar.avatar.networks import encode_position
from eavatar.errors import UserError
from eavatar.interop.avatar_splats import to_pose
from eavatar.io import Mesh, Timestep, read_mesh
from eavatar.transforms import axis_angle_to_matrix, rotate


@dataclass(frozen=True)
class HeadMesh:
    """Stage I's neutral surface and what drives it.

    Attributes:
        stage: the model.
        faces: (F, 3) of its vertices.
    """

    stage: StageOne
    faces: Int64

    @classmethod
    def read(cls, folder: Path) -> HeadMesh:
        """The surface of ``sdf/<variant>``.

        Raises:
            UserError: a file is missing or malformed, or they do not belong together.
        """
        stage, mesh = read_stage_one(folder), read_mesh(folder / "neutral.ply")
        if len(mesh.vertices) != len(stage.vertices):
            raise UserError(
                f"{folder}/neutral.ply has {len(mesh.vertices)} vertices and the model beside it "
                f"{len(stage.vertices)}; run `train_sdf` again."
            )
        return cls(stage, mesh.faces)

    @property
    def scale(self) -> float:
        """Canonical units to metres."""
        return float(self.stage.torso.scale)

    @cached_property
    def head_weights(self) -> Tensor:
        """(S,) of the head; the rest is the torso's."""
        weights: Tensor = self.stage.torso.head_weight(self.stage.vertices).detach()
        return weights

    @cached_property
    def attachment(self) -> Attachment | None:
        """Where the base motion carries the vertices; None without base motion."""
        return self.stage.base.attach(self.stage.vertices) if self.stage.base else None

    @torch.no_grad()
    def deform(self, timestep: Timestep) -> tuple[Tensor, Tensor]:
        """Vertices (S, 3), canonical, before the pose moves them, and their RGB (S, 3).

        Raises:
            UserError: the timestep has a gaze or an appearance that the model does not know.
        """
        stage, head, nets = self.stage, self.stage.head, self.stage.drivers
        points, pose = stage.vertices, encode_position(to_pose(timestep))
        expression = self._driving(timestep)
        weights = expression_weights(points, stage.landmarks, head.near, head.far)[:, None]
        encoded = encode_position(points)
        shifts = torch.lerp(
            torch.tanh(nets.pose_deformation(encoded, pose)),
            torch.tanh(nets.expression_deformation(encoded, expression)),
            weights,
        )
        colours = torch.lerp(
            nets.pose_colour(stage.features, pose),
            nets.expression_colour(stage.features, expression),
            weights,
        )
        moved = points + head.deform_scale * shifts
        if stage.base is not None and self.attachment is not None:
            moved = moved + self.attachment.carry(stage.base(expression))
        return moved, torch.sigmoid(colours[:, :3])

    def _driving(self, timestep: Timestep) -> Tensor:
        """(E + G + A,); no gaze is straight, and no appearance the mean one."""
        head, parts = self.stage.head, []
        for name in ("expression", "gaze", "appearance"):
            size, values = getattr(head, f"{name}_size"), torch.from_numpy(getattr(timestep, name))
            if len(values) not in (0, size):
                raise UserError(
                    f"the tracking has {len(values)} numbers of the {name} and the surface of "
                    f"stage I {size}; train it again with the present tracking."
                )
            parts.append(values if len(values) else torch.zeros(size))
        return torch.cat(parts)

    @torch.no_grad()
    def at(self, timestep: Timestep, world: bool) -> Mesh:
        """The coloured surface of a timestep, in metres of the world or in canonical units."""
        points, colours = self.deform(timestep)
        pose = to_pose(timestep)
        vertices = self.stage.torso.hold_points(points, self.head_weights, pose[None])[0]
        if world:
            vertices = rotate(self.scale * vertices, axis_angle_to_matrix(pose[:3])) + pose[3:]
        return Mesh(vertices.numpy(), self.faces, colours.numpy())
