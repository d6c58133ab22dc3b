"""The generic head: closed, the right way round, at human measures, and fitted to a face."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import trimesh

from eavatar.errors import UserError
from eavatar.io import Identity, Mesh, read_mesh, write_arrays, write_mesh
from eavatar.meshes import vertex_normals
from eavatar.prior.generate import generate_prior
from eavatar.prior.template import generic_head, head_distance
from eavatar.prior.template_fit import fit_head, on_border, surface_pulls, warp
from eavatar.settings import GenerateSettings
from tests.scenes.heads import cut, random_head


def distance_to(mesh: Mesh, points: np.ndarray) -> np.ndarray:
    """(N,) distance of points to the vertices of a mesh, dm; its edges are 0.055 dm long."""
    from scipy.spatial import cKDTree

    return cKDTree(mesh.vertices).query(points)[0]


def test_the_generic_head_is_one_closed_outward_surface() -> None:
    mesh = generic_head().mesh
    shape = trimesh.Trimesh(mesh.vertices, mesh.faces, process=False)
    assert shape.is_watertight and shape.body_count == 1
    assert 5_000 < len(mesh.vertices) < 12_000
    # a head displaces 4 to 5 litres with its neck (1 dm³ = 1 l); a flipped surface is negative
    assert 4 < shape.volume < 6.5


def test_the_generic_head_has_human_proportions() -> None:
    head = generic_head()
    marks, vertices = head.landmarks, head.mesh.vertices
    # adult means in dm: bizygomatic 1.3–1.4, nasion to chin 1.15–1.25, outer eye corners 0.9
    assert np.ptp(marks[[0, 16], 0]) == pytest.approx(1.45, abs=0.15)
    assert marks[27, 1] - marks[8, 1] == pytest.approx(1.15, abs=0.15)
    assert marks[45, 0] - marks[36, 0] == pytest.approx(0.9, abs=0.1)
    # vertex of the skull to chin 2.2–2.4, back of the head to nose tip 2.1–2.3
    assert vertices[:, 1].max() - marks[8, 1] == pytest.approx(2.25, abs=0.15)
    assert np.ptp(vertices[vertices[:, 1] > -0.5, 2]) == pytest.approx(2.25, abs=0.15)
    # the nose points to +z, the subject's right comes first and lies at -x
    assert marks[:, 2].argmax() == 30
    assert marks[0, 0] < 0 < marks[16, 0]


def test_landmarks_lie_on_the_surface_and_mirror_each_other() -> None:
    head = generic_head()
    assert np.abs(head_distance(head.landmarks)).max() < 1e-6
    assert distance_to(head.mesh, head.landmarks).max() < 0.055
    jaw = head.landmarks[:17]
    np.testing.assert_allclose(jaw, jaw[::-1] * (-1, 1, 1), atol=1e-6)
    inner_eyes = head.landmarks[[39, 42]]
    np.testing.assert_allclose(inner_eyes[0], inner_eyes[1] * (-1, 1, 1), atol=1e-6)


def test_warp_interpolates_and_is_bounded_far_away() -> None:
    random = np.random.default_rng(0)
    sources = random.normal(size=(30, 3))
    targets = sources + 0.1 * random.normal(size=(30, 3))
    np.testing.assert_allclose(warp(sources, sources, targets, np.zeros(30)), targets, atol=1e-8)
    far = 100 * np.eye(3)
    # no linear growth: 50 times as far as the data, the displacement stays of the data's order
    assert np.abs(warp(far, sources, targets, np.zeros(30)) - far).max() < 2


@pytest.mark.parametrize("radius", [0.45, np.inf], ids=["face", "head"])
def test_fit_matches_landmarks_and_surface_and_stays_closed(radius: float) -> None:
    subject = random_head(1)
    neutral = cut(subject.mesh, distance_to_landmarks(subject) < radius)
    fitted = fit_head(subject.landmarks, neutral)
    assert np.linalg.norm(fitted.landmarks - subject.landmarks, axis=1).max() < 0.02
    # surfaces 2 mm apart over the face; a vertex of one is up to half an edge from one of the other
    face = subject.mesh.vertices[distance_to_landmarks(subject) < 0.3]
    assert distance_to(fitted.mesh, face).mean() < 0.035
    shape = trimesh.Trimesh(fitted.mesh.vertices, fitted.mesh.faces, process=False)
    assert shape.is_watertight and 0.7 < shape.volume / subject_volume(subject) < 1.4


def distance_to_landmarks(subject) -> np.ndarray:
    from scipy.spatial import cKDTree

    return cKDTree(subject.landmarks).query(subject.mesh.vertices)[0]


def subject_volume(subject) -> float:
    return trimesh.Trimesh(subject.mesh.vertices, subject.mesh.faces, process=False).volume


def test_normals_and_border_of_an_open_box() -> None:
    box = trimesh.creation.box([2, 2, 2])
    mesh = Mesh(np.float32(box.vertices), np.asarray(box.faces))
    normals = vertex_normals(mesh.vertices, mesh.faces)
    np.testing.assert_allclose(np.linalg.norm(normals, axis=1), 1)
    assert ((normals * mesh.vertices) > 0).all()
    assert not on_border(mesh).any()
    lidless = Mesh(mesh.vertices, mesh.faces[~(box.face_normals[:, 1] > 0.5)])
    np.testing.assert_array_equal(on_border(lidless), mesh.vertices[:, 1] > 0)


def test_pulls_follow_the_normal_and_respect_the_reach() -> None:
    sphere = trimesh.creation.icosphere(subdivisions=3)
    vertices, faces = np.asarray(sphere.vertices), np.asarray(sphere.faces)
    larger = Mesh(np.float32(1.1 * vertices), faces)
    sources, targets = surface_pulls(vertices, faces, larger, 0.2)
    assert len(sources) > 100
    # to the tangent plane at a vertex of a coarse sphere: its sagitta is 1e-3
    np.testing.assert_allclose(targets, 1.1 * sources, atol=3e-3)
    assert len(surface_pulls(vertices, faces, larger, 0.05)[0]) == 0


@pytest.fixture
def face(tmp_path: Path) -> tuple[Path, Path]:
    subject = random_head(2)
    identity = Identity(np.zeros(4), np.float32(0.1), subject.landmarks)
    write_mesh(tmp_path / "neutral.ply", subject.mesh)
    return write_arrays(tmp_path / "identity.npz", identity), tmp_path / "neutral.ply"


def test_template_is_written_in_a_generators_frame(face: tuple[Path, Path], tmp_path: Path) -> None:
    generate_prior(GenerateSettings(source="template"), *face, None, tmp_path / "raw.ply")
    raw = read_mesh(tmp_path / "raw.ply")
    assert np.abs(raw.vertices).max() == pytest.approx(0.5, abs=1e-4)
    assert trimesh.Trimesh(raw.vertices, raw.faces).volume > 0  # turned, not mirrored
    # z up: the shoulders, the widest part, are at the bottom; the nose points to -y
    assert np.ptp(raw.vertices[raw.vertices[:, 2] < -0.4, 0]) > 0.6
    middle = raw.vertices[raw.vertices[:, 2] > -0.1]
    assert abs(middle[middle[:, 1].argmin(), 0]) < 0.05


@pytest.mark.parametrize("suffix", [".ply", ".obj", ".glb"])
def test_a_provided_mesh_is_copied(suffix: str, face: tuple[Path, Path], tmp_path: Path) -> None:
    box = trimesh.creation.box([1, 2, 3])
    box.export(tmp_path / f"mine{suffix}")
    settings = GenerateSettings(source="provided")
    generate_prior(settings, *face, tmp_path / f"mine{suffix}", tmp_path / "raw.ply")
    copied = read_mesh(tmp_path / "raw.ply")
    np.testing.assert_allclose(np.ptp(copied.vertices, axis=0), [1, 2, 3], atol=1e-6)


@pytest.mark.parametrize(
    ("name", "message"), [(None, "no mesh is given"), ("a.stl", ".glb"), ("a.obj", "missing")]
)
def test_a_bad_provided_mesh_is_a_user_error(
    name: str | None, message: str, face: tuple[Path, Path], tmp_path: Path
) -> None:
    mesh = None if name is None else tmp_path / name
    with pytest.raises(UserError, match=message):
        generate_prior(GenerateSettings(source="provided"), *face, mesh, tmp_path / "raw.ply")
    assert not (tmp_path / "raw.ply").exists()
