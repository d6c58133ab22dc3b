"""Parts of HAvatar's radiance field: planes of features, blend of head and neck, the network.

Letters: B images, M points of each.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.functional import grid_sample, relu

from eavatar.avatar.torso import Torso
from eavatar.baselines.conditions import LOWER, UPPER
from eavatar.baselines.volume import Rays, encode
from eavatar.settings import HavatarDrawing

FREQUENCIES = 8
BLEND_SIZE = 64  # cells along each axis of the weights


@dataclass(frozen=True)
class Planes:
    """What conditions the field of B images.

    Attributes:
        front: (B, D, P, P) features over x and y, the first row at the top.
        side: (B, D, P, P) likewise over z and y.
    """

    front: Tensor
    side: Tensor

    def sample(self, places: Tensor) -> Tensor:
        """Features (B, M, 2 D) at places (B, M, 3) of the box, in [-1, 1]; 0 outside of it."""
        x, y, z = places.unbind(dim=-1)
        parts = []
        for plane, column in ((self.front, x), (self.side, z)):
            # In bfloat16 a place would be off by half a cell.
            grid = torch.stack([column, -y], dim=-1)[:, None]
            parts.append(grid_sample(plane.float(), grid, align_corners=False)[:, :, 0].mT)
        return torch.cat(parts, dim=-1)


@dataclass(frozen=True)
class TwoRays:
    """The same rays (B, N) in two spaces, the same distance along them being the same point.

    Attributes:
        riding: in canonical space, which moves with the head.
        resting: where the head rests, canonical units.
    """

    riding: Rays
    resting: Rays

    def some(self, part: Tensor) -> TwoRays:
        """Those with indices (K,), (B, K)."""
        riding, resting = (
            Rays(rays.origins[:, part], rays.directions[:, part])
            for rays in (self.riding, self.resting)
        )
        return TwoRays(riding, resting)


class Blend(nn.Module):
    """How much of a point moves with the head: weights in two volumes, learned.

    One volume has its place where the head rests, and says what stays; one moves with the head.
    """

    def __init__(self) -> None:
        super().__init__()
        self.logits = nn.Parameter(torch.zeros(2, BLEND_SIZE, BLEND_SIZE, BLEND_SIZE))

    @torch.no_grad()
    def start(self, torso: Torso) -> None:
        """Let the head end where a torso does."""
        half = 1 / BLEND_SIZE
        line = torch.linspace(1 - half, half - 1, BLEND_SIZE, device=self.logits.device)
        heights = LOWER[1] + (line + 1) / 2 * (UPPER[1] - LOWER[1])
        head = torso.head_weight(heights[:, None] * heights.new_tensor([0.0, 1, 0]))
        logits = torch.logit(torch.stack([1 - head, head]), eps=0.01)
        self.logits.copy_(logits[:, None, :, None].expand_as(self.logits))

    def forward(self, resting: Tensor, riding: Tensor) -> Tensor:
        """Places (B, M, 3) of points in the field, of two readings of them in [-1, 1].

        Args:
            resting: as if they stayed where the head rests.
            riding: as if they moved with the head.
        """
        weights = self.logits.sigmoid()
        pair = torch.cat([_look_up(weights[:1], resting), _look_up(weights[1:], riding)], dim=-1)
        share = pair / pair.sum(dim=-1, keepdim=True).clamp(min=1e-6)
        return share[..., :1] * resting + share[..., 1:] * riding

    def roughness(self) -> Tensor:
        """Mean absolute difference of neighbouring weights, a scalar."""
        weights = self.logits.sigmoid()
        return torch.stack([weights.diff(dim=axis).abs().mean() for axis in (1, 2, 3)]).mean()


def _look_up(volume: Tensor, places: Tensor) -> Tensor:
    """Values (B, M, 1) of a volume (1, Z, Y, X), first row at the top, at places (B, M, 3)."""
    batch, count = places.shape[:2]
    x, y, z = places.unbind(dim=-1)
    grid = torch.stack([x, -y, z], dim=-1).view(1, 1, 1, -1, 3)
    found = grid_sample(volume[None], grid, padding_mode="border", align_corners=False)
    return found.view(batch, count, 1)


class PlaneField(nn.Module):
    """Density, feature and colour of points: two layers, the feature, and the colour from it."""

    def __init__(self, settings: HavatarDrawing):
        super().__init__()
        inputs = 2 * settings.plane_channels + 3 * 2 * FREQUENCIES
        self.first = nn.Linear(inputs, settings.width)
        self.second = nn.Linear(settings.width, settings.width)
        self.density = nn.Linear(settings.width, 1)
        self.feature = nn.Linear(settings.width, settings.feature_size)
        self.colour = nn.Linear(settings.feature_size, 3)

    def forward(self, features: Tensor, points: Tensor) -> tuple[Tensor, Tensor]:
        """Densities (B, M) before the clamp, and colours with features (B, M, 3 + D).

        Args:
            features: (B, M, 2 K) of the planes.
            points: (B, M, 3) canonical.
        """
        inputs = torch.cat([features, encode(points, FREQUENCIES, with_input=False)], dim=-1)
        hidden = relu(self.second(relu(self.first(inputs))))
        feature = self.feature(hidden)
        colour = self.colour(feature).float().sigmoid()
        return self.density(hidden)[..., 0].float(), torch.cat([colour, feature.float()], dim=-1)
