"""Rays and volume rendering against slow loops, closed forms and the cameras' own projection."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from eavatar.baselines.volume import (
    Rays,
    cast_rays,
    composite,
    encode,
    spread,
    spread_by_weight,
)
from tests.scenes.splat_scene import cameras


def test_encodings_have_the_published_sizes_and_values():
    point = torch.tensor([[0.3, -0.2, 0.5]])
    assert encode(point, 10, with_input=True).shape == (1, 63)
    assert encode(point, 4, with_input=False).shape == (1, 24)
    assert encode(point, 8, with_input=False).shape == (1, 48)
    expected = [0.3, math.sin(0.3), math.cos(0.3), math.sin(0.6), math.cos(0.6)]
    assert encode(point[:, :1], 2, with_input=True)[0].tolist() == pytest.approx(expected)


def test_rays_go_through_what_the_camera_projects_to_their_pixels():
    torch.manual_seed(0)
    camera = next(iter(cameras(3, 64).values()))
    pose, scale = torch.tensor([0.2, -0.4, 0.1, 0.01, 0.02, -0.03]), 0.1
    pixels = torch.rand(1, 20, 2) * 64
    matrices = (
        torch.from_numpy(array)[None].float()
        for array in (camera.intrinsics, camera.world_to_camera)
    )
    rays = cast_rays(pixels, *matrices, pose[None], scale)
    points = rays.at(torch.rand(1, 20, 5) * 12)[0].double().numpy()
    angle = np.linalg.norm(pose[:3])
    x, y, z = (pose[:3] / angle).double().numpy()
    cross = np.array([[0, -z, y], [z, 0, -x], [-y, x, 0]])
    turn = np.eye(3) + math.sin(angle) * cross + (1 - math.cos(angle)) * cross @ cross
    world = scale * points @ turn.T + pose[3:].double().numpy()
    projected, _ = camera.project(world)
    # float32 of distances of about 10 units and a focal length of 230 pixels
    assert np.abs(projected - pixels[0, :, None].numpy()).max() < 1e-2
    torch.testing.assert_close(rays.directions.norm(dim=-1), torch.ones(1, 20))


def test_samples_are_spread_between_the_ends_and_jittered_within_their_stretches():
    near, far = torch.tensor([1.0, 3.0]), torch.tensor([2.0, 3.0])
    even = spread(near, far, 5, jitter=False)
    assert even[0].tolist() == [1.0, 1.25, 1.5, 1.75, 2.0]
    assert even[1].tolist() == [3.0] * 5  # a ray through nothing
    torch.manual_seed(0)
    moved = spread(near, far, 5, jitter=True)[0]
    assert ((moved - even[0]).abs() <= 0.125 + 1e-6).all() and (moved != even[0]).any()
    assert moved.min() >= 1 and moved.max() <= 2 and (moved.diff() >= 0).all()


def test_second_pass_is_the_inverse_of_the_weights_distribution():
    distances = torch.tensor([[0.0, 1, 2, 3, 4, 6]])
    weights = torch.tensor([[9.0, 1, 0, 3, 4, 9]])
    drawn = spread_by_weight(distances, weights, 7, jitter=False)[0]
    edges = [0.5, 1.5, 2.5, 3.5, 5]
    cumulative = np.cumsum([0, 1, 0, 3, 4]) / 8
    # a weight of 1e-5 keeps steps of no weight from vanishing
    expected = np.interp(np.linspace(0, 1, 7), cumulative, edges)
    np.testing.assert_allclose(drawn, expected, atol=1e-3)
    torch.manual_seed(0)
    spike = torch.tensor([[0.0, 0, 1000, 0, 0, 0]])
    inside = spread_by_weight(distances, spike, 50, jitter=True)
    assert ((inside >= 1.5) & (inside <= 2.5)).all()


def test_compositing_is_the_slow_loop_from_front_to_back():
    torch.manual_seed(1)
    densities, colours = 3 * torch.rand(4, 9), torch.rand(4, 9, 3)
    distances = torch.rand(4, 9).cumsum(dim=-1)
    drawn = composite(densities, colours, distances, background=0.7)
    for ray in range(4):
        light, colour = 1.0, np.zeros(3)
        for sample in range(8):
            step = float(distances[ray, sample + 1] - distances[ray, sample])
            alpha = 1 - math.exp(-float(densities[ray, sample]) * step)
            assert float(drawn.weights[ray, sample]) == pytest.approx(light * alpha, abs=1e-6)
            colour += light * alpha * colours[ray, sample].numpy()
            light *= 1 - alpha
        assert float(drawn.alpha[ray]) == pytest.approx(1 - light, abs=1e-6)
        np.testing.assert_allclose(drawn.colours[ray], colour + 0.7 * light, atol=1e-6)
    torch.testing.assert_close(drawn.weights.sum(dim=-1), torch.ones(4))


def test_a_ball_of_fog_has_the_opacity_of_its_chords():
    """Density 2 in the unit ball: alpha = 1 - exp(-2 · chord)."""
    heights = torch.tensor([0.0, 0.3, 0.8, 1.2])
    origins = torch.stack([heights, torch.zeros(4), torch.full((4,), -3.0)], dim=1)
    rays = Rays(origins, torch.tensor([0.0, 0, 1]).expand(4, 3))
    distances = spread(torch.full((4,), 1.0), torch.full((4,), 5.0), 4001, jitter=False)
    inside = (rays.at(distances).norm(dim=-1) < 1).float()
    colours = torch.tensor([0.2, 0.4, 0.6]).expand(4, 4001, 3)
    drawn = composite(2 * inside, colours, distances, background=1.0)
    chords = 2 * (1 - heights**2).clamp(min=0).sqrt()
    # steps of 0.001, one of which a chord may have too many or too few at either end
    torch.testing.assert_close(drawn.alpha, 1 - torch.exp(-2 * chords), atol=4e-3, rtol=0)
    expected = drawn.alpha[:, None] * colours[:, 0] + (1 - drawn.alpha[:, None])
    torch.testing.assert_close(drawn.colours, expected)


def test_a_ray_through_nothing_shows_the_background_and_passes_no_gradient_on():
    densities = torch.full((2, 6), 5.0, requires_grad=True)
    drawn = composite(densities, torch.zeros(2, 6, 3), torch.full((2, 6), 3.0), background=1.0)
    assert (drawn.colours == 1).all() and (drawn.alpha == 0).all()
    drawn.colours.sum().backward()
    assert (densities.grad == 0).all()
