"""The dense refinement on a made-up bump of a face with a known texture."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from scipy.ndimage import gaussian_filter
from scipy.spatial.transform import Rotation

from eavatar.face.morphable import read_morphable_model
from eavatar.face.photometric import linearise_colours
from eavatar.face.refine import (
    SCHEDULE,
    FaceCrops,
    FacePose,
    RefinementProblem,
    SharedFace,
    canonical_landmarks,
    filter_views,
    linearise_timestep,
    mean_texture,
    read_crops,
    read_sequence,
    refine_face,
    refine_tracks,
    select_keyframes,
    solve_timestep,
    start_problem,
    step_pose,
    to_world,
)
from eavatar.face.triangulation import project_points
from eavatar.io import (
    ExpressionBasis,
    Identity,
    Sequences,
    Tracking,
    read_arrays,
    read_mesh,
    write_arrays,
    write_sequences,
)
from eavatar.settings import RefineSettings
from tests.scenes.bump import SCALE, SIDE, bump, random_poses, track_of, write_capture
from tests.scenes.morphable_models import random_parts, write_2017

SETTINGS = RefineSettings(
    enabled=True,
    image_size=SIDE,
    keyframes=3,
    rounds=2,
    colour_noise=0.1,
    colour_outlier=0.1,
    landmark_noise=0.05,
    landmark_bias=0.02,
)


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> tuple:
    """A capture with a training and a held-out sequence, and what is true of it."""
    root = tmp_path_factory.mktemp("capture")
    model, _ = bump()
    face = SharedFace(np.array([0.8, -0.6]), SCALE, np.zeros((68, 3)))
    poses = {"EXP-1-head": random_poses(1, 3), "FREE": random_poses(2, 1)}
    write_capture(root, model, face, poses)
    return root, model, face, poses


def tracks_of(scene: tuple) -> dict[str, Tracking]:
    """The true tracking of all sequences."""
    _, model, face, poses = scene
    return {name: track_of(model, face, each) for name, each in poses.items()}


def identity_of(scene: tuple) -> Identity:
    """The true identity."""
    _, model, face, _ = scene
    landmarks = model.mean[model.landmark_vertices]
    return Identity(face.identity.astype(np.float32), np.array(SCALE, np.float32), landmarks)


def true_problem(scene: tuple) -> RefinementProblem:
    """The problem at the true identity and scale, with the texture at the true poses."""
    root, model, face, poses = scene
    start = start_problem(SETTINGS, model, root, identity_of(scene), tracks_of(scene))
    problem = replace(start, face=face)
    equations = []
    for timestep, pose in enumerate(poses["EXP-1-head"]):
        crops = crops_of(scene, problem, "EXP-1-head", timestep)
        views = filter_views(problem, pose, crops, SCHEDULE[-1].blur)
        equations.append(linearise_timestep(problem, pose, views, shared=False))
    return replace(problem, texture=mean_texture(SETTINGS, equations))


def landmarks_of(problem: RefinementProblem, pose: FacePose) -> np.ndarray:
    """The landmarks of a pose in the world."""
    return to_world(problem.face, pose, canonical_landmarks(problem, pose.expression))


def crops_of(scene: tuple, problem: RefinementProblem, name: str, timestep: int) -> FaceCrops:
    """A timestep's images, with its true landmarks."""
    root, _, _, poses = scene
    pose = poses[name][timestep]
    landmarks = landmarks_of(problem, pose)
    return read_crops(problem, read_sequence(root, name), timestep, pose, landmarks)


@pytest.mark.parametrize(("disturbance", "tolerance"), [(1.0, 0.3), (0.0, 0.15)])
def test_poses_and_expressions_are_recovered(
    scene: tuple, disturbance: float, tolerance: float
) -> None:
    """Of a held-out timestep, to a third of a pixel (0.9 mm) from 1 mm off.

    A perfect fit stays where it is, to what the drawing of flat triangles is worth.
    """
    _, _, face, poses = scene
    problem = true_problem(scene)
    crops = crops_of(scene, problem, "FREE", 0)
    step = disturbance * np.array([0.008, -0.008, 0.008, 0.008, -0.008, 0.008, 0.3, -0.3])
    start = step_pose(face, poses["FREE"][0], step)
    disturbed = landmarks_of(problem, start)
    assert disturbance == 0 or 1000 * np.median(error(disturbed, crops)) > 0.7
    after, _ = solve_timestep(problem, start, replace(crops, landmarks=disturbed))
    assert 1000 * np.median(error(landmarks_of(problem, after), crops)) < tolerance


