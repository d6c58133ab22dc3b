"""Stage I: fit the head field to the training frames, its surface drawn as splats (Eq. 14–18)."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from eavatar import losses
from eavatar.errors import UserError
from eavatar.frames import Batch, FrameSet, Loader, unpack
from eavatar.io import Mesh, read_mesh, write_mesh
from eavatar.networks import encode_position
from eavatar.sdf.dibr import render_mesh, require_kaolin
from eavatar.sdf.field import LOWER, UPPER, HeadField, write_field
from eavatar.sdf.surface import render_surface
from eavatar.sdf.tetrahedra import Band, Surface
from eavatar.settings import SdfSettings
from eavatar.training import fingerprint, finish, seed_everything, train
from eavatar.transforms import axis_angle_to_matrix

logger = logging.getLogger(__name__)

SPHERE_RADIUS = 1.0  # canonical units
SPHERE_STEPS = 500
SPHERE_POINTS = 4096
SPHERE_LEARNING_RATE = 2e-3
SPHERE_TOLERANCE = 0.05  # canonical units; half a cell of the coarsest sensible grid

REFRESH_EVERY = 20  # steps after which the whole grid is evaluated again
LAYERS = 2  # of tetrahedra on either side of the surface, evaluated in between
CHIN = 8  # index of the landmark

RENDERERS = {"splats": render_surface, "dibr": render_mesh}


def train_sdf(
    settings: SdfSettings, seed: int, capture: Path, face: Path, prior: Path, output: Path
) -> None:
    """Fit the neutral surface and its drivers to a subject's training frames.

    Writes ``model.safetensors`` and ``model.yaml`` (see `write_field`), ``neutral.ply`` (canonical,
    coloured as at the calmest timestep) and ``log.csv`` to ``output``.

    Args:
        settings: stage I's block. seed: of all random draws.
        capture, face: folders of those stages. prior: ``prior/aligned.ply``.
        output: ``sdf/<variant>``.
    Raises:
        UserError: an input is missing or malformed, the sphere cannot be fitted, or a value is
            not finite; the renderer cannot be had.
    """
    seed_everything(seed)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    task = prepare(settings, seed, capture, face, prior, device)
    frames, shape = task.frames, task.shape
    logger.info(
        "stage I: %d timesteps, %d cameras at %d pixels, %d grid vertices, %d expression "
        "coefficients, on %s",
        len(frames), len(frames.serials), frames.width, len(task.grid.vertices),
        task.field.expression_size, device,
    )  # fmt: skip
    centre, size = shape.centre.tolist(), shape.size.item()
    tracking = frames.expression.sum().item()
    run = fingerprint(settings, seed, frames.sequences, frames.serials, centre, size, tracking)
    with task.loader:
        train(task, settings.steps, settings.checkpoint_every, output, "sdf", run)
    save(task, output)
    finish(output)


def prepare(
    settings: SdfSettings, seed: int, capture: Path, face: Path, prior: Path, device: torch.device
) -> SdfTraining:
    """The task before its first step: the surface is a sphere. Arguments as of `train_sdf`.

    Raises:
        UserError: as `train_sdf`.
    """
    if settings.renderer == "dibr":
        require_kaolin(device)
    frames = FrameSet.read(
        capture, face, "train", settings.image_size, settings.image_memory_gb
    ).to(device)
    shape = _shape_of_prior(read_mesh(prior), frames.neutral_landmarks)
    field = HeadField(settings, frames.expression.shape[1]).to(device)
    field.neutral_landmarks.data.copy_(frames.neutral_landmarks)
    poses = torch.cat([frames.rotation, frames.translation], dim=1)
    field.torso.place(settings.torso, frames.neutral_landmarks, poses, frames.scale)
    start_as_sphere(field)
    return SdfTraining(settings, seed, frames, field, shape)


@dataclass(frozen=True)
class Shape:
    """What Eq. 17 compares of a mesh above the plane ``y = floor``, canonical units.

    Attributes:
        centre: (3,). size: () mean distance of the surface to the centre.
        floor: height of the chin, below which prior and prediction end in different places.
    """

    centre: Tensor
    size: Tensor
    floor: float


def _shape_of_prior(prior: Mesh, landmarks: Tensor) -> Shape:
    floor = float(landmarks[CHIN, 1])
    vertices = torch.from_numpy(prior.vertices).to(landmarks.device)
    faces = torch.from_numpy(prior.faces).to(landmarks.device)
    return Shape(*losses.centre_and_size(vertices, faces, floor), floor)


def start_as_sphere(field: HeadField) -> None:
    """Fit the signed distance to a sphere whose front touches the foremost neutral landmark.

    Raises:
        UserError: the mean error is above `SPHERE_TOLERANCE` in the end.
    """
    landmarks = field.neutral_landmarks.detach()
    centre = landmarks.mean(dim=0)
    centre[0], centre[2] = 0, landmarks[:, 2].max() - SPHERE_RADIUS
    lower, upper = landmarks.new_tensor(LOWER), landmarks.new_tensor(UPPER)
    optimiser = torch.optim.Adam(field.geometry.parameters(), lr=SPHERE_LEARNING_RATE)
    schedule = torch.optim.lr_scheduler.LinearLR(optimiser, 1.0, 0.05, SPHERE_STEPS)

    def error() -> Tensor:
        points = lower + (upper - lower) * torch.rand(SPHERE_POINTS, 3, device=lower.device)
        distance = torch.linalg.vector_norm(points - centre, dim=1) - SPHERE_RADIUS
        return field.sample(points).sdf - distance

    for _ in range(SPHERE_STEPS):
        optimiser.zero_grad()
        error().square().mean().backward()
        optimiser.step()
        schedule.step()
    with torch.no_grad():
        remaining = float(error().abs().mean())
    if not remaining < SPHERE_TOLERANCE:
        raise UserError(
            f"the signed distance field did not become a sphere (mean error {remaining:.3f} dm, "
            f"at most {SPHERE_TOLERANCE}); raise sdf.width or choose another seed."
        )


@contextmanager
def products_in_tf32() -> Iterator[None]:
    """Let CUDA multiply float32 matrices in TF32, forward and backward.

    Meant for the networks, where it moves the surface by less than 0.05 mm. What would lose more,
    rotations and cameras, is written without such products.
    """
    before = torch.backends.cuda.matmul.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = True
    try:
        yield
    finally:
        torch.backends.cuda.matmul.allow_tf32 = before


@dataclass(frozen=True)
class Region:
    """The part of the grid where the field is evaluated in every step.

    Attributes:
        inside: (V,) bool, the side of every vertex of the grid when the region was made.
        band: that part. encoded: its V' vertices as the network reads them.
    """

    inside: Tensor
    band: Band
    encoded: Tensor


class SdfTraining:
    """What the training loop runs: a few timesteps a step, each in a few cameras, all at once.

    On CUDA the host waits for the device where sizes depend on values: for the band (`holds`), the
    surface and the reach of the drivers, all early in the step; and gsplat waits once.
    """

    def __init__(
        self,
        settings: SdfSettings,
        seed: int,
        frames: FrameSet,
        field: HeadField,
        shape: Shape,
    ):
        self.settings, self.frames, self.field, self.shape = settings, frames, field, shape
        self.loader = Loader(frames, seed, settings.frames_per_step, settings.views_per_frame)
        self.render = RENDERERS[settings.renderer]
        self.grid = field.grid()
        self.region: Region | None = None
        self.poses = torch.cat([frames.rotation, frames.translation], dim=1)
        rotations = axis_angle_to_matrix(frames.rotation)
        self.landmarks = (frames.landmarks - frames.translation[:, None]) @ rotations / frames.scale
        self.to_world = torch.eye(4, device=rotations.device).repeat(len(frames), 1, 1)
        self.to_world[:, :3, :3], self.to_world[:, :3, 3] = rotations, frames.translation
        networks = [
            *field.geometry.parameters(),
            *field.drivers.parameters(),
            *field.torso.parameters(),
        ]
        self.optimiser = torch.optim.Adam(
            [
                {"params": networks, "lr": settings.learning_rate},
                {"params": [field.neutral_landmarks], "lr": settings.landmark_learning_rate},
            ],
            fused=True,
        )

    @products_in_tf32()
    def step(self, step: int) -> dict[str, Tensor]:
        """One step of Adam on the weighted sum of Eq. 18."""
        batch = self.loader.batch(step)
        surface = self.neutral_surface(refresh=step % REFRESH_EVERY == 0)
        parts = {**self._neutral_terms(surface), **self._timestep_terms(surface, batch)}
        weights = self.settings.weights.model_dump()
        total = torch.stack([weights[name] * term for name, term in parts.items()]).sum()
        self.optimiser.zero_grad()
        total.backward()
        self.optimiser.step()
        vertices = torch.full((), len(surface.vertices), device=total.device)
        return {"loss": total.detach(), **parts, "vertices": vertices}

    def neutral_surface(self, refresh: bool) -> Surface:
        """The neutral surface (Eq. 15), from the field near where the surface was last.

        That is the surface of the whole grid as long as it crosses no face between the band and
        the rest, which is looked at every time, and as long as none appears elsewhere, which the
        next refresh would find.

        Raises:
            UserError: there is no surface left in the box.
        """
        if self.region is not None and not refresh:
            distances = self.field.distances_encoded(self.region.encoded)
            if self.region.band.holds(distances):
                return self.field.surface(self.region.band.grid, distances)
        self.region = self._region(self.field.distances(self.grid.vertices) < 0)
        distances = self.field.distances_encoded(self.region.encoded)
        surface = self.field.surface(self.region.band.grid, distances)
        if len(surface.faces) == 0:
            raise UserError(
                "stage I lost its surface: the signed distance has one sign in the whole box; "
                "lower sdf.learning_rate or look at the masks and the tracking."
            )
        return surface

    def _region(self, inside: Tensor) -> Region:
        band = self.grid.band(inside, LAYERS)
        return Region(inside, band, encode_position(band.grid.vertices))

    def _neutral_terms(self, surface: Surface) -> dict[str, Tensor]:
        """The terms that no timestep enters."""
        shape = losses.centre_and_size(surface.vertices, surface.faces, self.shape.floor)
        at_landmarks = self.field.sample(self.field.neutral_landmarks)
        return {
            "landmark": losses.landmark_loss(at_landmarks.sdf),
            "mesh": losses.alignment_loss(*shape, self.shape.centre, self.shape.size),
        }

    def _timestep_terms(self, surface: Surface, batch: Batch) -> dict[str, Tensor]:
        """The terms of the timesteps of a batch, each the mean over them."""
        frames = self.frames
        driven = self.field.drive(
            surface, frames.expression[batch.frames], self.poses[batch.frames]
        )
        drawn = self.render(
            driven.vertices,
            surface.faces,
            driven.colours,
            self.canonical_to_camera(batch),
            frames.intrinsics[batch.cameras],
            frames.width,
            frames.height,
        )
        images, masks = unpack(batch.pixels)
        visible = frames.visible[batch.cameras]
        return {
            "rgb": losses.rgb_loss(drawn.features, images, visible),
            "silhouette": losses.silhouette_loss(drawn.alpha, masks, visible),
            "offset": losses.offset_loss(driven.raw_expression)
            + losses.offset_loss(driven.raw_pose),
            "laplacian": losses.laplacian_loss(driven.vertices * frames.scale, surface.faces),
            "deformation": losses.deformation_loss(driven.landmarks, self.landmarks[batch.frames]),
        }

    def canonical_to_camera(self, batch: Batch) -> Tensor:
        """(B, K, 4, 4) rigid transforms from canonical space to cameras, in canonical units.

        Projection does not see a common scale, so the head stays and the cameras move about it.
        """
        to_world = self.to_world[batch.frames, None].double()  # never TF32
        matrices = (self.frames.world_to_camera[batch.cameras].double() @ to_world).float()
        matrices[..., :3, 3] /= self.frames.scale
        return matrices

    def state(self) -> dict[str, Any]:
        """Also the sides of the grid's vertices, which decide where the field is evaluated."""
        assert self.region is not None
        return {
            "field": self.field.state_dict(),
            "optimiser": self.optimiser.state_dict(),
            "inside": self.region.inside,
        }

    def restore(self, state: dict[str, Any]) -> None:
        self.field.load_state_dict(state["field"])
        self.optimiser.load_state_dict(state["optimiser"])
        self.region = self._region(state["inside"].to(self.grid.vertices.device))


@torch.no_grad()
def save(task: SdfTraining, output: Path) -> None:
    """Write the model and the neutral mesh, coloured as at the timestep of least expression."""
    field, frames = task.field, task.frames
    task.neutral_surface(refresh=True)
    assert task.region is not None
    grid = task.region.band.grid
    for _ in range(field.settings.subdivisions):
        grid = grid.subdivide()
    surface = field.surface(grid, field.distances(grid.vertices))
    calmest = int(frames.expression.norm(dim=1).argmin())
    still = torch.zeros_like(frames.expression[:1])
    driven = field.drive(surface, still, task.poses[calmest, None])
    write_field(output, field, surface)
    mesh = Mesh(
        surface.vertices.cpu().numpy(),
        surface.faces.cpu().numpy(),
        driven.colours[0].cpu().numpy(),
    )
    write_mesh(output / "neutral.ply", mesh)
