"""Stage I: fit the head field to the training frames, its surface drawn as splats (Eq. 14–18)."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from eavatar import losses
from eavatar.errors import UserError
from eavatar.frames import FrameSet
from eavatar.io import Mesh, read_mesh, write_mesh
from eavatar.sdf.field import LOWER, UPPER, HeadField, Samples, write_field
from eavatar.sdf.surface import make_discs, render_surface
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
LAYERS = 1  # of tetrahedra on either side of the surface, evaluated in between
CHIN = 8  # index of the landmark


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
            not finite.
    """
    seed_everything(seed)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    frames = FrameSet.read(capture, face, "train", settings.image_size).to(device)
    shape = _shape_of_prior(read_mesh(prior), frames.neutral_landmarks)
    field = HeadField(settings, frames.expression.shape[1]).to(device)
    field.neutral_landmarks.data.copy_(frames.neutral_landmarks)
    start_as_sphere(field)
    task = SdfTraining(settings, frames, field, shape)
    logger.info(
        "stage I: %d timesteps, %d cameras at %d pixels, %d grid vertices, %d expression "
        "coefficients, on %s",
        len(frames), len(frames.serials), frames.width, len(task.grid.vertices),
        field.expression_size, device,
    )  # fmt: skip
    centre, size = shape.centre.tolist(), shape.size.item()
    tracking = frames.expression.sum().item()
    run = fingerprint(settings, seed, frames.sequences, frames.serials, centre, size, tracking)
    train(task, settings.steps, settings.checkpoint_every, output, "sdf", run)
    save(task, output)
    finish(output)


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


