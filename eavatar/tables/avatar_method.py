"""Our avatars as a method that is compared."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from eavatar.avatar.model import Avatar, read_avatar
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

    def render(self, shot: Shot) -> Tensor:
        return self.avatar.render(
            shot.expression,
            shot.rotation,
            shot.translation,
            shot.intrinsics,
            shot.world_to_camera,
        )
