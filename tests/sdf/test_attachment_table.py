"""The table of faces agrees with the search on the host."""

from __future__ import annotations

import torch

from eavatar.avatar.base_motion import ZERO_REACH, BaseMotion
from eavatar.sdf.attachment_table import CELL, AttachmentTable
from tests.scenes.carrier import EXPRESSIONS, carrier, face_landmarks


def test_points_move_about_as_when_searched_for() -> None:
    torch.manual_seed(0)
    base = BaseMotion.of(*carrier(3000), face_landmarks())
    table = AttachmentTable.of(base)
    points = base.vertices[torch.randint(3000, (2000,))] + 0.05 * torch.randn(2000, 3)
    moved = base(torch.randn(EXPRESSIONS))
    error = table.attach(base, points).carry(moved) - base.attach(points).carry(moved)
    # The face may be the neighbour's: a place is off by a cell and an edge (0.06), and the basis
    # changes by 0.3 · 3 coefficients for each dm.
    assert error.norm(dim=1).max() < 0.9 * (CELL + 0.06)
    assert error.square().sum(dim=1).mean().sqrt() < 0.005


def test_nothing_moves_where_the_table_ends() -> None:
    base = BaseMotion.of(*carrier(), face_landmarks())
    table = AttachmentTable.of(base)
    far = torch.tensor([[9.0, 0, 0], [0, -9, 0], [0, 0, 9 + ZERO_REACH]])
    assert (table.attach(base, far).weights == 0).all()
