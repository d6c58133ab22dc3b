"""Our avatars as a method that is compared."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from eavatar.avatar.files import read_avatar
from eavatar.avatar.model import Avatar, CameraBatch
from eavatar.data.methods import ViewRequest


@dataclass(frozen=True)
class AvatarMethod:
    """`Method` over a trained avatar."""

    avatar: Avatar
    drivable = True

    @classmethod
    def open(cls, folder: Path, device: torch.device) -> AvatarMethod:
        """The avatar of ``splat/<variant>``."""
        return cls(read_avatar(folder).to(device).prepare())

    @property
    def image_size(self) -> int:
        return self.avatar.settings.image_size

    @torch.no_grad()
    def render(self, request: ViewRequest) -> Tensor:
        pose = torch.cat([request.rotation, request.translation])
        size = self.image_size
        cameras = CameraBatch(request.intrinsics, request.world_to_camera, size, size)
        driving = torch.cat([request.expression, request.gaze, request.appearance])
        images: Tensor = self.avatar(driving, pose, cameras).fine.clamp(0, 1)
        return images
