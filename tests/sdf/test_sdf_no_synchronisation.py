"""With capacities, a step of stage I can be captured: seen without a GPU, on fake tensors.

Backward passes and gsplat's kernels cannot be walked through.
"""

from __future__ import annotations

import pytest
import torch

from eavatar.avatar.base_motion import BaseMotion
from eavatar.sdf.attachment_table import AttachmentTable
from eavatar.sdf.field import HeadField
from eavatar.sdf.shape import COLUMNS, ROWS, Region
from eavatar.sdf.surface import make_discs, place_discs, to_gaussians
from eavatar.sdf.tetrahedra import Cut
from eavatar.settings import read_config
from eavatar.training import losses
from tests.scenes import CONFIG

POINTS, VERTICES, FACES, EXPRESSIONS = 900, 1500, 3000, 5

pytestmark = pytest.mark.filterwarnings("ignore:CUDA is not available")


def test_from_the_cut_to_the_splats(fake_cuda):
    field = HeadField(read_config(CONFIG / "config.yaml").sdf, EXPRESSIONS)
    field.base = BaseMotion.empty(vertices=500, faces=900, expressions=EXPRESSIONS)
    cells = torch.zeros(6 * 7 * 8, dtype=torch.int32)
    field.table = AttachmentTable(cells, torch.zeros(3), torch.tensor([6, 7, 8]))
    edges = torch.zeros(VERTICES, 2, dtype=torch.long)
    faces = torch.zeros(FACES, 3, dtype=torch.long)
    crossings = Cut(edges, faces, torch.ones(VERTICES, dtype=torch.bool))
    surface = field.surface_through(torch.rand(POINTS, 3), crossings)
    driven = field.drive(surface, torch.rand(2, EXPRESSIONS), torch.rand(2, 6), 600, 800)
    assert driven.raw_expression.shape == (2, 600, 3) and driven.raw_expression.is_cuda
    assert driven.base.shape == (2, VERTICES, 3) and driven.base.is_cuda
    assert driven.raw_pose.shape == (2, 800, 3)
    discs = make_discs(driven.vertices, faces)
    cameras = torch.rand(2, 3, 4, 4), torch.rand(2, 3, 3, 3)
    means, seen = place_discs(driven.vertices, discs, *cameras)
    assert means.shape == (2, 3, VERTICES, 3) and seen.shape == (2, 3, VERTICES)
    assert to_gaussians(driven.vertices, discs, driven.colours).means.is_cuda
    region = Region(*torch.rand(3, 3), torch.ones(ROWS * COLUMNS))
    for value in (
        *region.measure(surface.vertices, faces)[1:],
        losses.laplacian_loss(driven.vertices, faces),
        losses.offset_loss(driven.raw_expression, driven.expressed),
        losses.prior_distance_loss(field.sample(torch.rand(7, 3)).offsets, torch.rand(7), 0.05),
        losses.landmark_loss(field.sample(field.neutral_landmarks).sdf),
    ):
        assert value.shape == ()
