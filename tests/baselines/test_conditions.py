"""The mesh's orthographic images: what is where, whatever the order of its faces."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import trimesh

from eavatar.baselines.conditions import LOWER, UPPER, Conditions, DeformingMesh

SIZE = 32
MIDDLE = (np.array(LOWER) + np.array(UPPER)) / 2
EXTENT = np.array(UPPER) - np.array(LOWER)


def ball(centre: np.ndarray, radius: float) -> DeformingMesh:
    """A sphere; its one expression moves it by 0.3 along x."""
    made = trimesh.creation.icosphere(3)
    vertices = (centre + radius * made.vertices).astype(np.float32)
    basis = np.zeros((*vertices.shape, 1), np.float32)
    basis[:, 0] = 0.3
    return DeformingMesh(vertices, basis, np.array(made.faces, dtype=np.int64))


def conditions(mesh: DeformingMesh) -> Conditions:
    made = Conditions(len(mesh.neutral), len(mesh.faces), mesh.basis.shape[2], SIZE)
    made.fill(mesh)
    return made


def pixel(point: np.ndarray, column: int) -> tuple[int, int]:
    """Row and column of a point, the columns along an axis."""
    places = (point - np.array(LOWER)) / EXTENT
    return int((1 - places[1]) * SIZE), int(places[column] * SIZE)


@pytest.fixture(scope="module")
def centre() -> np.ndarray:
    return MIDDLE + np.array([0.4, 0.3, -0.2])


def test_a_ball_is_seen_as_a_disc_where_it_is(centre):
    front, side = conditions(ball(centre, 0.6))(torch.zeros(1, 1))
    assert front.shape == (1, 7, SIZE, SIZE) and side.shape == (1, 13, SIZE, SIZE)
    for mask, axis in ((front[0, -1], 0), (side[0, -1], 2)):
        assert set(mask.unique().tolist()) == {0.0, 1.0}
        area = np.pi * 0.6**2 / (EXTENT[1] * EXTENT[axis]) * SIZE**2
        # every pixel that it touches: none is missing inside, and its edge has about 40
        assert area < mask.sum() < area + 40
        rows, columns = np.nonzero(mask.numpy())
        row, column = pixel(centre, axis)
        assert abs(rows.mean() - row) < 1 and abs(columns.mean() - column) < 1


def test_each_view_sees_the_side_that_faces_it(centre):
    front, side = conditions(ball(centre, 0.6))(torch.zeros(1, 1))
    row, column = pixel(centre, 0)
    nearest = centre + np.array([0, 0, 0.6])
    colour = 2 * (nearest - np.array(LOWER)) / EXTENT - 1
    # a pixel is 0.09 wide, and shows the sample of it that is nearest to the viewer
    assert front[0, :3, row, column].numpy() == pytest.approx(colour, abs=0.1)
    assert front[0, 3:6, row, column].numpy() == pytest.approx([0, 0, 1], abs=0.2)
    row, column = pixel(centre, 2)
    assert side[0, 3:6, row, column].numpy() == pytest.approx([1, 0, 0], abs=0.2)  # left: +x
    assert side[0, 9:12, row, column].numpy() == pytest.approx([-1, 0, 0], abs=0.2)


def test_the_expression_moves_what_is_seen_and_the_colours_go_with_it(centre):
    drawn = conditions(ball(centre, 0.6))
    front, _ = drawn(torch.tensor([[0.0], [1.0]]))
    row, column = pixel(centre, 0)
    moved = pixel(centre + np.array([0.3, 0, 0]), 0)
    assert moved[1] - column == 3
    difference = front[0, :, row, column] - front[1, :, moved[0], moved[1]]
    assert difference.abs().max() < 0.1


def test_the_order_of_the_faces_does_not_matter(centre):
    mesh = ball(centre, 0.6)
    turned = DeformingMesh(mesh.neutral, mesh.basis, mesh.faces[::-1].copy())
    first, second = (conditions(each)(torch.zeros(1, 1))[0] for each in (mesh, turned))
    assert torch.equal(first[:, -1], second[:, -1])
    torch.testing.assert_close(first, second, atol=0.05, rtol=0)  # samples of equal depth


def test_what_is_outside_the_box_is_not_drawn():
    front, side = conditions(ball(MIDDLE + np.array([9.0, 0, 0]), 0.5))(torch.zeros(1, 1))
    assert not front.any() and not side.any()


def test_meshes_differ_by_their_digests(centre):
    digests = {ball(centre, 0.6).digest, ball(centre, 0.6).digest, ball(centre, 0.61).digest}
    assert len(digests) == 2
