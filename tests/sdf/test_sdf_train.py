"""Stage I on a small analytic subject, through the contract files."""

from __future__ import annotations

import io
import logging
import shutil
from collections import Counter
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch.utils._python_dispatch import TorchDispatchMode

from eavatar.avatar.base_motion import BaseMotion
from eavatar.avatar.files import read_stage_one, write_stage_one
from eavatar.cameras import Camera
from eavatar.errors import UserError
from eavatar.io import (
    Alignment,
    ExpressionBasis,
    Identity,
    Mesh,
    Sequences,
    Tracking,
    read_alignment,
    read_mesh,
    write_alignment,
    write_arrays,
    write_cameras,
    write_mesh,
    write_sequences,
)
from eavatar.sdf import prior_distance, start
from eavatar.sdf.field import HeadField
from eavatar.sdf.start import PRIOR_POINTS
from eavatar.sdf.tetrahedra import Surface, body_centred_grid, cut
from eavatar.sdf.train import (
    REFRESH_EVERY,
    SdfTraining,
    SurfaceCapacity,
    gather_inputs,
    prepare,
    train_sdf,
)
from eavatar.settings import PlateauSettings, RunSettings, SdfSettings, read_config
from eavatar.training.loop import seed_everything
from eavatar.transforms import Similarity
from tests.scenes import ROOT
from tests.scenes.carrier import EXPRESSIONS, carrier, face_landmarks
from tests.scenes.cuts import train_in_pieces
from tests.scenes.rays import pixel_rays

SIZE, RADIUS, CENTRE = 32, 0.8, torch.tensor([0.0, -0.1, -0.4])
SERIALS = ("1", "2", "3", "4")


def settings(**changes: object) -> SdfSettings:
    small = {
        "steps": 60, "timesteps_per_step": 1, "views_per_timestep": 3, "image_size": SIZE,
        "grid_resolution": 16, "width": 32, "feature_size": 8, "learning_rate": 5e-3,
        "run": RunSettings(image_memory_gb=1, checkpoint_every=1000),
    }  # fmt: skip
    base = read_config(ROOT / "config/config.yaml", ROOT / "config/demo.yaml").sdf
    # A sphere unless a test asks otherwise: what it has to learn is then farther away.
    small["prior"] = base.prior.model_copy(update={"start": False})
    return base.model_copy(update={**small, **changes})


@pytest.fixture(autouse=True)
def few_points_of_the_prior(monkeypatch: pytest.MonkeyPatch) -> None:
    """Enough for a ball."""
    monkeypatch.setattr(prior_distance, "POINTS", 8000)


def ball() -> Surface:
    grid = body_centred_grid(torch.full((3,), -1.0), torch.full((3,), 1.0), 12)
    sdf = torch.linalg.vector_norm(grid.vertices, dim=1) - RADIUS
    surface = cut(grid, sdf < 0).surface(grid.vertices, sdf, grid.vertices)
    return replace(surface, vertices=surface.vertices + CENTRE)


def camera_towards_head(azimuth: float) -> Camera:
    """One metre from the origin, 3.4 dm across."""
    backward = np.array([np.sin(azimuth), 0.0, np.cos(azimuth)])
    rotation = np.stack([np.cross([0, -1, 0], -backward), [0, -1, 0], -backward])
    world_to_camera = np.eye(4)
    world_to_camera[:3, :3], world_to_camera[2, 3] = rotation, 1.0
    focal = SIZE / 0.34
    intrinsics = np.array([[focal, 0, SIZE / 2], [0, focal, SIZE / 2], [0, 0, 1]])
    return Camera(intrinsics, world_to_camera, SIZE, SIZE)


def picture(camera: Camera) -> tuple[np.ndarray, np.ndarray]:
    """A red ball: colour (H, W, 3) RGB and mask (H, W)."""
    to_ball = CENTRE.numpy() * 0.1 - camera.centre
    across = np.linalg.norm(np.cross(pixel_rays(camera), to_ball), axis=-1)
    mask = (across < RADIUS * 0.1).astype(np.uint8) * 255
    return np.where(mask[..., None] > 0, [200, 60, 40], 255).astype(np.uint8), mask


