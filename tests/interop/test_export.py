"""`export`: what other programs read is what the avatar and stage I draw."""

from __future__ import annotations

import csv
import re
from dataclasses import replace
from pathlib import Path

import gaussforge
import numpy as np
import pytest
import torch
from plyfile import PlyData

from eavatar.__main__ import main
from eavatar.avatar.files import read_avatar
from eavatar.avatar.model import CameraBatch
from eavatar.cameras import Camera
from eavatar.data.frames import FrameSet
from eavatar.interop import fine_tuning
from eavatar.interop.avatar_splats import PlainSplats, find_widening
from eavatar.interop.splat_files import write_glb
from eavatar.io import Identity, Timestep, read_cameras, write_arrays
from eavatar.rendering.splatting import Gaussians, splat
from eavatar.transforms import Similarity, axis_angle_to_matrix
from tests.scenes import splat_scene
from tests.scenes.glb_reader import GlbFile
from tests.scenes.small_avatar import EXPRESSIONS, SIZE, make_avatar
from tests.scenes.small_results import TIMESTEPS, make_tracking, write_results

SCALE = 0.1  # of the small avatar
HARMONIC = 0.5 / np.sqrt(np.pi)
FLIP = np.diag([1.0, -1.0, -1.0])  # y up and z backward to y down and z forward


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = write_results(tmp_path_factory.mktemp("results"))
    identity = Identity(np.zeros(2), np.array(SCALE), np.zeros((68, 3)))
    write_arrays(root / "face" / "identity.npz", identity)
    return root


def run(results: Path, form: str, output: Path, *more: str) -> int:
    return main(["export", str(results), "--format", form, "--output", str(output), *more])


def read_ply(path: Path) -> Gaussians:
    """The set of a file, by plyfile and the activations that splat viewers apply."""
    rows = PlyData.read(str(path))["vertex"]

    def columns(*names: str) -> torch.Tensor:
        return torch.from_numpy(np.stack([rows[name] for name in names], axis=1))

    return Gaussians(
        columns("x", "y", "z"),
        columns("rot_0", "rot_1", "rot_2", "rot_3"),
        columns("scale_0", "scale_1", "scale_2").exp(),
        columns("opacity")[:, 0].sigmoid(),
        0.5 + HARMONIC * columns("f_dc_0", "f_dc_1", "f_dc_2"),
    )


def draw(gaussians: Gaussians, camera: Camera, world_to_camera: np.ndarray | None = None):
    matrix = camera.world_to_camera if world_to_camera is None else world_to_camera
    given = [torch.from_numpy(each)[None].float() for each in (matrix, camera.intrinsics)]
    image = splat(gaussians, *given, camera.width, camera.height, torch.ones(3))
    return image.features[0]


def coarse_image(results: Path, timestep: Timestep, camera: Camera) -> torch.Tensor:
    """What the avatar splats at half the size of its images."""
    avatar = read_avatar(results / "splat" / "full")
    expression, rotation, translation = map(torch.from_numpy, (
        timestep.driving, timestep.rotation, timestep.translation
    ))  # fmt: skip
    views = CameraBatch.of([camera.resize(SIZE, SIZE)], avatar.device)
    with torch.no_grad():
        coarse = avatar.draw(expression, torch.cat([rotation, translation]), views)
    return coarse.features[0, ..., :3]


