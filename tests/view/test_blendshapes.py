from __future__ import annotations

import pytest
import torch

from eavatar.avatar.model import Avatar, CameraBatch
from eavatar.errors import UserError
from eavatar.view.blendshapes import (
    WEIGHTS,
    LinearAvatar,
    distil,
    follow,
    measure_psnr,
    principal_components,
)
from tests.scenes.small_avatar import EXPRESSIONS, SIZE, make_avatar
from tests.scenes.small_results import make_camera, make_tracking


@pytest.fixture(scope="module")
def avatar() -> Avatar:
    return make_avatar()


def linear_rows(timesteps: int, count: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Rows of an avatar of 50 Gaussians that is linear in so many coefficients, and its neutral."""
    torch.manual_seed(1)
    neutral = torch.rand(50, 6)
    shapes = 0.1 * torch.randn(count, 50, 6)
    return neutral + torch.einsum("tk,knr->tnr", torch.randn(timesteps, count), shapes), neutral


def test_as_many_components_as_a_linear_avatar_has_reproduce_it() -> None:
    rows, neutral = linear_rows(timesteps=12, count=4)
    components = principal_components(rows, neutral, 4)
    linear = LinearAvatar(neutral, *4 * [torch.empty(0)], components)
    found = torch.stack([linear.project(row) for row in rows])
    # float32: seven digits of values around 1
    torch.testing.assert_close(
        neutral + torch.einsum("tk,knr->tnr", found, components), rows, atol=1e-5, rtol=0
    )
    torch.testing.assert_close(found.square().mean(dim=0), torch.ones(4), atol=1e-4, rtol=0)
    assert (found.gather(0, found.abs().argmax(dim=0)[None]) > 0).all()


def test_no_other_components_leave_less() -> None:
    rows, neutral = linear_rows(timesteps=12, count=8)
    weights = torch.tensor(WEIGHTS)
    offsets = ((rows - neutral) * weights).flatten(1).double()
    least = torch.linalg.svdvals(offsets)[3:].square().sum()  # Eckart and Young 1936
    components = (principal_components(rows, neutral, 3) * weights).flatten(1).double()
    onto = torch.linalg.lstsq(components.T, offsets.T).solution
    torch.testing.assert_close(
        (offsets.T - components.T @ onto).square().sum(), least, rtol=1e-5, atol=0
    )


def test_neutral_is_drawn_as_the_networks_draw_it(avatar: Avatar) -> None:
    steps = list(make_tracking())
    linear = distil(avatar, steps, 2)
    rest = avatar.generator.torso.rest_pose
    scale = avatar.settings.scale
    drawn = linear.to_world(torch.zeros(2), avatar.generator.torso, rest, scale)
    with torch.no_grad():
        cameras = CameraBatch.of([make_camera(0).resize(SIZE, SIZE)], avatar.device)
        expected = avatar.draw(torch.zeros(EXPRESSIONS), rest, cameras).generated.gaussians
    for name in ("means", "quaternions", "scales", "opacities"):
        torch.testing.assert_close(getattr(drawn, name), getattr(expected, name))
    torch.testing.assert_close(drawn.features, expected.features[:, :3])


def test_more_components_come_nearer_to_the_networks(avatar: Avatar) -> None:
    steps = list(make_tracking())
    cameras = CameraBatch.of([make_camera(0).resize(SIZE, SIZE)], avatar.device)
    found = [min(measure_psnr(avatar, distil(avatar, steps, k), steps, cameras)) for k in (1, 2, 3)]
    assert found[0] < found[1] < found[2]


def test_coefficients_of_a_training_timestep_give_its_positions_and_colours(avatar: Avatar) -> None:
    steps = list(make_tracking())
    linear = distil(avatar, steps, len(steps))
    rows = linear.deform(follow(avatar, linear, steps)[1])
    step = steps[1]
    with torch.no_grad():
        pose = torch.from_numpy(make_tracking().poses[1])
        expected = avatar.deform(torch.from_numpy(step.driving), pose)
    torch.testing.assert_close(rows[:, :3], expected.points, atol=1e-5, rtol=0)
    torch.testing.assert_close(
        rows[:, 3:], torch.sigmoid(expected.colours[:, :3]), atol=1e-4, rtol=0
    )  # float32, divided by the colours' weight of 0.1


def test_colours_are_those_of_the_turned_head_under_its_lamps() -> None:
    avatar, tracking = make_avatar(), make_tracking()
    shading = avatar.generator.shading
    assert shading is not None
    torch.nn.init.normal_(shading.light, std=0.1)
    steps = list(tracking)
    linear = distil(avatar, steps, len(steps))
    rows = linear.deform(follow(avatar, linear, steps)[1])
    with torch.no_grad():
        generated = avatar.generate(
            torch.from_numpy(steps[1].driving), torch.from_numpy(tracking.poses[1])
        )
    expected = generated.gaussians.features[:, :3].clamp(max=1)
    torch.testing.assert_close(rows[:, 3:], expected, atol=1e-4, rtol=0)  # as above


def test_timesteps_that_are_alike_are_followed_too(avatar: Avatar) -> None:
    steps = [make_tracking()[0]] * 2
    linear = distil(avatar, steps, 2)
    first, second = follow(avatar, linear, steps)
    assert torch.equal(first, second)
    torch.testing.assert_close(first, torch.tensor([1.0, 0.0]), atol=1e-4, rtol=0)


@pytest.mark.parametrize("count", [0, 4, 1000])
def test_a_number_that_cannot_be_fitted_is_refused(avatar: Avatar, count: int) -> None:
    with pytest.raises(UserError, match=f"{count} blendshapes .* from 1 to 3"):
        distil(avatar, list(make_tracking()), count)