@pytest.fixture
def subject(tmp_path: Path) -> Path:
    """capture/, face/ and prior/aligned.ply of a ball that stays where it is for two timesteps."""
    cameras = {
        serial: camera_towards_head(azimuth)
        for serial, azimuth in zip(SERIALS, (-1.2, -0.4, 0.4, 1.2), strict=True)
    }
    capture, face = tmp_path / "capture", tmp_path / "face"
    write_cameras(capture / "cameras.json", cameras)
    write_sequences(capture / "sequences.json", Sequences(("EXP-1",), ()))
    rows = ["timestep,camera,source_frame,sharpness"]
    boxes = ["timestep,camera,left,top,right,bottom,failed"]
    for serial, camera in cameras.items():
        colour, mask = picture(camera)
        for timestep in range(2):
            rows.append(f"{timestep},{serial},{timestep},1.0")
            boxes.append(f"{timestep},{serial},0,0,{len(mask)},{len(mask)},0")
            files = {
                f"EXP-1/{serial}/{timestep:05d}.jpg": colour[..., ::-1],
                f"masks/EXP-1/{serial}/{timestep:05d}.png": mask,
                f"visible/{serial}.png": np.full_like(mask, 255),
            }
            for name, image in files.items():
                (capture / name).parent.mkdir(parents=True, exist_ok=True)
                cv2.imwrite(str(capture / name), image)
    (capture / "EXP-1.csv").write_text("\n".join(rows) + "\n")
    (capture / "masks" / "EXP-1.csv").write_text("\n".join(boxes) + "\n")
    surface = ball()
    front = surface.vertices[surface.vertices[:, 2] > CENTRE[2] + 0.3]
    landmarks = front[torch.linspace(0, len(front) - 1, 68).long()].numpy()
    landmarks[8] = [0, CENTRE[1] - RADIUS, CENTRE[2]]
    write_mesh(face / "neutral.ply", Mesh(surface.vertices.numpy(), surface.faces.numpy()))
    still_basis = np.zeros((len(surface.vertices), 3, 2), np.float32)
    write_arrays(face / "expression_basis.npz", ExpressionBasis(still_basis))
    write_arrays(face / "identity.npz", Identity(np.zeros(3), np.array(0.1, np.float32), landmarks))
    world = np.stack([landmarks * 0.1] * 2)
    still = np.zeros((2, 3))
    tracking = Tracking(np.array([[0.0, 0], [1, -1]]), still, still, world, np.zeros((2, 4)))
    write_arrays(face / "tracking" / "EXP-1.npz", tracking)
    write_mesh(tmp_path / "prior.ply", Mesh(surface.vertices.numpy(), surface.faces.numpy()))
    unmoved = Similarity(1.0, np.eye(3), np.zeros(3))
    write_alignment(tmp_path / "alignment.json", Alignment(unmoved, 0.02, 0.9, accepted=True))
    return tmp_path


def run(subject: Path, output: Path, chosen: SdfSettings) -> Path:
    places = [subject / name for name in ("capture", "face", "prior.ply", "alignment.json")]
    train_sdf(chosen, 0, *places, output)
    return output


@pytest.mark.parametrize("accepted", [False, True])
def test_a_prior_that_was_not_accepted_or_is_not_wanted_is_not_used(
    subject: Path, accepted: bool
) -> None:
    path = subject / "alignment.json"
    write_alignment(path, replace(read_alignment(path), accepted=accepted))
    write_mesh(subject / "prior.ply", Mesh(np.full((3, 3), 1e6, np.float32), np.arange(3)[None]))
    wanted = settings().prior.model_copy(update={"enabled": not accepted, "start": True})
    output = run(subject, subject / "sdf", settings(steps=1, prior=wanted))
    columns = (output / "log.csv").read_text().split("\n")[0].split(",")
    assert "landmark" in columns and not {"mesh", "prior_distance"} & set(columns)


