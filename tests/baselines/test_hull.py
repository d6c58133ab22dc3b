"""The visual hull: what is there is kept, what the masks rule out is skipped."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from eavatar.baselines.hull import CELLS, LOWER, UPPER, Hull
from eavatar.baselines.pixels import pixel_centres
from eavatar.baselines.volume import Rays, cast_rays
from eavatar.data.frames import FrameSet
from tests.scenes.splat_scene import AXES, deform, sphere


@pytest.fixture(scope="module")
def frames(subject: Path) -> FrameSet:
    return FrameSet.read(subject / "capture", subject / "face", "train", 32)


@pytest.fixture(scope="module")
def hull(frames: FrameSet) -> Hull:
    made = Hull()
    made.carve(frames)
    return made


def all_rays(frames: FrameSet, timestep: int, camera: int) -> Rays:
    pixels = pixel_centres(32, torch.device("cpu"))[None]
    matrices = frames.intrinsics[camera, None], frames.world_to_camera[camera, None]
    return cast_rays(pixels, *matrices, frames.poses[timestep, None], frames.scale)


def test_the_head_is_kept_and_much_of_the_box_is_not(frames, hull):
    for timestep in range(len(frames)):
        points = deform(AXES * sphere(3000), frames.expression[timestep])
        places = (points - torch.tensor(LOWER)) / (torch.tensor(UPPER) - torch.tensor(LOWER))
        x, y, z = (places * CELLS).long().unbind(dim=1)
        assert hull.cells[x, y, z].all()
    assert hull.cells.float().mean() < 0.85  # two cameras see half of the box each


def test_rays_that_see_the_head_are_sampled_where_they_meet_it(frames, hull):
    rays = all_rays(frames, 1, 0)
    near, far = hull.interval(rays)
    seen = frames.views(1, [0]).masks[0].flatten() > 0.5
    assert (far > near)[0, seen].all()
    # the ellipsoid at rest, less by what the expression moves at most, is met between the ends
    origins, directions = rays.origins[0] / (0.8 * AXES), rays.directions[0] / (0.8 * AXES)
    a, b = directions.square().sum(1), (origins * directions).sum(1)
    root = b**2 - a * (origins.square().sum(1) - 1)
    met = root > 0
    for sign in (-1, 1):
        distance = ((-b + sign * root.clamp(min=0).sqrt()) / a)[met]
        assert ((near[0, met] < distance) & (distance < far[0, met])).all()


def test_rays_beside_the_hull_have_nothing_to_sample(frames):
    hull = Hull()
    hull.cells.zero_()
    hull.cells[30:34, 30:34, 30:34] = True
    near, far = hull.interval(all_rays(frames, 0, 0))
    missed = far <= near
    assert 0.9 < missed.float().mean() < 1
    assert (far >= near).all() and near.isfinite().all()


def test_a_ray_that_misses_the_box_has_equal_ends():
    rays = Rays(torch.tensor([[0.0, 5.0, 10.0]]), torch.tensor([[0.0, 0.0, -1.0]]))
    near, far = Hull().interval(rays)
    assert near == far
