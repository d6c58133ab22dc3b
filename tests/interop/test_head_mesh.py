"""Stage I's surface at a timestep is what stage I has trained, in meshes and animations."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.spatial.transform import Rotation

from eavatar.__main__ import main
from eavatar.avatar.base_motion import BaseMotion
from eavatar.avatar.files import write_stage_one
from eavatar.errors import UserError
from eavatar.interop.head_mesh import HeadMesh
from eavatar.interop.mesh_files import Shapes
from eavatar.io import Mesh, read_mesh, write_arrays, write_mesh
from eavatar.sdf.field import HeadField
from eavatar.sdf.tetrahedra import Surface, body_centred_grid, cut
from eavatar.settings import TorsoSettings, read_config
from eavatar.transforms import axis_angle_to_matrix
from tests.scenes import CONFIG
from tests.scenes.glb_reader import GlbFile
from tests.scenes.small_avatar import EXPRESSIONS
from tests.scenes.small_results import TIMESTEPS, make_tracking

SCALE, TOLERANCE = 0.1, 1e-5  # metres of a unit; float32 over some layers, units


def ball() -> Surface:
    """Of radius 0.6."""
    grid = body_centred_grid(torch.full((3,), -1.0), torch.full((3,), 1.0), 10)
    distances = grid.vertices.norm(dim=1) - 0.6
    return cut(grid, distances < 0).surface(grid.vertices, distances, torch.rand(len(distances), 8))


def make_field(surface: Surface) -> HeadField:
    """Random networks; the lower half of the ball is torso, and all of it moves with the mesh."""
    torch.manual_seed(0)
    settings = read_config(CONFIG / "config.yaml", CONFIG / "demo.yaml").sdf
    settings = settings.model_copy(update={"width": 16, "feature_size": 8, "grid_resolution": 12})
    basis = torch.zeros(len(surface.vertices), 3, EXPRESSIONS)
    basis[:, 1, 0] = 0.05  # the same everywhere: no matter which face carries a vertex
    base = BaseMotion(surface.vertices.clone(), surface.faces, basis)
    field = HeadField(settings, EXPRESSIONS, base=base)
    for parameter in field.drivers.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    front = surface.vertices[surface.vertices[:, 2].argsort(descending=True)[:68]]
    field.neutral_landmarks.data.copy_(front)
    poses = torch.from_numpy(make_tracking().poses)
    landmarks = front.clone()
    landmarks[:, 1] = 0.5
    field.torso.place(TorsoSettings(enabled=True, start=0.3, end=0.8), landmarks, poses, SCALE)
    return field


@pytest.fixture(scope="module")
def surface() -> Surface:
    torch.manual_seed(1)
    return ball()


@pytest.fixture(scope="module")
def field(surface: Surface) -> HeadField:
    return make_field(surface)


@pytest.fixture(scope="module")
def results(surface: Surface, field: HeadField, tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("results")
    write_stage_one(root / "sdf/full", field.result(surface), field.settings, cameras=())
    mesh = Mesh(surface.vertices.numpy(), surface.faces.numpy())
    write_mesh(root / "sdf/full/neutral.ply", mesh)
    write_arrays(root / "face/tracking/FREE.npz", make_tracking())
    return root


@torch.no_grad()
def driven(field: HeadField, surface: Surface, index: int) -> tuple[np.ndarray, np.ndarray]:
    """World positions, metres, and colours of a timestep, as stage I trains with them."""
    tracking = make_tracking()
    pose = torch.from_numpy(tracking.poses[index])
    shape = field.drive(surface, torch.from_numpy(tracking.expression[index])[None], pose[None])
    world = SCALE * shape.vertices[0] @ axis_angle_to_matrix(pose[:3]).T + pose[3:]
    return world.numpy(), shape.colours[0].numpy()


def run(results: Path, form: str, output: Path, *more: str) -> int:
    return main(["export", str(results), "--format", form, "--output", str(output), *more])


def test_meshes_are_the_surfaces_that_stage_one_draws(
    results: Path, field: HeadField, surface: Surface, tmp_path: Path
):
    more = ("--sequence", "FREE", "--world")
    assert run(results, "mesh.ply", tmp_path / "free", *more) == 0
    paths = sorted((tmp_path / "free").iterdir())
    assert [path.name for path in paths] == [f"{t:05d}.ply" for t in range(TIMESTEPS)]
    for index, path in enumerate(paths):
        mesh, (vertices, colours) = read_mesh(path), driven(field, surface, index)
        np.testing.assert_allclose(mesh.vertices, vertices, atol=SCALE * TOLERANCE)
        np.testing.assert_allclose(mesh.colours, colours, atol=0.51 / 255)
        np.testing.assert_array_equal(mesh.faces, surface.faces)


def test_a_canonical_mesh_has_no_pose(results: Path, tmp_path: Path):
    more = ("--sequence", "FREE", "--timestep", "1")
    assert run(results, "mesh.ply", tmp_path / "world.ply", *more, "--world") == 0
    assert run(results, "mesh.ply", tmp_path / "canonical.ply", *more) == 0
    assert run(results, "mesh.glb", tmp_path / "canonical.glb", *more) == 0
    timestep = make_tracking()[1]
    turn = Rotation.from_rotvec(timestep.rotation)
    canonical, world = (read_mesh(tmp_path / f"{name}.ply") for name in ("canonical", "world"))
    expected = SCALE * turn.apply(canonical.vertices) + timestep.translation
    np.testing.assert_allclose(world.vertices, expected, atol=SCALE * TOLERANCE)
    in_metres = read_mesh(tmp_path / "canonical.glb")  # by trimesh
    np.testing.assert_allclose(in_metres.vertices, SCALE * canonical.vertices, atol=1e-6)


def play(file: GlbFile, index: int) -> np.ndarray:
    """The vertices of a timestep by the rules of glTF: morph targets, then the skin's joints."""
    content, own = file.content, file.attributes()
    (animation,), (primitive,) = content["animations"], content["meshes"][0]["primitives"]
    values = {}
    for channel in animation["channels"]:
        sampler = animation["samplers"][channel["sampler"]]
        count = len(file.array(sampler["input"]))
        sampled = file.array(sampler["output"]).reshape(count, -1)[index]
        values[channel["target"]["node"], channel["target"]["path"]] = sampled
    points = own["POSITION"].astype(float)
    for weight, target in zip(values[0, "weights"], primitive["targets"], strict=True):
        points = points + weight * file.array(target["POSITION"])
    vertices = np.zeros_like(points)
    for number, node in enumerate(content["skins"][0]["joints"]):
        share = np.where(own["JOINTS_0"] == number, own["WEIGHTS_0"], 0).sum(axis=1)
        turn = Rotation.from_quat(values[node, "rotation"])
        vertices += share[:, None] * (turn.apply(points) + values[node, "translation"])
    return vertices


