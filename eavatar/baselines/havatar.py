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

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn.functional import (
    adaptive_avg_pool2d,
    binary_cross_entropy,
    grid_sample,
    interpolate,
    relu,
)

from eavatar.avatar.files import fitting, read_description, read_tensors
from eavatar.avatar.torso import Torso
from eavatar.baselines.conditions import (
    FRONT_CHANNELS,
    LOWER,
    SIDE_CHANNELS,
    UPPER,
    Conditions,
    DeformingMesh,
)
from eavatar.baselines.hull import Hull
from eavatar.baselines.pixels import choose_pixels, look_up, pixel_centres, squared_error
from eavatar.baselines.style_unet import StyleUNet
from eavatar.baselines.training import FieldTraining, Values, train_field
from eavatar.baselines.volume import (
    Composite,
    Rays,
    cast_rays,
    composite,
    encode,
    spread,
    spread_by_weight,
)
from eavatar.data.frames import FrameSet, unpack
from eavatar.data.methods import ViewRequest
from eavatar.device import choose_device
from eavatar.settings import HavatarDrawing, HavatarSettings, TorsoSettings, validate
from eavatar.training.loop import seed_everything
from eavatar.training.losses import rgb_loss
from eavatar.training.perceptual import Perceptual, load_perceptual
from eavatar.transforms import axis_angle_to_matrix

NAME = "havatar"
FREQUENCIES = 8
BEFORE, AFTER = 1.6, 1.0  # of the distance to the head, where rays are sampled, canonical units
MIDDLE_SIZE = 16  # of the StyleUNets
BLEND_SIZE = 64  # cells along each axis of the weights
POSE_SIZE = 12  # of the inverse motion of the head, which joins the code in the style
POINTS = {"cuda": 2**21, "cpu": 2**17}  # of one evaluation when drawing
FIRST_WEIGHTS = TorsoSettings(enabled=True, start=0.1, end=0.6)  # decimetres below the chin


