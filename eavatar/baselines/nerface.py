"""NeRFace (Gafni et al., CVPR 2021): a radiance field of the head at rest, given an expression.

Rays are brought into the head's canonical space, where two multilayer perceptrons, of a first and a
second pass over each ray, tell density and colour of a point from its place, the expression and a
code of the timestep. Sizes are those of the published code (github.com/gafniguy/4D-Facial-Avatars),
as are the losses and the schedule of the profile ``paper``. What differs:

- **frames of all cameras**: the original is trained on a monocular video, of which it sees as many
  timesteps as frames. A code belongs to a timestep, not to a frame;
- the background is white, as in everything that is measured here, in place of a plate;
- expression coefficients are our morphable model's, as many as are tracked;
- positions are canonical, decimetres, in place of a scene unit of the original's face tracker;
- a person is drawn with the mean of the codes, in place of one training frame's.

Letters: B images, N rays of each, S samples, E expression coefficients, L numbers of a code.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn.functional import linear, relu

from eavatar.avatar.files import read_model
from eavatar.baselines.hull import Hull
from eavatar.baselines.pixels import choose_pixels, look_up, pixel_centres, squared_error
from eavatar.baselines.training import FieldTraining, Values, train_field
from eavatar.baselines.volume import Rays, cast_rays, composite, encode, spread, spread_by_weight
from eavatar.data.frames import FrameSet, unpack
from eavatar.data.methods import ViewRequest
from eavatar.device import choose_device
from eavatar.settings import NerfaceDrawing, NerfaceSettings
from eavatar.training.loop import seed_everything

NAME = "nerface"
POSITION_FREQUENCIES, DIRECTION_FREQUENCIES = 10, 4
LAYERS, SKIP = 6, 3  # hidden layers; the one that sees the input again
COLOUR_LAYERS = 3
EXPRESSION_FACTOR = 1 / 3  # before the network
PUBLISHED_ENDS = 0.2, 0.8  # of all rays, in place of x and y of the published "direction"
POINTS = {"cuda": 2**20, "cpu": 2**16}  # of one evaluation when drawing


class NerfaceModelSettings(NerfaceDrawing):
    """What drawing needs, in ``model.yaml``."""

    expression_size: int = Field(ge=1, description="E")
    scale: float = Field(gt=0, description="canonical units to metres")


class RadianceField(nn.Module):
    """Density and colour of points: 6 layers, the input again at the fourth, a branch for colour.

    Args:
        condition_size: E + L.
        width: of the layers.
    """

    def __init__(self, condition_size: int, width: int):
        super().__init__()
        position = 3 * (1 + 2 * POSITION_FREQUENCIES)
        self.position_size, self.width = position, width
        inputs = [position + condition_size, *[width] * (LAYERS - 1)]
        inputs[SKIP] += position + condition_size
        self.layers = nn.ModuleList(nn.Linear(size, width) for size in inputs)
        self.feature = nn.Linear(width, width)
        self.density = nn.Linear(width, 1)
        half = width // 2
        branch = [width + 3 * 2 * DIRECTION_FREQUENCIES, *[half] * (COLOUR_LAYERS - 1)]
        self.branch = nn.ModuleList(nn.Linear(size, half) for size in branch)
        self.colour = nn.Linear(half, 3)

    def forward(
        self, points: Tensor, directions: Tensor, condition: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Densities (B, N, S) before the clamp to what is not negative, and colours (B, N, S, 3).

        Args:
            points: (B, N, S, 3) canonical.
            directions: (B, N, 3).
            condition: (B, E + L).
        """
        position = encode(points, POSITION_FREQUENCIES, with_input=True)
        condition = condition[:, None, None]
        hidden = relu(_join(self.layers[0], position, condition))
        for index, layer in enumerate(self.layers[1:], start=1):
            parts = (position, condition, hidden) if index == SKIP else (hidden,)
            hidden = relu(_join(layer, *parts))
        feature = self.feature(hidden)
        density = self.density(feature)[..., 0].float()
        direction = encode(directions, DIRECTION_FREQUENCIES, with_input=False)[:, :, None]
        hidden = relu(_join(self.branch[0], feature, direction))
        for layer in self.branch[1:]:
            hidden = relu(layer(hidden))
        return density, self.colour(hidden).float().sigmoid()


