"""Stage II: train the dynamic Gaussians and the upsampler on the images (Sec. 3.4, Eq. 19)."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from eavatar.arrays import Float32
from eavatar.avatar.base_motion import eye_points
from eavatar.avatar.files import MODEL, read_stage_one, write_avatar
from eavatar.avatar.gaussians import NeutralGaussians, merge_points, mouth_interior
from eavatar.avatar.model import Avatar, AvatarSettings, CameraBatch, Coarse
from eavatar.avatar.prediction import regress
from eavatar.data.frames import FrameSet
from eavatar.data.loader import Loader, select
from eavatar.device import choose_device, place
from eavatar.errors import UserError
from eavatar.settings import SplatSettings
from eavatar.splat.densification import DisplacementDensifier, ErrorDensifier, GaussianErrors
from eavatar.splat.image_losses import make_image_losses, patch_corner, shrink
from eavatar.splat.visibility import drop_unseen
from eavatar.training.definition import define
from eavatar.training.graphs import GrowingGraph, PairCapacity
from eavatar.training.loop import Run, Trainable, finish, seed_everything, train
from eavatar.training.optimiser import AveragingAdam, FallingRates
from eavatar.training.parallel import (
    copy_from_first,
    is_first,
    joined,
    largest_over_processes,
    sum_over_processes,
)
from eavatar.training.perceptual import Perceptual, load_perceptual
from eavatar.training.plateau import ENDS, Plateau, hold_back, mean_squared_error

logger = logging.getLogger(__name__)

BOX_MULTIPLE = 8  # splatted pixels: half a tile of the rasteriser
HEADROOM = 1.18  # pairs of Gaussians and tiles that steps to come may need / most seen
LOOK_EVERY = 100  # steps between host-device synchronisations that look at what they needed
MEASURED = 4  # timesteps that tell it before the first step of a set of Gaussians
# Which of a process's shares a loss has that is a mean over pixels; the others are over views.
SHARES = {"rgb": 0, "coarse": 0, "padding": 1}
FALLING = "the learning rates fall over the steps"
FALL = 0.25  # steps in which they fall at the end of a training without a set one / steps before

Values = dict[str, Tensor]


def train_splat(
    settings: SplatSettings,
    seed: int,
    capture: Path,
    face: Path,
    sdf: Path,
    output: Path,
    held_out: Sequence[str] = (),
) -> Path:
    """Train stage II and write ``model.safetensors``, ``model.yaml`` and ``log.csv``.

    Args:
        settings: stage II's block.
        seed: of all random draws.
        capture: ``results/<subject>/capture``.
        face: ``results/<subject>/face``.
        sdf: ``results/<subject>/sdf/<variant>``.
        output: ``results/<subject>/splat/<variant>``.
        held_out: cameras that are not trained on, as of `eavatar.data.camera_split`.
    Returns:
        The path of the model.
    Raises:
        UserError: an input is missing or does not fit, LPIPS is required and missing, or the
            training diverges.
    """
    seed_everything(seed)
    device = choose_device()
    with joined(device), prepare(settings, seed, capture, face, sdf, device, held_out) as task:
        definition = define("splat", settings, seed, task.frames, sdf=sdf / "model.safetensors")
        definition["stage I"] = repr(task.avatar.settings)
        bound = FALLING if settings.learning_rates.final != 1 else None
        bound = ENDS if settings.plateau.enabled else bound
        run = Run("splat", settings.steps, settings.run.checkpoint_every, definition, bound)
        train(task, run, output)
        if is_first():
            save(task, output)
            finish(output, run)
    return output / MODEL


def prepare(
    settings: SplatSettings,
    seed: int,
    capture: Path,
    face: Path,
    sdf: Path,
    device: torch.device,
    held_out: Sequence[str] = (),
) -> SplatTraining:
    """The task before its first step; arguments as of `train_splat`.

    Raises:
        UserError: as `train_splat`.
    """
    perceptual = None
    if settings.weights.lpips > 0:
        perceptual = load_perceptual("vgg", device, settings.lpips_required)
    frames = FrameSet.read(
        capture, face, "train", settings.image_size, settings.run.image_memory_gb, held_out
    ).to(device)
    if settings.boxes:
        frames = frames.boxed(BOX_MULTIPLE * settings.upsampling)
    avatar = start_avatar(settings, sdf, frames).to(device)
    if settings.drop_unseen and is_first():
        drop_unseen(avatar, frames)
    _start_alike(avatar)
    return SplatTraining(settings, seed, frames, avatar, perceptual)


def _start_alike(avatar: Avatar) -> None:
    """Give the processes of a training that is split over several the first one's Gaussians."""
    count = torch.tensor(len(avatar.neutral), device=avatar.device)
    copy_from_first([count])
    if not is_first():
        avatar.resize(int(count))
    copy_from_first(list(avatar.state_dict().values()))


