"""Stage I: fit the head field to the training frames, its surface drawn as splats (Eq. 14–18)."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad

from eavatar.avatar.base_motion import BaseMotion
from eavatar.avatar.files import write_stage_one
from eavatar.backends import RENDERERS
from eavatar.data.frames import FrameSet, unpack
from eavatar.data.loader import Batch, Loader
from eavatar.device import choose_device
from eavatar.io import Mesh, read_alignment, read_mesh, write_mesh
from eavatar.landmark_indices import CHIN
from eavatar.meshes import smooth_noise
from eavatar.sdf.cut_finder import CutFinder
from eavatar.sdf.field import DrivenSurface, HeadField
from eavatar.sdf.prior_distance import PriorDistance, tabulate_prior
from eavatar.sdf.shape import Shape
from eavatar.sdf.start import PRIOR_POINTS, start_as_prior, start_as_sphere
from eavatar.sdf.surface import SurfaceImages
from eavatar.sdf.tetrahedra import Cut, Surface
from eavatar.settings import SdfSettings
from eavatar.training import losses
from eavatar.training.definition import define
from eavatar.training.graphs import Capacity, GrowingGraph
from eavatar.training.loop import Run, Trainable, finish, seed_everything, train
from eavatar.training.optimiser import AveragingAdam
from eavatar.training.plateau import ENDS, Plateau, hold_back, mean_squared_error
from eavatar.transforms import axis_angle_to_matrix

logger = logging.getLogger(__name__)

REFRESH_EVERY = 20  # steps after which the whole grid is evaluated again
SHOWN_STEPS = (0, 30, 100, 300, 1000, 3000)  # whose surfaces are kept, for figures

Values = dict[str, Tensor]


def train_sdf(
    settings: SdfSettings,
    seed: int,
    capture: Path,
    face: Path,
    prior: Path,
    alignment: Path,
    output: Path,
    held_out: Sequence[str] = (),
) -> Path:
    """Fit the neutral surface and its drivers to a subject's training frames.

    Writes ``model.safetensors`` and ``model.yaml`` (see `write_stage_one`), ``neutral.ply``
    (canonical, coloured as at the calmest timestep), ``surfaces/<step>.ply`` (canonical, as it was
    before some steps and after the last) and ``log.csv`` to ``output``.

    Args:
        settings: stage I's block.
        seed: of all random draws.
        capture: ``results/<subject>/capture``.
        face: ``results/<subject>/face``.
        prior: ``results/<subject>/prior/aligned.ply``.
        alignment: ``results/<subject>/prior/alignment.json``, which says whether to use it.
        output: ``results/<subject>/sdf/<variant>``.
        held_out: cameras that are not trained on, as of `eavatar.data.camera_split`.
    Returns:
        The path of the model.
    Raises:
        UserError: an input is missing or malformed, the sphere cannot be fitted, or a value is
            not finite; the renderer cannot be had.
    """
    seed_everything(seed)
    device = choose_device()
    used = settings.prior.enabled and read_alignment(alignment).accepted
    task = prepare(settings, seed, capture, face, prior if used else None, device, held_out)
    frames = task.frames
    if settings.prior.enabled and not used:
        logger.warning("stage I does without a prior: %s says that it was not accepted", alignment)
    logger.info(
        "stage I: %d timesteps, %d cameras at %d pixels, %d grid vertices, %d expression "
        "and %d appearance coefficients, on %s",
        len(frames), len(frames.serials), frames.width, len(task.cuts.grid.vertices),
        task.field.head.expression_size, task.field.head.appearance_size, device,
    )  # fmt: skip
    files = {"prior": prior, "alignment": alignment}
    if task.field.base:
        files |= {name: face / name for name in ("neutral.ply", "expression_basis.npz")}
    definition = define("sdf", settings, seed, frames, **files)
    bound = ENDS if settings.plateau.enabled else None
    run = Run("sdf", settings.steps, settings.run.checkpoint_every, definition, bound)
    with task:
        train(task, run, output)
        with task.optimiser.averaged():
            path = save(task, output)
    finish(output, run)
    return path


def prepare(
    settings: SdfSettings,
    seed: int,
    capture: Path,
    face: Path,
    prior: Path | None,
    device: torch.device,
    held_out: Sequence[str] = (),
) -> SdfTraining:
    """The task before its first step, its surface the first one; arguments as of `train_sdf`.

    Without a prior it starts from a sphere, and no term compares with one.

    Raises:
        UserError: as `train_sdf`.
    """
    RENDERERS[settings.renderer].run(device)  # raises before anything is read
    frames = FrameSet.read(
        capture, face, "train", settings.image_size, settings.run.image_memory_gb, held_out
    ).to(device)
    expressions, appearances, gaze = (
        part.shape[1] for part in (frames.expression, frames.appearance, frames.gaze)
    )
    carried = settings.base_motion == "morphable_model"
    base = BaseMotion.read(face, expressions, gaze) if carried else None
    field = HeadField(settings, expressions, appearances, gaze, base).to(device)
    field.neutral_landmarks.data.copy_(frames.neutral_landmarks)
    field.torso.place(settings.torso, frames.neutral_landmarks, frames.poses, frames.scale)
    known = _read_prior(prior, frames, field, seed) if prior else None
    if known and settings.prior.start:
        start_as_prior(field, known.distance)
    else:
        start_as_sphere(field)
    return SdfTraining(settings, seed, frames, field, known)


@dataclass(frozen=True)
class Prior:
    """The aligned prior.

    Attributes:
        shape: as Eq. 17 sees it.
        distance: to it, which counts where no camera looks, and on the face as the settings have
            it: that is what the prior was aligned with.
    """

    shape: Shape
    distance: PriorDistance


@torch.no_grad()
def _read_prior(path: Path, frames: FrameSet, field: HeadField, seed: int) -> Prior:
    mesh, floor = smooth_noise(read_mesh(path)), float(frames.neutral_landmarks[CHIN, 1])
    table = tabulate_prior(mesh, CanonicalFrames(frames).camera_centres(), seed)
    on_face = field.settings.prior.face * field.weights(table.points)
    return Prior(Shape.of(mesh, floor, frames.device, seed), table.counting(on_face))


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
class SurfaceCapacity(Capacity):
    """Sizes of the tensors of a captured step.

    Attributes:
        points: grid vertices at cut edges.
        vertices: of the surface.
        faces: of the surface.
        near: vertices at which the expression is evaluated.
        far: vertices at which the pose is evaluated.
        pairs: of a splat and a tile.
    """

    points: int
    vertices: int
    faces: int
    near: int
    far: int
    pairs: int

    def fill(self, points: Tensor, crossings: Cut) -> tuple[Tensor, Cut]:
        """Grid vertices (U, 3) and their cut in tensors of these sizes."""
        points = pad(points, (0, 0, 0, self.points - len(points)))
        return points, crossings.padded(self.vertices, self.faces)


def gather_inputs(
    points: Tensor, crossings: Cut, batch: Batch, prior: PriorDistance | None
) -> list[Tensor]:
    """What `SdfTraining.update` takes: grid vertices (U, 3), their cut, a step's pixels and points
    of the prior."""
    parts = [points, crossings.edges, crossings.faces, crossings.present]
    parts += [batch.timesteps, batch.cameras, batch.pixels]
    return parts + ([prior.points, prior.distances, prior.weights] if prior else [])


def make_optimiser(settings: SdfSettings, field: HeadField) -> AveragingAdam:
    """The optimiser of stage I."""
    networks = [
        *field.geometry.parameters(),
        *field.drivers.parameters(),
        *field.torso.parameters(),
    ]
    return AveragingAdam(
        [
            {"params": networks, "lr": settings.learning_rate},
            {"params": [field.neutral_landmarks], "lr": settings.landmark_learning_rate},
        ],
        settings.averaging,
        capturable=field.neutral_landmarks.is_cuda,
    )


class CanonicalFrames:
    """Tracking and cameras of the training frames as seen from canonical space.

    Args:
        frames: T timesteps, C cameras.

    Attributes:
        poses: (T, 6).
        landmarks: (T, 68, 3) canonical.
    """

    def __init__(self, frames: FrameSet):
        self.world_to_camera, self.scale = frames.world_to_camera, frames.scale
        self.poses = frames.poses
        rotations = axis_angle_to_matrix(frames.rotation)
        self.landmarks = (frames.landmarks - frames.translation[:, None]) @ rotations / frames.scale
        self.to_world = torch.eye(4, device=rotations.device).repeat(len(frames), 1, 1)
        self.to_world[:, :3, :3], self.to_world[:, :3, 3] = rotations, frames.translation

    def camera_centres(self) -> Tensor:
        """(V, 3) of all cameras at all timesteps."""
        rigid = self.world_to_camera.double() @ self.to_world[:, None].double()
        centres = -(rigid[..., :3, :3].mT @ rigid[..., :3, 3:])[..., 0] / self.scale
        return centres.flatten(0, 1).float()

    def to_camera(self, batch: Batch) -> Tensor:
        """(B, K, 4, 4) rigid transforms from canonical space to cameras, in canonical units.

        Projection does not see a common scale, so the head stays and the cameras move about it.
        """
        to_world = self.to_world[batch.timesteps, None].double()  # never TF32
        matrices = (self.world_to_camera[batch.cameras].double() @ to_world).float()
        matrices[..., :3, 3] /= self.scale
        return matrices


class SdfTraining(Trainable):
    """What the training loop runs: a few timesteps a step, each in a few cameras, all at once.

    The host finds out where the surface cuts the grid. All that follows is a function of tensors
    (`update`), on CUDA one captured graph, unless the renderer cannot be captured.

    Attributes:
        reach: (3,) what the last step needed that only it could tell: the fields near, far and
            pairs of `SurfaceCapacity`; None before the first step.
        surfaces: vertices (S, 3) and faces (M, 3) before some steps, by step.
    """

    def __init__(
        self,
        settings: SdfSettings,
        seed: int,
        frames: FrameSet,
        field: HeadField,
        prior: Prior | None,
    ):
        self.held_back: list[tuple[int, int]] = []
        if settings.plateau.enabled:
            frames, self.held_back = hold_back(frames, settings.plateau.images)
        self.plateau = Plateau(settings.plateau, settings.steps, fall=0)
        self.settings, self.frames, self.field, self.prior = settings, frames, field, prior
        self.loader = Loader(frames, seed, settings.timesteps_per_step, settings.views_per_timestep)
        renderer = RENDERERS[settings.renderer]
        self.render = renderer.run(frames.device)
        self.cuts, self.canonical = CutFinder(field), CanonicalFrames(frames)
        self.optimiser = make_optimiser(settings, field)
        self.graph: GrowingGraph[SurfaceCapacity, Values] = GrowingGraph(
            self.update, captures=frames.device.type == "cuda" and renderer.capturable
        )
        self.reach: Tensor | None = None
        self.surfaces: dict[int, tuple[Tensor, Tensor]] = {}

    @products_in_tf32()
    def step(self, step: int) -> Values:
        """One step of Adam on the weighted sum of Eq. 18."""
        self.optimiser.set_step(step)
        batch = self.loader.batch(step)
        refresh = step % REFRESH_EVERY == 0
        points, crossings = self.cuts.find(refresh)
        if step in SHOWN_STEPS:
            self._keep_surface(step, points, crossings)
        if refresh and self.prior and self.settings.prior.realign:
            self._realign(self.prior.shape, points, crossings)
        if self.graph.captures and self.reach is not None:
            sizes = len(points), len(crossings.edges), len(crossings.faces)
            needed = SurfaceCapacity(*sizes, *self.reach.tolist())
            points, crossings = self.graph.fit(needed).fill(points, crossings)
        drawn = self.prior.distance.draw(step, PRIOR_POINTS) if self.prior else None
        values = self.graph(*gather_inputs(points, crossings, batch, drawn))
        if self.plateau.is_due(step + 1):
            self.plateau.look(step + 1, self._look_at_held_back())
        return values

    def is_over(self, made: int) -> bool:
        return made >= self.plateau.end

    @torch.no_grad()
    def _look_at_held_back(self) -> list[Tensor]:
        """The mean squared error of each held-back image, by the means of the parameters."""
        device, errors = self.frames.device, []
        with self.optimiser.averaged():
            surface = grid_surface(self)
            for timestep, camera in self.held_back:
                when, where = (torch.tensor(i, device=device) for i in ([timestep], [[camera]]))
                views = self.frames.views(timestep, [camera])
                batch = Batch(when, where, views.images)
                _, drawn = self._draw(surface, batch, (None, None, None))
                errors.append(mean_squared_error(drawn.features[0], views.images, views.visible))
        return errors

    def update(
        self,
        capacity: SurfaceCapacity | None,
        points: Tensor,
        edges: Tensor,
        faces: Tensor,
        present: Tensor,
        timesteps: Tensor,
        cameras: Tensor,
        pixels: Tensor,
        *prior: Tensor,
    ) -> Values:
        """Forward, backward and optimiser; with capacities no shape here depends on a value.

        Args:
            capacity: which the tensors of the surface fill; None where they follow its size.
            points: (U, 3) grid vertices.
            edges: of their `Cut`, as are the next two.
            faces: likewise.
            present: likewise.
            timesteps: of a `Batch`, as are the next two.
            cameras: likewise.
            pixels: likewise.
            prior: points, distances and weights of a `PriorDistance`; nothing without a prior.
        """
        surface = self.field.surface_through(points, Cut(edges, faces, present))
        batch = Batch(timesteps, cameras, pixels)
        parts = {
            **self._neutral_terms(surface, PriorDistance(*prior) if prior else None),
            **self._timestep_terms(surface, batch, capacity),
        }
        weights = self.settings.weights.model_dump()
        total = torch.stack([weights[name] * term for name, term in parts.items()]).sum()
        self.optimiser.zero_grad()
        total.backward()
        self.optimiser.step()
        parts = {name: term.detach() for name, term in parts.items()}
        return {"loss": total.detach(), **parts, "vertices": present.sum()}

    def _neutral_terms(self, surface: Surface, prior: PriorDistance | None) -> Values:
        """The terms that no timestep enters."""
        at_landmarks = self.field.sample(self.field.neutral_landmarks)
        terms = {"landmark": losses.landmark_loss(at_landmarks.sdf)}
        if self.prior and prior:
            shape = self.prior.shape
            measured = shape.region.measure(surface.vertices, surface.faces)
            terms["mesh"] = losses.alignment_loss(*measured, shape.centre, shape.size)
            terms["prior_distance"] = self._prior_term(prior)
        return terms

    @torch.no_grad()
    def _realign(self, shape: Shape, points: Tensor, crossings: Cut) -> None:
        """Align the prior with the surface through grid vertices (U, 3)."""
        shape.realign(self.field.surface_through(points, crossings).vertices)

    @torch.no_grad()
    def _keep_surface(self, step: int, points: Tensor, crossings: Cut) -> None:
        surface = self.field.surface_through(points, crossings)
        self.surfaces[step] = (surface.vertices, surface.faces)

    def _prior_term(self, prior: PriorDistance) -> Tensor:
        """The surface is where the prior's is, as far as that counts.

        The grid's vertices stay there too: by their offsets the surface moves at equal distances.
        """
        samples = self.field.sample(prior.points)
        errors = torch.cat([(samples.sdf - prior.distances)[:, None], samples.offsets], dim=1)
        tolerance = self.settings.prior.tolerance
        return losses.prior_distance_loss(errors, prior.weights, tolerance)

    def _timestep_terms(
        self, surface: Surface, batch: Batch, capacity: SurfaceCapacity | None
    ) -> Values:
        """The terms of the timesteps of a batch, each the mean over them."""
        frames, canonical = self.frames, self.canonical
        sizes = (capacity.near, capacity.far, capacity.pairs) if capacity else (None, None, None)
        driven, drawn = self._draw(surface, batch, sizes)
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
            "laplacian": losses.laplacian_loss(
                (driven.vertices - driven.base) * frames.scale, surface.faces
            ),
            "deformation": losses.deformation_loss(
                driven.landmarks, canonical.landmarks[batch.timesteps]
            ),
        }

    def _draw(
        self, surface: Surface, batch: Batch, sizes: tuple[int | None, int | None, int | None]
    ) -> tuple[DrivenSurface, SurfaceImages]:
        """The timesteps of a batch in its cameras, and their surfaces.

        Args:
            surface: neutral.
            batch: whose pixels are not looked at.
            sizes: the fields near, far and pairs of `SurfaceCapacity`, or None for each.
        """
        frames, canonical = self.frames, self.canonical
        near, far, pairs = sizes
        driven = self.field.drive(
            surface,
            frames.driving[batch.timesteps],
            canonical.poses[batch.timesteps],
            near,
            far,
        )
        drawn = self.render(
            driven.vertices,
            surface.faces,
            driven.colours,
            canonical.to_camera(batch),
            frames.intrinsics[batch.cameras],
            frames.width,
            frames.height,
            pairs,
        )
        return driven, drawn

    def describe(self, step: int) -> str:
        return self.loader.describe(step)

    def close(self) -> None:
        self.loader.close()

    def state(self) -> dict[str, Any]:
        """Also the sides of the grid's vertices, which decide where the field is evaluated, the
        prior's centre and size, which change if it is realigned, and the surfaces so far."""
        return {
            "field": self.field.state_dict(),
            "optimiser": self.optimiser.state_dict(),
            "inside": self.cuts.inside,
            "shape": self._movable(),
            "surfaces": self.surfaces,
            "plateau": self.plateau.state(),
        }

    def _movable(self) -> list[Tensor]:
        """What a realigned prior changes."""
        return [self.prior.shape.centre, self.prior.shape.size] if self.prior else []

    def restore(self, state: dict[str, Any]) -> None:
        self.field.load_state_dict(state["field"])
        self.optimiser.load_state_dict(state["optimiser"])
        for own, stored in zip(self._movable(), state["shape"], strict=True):
            own.copy_(stored)
        self.cuts.look_near(state["inside"].to(self.frames.device))
        self.surfaces = state["surfaces"]
        self.plateau.restore(state["plateau"])


