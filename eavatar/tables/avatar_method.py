"""Our avatars as a method that is compared."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from eavatar.avatar.files import read_avatar
from eavatar.avatar.model import Avatar, CameraBatch
from eavatar.data.shots import Shot


@dataclass(frozen=True)
class AvatarMethod:
    """`Method` over a trained avatar."""

    avatar: Avatar
    drivable = True

    @classmethod
    def open(cls, folder: Path, device: torch.device) -> AvatarMethod:
        """The avatar of ``splat/<variant>``."""
        return cls(read_avatar(folder).to(device))

    @property
    def image_size(self) -> int:
        return self.avatar.settings.image_size

    @torch.no_grad()
    def render(self, shot: Shot) -> Tensor:
        pose = torch.cat([shot.rotation, shot.translation])
        size = self.image_size
        cameras = CameraBatch(shot.intrinsics, shot.world_to_camera, size, size)
        return self.avatar(shot.expression, pose, cameras).fine.clamp(0, 1)