def test_training_finds_the_ball(subject: Path) -> None:
    output = run(subject, subject / "sdf", settings())
    mesh = read_mesh(output / "neutral.ply")
    distance = np.linalg.norm(mesh.vertices - CENTRE.numpy(), axis=1) - RADIUS
    # It starts from a sphere of radius 1; a pixel is 0.1 dm, a cell 0.22 dm.
    assert np.abs(distance).mean() < 0.06
    colour = mesh.colours.mean(axis=0)
    assert colour[0] > colour[1] + 0.2
    on_the_way = [read_mesh(path).vertices for path in sorted((output / "surfaces").iterdir())]
    errors = [
        np.abs(np.linalg.norm(v - CENTRE.numpy(), axis=1) - RADIUS).mean() for v in on_the_way
    ]
    assert len(errors) == 3 and errors[0] > 0.1 > errors[2]  # before steps 0 and 30, after 60
    assert {path.name for path in output.iterdir()} == {
        "model.safetensors", "model.yaml", "neutral.ply", "surfaces", "log.csv", "checkpoints",
    }  # fmt: skip
    tensors = load_file(output / "model.safetensors")
    assert tensors["surface.positions"].shape == (len(mesh.vertices), 3)
    assert tensors["surface.features"].shape == (len(mesh.vertices), 8)
    stage = read_stage_one(output)
    assert torch.equal(stage.vertices, tensors["surface.positions"])
    HeadField(settings(), 2).geometry.load_state_dict(stage.geometry)


def test_ends_where_held_back_frames_no_longer_improve(subject: Path) -> None:
    """After four looks, as nothing gains that much; the last surface has the last step's name."""
    plateau = PlateauSettings(enabled=True, images=2, every=2, gain=100)
    output = run(subject, subject / "sdf", settings(plateau=plateau))
    assert (output / "log.csv").read_text().split()[-1].startswith("7,")
    assert [path.name for path in sorted((output / "surfaces").iterdir())][-1] == "00008.ply"
    assert not (output / "checkpoints").exists()


def test_where_no_camera_looks_the_surface_stays_on_the_prior(subject: Path) -> None:
    """The prior is a ball a tenth larger than that of the images, which show its front alone."""
    surface = ball()
    larger = CENTRE + 1.1 * (surface.vertices - CENTRE)
    write_mesh(subject / "prior.ply", Mesh(larger.numpy(), surface.faces.numpy()))
    prior = settings().prior.model_copy(update={"start": True, "face": 0.0})
    output = run(subject, subject / "sdf", settings(prior=prior))
    offsets = read_mesh(output / "neutral.ply").vertices - CENTRE.numpy()
    radii = np.linalg.norm(offsets, axis=1)
    behind, ahead = offsets[:, 2] < -0.5 * radii, offsets[:, 2] > 0.5 * radii
    assert abs(radii[behind].mean() - 1.1 * RADIUS) < 0.02
    assert radii[ahead].mean() < 1.05 * RADIUS


@pytest.fixture
def begun(subject: Path) -> Path:
    """The folder of a training of three steps."""
    return run(subject, subject / "begun", settings(steps=3))


def test_more_steps_go_on_whatever_way_they_are_carried_out(
    subject: Path, begun: Path, caplog: pytest.LogCaptureFixture
) -> None:
    whole = load_file(run(subject, subject / "whole", settings(steps=5)) / "model.safetensors")
    base = settings().run
    for change in ({"image_memory_gb": 0.0}, {"checkpoint_every": 1}):
        assert base.model_copy(update=change) != base
        output = shutil.copytree(begun, subject / next(iter(change)))
        caplog.clear()
        with caplog.at_level(logging.INFO):
            run(subject, output, settings(steps=5, run=base.model_copy(update=change)))
        assert "resuming from" in caplog.text
        model = load_file(output / "model.safetensors")
        assert all(torch.equal(model[name], value) for name, value in whole.items())
        surfaces = [folder / "surfaces/00000.ply" for folder in (begun, output)]
        assert sorted(path.name for path in surfaces[1].parent.iterdir()) == [
            "00000.ply",
            "00005.ply",
        ]
        assert surfaces[0].read_bytes() == surfaces[1].read_bytes()


