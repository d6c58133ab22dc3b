"""What leads up to kaolin's DIB-R and away from it; kaolin itself is not run."""

from __future__ import annotations

from importlib.util import find_spec

import pytest
import torch

from eavatar.cameras import Camera
from eavatar.errors import UserError
from eavatar.sdf.dibr import facing, in_kaolin_camera, of_faces, on_white, project
from eavatar.sdf.renderers.dibr import prepare

WIDTH, HEIGHT = 40, 20


def camera() -> tuple[torch.Tensor, torch.Tensor]:
    """(1, 1) camera 5 units before the origin, turned about y, off-centre."""
    angle = torch.tensor(0.3)
    to_camera = torch.eye(4)
    to_camera[0, 0] = to_camera[2, 2] = angle.cos()
    to_camera[0, 2], to_camera[2, 0] = angle.sin(), -angle.sin()
    to_camera[2, 3] = 5
    intrinsics = torch.tensor([[30.0, 0, 19], [0, 25, 11], [0, 0, 1]])
    return to_camera[None, None], intrinsics[None, None]


def test_projection_is_that_of_the_camera() -> None:
    points = torch.tensor([[0.3, -0.2, 0.5], [-1, 0.4, 0], [0, 0, 0]])
    to_camera, intrinsics = camera()
    image, depth = project(points[None], to_camera, intrinsics, WIDTH, HEIGHT)
    reference = Camera(
        intrinsics[0, 0].double().numpy(), to_camera[0, 0].double().numpy(), WIDTH, HEIGHT
    )
    pixels, distance = reference.project(points.double().numpy())
    pixels = torch.from_numpy(pixels).float()
    # From -1 at the left and lower edges to 1 at the right and upper ones.
    expected = torch.stack([pixels[:, 0] / 20 - 1, 1 - pixels[:, 1] / 10], dim=1)
    torch.testing.assert_close(image[0, 0], expected)
    torch.testing.assert_close(depth[0, 0], -torch.from_numpy(distance).float())
    assert bool((depth[0, 0].argsort() == torch.from_numpy(-distance).argsort()).all())


def test_faces_towards_the_camera_have_positive_normals() -> None:
    # Counter-clockwise seen from -z, where the camera is: y up on the left, OpenCV's y is down.
    vertices = torch.tensor([[[0.0, 0, 0], [0, 1, 0], [1, 0, 0]]])
    to_camera, _ = camera()
    faces = torch.tensor([[0, 1, 2], [0, 2, 1]])
    towards, away = facing(in_kaolin_camera(vertices, to_camera), faces)[0, 0].tolist()
    assert towards == pytest.approx(torch.tensor(0.3).cos().item())
    assert away == -towards


def test_corners_background_and_the_way_out() -> None:
    values = torch.arange(8.0).view(1, 4, 2)
    corners = of_faces(values, torch.tensor([[3, 0, 1]]))
    assert corners.tolist() == [[[[6, 7], [0, 1], [2, 3]]]]
    features = torch.full((1, 1, 2, 3), 0.25)
    assert on_white(features, torch.tensor([[[-1, 7]]])).mean(-1).tolist() == [[[1, 0.25]]]
    with pytest.raises(UserError, match="splats"):
        prepare(torch.device("cpu"))


def test_missing_kaolin_names_its_wheels() -> None:
    if find_spec("kaolin"):
        pytest.skip("kaolin is installed")
    with pytest.raises(UserError, match=r"nvidia-kaolin\.s3.*splats"):
        prepare(torch.device("cuda"))
