"""Base motion: points move as the fitted mesh does at their place."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from eavatar.avatar.base_motion import (
    CAP_VERTICES,
    EYEBALL,
    FULL_REACH,
    ZERO_REACH,
    BaseMotion,
    eye_points,
    mouth_box,
    turn_eyes,
)
from eavatar.avatar.files import read_avatar, write_avatar
from eavatar.avatar.gaussians import mouth_interior
from eavatar.errors import UserError
from eavatar.io import ExpressionBasis, Identity, Mesh, write_arrays, write_mesh
from eavatar.landmark_indices import CHIN, INNER_LIPS, LEFT_EYE
from eavatar.settings import Settings
from tests.scenes.carrier import EXPRESSIONS, carrier, face_landmarks
from tests.scenes.small_avatar import make_avatar

# Sums of three float32 products of displacements of at most 1 dm.
ROUNDING = 1e-5


@pytest.fixture
def base() -> BaseMotion:
    mesh, basis = carrier()
    return BaseMotion.of(mesh, basis, face_landmarks())


def test_a_point_of_a_face_moves_as_its_corners(base: BaseMotion) -> None:
    torch.manual_seed(0)
    weights = torch.rand(len(base.faces), 3)
    weights = weights / weights.sum(dim=1, keepdim=True)
    points = (weights[..., None] * base.vertices[base.faces]).sum(dim=1)
    moved = base(torch.randn(2, EXPRESSIONS))
    expected = (weights[..., None] * moved[:, base.faces]).sum(dim=2)
    torch.testing.assert_close(base.attach(points).carry(moved), expected, rtol=0, atol=ROUNDING)


def test_the_nearest_place_is_that_of_dense_samples(base: BaseMotion) -> None:
    torch.manual_seed(0)
    points = base.vertices[torch.randint(len(base.vertices), (40,))] + 0.05 * torch.randn(40, 3)
    attachment = base.attach(points)
    weights = attachment.weights / attachment.weights.sum(dim=1, keepdim=True)
    places = (weights[..., None] * base.vertices[attachment.corners]).sum(dim=1)
    steps = torch.cartesian_prod(torch.linspace(0, 1, 9), torch.linspace(0, 1, 9))
    steps = steps[steps.sum(dim=1) <= 1]
    mixed = torch.cat([1 - steps.sum(dim=1, keepdim=True), steps], dim=1)
    samples = (mixed @ base.vertices[base.faces]).flatten(0, 1)
    nearest = torch.cdist(points, samples).amin(dim=1)
    distance = (places - points).norm(dim=1)
    # Samples lie beside the nearest place, so they are no nearer; rounding of 0.5 dm.
    assert (distance <= nearest + ROUNDING).all()


def test_motion_ends_smoothly_away_from_the_mesh(base: BaseMotion) -> None:
    distances = torch.linspace(0, 1.5 * ZERO_REACH, 31)
    top = base.vertices[base.vertices[:, 2].argmax()]
    weights = base.attach(top + distances[:, None] * torch.tensor([0.0, 0, 1])).weights.sum(dim=1)
    near = weights[distances < FULL_REACH]
    torch.testing.assert_close(near, torch.ones_like(near))
    assert (weights[distances >= ZERO_REACH] < ROUNDING).all()
    # The steepest part of the smooth step falls by 1.5 / 0.3 for each dm: 0.1 a sample.
    assert (-weights.diff() >= -ROUNDING).all() and weights.diff().abs().max() < 0.11


def test_upper_teeth_stay_and_lower_teeth_follow_the_chin(base: BaseMotion) -> None:
    landmarks = face_landmarks()
    points = mouth_interior(landmarks, 200)
    motion = base.attach(points).carry(base(torch.ones(EXPRESSIONS)))
    chin = base.attach(landmarks[CHIN, None]).carry(base(torch.ones(EXPRESSIONS)))
    upper = points[:, 1] > landmarks[INNER_LIPS, 1].mean()
    assert (motion[upper] == 0).all() and chin.norm() > 0.1
    lower = motion[~upper]
    torch.testing.assert_close(lower, lower[:1].expand_as(lower), rtol=0, atol=ROUNDING)
    # The vertex nearest to the chin is up to 0.07 dm away, half an edge; there it moves by up to
    # 0.3 · 3 differently for each dm.
    torch.testing.assert_close(lower[0], chin[0], rtol=0, atol=0.06)
    low, high = mouth_box(landmarks)
    assert (points >= low - ROUNDING).all() and (points <= high + ROUNDING).all()


def test_an_eyeball_stays_where_lids_move() -> None:
    """Of a model without one: its mesh has a hole there."""
    mesh, basis = carrier(3000)
    landmarks = face_landmarks()
    middle = landmarks[LEFT_EYE].mean(dim=0).numpy()
    offsets = np.abs(mesh.vertices - middle)
    hole = (offsets < [0.13, 0.05, 0.1]).all(axis=1)
    faces = mesh.faces[~hole[mesh.faces].any(axis=1)]
    base = BaseMotion.of(Mesh(mesh.vertices, faces), basis, landmarks)
    moved = base(torch.ones(EXPRESSIONS))
    places = [[0.0, 0.0, 0.01], [0.05, 0.0, 0.0], [0.0, 0.02, 0.0], [0.0, 0.12, -0.02]]
    inside, lid = (torch.tensor(places) + torch.from_numpy(middle)).split([3, 1])
    assert (base.attach(inside).carry(moved) == 0).all()
    assert base.attach(lid).carry(moved).norm() > 0.05


def test_the_eyeballs_turn_with_the_gaze_about_their_centres_and_nothing_else_does() -> None:
    mesh, basis = carrier()
    base = BaseMotion.of(mesh, basis, face_landmarks(), gaze_size=2)
    expression, gaze = torch.ones(EXPRESSIONS), torch.tensor([0.4, 0.2])
    still = base(torch.cat([expression, torch.zeros(2)]))
    by_gaze = base(torch.cat([expression, gaze, torch.ones(3)])) - still
    moves, turned = (by_gaze != 0).any(dim=1), base.vertices + by_gaze
    assert moves[-2 * CAP_VERTICES :].all() and not moves[: -2 * CAP_VERTICES].any()
    for centre, ball in zip(base.eye_centres, turned[-2 * CAP_VERTICES :].chunk(2), strict=True):
        distances = (ball - centre).norm(dim=1)
        torch.testing.assert_close(distances, torch.full_like(distances, EYEBALL))
        # The first vertices are the middle, which these eyes have exactly in front.
        front = (ball[0] - centre) / EYEBALL
        pitch, yaw = torch.asin(front[1]), torch.atan2(front[0], front[2])
        torch.testing.assert_close(torch.stack([yaw, pitch]), gaze, rtol=0, atol=ROUNDING)


def test_new_points_on_the_eyes_are_carried_by_them() -> None:
    mesh, basis = carrier()
    base = BaseMotion.of(mesh, basis, face_landmarks(), gaze_size=2)
    torch.manual_seed(0)
    points = eye_points(face_landmarks(), 100)
    distances = torch.cdist(points, base.eye_centres).amin(dim=1)
    torch.testing.assert_close(distances, torch.full_like(distances, EYEBALL))
    attachment = base.attach(points)
    of_eyes = (attachment.corners >= len(base.vertices) - 2 * CAP_VERTICES).all(dim=1)
    assert of_eyes.float().mean() > 0.9  # others lie on the skin, which here goes through the ball
    turned = attachment.carry(base(torch.tensor([0.0] * EXPRESSIONS + [0.3, 0.0])))
    expected = points - base.eye_centres.repeat_interleave(100, dim=0)
    expected = expected @ turn_eyes(torch.tensor([0.3, 0.0])).T - expected
    # The cap's faces are flat, up to 0.001 dm below the sphere, of displacements of 0.04.
    assert (turned - expected)[of_eyes].norm(dim=1).max() < 0.002


def test_what_never_moves_is_left_out(base: BaseMotion) -> None:
    mesh, basis = carrier()
    basis = basis * (torch.from_numpy(mesh.vertices)[:, :1, None] > 0)
    assert len(BaseMotion.of(mesh, basis, face_landmarks()).faces) < 0.7 * len(base.faces)


def test_a_new_avatar_moves_as_the_mesh_also_when_it_is_read_again(
    base: BaseMotion, tmp_path: Path
) -> None:
    avatar = make_avatar()
    for parameter in avatar.generator.drivers.parameters():
        torch.nn.init.zeros_(parameter)
    avatar.generator.base = base
    avatar.sort_by_expression_weight()  # has the arrangement made anew
    write_avatar(tmp_path, avatar, Settings())
    expression = torch.tensor([0.5, -1.0, 0.3])
    pose = torch.zeros(6)
    for drawn in (avatar, read_avatar(tmp_path)):
        means = [
            drawn.generator(
                drawn.neutral, drawn.arrangement, drawn.settings.control, code, pose, 0.1
            ).gaussians.means
            for code in (expression, 0 * expression)
        ]
        expected = 0.1 * base.attach(drawn.neutral.anchors).carry(base(expression))
        assert expected.norm(dim=1).max() > 0.004  # metres
        torch.testing.assert_close(means[0] - means[1], expected, rtol=0, atol=ROUNDING)


def test_the_displacement_of_eq_9_has_the_base_motion(base: BaseMotion) -> None:
    avatar = make_avatar()
    avatar.generator.base = base
    avatar.sort_by_expression_weight()
    control = avatar.settings.control
    expression = torch.tensor([0.5, -1.0, 0.3])
    arrangement = avatar.arrangement
    for parameter in avatar.generator.drivers.expression_deformation.parameters():
        torch.nn.init.zeros_(parameter)
    generated = avatar.generator(
        avatar.neutral, arrangement, control, expression, torch.zeros(6), 0.1
    )
    carried = base.attach(avatar.neutral.anchors).carry(base(expression)).norm(dim=1)
    expected = carried / avatar.settings.head.deform_scale * (arrangement.weights > 0)
    torch.testing.assert_close(generated.displacements, expected, rtol=1e-4, atol=ROUNDING)


def test_a_basis_of_another_tracking_is_refused(tmp_path: Path) -> None:
    mesh, basis = carrier()
    write_mesh(tmp_path / "neutral.ply", mesh)
    landmarks = face_landmarks().numpy()
    identity = Identity(np.zeros(2, np.float32), np.float32(0.1), landmarks)
    write_arrays(tmp_path / "identity.npz", identity)
    write_arrays(tmp_path / "expression_basis.npz", ExpressionBasis(basis.numpy()))
    read = BaseMotion.read(tmp_path, EXPRESSIONS)
    torch.testing.assert_close(read.basis, BaseMotion.of(mesh, basis, face_landmarks()).basis)
    with pytest.raises(UserError, match="the tracking 2; run `fit_face` again"):
        BaseMotion.read(tmp_path, EXPRESSIONS - 1)
    write_mesh(tmp_path / "neutral.ply", Mesh(mesh.vertices[:-1], mesh.faces[:1]))
    with pytest.raises(UserError, match=r"neutral\.ply has"):
        BaseMotion.read(tmp_path, EXPRESSIONS)