class SdfTraining:
    """What the training loop runs: a few timesteps a step, each in a few cameras."""

    def __init__(self, settings: SdfSettings, frames: FrameSet, field: HeadField, shape: Shape):
        self.settings, self.frames, self.field, self.shape = settings, frames, field, shape
        self.grid = field.grid()
        self.band: Band | None = None
        rotations = axis_angle_to_matrix(frames.rotation)
        self.poses = torch.cat([frames.rotation, frames.translation], dim=1)
        self.landmarks = (frames.landmarks - frames.translation[:, None]) @ rotations / frames.scale
        self.rotations = rotations
        networks = [*field.geometry.parameters(), *field.drivers.parameters()]
        self.optimiser = torch.optim.Adam(
            [
                {"params": networks, "lr": settings.learning_rate},
                {"params": [field.neutral_landmarks], "lr": settings.landmark_learning_rate},
            ]
        )

    def step(self, step: int) -> dict[str, float]:
        """One step of Adam on the weighted sum of Eq. 18."""
        surface = self.neutral_surface(refresh=step % REFRESH_EVERY == 0)
        chosen = torch.randint(len(self.frames), (self.settings.frames_per_step,)).tolist()
        parts = self._neutral_terms(surface)
        for frame in chosen:
            for name, term in self._frame_terms(surface, frame).items():
                parts[name] = parts.get(name, 0) + term / len(chosen)
        weights = self.settings.weights.model_dump()
        total = torch.stack([weights[name] * term for name, term in parts.items()]).sum()
        self.optimiser.zero_grad()
        total.backward()
        self.optimiser.step()
        values = {name: term.item() for name, term in {"loss": total, **parts}.items()}
        return {**values, "vertices": len(surface.vertices)}

    def neutral_surface(self, refresh: bool) -> Surface:
        """The neutral surface (Eq. 15), from the field near where the surface was last.

        That is the surface of the whole grid as long as it crosses no face between the band and
        the rest, which is looked at every time, and as long as none appears elsewhere, which the
        next refresh would find.

        Raises:
            UserError: there is no surface left in the box.
        """
        if self.band is not None and not refresh:
            samples = self.field.sample(self.band.grid.vertices)
            if self.band.holds(samples.sdf):
                return self.field.surface(self.band.grid, samples)
        self.band = self.grid.band(self.field.distances(self.grid.vertices) < 0, LAYERS)
        samples = self.field.sample(self.band.grid.vertices)
        surface = self.field.surface(self.band.grid, samples)
        if len(surface.faces) == 0:
            raise UserError(
                "stage I lost its surface: the signed distance has one sign in the whole box; "
                "lower sdf.learning_rate or look at the masks and the tracking."
            )
        return surface

    def _neutral_terms(self, surface: Surface) -> dict[str, Tensor]:
        """The terms that no timestep enters."""
        shape = losses.centre_and_size(surface.vertices, surface.faces, self.shape.floor)
        at_landmarks: Samples = self.field.sample(self.field.neutral_landmarks)
        return {
            "landmark": losses.landmark_loss(at_landmarks.sdf),
            "mesh": losses.alignment_loss(*shape, self.shape.centre, self.shape.size),
        }

    def _frame_terms(self, surface: Surface, frame: int) -> dict[str, Tensor]:
        """The terms of one timestep, in cameras drawn at random."""
        frames, count = self.frames, self.settings.views_per_frame
        cameras = torch.randperm(len(frames.serials))[:count].tolist()
        views = frames.views(frame, cameras)
        expression = frames.expression[frame]
        driven = self.field.drive(surface, expression, self.poses[frame])
        image = render_surface(
            driven.vertices,
            make_discs(driven.vertices, surface.faces),
            driven.colours[:, :3],
            self.canonical_to_camera(frame, cameras),
            frames.intrinsics[cameras],
            frames.width,
            frames.height,
        )
        landmarks = self.field.express_landmarks(expression)
        return {
            "rgb": losses.rgb_loss(image.features, views.images, views.visible),
            "silhouette": losses.silhouette_loss(image.alpha, views.masks, views.visible),
            "offset": losses.offset_loss(driven.raw_expression)
            + losses.offset_loss(driven.raw_pose),
            "laplacian": losses.laplacian_loss(driven.vertices * frames.scale, surface.faces),
            "deformation": losses.deformation_loss(landmarks, self.landmarks[frame]),
        }

    def canonical_to_camera(self, frame: int, cameras: list[int]) -> Tensor:
        """(K, 4, 4) rigid transforms from canonical space to cameras, in canonical units.

        Projection does not see a common scale, so the head stays and the cameras move about it.
        """
        pose = torch.eye(4, device=self.rotations.device)
        pose[:3, :3] = self.rotations[frame]
        pose[:3, 3] = self.frames.translation[frame]
        matrices = self.frames.world_to_camera[cameras] @ pose
        matrices[:, :3, 3] /= self.frames.scale
        return matrices

    def state(self) -> dict[str, Any]:
        return {"field": self.field.state_dict(), "optimiser": self.optimiser.state_dict()}

    def restore(self, state: dict[str, Any]) -> None:
        self.field.load_state_dict(state["field"])
        self.optimiser.load_state_dict(state["optimiser"])


@torch.no_grad()
def save(task: SdfTraining, output: Path) -> None:
    """Write the model and the neutral mesh, coloured as at the timestep of least expression."""
    field, frames = task.field, task.frames
    task.neutral_surface(refresh=True)
    assert task.band is not None
    grid = task.band.grid
    for _ in range(field.settings.subdivisions):
        grid = grid.subdivide()
    surface = field.surface(grid, field.sample(grid.vertices))
    calmest = int(frames.expression.norm(dim=1).argmin())
    weights = field.weights(surface.vertices)
    colours = field.drivers.colour(
        surface.features, torch.zeros_like(frames.expression[0]), task.poses[calmest], weights
    )
    write_field(output, field, surface)
    mesh = Mesh(
        surface.vertices.cpu().numpy(),
        surface.faces.cpu().numpy(),
        torch.sigmoid(colours[:, :3]).cpu().numpy(),
    )
    write_mesh(output / "neutral.ply", mesh)
