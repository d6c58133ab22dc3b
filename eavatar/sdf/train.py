"""Stage I: fit the head field to the training frames, its surface drawn as splats (Eq. 14–18)."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import astuple, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad

from eavatar.avatar.files import write_stage_one
from eavatar.avatar.networks import encode_position
from eavatar.backends import RENDERERS
from eavatar.data.frames import FrameSet, unpack
from eavatar.data.loader import Batch, Loader
from eavatar.device import choose_device
from eavatar.errors import UserError
from eavatar.io import Mesh, read_mesh, write_mesh
from eavatar.landmark_indices import CHIN
from eavatar.sdf.field import LOWER, UPPER, HeadField, find_cut
from eavatar.sdf.tetrahedra import Band, Cut, Surface
from eavatar.settings import SdfSettings
from eavatar.training import losses
from eavatar.training.definition import define
from eavatar.training.graphs import Captured, run_aside
from eavatar.training.loop import Run, Trainable, finish, seed_everything, train
from eavatar.transforms import axis_angle_to_matrix

logger = logging.getLogger(__name__)

SPHERE_RADIUS = 1.0  # canonical units
SPHERE_STEPS = 500
SPHERE_POINTS = 4096
SPHERE_LEARNING_RATE = 2e-3
SPHERE_TOLERANCE = 0.05  # canonical units; half a cell of the coarsest sensible grid

REFRESH_EVERY = 20  # steps after which the whole grid is evaluated again
SPARE = 1.2  # room in the captured step / what the surface needs
LOOSE = 1.6  # the same, beyond which the room is made smaller
LEAST = 256  # more room than that, whatever the size
LAYERS = 2  # of tetrahedra on either side of the surface, evaluated in between


def train_sdf(
    settings: SdfSettings, seed: int, capture: Path, face: Path, prior: Path, output: Path
) -> None:
    """Fit the neutral surface and its drivers to a subject's training frames.

    Writes ``model.safetensors`` and ``model.yaml`` (see `write_stage_one`), ``neutral.ply``
    (canonical, coloured as at the calmest timestep) and ``log.csv`` to ``output``.

    Args:
        settings: stage I's block. seed: of all random draws.
        capture, face: folders of those stages. prior: ``prior/aligned.ply``.
        output: ``sdf/<variant>``.
    Raises:
        UserError: an input is missing or malformed, the sphere cannot be fitted, or a value is
            not finite; the renderer cannot be had.
    """
    seed_everything(seed)
    device = choose_device()
    task = prepare(settings, seed, capture, face, prior, device)
    frames = task.frames
    logger.info(
        "stage I: %d timesteps, %d cameras at %d pixels, %d grid vertices, %d expression "
        "coefficients, on %s",
        len(frames), len(frames.serials), frames.width, len(task.grid.vertices),
        task.field.expression_size, device,
    )  # fmt: skip
    definition = define("sdf", settings, seed, frames, prior=prior)
    run = Run("sdf", settings.steps, settings.run.checkpoint_every, definition)
    with task:
        train(task, run, output)
        save(task, output)
    finish(output, run)


def prepare(
    settings: SdfSettings, seed: int, capture: Path, face: Path, prior: Path, device: torch.device
) -> SdfTraining:
    """The task before its first step: the surface is a sphere. Arguments as of `train_sdf`.

    Raises:
        UserError: as `train_sdf`.
    """
    RENDERERS[settings.renderer].run(device)  # raises before anything is read
    frames = FrameSet.read(
        capture, face, "train", settings.image_size, settings.run.image_memory_gb
    ).to(device)
    shape = _shape_of_prior(read_mesh(prior), frames.neutral_landmarks)
    field = HeadField(settings, frames.expression.shape[1]).to(device)
    field.neutral_landmarks.data.copy_(frames.neutral_landmarks)
    field.torso.place(settings.torso, frames.neutral_landmarks, frames.poses, frames.scale)
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
        errors: Tensor = field.sample(points).sdf - distance
        return errors

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


@dataclass(frozen=True)
class Room:
    """Sizes of the tensors of a captured step, or those that one needs.

    Attributes:
        points: grid vertices at cut edges. vertices, faces: of the surface.
        near, far: vertices at which expression and pose are evaluated.
        pairs: of a splat and a tile.
    """

    points: int
    vertices: int
    faces: int
    near: int
    far: int
    pairs: int

    def with_spare(self) -> Room:
        """Room for a surface somewhat larger than one that needs this much."""
        return Room(*(int(SPARE * size) + LEAST for size in astuple(self)))

    def fits(self, needed: Room) -> bool:
        """Whether a surface has room in this, and does not rattle about in it."""
        pairs = zip(astuple(self), astuple(needed), strict=True)
        return all(need < room <= LOOSE * need + 2 * LEAST for room, need in pairs)

    def fill(self, points: Tensor, crossings: Cut) -> tuple[Tensor, Cut]:
        """Grid vertices (U, 3) and their cut in tensors that fill this room."""
        points = pad(points, (0, 0, 0, self.points - len(points)))
        return points, crossings.padded(self.vertices, self.faces)


def gather_inputs(points: Tensor, crossings: Cut, batch: Batch) -> list[Tensor]:
    """What `SdfTraining.update` takes: grid vertices (U, 3), their cut, and a step's pixels."""
    parts = [points, crossings.edges, crossings.faces, crossings.present]
    return [*parts, batch.timesteps, batch.cameras, batch.pixels]