class HavatarModelSettings(HavatarDrawing):
    """What drawing needs, in ``model.yaml``."""

    expression_size: int = Field(ge=1, description="E")
    vertices: int = Field(ge=1, description="of the mesh")
    faces: int = Field(ge=1, description="of the mesh")
    scale: float = Field(gt=0, description="canonical units to metres")


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
        nn.init.zeros_(self.upsampler.exit.bias)  # type: ignore[arg-type]
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
        description = read_description(folder, NAME)
        model = cls(validate(HavatarModelSettings, description, str(folder / "model.yaml")))
        with fitting(folder):
            model.load_state_dict(read_tensors(folder))
        return model.eval()

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
    ) -> list[tuple[Tensor, Tensor]]:
        """Colours with features (B, N, 3 + D), on white, and alpha (B, N) of both passes.

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
        return [(first.colours, first.alpha), (second.colours, second.alpha)]

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
            image[part] = self(planes, rays.some(part), ends)[1][0][0]
        return image


class HavatarTraining(FieldTraining):
    """First patches of the field itself, then whole images through the upsampler.

    Args: as of `FieldTraining`, and LPIPS, or None for a loss without it.
    """

    def __init__(
        self,
        settings: HavatarSettings,
        seed: int,
        frames: FrameSet,
        model: HAvatar,
        perceptual: Perceptual | None,
    ):
        self.settings, self.havatar, self.perceptual = settings, model, perceptual
        super().__init__(settings, seed, frames, model)
        self.field_graph = self.capture(self.update_field)
        self.image_graph = self.capture(self.update_image)
        self.weights = settings.weights.model_dump()

    def groups(self) -> list[dict[str, Any]]:
        upsampler = list(self.havatar.upsampler.parameters())
        known = {id(parameter) for parameter in upsampler}
        others = [p for p in self.havatar.parameters() if id(p) not in known and p.requires_grad]
        return [
            {"params": [*others, self.codes], "lr": self.settings.learning_rate},
            {
                "params": upsampler,
                "lr": self.settings.upsampler_learning_rate,
                "betas": (0.0, 0.99),
            },
        ]

    def step(self, step: int) -> Values:
        """One optimiser step; the losses."""
        settings, images = self.settings, step >= self.settings.field_steps
        if images:
            self.field_graph.restart()  # gives back its memory
        self.rates.rates[0] = settings.later_learning_rate if images else settings.learning_rate
        self.rates.set_step(min(step, settings.decay_steps))  # a tenth is the least
        self.optimiser.set_step(step)
        batch = self.loader.batch(step)
        graph = self.image_graph if images else self.field_graph
        return graph(batch.timesteps, batch.cameras[:, 0], batch.pixels[:, 0])

    def update_field(self, _: object, timesteps: Tensor, cameras: Tensor, pixels: Tensor) -> Values:
        """A step of the first phase; arguments as of `NerfaceTraining.update`."""
        view = self._view(timesteps, cameras)
        size = self.settings.patch
        middle = choose_pixels(pixels[..., 3] > 0, 1, 1.0)
        limits = zip(middle.unbind(dim=-1), (pixels.shape[2], pixels.shape[1]), strict=True)
        corners = [(place - size // 2).clamp(0, most - size) for place, most in limits]
        corner = torch.stack(corners, dim=-1)
        chosen = corner + pixel_centres(size, pixels.device).long()
        rays = self.havatar.cast(chosen + 0.5, view.intrinsics, view.cameras, view.poses)
        passes = self._render(view, rays)
        truth, mask = unpack(look_up(pixels, chosen))
        visible = look_up(view.visible[..., None], chosen)
        losses = self._field_losses(passes, truth, mask, visible, view)
        if self.perceptual is not None:
            shape = (len(pixels), size, size, 3)
            pair = [(v * visible).view(shape) for v in (passes[1][0][..., :3], truth)]
            losses["lpips_patch"] = self._distance(*pair)
        return self.descend(losses, self.weights)

    def update_image(self, _: object, timesteps: Tensor, cameras: Tensor, pixels: Tensor) -> Values:
        """A step of the second phase; arguments as of `NerfaceTraining.update`."""
        view = self._view(timesteps, cameras)
        centres, intrinsics = self.havatar.at_field_size(view.intrinsics)
        centres = centres.expand(len(pixels), -1, -1)
        rays = self.havatar.cast(centres, intrinsics, view.cameras, view.poses)
        passes = self._render(view, rays)
        truth, mask = unpack(pixels)
        small = [self._shrink(v) for v in (truth, mask[..., None], view.visible[..., None])]
        losses = self._field_losses(passes, small[0], small[1][..., 0], small[2], view)
        images = self.havatar.upsample(passes[1][0], view.style)
        losses["image"] = rgb_loss(images, truth, view.visible)
        if self.perceptual is not None:
            shown = view.visible[..., None]
            losses["lpips"] = self._distance(images * shown, truth * shown)
        return self.descend(losses, self.weights)

    def _view(self, timesteps: Tensor, cameras: Tensor) -> _View:
        frames = self.frames
        codes = self.codes.index_select(0, timesteps)
        poses = frames.poses.index_select(0, timesteps)
        return _View(
            frames.expression.index_select(0, timesteps),
            poses,
            codes,
            self.havatar.style(poses, codes),
            frames.intrinsics.index_select(0, cameras),
            frames.world_to_camera.index_select(0, cameras),
            frames.visible.index_select(0, cameras),
        )

    def _render(self, view: _View, rays: TwoRays) -> list[tuple[Tensor, Tensor]]:
        planes = self.havatar.planes(view.expressions, view.style)
        ends = self.havatar.interval(rays.riding)
        passes: list[tuple[Tensor, Tensor]] = self.havatar(
            planes, rays, ends, self.settings.density_noise
        )
        return passes

    def _field_losses(
        self,
        passes: list[tuple[Tensor, Tensor]],
        truth: Tensor,
        mask: Tensor,
        visible: Tensor,
        view: _View,
    ) -> Values:
        """The terms that both phases have: of rays (B, N), by the names of their weights."""
        alpha = passes[1][1].clamp(1e-4, 1 - 1e-4)
        entropy = binary_cross_entropy(alpha, mask, reduction="none")[..., None] * visible
        return {
            "coarse": squared_error(passes[0][0][..., :3], truth, visible),
            "fine": squared_error(passes[1][0][..., :3], truth, visible),
            "mask": entropy.sum() / visible.sum().clamp(min=1),
            "latent": torch.linalg.vector_norm(view.codes, dim=1).mean(),
            "blend": self.havatar.blend.roughness(),
        }

    def _shrink(self, images: Tensor) -> Tensor:
        """Means (B, field_size², D) of images (B, H, W, D)."""
        size = self.settings.field_size
        return adaptive_avg_pool2d(images.permute(0, 3, 1, 2), size).flatten(2).mT

    def _distance(self, images: Tensor, truth: Tensor) -> Tensor:
        assert self.perceptual is not None
        with self.havatar.autocast():
            distances: Tensor = self.perceptual(images, truth)
        return distances.mean()


@dataclass(frozen=True)
class _View:
    """What a step knows of its B images beside their pixels."""

    expressions: Tensor
    poses: Tensor
    codes: Tensor
    style: Tensor
    intrinsics: Tensor
    cameras: Tensor
    visible: Tensor


def prepare_havatar(
    settings: HavatarSettings,
    seed: int,
    mesh: DeformingMesh,
    capture: Path,
    face: Path,
    device: torch.device,
    held_out: Sequence[str] = (),
) -> HavatarTraining:
    """The task before its first step; arguments as of `train_havatar`.

    Raises:
        UserError: as `train_havatar`.
    """
    perceptual = None
    if settings.weights.lpips > 0 or settings.weights.lpips_patch > 0:
        perceptual = load_perceptual("vgg", device, settings.lpips_required)
    memory = settings.run.image_memory_gb
    frames = FrameSet.read(capture, face, "train", settings.image_size, memory, held_out).to(device)
    expressions = frames.expression.shape[1]
    drawing = HavatarModelSettings(
        **settings.model_dump(include=set(HavatarDrawing.model_fields)),
        expression_size=expressions,
        vertices=len(mesh.neutral),
        faces=len(mesh.faces),
        scale=frames.scale,
    )
    model = HAvatar(drawing, settings.run.mixed_precision)
    model.conditions.fill(mesh)
    model.to(device)
    model.torso.requires_grad_(False)
    model.torso.place(FIRST_WEIGHTS, frames.neutral_landmarks, frames.poses, frames.scale)
    model.blend.start(model.torso)
    if settings.skip_empty:
        model.hull.carve(frames)
    return HavatarTraining(settings, seed, frames, model, perceptual)


def train_havatar(
    settings: HavatarSettings,
    seed: int,
    mesh: DeformingMesh,
    capture: Path,
    face: Path,
    output: Path,
    held_out: Sequence[str] = (),
) -> Path:
    """Train HAvatar and write ``model.safetensors``, ``model.yaml`` and ``log.csv``.

    Args:
        settings: the block ``havatar``.
        seed: of all random draws.
        mesh: of the person; of the basis the leading components are used, as many as are tracked.
        capture: ``results/<subject>/capture``.
        face: ``results/<subject>/face``.
        output: ``results/<subject>/havatar/<variant>``.
        held_out: cameras that are not trained on, as of `eavatar.data.camera_split`.
    Returns:
        The path of the model.
    Raises:
        UserError: an input is missing or does not fit, LPIPS is required and missing, or the
            training diverges.
    """
    seed_everything(seed)
    task = prepare_havatar(settings, seed, mesh, capture, face, choose_device(), held_out)
    return train_field(NAME, settings, task.havatar.settings, task, output, mesh=mesh.digest)