@torch.no_grad()
def grid_surface(task: SdfTraining) -> Surface:
    """The present surface in the cells that training has."""
    grid = task.cuts.near_grid()
    return task.field.surface(grid, task.field.distances(grid.vertices))


@torch.no_grad()
def neutral_surface(task: SdfTraining) -> Surface:
    """The present surface, its cells halved as often as the settings have it."""
    field, grid = task.field, task.cuts.near_grid()
    for _ in range(field.settings.subdivisions):
        grid = grid.subdivide()
    return field.surface(grid, field.distances(grid.vertices))


@torch.no_grad()
def save(task: SdfTraining, output: Path) -> Path:
    """Write the model, the neutral mesh, coloured as at the timestep of least expression, and the
    surfaces on the way to it.

    Returns:
        The path of the model.
    """
    field, frames, surface = task.field, task.frames, neutral_surface(task)
    calmest = int(frames.expression.norm(dim=1).argmin())
    still = torch.zeros_like(frames.driving[:1])
    driven = field.drive(surface, still, frames.poses[calmest, None])
    path = write_stage_one(output, field.result(surface), field.settings, frames.serials)
    mesh = Mesh(
        surface.vertices.cpu().numpy(),
        surface.faces.cpu().numpy(),
        driven.colours[0].cpu().numpy(),
    )
    write_mesh(output / "neutral.ply", mesh)
    _write_surfaces(task, output / "surfaces")
    return path


@torch.no_grad()
def _write_surfaces(task: SdfTraining, folder: Path) -> None:
    """Write the surfaces that were kept, and the last one."""
    last = grid_surface(task)
    surfaces = task.surfaces | {task.plateau.end: (last.vertices, last.faces)}
    for stale in folder.glob("*.ply"):
        stale.unlink()
    for step, (vertices, faces) in surfaces.items():
        write_mesh(folder / f"{step:05d}.ply", Mesh(vertices.cpu().numpy(), faces.cpu().numpy()))
