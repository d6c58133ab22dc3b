"""`align_prior` recovers a known similarity from random starts, and refuses what is no head."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import trimesh
from scipy.spatial import cKDTree
from scipy.spatial.transform import Rotation

from eavatar.errors import UserError
from eavatar.io import (
    Identity,
    Mesh,
    read_alignment,
    read_mesh,
    write_arrays,
    write_mesh,
)
from eavatar.prior.align import AlignmentTarget, align_prior, measure_alignment, symmetric_distance
from eavatar.prior.generate import generate_prior
from eavatar.prior.template import TemplateHead
from eavatar.settings import AlignSettings, GenerateSettings
from eavatar.transforms import Similarity
from tests.scenes.heads import cut, random_head

SETTINGS = AlignSettings(samples=8000, inlier_distance=0.1, min_fitness=0.9, max_rmse=0.05)


def write_face(folder: Path, subject: TemplateHead, radius: float) -> tuple[Path, Path]:
    """What `fit_face` leaves: identity, and the neutral mesh within ``radius`` of the landmarks."""
    near = cKDTree(subject.landmarks).query(subject.mesh.vertices)[0] < radius
    write_mesh(folder / "neutral.ply", cut(subject.mesh, near))
    identity = Identity(np.zeros(4), np.float32(0.1), subject.landmarks)
    return write_arrays(folder / "identity.npz", identity), folder / "neutral.ply"


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
    inputs = write_face(tmp_path, subject, radius)
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
    assert alignment.fitness > 0.98 and alignment.inlier_rmse < 0.05
    aligned = read_mesh(tmp_path / "aligned.ply").vertices
    np.testing.assert_allclose(aligned, alignment.transform.apply(prior.vertices), atol=1e-4)


def test_the_template_of_a_subject_is_aligned_and_repeatably(tmp_path: Path) -> None:
    subject = random_head(3)
    inputs = write_face(tmp_path, subject, 0.45)
    generate_prior(GenerateSettings(source="template"), *inputs, None, tmp_path / "raw.ply")
    for name in ("first", "second"):
        align_prior(SETTINGS, 7, tmp_path / "raw.ply", *inputs, tmp_path / name)
    first, second = (read_alignment(tmp_path / n / "alignment.json") for n in ("first", "second"))
    # threads may sum in another order, nothing more
    np.testing.assert_allclose(first.transform.matrix, second.transform.matrix, atol=1e-6)
    face = read_mesh(inputs[1]).vertices
    aligned = read_mesh(tmp_path / "first" / "aligned.ply").vertices
    # 2 % of a head of 23 cm; half an edge of the mesh is most of it
    assert cKDTree(aligned).query(face)[0].mean() < 0.046


def test_what_is_no_head_is_refused_with_figures(tmp_path: Path) -> None:
    inputs = write_face(tmp_path, random_head(4), 0.45)
    box = trimesh.creation.box([1.6, 2.4, 2.0])
    write_mesh(tmp_path / "raw.ply", Mesh(np.float32(box.vertices), np.asarray(box.faces)))
    with pytest.raises(UserError, match=r"% of the face .* rmse of 0\.\d+ dm"):
        align_prior(SETTINGS, 0, tmp_path / "raw.ply", *inputs, tmp_path)
    assert not (tmp_path / "aligned.ply").exists()


@pytest.mark.parametrize("fault", ["flat", "not finite"])
def test_a_degenerate_mesh_is_refused_at_once(fault: str, tmp_path: Path) -> None:
    subject = random_head(5)
    vertices = subject.mesh.vertices.copy()
    vertices[:, 2] = 0 if fault == "flat" else np.nan
    write_mesh(tmp_path / "raw.ply", replace(subject.mesh, vertices=vertices))
    inputs = write_face(tmp_path, subject, 0.45)
    with pytest.raises(UserError, match=r"raw\.ply is no usable mesh"):
        align_prior(SETTINGS, 0, tmp_path / "raw.ply", *inputs, tmp_path)


def test_a_neutral_mesh_apart_from_its_landmarks_is_refused(tmp_path: Path) -> None:
    subject = random_head(6)
    identity, neutral = write_face(tmp_path, subject, np.inf)
    write_mesh(neutral, moved(subject.mesh, Similarity(1.0, np.eye(3), np.array([9.0, 0, 0]))))
    write_mesh(tmp_path / "raw.ply", subject.mesh)
    with pytest.raises(UserError, match="are apart"):
        align_prior(SETTINGS, 0, tmp_path / "raw.ply", identity, neutral, tmp_path)


def test_the_ranking_punishes_shrinking() -> None:
    points = np.random.default_rng(0).normal(size=(500, 3))
    assert symmetric_distance(points, points, points) == 0
    # one-sided, a prior shrunk into the middle of its target is close to something everywhere
    assert (
        symmetric_distance(0.5 * points, points, points)
        > symmetric_distance(0.9 * points, points, points)
        > 0
    )


def test_fitness_and_rmse_by_hand() -> None:
    face = np.array([[0, 0, 0], [0, 0, 0.05], [0, 0, 5.0], [0, 0.03, 0]])
    identity = Similarity(1.0, np.eye(3), np.zeros(3))
    result = measure_alignment(identity, np.zeros((1, 3)), AlignmentTarget(face, face), 0.1)
    assert result.fitness == 0.75
    assert result.inlier_rmse == pytest.approx(np.sqrt((0.05**2 + 0.03**2) / 3))