def test_equations_of_a_timestep_alone_are_a_block_of_those_with_what_is_shared(
    scene: tuple,
) -> None:
    problem, pose = true_problem(scene), scene[3]["EXP-1-head"][1]
    crops = crops_of(scene, problem, "FREE", 0)  # of another timestep: nothing vanishes
    views = filter_views(problem, pose, crops, SCHEDULE[-1].blur)
    alone, shared = (
        linearise_timestep(problem, pose, views, shared=shared) for shared in (False, True)
    )
    count = 6 + len(pose.expression)
    assert alone.matrix.shape == (count, count) and len(shared.gradient) > count
    assert alone.cost == shared.cost
    # Sums of thousands of float32 products, in another order.
    scale = np.abs(shared.matrix).max()
    assert np.allclose(alone.matrix, shared.matrix[:count, :count], atol=1e-5 * scale)
    assert np.allclose(alone.gradient, shared.gradient[:count], rtol=1e-4, atol=1e-5 * scale)


def error(landmarks: np.ndarray, crops: FaceCrops) -> np.ndarray:
    """Distances to a timestep's true landmarks, metres, (68,)."""
    return np.linalg.norm(landmarks - crops.landmarks, axis=1)


def test_held_out_sequences_give_nothing_to_identity_and_texture(scene: tuple) -> None:
    """Other images of FREE change FREE's tracking only."""
    root, model, _, _ = scene
    tracks, shared = tracks_of(scene), identity_of(scene)
    assert {name for name, _ in select_keyframes(root, tracks, 10)} == {"EXP-1-head"}
    training = {"EXP-1-head": tracks["EXP-1-head"]}
    without, alone = refine_tracks(SETTINGS, model, root, shared, training)
    both, together = refine_tracks(SETTINGS, model, root, shared, tracks)
    np.testing.assert_array_equal(without.identity, both.identity)
    np.testing.assert_array_equal(alone["EXP-1-head"].expression, together["EXP-1-head"].expression)


def test_the_fit_is_taken_over_where_refinement_is_off(tmp_path: Path) -> None:
    """To the bit, and without a frame; the neutral face is that of the fit's identity."""
    path = write_2017(tmp_path / "model.h5", random_parts())
    fit, output = tmp_path / "fit", tmp_path / "face"
    model = read_morphable_model(path)
    random = np.random.default_rng(0)
    coefficients = np.float32(random.normal(size=model.identity_basis.shape[2]))
    landmarks = model.mean[model.landmark_vertices]
    identity = Identity(coefficients, np.array(SCALE, np.float32), landmarks)
    shapes = ((4, model.expression_basis.shape[2]), (4, 3), (4, 3), (4, 68, 3), (4, 5))
    track = Tracking(*(random.normal(size=shape).astype(np.float32) for shape in shapes))
    write_arrays(fit / "identity.npz", identity)
    write_arrays(fit / "tracking" / "FREE.npz", track)
    off = SETTINGS.model_copy(update={"enabled": False})
    write_sequences(tmp_path / "capture/sequences.json", Sequences(("FREE",), ()))
    refine_face(off, path, tmp_path / "capture", fit, output)
    for name in ("identity.npz", "tracking/FREE.npz"):
        assert (output / name).read_bytes() == (fit / name).read_bytes()
    neutral = read_mesh(output / "neutral.ply")
    np.testing.assert_allclose(neutral.vertices, model.vertices(coefficients), atol=1e-6)
    basis = read_arrays(ExpressionBasis, output / "expression_basis.npz").basis
    np.testing.assert_array_equal(basis, model.expression_basis)


@pytest.mark.parametrize("known", [0.0, 1.0])
def test_gradient_of_the_photometric_cost(known: float) -> None:
    """Against differences of the cost, where images are smooth and no residual is an outlier."""
    random = np.random.default_rng(0)
    images = gaussian_filter(random.normal(0, 1, (3, 60, 60, 3)), (0, 6, 6, 0)).astype(np.float32)
    projections = np.stack(
        [
            np.hstack([Rotation.from_rotvec([0, angle, 0]).as_matrix(), [[0], [0], [2.0]]])
            for angle in (-0.3, 0.0, 0.3)
        ]
    )
    projections = np.diag([60.0, 60.0, 1.0]) @ projections
    projections[:, :2] += 30 * projections[:, 2:]
    points = random.uniform(-0.3, 0.3, (20, 3))
    texture, weight = random.normal(0, 0.1, (20, 3)), np.full(20, known)
    weights = random.uniform(0.2, 1, (3, 20))

    def cost(at: np.ndarray) -> tuple:
        return linearise_colours(
            images, np.zeros((3, 2)), projections, at, weights, texture, weight, outlier=100.0
        )

    _, matrices, forces, _, _ = cost(points)
    direction = random.normal(0, 1, points.shape)
    step = 1e-3
    numeric = (cost(points + step * direction)[0] - cost(points - step * direction)[0]) / (2 * step)
    # Bilinear images have kinks, at which half-pixel differences are not the derivative.
    assert (forces * direction).sum() == pytest.approx(numeric, rel=0.03)
    assert np.linalg.eigvalsh(matrices).min() > -1e-9
    pixels = project_points(projections, points[None])[0][0]
    assert pixels.min() > 3 and pixels.max() < 57
