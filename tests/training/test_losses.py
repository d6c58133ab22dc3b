"""The loss terms against values worked out by hand and slow loops."""

from __future__ import annotations

import math

import pytest
import torch

from eavatar.training import losses


def tetrahedron() -> tuple[torch.Tensor, torch.Tensor]:
    vertices = torch.tensor([[0.0, 0, 0], [1, 0, 0], [0, 1, 0], [0, 0, 1]])
    return vertices, torch.tensor([[0, 2, 1], [0, 1, 3], [0, 3, 2], [1, 2, 3]])


def test_rgb_ignores_what_is_not_visible() -> None:
    prediction, target = torch.zeros(1, 2, 2, 3), torch.zeros(1, 2, 2, 3)
    prediction[0, 0, 0] = torch.tensor([0.3, 0.6, 0.0])
    prediction[0, 1, 1] = 1.0
    weight = torch.tensor([[[1.0, 1], [1, 0]]])
    assert losses.rgb_loss(prediction, target, weight).item() == pytest.approx(0.3 / 3)


def test_silhouette_of_half_overlapping_boxes() -> None:
    alpha, mask = torch.zeros(2, 4, 4), torch.zeros(2, 4, 4)
    alpha[0, :, :2], mask[0, :, 1:3] = 1, 1  # 4 pixels common, 12 in all
    alpha[1, :2], mask[1, :2] = 1, 1
    weight = torch.ones(2, 4, 4)
    assert losses.silhouette_loss(alpha, mask, weight).item() == pytest.approx((1 - 4 / 12) / 2)


def test_landmark_deformation_and_offset_by_hand() -> None:
    assert losses.landmark_loss(torch.tensor([0.1, -0.3])).item() == pytest.approx(0.2)
    moved, target = torch.tensor([[1.0, 2, 3]]), torch.tensor([[1.0, 2, 6]])
    assert losses.deformation_loss(moved, target).item() == pytest.approx(3)
    raw, counted = torch.tensor([[[0.0, 3, 4], [0, 0, 1], [9, 9, 9]]]), torch.tensor([1, 1, 0])
    assert losses.offset_loss(raw, counted.bool()).item() == pytest.approx(13)


def test_laplacian_against_a_loop() -> None:
    vertices, faces = tetrahedron()
    expected = 0.0
    for vertex in range(4):  # in a tetrahedron all others are neighbours
        others = [vertices[other] for other in range(4) if other != vertex]
        expected += (torch.stack(others).mean(dim=0) - vertices[vertex]).square().sum().item() / 4
    assert losses.laplacian_loss(vertices, faces).item() == pytest.approx(expected)


def test_losses_of_several_timesteps_are_means_over_them() -> None:
    vertices, faces = tetrahedron()
    several = torch.stack([vertices, vertices * 2, vertices + 1])
    expected = sum(losses.laplacian_loss(mesh, faces) for mesh in several) / 3
    torch.testing.assert_close(losses.laplacian_loss(several, faces), expected)
    alone = torch.cat([several, several[:, :1]], dim=1)  # a vertex that no face uses
    torch.testing.assert_close(losses.laplacian_loss(alone, faces), expected)
    generator = torch.Generator().manual_seed(0)
    alpha, mask, weight = torch.rand(3, 2, 4, 4, 5, generator=generator)
    expected = sum(
        losses.silhouette_loss(*one) for one in zip(alpha, mask, weight, strict=True)
    ) / len(alpha)
    torch.testing.assert_close(losses.silhouette_loss(alpha, mask, weight), expected)


def centre_and_size(vertices: torch.Tensor, faces: torch.Tensor) -> tuple:
    return losses.centre_and_size(*losses.centroids_and_areas(vertices, faces))


def test_alignment_does_not_see_the_triangulation() -> None:
    """Cutting one face into three moves a mean over vertices, but none over the area."""
    vertices, faces = tetrahedron()
    middle = vertices[faces[3]].mean(dim=0, keepdim=True)
    finer = torch.cat([vertices, middle])
    split = torch.tensor([[1, 2, 4], [2, 3, 4], [3, 1, 4]])
    centre, _ = centre_and_size(vertices, faces)
    other, _ = centre_and_size(finer, torch.cat([faces[:3], split]))
    torch.testing.assert_close(centre, other)


def test_alignment_of_moved_and_scaled_shapes() -> None:
    """Eq. 17 of a shape moved by d and scaled by f about its centre: |d|² + ((f - 1) s)²."""
    vertices, faces = tetrahedron()
    centre, size = centre_and_size(vertices, faces)
    moved = centre + 1.5 * (vertices - centre) + torch.tensor([0.0, 0.3, 0.4])
    loss = losses.alignment_loss(*centre_and_size(moved, faces), centre, size)
    assert loss.item() == pytest.approx(0.25 + (0.5 * size.item()) ** 2, rel=1e-5)


def test_distance_to_the_prior_by_hand_and_where_it_gives_way() -> None:
    errors = torch.tensor([[0.003, 0.004], [0.0, 100.0], [5.0, 5.0]])
    weights = torch.tensor([1.0, 1.0, 0.0])
    loss = losses.prior_distance_loss(errors, weights, 0.05)
    # A small error squared, and of a large one no more than the tolerance squared.
    assert loss.item() == pytest.approx((0.005**2 / 1.01 + 0.05**2) / 3, rel=1e-4)


def test_faces_without_area_do_not_count() -> None:
    vertices, faces = tetrahedron()
    centroids, areas = losses.centroids_and_areas(vertices, faces)
    torch.testing.assert_close(areas[:3], torch.full((3,), 0.5))
    more = torch.cat([centroids, centroids + 5]), torch.cat([areas, 0 * areas])
    alone = losses.centre_and_size(centroids, areas)
    for first, second in zip(losses.centre_and_size(*more), alone, strict=True):
        torch.testing.assert_close(first, second)
    _, nothing = losses.centre_and_size(centroids, 0 * areas)
    assert math.isfinite(nothing.item())
