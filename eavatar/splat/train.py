"""Stage II: train the dynamic Gaussians and the upsampler on the images (Sec. 3.4, Eq. 19)."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn.functional import avg_pool2d

from eavatar.drivers import Drivers
from eavatar.errors import UserError
from eavatar.frames import FrameSet, Views
from eavatar.io import require
from eavatar.losses import rgb_loss
from eavatar.perceptual import Perceptual, load_perceptual
from eavatar.settings import SplatSettings, read_yaml
from eavatar.splat.avatar import Avatar, Picture, Sizes, write_avatar
from eavatar.splat.gaussians import NeutralGaussians, mouth_interior
from eavatar.splat.splitting import choose_parents, split
from eavatar.training import fingerprint, finish, seed_everything, train

logger = logging.getLogger(__name__)


def train_splat(
    settings: SplatSettings, seed: int, capture: Path, face: Path, sdf: Path, output: Path
) -> Path:
    """Train stage II and write ``model.safetensors``, ``model.yaml`` and ``log.csv``.

    Args:
        capture: ``results/<subject>/capture``. face: ``…/face``. sdf: ``…/sdf/<variant>``.
        output: ``…/splat/<variant>``.
    Raises:
        UserError: an input is missing or does not fit, LPIPS is required and missing, or the
            training diverges.
    """
    seed_everything(seed)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    perceptual = None
    if settings.weights.lpips > 0:
        perceptual = load_perceptual("vgg", device, settings.lpips_required)
    frames = FrameSet.read(capture, face, "train", settings.image_size).to(device)
    avatar = start_avatar(settings, sdf, frames).to(device)
    task = SplatTraining(settings, frames, avatar, perceptual)
    run = fingerprint(
        settings, seed, avatar.sizes, frames.sequences, avatar.neutral.positions.sum().item()
    )
    train(task, settings.steps, settings.checkpoint_every, output, "splat", run)
    path = write_avatar(output, avatar)
    finish(output)
    return path


def start_avatar(settings: SplatSettings, sdf: Path, frames: FrameSet) -> Avatar:
    """The avatar before training: stage I's surface and networks, all else new.

    Raises:
        UserError: stage I's model is missing, malformed, or of another number of expressions.
    """
    description = read_yaml(require(sdf / "model.yaml", "stage I's description"))
    try:
        tensors = load_file(require(sdf / "model.safetensors", "stage I's model"))
        sizes = Sizes(**description["sizes"], scale=frames.scale)
        drivers = Drivers(sizes.expression, sizes.feature, sizes.colour, sizes.width)
        drivers.load_state_dict(_below("drivers.", tensors))
        landmarks = tensors["neutral_landmarks"]
        vertices, features = tensors["surface.positions"], tensors["surface.features"]
    except (KeyError, TypeError, RuntimeError, OSError, SafetensorError) as error:
        reason = " ".join(str(error).split())
        raise UserError(f"{sdf} holds no stage I model of this version: {reason}.") from error
    if sizes.expression != frames.expression.shape[1]:
        raise UserError(
            f"{sdf} was trained with {sizes.expression} expression coefficients, but the tracking "
            f"has {frames.expression.shape[1]}; run `train_sdf` again."
        )
    mouth = mouth_interior(landmarks, settings.mouth_points)
    neutral = NeutralGaussians.from_surface(vertices, features, mouth, settings.opacity)
    return Avatar(settings, sizes, drivers, neutral, landmarks)


def _below(prefix: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}


class SplatTraining:
    """What the training loop runs: one timestep a step, in a few cameras."""

    def __init__(
        self,
        settings: SplatSettings,
        frames: FrameSet,
        avatar: Avatar,
        perceptual: Perceptual | None,
    ):
        self.settings, self.frames, self.avatar = settings, frames, avatar
        self.perceptual = perceptual
        self.first_count = len(avatar.neutral)
        self.peaks = frames.expression.new_zeros(self.first_count)
        self.pose_deltas = nn.Parameter(frames.expression.new_zeros(len(frames), 6))
        self.optimiser = self._make_optimiser()
        self.rates = [group["lr"] for group in self.optimiser.param_groups]

    def _make_optimiser(self) -> torch.optim.Adam:
        rates, avatar, neutral = self.settings.learning_rates, self.avatar, self.avatar.neutral
        groups: list[tuple[Iterable[Tensor], float]] = [
            (avatar.generator.parameters(), rates.networks),
            (avatar.upsampler.parameters(), rates.upsampler),
            ([neutral.positions], rates.positions),
            ([neutral.features], rates.features),
            ([neutral.rotations], rates.rotations),
            ([neutral.scales], rates.scales),
            ([neutral.opacities], rates.opacities),
            ([self.pose_deltas], rates.pose_deltas),
        ]
        return torch.optim.Adam([{"params": list(p), "lr": rate} for p, rate in groups], fused=True)

    def step(self, step: int) -> dict[str, float]:
        """One optimiser step; the losses, the count and the shares above the two thresholds."""
        settings = self.settings
        self._decay_learning_rates(step)
        frame, cameras = self._draw()
        pose = torch.cat([self.frames.rotation[frame], self.frames.translation[frame]])
        picture = self.avatar(
            self.frames.expression[frame],
            pose + self.pose_deltas[frame],
            self.frames.intrinsics[cameras],
            self.frames.world_to_camera[cameras],
        )
        losses = self._losses(picture, self.frames.views(frame, cameras))
        weights = settings.weights.model_dump()
        total = torch.stack([weights[name] * value for name, value in losses.items()]).sum()
        self.optimiser.zero_grad()
        total.backward()
        self.optimiser.step()
        generated = picture.generated
        self.peaks = torch.maximum(self.peaks, generated.displacements)
        logged = {
            "loss": total,
            **losses,
            "gaussians": torch.tensor(len(self.avatar.neutral)),
            "control_share": generated.controls.float().mean(),
            "split_share": (self.peaks > settings.split.threshold).float().mean(),
        }
        self._split(step)
        values = torch.stack([value.detach().to(total) for value in logged.values()]).tolist()
        return dict(zip(logged, values, strict=True))

    def _draw(self) -> tuple[int, list[int]]:
        """A timestep and cameras at random."""
        frame = int(torch.randint(len(self.frames), ()))
        order = torch.randperm(len(self.frames.serials))
        return frame, order[: self.settings.views_per_step].tolist()

    def _decay_learning_rates(self, step: int) -> None:
        """Exponentially from 1 to the factor ``learning_rates.final`` over the whole training."""
        factor = self.settings.learning_rates.final ** (step / self.settings.steps)
        for group, rate in zip(self.optimiser.param_groups, self.rates, strict=True):
            group["lr"] = rate * factor

    def _losses(self, picture: Picture, views: Views) -> dict[str, Tensor]:
        """The unweighted terms of Eq. 19 and GHA's coarse term, by the names of their weights."""
        losses = {
            "rgb": rgb_loss(picture.fine, views.images, views.visible),
            "coarse": rgb_loss(
                picture.coarse[..., :3],
                _shrink(views.images, self.settings.upsampling),
                _shrink(views.visible[..., None], self.settings.upsampling)[..., 0],
            ),
        }
        if self.perceptual is not None:
            losses["lpips"] = self._perceptual_loss(self.perceptual, picture.fine, views)
        return losses

    def _perceptual_loss(self, perceptual: Perceptual, fine: Tensor, views: Views) -> Tensor:
        """LPIPS on one random patch of every view, with the padding of the crop blanked."""
        side = min(self.settings.lpips_patch, self.settings.image_size)
        row, column = torch.randint(self.settings.image_size - side + 1, (2,)).tolist()
        window = (slice(None), slice(row, row + side), slice(column, column + side))
        visible = views.visible[window][..., None]
        return perceptual(fine[window] * visible, views.images[window] * visible).mean()

    def _split(self, step: int) -> None:
        """Split at the set steps, and start to look for the largest displacements anew."""
        settings, neutral = self.settings.split, self.avatar.neutral
        due = settings.start <= step <= settings.stop and step % settings.every == 0
        if not (settings.enabled and due and step > 0):
            return
        parents = choose_parents(self.peaks, neutral.scales.detach(), settings, self.first_count)
        if parents.any():
            split(neutral, parents, self.optimiser)
            self.avatar.set_changed()
        self.peaks = self.peaks.new_zeros(len(neutral))

    def state(self) -> dict[str, Any]:
        return {
            "avatar": self.avatar.state_dict(),
            "pose_deltas": self.pose_deltas.detach(),
            "optimiser": self.optimiser.state_dict(),
            "peaks": self.peaks,
        }

    def restore(self, state: dict[str, Any]) -> None:
        self.avatar.resize(len(state["avatar"]["neutral.positions"]))
        self.avatar.load_state_dict(state["avatar"])
        self.pose_deltas.data.copy_(state["pose_deltas"])
        self.optimiser.load_state_dict(state["optimiser"])
        self.peaks = state["peaks"].to(self.peaks)


def _shrink(images: Tensor, factor: int) -> Tensor:
    """Images (C, H, W, D) to (C, H / factor, W / factor, D) by averaging areas."""
    return avg_pool2d(images.permute(0, 3, 1, 2), factor).permute(0, 2, 3, 1)
