"""HAvatar (Zhao et al., TOG 2023): a radiance field in two planes that images of a mesh condition.

Orthographic images of the morphable model's mesh with the present expression go through two
StyleUNets, which give a plane of features each: x and y from the front, y and z from the sides. A
small perceptron tells density, colour and a feature of a point from what the planes have at its
place; the field is rendered at a small size, and a third StyleUNet enlarges what comes out. A
learned blend holds neck and shoulders back when the head turns. Sizes, box, samples and losses are
the published ones (github.com/XChenZ/havatar) in the profile ``paper``. What differs:

- no adversarial loss: LPIPS with VGG in its place, as in Gaussian Head Avatar's comparison;
- the mesh is the fitted morphable model's in place of FaceVerse's, and its colours are places on
  the neutral face in place of a texture;
- frames of all cameras, a code for each timestep; drawn with the mean of the codes;
- the weights of the blend start as a step below the chin, in place of a training of their own;
- StyleUNets without wavelets and noise (`eavatar.baselines.style_unet`).

Letters: B images, N rays of each, S samples, E expression coefficients, L numbers of a code.
"""

from __future__ import annotations

from pathlib import Path
from typing import Self

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn.functional import interpolate, relu

from eavatar.avatar.files import read_model
from eavatar.avatar.torso import Torso
from eavatar.baselines.conditions import FRONT_CHANNELS, LOWER, SIDE_CHANNELS, UPPER, Conditions
from eavatar.baselines.hull import Hull
from eavatar.baselines.pixels import pixel_centres
from eavatar.baselines.plane_field import Blend, PlaneField, Planes, TwoRays
from eavatar.baselines.style_unet import StyleUNet
from eavatar.baselines.volume import Composite, Rays, cast_rays, composite, spread, spread_by_weight
from eavatar.data.methods import ViewRequest
from eavatar.settings import HavatarDrawing
from eavatar.transforms import axis_angle_to_matrix

NAME = "havatar"
BEFORE, AFTER = 1.6, 1.0  # of the distance to the head, where rays are sampled, canonical units
MIDDLE_SIZE = 16  # of the StyleUNets
POSE_SIZE = 12  # of the inverse motion of the head, which joins the code in the style
POINTS = {"cuda": 2**21, "cpu": 2**17}  # of one evaluation when drawing


class HavatarModelSettings(HavatarDrawing):
    """What drawing needs, in ``model.yaml``."""

    expression_size: int = Field(ge=1, description="E")
    vertices: int = Field(ge=1, description="of the mesh")
    faces: int = Field(ge=1, description="of the mesh")
    scale: float = Field(gt=0, description="canonical units to metres")