@pytest.mark.skipif(torch.cuda.is_available(), reason="sums are in any order on CUDA")
def test_cut_at_ten_random_steps_it_ends_with_the_same_parameters_to_the_bit(
    subject: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(start, "SPHERE_POINTS", 256)  # each piece begins with it
    chosen = settings(steps=30, run=RunSettings(image_memory_gb=1, checkpoint_every=4))
    whole = run(subject, subject / "whole", chosen) / "model.safetensors"
    parts = subject / "parts"
    firsts = train_in_pieces(monkeypatch, SdfTraining, 30, lambda: run(subject, parts, chosen))
    assert firsts[0] == 0 and firsts == sorted(firsts)
    assert (parts / whole.name).read_bytes() == whole.read_bytes()


def test_field_at_cut_edges_gives_the_surface_of_the_field_everywhere() -> None:
    torch.manual_seed(0)
    field = HeadField(settings(), 2)
    grid = body_centred_grid(torch.full((3,), -1.0), torch.full((3,), 1.0), 6)
    distances = field.distances(grid.vertices)
    with torch.no_grad():  # some surface, whatever the network starts as
        field.geometry.layers[-1].bias[0] -= distances.median()
    sparse = field.surface(grid, field.distances(grid.vertices))
    samples = field.sample(grid.vertices)
    moved = grid.vertices + samples.offsets
    dense = cut(grid, samples.sdf < 0).surface(moved, samples.sdf, samples.features)
    assert torch.equal(sparse.faces, dense.faces)
    # The distances of neighbours differ by about 0.01, so float32 leaves 1e-5 of an edge.
    torch.testing.assert_close(sparse.vertices, dense.vertices, atol=1e-4, rtol=0)
    torch.testing.assert_close(sparse.features, dense.features, atol=1e-4, rtol=0)
    gradients = [
        torch.autograd.grad(surface.features.square().sum(), field.geometry.parameters())
        for surface in (sparse, dense)
    ]
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-3 * float(other.abs().max()))


def test_values_that_are_not_finite_are_never_saved(tmp_path: Path) -> None:
    field = HeadField(settings(), 2)
    with torch.no_grad():
        field.drivers.pose_colour.layers[0].bias[0] = float("nan")
    with pytest.raises(UserError, match=r"drivers\.pose_colour"):
        write_stage_one(tmp_path, field.result(ball()), field.settings, cameras=())
    assert not list(tmp_path.iterdir())


def test_unfit_description_is_one_sentence(tmp_path: Path) -> None:
    write_stage_one(tmp_path, HeadField(settings(), 2).result(ball()), settings(), cameras=())
    path = tmp_path / "model.yaml"
    path.write_text(path.read_text().replace("expression_size: 2", "expression_size: 3"))
    with pytest.raises(UserError, match=r"does not fit its model\.yaml"):
        read_stage_one(tmp_path)


def make_task(subject: Path, chosen: SdfSettings) -> SdfTraining:
    seed_everything(0)
    places = (subject / "capture", subject / "face", subject / "prior.ply")
    return prepare(chosen, 0, *places, torch.device("cpu"))


def test_resuming_between_two_looks_at_the_whole_grid_changes_nothing(subject: Path) -> None:
    assert REFRESH_EVERY > 8
    prior = settings().prior.model_copy(update={"realign": True})
    chosen = settings(timesteps_per_step=2, prior=prior)
    task = make_task(subject, chosen)
    with task:
        for step in range(4):
            task.step(step)
        file = io.BytesIO()
        torch.save(task.state(), file)
        for step in range(4, 8):
            expected = task.step(step)
    file.seek(0)
    other = make_task(subject, chosen)
    other.restore(torch.load(file, weights_only=True))
    torch.manual_seed(1)  # no draw comes from the global state
    with other:
        for step in range(4, 8):
            values = other.step(step)
    assert values == expected
    for name, value in task.field.state_dict().items():
        assert torch.equal(value, other.field.state_dict()[name])


