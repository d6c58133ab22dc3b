"""The tetrahedral grid and marching tetrahedra on analytic shapes."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from eavatar.sdf.tetrahedra import Grid, Surface, body_centred_grid, cut

Function = Callable[[Tensor], Tensor]


def sphere(points: Tensor) -> Tensor:
    return torch.linalg.vector_norm(points, dim=1) - 0.8


def torus(points: Tensor) -> Tensor:
    ring = torch.linalg.vector_norm(points[:, :2], dim=1) - 0.6
    return torch.hypot(ring, points[:, 2]) - 0.25


def cube_grid(cells: int) -> Grid:
    return body_centred_grid(torch.full((3,), -1.0), torch.full((3,), 1.0), cells)


def surface_of(grid: Grid, function: Function) -> Surface:
    return cut(grid, function(grid.vertices) < 0).surface(
        grid.vertices, function(grid.vertices), grid.vertices
    )


def volume(surface: Surface) -> float:
    """By the divergence theorem; positive if the faces look outwards."""
    a, b, c = surface.vertices[surface.faces].unbind(dim=1)
    return float((a * torch.linalg.cross(b, c)).sum() / 6)


def signed_volumes(grid: Grid) -> Tensor:
    corners = grid.vertices[grid.tetrahedra]
    return torch.linalg.det(corners[:, 1:] - corners[:, :1]) / 6


def directed_edges(surface: Surface) -> list[tuple[int, int]]:
    edges = surface.faces[:, [[0, 1], [1, 2], [2, 0]]].reshape(-1, 2)
    return [(int(a), int(b)) for a, b in edges]


def test_cells_are_congruent_and_positively_oriented() -> None:
    grid = cube_grid(6)
    volumes = signed_volumes(grid)
    torch.testing.assert_close(volumes, torch.full_like(volumes, (2 / 6) ** 3 / 12))
    lengths = torch.linalg.vector_norm(grid.vertices[grid.edges[0]].diff(dim=1)[:, 0], dim=1)
    assert float(lengths.max()) == pytest.approx(2 / 6, rel=1e-5)
    assert float(lengths.min()) == pytest.approx(math.sqrt(0.75) * 2 / 6, rel=1e-5)


def test_box_with_unequal_sides_is_centred() -> None:
    grid = body_centred_grid(torch.tensor([-1.6, -1.8, -2.0]), torch.tensor([1.6, 1.8, 1.4]), 12)
    middle = (grid.vertices.max(dim=0).values + grid.vertices.min(dim=0).values) / 2
    torch.testing.assert_close(middle, torch.tensor([0.0, 0.0, -0.3]), rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("function", "expected"),
    [(sphere, 4 / 3 * math.pi * 0.8**3), (torus, 2 * math.pi**2 * 0.6 * 0.25**2)],
)
def test_surface_is_closed_outward_and_of_the_right_volume(
    function: Function, expected: float
) -> None:
    surface = surface_of(cube_grid(24), function)
    edges = directed_edges(surface)
    assert len(set(edges)) == len(edges)
    assert set(edges) == {(b, a) for a, b in edges}  # each edge twice, in opposite directions
    # Chords of a curved surface lose about (cell / radius)² / 8 of the volume: under 2 % here.
    assert volume(surface) == pytest.approx(expected, rel=0.02)


@pytest.mark.parametrize(("function", "characteristic"), [(sphere, 2), (torus, 0)])
def test_topology(function: Function, characteristic: int) -> None:
    surface = surface_of(cube_grid(24), function)
    edges = len(directed_edges(surface)) // 2
    assert len(surface.vertices) - edges + len(surface.faces) == characteristic


def test_linear_functions_are_interpolated_exactly() -> None:
    grid = cube_grid(8)
    normal = torch.tensor([0.3, -0.5, 0.8])
    sdf = grid.vertices @ normal - 0.1234
    features = grid.vertices @ torch.tensor([[1.0, 2], [-1, 0], [0.5, 3]]) + 1
    surface = cut(grid, sdf < 0).surface(grid.vertices, sdf, features)
    on_plane = surface.vertices @ normal
    torch.testing.assert_close(on_plane, torch.full_like(on_plane, 0.1234), atol=1e-5, rtol=0)
    expected = surface.vertices @ torch.tensor([[1.0, 2], [-1, 0], [0.5, 3]]) + 1
    torch.testing.assert_close(surface.features, expected, atol=1e-5, rtol=0)


def test_gradients_against_finite_differences() -> None:
    grid = body_centred_grid(torch.full((3,), -1.0).double(), torch.ones(3).double(), 2)
    generator = torch.Generator().manual_seed(0)
    sdf = sphere(grid.vertices) + 0.05
    features = torch.rand(len(sdf), 2, generator=generator, dtype=torch.float64)

    def outputs(vertices: Tensor, sdf: Tensor, features: Tensor) -> tuple[Tensor, Tensor]:
        surface = cut(grid, sdf < 0).surface(vertices, sdf, features)
        return surface.vertices, surface.features

    inputs = [value.clone().requires_grad_() for value in (grid.vertices, sdf, features)]
    assert torch.autograd.gradcheck(outputs, inputs)


def test_subdivision_keeps_the_volume_and_the_orientation() -> None:
    grid = cube_grid(6)
    finer = grid.subdivide()
    assert len(finer.tetrahedra) == 8 * len(grid.tetrahedra)
    volumes = signed_volumes(finer)
    torch.testing.assert_close(volumes, torch.full_like(volumes, (2 / 6) ** 3 / 12 / 8))
    torch.testing.assert_close(finer.vertices[: len(grid.vertices)], grid.vertices)
    coarse, fine = (abs(volume(surface_of(g, sphere)) - 2.1447) for g in (grid, finer))
    assert fine < coarse / 3  # second order: a quarter


def test_band_gives_the_surface_of_the_whole_grid() -> None:
    grid = cube_grid(16)
    band = grid.band(torus(grid.vertices) < 0, layers=1)
    assert len(band.grid.vertices) < len(grid.vertices) / 2
    whole, part = surface_of(grid, torus), surface_of(band.grid, torus)
    torch.testing.assert_close(part.vertices, whole.vertices)
    assert {tuple(sorted(f)) for f in part.faces.tolist()} == {
        tuple(sorted(f)) for f in whole.faces.tolist()
    }


def test_band_notices_when_the_surface_leaves() -> None:
    grid = cube_grid(16)
    band = grid.band(sphere(grid.vertices) < 0, layers=1)
    values = sphere(band.grid.vertices)
    assert band.holds(values)
    cell = 2 / 16
    assert band.holds(values + 0.5 * cell)
    assert not band.holds(values + 3 * cell)
    assert not band.holds(values - 3 * cell)
