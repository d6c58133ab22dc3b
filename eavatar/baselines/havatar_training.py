"""The training of HAvatar: patches of the field, then whole images through the upsampler."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import adaptive_avg_pool2d

from eavatar.baselines.conditions import DeformingMesh
from eavatar.baselines.havatar import NAME, HAvatar, HavatarModelSettings
from eavatar.baselines.pixels import choose_pixels, look_up, pixel_centres, squared_error
from eavatar.baselines.plane_field import TwoRays
from eavatar.baselines.training import FieldTraining, Values, train_field
from eavatar.baselines.volume import Composite
from eavatar.data.frames import FrameSet, unpack
from eavatar.device import choose_device
from eavatar.settings import HavatarDrawing, HavatarSettings, TorsoSettings
from eavatar.training.loop import seed_everything
from eavatar.training.losses import rgb_loss
from eavatar.training.perceptual import Perceptual, load_perceptual

MIN_DEPTH = 1e-4  # optical depth, under the logarithm of alpha
FIRST_WEIGHTS = TorsoSettings(enabled=True, start=0.1, end=0.6)  # decimetres below the chin


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
        """Parameters of the optimiser: the upsampler's with their own rate, and all others."""
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
            pair = [(v * visible).view(shape) for v in (passes[1].colours[..., :3], truth)]
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
        images = self.havatar.upsample(passes[1].colours, view.style)
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

    def _render(self, view: _View, rays: TwoRays) -> tuple[Composite, Composite]:
        planes = self.havatar.planes(view.expressions, view.style)
        ends = self.havatar.interval(rays.riding)
        passes: tuple[Composite, Composite] = self.havatar(
            planes, rays, ends, self.settings.density_noise
        )
        return passes

    def _field_losses(
        self,
        passes: tuple[Composite, Composite],
        truth: Tensor,
        mask: Tensor,
        visible: Tensor,
        view: _View,
    ) -> Values:
        """The terms that both phases have: of rays (B, N), by the names of their weights."""
        # Cross-entropy of alpha = 1 - exp(-depth), whose gradient does not end where alpha is 1.
        depth = passes[1].depth.clamp(min=MIN_DEPTH)
        entropy = (1 - mask) * depth - mask * torch.log(-torch.expm1(-depth))
        entropy = entropy[..., None] * visible
        return {
            "coarse": squared_error(passes[0].colours[..., :3], truth, visible),
            "fine": squared_error(passes[1].colours[..., :3], truth, visible),
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
