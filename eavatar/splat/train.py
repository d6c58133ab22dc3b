"""Stage II: train the dynamic Gaussians and the upsampler on the images (Sec. 3.4, Eq. 19)."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import avg_pool2d

from eavatar.avatar.files import read_stage_one, write_avatar
from eavatar.avatar.gaussians import NeutralGaussians, merge_points, mouth_interior
from eavatar.avatar.model import Avatar, AvatarSettings, CameraBatch
from eavatar.data.frames import FrameSet, unpack
from eavatar.data.loader import Loader
from eavatar.device import choose_device
from eavatar.errors import UserError
from eavatar.settings import SplatSettings
from eavatar.splat.splitting import choose_parents, split
from eavatar.training.definition import define
from eavatar.training.graphs import Captured, run_aside
from eavatar.training.loop import Run, Trainable, finish, seed_everything, train
from eavatar.training.losses import rgb_loss
from eavatar.training.optimiser import AveragingAdam
from eavatar.training.perceptual import Perceptual, load_perceptual

logger = logging.getLogger(__name__)

BOX_MULTIPLE = 8  # splatted pixels: half a tile of the rasteriser
SPARE = 1.4  # room for pairs of Gaussians and tiles / most seen
PLAIN_STEPS = 3  # of a new set of Gaussians before the step is captured
ROOM_EVERY = 100  # steps between looks at whether the room suffices

FALLING_RATES = "the learning rates fall over the steps"

Values = dict[str, Tensor]


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
    device = choose_device()
    perceptual = None
    if settings.weights.lpips > 0:
        perceptual = load_perceptual("vgg", device, settings.lpips_required)
    frames = FrameSet.read(
        capture, face, "train", settings.image_size, settings.run.image_memory_gb
    ).to(device)
    if settings.boxes:
        frames = frames.boxed(BOX_MULTIPLE * settings.upsampling)
    avatar = start_avatar(settings, sdf, frames).to(device)
    definition = define("splat", settings, seed, frames, sdf=sdf / "model.safetensors")
    definition["stage I"] = repr(avatar.settings)
    run = Run(
        "splat",
        settings.steps,
        settings.run.checkpoint_every,
        definition,
        bound=FALLING_RATES if settings.learning_rates.final != 1 else None,
    )
    with SplatTraining(settings, seed, frames, avatar, perceptual) as task:
        train(task, run, output)
    with task.optimiser.averaged():
        path = write_avatar(output, avatar, settings)
    finish(output, run)
    return path


def start_avatar(settings: SplatSettings, sdf: Path, frames: FrameSet) -> Avatar:
    """The avatar before training: stage I's surface and networks, all else new.

    Raises:
        UserError: stage I's model is missing, malformed, or of another number of expressions.
    """
    stage = read_stage_one(sdf)
    expressions = frames.expression.shape[1]
    if stage.head.expression_size != expressions:
        raise UserError(
            f"{sdf} was trained with {stage.head.expression_size} expression coefficients, but the "
            f"tracking has {expressions}; run `train_sdf` again."
        )
    vertices, features = merge_points(stage.vertices, stage.features, settings.surface_points)
    mouth = mouth_interior(stage.landmarks, settings.mouth_points)
    neutral = NeutralGaussians.from_surface(vertices, features, mouth, settings.opacity)
    avatar = Avatar(
        AvatarSettings.of(settings, stage.head, frames.scale),
        stage.drivers,
        stage.torso,
        neutral,
        stage.landmarks,
        mixed_precision=settings.run.mixed_precision,
    )
    avatar.set_changed()
    return avatar


class SplatTraining(Trainable):
    """What the training loop runs: one timestep a step, in a few cameras.

    The Gaussians are generated once for all cameras of a step. On CUDA a step is one captured
    graph, made anew when the set of Gaussians changes; the host only hands over the next pictures.
    """

    def __init__(
        self,
        settings: SplatSettings,
        seed: int,
        frames: FrameSet,
        avatar: Avatar,
        perceptual: Perceptual | None,
    ):
        torch.backends.cudnn.benchmark = True  # all images have one size
        self.settings, self.seed, self.frames, self.avatar = settings, seed, frames, avatar
        self.perceptual = perceptual
        self.loader = Loader(frames, seed, 1, settings.views_per_step)
        self.first_count = len(avatar.neutral)
        self.pose_deltas = nn.Parameter(frames.expression.new_zeros(len(frames), 6))
        self.optimiser = self._make_optimiser()
        self.image_losses = self._image_losses
        if settings.run.compile and frames.expression.is_cuda:
            logger.info("the first step compiles; that takes up to a minute and is kept on disk")
            self.image_losses = torch.compile(self._image_losses, dynamic=False)
        self.peaks = frames.expression.new_zeros(self.first_count)
        self.capacity: int | None = None
        self.captured: Captured[Values] | None = None
        self._start_anew()

    def describe(self, step: int) -> str:
        return self.loader.describe(step)

    def close(self) -> None:
        self.loader.close()

    def _make_optimiser(self) -> AveragingAdam:
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
        device = self.frames.expression.device
        self.rates = [rate for _, rate in groups]
        # The first steps of a set are not captured, which torch need not mention.
        warnings.filterwarnings("ignore", message=".*capturable=True")
        # As tensors on the device, where a captured step can see them change.
        self.present_rates = [torch.tensor(rate, device=device) for rate in self.rates]
        return AveragingAdam(
            [
                {"params": list(parameters), "lr": rate}
                for (parameters, _), rate in zip(groups, self._group_rates(), strict=True)
            ],
            self.settings.averaging,
            capturable=device.type == "cuda",
        )

    def _group_rates(self) -> list[Tensor | float]:
        """What the optimiser's groups hold as their rate: tensors where steps are captured."""
        captured = self.frames.expression.is_cuda
        return [rate if captured else rate.item() for rate in self.present_rates]

    def _decay_learning_rates(self, step: int) -> None:
        """Exponentially from 1 to the factor ``learning_rates.final`` over the whole training."""
        factor = self.settings.learning_rates.final ** (step / self.settings.steps)
        for present, rate in zip(self.present_rates, self.rates, strict=True):
            present.fill_(rate * factor)
        for group, shown in zip(self.optimiser.param_groups, self._group_rates(), strict=True):
            group["lr"] = shown

    def step(self, step: int) -> dict[str, Tensor]:
        """One optimiser step; the losses, the count and the shares above the two thresholds."""
        self._decay_learning_rates(step)
        self.optimiser.set_step(step)
        batch = self.loader.batch(step)
        if step % ROOM_EVERY == 0:
            self._make_room()
        values = self._advance(
            batch.timesteps, batch.cameras[0], batch.pixels[0], self._corner(step)
        )
        self._split(step)
        return values

    def _corner(self, step: int) -> Tensor:
        """The upper left corner (2,) of the step's LPIPS patch: row, column."""
        height, width = self.frames.height, self.frames.width
        room = [max(side - self.settings.lpips_patch, 0) + 1 for side in (height, width)]
        corner = np.random.default_rng([self.seed, step]).integers(room)
        return torch.from_numpy(corner).to(self.peaks.device, non_blocking=True)

    def _advance(self, *inputs: Tensor) -> Values:
        """`_update`, on CUDA by a graph once it has run a few times."""
        if not self.peaks.is_cuda:
            return self._update(*inputs)
        if self.captured is None:
            if self.plain_steps < PLAIN_STEPS:
                self.plain_steps += 1
                return run_aside(self._update, *inputs)
            torch.cuda.empty_cache()  # the graph has its own memory
            self.captured = Captured(self._update, *inputs, warm_up=0)
        return self.captured(*inputs)

    def _update(self, frame: Tensor, cameras: Tensor, pixels: Tensor, corner: Tensor) -> Values:
        """Forward, backward and optimiser; no shape here depends on a value.

        Args:
            frame: (1,). cameras: (V,). pixels: (V, H, W, 4) uint8. corner: (2,).
        """
        frames, settings = self.frames, self.settings
        pose = frames.poses + self.pose_deltas
        coarse = self.avatar.draw(
            frames.expression.index_select(0, frame)[0],
            pose.index_select(0, frame)[0],
            CameraBatch(
                frames.intrinsics.index_select(0, cameras),
                frames.world_to_camera.index_select(0, cameras),
                frames.height,
                frames.width,
            ),
            self.capacity,
        )
        visible = frames.visible.index_select(0, cameras)
        losses = self.image_losses(coarse.features, pixels, visible, corner)
        weights = settings.weights.model_dump()
        total = torch.stack([weights[name] * value for name, value in losses.items()]).sum()
        self.optimiser.zero_grad()
        total.backward()
        self.optimiser.step()
        generated = coarse.generated
        torch.maximum(self.peaks, generated.displacements, out=self.peaks)
        torch.maximum(self.pairs, coarse.pairs, out=self.pairs)
        return {
            "loss": total.detach(),
            **{name: value.detach() for name, value in losses.items()},
            "gaussians": total.new_full((), len(self.avatar.neutral)),
            "control_share": generated.controls.float().mean(),
            "split_share": (self.peaks > settings.split.threshold).float().mean(),
        }

    def _image_losses(
        self, coarse: Tensor, pixels: Tensor, visible: Tensor, corner: Tensor
    ) -> dict[str, Tensor]:
        """The unweighted terms of Eq. 19 and GHA's coarse term, by the names of their weights.

        Args:
            coarse: (V, h, w, K). pixels: (V, H, W, 4) uint8. visible: (V, H, W). corner: (2,).
        """
        images, _ = unpack(pixels)
        fine, factor = self.avatar.upsample(coarse), self.settings.upsampling
        losses = {
            "rgb": rgb_loss(fine, images, visible),
            "coarse": rgb_loss(
                coarse[..., :3],
                _shrink(images, factor),
                _shrink(visible[..., None], factor)[..., 0],
            ),
        }
        if self.perceptual is not None:
            shown = visible[..., None]
            pair = [self._patch(image * shown, corner) for image in (fine, images)]
            precision = self.avatar.mixed_precision
            with torch.autocast(coarse.device.type, torch.bfloat16, enabled=precision):
                losses["lpips"] = self.perceptual(*pair).mean()
        return losses

    def _patch(self, images: Tensor, corner: Tensor) -> Tensor:
        """The LPIPS patch of images (V, H, W, 3), or all of them where they are smaller."""
        for axis in (1, 2):
            side = min(self.settings.lpips_patch, images.shape[axis])
            rows = corner[axis - 1] + torch.arange(side, device=images.device)
            images = images.index_select(axis, rows)
        return images

    def _make_room(self) -> None:
        """Have room for the pairs of Gaussians and tiles of the steps to come."""
        if self.capacity is not None and self.pairs.item() > self.capacity / SPARE**0.5:
            self._start_anew()

    def _start_anew(self) -> None:
        """Measure the room that drawing needs, and have the step captured anew."""
        if self.captured is not None:
            self.captured.release()
        self.captured, self.plain_steps = None, 0
        self.pairs = self.peaks.new_zeros((), dtype=torch.int64)
        if self.peaks.is_cuda:
            self.capacity = int(SPARE * self._most_pairs())

    @torch.no_grad()
    def _most_pairs(self) -> int:
        """Most pairs of a few timesteps in all cameras, each time in as many as a step has."""
        frames, views = self.frames, self.settings.views_per_step
        poses = frames.poses
        counts = [
            self.avatar.draw(
                frames.expression[frame],
                poses[frame],
                CameraBatch(
                    frames.intrinsics[first : first + views],
                    frames.world_to_camera[first : first + views],
                    frames.height,
                    frames.width,
                ),
            ).pairs
            for frame in range(0, len(frames), max(len(frames) // 4, 1))
            for first in range(0, len(frames.serials), views)
        ]
        return int(torch.stack(counts).max())

    def _split(self, step: int) -> None:
        """Split at the set steps, and start to look for the largest displacements anew."""
        settings, neutral = self.settings.split, self.avatar.neutral
        due = settings.start <= step <= settings.stop and step % settings.every == 0
        if not (settings.enabled and due and step > 0):
            return
        parents = choose_parents(self.peaks, neutral.scales.detach(), settings, self.first_count)
        if parents.any():
            split(neutral, parents, self.optimiser)
            self.avatar.set_changed(self.optimiser)
        self.peaks = self.peaks.new_zeros(len(neutral))
        self._start_anew()

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
        self._start_anew()


def _shrink(images: Tensor, factor: int) -> Tensor:
    """Images (C, H, W, D) to (C, H / factor, W / factor, D) by averaging areas."""
    return avg_pool2d(images.permute(0, 3, 1, 2), factor).permute(0, 2, 3, 1)
