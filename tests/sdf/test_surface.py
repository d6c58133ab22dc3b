"""Surface splats of a closed mesh."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from eavatar.sdf.surface import make_discs, render_surface, to_gaussians
from eavatar.sdf.tetrahedra import Surface, body_centred_grid, marching_tetrahedra
from eavatar.transforms import quaternion_to_matrix

DISTANCE = 10.0


def ball(cells: int) -> Surface:
    grid = body_centred_grid(torch.full((3,), -1.6), torch.full((3,), 1.6), cells)
    sdf = torch.linalg.vector_norm(grid.vertices, dim=1) - 1
    return marching_tetrahedra(grid, grid.vertices, sdf, grid.vertices)


def camera(size: int) -> tuple[Tensor, Tensor]:
    """One camera that sees 3.2 units at the distance of the ball."""
    focal = DISTANCE * size / 3.2
    intrinsics = torch.tensor([[[focal, 0, size / 2], [0, focal, size / 2], [0, 0, 1]]])
    to_camera = torch.eye(4)[None].clone()
    to_camera[0, 2, 3] = DISTANCE
    return to_camera, intrinsics


def test_discs_lie_in_the_surface() -> None:
    surface = ball(16)
    discs = make_discs(surface.vertices, surface.faces)
    radial = torch.nn.functional.normalize(surface.vertices, dim=1)
    # Chords of a cell, 0.2, on a radius of 1; all but the slivers where it meets a grid vertex.
    assert float((discs.normals * radial).sum(dim=1).quantile(0.02)) > 0.9
    gaussians = to_gaussians(surface.vertices, discs, surface.features)
    thin = quaternion_to_matrix(gaussians.quaternions)[:, :, 2]
    aligned = (thin * discs.normals).sum(dim=1).abs()
    lengths = torch.linalg.vector_norm(discs.normals, dim=1)
    torch.testing.assert_close(aligned[lengths > 0.5], lengths[lengths > 0.5])


@pytest.mark.parametrize(("cells", "size"), [(24, 64), (36, 64), (36, 128)])
def test_outline_is_where_the_surface_is(cells: int, size: int) -> None:
    surface = ball(cells)
    discs = make_discs(surface.vertices, surface.faces)
    image = render_surface(
        surface.vertices, discs, surface.features.abs(), *camera(size), size, size
    )
    pixel = 3.2 / size
    radius = math.sqrt(float((image.alpha > 0.5).sum()) / math.pi) * pixel
    outline = DISTANCE / math.sqrt(DISTANCE**2 - 1)
    # 1.2 to 1.5 pixels too large without the shift.
    assert abs(radius - outline) < 0.25 * pixel
    assert float(image.alpha[0, size // 2 - 8 : size // 2 + 8, size // 2 - 8 :][:, :16].min()) > 0.9


def test_image_moves_vertices_and_colours() -> None:
    surface = ball(12)
    vertices = surface.vertices.clone().requires_grad_()
    colours = torch.full((len(vertices), 3), 0.5, requires_grad=True)
    discs = make_discs(vertices, surface.faces)
    image = render_surface(vertices, discs, colours, *camera(32), 32, 32)
    image.alpha.sum().backward(retain_graph=True)
    # A larger outline covers more: the gradient points outwards across the view.
    radial = (vertices.grad[:, :2] * surface.vertices[:, :2]).sum()
    assert float(radial) > 0
    image.features.sum().backward()
    front, back = surface.vertices[:, 2] < -0.5, surface.vertices[:, 2] > 0.5
    assert bool((colours.grad[front] > 0).any())
    assert not bool(colours.grad[back].any())