class Synchronisations(TorchDispatchMode):
    """Counts host-device synchronisations: sizes and numbers that depend on data."""

    def __init__(self) -> None:
        super().__init__()
        self.counts: Counter[str] = Counter()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.counts[str(function.overloadpacket).removeprefix("aten.")] += 1
        if "index" in str(function) and len(args) > 1 and isinstance(args[1], (list, tuple)):
            self.counts["masked"] += sum(x is not None and x.dtype == torch.bool for x in args[1])
        return function(*args, **(kwargs or {}))


def test_a_step_synchronises_only_where_sizes_depend_on_the_surface(subject: Path) -> None:
    task = make_task(subject, settings(timesteps_per_step=2))
    with task:
        task.step(0)
        sides = task.cuts.region
        with Synchronisations() as seen:
            task.step(1)
    assert task.cuts.region is sides  # otherwise the whole grid was looked at
    drawn = 2 * 3  # on the CPU each view selects what it sees
    # Edges, faces and vertices of the cut; points near and far, for which CUDA has capacities.
    assert seen.counts["nonzero"] == 5 + drawn
    assert seen.counts["_local_scalar_dense"] == 1  # whether the band holds
    for name in ("masked", "masked_select", "bincount", "unique", "_unique2"):
        assert seen.counts[name] == 0


def test_a_step_with_capacity_to_spare_is_the_same_step(subject: Path) -> None:
    """What CUDA captures: all tensors larger than the surface needs."""
    exact, roomy = (make_task(subject, settings(timesteps_per_step=2)) for _ in range(2))
    with exact, roomy:
        for step in range(6):
            batch = exact.loader.batch(step)
            drawn = exact.prior.distance.draw(step, PRIOR_POINTS)
            exact_cut = exact.cuts.find(refresh=step == 0)
            expected = exact.update(None, *gather_inputs(*exact_cut, batch, drawn))
            points, crossings = roomy.cuts.find(refresh=step == 0)
            sizes = len(points), len(crossings.edges), len(crossings.faces)
            capacity = SurfaceCapacity(*sizes, *exact.reach.tolist()).with_spare()
            filled = capacity.fill(points, crossings)
            values = roomy.update(capacity, *gather_inputs(*filled, batch, drawn))
            assert roomy.reach[:2].tolist() == exact.reach[:2].tolist()
            for name, value in expected.items():
                # Sums over other numbers of zeros round differently, and Adam amplifies it.
                torch.testing.assert_close(values[name], value, rtol=1e-3, atol=1e-6)
    for name, value in exact.field.state_dict().items():
        torch.testing.assert_close(roomy.field.state_dict()[name], value, rtol=0, atol=2e-3)


@pytest.mark.parametrize("refresh", [True, False])
def test_a_lost_surface_is_one_sentence(subject: Path, refresh: bool) -> None:
    task = make_task(subject, settings())
    task.cuts.find(refresh=True)
    with torch.no_grad():
        task.field.geometry.layers[-1].bias[0] += 100  # dm: outside everywhere
    with task, pytest.raises(UserError, match="lost its surface"):
        task.cuts.find(refresh)


def test_dibr_asks_for_a_device_before_anything_is_read(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"set sdf\.renderer to 'splats'"):
        make_task(tmp_path, settings(renderer="dibr"))


