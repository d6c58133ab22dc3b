"""`align_prior` recovers a known similarity from random starts, and refuses what is no head."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import trimesh
from scipy.ndimage import gaussian_filter
from scipy.spatial import cKDTree
from scipy.spatial.transform import Rotation
from skimage.measure import marching_cubes

from eavatar.errors import UserError
from eavatar.io import Mesh, read_alignment, read_mesh, write_mesh
from eavatar.prior.align import align_prior
from eavatar.prior.generate import generate_prior
from eavatar.prior.template import TemplateHead
from eavatar.settings import AlignSettings, GenerateSettings
from eavatar.transforms import Similarity
from tests.scenes.heads import cut, random_head, write_subject

SETTINGS = AlignSettings(samples=8000, min_confidence=0.5, on_low_confidence="stop")


def random_similarity(seed: int) -> Similarity:
    """Any orientation, scale 0.2 to 5, up to a few head sizes away."""
    random = np.random.default_rng(seed)
    turn = Rotation.random(random_state=seed).as_matrix()
    return Similarity(float(np.exp(random.uniform(*np.log([0.2, 5])))), turn, random.normal(size=3))


def moved(mesh: Mesh, transform: Similarity) -> Mesh:
    return replace(mesh, vertices=transform.apply(mesh.vertices).astype(np.float32))


@pytest.mark.parametrize(
    ("seed", "radius", "neck"), [(1, 0.45, -1.0), (2, np.inf, -1.0)],
    ids=["face in head", "bust on head"],
)  # fmt: skip
def test_a_known_similarity_is_recovered(
    seed: int, radius: float, neck: float, tmp_path: Path
) -> None:
    subject, truth = random_head(seed), random_similarity(seed)
    inputs = write_subject(tmp_path, subject, radius)
    random = np.random.default_rng(seed)
    noise = 0.01 * random.normal(size=subject.mesh.vertices.shape).astype(np.float32)
    prior = replace(subject.mesh, vertices=subject.mesh.vertices + noise)  # 1 mm
    prior = moved(cut(prior, prior.vertices[:, 1] > neck), truth)
    write_mesh(tmp_path / "raw.ply", prior)

    align_prior(SETTINGS, seed, tmp_path / "raw.ply", *inputs, tmp_path)

    alignment = read_alignment(tmp_path / "alignment.json")
    rest = alignment.transform.compose(truth)
    # 1 mm of noise and 5 mm between samples leave a fraction of a degree over a face of 14 cm
    assert np.degrees(Rotation.from_matrix(rest.rotation).magnitude()) < 2
    assert rest.scale == pytest.approx(1, abs=0.02)
    assert np.linalg.norm(rest.apply(subject.landmarks) - subject.landmarks, axis=1).max() < 0.05
    assert alignment.accepted and alignment.confidence > 0.8 and alignment.residual < 0.04
    aligned = read_mesh(tmp_path / "aligned.ply").vertices
    np.testing.assert_allclose(aligned, alignment.transform.apply(prior.vertices), atol=1e-4)


def test_a_stray_face_far_away_changes_nothing(tmp_path: Path) -> None:
    subject = random_head(3)
    inputs = write_subject(tmp_path, subject, 0.45)
    vertices, faces = subject.mesh.vertices, subject.mesh.faces
    far = vertices[faces[0]] + np.float32(1e6)
    stray = len(vertices) + np.arange(3)
    crumb = Mesh(np.concatenate([vertices, far]), np.concatenate([faces, stray[None]]))
    for name, mesh in (("plain", Mesh(vertices, faces)), ("crumb", crumb)):
        write_mesh(tmp_path / f"{name}.ply", mesh)
        align_prior(SETTINGS, 3, tmp_path / f"{name}.ply", *inputs, tmp_path / name)
    for file in ("alignment.json", "aligned.ply", "alignment.png"):
        assert (tmp_path / "plain" / file).read_bytes() == (tmp_path / "crumb" / file).read_bytes()


def test_the_template_of_a_subject_is_aligned_and_repeatably(tmp_path: Path) -> None:
    subject = random_head(3)
    inputs = write_subject(tmp_path, subject, 0.45)
    face = inputs[1]
    files = face / "identity.npz", face / "neutral.ply"
    generate_prior(GenerateSettings(source="template"), *files, None, tmp_path / "raw.ply")
    for name in ("first", "second"):
        align_prior(SETTINGS, 7, tmp_path / "raw.ply", *inputs, tmp_path / name)
    for name in ("alignment.json", "aligned.ply", "alignment.png"):
        first, second = ((tmp_path / each / name).read_bytes() for each in ("first", "second"))
        assert first == second
    fitted = read_mesh(files[1]).vertices
    aligned = read_mesh(tmp_path / "first" / "aligned.ply").vertices
    # 2 % of a head of 23 cm; half an edge of the mesh is most of it
    assert cKDTree(aligned).query(fitted)[0].mean() < 0.046


def heap_of_noise() -> Mesh:
    """A cube full of surface, which is near every point of any face."""
    noise = gaussian_filter(np.random.default_rng(0).normal(size=(40, 40, 40)), 1.2)
    vertices, faces, _, _ = marching_cubes(noise, 0.0)
    return Mesh(np.float32(vertices / 40), faces.astype(np.int64))


def test_what_is_no_head_is_refused_with_an_image(tmp_path: Path) -> None:
    inputs = write_subject(tmp_path, random_head(4), 0.45)
    write_mesh(tmp_path / "raw.ply", heap_of_noise())
    with pytest.raises(UserError, match=r"confidence 0\.[0-4]\d is below 0\.5 .*alignment\.png"):
        align_prior(SETTINGS, 0, tmp_path / "raw.ply", *inputs, tmp_path / "prior")
    assert [path.name for path in (tmp_path / "prior").iterdir()] == ["alignment.png"]


def test_stage_one_can_go_on_without_what_is_no_head(tmp_path: Path) -> None:
    inputs = write_subject(tmp_path, random_head(4), 0.45)
    box = trimesh.creation.box([1.6, 2.4, 2.0])
    write_mesh(tmp_path / "raw.ply", Mesh(np.float32(box.vertices), np.asarray(box.faces)))
    settings = SETTINGS.model_copy(update={"on_low_confidence": "without_prior"})
    align_prior(settings, 0, tmp_path / "raw.ply", *inputs, tmp_path)
    alignment = read_alignment(tmp_path / "alignment.json")
    assert not alignment.accepted and alignment.confidence < 0.5
    assert len(read_mesh(tmp_path / "aligned.ply").faces) == 12


def with_larger_skull(subject: TemplateHead) -> Mesh:
    """The head, half as large again but for the face."""
    away = cKDTree(subject.landmarks).query(subject.mesh.vertices)[0][:, None]
    arms = subject.mesh.vertices - subject.landmarks.mean(axis=0)
    vertices = subject.mesh.vertices + 0.5 * np.clip(away / 0.3 - 1, 0, 1) * arms
    return replace(subject.mesh, vertices=vertices.astype(np.float32))


def test_a_prior_without_the_hair_of_the_person_is_aligned(tmp_path: Path) -> None:
    subject, truth = random_head(8), random_similarity(8)
    inputs = write_subject(tmp_path, subject, 0.45, person=with_larger_skull(subject))
    write_mesh(tmp_path / "raw.ply", moved(subject.mesh, truth))
    align_prior(SETTINGS, 8, tmp_path / "raw.ply", *inputs, tmp_path)
    rest = read_alignment(tmp_path / "alignment.json").transform.compose(truth)
    # 2 % of the head size: 5 mm between samples, and no outline that helps
    assert np.linalg.norm(rest.apply(subject.landmarks) - subject.landmarks, axis=1).max() < 0.05


def test_a_skull_half_as_large_again_is_refused(tmp_path: Path) -> None:
    subject = random_head(8)
    inputs = write_subject(tmp_path, subject, 0.45)
    larger = with_larger_skull(subject)
    write_mesh(tmp_path / "raw.ply", moved(larger, random_similarity(8)))
    with pytest.raises(UserError, match="does not match the fitted face and the masks"):
        align_prior(SETTINGS, 8, tmp_path / "raw.ply", *inputs, tmp_path / "prior")


@pytest.mark.parametrize("fault", ["flat", "flat and turned", "not finite", "faces are lines"])
def test_a_degenerate_mesh_is_refused_at_once(fault: str, tmp_path: Path) -> None:
    subject = random_head(5)
    vertices, faces = subject.mesh.vertices.copy(), subject.mesh.faces
    if fault == "faces are lines":
        faces = faces[:, [0, 1, 1]]
    else:
        vertices[:, 2] = np.nan if fault == "not finite" else 0
    mesh = replace(subject.mesh, vertices=vertices, faces=faces)
    write_mesh(
        tmp_path / "raw.ply", moved(mesh, random_similarity(1)) if "turned" in fault else mesh
    )
    inputs = write_subject(tmp_path, subject, 0.45)
    with pytest.raises(UserError, match=r"raw\.ply is no usable mesh"):
        align_prior(SETTINGS, 0, tmp_path / "raw.ply", *inputs, tmp_path)


def test_a_neutral_mesh_apart_from_its_landmarks_is_refused(tmp_path: Path) -> None:
    subject = random_head(6)
    capture, face = write_subject(tmp_path, subject, np.inf)
    write_mesh(
        face / "neutral.ply", moved(subject.mesh, Similarity(1.0, np.eye(3), np.array([9.0, 0, 0])))
    )
    write_mesh(tmp_path / "raw.ply", subject.mesh)
    with pytest.raises(UserError, match="are apart"):
        align_prior(SETTINGS, 0, tmp_path / "raw.ply", capture, face, tmp_path)