def save(task: SplatTraining, output: Path) -> Path:
    """Write the avatar with the means of its parameters; returns the model's path."""
    with task.optimiser.averaged():
        return write_avatar(output, task.avatar, task.settings)


def start_avatar(settings: SplatSettings, sdf: Path, frames: FrameSet) -> Avatar:
    """The avatar before training: stage I's surface and networks, all else new.

    Raises:
        UserError: stage I's model is missing, malformed, or of another number of expressions.
    """
    stage = read_stage_one(sdf)
    tracked = frames.expression, frames.appearance, frames.gaze
    found = tuple(part.shape[1] for part in tracked)
    trained = stage.head.expression_size, stage.head.appearance_size, stage.head.gaze_size
    if trained != found:
        raise UserError(
            f"{sdf} was trained with {trained[0]} expression and {trained[1]} appearance "
            f"coefficients and {trained[2]} angles of the gaze, but the tracking has {found[0]}, "
            f"{found[1]} and {found[2]}; run `train_sdf` again."
        )
    vertices, features = merge_points(stage.vertices, stage.features, settings.surface_points)
    inner = mouth_interior(stage.landmarks, settings.mouth_points)
    if stage.head.gaze_size:
        inner = torch.cat([inner, eye_points(stage.landmarks, settings.mouth_points // 2)])
    neutral = NeutralGaussians.from_surface(vertices, features, inner, settings.opacity)
    avatar = Avatar(
        AvatarSettings.of(settings, stage.head, frames.scale),
        stage.drivers,
        stage.torso,
        neutral,
        stage.landmarks,
        stage.base,
        mixed_precision=settings.run.mixed_precision,
    )
    avatar.appearance_by_expression.copy_(regress(frames.expression, frames.appearance))
    if settings.clamp_driving:
        avatar.generator.seen.fit(frames.driving)
    avatar.sort_by_expression_weight()
    return avatar


def make_optimiser(
    settings: SplatSettings, avatar: Avatar, pose_deltas: nn.Parameter
) -> AveragingAdam:
    """The optimiser of stage II, a group for each learning rate."""
    rates, neutral = settings.learning_rates, avatar.neutral
    groups = [
        (list(avatar.generator.parameters()), rates.networks),
        (list(avatar.upsampler.parameters()), rates.upsampler),
        ([neutral.positions], rates.positions),
        ([neutral.features], rates.features),
        ([neutral.rotations], rates.rotations),
        ([neutral.scales], rates.scales),
        ([neutral.opacities], rates.opacities),
        ([pose_deltas], rates.pose_deltas),
    ]
    # The first steps of a set are not captured, which torch need not mention.
    warnings.filterwarnings("ignore", message=".*capturable=True")
    return AveragingAdam(
        [{"params": parameters, "lr": rate} for parameters, rate in groups],
        settings.averaging,
        capturable=pose_deltas.is_cuda,
    )


class SplatTraining(Trainable):
    """What the training loop runs: one timestep a step, in a few cameras.

    The Gaussians are generated once for all cameras of a step. On CUDA a step is one captured
    graph, made anew when the set of Gaussians changes; the host only hands over the next images.

    Attributes:
        pose_deltas: (T, 6) learned corrections of the poses.
        pairs: () most pairs of a Gaussian and a tile that a step of the present set needed.
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
        self.held_back: list[tuple[int, int]] = []
        if settings.plateau.enabled:
            frames, self.held_back = hold_back(frames, settings.plateau.images)
        self.plateau = Plateau(settings.plateau, settings.steps, FALL)
        self.settings, self.seed, self.frames, self.avatar = settings, seed, frames, avatar
        self.loader = Loader(frames, seed, 1, settings.views_per_step, part=place())
        self.areas = frames.visible.mean(dim=(1, 2)).cpu().numpy()
        self.pose_deltas = nn.Parameter(frames.expression.new_zeros(len(frames), 6))
        self.optimiser = make_optimiser(settings, avatar, self.pose_deltas)
        self.rates = FallingRates(self.optimiser, settings.learning_rates.final, settings.steps)
        self.densifier = DisplacementDensifier(settings.split, avatar, self.optimiser)
        self.error_densifier = ErrorDensifier(
            settings.densify, avatar, self.optimiser, self.look_at_errors
        )
        self.image_losses = make_image_losses(settings, avatar, perceptual)
        self.pairs = torch.zeros((), dtype=torch.int64, device=frames.device)
        self.graph: GrowingGraph[PairCapacity, Values] = GrowingGraph(
            self.update, captures=frames.device.type == "cuda"
        )
        self._restart_graph()

    def step(self, step: int) -> Values:
        """One optimiser step; the losses, the count and the fractions above the two thresholds."""
        self.rates.begin, self.rates.end = self.plateau.begin, self.plateau.end
        self.rates.set_step(step)
        self.optimiser.set_step(step)
        batch = self.loader.batch(step)
        if self.graph.captures and step % LOOK_EVERY == 0:
            self._fit_graph()
        corner = patch_corner(self.seed, step, self.frames, self.settings.lpips_patch)
        shares = self._shares(step)
        values = self.graph(batch.timesteps, batch.cameras[0], batch.pixels[0], corner, shares)
        changed = self.densifier.step(step)
        if self.error_densifier.step(step):
            self.densifier.forget()
            changed = True
        if changed:
            self._restart_graph()
        if self.plateau.is_due(step + 1):
            self.plateau.look(step + 1, self._look_at_held_back())
        return values

    def is_over(self, made: int) -> bool:
        return made >= self.plateau.end

    def update(
        self,
        capacity: PairCapacity | None,
        timestep: Tensor,
        cameras: Tensor,
        pixels: Tensor,
        corner: Tensor,
        shares: Tensor,
    ) -> Values:
        """Draw, losses, backward and optimiser; with a capacity no shape depends on a value.

        Args:
            capacity: of the rasteriser.
            timestep: (1,) index.
            cameras: (V,) indices.
            pixels: (V, H, W, 4) uint8.
            corner: (2,) of the LPIPS patch.
            shares: (3,) of the step's losses that are this process's, see `_shares`.
        """
        poses = self.frames.poses + self.pose_deltas
        drawn = _draw(self.avatar, self.frames, poses, timestep, cameras, capacity)
        losses = self._losses(drawn, cameras, pixels, corner)
        losses = {name: shares[SHARES.get(name, 2)] * value for name, value in losses.items()}
        self.optimiser.zero_grad()
        self._weigh(losses).backward()
        losses = {name: value.detach() for name, value in losses.items()}
        sum_over_processes([*self.optimiser.gradients(), *losses.values()])
        self.optimiser.step()
        self.densifier.observe(drawn.generated)
        torch.maximum(self.pairs, drawn.pairs, out=self.pairs)
        return {
            "loss": self._weigh(losses),
            **losses,
            "gaussians": corner.new_full((), len(self.avatar.neutral)),
            "control_share": drawn.generated.controls.float().mean(),
            "split_share": self.densifier.fraction,
        }

    def _weigh(self, losses: Values) -> Tensor:
        """Their weighted sum."""
        weights = self.settings.weights.model_dump()
        return torch.stack([weights[name] * value for name, value in losses.items()]).sum()

    def _shares(self, step: int) -> Tensor:
        """(3,) what this process has of a step: of the pixels that count, of those of the padding,
        and of the views. Those of all processes add up to one."""
        number, count = place()
        whole = np.array(self.loader.select(step).cameras[0])

        def share(areas: Float32) -> float:
            total = areas[whole].sum()
            return float(areas[whole[number::count]].sum() / total) if total > 0 else 1 / count

        shares = torch.tensor([share(self.areas), share(1 - self.areas), 1 / count])
        return shares.to(self.frames.device, non_blocking=True)

    def _losses(self, drawn: Coarse, cameras: Tensor, pixels: Tensor, corner: Tensor) -> Values:
        """All unweighted terms, of images or of ``drawn.generated``, by the names of weights."""
        visible = self.frames.visible.index_select(0, cameras)
        return self.image_losses(drawn.features, pixels, visible, corner)

    def look_at_errors(self, step: int) -> GaussianErrors:
        """The squared errors of some training images, at random by seed and step, per Gaussian."""
        count, views = self.settings.densify.timesteps, self.settings.views_per_step
        chosen = select(self.seed, step, self.frames.usable, count, views)
        pairs = zip(chosen.timesteps, chosen.cameras, strict=True)
        seen = [self._look_at_timestep(timestep, list(cameras)) for timestep, cameras in pairs]
        errors = torch.stack([one.errors for one in seen]).sum(dim=0)
        opacities = torch.stack([one.opacities for one in seen]).amax(dim=0)
        # All processes look at the same images; they must agree to the bit on what follows.
        sum_over_processes([errors])
        return GaussianErrors(errors, largest_over_processes(opacities))

    @torch.no_grad()
    def _look_at_held_back(self) -> list[Tensor]:
        """The mean squared error of each held-back image, by the means of the parameters."""
        device, errors = self.frames.device, []
        with self.optimiser.averaged():
            poses = self.frames.poses + self.pose_deltas
            for timestep, camera in self.held_back:
                when, where = (torch.tensor([index], device=device) for index in (timestep, camera))
                drawn = _draw(self.avatar, self.frames, poses, when, where, None)
                views = self.frames.views(timestep, [camera])
                fine = self.avatar.upsample(drawn.features)
                errors.append(mean_squared_error(fine, views.images, views.visible))
        return errors

    def _look_at_timestep(self, timestep: int, cameras: list[int]) -> GaussianErrors:
        device, views = self.frames.device, self.frames.views(timestep, cameras)
        poses = (self.frames.poses + self.pose_deltas).detach()
        when, where = (torch.tensor(index, device=device) for index in ([timestep], cameras))
        drawn = _draw(self.avatar, self.frames, poses, when, where, None)
        with torch.no_grad():
            fine = self.avatar.upsample(drawn.features)
            squared = (fine - views.images).square().mean(dim=-1) * views.visible
            error = shrink(squared[..., None], self.settings.upsampling)
        gaussians = drawn.generated.gaussians
        # An image is linear in the features: its weights are the gradient of any channel.
        weights = torch.nn.functional.pad(error, (0, drawn.features.shape[-1] - 1))
        (sums,) = torch.autograd.grad(drawn.features, gaussians.features, weights)
        return GaussianErrors(sums[:, 0], gaussians.opacities.detach())

    def _restart_graph(self) -> None:
        """Have the step captured anew, for a set of Gaussians that has changed."""
        self.graph.restart()
        if self.graph.captures:
            views = self.settings.views_per_step
            self.pairs.copy_(_measure_pairs(self.avatar, self.frames, views))
            self._fit_graph()

    def _fit_graph(self) -> None:
        """Have buffers for the steps to come."""
        needed = largest_over_processes(self.pairs)
        self.graph.fit(PairCapacity(int(HEADROOM * needed.item())))

    def describe(self, step: int) -> str:
        return self.loader.describe(step)

    def state(self) -> dict[str, Any]:
        return {
            "avatar": self.avatar.state_dict(),
            "pose_deltas": self.pose_deltas.detach(),
            "optimiser": self.optimiser.state_dict(),
            "plateau": self.plateau.state(),
            **self.densifier.state(),
        }

    def restore(self, state: dict[str, Any]) -> None:
        self.avatar.resize(len(state["avatar"]["neutral.positions"]))
        self.avatar.load_state_dict(state["avatar"])
        self.pose_deltas.data.copy_(state["pose_deltas"])
        self.optimiser.load_state_dict(state["optimiser"])
        self.plateau.restore(state["plateau"])
        self.densifier.restore(state)
        self._restart_graph()

    def close(self) -> None:
        self.graph.restart()  # before the processes part: it holds their sums
        self.loader.close()


def _draw(
    avatar: Avatar,
    frames: FrameSet,
    poses: Tensor,
    timestep: Tensor,
    cameras: Tensor,
    capacity: PairCapacity | None,
) -> Coarse:
    """One timestep (1,) in some cameras (V,), with poses (T, 6)."""
    views = CameraBatch(
        frames.intrinsics.index_select(0, cameras),
        frames.world_to_camera.index_select(0, cameras),
        frames.height,
        frames.width,
    )
    return avatar.draw(
        frames.driving.index_select(0, timestep)[0],
        poses.index_select(0, timestep)[0],
        views,
        capacity.pairs if capacity else None,
    )


@torch.no_grad()
def _measure_pairs(avatar: Avatar, frames: FrameSet, views: int) -> Tensor:
    """() most pairs of a few timesteps in all cameras, so many cameras at a time."""
    device, count = frames.device, len(frames.serials)
    pairs = [
        _draw(
            avatar,
            frames,
            frames.poses,
            torch.tensor([timestep], device=device),
            torch.arange(first, min(first + views, count), device=device),
            None,
        ).pairs
        for timestep in range(0, len(frames), max(len(frames) // MEASURED, 1))
        for first in range(0, count, views)
    ]
    return torch.stack(pairs).max()