class SdfTraining(Trainable):
    """What the training loop runs: a few timesteps a step, each in a few cameras, all at once.

    The host finds out where the surface cuts the grid. All that follows is a function of tensors
    (`update`), on CUDA one captured graph with room for a surface somewhat larger than the present
    one, captured anew when the room no longer fits. kaolin's renderer is not captured.

    Attributes:
        room: of the captured step; None where shapes follow the surface.
        reach: (3,) what the last step needed that only it could tell: the fields near, far and
            pairs of `Room`.
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
        self.loader = Loader(frames, seed, settings.timesteps_per_step, settings.views_per_timestep)
        renderer = RENDERERS[settings.renderer]
        self.render = renderer.run(frames.expression.device)
        self.grid = field.grid()
        self.region: Region | None = None
        self.poses = frames.poses
        rotations = axis_angle_to_matrix(frames.rotation)
        self.landmarks = (frames.landmarks - frames.translation[:, None]) @ rotations / frames.scale
        self.to_world = torch.eye(4, device=rotations.device).repeat(len(frames), 1, 1)
        self.to_world[:, :3, :3], self.to_world[:, :3, 3] = rotations, frames.translation
        networks = [
            *field.geometry.parameters(),
            *field.drivers.parameters(),
            *field.torso.parameters(),
        ]
        on_cuda = frames.expression.is_cuda
        self.optimiser = torch.optim.Adam(
            [
                {"params": networks, "lr": settings.learning_rate},
                {"params": [field.neutral_landmarks], "lr": settings.landmark_learning_rate},
            ],
            fused=True,
            capturable=on_cuda,
        )
        self.captures = on_cuda and renderer.capturable
        self.captured: Captured[dict[str, Tensor]] | None = None
        self.room: Room | None = None
        self.reach: Tensor | None = None

    @products_in_tf32()
    def step(self, step: int) -> dict[str, Tensor]:
        """One step of Adam on the weighted sum of Eq. 18."""
        batch = self.loader.batch(step)
        points, crossings = self.neutral_cut(refresh=step % REFRESH_EVERY == 0)
        if not self.captures:
            return self.update(*gather_inputs(points, crossings, batch))
        if self.reach is None:  # the first step, with what `Captured` wants to have run before
            return run_aside(self.update, *gather_inputs(points, crossings, batch))
        sizes = len(points), len(crossings.edges), len(crossings.faces)
        needed = Room(*sizes, *self.reach.tolist())
        room = self.room if self.room and self.room.fits(needed) else needed.with_spare()
        return self._replay(room, gather_inputs(*room.fill(points, crossings), batch))

    def _replay(self, room: Room, inputs: list[Tensor]) -> dict[str, Tensor]:
        """`update` by the graph with this room, which is captured if it is not the present one."""
        if self.captured is None or room is not self.room:
            if self.captured is not None:
                self.captured.release()
            torch.cuda.empty_cache()  # the graph has its own memory
            self.room = room
            self.captured = Captured(self.update, *inputs, warm_up=0)
        return self.captured(*inputs)

    def update(
        self,
        points: Tensor,
        edges: Tensor,
        faces: Tensor,
        present: Tensor,
        frames: Tensor,
        cameras: Tensor,
        pixels: Tensor,
    ) -> dict[str, Tensor]:
        """Forward, backward and optimiser; with a room no shape here depends on a value.

        Args:
            points: (U, 3) grid vertices. edges, faces, present: the fields of their `Cut`.
            frames, cameras, pixels: the fields of a `Batch`.
        """
        surface = self.field.surface_through(points, Cut(edges, faces, present))
        batch = Batch(frames, cameras, pixels)
        parts = {**self._neutral_terms(surface), **self._timestep_terms(surface, batch)}
        weights = self.settings.weights.model_dump()
        total = torch.stack([weights[name] * term for name, term in parts.items()]).sum()
        self.optimiser.zero_grad()
        total.backward()
        self.optimiser.step()
        parts = {name: term.detach() for name, term in parts.items()}
        return {"loss": total.detach(), **parts, "vertices": present.sum()}

    def neutral_cut(self, refresh: bool) -> tuple[Tensor, Cut]:
        """Where the neutral surface cuts the grid, as of `find_cut`, from the field near where the
        surface was last.

        That is the cut of the whole grid as long as it crosses no face between the band and the
        rest, which is looked at every time, and as long as none appears elsewhere, which the next
        refresh would find.

        Raises:
            UserError: there is no surface left in the box.
        """
        region, distances = self.region, None
        if region is not None and not refresh:
            distances = self.field.distances_encoded(region.encoded)
        if region is None or distances is None or not region.band.holds(distances):
            region = self._region(self.field.distances(self.grid.vertices) < 0)
            distances = self.field.distances_encoded(region.encoded)
        self.region = region
        points, crossings = find_cut(region.band.grid, distances)
        if len(crossings.faces) == 0:
            raise UserError(
                "stage I lost its surface: the signed distance has one sign in the whole box; "
                "lower sdf.learning_rate or look at the masks and the tracking."
            )
        return points, crossings

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
        frames, room = self.frames, self.room
        near, far, pairs = (room.near, room.far, room.pairs) if room else (None, None, None)
        driven = self.field.drive(
            surface,
            frames.expression[batch.timesteps],
            self.poses[batch.timesteps],
            near,
            far,
        )
        drawn = self.render(
            driven.vertices,
            surface.faces,
            driven.colours,
            self.canonical_to_camera(batch),
            frames.intrinsics[batch.cameras],
            frames.width,
            frames.height,
            pairs,
        )
        reach = torch.stack([driven.expressed.sum(), driven.posed.sum(), drawn.pairs])
        if self.reach is None:
            self.reach = torch.zeros_like(reach)
        self.reach.copy_(reach)
        images, masks = unpack(batch.pixels)
        visible = frames.visible[batch.cameras]
        return {
            "rgb": losses.rgb_loss(drawn.features, images, visible),
            "silhouette": losses.silhouette_loss(drawn.alpha, masks, visible),
            "offset": losses.offset_loss(driven.raw_expression, driven.expressed)
            + losses.offset_loss(driven.raw_pose, driven.posed),
            "laplacian": losses.laplacian_loss(driven.vertices * frames.scale, surface.faces),
            "deformation": losses.deformation_loss(
                driven.landmarks, self.landmarks[batch.timesteps]
            ),
        }

    def canonical_to_camera(self, batch: Batch) -> Tensor:
        """(B, K, 4, 4) rigid transforms from canonical space to cameras, in canonical units.

        Projection does not see a common scale, so the head stays and the cameras move about it.
        """
        to_world = self.to_world[batch.timesteps, None].double()  # never TF32
        matrices = (self.frames.world_to_camera[batch.cameras].double() @ to_world).float()
        matrices[..., :3, 3] /= self.frames.scale
        return matrices

    def describe(self, step: int) -> str:
        return self.loader.describe(step)

    def close(self) -> None:
        self.loader.close()

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
    task.neutral_cut(refresh=True)
    assert task.region is not None
    grid = task.region.band.grid
    for _ in range(field.settings.subdivisions):
        grid = grid.subdivide()
    surface = field.surface(grid, field.distances(grid.vertices))
    calmest = int(frames.expression.norm(dim=1).argmin())
    still = torch.zeros_like(frames.expression[:1])
    driven = field.drive(surface, still, task.poses[calmest, None])
    write_stage_one(output, field.result(surface), field.settings)
    mesh = Mesh(
        surface.vertices.cpu().numpy(),
        surface.faces.cpu().numpy(),
        driven.colours[0].cpu().numpy(),
    )
    write_mesh(output / "neutral.ply", mesh)