class NeRFace(nn.Module):
    """The two fields, the hull and the code with which a person is drawn; a `Method`.

    Args:
        settings: what drawing needs.
        mixed_precision: networks in bfloat16 where the device is CUDA.
    """

    code: Tensor
    drivable = True

    def __init__(self, settings: NerfaceModelSettings, mixed_precision: bool = True):
        super().__init__()
        self.settings, self.mixed_precision = settings, mixed_precision
        size = settings.expression_size + settings.latent_size
        self.coarse = RadianceField(size, settings.width)
        self.fine = RadianceField(size, settings.width)
        self.hull = Hull()
        self.register_buffer("code", torch.zeros(settings.latent_size))

    @classmethod
    def read(cls, folder: Path) -> Self:
        """The model of ``nerface/<variant>``, on the CPU.

        Raises:
            UserError: a file is missing, unreadable, of an unknown format, or does not fit.
        """
        return read_model(folder, NAME, NerfaceModelSettings, cls)

    @property
    def image_size(self) -> int:
        return self.settings.image_size

    def condition(self, expressions: Tensor, codes: Tensor) -> Tensor:
        """(B, E + L) of expressions (B, E) and codes (B, L)."""
        return torch.cat([EXPRESSION_FACTOR * expressions, codes], dim=1)

    def interval(self, rays: Rays) -> tuple[Tensor, Tensor]:
        """Distances (...) between which rays are sampled; equal where there is nothing."""
        if self.settings.skip_empty:
            return self.hull.interval(rays)
        middle = torch.linalg.vector_norm(rays.origins, dim=-1)
        half = self.settings.half_depth / self.settings.scale
        return (middle - half).clamp(min=0), middle + half

    def forward(
        self,
        rays: Rays,
        ends: tuple[Tensor, Tensor],
        condition: Tensor,
        noise: float | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Colours (B, N, 3) on white of rays (B, N), of the first and of the second pass.

        Args:
            rays: canonical.
            ends: see `interval`.
            condition: (B, E + L).
            noise: while training, deviation of what is added to the densities, samples being
                jittered; None when drawing.
        """
        jitter, settings = noise is not None, self.settings
        directions = self._seen_from(rays)

        def render(field: RadianceField, distances: Tensor) -> tuple[Tensor, Tensor]:
            precision = self.mixed_precision and distances.is_cuda
            with torch.autocast(distances.device.type, torch.bfloat16, enabled=precision):
                densities, colours = field(rays.at(distances), directions, condition)
            if noise:
                densities = densities + noise * torch.randn_like(densities)
            drawn = composite(relu(densities), colours, distances, background=1.0)
            return drawn.colours, drawn.weights

        distances = spread(*ends, settings.samples, jitter)
        first, weights = render(self.coarse, distances)
        added = spread_by_weight(distances, weights.detach(), settings.fine_samples, jitter)
        distances = torch.cat([distances, added], dim=-1).sort(dim=-1).values
        return first, render(self.fine, distances)[0]

    def _seen_from(self, rays: Rays) -> Tensor:
        """What the fields are told of the view (B, N, 3)."""
        if self.settings.view_direction == "corrected":
            return rays.directions
        z = rays.directions[..., 2]
        return torch.stack([z, *(torch.full_like(z, end) for end in PUBLISHED_ENDS)], dim=-1)

    @torch.no_grad()
    def render(self, request: ViewRequest) -> Tensor:
        """As of `Method.render`."""
        pose = torch.cat([request.rotation, request.translation])[None]
        condition = self.condition(request.expression[None], self.code[None])
        size = self.image_size
        pixels = pixel_centres(size, pose.device)[None]
        cameras = zip(request.intrinsics[:, None], request.world_to_camera[:, None], strict=True)
        images = [
            self._draw(cast_rays(pixels, *camera, pose, self.settings.scale), condition)
            for camera in cameras
        ]
        return torch.stack(images).view(-1, size, size, 3).clamp(0, 1)

    def _draw(self, rays: Rays, condition: Tensor) -> Tensor:
        """Colours (N, 3) of the rays (1, N) of an image, some at a time."""
        near, far = self.interval(rays)
        image = torch.ones_like(rays.directions[0])
        met = (far > near)[0].nonzero()[:, 0]
        at_once = POINTS[image.device.type] // (self.settings.samples + self.settings.fine_samples)
        for part in met.split(max(at_once, 1)):
            chosen = Rays(rays.origins[:, part], rays.directions[:, part])
            ends = near[:, part], far[:, part]
            image[part] = self(chosen, ends, condition)[1][0]
        return image


class NerfaceTraining(FieldTraining):
    """Rays of some images a step, most of them through the box around the person.

    Args: as of `FieldTraining`.
    """

    def __init__(self, settings: NerfaceSettings, seed: int, frames: FrameSet, model: NeRFace):
        self.settings, self.nerface = settings, model
        super().__init__(settings, seed, frames, model)
        self.graph = self.capture(self.update)
        self.weights = {"coarse": 1.0, "fine": 1.0, "latent": settings.latent_weight}

    def groups(self) -> list[dict[str, Any]]:
        parameters = [*self.nerface.parameters(), self.codes]
        return [{"params": parameters, "lr": self.settings.learning_rate}]

    def step(self, step: int) -> Values:
        """One optimiser step; the losses."""
        self.rates.set_step(step)
        self.optimiser.set_step(step)
        batch = self.loader.batch(step)
        return self.graph(batch.timesteps, batch.cameras[:, 0], batch.pixels[:, 0])

    def update(self, _: object, timesteps: Tensor, cameras: Tensor, pixels: Tensor) -> Values:
        """Draw rays, losses, backward and optimiser; no shape depends on a value.

        Args:
            timesteps: (B,) indices.
            cameras: (B,) indices.
            pixels: (B, H, W, 4) uint8.
        """
        frames, settings = self.frames, self.settings
        codes = self.codes.index_select(0, timesteps)
        condition = self.nerface.condition(frames.expression.index_select(0, timesteps), codes)
        count, fraction = settings.rays_per_image, settings.person_fraction
        chosen = choose_pixels(pixels[..., 3] > 0, count, fraction)
        rays = cast_rays(
            chosen + 0.5,
            frames.intrinsics.index_select(0, cameras),
            frames.world_to_camera.index_select(0, cameras),
            frames.poses.index_select(0, timesteps),
            frames.scale,
        )
        ends = self.nerface.interval(rays)
        first, second = self.nerface(rays, ends, condition, settings.density_noise)
        truth, _ = unpack(look_up(pixels, chosen))
        visible = look_up(frames.visible.index_select(0, cameras)[..., None], chosen)
        losses = {
            "coarse": squared_error(first, truth, visible),
            "fine": squared_error(second, truth, visible),
            "latent": torch.linalg.vector_norm(codes, dim=1).mean(),
        }
        return self.descend(losses, self.weights)


def prepare_nerface(
    settings: NerfaceSettings,
    seed: int,
    capture: Path,
    face: Path,
    device: torch.device,
    held_out: Sequence[str] = (),
) -> NerfaceTraining:
    """The task before its first step; arguments as of `train_nerface`.

    Raises:
        UserError: as `train_nerface`.
    """
    memory = settings.run.image_memory_gb
    frames = FrameSet.read(capture, face, "train", settings.image_size, memory, held_out).to(device)
    own = settings.model_dump(include=set(NerfaceDrawing.model_fields))
    drawing = NerfaceModelSettings(
        **own, expression_size=frames.expression.shape[1], scale=frames.scale
    )
    model = NeRFace(drawing, settings.run.mixed_precision).to(device)
    if settings.skip_empty:
        model.hull.carve(frames)
    return NerfaceTraining(settings, seed, frames, model)


def train_nerface(
    settings: NerfaceSettings,
    seed: int,
    capture: Path,
    face: Path,
    output: Path,
    held_out: Sequence[str] = (),
) -> Path:
    """Train NeRFace and write ``model.safetensors``, ``model.yaml`` and ``log.csv``.

    Args:
        settings: the block ``nerface``.
        seed: of all random draws.
        capture: ``results/<subject>/capture``.
        face: ``results/<subject>/face``.
        output: ``results/<subject>/nerface/<variant>``.
        held_out: cameras that are not trained on, as of `eavatar.data.camera_split`.
    Returns:
        The path of the model.
    Raises:
        UserError: an input is missing or does not fit, or the training diverges.
    """
    seed_everything(seed)
    task = prepare_nerface(settings, seed, capture, face, choose_device(), held_out)
    return train_field(NAME, settings, task.nerface.settings, task, output)


def _join(layer: nn.Module, *parts: Tensor) -> Tensor:
    """A linear layer of what its parts (..., D) would be side by side, some of them broadcast."""
    assert isinstance(layer, nn.Linear)
    weights = layer.weight.split([part.shape[-1] for part in parts], dim=1)
    first = linear(parts[0], weights[0], layer.bias)
    for part, weight in zip(parts[1:], weights[1:], strict=True):
        first = first + linear(part, weight)
    return first