@pytest.mark.gpu
def test_steps_on_cuda_lower_the_loss(subject: Path) -> None:
    seed_everything(0)
    places = (subject / "capture", subject / "face", subject / "prior.ply")
    task = prepare(settings(timesteps_per_step=2), 0, *places, torch.device("cuda"))
    with task:
        values = task.step(0)
        assert all(value.is_cuda for value in values.values())
        # Read at once, since a captured step writes where the one before did.
        losses = [float(values["loss"])] + [float(task.step(k)["loss"]) for k in range(1, 40)]
    assert losses[-1] < 0.7 * losses[0]


@pytest.mark.gpu
def test_captured_steps_are_the_steps(subject: Path) -> None:
    losses = []
    for captures in (False, True):
        seed_everything(0)
        places = (subject / "capture", subject / "face", subject / "prior.ply")
        task = prepare(settings(timesteps_per_step=2), 0, *places, torch.device("cuda"))
        task.graph.captures = captures
        with task:
            losses.append([float(task.step(step)["loss"]) for step in range(8)])
        assert task.graph.captured == captures
    # gsplat adds in any order, and Adam amplifies it from step to step.
    torch.testing.assert_close(*map(torch.tensor, losses), rtol=1e-2, atol=0)


def test_a_body_that_leaves_the_box_is_closed_at_its_sides() -> None:
    """As shoulders do: a field that is inside everywhere gives the box, without a border."""
    field = HeadField(settings(), 2)
    with torch.no_grad():
        field.geometry.layers[-1].bias[0] -= 100
    grid = field.grid()
    surface = field.surface(grid, field.distances(grid.vertices))
    edges = surface.faces[:, [0, 1, 1, 2, 2, 0]].reshape(-1, 2).sort(dim=1).values
    assert (edges.unique(dim=0, return_counts=True)[1] == 2).all()
    sides = field.upper - field.lower
    # The offsets move what is cut by up to a quarter of a cell.
    spans = surface.vertices.detach().amax(dim=0) - surface.vertices.detach().amin(dim=0)
    torch.testing.assert_close(spans, sides, rtol=0, atol=2 * field.offset_limit)


def test_with_a_base_motion_new_drivers_move_the_surface_as_the_mesh() -> None:
    """Landmarks too; without one nothing moves."""
    mesh, basis = carrier()
    base = BaseMotion.of(mesh, basis, face_landmarks())
    surface = ball()
    surface = replace(surface, features=torch.zeros(len(surface.vertices), 8))
    expressions = torch.tensor([[0.5, -1.0, 0.3], [0.0, 0.0, 0.0]])
    with torch.no_grad():
        for own in (base, None):
            field = HeadField(settings(), EXPRESSIONS, base=own)
            field.neutral_landmarks.copy_(face_landmarks())
            driven = field.drive(surface, expressions, torch.zeros(2, 6))
            moved = driven.vertices - surface.vertices
            torch.testing.assert_close(moved, driven.base, rtol=0, atol=1e-6)  # dm
            assert (driven.base[1] == 0).all()
            assert (driven.base[0].norm(dim=1).max() > 0.05) == (own is not None)
    expected = base.attach(surface.vertices).carry(base(expressions))
    field = HeadField(settings(), EXPRESSIONS, base=base)
    field.neutral_landmarks.data.copy_(face_landmarks())
    driven = field.drive(surface, expressions, torch.zeros(2, 6))
    # Both take the nearest face, the table that of the cell's middle: see its own test.
    assert (driven.base - expected).square().sum(dim=2).mean().sqrt() < 0.01
    shifts = driven.landmarks - face_landmarks()
    at_landmarks = base.attach(face_landmarks()).carry(base(expressions))
    assert (shifts - at_landmarks).norm(dim=2).mean() < 0.01


def test_the_base_motion_is_handed_on_with_the_model(tmp_path: Path) -> None:
    base = BaseMotion.of(*carrier(), face_landmarks())
    stage = HeadField(settings(), EXPRESSIONS, base=base).result(ball())
    write_stage_one(tmp_path, stage, settings(), cameras=())
    read = read_stage_one(tmp_path).base
    assert read is not None
    for name, value in base.state_dict().items():
        assert torch.equal(read.state_dict()[name], value), name