class HAvatar(nn.Module):
    """Mesh, planes, field, blend and upsampler; a `Method`.

    Args:
        settings: what drawing needs.
        mixed_precision: networks in bfloat16 where the device is CUDA.
    """

    code: Tensor
    lower: Tensor
    extent: Tensor
    drivable = True

    def __init__(self, settings: HavatarModelSettings, mixed_precision: bool = True):
        super().__init__()
        self.settings, self.mixed_precision = settings, mixed_precision
        shape = settings.vertices, settings.faces, settings.expression_size
        self.conditions = Conditions(*shape, settings.condition_size)
        style = settings.latent_size + POSE_SIZE

        def make(inputs: int) -> StyleUNet:
            sizes = settings.condition_size, MIDDLE_SIZE, settings.plane_size
            return StyleUNet(inputs, settings.plane_channels, *sizes, style, settings.channels)

        self.front, self.side = make(FRONT_CHANNELS), make(SIDE_CHANNELS)
        self.field, self.blend = PlaneField(settings), Blend()
        sizes = settings.field_size, MIDDLE_SIZE, settings.image_size
        inputs = 3 + settings.feature_size
        self.upsampler = StyleUNet(inputs, 3, *sizes, style, settings.channels)
        nn.init.zeros_(self.upsampler.exit.weight)  # plain interpolation at first
        nn.init.zeros_(self.upsampler.exit.bias)
        self.torso, self.hull = Torso(), Hull()
        self.register_buffer("code", torch.zeros(settings.latent_size))
        self.register_buffer("lower", torch.tensor(LOWER), persistent=False)
        extent = torch.tensor(UPPER) - torch.tensor(LOWER)
        self.register_buffer("extent", extent, persistent=False)

    @classmethod
    def read(cls, folder: Path) -> Self:
        """The model of ``havatar/<variant>``, on the CPU.

        Raises:
            UserError: a file is missing, unreadable, of an unknown format, or does not fit.
        """
        return read_model(folder, NAME, HavatarModelSettings, cls)

    @property
    def image_size(self) -> int:
        return self.settings.image_size

    def autocast(self) -> torch.autocast:
        """The precision of the networks."""
        precision = self.mixed_precision and self.code.is_cuda
        return torch.autocast(self.code.device.type, torch.bfloat16, enabled=precision)

    def style(self, poses: Tensor, codes: Tensor) -> Tensor:
        """(B, L + 12): codes (B, L) and what takes the head at poses (B, 6) back to rest."""
        rest = self.torso.rest_pose
        back = axis_angle_to_matrix(poses[:, :3]).mT @ axis_angle_to_matrix(rest[:3])
        shift = (rest[3:] - poses[:, 3:]) / self.settings.scale
        shift = (axis_angle_to_matrix(poses[:, :3]).mT @ shift[..., None])[..., 0]
        return torch.cat([codes, back.flatten(1), shift], dim=1)

    def planes(self, expressions: Tensor, style: Tensor) -> Planes:
        """The planes of expressions (B, E)."""
        front, side = self.conditions(expressions)
        with self.autocast():
            return Planes(self.front(front, style), self.side(side, style))

    def cast(self, pixels: Tensor, intrinsics: Tensor, cameras: Tensor, poses: Tensor) -> TwoRays:
        """Rays, as of `cast_rays`, in the head's canonical space and where the head rests."""
        rest = self.torso.rest_pose.expand_as(poses)
        scale = self.settings.scale
        riding, resting = (
            cast_rays(pixels, intrinsics, cameras, which, scale) for which in (poses, rest)
        )
        return TwoRays(riding, resting)

    def interval(self, rays: Rays) -> tuple[Tensor, Tensor]:
        """Distances (...) between which rays are sampled; equal where there is nothing."""
        middle = torch.linalg.vector_norm(rays.origins, dim=-1)
        near, far = (middle - BEFORE).clamp(min=0), middle + AFTER
        if self.settings.skip_empty:
            first, last = self.hull.interval(rays)
            near = torch.maximum(near, first)
            far = torch.maximum(torch.minimum(far, last), near)
        return near, far

    def forward(
        self, planes: Planes, rays: TwoRays, ends: tuple[Tensor, Tensor], noise: float | None = None
    ) -> tuple[Composite, Composite]:
        """What rays (B, N) see in both passes: colours with features (B, N, 3 + D), on white.

        Args:
            planes: of B images.
            rays: (B, N).
            ends: see `interval`.
            noise: while training, deviation of what is added to the densities, samples being
                jittered; None when drawing.
        """
        jitter, settings = noise is not None, self.settings
        distances = spread(*ends, settings.samples, jitter)
        first = self._render(planes, rays, distances, noise)
        added = spread_by_weight(distances, first.weights.detach(), settings.fine_samples, jitter)
        every_second = torch.cat([distances[..., ::2], added], dim=-1).sort(dim=-1).values
        second = self._render(planes, rays, every_second, noise)
        return first, second

    def _render(
        self, planes: Planes, rays: TwoRays, distances: Tensor, noise: float | None
    ) -> Composite:
        """What rays (B, N) see of the field at distances (B, N, S)."""
        riding, resting = (self._place(kind.at(distances)) for kind in (rays.riding, rays.resting))
        places = self.blend(resting.flatten(1, 2), riding.flatten(1, 2))
        points = self.lower + (places + 1) / 2 * self.extent
        with self.autocast():
            densities, values = self.field(planes.sample(places), points)
        if noise:
            densities = densities + noise * torch.randn_like(densities)
        inside = (places.abs() <= 1).all(dim=-1)
        densities = (relu(densities) * inside).view(distances.shape)
        return composite(densities, values.view(*distances.shape, -1), distances, background=1.0)

    def _place(self, points: Tensor) -> Tensor:
        """Canonical points (..., 3) in the box' coordinates, [-1, 1]."""
        return 2 * (points - self.lower) / self.extent - 1

    def upsample(self, rendered: Tensor, style: Tensor) -> Tensor:
        """Images (B, image_size, image_size, 3), not clamped.

        Args:
            rendered: (B, field_size², 3 + D), row by row.
            style: (B, L + 12).
        """
        size = self.settings.field_size
        small = rendered.mT.unflatten(2, (size, size))
        target = (self.image_size, self.image_size)
        with self.autocast():
            residual: Tensor = self.upsampler(small, style)
        plain = interpolate(small[:, :3], target, mode="bilinear", align_corners=False)
        return (plain + residual.float()).permute(0, 2, 3, 1)

    def at_field_size(self, intrinsics: Tensor) -> tuple[Tensor, Tensor]:
        """Centres of the pixels (1, field_size², 2) of the small images, and intrinsics of them."""
        size = self.settings.field_size
        factor = size / self.image_size
        smaller = torch.cat([factor * intrinsics[:, :2], intrinsics[:, 2:]], dim=1)
        return pixel_centres(size, intrinsics.device)[None], smaller

    @torch.no_grad()
    def render(self, request: ViewRequest) -> Tensor:
        """As of `Method.render`."""
        pose = torch.cat([request.rotation, request.translation])[None]
        style = self.style(pose, self.code[None])
        planes = self.planes(request.expression[None], style)
        pixels, intrinsics = self.at_field_size(request.intrinsics)
        images = []
        for matrix, camera in zip(intrinsics, request.world_to_camera, strict=True):
            rays = self.cast(pixels, matrix[None], camera[None], pose)
            images.append(self.upsample(self._draw(planes, rays)[None], style)[0])
        return torch.stack(images).clamp(0, 1)

    def _draw(self, planes: Planes, rays: TwoRays) -> Tensor:
        """Colours with features (N, 3 + D) of the rays (1, N) of an image, some at a time."""
        near, far = self.interval(rays.riding)
        channels = 3 + self.settings.feature_size
        image = near.new_ones(near.shape[1], channels)
        met = (far > near)[0].nonzero()[:, 0]
        for part in met.split(max(POINTS[near.device.type] // self.settings.samples, 1)):
            ends = near[:, part], far[:, part]
            image[part] = self(planes, rays.some(part), ends)[1].colours[0]
        return image
