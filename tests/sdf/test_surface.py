"""Surface splats of a closed mesh."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from eavatar.sdf.surface import (
    Discs,
    draw_at_once,
    draw_each,
    make_discs,
    place_discs,
    render_surface,
    to_gaussians,
)
from eavatar.sdf.tetrahedra import Surface, body_centred_grid, cut
from eavatar.transforms import quaternion_to_matrix

DISTANCE = 10.0


def ball(cells: int) -> Surface:
    grid = body_centred_grid(torch.full((3,), -1.6), torch.full((3,), 1.6), cells)
    sdf = torch.linalg.vector_norm(grid.vertices, dim=1) - 1
    return cut(grid, sdf < 0).surface(grid.vertices, sdf, grid.vertices)


def camera(size: int) -> tuple[Tensor, Tensor]:
    """One camera, one timestep, that sees 3.2 units at the distance of the ball."""
    focal = DISTANCE * size / 3.2
    intrinsics = torch.tensor([[[[focal, 0, size / 2], [0, focal, size / 2], [0, 0, 1]]]])
    to_camera = torch.eye(4)[None, None].clone()
    to_camera[..., 2, 3] = DISTANCE
    return to_camera, intrinsics


def test_discs_lie_in_the_surface() -> None:
    surface = ball(16)
    discs = make_discs(surface.vertices[None], surface.faces)
    discs = Discs(discs.normals[0], discs.radii[0])
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
    mesh = (surface.vertices[None], surface.faces, surface.features.abs()[None])
    image = render_surface(*mesh, *camera(size), size, size)
    pixel = 3.2 / size
    radius = math.sqrt(float((image.alpha > 0.5).sum()) / math.pi) * pixel
    outline = DISTANCE / math.sqrt(DISTANCE**2 - 1)
    # 1.2 to 1.5 pixels too large without the shift.
    assert abs(radius - outline) < 0.25 * pixel
    assert (
        float(image.alpha[0, 0, size // 2 - 8 : size // 2 + 8, size // 2 - 8 :][:, :16].min()) > 0.9
    )


def test_image_moves_vertices_and_colours() -> None:
    surface = ball(12)
    vertices = surface.vertices.clone().requires_grad_()
    colours = torch.full((len(vertices), 3), 0.5, requires_grad=True)
    mesh = (vertices[None], surface.faces, colours[None])
    image = render_surface(*mesh, *camera(32), 32, 32)
    image.alpha.sum().backward(retain_graph=True)
    # A larger outline covers more: the gradient points outwards across the view.
    radial = (vertices.grad[:, :2] * surface.vertices[:, :2]).sum()
    assert float(radial) > 0
    image.features.sum().backward()
    front, back = surface.vertices[:, 2] < -0.5, surface.vertices[:, 2] > 0.5
    assert bool((colours.grad[front] > 0).any())
    assert not bool(colours.grad[back].any())


def turned(angles: list[float], size: int) -> tuple[Tensor, Tensor]:
    """Cameras (1, K) around the ball."""
    to_camera, intrinsics = camera(size)
    turns = torch.tensor(angles)
    rotations = torch.eye(4).repeat(len(angles), 1, 1)
    rotations[:, 0, 0] = rotations[:, 2, 2] = turns.cos()
    rotations[:, 0, 2], rotations[:, 2, 0] = turns.sin(), -turns.sin()
    return to_camera @ rotations, intrinsics.repeat(1, len(angles), 1, 1)


def test_timesteps_and_views_at_once_equal_one_after_the_other() -> None:
    surface = ball(12)
    stretch = torch.tensor([[[1.0, 1, 1]], [[0.8, 1.1, 0.9]]])
    colours = (surface.vertices * 0.3 + 0.5) * torch.tensor([[[1.0]], [[0.7]]])
    cameras = [torch.cat([x, x.flip(1)]) for x in turned([0.0, 0.7, 2.0], 24)]
    target = torch.rand(2, 3, 24, 24, 3, generator=torch.Generator().manual_seed(0))

    def gradients(whole: bool) -> tuple[Tensor, ...]:
        vertices = (surface.vertices * stretch).requires_grad_()
        values = colours.clone().requires_grad_()
        parts = [slice(0, 2)] if whole else [slice(0, 1), slice(1, 2)]
        views = [slice(0, 3)] if whole else [slice(k, k + 1) for k in range(3)]
        total = torch.zeros(())
        for part in parts:
            for view in views:
                mesh = (vertices[part], surface.faces, values[part])
                picture = render_surface(*mesh, *(x[part, view] for x in cameras), 24, 24)
                total = total + ((picture.features - target[part, view]) ** 2).sum()
                total = total + picture.alpha.sum()
        return total, *torch.autograd.grad(total, (vertices, values))

    for whole, single in zip(gradients(True), gradients(False), strict=True):
        torch.testing.assert_close(whole, single)


def test_hidden_discs_without_opacity_equal_selected_ones() -> None:
    """The two ways of drawing, that of CUDA and that of the CPU."""
    surface = ball(12)
    vertices = surface.vertices[None].clone().requires_grad_()
    colours = torch.rand(vertices.shape, generator=torch.Generator().manual_seed(0))
    colours.requires_grad_()
    cameras = turned([0.0, 0.7, 2.0], 24)
    discs = make_discs(vertices, surface.faces)
    results = []
    for draw in (draw_at_once, draw_each):
        means, seen = place_discs(vertices, discs, *cameras)
        picture = draw(means, seen, discs, colours, *cameras, 24, 24)
        loss = picture.features.square().sum() + picture.alpha.sum()
        gradients = torch.autograd.grad(loss, (vertices, colours))
        results.append((picture.features, picture.alpha, *gradients))
    for one, other in zip(*results, strict=True):
        torch.testing.assert_close(one, other)


@pytest.mark.gpu
def test_cuda_draws_what_the_cpu_draws() -> None:
    surface = ball(12)
    generator = torch.Generator().manual_seed(2)
    # No two at one depth, whose order rounding would decide.
    vertices = surface.vertices + 0.01 * torch.rand(surface.vertices.shape, generator=generator)
    colours = torch.rand(surface.vertices[None].shape, generator=torch.Generator().manual_seed(0))
    target = torch.rand(1, 3, 24, 24, 3, generator=torch.Generator().manual_seed(1))
    results = []
    for device in ("cpu", "cuda"):
        moved = vertices[None].to(device).requires_grad_()
        values = colours.detach().to(device).requires_grad_()
        cameras = [x.to(device) for x in turned([0.0, 0.7, 2.0], 24)]
        picture = render_surface(moved, surface.faces.to(device), values, *cameras, 24, 24)
        loss = (picture.features - target.to(device)).square().sum() + picture.alpha.sum()
        gradients = torch.autograd.grad(loss, (moved, values))
        results.append([x.detach().cpu() for x in (picture.features, picture.alpha, *gradients)])
    for one, other in zip(*results, strict=True):
        # The renderer's own parity: 1e-4 of an image, 1e-3 of a gradient.
        torch.testing.assert_close(one, other, rtol=0, atol=1e-3 * max(1, float(one.abs().max())))