@pytest.mark.parametrize("world", [True, False])
def test_an_animation_plays_the_meshes_of_the_sequence(
    results: Path, field: HeadField, surface: Surface, tmp_path: Path, world: bool
):
    more = ["--sequence", "FREE", *(["--world"] if world else [])]
    assert run(results, "mesh.glb", tmp_path / "free.glb", *more) == 0
    file = GlbFile(tmp_path / "free.glb")
    for index in range(TIMESTEPS):
        expected, _ = driven(field, surface, index)
        if not world:
            timestep = make_tracking()[index]
            turn = Rotation.from_rotvec(timestep.rotation)
            expected = turn.inv().apply(expected - timestep.translation)
        # As many targets as timesteps, so that they are exact but for float32.
        np.testing.assert_allclose(play(file, index), expected, atol=1e-5)
    shares = file.attributes()["WEIGHTS_0"]
    np.testing.assert_allclose(shares.sum(axis=1), 1, atol=1e-6)
    assert (shares[:, 1] > 0.9).any() and (shares[:, 0] > 0.9).any()


def test_few_shapes_are_the_best_and_their_error_is_told():
    """Two of three orthogonal motions can be kept; the smallest is what is lost."""
    random, sizes = np.random.default_rng(0), np.array([3.0, 2.0, 0.1])
    motions = np.zeros((3, 3, 3))
    motions[[0, 1, 2], [0, 1, 2], 0] = sizes  # each moves one vertex along x
    amounts = np.linalg.qr(random.normal(size=(40, 3)))[0]
    rows = np.einsum("tk,kvx->tvx", amounts, motions).astype(np.float32)
    exact = Shapes.of(rows)
    assert exact.error < 1e-6
    fewer = Shapes.of(rows, most=2)
    assert fewer.targets.shape == (2, 3, 3)
    assert np.abs(fewer.weights).max() == pytest.approx(1)
    assert fewer.error == pytest.approx(0.1 * np.abs(amounts[:, 2]).max(), rel=1e-3)
    kept = np.einsum("tk,kvx->tvx", fewer.weights, fewer.targets)
    np.testing.assert_allclose(kept[:, :2], rows[:, :2], atol=1e-5)


def test_no_measured_appearance_is_the_mean_one(field: HeadField, surface: Surface):
    """As of the neutral expression, and of trackings from before there was any."""
    stage = field.result(surface)
    head = stage.head.model_copy(update={"appearance_size": 2, "expression_size": EXPRESSIONS - 2})
    mesh = HeadMesh(replace(stage, head=head, base=None), surface.faces.numpy())
    timestep = make_tracking()[0]
    short = timestep.with_expression(timestep.expression[:1])
    long = replace(short, appearance=np.zeros(2, np.float32))
    for one, other in zip(mesh.deform(short), mesh.deform(long), strict=True):
        assert torch.equal(one, other)


def test_each_number_drives_what_it_was_tracked_for(field: HeadField, surface: Surface):
    """Also where the gaze before the appearance was not tracked; what is unknown is told."""
    stage = field.result(surface)
    sizes = {"expression_size": EXPRESSIONS - 2, "gaze_size": 1, "appearance_size": 1}
    head = stage.head.model_copy(update=sizes)
    mesh = HeadMesh(replace(stage, head=head, base=None), surface.faces.numpy())
    one, none = np.ones(1, np.float32), np.zeros(0, np.float32)
    timestep = replace(make_tracking()[0], expression=one, appearance=one, gaze=none)
    straight = replace(timestep, gaze=0 * one)
    for found, expected in zip(mesh.deform(timestep), mesh.deform(straight), strict=True):
        assert torch.equal(found, expected)
    without = head.model_copy(update={"gaze_size": 0, "appearance_size": 2})
    mesh = HeadMesh(replace(stage, head=without, base=None), surface.faces.numpy())
    with pytest.raises(UserError, match="1 numbers of the gaze and the surface of stage I 0"):
        mesh.deform(replace(straight, appearance=none))


def test_a_mesh_of_another_training_is_told(
    results: Path, surface: Surface, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    path = results / "sdf/full/neutral.ply"
    kept = path.read_bytes()
    write_mesh(path, Mesh(np.eye(3, dtype=np.float32), np.array([[0, 1, 2]])))
    try:
        assert run(results, "mesh.glb", tmp_path / "a.glb") == 2
    finally:
        path.write_bytes(kept)
    assert "has 3 vertices and the model beside it" in capsys.readouterr().err