@pytest.fixture(params=["222200036", "222200037"])
def camera(request: pytest.FixtureRequest, results: Path) -> Camera:
    """At the coarse size."""
    found = read_cameras(results / "capture" / "cameras.json")[request.param]
    return found.resize(SIZE // 2, SIZE // 2)


def test_a_ply_of_the_world_is_the_coarse_image(results: Path, tmp_path: Path, camera: Camera):
    assert run(
        results, "gaussians.ply", tmp_path / "out", "--sequence", "FREE", "--world", "--unfiltered",
    ) == 0  # fmt: skip
    names = sorted(path.name for path in (tmp_path / "out").iterdir())
    assert names == [f"{t:05d}.ply" for t in range(TIMESTEPS)]
    for name, timestep in zip(names, make_tracking(), strict=True):
        expected = coarse_image(results, timestep, camera)
        drawn = draw(read_ply(tmp_path / "out" / name), camera)
        # Float32 through a logarithm and a logit; drawn Gaussians differ from white by 0.3.
        assert (drawn - expected).abs().max() < 1e-3
        assert (1 - expected).abs().max() > 0.3


def test_a_canonical_ply_is_the_same_head_upside_down(
    results: Path, tmp_path: Path, camera: Camera
):
    more = ("--sequence", "FREE", "--timestep", "1", "--unfiltered")
    assert run(results, "gaussians.ply", tmp_path / "one.ply", *more) == 0
    timestep = make_tracking()[1]
    rotation = axis_angle_to_matrix(torch.from_numpy(timestep.rotation)).double().numpy()
    to_world = Similarity(SCALE, rotation @ FLIP, timestep.translation.astype(np.float64))
    matrix = camera.world_to_camera @ to_world.matrix
    matrix[:3] /= SCALE  # a rigid motion, in canonical units
    drawn = draw(read_ply(tmp_path / "one.ply"), camera, matrix)
    assert (drawn - coarse_image(results, timestep, camera)).abs().max() < 1e-3  # as above


def test_by_default_the_neutral_head_looks_as_coarse_at_the_full_size(
    results: Path, tmp_path: Path, camera: Camera
):
    """Without the low pass of a coarse pixel the set has gaps when it is drawn larger."""
    neutral = Timestep(np.zeros(EXPRESSIONS, np.float32), *np.zeros((2, 3), np.float32))
    coarse = coarse_image(results, neutral, camera)
    errors = []
    for name, more in (("as_is", []), ("without", ["--unfiltered"])):
        path = tmp_path / f"{name}.ply"
        assert run(results, "gaussians.ply", path, "--world", *more) == 0
        fine = draw(read_ply(path), camera.resize(SIZE, SIZE))
        averaged = fine.reshape(SIZE // 2, 2, SIZE // 2, 2, 3).mean(dim=(1, 3))
        errors.append(float((averaged - coarse).square().mean()))
    assert errors[0] < 0.3 * errors[1]  # what is left is the averaging over 2 × 2 pixels


def test_gaussforge_reads_the_ply_and_finds_the_same_in_the_spz(results: Path, tmp_path: Path):
    reader, files = gaussforge.GaussForge(), {}
    for suffix in ("ply", "spz"):
        path = tmp_path / f"neutral.{suffix}"
        assert run(results, f"gaussians.{suffix}", path) == 0
        files[suffix] = path.read_bytes()
    ply = read_ply(tmp_path / "neutral.ply")
    told = reader.get_model_info(files["ply"], "ply")["data"]
    assert told["basic"]["numPoints"] == len(ply.means)
    assert told["rendering"]["shDegree"] == 0
    (tmp_path / "back.ply").write_bytes(bytes(reader.convert(files["spz"], "spz", "ply")["data"]))
    spz = read_ply(tmp_path / "back.ply")
    assert len(files["spz"]) < 0.4 * len(files["ply"])
    turned = ply.means * torch.tensor([1.0, -1.0, -1.0])  # y is up in .spz, down in .ply
    assert (spz.means - turned).abs().max() < 2**-16  # half a step, and float32
    assert (spz.scales / ply.scales).log().abs().max() < 1 / 31  # half a step of 1/16
    assert (spz.opacities - ply.opacities).abs().max() < 0.6 / 255
    assert (spz.features - ply.features).abs().max() < 0.6 / 255 * HARMONIC / 0.15
    w, x, y, z = ply.quaternions.unbind(dim=1)
    back = torch.stack([x, -w, z, -y], dim=1)
    cosine = (back * spz.quaternions).sum(dim=1).abs()
    assert torch.rad2deg(2 * torch.acos(cosine.clamp(max=1))).max() < 0.3  # of 9 bits a component


def test_gltf_holds_activated_values_in_metres(results: Path, tmp_path: Path):
    for form in ("gaussians.glb", "gaussians.ply"):
        assert run(results, form, tmp_path / form) == 0
    file, ply = GlbFile(tmp_path / "gaussians.glb"), read_ply(tmp_path / "gaussians.ply")
    assert file.content["extensionsUsed"] == ["KHR_gaussian_splatting"]
    (primitive,) = file.content["meshes"][0]["primitives"]
    assert primitive["mode"] == 0
    described = primitive["extensions"]["KHR_gaussian_splatting"]
    assert described == {"kernel": "ellipse", "colorSpace": "srgb_rec709_display"}
    own = {name.split(":")[-1]: values for name, values in file.attributes().items()}
    upright = ply.means.numpy() @ FLIP.astype(np.float32)
    np.testing.assert_allclose(own["POSITION"], SCALE * upright, atol=1e-6)
    np.testing.assert_allclose(own["SCALE"], SCALE * ply.scales, rtol=1e-5)
    np.testing.assert_allclose(own["OPACITY"], ply.opacities, atol=1e-6)
    colours = 0.5 + HARMONIC * own["SH_DEGREE_0_COEF_0"]
    np.testing.assert_allclose(colours, ply.features, atol=1e-6)
    w, x, y, z = ply.quaternions.unbind(dim=1)
    back = torch.stack([-w, z, -y, x], dim=1)  # half a turn about x undone, xyzw
    cosine = np.abs((back.numpy() * own["ROTATION"]).sum(axis=1))
    np.testing.assert_allclose(cosine, 1, atol=1e-6)
    # COLOR_0 is linear: the sRGB transfer function of IEC 61966-2-1 gives the colours back.
    linear = own["COLOR_0"][:, :3]
    encoded = np.where(linear > 0.0031308, 1.055 * linear ** (1 / 2.4) - 0.055, 12.92 * linear)
    np.testing.assert_allclose(encoded, ply.features, atol=1e-4)


def test_colours_beyond_white_are_valid_gltf(tmp_path: Path):
    """Shading brightens what turns to a lamp; COLOR_0 must be within [0, 1]."""
    lit = Gaussians(torch.zeros(1, 3), torch.ones(1, 4), torch.ones(1, 3), torch.full((1,), 0.5),
                    torch.tensor([[1.2, 0.5, 0.0]]))  # fmt: skip
    attributes = GlbFile(write_glb(tmp_path / "lit.glb", lit)).attributes()
    assert attributes["COLOR_0"].max() == 1
    coefficients = attributes["KHR_gaussian_splatting:SH_DEGREE_0_COEF_0"]
    np.testing.assert_allclose(0.5 + HARMONIC * coefficients, lit.features, atol=1e-6)


def test_tracking_takes_canonical_points_to_the_world(results: Path, tmp_path: Path):
    for suffix in ("npz", "csv"):
        more = ("--sequence", "FREE")
        assert run(results, f"tracking.{suffix}", tmp_path / f"free.{suffix}", *more) == 0
    tracking = make_tracking()
    with np.load(tmp_path / "free.npz") as file:
        arrays = dict(file)
    np.testing.assert_array_equal(arrays["expression"], tracking.expression)
    point = np.array([0.3, -0.2, 0.9])
    for timestep, matrix in zip(tracking, arrays["canonical_to_world"], strict=True):
        rotation = axis_angle_to_matrix(torch.from_numpy(timestep.rotation)).numpy()
        expected = SCALE * rotation @ point + timestep.translation
        np.testing.assert_allclose(matrix @ [*point, 1], [*expected, 1], atol=1e-6)
    with (tmp_path / "free.csv").open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert [row["timestep"] for row in rows] == ["0", "1", "2"]
    for row, timestep in zip(rows, tracking, strict=True):
        assert float(row["expression_2"]) == pytest.approx(timestep.expression[2], rel=1e-6)
        assert float(row["landmarks_67_2"]) == 0


def test_one_timestep_of_a_tracking_keeps_its_number(results: Path, tmp_path: Path):
    more = ("--sequence", "FREE", "--timestep", "2")
    assert run(results, "tracking.npz", tmp_path / "two.npz", *more) == 0
    with np.load(tmp_path / "two.npz") as file:
        np.testing.assert_array_equal(file["timestep"], [2])
        np.testing.assert_array_equal(file["rotation"], make_tracking().rotation[2:])


def test_fine_tuning_draws_held_out_frames_better(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """The avatar is made up, so only the frames can tell what it should look like."""
    monkeypatch.setattr(fine_tuning, "STEPS", 150)
    root = splat_scene.write_subject(tmp_path)
    avatar = make_avatar()
    splats = PlainSplats(avatar, find_widening(avatar, read_cameras(root / "capture/cameras.json")))
    corrections = fine_tuning.fine_tune(splats, root / "capture", root / "face")
    frames = FrameSet.read(root / "capture", root / "face", "test", SIZE)
    cameras = list(range(len(frames.serials)))
    truth = frames.views(0, cameras).images
    before = splats(fine_tuning.get_timestep(frames, 0))
    errors = []
    for gaussians in (before, corrections(before)):
        views = frames.world_to_camera, frames.intrinsics
        drawn = splat(gaussians, *views, SIZE, SIZE, torch.ones(3)).features
        errors.append(float((drawn - truth).abs().mean()))
    assert errors[1] < 0.8 * errors[0]
    nothing = fine_tuning.Corrections(len(before.means))(before)
    torch.testing.assert_close(nothing.features, before.features, atol=1e-4, rtol=0)


@pytest.mark.parametrize(
    ("form", "output", "more", "message"),
    [
        ("gaussians.obj", "a.obj", [], r"'gaussians\.obj' is unknown; name one of: gaussians\.ply"),
        ("gaussians.ply", "a.ply", ["--timestep", "0"], "name one with --sequence"),
        ("tracking.csv", "a.csv", [], "name one with --sequence"),
        ("mesh.ply", "a.ply", ["--fine-tune"], r"leave them out for mesh\.ply"),
        ("gaussians.ply", "a.spz", [], r"name a file that ends in \.ply"),
        ("gaussians.ply", "a.ply", ["--sequence", "FREE"], "name a folder, without a suffix"),
        ("gaussians.ply", "a", ["--sequence", "SEN-1"], "no sequence 'SEN-1'; tracked are: FREE"),
        (
            "gaussians.ply", "a.ply", ["--sequence", "FREE", "--timestep", "3"],
            "no timestep 3; its timesteps are 0 to 2",
        ),
        (
            "tracking.npz", "a.npz", ["--sequence", "FREE", "--timestep", "-1"],
            "no timestep -1; its timesteps are 0 to 2",
        ),
        ("gaussians.ply", "a.ply", ["--variant", "bare"], "no variant 'bare'; name one of: full"),
        ("mesh.ply", "a.ply", [], "no trained model in sdf/ yet; train it with"),
    ],
)  # fmt: skip
def test_bad_input_is_one_sentence(
    results: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], form, output, more, message
):
    assert run(results, form, tmp_path / output, *more) == 2
    told = capsys.readouterr().err
    assert re.search(message, told) and len(told.strip().splitlines()) == 1
    assert list(tmp_path.iterdir()) == []


def test_a_folder_without_an_avatar_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    (tmp_path / "074" / "capture").mkdir(parents=True)
    assert run(tmp_path / "074", "gaussians.ply", tmp_path / "a.ply") == 2
    assert "no trained model in splat/ yet; train it with" in capsys.readouterr().err


def test_an_output_that_cannot_be_written_is_told(
    results: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    (tmp_path / "file").touch()
    (tmp_path / "full.ply").mkdir()
    assert run(results, "gaussians.ply", tmp_path / "file" / "a.ply") == 2
    assert "cannot be written" in capsys.readouterr().err
    assert run(results, "gaussians.ply", tmp_path / "full.ply") == 2
    assert "full.ply is a folder already" in capsys.readouterr().err


def test_a_tracking_of_another_model_is_told(
    results: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    other = make_tracking()
    other = replace(other, expression=other.expression[:, :2])
    write_arrays(results / "face" / "tracking" / "OTHER.npz", other)
    more = ("--sequence", "OTHER", "--timestep", "0")
    assert run(results, "gaussians.ply", tmp_path / "a.ply", *more) == 2
    assert "has 2 expression coefficients and the model 3" in capsys.readouterr().err
